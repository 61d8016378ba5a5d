"""The hub: holds this process's subscribers and fans events out to them.

Events wait in one batch. A *round* takes what waits, finds who it is for, and writes it in slices of about a hundred
subscribers, each a `call_soon`, so that the loop goes on accepting and publishing meanwhile. What arrives during a
round is the next one's: at rest an event leaves at once, under load one write carries many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Self

from .brokers.base import Broker, Entry
from .brokers.memory import MemoryBroker
from .brokers.session import Session
from .claims import Claims
from .errors import (
    BrokerUnavailable,
    HubClosed,
    InvalidEvent,
    Overloaded,
    WrongEventLoop,
)
from .event import Event, encode_fields
from .fanout.clock import Clock
from .fanout.frames import Batch, Ending, Frame
from .fanout.history import History, ResetReason
from .fanout.index import Delivery, Index
from .fanout.sinks import Chunk, Sink
from .fanout.subscriber import CloseReason, Subscriber
from .fields import json_text, one_or_many
from .position import Position
from .publication import Disconnect, IdempotencyKey, Publication
from .settings import Backpressure, Retention, Streams
from .subscription import Start, Subscription

logger = logging.getLogger("ssehub.hub")

SLICE = 100
"""Subscribers written to before the loop goes on: 64 and 256 were measured slower than 128, and 100 is as fast."""
SPACED_FROM = 32
"""Writes in a round from which on the next one keeps its distance."""
SPACING_SECONDS = 0.002
"""That distance, from end to begin: what is published meanwhile leaves in the same write. Measured against none: twice
the deliveries per CPU second with 1,000 subscribers, three times with 100, and no more latency; 1 ms gains half of it.
"""
PERIOD_SECONDS_A_WRITE = 60e-6
"""The least from begin to begin, for each write of the round before: some six times what a write takes. So half of the
subscribers, in one of two processes, get as many events in a write as all of them in one: measured with 1,000 over
Redis, 0.86 of the deliveries per CPU second instead of 0.6; and in one process half as many again.
"""
PERIOD_SECONDS = 0.015
"""The most of that; the median latency pays at most as much, and only where events come faster than that."""
READING_SECONDS = 1.0
"""For how long a connection that has taken some of its backlog counts as reading."""
READING_SHARE = 64
"""That much of the bound on its backlog it has to take to be seen: so much less than it would need to be in time."""
DEFAULT_VISIT_SECONDS = 15.0
"""How often the clock looks at each subscriber when there are no heartbeats."""
RESTART_MILLISECONDS = 2_000
"""What a restart takes at the most; a drained client comes back after that, spread over the next 5 s."""
DRAIN_STEP_SECONDS = 0.02
DRAIN_LINGER_SECONDS = 1.0
"""How much longer than a drain a client may take for what was written before its stream ended."""
HEARTBEAT_COMMENT = "ping"
FLUSH_SECONDS = 1.0
"""How long a hub that is closed goes on giving out what was published before."""
REACH_SECONDS = 2.0
"""How long a client that is ahead of this hub is waited for."""


@dataclass(slots=True)
class Statistics:
    """What a hub has done since it was made, and what it holds now. Plain numbers, cheap to read."""

    subscribers: int = 0
    channels: int = 0
    connected: int = 0
    endings: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in CloseReason})
    published: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    replayed: int = 0
    resets: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in ResetReason})
    history_events: int = 0
    history_bytes: int = 0
    backlog_bytes: int = 0
    lagging: int = 0
    waiting_bytes: int = 0
    waiting_publishers: int = 0
    round_bounds: tuple[float, ...] = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
    round_counts: list[int] = field(default_factory=lambda: [0] * 13)
    round_seconds: float = 0.0
    loop_lag_seconds: float = 0.0
    broker_ready: bool = True
    log_skipped_entries: int = 0


class Gate:
    """Lets publishers through, first come, first served, while there is room; the others wait in line."""

    def __init__(self, has_room: Callable[[], bool], max_waiting: int) -> None:
        self._has_room = has_room
        self._max_waiting = max_waiting
        self._line: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._line)

    async def enter(self) -> None:
        """Returns when there is room; raises Overloaded when too many wait already."""
        if not self._line and self._has_room():
            return
        if len(self._line) >= self._max_waiting:
            raise Overloaded(f"{len(self._line)} publishers wait already: try again in a second")
        await self.wait()

    async def wait(self) -> None:
        """Wait in line for room, however many do."""
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.open()
            raise
        finally:
            if place in self._line:
                self._line.remove(place)

    def open(self) -> None:
        """Let the first in line go if there is room. Call it when there may be."""
        while self._line and self._has_room():
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return


class Hub:
    """Fans events out to the subscribers of this process, in one event loop: inside `async with`, or from first use.

    `heartbeat_seconds` 0 turns heartbeats off. `retry_milliseconds` is told to every client at its start. A
    subscriber whose connection leaves more than `max_backlog_bytes` untaken gets nothing more until it has taken
    them, and ends as `slow` after `grace_seconds`, or when it is further behind than `history_bytes`.
    `max_total_backlog_bytes` bounds all of them together.
    `max_waiting_bytes` bounds what waits for a round: publishers wait then, at most `max_waiting_publishers` of them.
    `history_events`, `history_bytes` and `history_seconds` bound what is kept for those who come back.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        retention: Retention = Retention(),
        backpressure: Backpressure = Backpressure(),
        streams: Streams = Streams(),
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.broker = broker or MemoryBroker(now=now)
        self.max_backlog_bytes = backpressure.max_backlog_bytes
        self.max_held_bytes = retention.history_bytes
        self._heartbeat = streams.heartbeat_seconds
        self._retry = streams.retry_milliseconds
        self._grace = backpressure.grace_seconds
        self._max_total_backlog = backpressure.max_total_backlog_bytes
        self._least_read = max(1, backpressure.max_backlog_bytes // READING_SHARE)
        self._round_bytes = backpressure.round_bytes
        self._max_waiting_bytes = backpressure.max_waiting_bytes
        self._max_waiting_publishers = backpressure.max_waiting_publishers
        self._max_subscribers = streams.max_connections
        self._history_limits = retention.history_events, retention.history_bytes, retention.history_seconds
        self._expiring = streams.expiring_seconds
        self._lifetime = streams.stream_lifetime_seconds
        self._now = now
        self._monotonic = monotonic
        self._statistics = Statistics()
        self._running: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entered = 0
        self._is_closed = False
        self._reset()

    def _reset(self) -> None:
        """All that belongs to one event loop, empty."""
        self.is_draining = False
        self._drain_until = 0.0
        self._index = Index()
        self._gate = Gate(lambda: self._waiting_bytes < self._max_waiting_bytes, self._max_waiting_publishers)
        self._waiting: deque[Frame | Ending] = deque()
        self._waiting_bytes = 0
        self._head: Position | None = None
        self._history: History | None = None
        self._replaying: set[Subscriber] = set()
        self._settled: Position | None = None
        self._work: Iterator[tuple[Batch, Subscriber]] | None = None
        self._round_last: Position | None = None
        self._round_began = self._round_ended = 0.0
        self._round_writes = 0
        self._is_scheduled = False
        self.held_bytes = 0
        self._held_until: float | None = None
        self._paused: dict[Subscriber, float] = {}
        self._laggards: dict[Subscriber, float] = {}
        interval = self._heartbeat or DEFAULT_VISIT_SECONDS
        self._clock = Clock(self, interval, self._expiring, self._now, self._monotonic)

    # Life

    async def __aenter__(self) -> Self:
        self._is_closed = False
        await self.start()
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:
            await self.aclose()

    async def start(self) -> None:
        """Start in the running event loop, unless the hub runs there already; the first use does so by itself.

        Raises BrokerUnavailable, HubClosed after `aclose`, WrongEventLoop if it runs in another one.
        """
        if self._loop is asyncio.get_running_loop():
            return
        running = self._running
        if running is None or running.loop.is_closed():
            if self._is_closed:
                raise HubClosed("the hub has been closed: open it again by `async with hub`")
            self._reset()
            running = self._running = Session(self.broker, self)
        if running.loop is not asyncio.get_running_loop():
            raise WrongEventLoop("the hub runs in another event loop: call publish_sync, or use a hub of your own")
        try:
            await running.started()
        except asyncio.CancelledError:
            raise  # it goes on starting, for whoever asks next
        except BaseException:
            if self._running is running and self._loop is None:
                self._running = None
            raise
        if self._loop is not running.loop:
            self._loop = running.loop
            self._start_clock(running.loop)

    def _start_clock(self, loop: asyncio.AbstractEventLoop) -> None:
        self._clock.start(loop)

    async def aclose(self) -> None:
        """End every stream, and the hub with them. Raises WrongEventLoop if it runs in another loop."""
        if self._running is not None and self._running.loop is not asyncio.get_running_loop():
            self._leave_ended_loop(self._running.loop)
        self._is_closed = True
        if self._loop is asyncio.get_running_loop():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.flush()
        self._clock.stop()
        for subscriber in list(self._index.all):
            self.end(subscriber, CloseReason.DRAINED)
        running, self._running, self._loop = self._running, None, None
        if running is not None:
            await running.stop()

    def _leave_ended_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Everything of the hub's that was in `loop` has ended with it."""
        if not loop.is_closed():
            raise WrongEventLoop("the hub runs in another event loop: close it there")
        self._reset()
        self._running = self._loop = None

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do `work` beside the hub, and end it with it."""
        self._here().spawn(work)

    def _here(self) -> Session:
        if self._running is None or self._loop is None:
            raise HubClosed("the hub is not running: use it inside `async with hub`, or await hub.start()")
        return self._running

    def not_ready(self) -> list[str]:
        """Why new streams and events are better sent elsewhere; empty when they are welcome."""
        reasons = []
        if self._is_closed:
            reasons.append("the hub has been closed")
        if self.is_draining:
            reasons.append("the hub is draining: it is about to end")
        if self.broker.problem is not None:
            reasons.append(self.broker.problem)
        return reasons

    @property
    def statistics(self) -> Statistics:
        statistics = self._statistics
        statistics.subscribers = len(self._index)
        statistics.channels = len(self._index.channels)
        statistics.backlog_bytes = self._backlogs()
        statistics.lagging = len(self._laggards)
        statistics.waiting_bytes = self._waiting_bytes
        statistics.history_events = len(self._history or ())
        statistics.history_bytes = self._history.bytes if self._history is not None else 0
        statistics.waiting_publishers = len(self._gate)
        statistics.loop_lag_seconds = self._clock.lag_seconds
        statistics.broker_ready = self.broker.problem is None
        statistics.log_skipped_entries = self.broker.skipped
        return statistics

    # Publishing

    async def publish(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str | Sequence[str],
        data: object,
        type: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        store: bool = True,
        ttl: float | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Publish one event and return its position once the broker has stored it.

        `data` that is no string is written as JSON; `retry` is in milliseconds. Without `store` the event is for those
        who listen now; after `ttl` seconds it is not replayed any more. Publishing again with the same
        `idempotency_key` returns the first position and stores nothing.

        Raises InvalidEvent for what can't be sent, IdempotencyConflict where the key was used for something else,
        Overloaded or HubClosed when nothing was stored, BrokerUnavailable when that is not known.
        """
        channels, users = one_or_many(channel), one_or_many(user_id)
        event = Event(channels, users, data=json_text(data), type=type, id=id, retry=retry, store=store, ttl=ttl)
        key = None
        if idempotency_key is not None:
            key = IdempotencyKey.make(idempotency_key, ("", *sorted(channels)), [event])
        return (await self.publish_all([Publication([event], key)]))[0]

    def publish_sync(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str | Sequence[str],
        data: object,
        type: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        store: bool = True,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> str:
        """`publish`, from any thread but the one the hub runs in, where it raises WrongEventLoop.

        Raises BrokerUnavailable after `timeout_seconds`: the event may or may not be stored then.
        """
        loop = self._here().loop
        if loop is asyncio._get_running_loop():
            raise WrongEventLoop(
                "publish_sync would block the event loop that the hub runs in: await hub.publish there"
            )
        work = self.publish(
            channel=channel,
            user_id=user_id,
            data=data,
            type=type,
            id=id,
            retry=retry,
            store=store,
            ttl=ttl,
            idempotency_key=idempotency_key,
        )
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError as exc:
            work.close()
            raise HubClosed(
                "the event loop that the hub ran in has ended: await hub.start() in the one that runs"
            ) from exc
        try:
            return waiting.result(timeout_seconds)
        except CancelledError:
            raise BrokerUnavailable("the event loop has ended: the event may or may not be stored") from None
        except TimeoutError:
            waiting.cancel()
            raise BrokerUnavailable(f"no answer in {timeout_seconds:g} s: the event may or may not be stored") from None

    async def publish_events(self, events: Sequence[Event]) -> list[str]:
        """Publish `events`, all or none, and return their positions; raises as `publish` does."""
        # A stranger among them would be noticed by the log only, in one commit with what others publish.
        if isinstance(events, Event) or not all([isinstance(event, Event) for event in events]):
            raise InvalidEvent("publish_events takes a list of ssehub.Event: publish takes the fields of one event")
        return await self.publish_all([Publication(events)])

    async def publish_all(self, publications: Sequence[Publication]) -> list[str]:
        """The same for events of which some have keys."""
        if self._loop is not asyncio.get_running_loop():
            await self.start()
        await self._gate.enter()
        try:
            positions = await self.broker.publish(publications)
        finally:
            self._gate.open()
        self._statistics.published += len(positions)
        return positions

    # What the broker calls

    async def begin(self, base: Position) -> None:
        """Follow the log from `base` on. If it was followed before, something is missing: every stream is told so."""
        before = self._head
        if before is not None:
            await self.flush()
        max_events, max_bytes, max_seconds = self._history_limits
        self._history = History(
            base, max_events=max_events, max_bytes=max_bytes, max_seconds=max_seconds, monotonic=self._monotonic
        )
        self._head = self._settled = base
        self._replaying.clear()
        reason = ResetReason.TOO_OLD if before is not None and before.log == base.log else ResetReason.LOG_LOST
        for subscriber in list(self._index.all):
            subscriber.start_over(base)
            self._tell_reset(subscriber, reason)

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        """Take `entries` of the log, and return when there is room for more."""
        self.dispatch(position, entries)
        if self._waiting_bytes >= self._max_waiting_bytes:
            await self._gate.wait()
            self._gate.open()

    def dispatch(self, position: Position, entries: Sequence[Entry]) -> None:
        """Take `entries` of the log, which then stands at `position`, for the local subscribers and for history."""
        history = self._history
        assert history is not None
        has_listeners = len(self._index) > 0 or self._work is not None
        now, wall = self._monotonic(), self._now() * 1000
        for place, event in entries:
            if isinstance(event, Disconnect):
                if has_listeners:
                    self._waiting.append(Ending(place, event))
                continue
            frame = Frame(place, event, now - max(0.0, wall - place.milliseconds) / 1000)
            if event.store:
                history.add(frame)
            if has_listeners:
                self._waiting.append(frame)
                self._waiting_bytes += len(frame.data)
        self._head = position
        if not has_listeners and not self._waiting:
            self._settled = position
        self._schedule_round()

    # Rounds

    def _schedule_round(self) -> None:
        if self._waiting and self._work is None and not self._is_scheduled and self._loop is not None:
            self._is_scheduled = True
            loop = self._loop
            wait = self._next_round_at() - self._monotonic()
            if wait > 0:
                loop.call_later(wait, self._begin_round)
            else:
                loop.call_soon(self._begin_round)

    def _next_round_at(self) -> float:
        writes = self._round_writes
        if writes < SPACED_FROM:
            return self._round_ended
        period = min(PERIOD_SECONDS, writes * PERIOD_SECONDS_A_WRITE)
        return max(self._round_ended + SPACING_SECONDS, self._round_began + period)

    def _begin_round(self) -> None:
        self._is_scheduled = False
        if not self._waiting or self._must_hold_back():
            return
        first = self._waiting[0]
        if isinstance(first, Ending):
            self._waiting.popleft()
            self._begin_ending(first)
            return
        frames = self._take_waiting()
        self._round_last = last = frames[-1].position
        self._round_began = self._monotonic()
        self._round_writes = 0
        self._work = _pairs(self._index.select(frames, last))
        self._gate.open()
        self._slice()

    def _take_waiting(self) -> list[Frame]:
        """The next frames, at least one, up to the cap; with many subscribers less, so that all stay in their bound."""
        waiting = self._waiting
        room = min(self._max_total_backlog // 2, self._max_total_backlog - self._backlogs())
        cap = min(self._round_bytes, room // max(1, len(self._index)))
        frames: list[Frame] = []
        size = 0
        while waiting and isinstance(frame := waiting[0], Frame) and (not frames or size + len(frame.data) <= cap):
            frames.append(frame)
            size += len(frame.data)
            waiting.popleft()
        self._waiting_bytes -= size
        return frames

    def _slice(self) -> None:
        """Write to the next subscribers of the round; whatever happens, the round goes on or finishes."""
        assert self._work is not None
        visited = events = size = 0
        try:
            for batch, subscriber in islice(self._work, SLICE):
                visited += 1
                if taken := self._give(batch, subscriber):
                    events += taken
                    size += len(batch.data)
        finally:
            self._statistics.delivered += events
            self._statistics.delivered_bytes += size
            self._round_writes += visited
            if visited == SLICE and self._loop is not None:
                self._loop.call_soon(self._slice)
            else:
                self._finish_round()

    def _give(self, batch: Batch, subscriber: Subscriber) -> int:
        try:
            return subscriber.take(batch)
        except Exception:
            self._end_failed(subscriber)
            return 0

    def _end_failed(self, subscriber: Subscriber) -> None:
        """Writing to `subscriber` has raised: that ends it, and nobody else."""
        logger.warning("writing to a stream failed, which ends it", exc_info=True)
        subscriber.sink.abort()
        self.end(subscriber, CloseReason.DISCONNECTED)

    def _finish_round(self) -> None:
        self._work = None
        self._settled = self._round_last
        self._round_ended = self._monotonic()
        seconds = self._round_ended - self._round_began
        statistics = self._statistics
        statistics.round_seconds += seconds
        statistics.round_counts[bisect_left(statistics.round_bounds, seconds)] += 1
        self._schedule_round()

    def _begin_ending(self, ending: Ending) -> None:
        """End streams as the rounds write to them: in slices, and nothing later is written before it is done."""
        named = self._index.named(ending.command.users, ending.command.channels)
        # Whoever came after the command, with a token that is good, is not meant.
        self._work = iter(())
        self._end_slice(iter([one for one in named if one.came_at < ending.position]), ending.command.retry)

    def _end_slice(self, rest: Iterator[Subscriber], retry: int) -> None:
        some = list(islice(rest, SLICE))
        try:
            for subscriber in some:
                self._revoke(subscriber, retry)
        finally:
            if len(some) == SLICE and self._loop is not None:
                self._loop.call_soon(self._end_slice, rest, retry)
            else:
                self._work = None
                self._schedule_round()

    def _revoke(self, subscriber: Subscriber, retry: int) -> None:
        if subscriber.reason is not None:
            return
        self.tell(subscriber, "stream-revoked", {}, retry=retry + random.randrange(retry // 5 + 1))
        self.end(subscriber, CloseReason.REVOKED)

    # Backpressure

    def subscriber_paused(self, subscriber: Subscriber) -> None:
        self._paused[subscriber] = self._monotonic()

    def subscriber_lags(self, subscriber: Subscriber) -> None:
        self._laggards[subscriber] = self._monotonic() + self._grace

    def subscriber_resumed(self, subscriber: Subscriber) -> None:
        subscriber.read_at = self._monotonic()
        if not subscriber.sink.is_paused:
            self._paused.pop(subscriber, None)
        if subscriber.is_lagging:
            self.subscriber_lags(subscriber)
        else:
            self._laggards.pop(subscriber, None)
        if subscriber.is_replaying:
            self._replay(subscriber)
        if self._held_until is not None:
            self._schedule_round()

    def _must_hold_back(self) -> bool:
        """Whether the next round waits, for connections that read, but slower than publishers publish.

        It does when more of them lag than keep up, and when their backlogs together are over half of the bound on all.
        Either is bounded by the grace time. A connection that takes nothing is waited for by nobody, as long as there
        is room.
        """
        if not self._paused:
            self._held_until = None
            return False
        now = self._monotonic()
        for subscriber in self._paused:
            subscriber.look(now, self._least_read)
        if not self._is_outrun(now) and not self._is_crowded(now):
            self._held_until = None
            return False
        if self._held_until is None:
            self._held_until = now + self._grace
        if now < self._held_until:
            return True
        self._make_room(list(self._paused))
        self._held_until = None
        return False

    def _is_outrun(self, now: float) -> bool:
        """Whether more lag and read than keep up: one of a few that lags is waited for by nobody."""
        reading = sum([1 for subscriber in self._laggards if subscriber.read_at >= now - READING_SECONDS])
        return reading > len(self._index) - len(self._laggards)

    def _is_crowded(self, now: float) -> bool:
        """Whether those that read have half of all the room there is, or all together leave hardly any of it.

        Before anybody is waited for for the latter, those end that have taken nothing at all for the grace time.
        """
        reading = 0
        stopped: list[Subscriber] = []
        for subscriber, paused_at in self._paused.items():
            has_read = subscriber.read_at >= paused_at
            if now - max(subscriber.read_at, paused_at) <= (self._grace if has_read else READING_SECONDS):
                reading += subscriber.sink.backlog
            elif not has_read and now - paused_at > self._grace:
                stopped.append(subscriber)
        if reading > self._max_total_backlog // 2:
            return True
        if not self._has_room(self._backlogs()):
            self._make_room(stopped)
        return not self._has_room(self._backlogs())

    def _backlogs(self) -> int:
        """What connections have not taken, and what is held for them, which many share."""
        return self.held_bytes + sum([subscriber.sink.backlog for subscriber in self._paused])

    def _has_room(self, backlogs: int) -> bool:
        return backlogs <= self._max_total_backlog * 3 // 4

    def _make_room(self, candidates: list[Subscriber]) -> None:
        """End `candidates`, those with the largest backlogs first, until there is room."""
        untaken = self._backlogs() - self.held_bytes
        for subscriber in sorted(candidates, key=lambda one: -one.sink.backlog):
            if self._has_room(untaken + self.held_bytes):
                return
            untaken -= subscriber.sink.backlog
            self.end(subscriber, CloseReason.SLOW)

    def tick(self, now: float) -> None:
        """What time alone decides: who has lagged too long, and whether a round held back may begin."""
        for subscriber, deadline in list(self._laggards.items()):
            if deadline <= now:
                self.end(subscriber, CloseReason.SLOW)
        if self._held_until is not None:
            self._schedule_round()
        for subscriber in list(self._replaying):
            try:
                self._replay(subscriber)
            except Exception:
                self._end_failed(subscriber)
        if self._history is not None:
            self._history.expire()

    # Subscribers

    @property
    def is_following(self) -> bool:
        """Whether the log is being read; a hub that waits for its broker takes no streams yet."""
        return self._head is not None

    @property
    def is_full(self) -> bool:
        return self._max_subscribers is not None and len(self._index) >= self._max_subscribers

    def subscribe(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str,
        expires_at: float | None = None,
        cursor: str | None = None,
        since: str | None = None,
    ) -> Subscription:
        """What a client of these channels is shown, for Python code: `async with hub.subscribe(…) as messages`.

        `cursor` and `since` are as `attach` takes them.
        """
        return Subscription(self, Claims(user_id, one_or_many(channel), expires_at), Start.parse(cursor, since))

    async def reach(self, cursor: str | None) -> None:
        """Returns when this hub has read the log up to `cursor`, or as far as the log goes, or after a while.

        A client that comes from another node may be ahead of this one.
        """
        position = Position.parse(cursor) if cursor else None
        if position is None or self._head is None or self._has_reached(position):
            return
        with contextlib.suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(REACH_SECONDS):
                end = Position.parse(await self.broker.head() or "")
                if end is None or end.log != position.log:
                    return
                while not self._has_reached(min(end, position)):  # noqa: ASYNC110  # dispatch is the hot path
                    await asyncio.sleep(0.005)

    def _has_reached(self, position: Position) -> bool:
        return self._head is not None and self._head.log == position.log and self._head >= position

    def attach(self, claims: Claims, sink: Sink, start: Start | None = None) -> Subscriber:
        """Register one stream and write its first frame; it is given everything from `start` on until it ends.

        At the end the hub closes `sink`.
        """
        self._here()
        if self._head is None:
            raise BrokerUnavailable(self.broker.problem or "the log has not been read yet")
        subscriber = Subscriber(self, claims, sink, self._head)
        reason = self._place(subscriber, start) if start is not None else None
        sink.owner = subscriber
        limits = self._limits(claims)
        self._index.add(subscriber)
        self._statistics.connected += 1
        self._clock.add(subscriber, *limits)
        # An id before the reset would let a client that is cut between them come back without a word.
        id = str(subscriber.sent) if reason is None else None
        hello = encode_fields(comment="ok", id=id, retry=self._retry)
        subscriber.tell(Chunk(hello), subscriber.sent if reason is None else None)
        if reason is not None:
            self._tell_reset(subscriber, reason)
        if subscriber.is_replaying:
            self._replaying.add(subscriber)
            self._replay(subscriber)
        return subscriber

    def _place(self, subscriber: Subscriber, start: Start) -> ResetReason | None:
        """Put `subscriber` where it is to begin; returns why it may have missed something, if it may have."""
        assert self._head is not None and self._history is not None
        history, channels = self._history, subscriber.channels
        reason = None
        if start.cursor is not None:
            found = history.locate(start.cursor, channels, self._head)
            if isinstance(found, ResetReason):
                reason = found
                found = history.floor(channels) if start.replays_on_reset else self._head
            subscriber.sent = found
        elif start.last is not None:
            subscriber.sent = history.start_of_last(start.last, channels, subscriber.user_id)
        elif start.is_earliest:
            subscriber.sent = history.floor(channels)
        subscriber.is_replaying = subscriber.sent != self._head
        return reason

    def _tell_reset(self, subscriber: Subscriber, reason: ResetReason) -> None:
        self._statistics.resets[reason.value] += 1
        self.tell(subscriber, "stream-reset", {"reason": reason.value})

    def _replay(self, subscriber: Subscriber) -> None:
        """Write the next of what `subscriber` has missed, as it takes it; with the last of it, it joins the rest."""
        if not subscriber.is_replaying or subscriber.sink.is_paused or subscriber.sink.backlog > self._round_bytes:
            return
        assert self._head is not None and self._history is not None
        if subscriber.sent < self._history.floor(subscriber.channels):
            self._join(subscriber)
            self._tell_reset(subscriber, ResetReason.TOO_OLD)
            return
        frames, is_all = self._history.replay(
            subscriber.sent, subscriber.channels, subscriber.user_id, max_bytes=self._round_bytes
        )
        if frames:
            self._statistics.replayed += len(frames)
            subscriber.replay(Batch(frames, frames[-1].position))
        if is_all:
            self._join(subscriber)
        else:
            self._here().loop.call_soon(self._replay, subscriber)

    def _join(self, subscriber: Subscriber) -> None:
        """From now on it is given what is given to all."""
        assert self._head is not None
        self._replaying.discard(subscriber)
        subscriber.is_replaying = False
        subscriber.sent = self._head

    def _limits(self, claims: Claims) -> tuple[float | None, float | None]:
        """Seconds from now to the token's end, and to the end of the stream's lifetime."""
        expires_in = None if claims.expires_at is None else claims.expires_at - self._now()
        lifetime = None if self._lifetime is None else self._lifetime * random.uniform(0.8, 1.0)
        return expires_in, lifetime

    def position_of(self, subscriber: Subscriber) -> Position:
        """Up to where everything for `subscriber` has been written: `sent`, or the last finished round."""
        is_behind = subscriber.is_lagging or subscriber.is_replaying
        if is_behind or self._settled is None or subscriber.sent > self._settled:
            return subscriber.sent
        return self._settled

    def tell(self, subscriber: Subscriber, type: str, data: object, retry: int | None = None) -> None:
        """Write an in-band event, which carries the subscriber's position."""
        position = self.position_of(subscriber)
        frame = encode_fields(event=type, data=json_text(data), id=str(position), retry=retry)
        try:
            subscriber.tell(Chunk(frame), position)
        except Exception:
            self._end_failed(subscriber)

    def beat(self, subscriber: Subscriber, frames: dict[Position | None, Chunk]) -> None:
        """Write a heartbeat, with the position if it has moved. `frames` keeps what was made, for the next one."""
        if not self._heartbeat or subscriber.sink.is_paused or subscriber.is_lagging:
            return
        position = self.position_of(subscriber)
        key = None if position == subscriber.told else position
        chunk = frames.get(key)
        if chunk is None:
            id = None if key is None else str(key)
            chunk = frames[key] = Chunk(encode_fields(comment=HEARTBEAT_COMMENT, id=id))
        try:
            subscriber.tell(chunk, position)
        except Exception:
            self._end_failed(subscriber)

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """End one stream, for one reason; the first one counts."""
        if subscriber.reason is not None:
            return
        subscriber.reason = reason
        self._index.remove(subscriber)
        self._paused.pop(subscriber, None)
        self._laggards.pop(subscriber, None)
        self._replaying.discard(subscriber)
        subscriber.is_replaying = False
        self._clock.remove(subscriber)
        try:
            self._say_goodbye(subscriber, reason)
        except Exception:
            logger.warning("ending a stream failed; its connection is dropped", exc_info=True)
            subscriber.sink.abort()
        finally:
            subscriber.release()
            self._statistics.endings[reason.value] += 1
            logger.info(
                "stream ended: %s, user %r on %r, after %.1f s",
                reason.value,
                subscriber.user_id,
                subscriber.channels,
                self._monotonic() - subscriber.connected_at,
            )
            if self._held_until is not None:
                self._schedule_round()

    def _say_goodbye(self, subscriber: Subscriber, reason: CloseReason) -> None:
        if reason is CloseReason.EXPIRED:
            self.tell(subscriber, "stream-expired", {"expiresAt": subscriber.expires_at})
        elif reason is CloseReason.DRAINED:
            self.tell(subscriber, "stream-drain", {}, retry=self.comeback_milliseconds())
        if reason is CloseReason.SLOW:
            subscriber.sink.abort()
        elif reason is CloseReason.DRAINED:
            subscriber.sink.close(self._drain_until + DRAIN_LINGER_SECONDS - self._monotonic())
        else:
            subscriber.sink.close()

    def comeback_milliseconds(self) -> int:
        """A jittered `retry:` for a client that is to come back later: longer than a restart takes."""
        left = self._drain_until - self._monotonic() if self.is_draining else 0.0
        return RESTART_MILLISECONDS + int(1000 * max(0.0, left)) + random.randrange(5_000)

    async def disconnect(
        self, *, user_id: str | Sequence[str] = (), channel: str | Sequence[str] = (), retry: int | None = None
    ) -> str:
        """End the open streams of these users, on these channels, or both, in this process and every other.

        Streams end behind all that was published before, with `stream-revoked`; browsers come back after `retry`
        milliseconds, and are served if their token is still good. Returns the position; raises as `publish` does.
        """
        given = {} if retry is None else {"retry": retry}
        command = Disconnect(one_or_many(user_id), one_or_many(channel), **given)
        return (await self.publish_all([Publication([command])]))[0]

    async def flush(self) -> None:
        """Returns when all that has been published here has been given to its subscribers."""
        while self._waiting or self._work is not None:  # noqa: ASYNC110  # the end of every round would have to set an event
            await asyncio.sleep(0.001)

    async def drain(self, window_seconds: float) -> None:
        """Give out what waits, then end every stream with `stream-drain`, spread over three quarters of the window."""
        self.is_draining = True
        began = self._monotonic()
        self._drain_until = began + window_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(window_seconds / 4):
                await self.flush()
        end = began + window_seconds * 3 / 4
        while self._index.all:
            steps_left = max(1.0, (end - self._monotonic()) / DRAIN_STEP_SECONDS)
            for subscriber in list(islice(self._index.all, math.ceil(len(self._index) / steps_left))):
                self.end(subscriber, CloseReason.DRAINED)
            await asyncio.sleep(DRAIN_STEP_SECONDS)


def _pairs(deliveries: list[Delivery]) -> Iterator[tuple[Batch, Subscriber]]:
    for batch, members in deliveries:
        for subscriber in members:
            yield batch, subscriber
