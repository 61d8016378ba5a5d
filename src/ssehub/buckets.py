"""Limits on how often something may happen: token buckets, which allow a burst, and throttles, which space it out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class TokenBucket:
    """Allows `per_second` on average, and a burst of `burst_seconds` of that, but of one at least.

    What costs more than is left passes all the same if anything is left. The bucket is then in debt, and what comes
    next waits until that has been paid off. `monotonic` gives seconds.
    """

    __slots__ = ("_left", "_monotonic", "_most", "_per_second", "_updated_at")

    def __init__(self, per_second: float, burst_seconds: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * burst_seconds)
        self._left = self._most
        self._monotonic = monotonic
        self._updated_at = monotonic()

    def spend(self, cost: float = 1.0) -> bool:
        """Take `cost` from the bucket and return True, or return False if less than one is left."""
        if self.wait_seconds():
            return False
        self._left -= cost
        return True

    def wait_seconds(self) -> float:
        """Return how long it takes until something passes; 0 if it would now."""
        now = self._monotonic()
        self._left = min(self._most, self._left + (now - self._updated_at) * self._per_second)
        self._updated_at = now
        # The sum of many small steps may be a little less than a whole one.
        return max(0.0, (1.0 - self._left) / self._per_second) if self._left < 1.0 - 1e-9 else 0.0

    def is_full(self) -> bool:
        """Return True if a whole burst is allowed now."""
        self.wait_seconds()
        return self._left >= self._most


class Throttle:
    """Spaces things out: together they cost at most `per_second` if each waits for as long as it is told to.

    Nothing is told to wait for longer than `most_seconds`, so beyond that the rate is exceeded. `monotonic` gives
    seconds.
    """

    __slots__ = ("_free_at", "_monotonic", "_most_seconds", "_per_second")

    def __init__(self, per_second: float, most_seconds: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._most_seconds = most_seconds
        self._monotonic = monotonic
        self._free_at = monotonic()

    def delay(self, cost: float = 1.0) -> float:
        """Return for how many seconds something that costs `cost` has to wait: until what came before is paid for."""
        now = self._monotonic()
        begins_at = max(now, self._free_at)
        self._free_at = min(begins_at + cost / self._per_second, now + self._most_seconds)
        return begins_at - now


class Buckets:
    """A bucket for each key, of which at most `most` are remembered: those that were used most recently.

    A bucket that has been forgotten is full when its key is used again.
    """

    def __init__(
        self, per_second: float, burst_seconds: float, monotonic: Callable[[], float], most: int = 10_000
    ) -> None:
        self._make: Callable[[], TokenBucket] = lambda: TokenBucket(per_second, burst_seconds, monotonic)
        self._most = most
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, key: str, cost: float = 1.0) -> bool:
        """Do what `TokenBucket.spend` does, for `key`."""
        return self._of(key).spend(cost)

    def wait_seconds(self, key: str) -> float:
        """Return how long it takes until something with `key` passes; 0 if it would now."""
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else bucket.wait_seconds()

    def _of(self, key: str) -> TokenBucket:
        buckets = self._buckets
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = self._make()
            self._forget()
        else:
            buckets.move_to_end(key)
        return bucket

    def _forget(self) -> None:
        """Forget the oldest bucket if there are too many, and up to two that are full, so that the table shrinks."""
        buckets = self._buckets
        for _ in range(2):
            oldest = next(iter(buckets))
            if len(buckets) > self._most or (len(buckets) > 1 and buckets[oldest].is_full()):
                del buckets[oldest]
