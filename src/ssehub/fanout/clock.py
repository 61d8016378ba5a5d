"""The one clock of a hub: heartbeats, the ends that time brings, and how late the loop runs.

Every subscriber has a bucket; each tick visits one bucket, so that heartbeats are spread over the interval. A visit
looks ahead as far as the next one: only who is to be told or ended before then is put on the heap, and nothing is
kept for streams that are long over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count, islice
from typing import Protocol

from ..position import Position
from .sinks import Chunk
from .subscriber import CloseReason, Subscriber

MIN_BUCKETS = 15
MAX_TICK_SECONDS = 0.25
VISITS_AT_ONCE = 100


class Timed(Protocol):
    """What the clock drives: the hub."""

    def tick(self, now: float) -> None: ...

    def beat(self, subscriber: Subscriber, frames: dict[Position | None, Chunk]) -> None: ...

    def tell(self, subscriber: Subscriber, type: str, data: object, retry: int | None = None) -> None: ...

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None: ...


class Clock:
    """Ticks while started. `interval_seconds` is the time between two visits to a subscriber.

    `expiring_seconds` before a token's end its stream is told, or halfway there if less than that is left. An end is
    reached by the monotonic clock or by the wall clock, whichever is first: setting the wall clock back lengthens no
    stream, and setting it forward ends it within one interval.
    """

    def __init__(
        self,
        hub: Timed,
        interval_seconds: float,
        expiring_seconds: float,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.lag_seconds = 0.0
        """How late the last tick came."""
        self._hub = hub
        self._interval = interval_seconds
        self._expiring = expiring_seconds
        self._now = now
        self._monotonic = monotonic
        self.tick_seconds = min(MAX_TICK_SECONDS, interval_seconds / MIN_BUCKETS)
        bucket_count = max(1, round(interval_seconds / self.tick_seconds))
        self._buckets: list[dict[Subscriber, None]] = [{} for _ in range(bucket_count)]
        self._turn = 0
        self._due: list[tuple[float, int, Subscriber]] = []
        self._order = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next_tick = loop.time() + self.tick_seconds
        self._timer = loop.call_at(self._next_tick, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def add(self, subscriber: Subscriber, expires_in: float | None, lifetime: float | None) -> None:
        """Watch `subscriber`, whose token ends in `expires_in` seconds and which may live for `lifetime` seconds."""
        now = subscriber.connected_at = self._monotonic()
        if expires_in is not None:
            subscriber.ends_at = now + expires_in
            notice = self._expiring if expires_in > self._expiring else expires_in / 2
            subscriber.expiring_at = subscriber.ends_at - notice
        if lifetime is not None:
            subscriber.lifetime_ends_at = now + lifetime
        subscriber.bucket = (self._turn - 1) % len(self._buckets)
        self._buckets[subscriber.bucket][subscriber] = None
        self._look_ahead(subscriber, now)

    def remove(self, subscriber: Subscriber) -> None:
        self._buckets[subscriber.bucket].pop(subscriber, None)

    def _tick(self) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            self.lag_seconds = max(0.0, loop.time() - self._next_tick)
            self.advance()
        finally:
            self._next_tick = max(self._next_tick, loop.time() - self.tick_seconds) + self.tick_seconds
            self._timer = loop.call_at(self._next_tick, self._tick)

    def advance(self) -> None:
        """Do what has come due, and visit the next bucket: one tick's work."""
        now = self._monotonic()
        self._hub.tick(now)
        self._settle_due(now)
        bucket, self._turn = self._buckets[self._turn], (self._turn + 1) % len(self._buckets)
        if bucket:
            self._visit(iter(list(bucket)), {})

    def _visit(self, rest: Iterator[Subscriber], frames: dict[Position | None, Chunk]) -> None:
        now = self._monotonic()
        some = list(islice(rest, VISITS_AT_ONCE))
        if len(some) == VISITS_AT_ONCE and self._loop is not None:
            self._loop.call_soon(self._visit, rest, frames)
        for subscriber in some:
            if subscriber.reason is None:
                self._look_ahead(subscriber, now)
                self._hub.beat(subscriber, frames)
        if len(some) == VISITS_AT_ONCE and self._loop is None:
            self._visit(rest, frames)

    def _settle_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            subscriber = heappop(self._due)[2]
            subscriber.is_due = False
            if subscriber.reason is None:
                self._settle(subscriber, now)

    def _settle(self, subscriber: Subscriber, now: float) -> None:
        """Do what has come due for `subscriber`."""
        if self._expiry(subscriber, now) <= now:
            self._hub.end(subscriber, CloseReason.EXPIRED)
        elif subscriber.lifetime_ends_at is not None and subscriber.lifetime_ends_at <= now:
            self._hub.end(subscriber, CloseReason.LIFETIME)
        else:
            if subscriber.expiring_at is not None and subscriber.expiring_at <= now:
                subscriber.expiring_at = None
                self._hub.tell(subscriber, "stream-expiring", {"expiresAt": subscriber.expires_at})
            self._look_ahead(subscriber, now)

    def _look_ahead(self, subscriber: Subscriber, now: float) -> None:
        """Put `subscriber` on the heap if something comes due before its next visit."""
        if subscriber.is_due or (subscriber.expires_at is None and subscriber.lifetime_ends_at is None):
            return
        times = (subscriber.expiring_at, self._expiry(subscriber, now), subscriber.lifetime_ends_at)
        due = min(time for time in times if time is not None)
        if due <= now + self._interval + 2 * self.tick_seconds:
            subscriber.is_due = True
            heappush(self._due, (due, next(self._order), subscriber))

    def _expiry(self, subscriber: Subscriber, now: float) -> float:
        """When the token ends, by the monotonic clock."""
        if subscriber.ends_at is None or subscriber.expires_at is None:
            return float("inf")
        return min(subscriber.ends_at, now + subscriber.expires_at - self._now())
