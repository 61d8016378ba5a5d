"""Memory pressure: when the process uses more memory than it may, and how much of that the hub has to free.

    NORMAL    the memory in use is within its limit
    SHORT     it was over the limit, and has not yet been a tenth below it for `SETTLE_SECONDS`, or within it for
              `WITHIN_SECONDS`

While memory is short, no new stream is opened, and the hub evicts history, oldest events first, until a tenth of the
limit is free. If memory is over its limit and there is no history left, the largest backlogs end. What was freed may
return to the operating system late. So the memory is read closely before anything is given up, at most every
`CLOSE_SECONDS`, as that takes longer.

This file decides; the engine acts.
"""

from __future__ import annotations

import logging
from typing import Protocol

from ..memory import Reading

logger = logging.getLogger("ssehub.hub")

RESERVE_SHARE = 10
"""While memory is short, this part of the limit is freed in addition, so that it is not short again at once."""
SETTLE_SECONDS = 5.0
"""How long the memory in use has to be that far below the limit before it is no longer short."""
WITHIN_SECONDS = 30.0
"""How long it has to be within the limit otherwise: open streams alone may need more than nine tenths of it."""
REGROW_SECONDS = 60.0
"""How long after that history may exceed the size to which it was reduced."""
CLOSE_SECONDS = 0.5
"""The least time between two close readings. In it, publishers may use up a part of the reserve above the limit."""


class Meter(Protocol):
    """Reads the memory in use; see `MemoryMeter`."""

    def read(self) -> Reading: ...

    def read_closely(self) -> Reading: ...


class Pressure:
    """Says how much memory has to be freed: nothing, without a `meter`. Times are seconds of the monotonic clock."""

    def __init__(self, meter: Meter | None) -> None:
        self.is_short = False
        self.reading = Reading(0, 0)
        """The latest reading; zeros without a meter."""
        self._meter = meter
        self._began = 0.0
        self._calm_since: float | None = None
        """When the memory in use fell far enough below its limit. None if it is not, or memory is not short."""
        self._within_since: float | None = None
        """When it fell below its limit. None if it is above, or memory is not short."""
        self._regrow_at: float | None = None
        self._read_closely_at = 0.0

    def check(self, now: float) -> int:
        """Read the memory; return how many bytes have to be freed now. It is 0 unless memory is short."""
        if self._meter is None:
            return 0
        reading = self._meter.read()
        if reading.excess > 0 or (self.is_short and not _is_calm(reading)):
            if now < self._read_closely_at:
                return 0
            self._read_closely_at = now + CLOSE_SECONDS
            reading = self._meter.read_closely()
        self.reading = reading
        if reading.excess > 0:
            self._begin(now)
        elif self.is_short:
            self._settle(now)
        return max(0, reading.excess + _reserve(reading)) if self.is_short else 0

    def may_regrow(self, now: float) -> bool:
        """Return True, once, when memory has been sufficient for so long that history may grow again."""
        if self._regrow_at is None or now < self._regrow_at:
            return False
        self._regrow_at = None
        return True

    def _begin(self, now: float) -> None:
        self._calm_since = self._within_since = self._regrow_at = None
        if self.is_short:
            return
        self.is_short = True
        self._began = now
        logger.warning(
            "memory is short (%d MiB used, limit %d MiB): new streams are told to come back later, history shrinks, "
            "and if that is not enough, the streams with the largest backlogs end",
            self.reading.used >> 20,
            self.reading.limit >> 20,
        )

    def _settle(self, now: float) -> None:
        if self._within_since is None:
            self._within_since = now
        if not _is_calm(self.reading):
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        is_calm = self._calm_since is not None and now - self._calm_since >= SETTLE_SECONDS
        if is_calm or now - self._within_since >= WITHIN_SECONDS:
            self.is_short = False
            self._calm_since = self._within_since = None
            self._regrow_at = now + REGROW_SECONDS
            logger.warning(
                "memory is sufficient again after %.0f s (%d MiB used, limit %d MiB): new streams are accepted",
                now - self._began,
                self.reading.used >> 20,
                self.reading.limit >> 20,
            )


def _reserve(reading: Reading) -> int:
    return reading.limit // RESERVE_SHARE


def _is_calm(reading: Reading) -> bool:
    return reading.used <= reading.limit - _reserve(reading)
