"""`GET /statistics/events`: the statistics once a second, as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator

from sse_starlette import ServerSentEvent
from starlette.responses import Response

from ..event import SEPARATOR
from ..hub import Hub
from ..rights import Right
from .board import Board
from .description import Answer, Description
from .endpoint import Endpoint
from .feed import EVENT_STREAM
from .following import Readers
from .requests import ControlRequest
from .schemas import STRING
from .statistics import gathered, require_no_query

INTERVAL_SECONDS = 1.0
MAX_READERS = 100
EVENT = "statistics"


class FollowStatistics(Endpoint):
    """`GET /statistics/events`: sends each reader the newest statistics when it has read the ones before.

    They are gathered once for all readers, by whichever of them comes first, and not at all without readers.
    """

    path = "/statistics/events"
    method = "GET"
    right = Right.READ
    description = Description(
        "followStatistics",
        "Follow the statistics of all workers, once a second",
        [
            Answer(
                200,
                "Events of the type `statistics`, until the hub is about to stop. The data of each is what "
                "`GET /statistics` answers.",
                {EVENT_STREAM: STRING},
            )
        ],
        refusals=(400, 503),
    )

    def __init__(self, hub: Hub, board: Board) -> None:
        super().__init__()
        self._hub = hub
        self._board = board
        self._readers = Readers(
            hub, MAX_READERS, f"{MAX_READERS} readers follow the statistics already: poll GET /statistics instead"
        )
        self._gathering = asyncio.Lock()
        self._number = 0
        """Counts how often the statistics have been gathered."""
        self._newest = b""
        self._due = float("-inf")

    async def respond(self, request: ControlRequest) -> Response:
        require_no_query(request)
        self._readers.require_room()
        return self._readers.add(self.events())

    async def events(self) -> AsyncGenerator[bytes, None]:
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
