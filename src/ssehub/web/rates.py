"""The rates of publishers: how many events each control key may publish a second, on whichever path."""

from __future__ import annotations

import time

from ..buckets import Buckets
from ..errors import TooManyRequests
from ..fanout.limits import BURST_SECONDS


class PublishRates:
    """What each control key has left of `max_publishes_per_second`, which is None for no limit."""

    def __init__(self, per_second: float | None) -> None:
        self._buckets = Buckets(per_second, BURST_SECONDS, time.monotonic) if per_second is not None else None

    def spend(self, key_name: str, events: int) -> None:
        """Raise TooManyRequests if the control key is over its rate. A batch costs as much as it has events."""
        wait = self.try_spend(key_name, events)
        if wait:
            raise TooManyRequests(f"more events than max_publishes_per_second: try again in {wait:.1f} s", wait)

    def try_spend(self, key_name: str, events: int) -> float:
        """Do what `spend` does, but return how many seconds to wait before trying again; 0 if it has been spent."""
        if self._buckets is None or self._buckets.spend(key_name, events):
            return 0.0
        return self._buckets.wait_seconds(key_name)
