"""Pacing: how far apart rounds begin, so that under load one write carries many events.

A round for few streams is followed by the next one at once. After a larger one there is a *pause*, whose full length
depends on how much the round has cost, and of which a share is kept that depends on what the round has carried: if
events came so fast that FULL_EVENTS of them, or more, would gather in a full pause, all of it; if only one would, none.
At an everyday rate, a pause would only be latency. The rate is what the round carried, divided by the time since the
larger round before it began. (The number alone does not tell: one publisher that waits for its answers has one event in
each round to 100 streams, at any pace, and a pause makes that twenty.)

The pause ends early when enough events wait (ENOUGH_WRITES), since waiting for more gains little: to publish them has
cost about as much as it will to write them.
"""

from __future__ import annotations

import math

FEW_WRITES = 32
"""A round with more writes than that may be followed by a pause."""
SPACING_SECONDS = 0.002
"""A full pause ends at least so long after the end of the round. Measured against none: twice the deliveries per CPU
second with 1,000 subscribers, three times with 100; 1 ms gains half of it.
"""
PERIOD_SECONDS_PER_WRITE = 60e-6
"""With a full pause, the least time from the beginning of a round to the next one, per write: about six times what a
write takes. So half of the subscribers, in one of two processes, receive as many events per write as all of them in one
process do. Measured with 1,000 over Redis: 0.86 of the deliveries per CPU second instead of 0.6; in one process, half
as many again.
"""
MAX_PERIOD_SECONDS = 0.015
"""The most of that. The median latency grows by at most as much, and only if events arrive faster than that."""
FULL_EVENTS = 5
"""A full pause is kept if so many events come in one."""
ENOUGH_WRITES = 8
"""A pause ends when one event waits for so many of the round's writes. Measured with 100 subscribers and one publisher
that waits for its answers: 1.06 ms at the median in place of 2.70 ms, for 0.84 of the deliveries per CPU second. With
10 in place of 8 it was 0.97 ms, for 0.74.
"""


class Pace:
    """When the next round may begin. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.begins_at = 0.0
        """When the next round may begin,"""
        self.enough = 0.0
        """or as soon as so many events wait."""
        self._began = -math.inf
        """When the latest round began that was not for few."""

    def follow(self, began: float, ended: float, writes: int, events: int) -> None:
        """A round with so many writes and events `began` and `ended` then."""
        self.begins_at, self.enough = ended, 0.0
        if writes <= FEW_WRITES:
            return
        seconds, self._began = began - self._began, began
        period = min(MAX_PERIOD_SECONDS, writes * PERIOD_SECONDS_PER_WRITE)
        in_period = events * period / seconds if seconds > 0 else math.inf
        share = min(1.0, (in_period - 1) / (FULL_EVENTS - 1))
        if share > 0:
            self.begins_at = max(ended + share * SPACING_SECONDS, began + share * period)
            self.enough = writes / ENOUGH_WRITES
