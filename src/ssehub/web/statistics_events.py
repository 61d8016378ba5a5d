"""`GET /statistics/events`: the statistics once a second, as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import HubClosed, Overloaded
from ..event import SEPARATOR
from ..hub import Hub
from ..loglimit import limited_logger
from ..rights import Right
from .addresses import client_of
from .board import Board
from .endpoint import Endpoint
from .requests import ControlRequest
from .statistics import gathered, require_no_query
from .transport import closing_of

logger = limited_logger("ssehub.control")

INTERVAL_SECONDS = 1.0
MAX_READERS = 100
READ_SECONDS = 10.0
"""A reader that has read nothing for so long, while its buffers are full, is cut off."""
EVENT = "statistics"


class FollowStatistics(Endpoint):
    """`GET /statistics/events`: sends each reader the newest statistics when it has read the ones before.

    They are gathered once for all readers, by whichever of them comes first, and not at all without readers.
    """

    path = "/statistics/events"
    method = "GET"
    right = Right.READ

    def __init__(self, hub: Hub, board: Board) -> None:
        super().__init__()
        self._hub = hub
        self._board = board
        self.readers = 0
        """How many follow it now."""
        self._gathering = asyncio.Lock()
        self._number = 0
        """Counts how often the statistics have been gathered."""
        self._newest = b""
        self._due = float("-inf")

    async def respond(self, request: ControlRequest) -> Response:
        require_no_query(request)
        if self._hub.is_draining:
            raise HubClosed("the hub is draining and about to stop")
        if self.readers >= MAX_READERS:
            raise Overloaded(f"{MAX_READERS} readers follow the statistics already: poll GET /statistics instead")
        return _Reading(self)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the statistics to one reader until the hub drains."""
        seen = self._number  # what was gathered before may be old
        while not self._hub.is_draining:
            await self._gather_after(seen)
            seen = self._number
            yield self._newest

    async def _gather_after(self, seen: int) -> None:
        """Return when statistics have been gathered after those with the number `seen`."""
        async with self._gathering:
            if self._number > seen:
                return
            await asyncio.sleep(self._due - time.monotonic())
            self._due = time.monotonic() + INTERVAL_SECONDS
            text = json.dumps(await gathered(self._hub, self._board), ensure_ascii=False, separators=(",", ":"))
            self._newest = ServerSentEvent(text, event=EVENT, sep=SEPARATOR).encode()
            self._number += 1


class _Reading(EventSourceResponse):
    """The response to one reader. It ends with the hub, or when the reader leaves or reads nothing any more."""

    def __init__(self, endpoint: FollowStatistics) -> None:
        # There is an event each second, so that no pings are needed.
        super().__init__(endpoint.events(), sep=SEPARATOR, ping=0, send_timeout=READ_SECONDS)
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._endpoint.readers += 1
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("%s cut off: nothing read for %g s, from %s", scope["path"], READ_SECONDS, client_of(scope))
            closing = closing_of(scope, receive)
            if closing is not None:
                closing.drop()
        finally:
            self._endpoint.readers -= 1
