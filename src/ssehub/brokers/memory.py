"""`memory://`: the log of one process, which lives as long as it does."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ..errors import BrokerUnavailable
from ..event import Event, Position
from .base import Deliver, Entry

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_log_name() -> str:
    """A name that no other log has: 8 characters, 41 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


class MemoryBroker:
    """Hands each event on in the call that publishes it. `now` gives Unix time in seconds."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._last = Position(int(now() * 1000), 0, new_log_name())
        self._is_empty = True
        self._deliver: Deliver | None = None

    async def publish(self, events: Sequence[Event]) -> list[str]:
        if self._deliver is None:
            raise BrokerUnavailable("the memory broker is not running: use it inside `async with hub`")
        entries = [Entry(self._next(), event) for event in events]
        await self._deliver(self._last, entries)
        return [str(entry.position) for entry in entries]

    async def head(self) -> str | None:
        return None if self._is_empty else str(self._last)

    @asynccontextmanager
    async def run(self, deliver: Deliver) -> AsyncIterator[None]:
        await deliver(self._last, ())
        self._deliver = deliver
        try:
            yield
        finally:
            self._deliver = None

    def _next(self) -> Position:
        """The place after the last one, also when the clock has been set back."""
        milliseconds = int(self._now() * 1000)
        last = self._last
        if milliseconds > last.milliseconds:
            self._last = Position(milliseconds, 0, last.log)
        else:
            self._last = Position(last.milliseconds, last.sequence + 1, last.log)
        self._is_empty = False
        return self._last
