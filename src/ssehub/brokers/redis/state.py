"""State of a node that outlives its connections to Redis."""

from __future__ import annotations

import logging
import random
import time

from ...position import Position

logger = logging.getLogger("ssehub.brokers.redis")

MAX_PAUSE_SECONDS = 1.0


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
