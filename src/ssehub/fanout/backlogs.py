"""Backlogs: who does not read as fast as the hub writes, what is held for them, and who has to end.

A subscriber whose sink is paused has a backlog. When that exceeds its bound the subscriber lags: batches are held for
it, by reference, until it has read its backlog or the grace time is over. Rounds do not wait for it. Whether the
publishers of its channels do is decided in waits.py.

All backlogs together, with what is held counted once, have a bound. When a quarter of it is unread, whoever is paused
lags, so that nothing more is written to it: what is held for many takes the memory of one copy. A client that reads
costs that nothing. When everything together exceeds three quarters of the bound, those clients end that have read
nothing for the grace time, and above the whole bound any, in both cases those that are furthest behind first.

Whether a client reads is observed: its backlog is compared with what it would be if the client had read nothing.

Nothing here ends a stream. `overdue` returns the subscribers that have to end because their time is over. `excess`
yields those that have to end because memory runs short, lazily: the engine ends each one before it asks for the next,
because held bytes only fall when the last holder of a shared batch has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..settings import Backpressure
from .frames import Batch
from .index import Index
from .subscriber import Subscriber
from .waits import NOT_AGAIN_SECONDS, Waits

READING_SHARE = 64
"""The backlog has to shrink by this part of its bound to be noticed: far less than a client in time would read."""
OVERRUN = -2
"""Returned by `hold` instead of a number of events: more would be held than history retains, so the stream must end."""


class _Lag:
    """The batches held for one lagging subscriber, and until when."""

    __slots__ = ("batches", "bytes", "deadline")

    def __init__(self) -> None:
        self.deadline = 0.0
        self.batches: deque[Batch] = deque()
        self.bytes = 0


class Backlogs:
    """Keeps the books on all backlogs of a hub. Times are seconds of the monotonic clock."""

    def __init__(self, bounds: Backpressure, max_held_bytes: int, index: Index) -> None:
        self._bounds = bounds
        self._max_held_bytes = max_held_bytes
        self._min_read_bytes = max(1, bounds.max_backlog_bytes // READING_SHARE)
        self.held_bytes = 0
        """Bytes held for lagging subscribers, each batch counted once."""
        self._paused: dict[Subscriber, float] = {}
        """When each paused subscriber was paused."""
        self._lags: dict[Subscriber, _Lag] = {}
        self.waits = Waits(index, self._observe)
        """For whom publishers wait."""
        self.is_tight = False
        """True if so much was unread when the last round began that whoever is paused lags."""

    @property
    def bytes(self) -> int:
        """Bytes that clients have not read, and bytes held for them."""
        return self.held_bytes + self._unread

    @property
    def _unread(self) -> int:
        return sum([subscriber.sink.backlog for subscriber in self._paused])

    @property
    def has_paused(self) -> bool:
        """True if a client has not read what was written."""
        return bool(self._paused or self._lags)

    @property
    def lagging(self) -> int:
        """The number of lagging subscribers."""
        return len(self._lags)

    def capacity(self, subscribers: int) -> int:
        """A round begins: return how many bytes it may write to each of `subscribers`.

        So all backlogs together stay within their bound.
        """
        total = self._bounds.max_total_backlog_bytes
        if not self._paused:
            self.is_tight = False
            return min(self._bounds.round_bytes, total // 2 // max(1, subscribers))
        unread = self._unread
        self.is_tight = unread > total // 4
        left = min(total // 2, total - self.held_bytes - unread)
        return min(self._bounds.round_bytes, left // max(1, subscribers))

    # Single subscribers

    def pause(self, subscriber: Subscriber, now: float) -> None:
        """The sink has paused."""
        subscriber.unread_bytes = None
        self._paused[subscriber] = now

    def resume(self, subscriber: Subscriber, now: float) -> None:
        """The sink has resumed: the client reads."""
        subscriber.read_at = now

    def settle(self, subscriber: Subscriber) -> None:
        """Forget that the sink was paused, unless it is paused again."""
        if not subscriber.sink.is_paused:
            self._paused.pop(subscriber, None)

    def is_over(self, subscriber: Subscriber, written_bytes: int) -> bool:
        """True if the subscriber has to lag, after `written_bytes` were written to the paused sink."""
        backlog = subscriber.sink.backlog
        unread = subscriber.unread_bytes
        subscriber.unread_bytes = backlog if unread is None else unread + written_bytes
        return self.is_tight or backlog > self._bounds.max_backlog_bytes

    def start_lag(self, subscriber: Subscriber, now: float) -> None:
        """Hold batches for `subscriber` from now on. What is held already stays; the grace time begins anew."""
        lag = self._lags.get(subscriber)
        if lag is None:
            lag = self._lags[subscriber] = _Lag()
            self.waits.add(subscriber)
        lag.deadline = now + self._bounds.grace_seconds

    def hold(self, subscriber: Subscriber, batch: Batch) -> int:
        """Hold the part of `batch` that `subscriber` does not have yet; return its number of events, or OVERRUN."""
        lag = self._lags[subscriber]
        rest = batch.after(lag.batches[-1].last if lag.batches else subscriber.sent)
        if rest is None:
            return 0
        lag.batches.append(rest)
        lag.bytes += len(rest.data)
        if not rest.holders:
            self.held_bytes += len(rest.data)
        rest.holders += 1
        return rest.count if lag.bytes <= self._max_held_bytes else OVERRUN

    def next_held(self, subscriber: Subscriber) -> Batch | None:
        """Remove and return the oldest batch held for `subscriber`, or None if there is none."""
        lag = self._lags.get(subscriber)
        return self._release(lag) if lag is not None and lag.batches else None

    def held_for(self, subscriber: Subscriber) -> int:
        """Return the number of bytes held for `subscriber`."""
        lag = self._lags.get(subscriber)
        return lag.bytes if lag is not None else 0

    def drop_held(self, subscriber: Subscriber) -> None:
        """Discard the batches held for `subscriber`."""
        while self.next_held(subscriber) is not None:
            pass

    def end_lag(self, subscriber: Subscriber) -> None:
        """Hold nothing for `subscriber` any more: it has caught up."""
        self.drop_held(subscriber)
        if self._lags.pop(subscriber, None) is not None:
            self.waits.remove(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """The stream has ended."""
        lag = self._lags.get(subscriber)
        if lag is not None:
            self.waits.exclude(subscriber, until=lag.deadline + NOT_AGAIN_SECONDS)
        self.end_lag(subscriber)
        self._paused.pop(subscriber, None)

    def _release(self, lag: _Lag) -> Batch:
        batch = lag.batches.popleft()
        lag.bytes -= len(batch.data)
        batch.holders -= 1
        if not batch.holders:
            self.held_bytes -= len(batch.data)
        return batch

    # All together

    def overdue(self, now: float) -> list[Subscriber]:
        """Return the subscribers whose grace time is over."""
        return [subscriber for subscriber, lag in self._lags.items() if lag.deadline <= now]

    def is_overdue(self, subscriber: Subscriber, now: float) -> bool:
        """True if the grace time of `subscriber` is over."""
        lag = self._lags.get(subscriber)
        return lag is not None and lag.deadline <= now

    def excess(self, now: float) -> Iterator[Subscriber]:
        """Yield the subscribers that have to end because memory runs short, those furthest behind first."""
        if not self._paused:
            return
        total = self._bounds.max_total_backlog_bytes
        unread = self._unread
        if unread + self.held_bytes <= total * 3 // 4:
            return
        for subscriber in self._paused:
            self._observe(subscriber, now)
        stopped = [
            subscriber
            for subscriber, paused_at in self._paused.items()
            if subscriber.read_at < paused_at and now - paused_at > self._bounds.grace_seconds
        ]
        for candidates, bound in ((stopped, total * 3 // 4), (self._paused, total)):
            if unread + self.held_bytes <= bound:
                return
            for subscriber in sorted(candidates, key=self._behind, reverse=True):
                if unread + self.held_bytes <= bound:
                    return
                unread -= subscriber.sink.backlog
                yield subscriber

    def furthest_behind(self, size: int) -> Iterator[Subscriber]:
        """Yield the subscribers with the most left to read, until `size` bytes have been freed by ending them.

        Those of one audience share the bytes that they have not read, so nothing is freed before all of them end.
        """
        audiences: dict[tuple[object, ...], list[Subscriber]] = {}
        for subscriber in self._paused:
            key = subscriber.user_id, subscriber.channels, subscriber.prefixes
            audiences.setdefault(key, []).append(subscriber)
        freed, held = 0, self.held_bytes
        for audience in sorted(audiences.values(), key=lambda members: max(map(self._behind, members)), reverse=True):
            if freed + held - self.held_bytes >= size:
                return
            freed += max([subscriber.sink.backlog for subscriber in audience])
            # Those that have read everything since the list was made free nothing.
            yield from (subscriber for subscriber in audience if subscriber in self._paused)

    def _behind(self, subscriber: Subscriber) -> int:
        """Return how many bytes `subscriber` has yet to read."""
        return subscriber.sink.backlog + self.held_for(subscriber)

    def _observe(self, subscriber: Subscriber, now: float) -> None:
        backlog = subscriber.sink.backlog
        unread = subscriber.unread_bytes
        if unread is not None and unread - backlog >= self._min_read_bytes:
            subscriber.unread_bytes = backlog
            subscriber.read_at = now
