"""Come-back times: when the clients that are told to come back do so.

Each gets a turn in a queue, which moves on as fast as the hub can take new streams. Ten clients are back at once, and
ten thousand over as long as the hub needs for them. What it can take is measured whenever many streams are opened; only
half of that is given out, because events have to go out meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from ..position import Position

ASSUMED_STREAMS_PER_SECOND = 1_000.0
"""What a hub can take, until it has been measured."""
LEAST_STREAMS_PER_SECOND, MOST_STREAMS_PER_SECOND = 200.0, 5_000.0
"""The bounds of what is believed: a window may be full of events, or of streams of Python code, which cost little."""
SHARE = 0.5
"""The share of that rate given to returning clients."""
WINDOW_SECONDS = 1.0
MIN_STREAMS = 100
"""Fewer streams in a window of measurement say too little: the CPU time may have been spent on events."""
DECAY = 0.99
"""How much of the best measurement so far counts at the next one."""
MAX_SPREAD_SECONDS = 120.0
"""The longest time over which clients are spread. Beyond it they come back at random within that time."""


class Comeback(NamedTuple):
    """How a client that is refused should reconnect."""

    retry_milliseconds: int
    cut_seconds: float
    """How long its last frame has to arrive before its response is cut off, if it needs that."""
    position: Position | None
    """The end of the log: a client without a cursor that returns with this one misses nothing from now on."""


class OpeningRate:
    """Measures how fast streams can be opened. `monotonic` and `cpu` (of the event loop's thread) give seconds.

    `max_per_second` is the limit on new streams, if there is one.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        max_per_second: float | None = None,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._monotonic = monotonic
        self._most = max_per_second
        self._cpu = cpu
        self._measured: float | None = None
        self._window: tuple[float, float, int] | None = None
        """When the window of measurement began, the CPU time then, and how many streams had been opened."""

    @property
    def returning_per_second(self) -> float:
        """How many clients should come back a second."""
        rate = SHARE * (ASSUMED_STREAMS_PER_SECOND if self._measured is None else self._measured)
        return rate if self._most is None else min(rate, self._most)

    def observe(self, opened: int) -> None:
        """Measure from time to time. `opened` streams have been opened so far."""
        now, cpu = self._monotonic(), self._cpu()
        if self._window is not None:
            began, cpu_before, opened_before = self._window
            if now - began < WINDOW_SECONDS:
                return
            count, seconds = opened - opened_before, cpu - cpu_before
            if count >= MIN_STREAMS and seconds > 0:
                rate = min(max(count / seconds, LEAST_STREAMS_PER_SECOND), MOST_STREAMS_PER_SECOND)
                # Use the best window: there the least CPU time went to other work.
                self._measured = rate if self._measured is None else max(rate, DECAY * self._measured)
        self._window = now, cpu, opened


class Turns:
    """A queue of clients that come back: gives each its turn."""

    def __init__(self, rate: OpeningRate, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._monotonic = monotonic
        self._next = 0.0

    def milliseconds(self, earliest_seconds: float) -> int:
        """Return the `retry:` of the next client, which should come back after `earliest_seconds` at the earliest."""
        now = self._monotonic()
        earliest = now + earliest_seconds
        turn = max(earliest, self._next)
        if turn > earliest + MAX_SPREAD_SECONDS:
            turn = earliest + random.uniform(0, MAX_SPREAD_SECONDS)
        else:
            self._next = turn + 1 / self._rate.returning_per_second
        return round((turn - now) * 1000)
