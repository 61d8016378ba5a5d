"""The events that announce runs, published one after the other by one task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ..errors import HubClosed, SSEHubError, Unavailable
from ..event import Event
from ..loglimit import limited_logger

logger = limited_logger("ssehub.runs")

MAX_WAITING = 10_000
BATCH_EVENTS = 100
RETRY_SECONDS = 0.5
RETRIES = 20


class Announcements:
    """Publishes events in order with `publish`. It is a companion of the hub: it works while the hub runs.

    Nothing waits for it. If the log can't be written, it tries again for 10 s, so an event may be there twice. At most
    10,000 events wait; further ones are dropped.
    """

    problem = None

    def __init__(self, publish: Callable[[Sequence[Event]], Awaitable[object]]) -> None:
        self._publish = publish
        self._waiting: deque[Event] = deque()
        self._wake: asyncio.Event | None = None
        """Not None while `run` runs."""

    def add(self, event: Event) -> None:
        """Publish `event` after those that were added before."""
        if len(self._waiting) >= MAX_WAITING:
            logger.warning("%d announcements of runs wait to be published: further ones are dropped", MAX_WAITING)
            return
        self._waiting.append(event)
        if self._wake is not None:
            self._wake.set()

    def clear(self) -> None:
        """Drop the events that wait."""
        self._waiting.clear()

    def measure(self, statistics: object) -> None:
        pass

    async def run(self) -> None:
        wake = self._wake = asyncio.Event()
        try:
            while True:
                while self._waiting:
                    count = min(len(self._waiting), BATCH_EVENTS)
                    await self._publish_batch([self._waiting.popleft() for _ in range(count)])
                wake.clear()
                await wake.wait()
        finally:
            self._wake = None

    async def _publish_batch(self, events: Sequence[Event]) -> None:
        problem: SSEHubError | None = None
        for _ in range(RETRIES):
            try:
                await self._publish(events)
                return
            except HubClosed:
                return
            except Unavailable as exc:
                problem = exc
                await asyncio.sleep(RETRY_SECONDS)
            except SSEHubError as exc:
                problem = exc
                break
        logger.warning("%d announcements of runs could not be published: %s", len(events), problem)
