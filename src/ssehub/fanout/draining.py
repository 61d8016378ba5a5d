"""The end of all streams of a hub: spread over a window, or at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import islice

from ..loglimit import limited_logger
from .index import Index
from .registry import Registry
from .slices import END_SLICE, each_in_slices
from .statistics import Statistics
from .subscriber import CloseReason, Subscriber

logger = limited_logger("ssehub.hub")

STEP_SECONDS = 0.02


class Draining:
    """Ends the streams in `index` with `stream-drain`. One log line says how many there were."""

    def __init__(
        self, index: Index, registry: Registry, statistics: Statistics, monotonic: Callable[[], float]
    ) -> None:
        self._index = index
        self._registry = registry
        self._statistics = statistics
        self._monotonic = monotonic

    async def spread(self, began: float, end: float) -> None:
        """End all streams until the monotonic time `end`, also those that open meanwhile. The drain began at `began`.

        Each step ends its share: the streams that are left, divided by the steps that fit into the time left. A step
        that was late makes the next ones larger; when the time is over, one step ends all.
        """
        drained = self._drained
        while self._index.all:
            steps_left = max(1.0, (end - self._monotonic()) / STEP_SECONDS)
            share = list(islice(self._index.all, math.ceil(len(self._index) / steps_left)))
            await each_in_slices(share, self._end, END_SLICE)
            await asyncio.sleep(STEP_SECONDS)
        self._log(drained, began)

    async def at_once(self) -> None:
        """End all streams, also if this is cancelled."""
        began, drained = self._monotonic(), self._drained
        try:
            while self._index.all:
                await each_in_slices(list(self._index.all), self._end, END_SLICE)
        finally:
            for subscriber in list(self._index.all):  # there are none, unless this was cancelled
                self._end(subscriber)
            self._log(drained, began)

    @property
    def _drained(self) -> int:
        return self._statistics.endings[CloseReason.DRAINED]

    def _log(self, before: int, began: float) -> None:
        """Log one line about the streams that were ended after the `before` that had been at `began`."""
        if drained := self._drained - before:
            logger.info("streams drained: %d in %.1f s", drained, self._monotonic() - began)

    def _end(self, subscriber: Subscriber) -> None:
        self._registry.end(subscriber, CloseReason.DRAINED)
