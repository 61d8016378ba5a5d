"""The clock of a hub: when each subscriber is due for a heartbeat, or for an end that time brings.

Every subscriber is in a bucket, and each tick visits one bucket, so that heartbeats are spread over the interval. A
visit looks ahead as far as the next one: only a subscriber for which something is due before then is put on the heap,
so the heap holds nothing for streams that ended long ago.

A token expires by the monotonic clock or by the wall clock, whichever comes first: setting the wall clock back
lengthens no stream, and setting it forward ends it within one interval.
"""

from __future__ import annotations

import asyncio
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
        bucket, self._turn = self._buckets[self._turn], (self._turn + 1) % len(self._buckets)
        return list(bucket)

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
    """Calls `tick` every `seconds` in `loop` while it is started, and measures how late each call is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, tick: Callable[[], None]) -> None:
        self.lag_seconds = 0.0
        """How late the last tick was."""
        self._loop = loop
        self.seconds = seconds
        self._tick = tick
        self._next = loop.time() + seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._next = self._loop.time() + self.seconds
        self._timer = self._loop.call_at(self._next, self._run)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self.lag_seconds = max(0.0, self._loop.time() - self._next)
        self._next = max(self._next, self._loop.time() - self.seconds) + self.seconds
        self._timer = self._loop.call_at(self._next, self._run)
        self._tick()
