"""State of a node that outlives its connections to Redis."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable

from ...position import Position

logger = logging.getLogger("ssehub.brokers.redis")

MAX_PAUSE_SECONDS = 1.0
MAX_SKEW_SECONDS = 5.0
"""A greater difference between the clocks of a node and of Redis is logged."""
CHECK_SECONDS = 0.5


class Knowledge:
    """What this node knows about the log, through either of its tasks."""

    def __init__(self) -> None:
        self.newest: Position | None = None
        """The newest position that was read, or returned to a publisher. A log that ends before it has lost events."""
        self.skipped = 0
        """Number of entries skipped because they were invalid or not written by ssehub."""

    def note(self, position: Position) -> None:
        newest = self.newest
        if newest is None or newest.log != position.log or newest < position:
            self.newest = position


class LogClock:
    """Redis' clock, from which positions are made, as a difference to this node's monotonic clock.

    Each reply with a time narrows the difference down: Redis read its clock after the request was sent, and before the
    reply arrived. So replies that are late, or nodes whose clocks are set, do no harm. `wall` is this node's clock; it
    is used to report how far it is from Redis', and as Redis' until the first reply.
    """

    def __init__(self, log: str, wall: Callable[[], float]) -> None:
        self._log = log
        self._wall = wall
        self._difference: float | None = None
        self._is_skewed = False
        self._check_at = -math.inf

    def now(self) -> float:
        return self._wall() if self._difference is None else time.monotonic() + self._difference

    @property
    def skew_seconds(self) -> float:
        return 0.0 if self._difference is None else self._wall() - self.now()

    def adjust(self, redis_time: float, sent_at: float) -> None:
        """Take the time from a reply that has just arrived, to a request sent at the monotonic time `sent_at`."""
        now = time.monotonic()
        least, most = redis_time - now, redis_time - sent_at
        difference = self._difference
        if difference is None:
            self._difference = (least + most) / 2
        elif not least <= difference <= most:
            self._difference = least if difference < least else most
        if now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            self._check(self.skew_seconds)

    def _check(self, skew: float) -> None:
        is_skewed = abs(skew) > MAX_SKEW_SECONDS
        if is_skewed == self._is_skewed:
            return
        self._is_skewed = is_skewed
        if is_skewed:
            logger.warning(
                "the clock of this machine is %.0f s %s that of the log at %s: set both, for instance by NTP"
                " (tokens expire by the former, events by the latter)",
                abs(skew),
                "ahead of" if skew > 0 else "behind",
                self._log,
            )
        else:
            logger.info("the clocks of this machine and of the log at %s agree again", self._log)


class Health:
    """The condition of one task: what prevents it from working, since when, and how long it pauses before a retry."""

    def __init__(self, task: str, log: str) -> None:
        self.problem: str | None = None
        self.failed_at: float | None = None
        """Monotonic time of the first failure since the task last worked; None while it works."""
        self._task = task
        self._log = log
        self._failures = 0

    def report(self, reason: str) -> None:
        problem = f"cannot use the log at {self._log}: {reason}"
        if self.problem != problem:
            logger.warning("%s (%s)", problem, self._task)
            self.problem = problem
        if self.failed_at is None:
            self.failed_at = time.monotonic()

    def clear(self) -> None:
        """Record that the task works (again)."""
        if self.problem is not None:
            logger.info("the log at %s can be used again (%s)", self._log, self._task)
        self.problem = self.failed_at = None
        self._failures = 0

    def next_pause(self) -> float:
        """Seconds until the next attempt: twice as long each time up to a second, with jitter."""
        self._failures = min(self._failures + 1, 10)
        return min(MAX_PAUSE_SECONDS, 0.025 * 2.0**self._failures) * random.uniform(0.5, 1.0)
