"""Responses about runs that a client may not watch, which are the same as if there were no such runs."""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from ..fanout.limits import Refusal
from ..hub import Hub
from ..loglimit import limited_logger
from .addresses import client_of
from .query import RUN, parse_query

logger = limited_logger("ssehub.client")

LEAST_SECONDS = 0.05
"""How long after its request this response is sent at the earliest: to look for a run takes less time, and takes
another time if there is one.
"""
TEXT = "there is no run of that name that you may watch\n"
SHOWN_LENGTH = 80


class UnknownRuns:
    """Responds to requests for such runs. They are counted by `hub`, and logged."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def response(self, scope: Scope, began: float) -> Response:
        """Return the response to a request that came when the clock of the event loop was at `began`."""
        self._hub.count_refusal(Refusal.UNKNOWN_RUN)
        query = parse_query(scope["query_string"])
        name = "" if query is None else query.fields.get(RUN, "")
        shown = f"{name!r:.{SHOWN_LENGTH}}"
        logger.info("run refused, unknown or not granted: %s; from %s", shown, client_of(scope))
        await asyncio.sleep(began + LEAST_SECONDS - asyncio.get_running_loop().time())
        return PlainTextResponse(TEXT, 404, headers={"Cache-Control": "no-store"})
