"""Pacing: how far apart rounds begin, so that under load one write carries many events.

A round for few streams is followed by the next one at once. After a larger one there may be a *pause*. Its full length
depends on what the round has cost, and the share of it that is kept depends on how fast events come: if FULL_EVENTS of
them, or more, come in the time of a full round and its pause, all of it; if only one does, none. At an everyday rate, a
pause would only be latency. The rate is what the round carried, divided by the time since the larger round before it
began. (The number alone does not tell: one publisher that waits for its answers has one event in each round to 100
streams, at any pace, and a pause makes that twenty.)

A publisher that is held up by the slices of a round looks like one at an everyday rate, the more so where an answer
takes several turns of the loop, as over Redis. So a round that carries few events is written in small slices.

The pause ends early when enough events wait (ENOUGH_WRITES), since waiting for more gains little: to publish them has
cost about as much as it will to write them.
"""

from __future__ import annotations

import math

FEW_WRITES = 32
"""A round with more writes than that may be followed by a pause."""
SLICE = 100
"""Writes before the loop goes on: 64 and 256 were measured slower than 128, and 100 is as fast."""
SMALL_SLICE = 40
"""As many in a round of fewer than FULL_EVENTS events. Measured with 1,000 over Redis and one publisher that waits for
its answers: with large slices, in half of the runs each round carried one or two events, and there was no pause.
"""
SPACING_SECONDS = 0.002
"""A full pause is at least so long. Measured against none: twice the deliveries per CPU second with 1,000 subscribers,
three times with 100; 1 ms gains half of it.
"""
SPACING_SHARE = 0.25
"""And at least this share of what the round took: publishers get a fifth of the time, however slow the writes are."""
PERIOD_SECONDS_PER_WRITE = 60e-6
"""With a full pause, the least time from the beginning of a round to the next one, per write: about six times what a
write takes. So half of the subscribers, in one of two processes, receive as many events per write as all of them in one
process do. Measured with 1,000 over Redis: 0.86 of the deliveries per CPU second instead of 0.6; in one process, half
as many again.
"""
MAX_PERIOD_SECONDS = 0.015
"""The most of that. The median latency grows by at most as much, and only if events arrive faster than that."""
FULL_EVENTS = 5
"""A full pause is kept if so many events come from the beginning of one round to that of the next."""
ENOUGH_WRITES = 10
"""A pause ends when one event waits for so many of the round's writes. Measured with 100 subscribers and one publisher
that waits for its answers: 0.97 ms at the median in place of 2.70 ms, for 0.74 of the deliveries per CPU second. With
8 in place of 10 it was 1.06 ms, for 0.84.
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
        spacing = max(SPACING_SECONDS, SPACING_SHARE * (ended - began))
        full = max(ended + spacing, began + period)
        events_in_full = events * (full - began) / seconds if seconds > 0 else math.inf
        share = min(1.0, (events_in_full - 1) / (FULL_EVENTS - 1))
        if share > 0:
            self.begins_at = ended + share * (full - ended)
            self.enough = writes / ENOUGH_WRITES
