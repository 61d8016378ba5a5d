"""Pace: work that takes long, such as reading a large request body, in slices, so that the event loop goes on."""

from __future__ import annotations

import asyncio
import time

SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size are read at once: that takes less time than a slice may."""
_SLICE_SECONDS = 0.005


class Pace:
    """Says when a slice of work has taken long enough. Check `is_due` between two steps, then await `rest`."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.perf_counter() + _SLICE_SECONDS

    @property
    def is_due(self) -> bool:
        return time.perf_counter() > self._until

    async def rest(self) -> None:
        """Let everything else in the event loop run, then begin the next slice."""
        await asyncio.sleep(0)
        self._until = time.perf_counter() + _SLICE_SECONDS


def pace_for(body: bytes) -> Pace | None:
    """Return a pace if `body` is too large to be read at once."""
    return Pace() if len(body) > SMALL_BODY_BYTES else None
