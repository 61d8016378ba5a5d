"""`GET /trace/`: what happens to streams, as a stream of events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from sse_starlette import ServerSentEvent
from starlette.responses import Response

from ..errors import Overloaded
from ..event import SEPARATOR
from ..fanout.tracing import MAX_TRACES
from ..hub import Hub
from ..rights import Right
from .board import TRACE, Board
from .description import Answer, Description, queries
from .endpoint import Endpoint
from .feed import EVENT_STREAM
from .following import Readers
from .forms import query_fields
from .listing import FILTERS, filters_of
from .requests import ControlRequest
from .schemas import STRING

_FULL = f"there are {MAX_TRACES} traces already: end one of them first"


class FollowTrace(Endpoint):
    """`GET /trace/`: the steps of the streams of a user, on a channel, from an address, on all workers."""

    path = "/trace/"
    method = "GET"
    right = Right.READ
    description = Description(
        "followTrace",
        "Follow what happens to the streams of a user, on a channel, from an address",
        [
            Answer(
                200,
                "Events, until the hub is about to stop. The type of each is the step, and its data are JSON.",
                {EVENT_STREAM: STRING},
            )
        ],
        queries(FILTERS),
        refusals=(503,),
    )

    def __init__(self, hub: Hub, board: Board) -> None:
        super().__init__()
        self._hub = hub
        self._board = board
        self._readers = Readers(hub, MAX_TRACES, _FULL)

    async def respond(self, request: ControlRequest) -> Response:
        fields = filters_of(query_fields(request.query_string, FILTERS))
        await self._hub.start()
        self._readers.require_room()
        if self._hub.tracer.is_full:  # those of other workers count, too
            raise Overloaded(_FULL)
        return self._readers.add(self._events(fields))

    async def _events(self, fields: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._board.follow(TRACE, fields)) as items:
            async for item in items:
                step = item.pop("step")
                yield ServerSentEvent(json.dumps(item, ensure_ascii=False), event=step, sep=SEPARATOR).encode()
