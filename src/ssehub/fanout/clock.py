"""The clock of a hub: when each subscriber is due for a heartbeat, or for an end that time brings.

Every subscriber is in a bucket, and each tick visits one bucket, so that heartbeats are spread over the interval. A
visit looks ahead as far as the next one: only a subscriber for which something is due before then is put on the heap,
so the heap holds nothing for streams that ended long ago.

Ticks in which nothing is due are slept over. The clock counts them all the same, so that a bucket is visited when its
turn comes, and never before.

A token expires by the monotonic clock or by the wall clock, whichever comes first: setting the wall clock back
lengthens no stream, and setting it forward ends it within one interval.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf

from ..settings import Streams
from .subscriber import CloseReason, State, Subscriber

DEFAULT_VISIT_SECONDS = 15.0
"""The time between two visits to a subscriber if heartbeats are off."""
MIN_BUCKETS = 15
MAX_TICK_SECONDS = 0.25
JITTER = (0.8, 1.0)
"""The part of the maximum lifetime that a stream gets, at random, so that streams do not all end together."""


class Clock:
    """Says whose time has come; the engine acts on it. `now` is the monotonic clock, `wall` Unix time, in seconds."""

    def __init__(self, streams: Streams) -> None:
        self._interval = streams.heartbeat_seconds or DEFAULT_VISIT_SECONDS
        self._expiring = streams.expiring_seconds
        self._lifetime = streams.stream_lifetime_seconds
        self.tick_seconds = min(MAX_TICK_SECONDS, self._interval / MIN_BUCKETS)
        bucket_count = max(1, round(self._interval / self.tick_seconds))
        self._buckets: list[dict[Subscriber, None]] = [{} for _ in range(bucket_count)]
        self._turn = 0
        self._due: list[tuple[float, int, Subscriber]] = []
        self._order = count()

    def __len__(self) -> int:
        """Return the number of subscribers."""
        return sum(map(len, self._buckets))

    def add(self, subscriber: Subscriber, now: float, wall: float) -> None:
        subscriber.connected_at = now
        if subscriber.expires_at is not None:
            expires_in = subscriber.expires_at - wall
            notice = self._expiring if expires_in > self._expiring else expires_in / 2
            subscriber.ends_at = now + expires_in
            subscriber.expiring_at = subscriber.ends_at - notice
        if self._lifetime is not None:
            subscriber.lifetime_ends_at = now + self._lifetime * random.uniform(*JITTER)
        subscriber.bucket = (self._turn - 1) % len(self._buckets)
        self._buckets[subscriber.bucket][subscriber] = None
        self.look_ahead(subscriber, now, wall)

    def remove(self, subscriber: Subscriber) -> None:
        self._buckets[subscriber.bucket].pop(subscriber, None)

    def next_bucket(self) -> list[Subscriber]:
        """Return the subscribers to visit in this tick."""
        bucket = self._buckets[self._turn]
        self.skip(1)
        return list(bucket)

    def skip(self, ticks: int) -> None:
        """Count so many ticks that were slept over: `free_ticks` has said that nothing is due in them."""
        self._turn = (self._turn + ticks) % len(self._buckets)

    def free_ticks(self, now: float, most: int) -> int:
        """Return how many of the next ticks have nothing to do before the first one that has, at most `most`."""
        if self._due:
            most = min(most, math.ceil((self._due[0][0] - now) / self.tick_seconds) - 1)
        buckets, turn = self._buckets, self._turn
        for free in range(min(most, len(buckets))):
            if buckets[(turn + free) % len(buckets)]:
                return free
        return max(0, most)

    def due(self, now: float, wall: float) -> Iterator[tuple[Subscriber, CloseReason | None]]:
        """Yield each subscriber whose time has come, with the reason to end it.

        The reason is None if its token expires soon, and it is to be sent `stream-expiring`.
        """
        while self._due and self._due[0][0] <= now:
            subscriber = heappop(self._due)[2]
            subscriber.is_due = False
            if subscriber.state is State.ENDED:
                continue
            if self._expiry(subscriber, now, wall) <= now:
                yield subscriber, CloseReason.EXPIRED
            elif subscriber.lifetime_ends_at is not None and subscriber.lifetime_ends_at <= now:
                yield subscriber, CloseReason.LIFETIME
            else:
                if subscriber.expiring_at is not None and subscriber.expiring_at <= now:
                    subscriber.expiring_at = None
                    yield subscriber, None
                self.look_ahead(subscriber, now, wall)

    def look_ahead(self, subscriber: Subscriber, now: float, wall: float) -> None:
        """Put `subscriber` on the heap if something is due for it before its next visit."""
        if subscriber.is_due or (subscriber.expires_at is None and subscriber.lifetime_ends_at is None):
            return
        due = self._expiry(subscriber, now, wall)
        for time in (subscriber.expiring_at, subscriber.lifetime_ends_at):
            if time is not None and time < due:
                due = time
        if due <= now + self._interval + 2 * self.tick_seconds:
            subscriber.is_due = True
            heappush(self._due, (due, next(self._order), subscriber))

    @staticmethod
    def _expiry(subscriber: Subscriber, now: float, wall: float) -> float:
        if subscriber.ends_at is None or subscriber.expires_at is None:
            return inf
        return min(subscriber.ends_at, now + subscriber.expires_at - wall)


class Ticker:
    """Calls `tick` in `loop` while it is started, on a grid of `seconds`, and measures how late each call is.

    `tick` returns how many of the ticks after it may be slept over. `skip` is called with the number of those that
    were, before anything else is done.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        tick: Callable[[], int],
        skip: Callable[[int], None],
    ) -> None:
        self.lag_seconds = 0.0
        """How late the last tick was."""
        self.is_asleep = False
        """True if the next tick is not the one after the last: `wake` then changes something."""
        self.seconds = seconds
        self._loop = loop
        self._tick = tick
        self._skip = skip
        self._last = 0.0
        """When the last tick was, or should have been."""
        self._free = 0
        """How many ticks after it are slept over."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._last = self._loop.time()
        self._sleep(0)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.is_asleep = False

    def wake(self) -> None:
        """Go on with the next tick, because something has happened that it may be about."""
        if self.is_asleep:
            passed = min(self._free, int((self._loop.time() - self._last) // self.seconds))
            self._last += passed * self.seconds
            self._skip(passed)
            self._sleep(0)

    def _sleep(self, ticks: int) -> None:
        """Sleep over so many ticks, and then call the next one."""
        if self._timer is not None:
            self._timer.cancel()
        self._free = ticks
        self.is_asleep = ticks > 0
        self._timer = self._loop.call_at(self._last + (ticks + 1) * self.seconds, self._run)

    def _run(self) -> None:
        due, now = self._last + (self._free + 1) * self.seconds, self._loop.time()
        self.lag_seconds = max(0.0, now - due)
        self._last = max(due, now - self.seconds)
        if self._free:
            self._skip(self._free)
        self._sleep(0)  # so the clock goes on even if the tick raises
        free = self._tick()
        if free and self._timer is not None:
            self._sleep(free)
