"""`POST /explain/`: says why a client would get a stream or not, and what it would begin with.

The limits of workers differ, and so may their readiness. Which of them a client reaches is up to the operating system,
so that all are asked, and the worst answer is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from ..errors import InvalidRequest, Unavailable
from ..fanout.history import ResetReason
from ..pace import pace_for
from ..report import Check
from ..rights import Right
from ..settings import Limits
from .board import EXPLAIN, Board
from .description import Answer, Description, fields_body, list_of, map_of, object_of
from .endpoint import Endpoint
from .explanation import Would
from .forms import JSON, read_fields
from .questions import FIELDS, LISTS, SHAPES, Question
from .requests import ControlRequest
from .schemas import COUNT, MISSING, STRING, nullable, one_of

_FROM_WORST = (Would.REFUSE, Would.COME_BACK, Would.OPEN)
_VERDICT = object_of(
    {
        "check": one_of([*Check]),
        "passed": {"type": ["boolean", "null"], "description": "Null if it was not made."},
        "message": STRING,
        "remedy": {"type": ["string", "null"], "description": "What would make it pass."},
    }
)
_BEGINS = object_of(
    {"at": one_of(["live", "replay", "reset"]), "events": COUNT, "reason": nullable(one_of([*ResetReason]))}
)


class Explain(Endpoint):
    """`POST /explain/`: explains a token, or a user with channels."""

    path = "/explain/"
    method = "POST"
    right = Right.READ
    description = Description(
        "explain",
        "Say why a client would get a stream or not, and what it would begin with",
        [
            Answer(
                200,
                "What the client would meet now, and each check of its request.",
                {
                    JSON: object_of(
                        {
                            "would": one_of([*Would]),
                            "status": COUNT,
                            "checks": list_of(_VERDICT),
                            "begins": nullable(_BEGINS),
                            "workers": map_of(one_of([*Would])),
                            "missing": MISSING,
                        }
                    )
                },
            )
        ],
        body=fields_body(FIELDS, SHAPES),
        refusals=(503,),
    )

    def __init__(self, board: Board, limits: Limits, now: Callable[[], float] = time.time) -> None:
        super().__init__(limits.max_body_bytes)
        self._board = board
        self._now = now

    async def respond(self, request: ControlRequest) -> Response:
        if request.query_string:
            raise InvalidRequest("the query is not used: send the fields in the body, because servers log queries")
        fields, _ = await read_fields(request, FIELDS, None, pace_for(request.body), repeated=LISTS)
        Question.parse(fields, self._now())
        answers = await self._board.ask(EXPLAIN, fields)
        if not answers.by_worker:
            raise Unavailable("no worker has answered: try again")
        explanations = {worker: item for worker, (item,) in answers.by_worker.items()}
        worst: Mapping[str, Any] = min(explanations.values(), key=lambda one: _FROM_WORST.index(one["would"]))
        would = {worker: one["would"] for worker, one in explanations.items()}
        content = {**worst, "workers": would, "missing": answers.missing}
        return JSONResponse(content, headers={"Cache-Control": "no-store"})
