"""Backlogs: who does not read as fast as the hub writes, what is held for them, and who has to end.

A subscriber whose sink is paused has a backlog. When that exceeds its bound the subscriber lags: batches are held for
it, by reference, until it has read its backlog or the grace time is over. Rounds and publishers do not wait for a
single slow client. They wait, within bounds, in two cases: when more subscribers lag *and read* than keep up, because
then the publishers are faster than the connections; and when memory runs short.

Whether a client reads is observed: its backlog is compared before each round, and a client that lags counts as reading
for a second after its backlog has shrunk. So clients that have stopped reading delay nobody, even if they are the
majority. A client whose first lag begins is not known to read yet, which costs it nothing: what it misses is held for
it.

All backlogs together, with what is held counted once, have a bound. When reading clients use half of it, the next
round waits for them. When everything together uses three quarters, those clients end first that have read nothing for
the grace time, the largest backlog first; only if that is not enough does the next round wait.

Nothing here ends a stream. `overdue` returns the subscribers that have to end because their time is over. `stopped` and
`largest` yield those that have to end because memory runs short, lazily: the engine ends each one before it asks for
the next, because held bytes only fall when the last holder of a shared batch has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ..settings import Backpressure
from .frames import Batch
from .subscriber import Subscriber

READING_SECONDS = 1.0
"""How long a client counts as reading after its backlog has shrunk."""
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

    def __init__(self, bounds: Backpressure, max_held_bytes: int) -> None:
        self._bounds = bounds
        self._max_held_bytes = max_held_bytes
        self._min_read_bytes = max(1, bounds.max_backlog_bytes // READING_SHARE)
        self.held_bytes = 0
        """Bytes held for lagging subscribers, each batch counted once."""
        self._paused: dict[Subscriber, float] = {}
        """When each paused subscriber was paused."""
        self._lags: dict[Subscriber, _Lag] = {}
        self._waiting_until: float | None = None
        """When the round that waits begins at the latest."""

    @property
    def bytes(self) -> int:
        """Bytes that clients have not read, and bytes held for them."""
        return self.held_bytes + sum([subscriber.sink.backlog for subscriber in self._paused])

    @property
    def lagging(self) -> int:
        """The number of lagging subscribers."""
        return len(self._lags)

    def capacity(self, subscribers: int) -> int:
        """Return how many bytes a round may write to each of `subscribers`, so that all stay within the bound."""
        total = self._bounds.max_total_backlog_bytes
        return min(self._bounds.round_bytes, min(total // 2, total - self.bytes) // max(1, subscribers))

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
        """Return True if the backlog exceeds its bound, after `written_bytes` were written to the paused sink."""
        backlog = subscriber.sink.backlog
        unread = subscriber.unread_bytes
        subscriber.unread_bytes = backlog if unread is None else unread + written_bytes
        return backlog > self._bounds.max_backlog_bytes

    def start_lag(self, subscriber: Subscriber, now: float) -> None:
        """Hold batches for `subscriber` from now on. What is held already stays; the grace time begins anew."""
        lag = self._lags.get(subscriber)
        if lag is None:
            lag = self._lags[subscriber] = _Lag()
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
        """Hold nothing for `subscriber` any more."""
        self.drop_held(subscriber)
        self._lags.pop(subscriber, None)

    def remove(self, subscriber: Subscriber) -> None:
        """The stream has ended."""
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

    def stopped(self, now: float, subscribers: int) -> Iterator[Subscriber]:
        """Yield the subscribers that have to end before the next round, as memory runs short and they read nothing."""
        for subscriber in self._paused:
            self._observe(subscriber, now)
        if not self._is_outrun(now, subscribers) and not self._is_filled_by_readers(now):
            yield from self._largest(
                subscriber
                for subscriber, paused_at in self._paused.items()
                if subscriber.read_at < paused_at and now - paused_at > self._bounds.grace_seconds
            )

    def is_clear(self) -> bool:
        """Return True if no sink is paused, so that the next round can begin at once."""
        if self._paused:
            return False
        self._waiting_until = None
        return True

    def must_wait(self, now: float, subscribers: int) -> bool:
        """Return True if the next round has to wait for clients to read; it waits for at most the grace time."""
        if not self._is_pressed(now, subscribers):
            self._waiting_until = None
            return False
        if self._waiting_until is None:
            self._waiting_until = now + self._bounds.grace_seconds
        if now < self._waiting_until:
            return True
        self._waiting_until = None
        return False

    def largest(self) -> Iterator[Subscriber]:
        """Yield the subscribers that have to end so that the next round need not wait any longer, largest first."""
        return self._largest(self._paused)

    def furthest_behind(self, size: int) -> Iterator[Subscriber]:
        """Yield the subscribers with the most left to read, until `size` bytes have been freed by ending them.

        Those of one audience share the bytes that they have not read, so nothing is freed before all of them end.
        """

        def behind(subscriber: Subscriber) -> int:
            return subscriber.sink.backlog + self.held_for(subscriber)

        audiences: dict[tuple[str, Sequence[str]], list[Subscriber]] = {}
        for subscriber in self._paused:
            audiences.setdefault((subscriber.user_id, subscriber.channels), []).append(subscriber)
        freed, held = 0, self.held_bytes
        for audience in sorted(audiences.values(), key=lambda members: max(map(behind, members)), reverse=True):
            if freed + held - self.held_bytes >= size:
                return
            freed += max([subscriber.sink.backlog for subscriber in audience])
            yield from audience

    def _largest(self, candidates: Iterable[Subscriber]) -> Iterator[Subscriber]:
        unread = self.bytes - self.held_bytes
        if self._has_room(unread + self.held_bytes):
            return
        for subscriber in sorted(candidates, key=lambda one: -one.sink.backlog):
            if self._has_room(unread + self.held_bytes):
                return
            unread -= subscriber.sink.backlog
            yield subscriber

    def _observe(self, subscriber: Subscriber, now: float) -> None:
        backlog = subscriber.sink.backlog
        unread = subscriber.unread_bytes
        if unread is not None and unread - backlog >= self._min_read_bytes:
            subscriber.unread_bytes = backlog
            subscriber.read_at = now

    def _is_pressed(self, now: float, subscribers: int) -> bool:
        return self._is_outrun(now, subscribers) or self._is_filled_by_readers(now) or not self._has_room(self.bytes)

    def _is_outrun(self, now: float, subscribers: int) -> bool:
        """True if more subscribers lag but still read than keep up."""
        reading = sum([1 for subscriber in self._lags if subscriber.read_at >= now - READING_SECONDS])
        return reading > subscribers - len(self._lags)

    def _is_filled_by_readers(self, now: float) -> bool:
        """True if clients that read use half of the bound on all backlogs."""
        grace = self._bounds.grace_seconds
        reading = 0
        for subscriber, paused_at in self._paused.items():
            has_read = subscriber.read_at >= paused_at
            if now - max(subscriber.read_at, paused_at) <= (grace if has_read else READING_SECONDS):
                reading += subscriber.sink.backlog
        return reading > self._bounds.max_total_backlog_bytes // 2

    def _has_room(self, used: int) -> bool:
        return used <= self._bounds.max_total_backlog_bytes * 3 // 4
