"""A histogram of latencies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

SIGNIFICANT_BITS = 6


class Latencies:
    """Counts nanoseconds by their six most significant bits; a percentile is at most 1/32 below the true value.

    hdrhistogram is more precise, but records half as many values per second.
    """

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts)

    def add(self, nanoseconds: int, weight: int = 1) -> None:
        """Count a latency `weight` times; a negative one, of an event published ahead of its time, counts as 0."""
        if nanoseconds < 0:
            nanoseconds = 0
        shift = nanoseconds.bit_length() - SIGNIFICANT_BITS
        if shift < 0:
            shift = 0
        self.counts[shift << SIGNIFICANT_BITS | nanoseconds >> shift] += weight

    def milliseconds(self, share: float) -> float:
        """Return the latency that `share` of all do not exceed."""
        remaining = share * self.counts.total()
        bucket = 0
        for bucket in sorted(self.counts):
            remaining -= self.counts[bucket]
            if remaining <= 0:
                break
        mantissa = bucket & (1 << SIGNIFICANT_BITS) - 1
        return (mantissa << (bucket >> SIGNIFICANT_BITS)) / 1e6
