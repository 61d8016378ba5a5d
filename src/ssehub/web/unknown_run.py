"""Responses about runs that a client may not watch, which are the same as if there were no such runs."""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from ..fanout.refusals import Refusal
from .query import RUN, parse_query
from .refusals import MAX_SHOWN_NAME, Refusals

LEAST_SECONDS = 0.05
"""How long after its request this response is sent at the earliest: to look for a run takes less time, and takes
another time if there is one.
"""
TEXT = "there is no run of that name that you may watch\n"


class UnknownRuns:
    """Responds to requests for such runs."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    async def response(self, scope: Scope, began: float) -> Response:
        """Return the response to a request that came when the clock of the event loop was at `began`."""
        query = parse_query(scope["query_string"])
        name = "" if query is None else query.fields.get(RUN, "")
        self._refusals.refuse(Refusal.UNKNOWN_RUN, scope, f"run {name!r:.{MAX_SHOWN_NAME}}")
        await asyncio.sleep(began + LEAST_SECONDS - asyncio.get_running_loop().time())
        return PlainTextResponse(TEXT, 404, headers={"Cache-Control": "no-store"})
