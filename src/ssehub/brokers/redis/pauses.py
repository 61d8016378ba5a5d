"""The pauses between the reads of a busy log.

A node that waits in `XREAD` is woken by every call that appends. Such a read costs Redis 7 to 15 µs and the node 150 µs
or more, however few entries it returns, and an entry costs Redis 1 µs and the node 20 µs. So under load a node lets
entries accumulate between two reads. A read that has returned as many as it asked for is followed by the next at once.

What the last reads have returned says how busy the log is. After an idle time a dozen events that follow each other
closely are read at once, and so is everything that comes at a rate of up to CALM_RATE.
"""

from __future__ import annotations

import math

PAUSE_SECONDS = 0.01
"""The longest pause, and so the most that is added to the latency of an event."""
CALM_RATE = 250.0
"""Entries per second up to which there is no pause."""
BUSY_RATE = 500.0
"""Entries per second from which on the pause is the longest; between the two it grows evenly."""
_MEMORY_SECONDS = 0.05
"""After this time, what a read has returned counts for 1/e of it."""


class Pauses:
    """Decides how long to wait after each read. Times are seconds of the monotonic clock."""

    __slots__ = ("_read_at", "_recent")

    def __init__(self) -> None:
        self._recent = 0.0
        """The number of entries read lately, each counting less the longer ago that was."""
        self._read_at = -math.inf

    def ends_at(self, now: float, entries: int) -> float:
        """Return when the next read may begin, after one that has returned `entries` at `now`."""
        self._recent = self._recent * math.exp((self._read_at - now) / _MEMORY_SECONDS) + entries
        self._read_at = now
        share = (self._recent / _MEMORY_SECONDS - CALM_RATE) / (BUSY_RATE - CALM_RATE)
        return now + PAUSE_SECONDS * min(1.0, max(0.0, share))
