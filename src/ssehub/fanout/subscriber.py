"""Subscribers: one open stream each, what it has been given and what it still waits for, and the index of them all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol

from ..claims import Claims
from ..position import Position
from .frames import Batch
from .sinks import Chunk, Sink


class CloseReason(StrEnum):
    """Why a stream ended."""

    DISCONNECTED = "disconnected"
    EXPIRED = "expired"
    SLOW = "slow"
    DRAINED = "drained"
    LIFETIME = "lifetime"
    REVOKED = "revoked"


class Keeper(Protocol):
    """Who is told of a subscriber's state: the hub."""

    max_backlog_bytes: int
    max_held_bytes: int
    held_bytes: int
    """What is held for subscribers, each batch counted once."""

    def subscriber_paused(self, subscriber: Subscriber) -> None: ...

    def subscriber_resumed(self, subscriber: Subscriber) -> None: ...

    def subscriber_lags(self, subscriber: Subscriber) -> None: ...

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None: ...


class Subscriber:
    """One open stream: a user on some channels, and the sink its bytes go to.

    While its backlog is over the bound it *lags*: batches are held for it by reference, not copied, until its
    connection has taken what it has.
    """

    __slots__ = (
        "bucket",
        "came_at",
        "channels",
        "connected_at",
        "ends_at",
        "expires_at",
        "expiring_at",
        "held",
        "held_bytes",
        "is_due",
        "is_replaying",
        "keeper",
        "lifetime_ends_at",
        "read_at",
        "reason",
        "sent",
        "sink",
        "told",
        "untaken",
        "user_id",
    )

    def __init__(self, keeper: Keeper, claims: Claims, sink: Sink, sent: Position) -> None:
        self.keeper = keeper
        self.user_id = claims.user_id
        self.channels = claims.channels if len(claims.channels) == 1 else tuple(sorted(set(claims.channels)))
        self.expires_at = claims.expires_at
        self.sink = sink
        self.came_at = sent
        """Where the log stood when it came."""
        self.sent = sent
        """Everything up to here that is for this subscriber has been written to its sink."""
        self.told: Position | None = None
        """The position the client knows as its last event id; None if that is a publisher's id."""
        self.is_replaying = False
        """Whether it is still being given what it missed; it is not part of rounds then."""
        self.held: deque[Batch] | None = None
        self.held_bytes = 0
        self.untaken: int | None = None
        """What its backlog would be by now if it had taken nothing since the last look."""
        self.read_at = float("-inf")
        """When it was last seen to take what had waited for it, by the monotonic clock."""
        self.reason: CloseReason | None = None
        # The clock's, by the monotonic clock:
        self.connected_at = 0.0
        self.expiring_at: float | None = None
        self.ends_at: float | None = None
        self.lifetime_ends_at: float | None = None
        self.bucket = 0
        self.is_due = False

    @property
    def is_lagging(self) -> bool:
        return self.held is not None

    def look(self, now: float, least: int) -> None:
        """Note whether its connection has taken `least` bytes of its backlog, or more, since it was last seen to."""
        backlog = self.sink.backlog
        if self.untaken is not None and self.untaken - backlog >= least:
            self.untaken = backlog
            self.read_at = now

    def take(self, batch: Batch) -> int:
        """Write `batch`, or hold it, as far as it is above `sent`; returns how many events that were."""
        if self.reason is not None or self.is_replaying:
            return 0
        if self.held is None and batch.first > self.sent:
            self._write(batch)
            return batch.count
        rest = batch.after(self.held[-1].last if self.held else self.sent)
        if rest is None:
            return 0
        if self.held is None:
            self._write(rest)
        else:
            self._hold(rest)
        return rest.count

    def replay(self, batch: Batch) -> None:
        """Write what it missed."""
        self.sink.write(batch)
        self.sent = batch.last
        self.told = batch.told

    def tell(self, chunk: Chunk, position: Position | None) -> None:
        """Write a frame of the hub's own, which carries `position` as id, if any."""
        self.sink.write(chunk)
        self.told = position

    def move_to(self, sink: Sink, waiting: Iterable[Chunk]) -> None:
        """Write to `sink` from now on, first what the old one was still `waiting` to write."""
        was_paused, self.sink.owner = self.sink.is_paused, None
        self.sink = sink
        sink.owner = self
        for chunk in waiting:
            sink.write(chunk)
        if was_paused and not sink.is_paused:
            self.sink_resumed()

    def release(self) -> None:
        """Drop what is held."""
        while self.held:
            self._take_held(self.held)
        self.held = None

    def start_over(self, base: Position) -> None:
        """Count as given everything up to `base`, which may be of another log; drop what is held from before.

        What it has had of the same log beyond that is not given again.
        """
        while self.held:
            self._take_held(self.held)
        self.is_replaying = False
        self.came_at = base
        if self.sent.log != base.log or self.sent < base:
            self.sent = base

    def _write(self, batch: Batch) -> None:
        sink = self.sink
        sink.write(batch)
        self.sent = batch.last
        self.told = batch.told
        if sink.is_paused:
            self._fall_behind(len(batch.data))

    def _fall_behind(self, size: int) -> None:
        backlog = self.sink.backlog
        self.untaken = backlog if self.untaken is None else self.untaken + size
        if backlog > self.keeper.max_backlog_bytes:
            self.held = deque()
            self.keeper.subscriber_lags(self)

    def _hold(self, batch: Batch) -> None:
        assert self.held is not None
        self.held.append(batch)
        self.held_bytes += len(batch.data)
        if not batch.holders:
            self.keeper.held_bytes += len(batch.data)
        batch.holders += 1
        if self.held_bytes > self.keeper.max_held_bytes:
            self.keeper.end(self, CloseReason.SLOW)

    def _take_held(self, held: deque[Batch]) -> Batch:
        batch = held.popleft()
        self.held_bytes -= len(batch.data)
        batch.holders -= 1
        if not batch.holders:
            self.keeper.held_bytes -= len(batch.data)
        return batch

    def sink_paused(self) -> None:
        self.untaken = None
        self.keeper.subscriber_paused(self)

    def sink_resumed(self) -> None:
        held, self.held = self.held, None
        try:
            # Writing may pause the sink or put it over its bound again, in the middle of this.
            while held and not self.sink.is_paused and self.held is None:
                self._write(self._take_held(held))
        finally:
            if held:
                self.held = held
            if self.reason is not None:
                self.release()
        self.keeper.subscriber_resumed(self)

    def sink_lost(self) -> None:
        self.keeper.end(self, CloseReason.DISCONNECTED)
