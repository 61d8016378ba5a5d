"""The upkeep: what has to be done because time has passed or memory is short, and not because something has arrived.

It is driven by ticks. Each does its work in slices, between which the event loop goes on. After a tick in which nothing
was under way, the clock sleeps until the next one in which something is due for a stream, but for `REST_SECONDS` at
most: memory has to be read, and history expires.

    a stream opens, a client has stopped reading, an event is published    the clock wakes, with its next tick
    a client is behind, a replay goes on, memory is short                   it does not sleep
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from ..position import Position
from ..revocations import Revocations
from .backlogs import Backlogs
from .clock import Clock
from .comebacks import OpeningRate
from .finding import Finder
from .history import History
from .pressure import Pressure
from .registry import Registry
from .replays import Replays
from .sinks import Chunk
from .slices import END_SLICE, in_slices
from .statistics import Statistics
from .subscriber import CloseReason, State, Subscriber
from .watchers import Watchers

EXPIRE_SECONDS = 60.0
"""How often the revocations that have run out are removed."""
EXPIRE_SLICE = 5_000
"""Revocations that are looked at before the loop goes on."""
EVICT_SLICE = 500
"""Events that leave history before the loop goes on."""
REST_SECONDS = 2.0
"""How long the clock sleeps at most. What runs and requests take is noticed within this time, and what events and
streams take within a tick.
"""
SWEEP_SECONDS = 2.0
"""How often the feeds of runs are looked through: one that has not been used since the last time is dropped."""


class Upkeep:
    """Ends the streams whose time has come, sends heartbeats, frees memory, lets history and revocations expire."""

    def __init__(
        self,
        history: History,
        backlogs: Backlogs,
        clock: Clock,
        pressure: Pressure,
        registry: Registry,
        replays: Replays,
        watchers: Watchers,
        finder: Finder,
        opening_rate: OpeningRate,
        statistics: Statistics,
        revocations: Revocations,
        *,
        has_heartbeats: bool,
        wall: Callable[[], float],
        log_now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._history = history
        self._backlogs = backlogs
        self._clock = clock
        self._pressure = pressure
        self._registry = registry
        self._replays = replays
        self._watchers = watchers
        self._finder = finder
        self._opening_rate = opening_rate
        self._statistics = statistics
        self._revocations = revocations
        self._has_heartbeats = has_heartbeats
        self._wall = wall
        self._log_now = log_now
        self._monotonic = monotonic
        self._is_ending_due = False
        """True while the streams whose time has come are being ended."""
        self._is_relieving = False
        """True while streams are being ended because memory is short."""
        self._visits = 0
        """How many buckets of the clock are being visited: each takes several calls of the loop if it is large."""
        self._revocations_expire_at = 0.0
        self._sweep_at = 0.0

    def advance(self, slice_size: int | None = END_SLICE) -> int:
        """Do the work of one tick, in slices of `slice_size`: among others, send the next share of the heartbeats.

        Return how many of the following ticks may be slept over.
        """
        now, wall = self._monotonic(), self._wall()
        self._replays.advance_all()
        self._watchers.make_room(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._watchers.drop_pages()
            self._finder.sweep()
        self._opening_rate.observe(self._statistics.connected)
        self._relieve(now, slice_size)
        self._expire_history()
        if now >= self._revocations_expire_at:
            self._revocations_expire_at = now + EXPIRE_SECONDS
            # Tokens expire by this machine's clock, which may have been set forward and be set back.
            until = min(wall, self._log_now())
            in_slices(iter(list(self._revocations)), lambda one: self._revocations.expire(one, until), EXPIRE_SLICE)
        if not self._is_ending_due:
            self._is_ending_due = True
            in_slices(self._due(now, wall), self._end_or_warn, slice_size, self._finish_due)
        if bucket := self._clock.next_bucket():
            self._visit(bucket, slice_size)
        return self._free_ticks(now)

    def _free_ticks(self, now: float) -> int:
        is_busy = (
            self._is_ending_due
            or self._is_relieving
            or self._visits
            or self._pressure.is_short
            or self._backlogs.has_paused
            or not self._replays.is_idle
        )
        return 0 if is_busy else self._clock.free_ticks(now, int(REST_SECONDS // self._clock.tick_seconds) - 1)

    def _relieve(self, now: float, slice_size: int | None) -> None:
        """Free memory if it is short: history first, then the largest backlogs."""
        if missing := self._pressure.check(now):
            self._history.shrink(missing, now)
            # Evicting what is held for lagging subscribers, the newest part of history, frees nothing.
            has_history = self._history.bytes > self._backlogs.held_bytes
            excess = self._pressure.reading.excess
            if excess > 0 and not has_history and not self._is_relieving:
                self._is_relieving = True
                slow = self._backlogs.furthest_behind(excess)
                in_slices(slow, self._end_as_slow, slice_size, self._finish_relieving)
        elif self._pressure.may_regrow(now):
            self._history.regrow()

    def _end_as_slow(self, subscriber: Subscriber) -> None:
        self._registry.end(subscriber, CloseReason.SLOW)

    def _finish_relieving(self) -> None:
        self._is_relieving = False

    def _expire_history(self) -> None:
        if self._history.expire(self._monotonic(), EVICT_SLICE):
            self._loop.call_soon(self._expire_history)

    def _due(self, now: float, wall: float) -> Iterator[tuple[Subscriber, CloseReason | None]]:
        """Yield each stream whose time has come, with the reason to end it, or None if its token expires soon."""
        for subscriber in self._backlogs.overdue(now):
            if self._backlogs.is_overdue(subscriber, now):  # it may have read since the list was made
                yield subscriber, CloseReason.SLOW
        for watcher in self._watchers.overdue(now):
            yield watcher, CloseReason.SLOW
        yield from self._clock.due(now, wall)

    def _end_or_warn(self, due: tuple[Subscriber, CloseReason | None]) -> None:
        subscriber, reason = due
        if reason is not None:
            self._registry.end(subscriber, reason)
        else:
            self._registry.send(subscriber, "stream-expiring", {"expiresAt": subscriber.expires_at})

    def _finish_due(self) -> None:
        self._is_ending_due = False

    def _visit(self, bucket: list[Subscriber], slice_size: int | None) -> None:
        frames: dict[Position, Chunk] = {}  # those already made, by the position they carry

        def beat(subscriber: Subscriber) -> None:
            if subscriber.state is not State.ENDED:
                self._clock.look_ahead(subscriber, self._monotonic(), self._wall())
                if self._has_heartbeats:
                    self._registry.beat(subscriber, frames)

        self._visits += 1
        in_slices(iter(bucket), beat, slice_size, self._finish_visit)

    def _finish_visit(self) -> None:
        self._visits -= 1
