"""`memory://`: the log of one process, which lives as long as it does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ..errors import BrokerUnavailable
from ..position import Position
from ..publication import Publication
from .base import Follower, Limits
from .numbering import (
    Window,
    append,
    first_place,
    new_log_name,
)


class MemoryBroker:
    """Hands each event on in the call that publishes it. `now` gives Unix time in seconds."""

    def __init__(self, limits: Limits | None = None, *, now: Callable[[], float] = time.time) -> None:
        limits = limits or Limits()
        self.problem: str | None = None
        self.skipped = 0
        self._now = now
        self._last = Position(int(now() * 1000), 0, new_log_name())
        self._is_empty = True
        self._keys = Window(limits.idempotency_seconds, limits.idempotency_keys, now)
        self._follower: Follower | None = None

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        if self._follower is None:
            raise BrokerUnavailable("the memory broker is not running: use it inside `async with hub`")
        appended = append(publications, first_place(self._last, int(self._now() * 1000)), self._keys.find)
        if appended.keys:
            self._keys.keep(appended.keys)
        if appended.entries:
            self._last = appended.entries[-1].position
            self._is_empty = False
            await self._follower.deliver(self._last, appended.entries)
        return appended.positions

    async def head(self) -> str | None:
        return None if self._is_empty else str(self._last)

    @asynccontextmanager
    async def run(self, follower: Follower) -> AsyncIterator[None]:
        await follower.begin(self._last)
        self._follower = follower
        try:
            yield
        finally:
            self._follower = None
