"""The engine: follows the log in one event loop, and writes each event to the subscribers it is for.

It is built whole when the hub begins to follow the log. The other files of this folder answer questions (who is on a
channel, whose time has come, who has to end, what is to be replayed) and keep the books they need for that; the engine
acts on the answers. Streams are ended in one place, `Registry.end`.

    deliver → intake → history
                     → rounds → writing → index.select → subscriber.write → sink → connection
    attach → resume.beginning → replay from history → live
    watch → pages of a run → what its feed is told
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence

from ..brokers.base import Entry
from ..claims import Claims
from ..errors import TokenError, TokenReason
from ..event import Event
from ..position import Position
from ..publication import TakeBack
from ..revocations import Revocations
from ..settings import Backpressure, Retention, StreamLimits, Streams
from .backlogs import Backlogs
from .clock import Clock, Ticker
from .comebacks import OpeningRate, Turns
from .draining import Draining
from .endings import Endings
from .feeds import RunReader, Watcher
from .finding import Finder
from .frames import Ending, Frame, hello, most_bytes
from .gate import Gate
from .history import History, ResetReason
from .index import Index
from .intake import Intake
from .limits import StreamCounts
from .listing import Listing
from .origin import Origin
from .pacing import SLICE
from .pressure import Meter, Pressure
from .registry import Registry
from .replays import Replays
from .resume import Prospect, Start, beginning
from .rounds import Rounds
from .run_waits import RunWaits
from .sinks import Chunk, Sink
from .slices import each_in_slices
from .statistics import Statistics
from .subscriber import CloseReason, State, Subscriber
from .tracing import Tracer
from .upkeep import Upkeep
from .watchers import Watchers
from .watching import Dialect
from .writing import Writing

logger = logging.getLogger("ssehub.hub")

RETURN_MILLISECONDS = 3_000
"""The `retry:` sent to a client that has reconnected, unless one is configured. Otherwise it would keep the one with
which its last stream ended, which may have been long because there were many clients.
"""
LAGGING, REPLAYING, WATCHING = State.LAGGING, State.REPLAYING, State.WATCHING


class Engine:
    """Fans out the log from `base` on, in the running event loop.

    `wall` gives Unix time, in seconds, and `log_now` Unix time by the log's clock. `spawn` runs a task that ends with
    the hub.
    """

    def __init__(
        self,
        base: Position,
        *,
        retention: Retention,
        backpressure: Backpressure,
        streams: Streams,
        statistics: Statistics,
        wall: Callable[[], float],
        log_now: Callable[[], float],
        monotonic: Callable[[], float],
        stream_limits: StreamLimits,
        opening_rate: OpeningRate,
        revocations: Revocations,
        runs: RunReader,
        spawn: Callable[[Coroutine[None, None, None]], None],
        tracer: Tracer,
        meter: Meter | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams = streams
        self._statistics = statistics
        self._wall = wall
        self._log_now = log_now
        self._monotonic = monotonic
        self.index = Index()
        self._history = History(base, retention)
        self.backlogs = Backlogs(backpressure, retention.history_bytes, self.index)
        self._rounds = Rounds(base, backpressure.max_waiting_bytes)
        self.clock = Clock(streams)
        self.pressure = Pressure(meter)
        counts = StreamCounts(stream_limits, self.index, monotonic) if stream_limits.has_any else None
        turns = Turns(opening_rate, monotonic)
        self.registry = Registry(
            self.index, self.backlogs, self.clock, statistics, base, turns, monotonic, tracer, counts
        )
        self.endings = Endings(self.index, self.registry)
        self._draining = Draining(self.index, self.registry, statistics, monotonic)
        self.listing = Listing(self.index, self.registry, self.backlogs, wall, monotonic)
        tracer.walk = self.listing.walk
        self.watchers = Watchers(
            runs,
            self.registry,
            self.index,
            self.backlogs,
            statistics,
            spawn,
            monotonic,
            grace_seconds=backpressure.grace_seconds,
        )
        """The streams of runs."""
        self.finder = Finder(runs, self.watchers.wake, spawn, RunWaits(streams.max_run_waits, counts))
        """The runs that are followed here."""
        self._replays = Replays(
            self._history,
            self.registry,
            statistics,
            backpressure.round_bytes,
            lambda: self._rounds.has_command,
            monotonic,
        )
        self.gate = Gate(
            self._rounds.has_capacity,
            backpressure.max_waiting_publishers,
            self.backlogs.waits.laggards,
            lambda channel: self.backlogs.waits.must_wait(channel, monotonic()),
        )
        """Publishers pass it before they publish."""
        self._writing = Writing(
            self._rounds, self.index, self.backlogs, self.registry, self.endings, self.gate, statistics, monotonic
        )
        self._intake = Intake(self.dispatch, self._expect)
        self.upkeep = Upkeep(
            self._history,
            self.backlogs,
            self.clock,
            self.pressure,
            self.registry,
            self._replays,
            self.watchers,
            self.finder,
            opening_rate,
            statistics,
            revocations,
            has_heartbeats=streams.heartbeat_seconds > 0,
            wall=wall,
            log_now=log_now,
            monotonic=monotonic,
        )
        self.ticker = Ticker(self._loop, self.clock.tick_seconds, self.upkeep.advance, self.clock.skip)
        """Drives the upkeep while it is started."""
        self.is_ending_streams = False
        """True since streams are ended because the hub stops."""

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self.index)

    @property
    def head(self) -> Position:
        """The position up to which the log has been read."""
        return self.registry.head

    @property
    def is_writing(self) -> bool:
        """True if a round is under way."""
        return self._rounds.is_under_way

    def measure(self) -> None:
        """Write the current values into the statistics. Totals are always up to date there."""
        statistics = self._statistics
        statistics.subscribers = len(self.index)
        statistics.channels = len(self.index.channels)
        statistics.patterns = len(self.index.prefixes)
        statistics.backlog_bytes = self.backlogs.bytes
        statistics.lagging = self.backlogs.lagging
        statistics.waiting_bytes = self._rounds.waiting_bytes
        statistics.waiting_publishers = len(self.gate)
        statistics.history_events = len(self._history)
        statistics.history_bytes = self._history.bytes
        self.finder.measure(statistics)
        statistics.loop_lag_seconds = self.ticker.lag_seconds
        statistics.memory_bytes, statistics.memory_limit_bytes = self.pressure.reading
        statistics.memory_is_short = self.pressure.is_short

    # The log

    async def start_over(self, base: Position) -> None:
        """Follow the log from `base` on, after a gap or because it is another log: every stream is sent a reset."""
        await self.flush()
        reason = ResetReason.TOO_OLD if self.head.log == base.log else ResetReason.LOG_LOST
        self._history.start_over(base)
        self._replays.start_over()
        self.registry.head = base

        def reset(subscriber: Subscriber) -> None:
            if subscriber.state is WATCHING:
                subscriber.attached_at = base  # by which commands of the new log find it
            elif subscriber.state is not State.ENDED:
                self.backlogs.drop_held(subscriber)
                subscriber.start_over(base)
                self.registry.send_reset(subscriber, reason)

        await each_in_slices(list(self.index.all), reset, SLICE)
        # Not before: until a stream is sent the reset, it must not be sent an id that is above what it has received.
        self.registry.settled = base

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        """Dispatch the next `entries` of the log, which then ends at `position`; return when there is room for more."""
        dispatched = self._intake.accept(position, entries)
        if dispatched is not None:
            await dispatched
        if not self._rounds.has_capacity():
            await self.gate.wait()
            self.gate.open()

    def takes_at_once(self, event: Event) -> bool:
        """Return True if `event` could be dispatched now, and nobody would have to wait before or after that."""
        return (
            not self.gate.has_queue
            and self._intake.is_idle
            and self._rounds.has_capacity(most_bytes(event))
            and not self.is_ending_streams
        )

    def _expect(self, size: int) -> None:
        """Count bytes that wait to be dispatched as those that wait to be written: publishers wait for both."""
        self._rounds.waiting_bytes += size
        self.gate.open()

    def dispatch(self, position: Position, entries: Sequence[Entry]) -> None:
        """Retain the next `entries` of the log for clients that reconnect, and give them to the next round."""
        if self.ticker.is_asleep:
            self.ticker.wake()
        history, rounds = self._history, self._rounds
        has_listeners = bool(self.index.all) or rounds.is_under_way
        now, log_now = self._monotonic(), self._log_now() * 1000
        for at, event in entries:
            if not isinstance(event, Event):
                if has_listeners and not isinstance(event, TakeBack):
                    rounds.add(Ending(at, event))
                continue
            frame = Frame(at, event, now - max(0.0, log_now - at.milliseconds) / 1000)
            if event.store:
                history.add(frame)
            if has_listeners:
                rounds.add(frame)
        self.registry.head = position
        if not has_listeners and rounds.is_idle:
            self.registry.settled = position
        else:
            self._writing.begin(now, is_all=self._intake.is_idle)

    async def flush(self) -> None:
        """Return when everything delivered, and every event of a run, has been written to its subscribers."""
        # An event would have to be set at the end of every round.
        while not (self._intake.is_idle and self._rounds.is_idle and self.watchers.is_idle):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    # Sinks

    def sink_paused(self, subscriber: Subscriber) -> None:
        self.ticker.wake()
        self.backlogs.pause(subscriber, self._monotonic())
        if isinstance(subscriber, Watcher):
            self.watchers.pause(subscriber)

    def sink_resumed(self, subscriber: Subscriber) -> None:
        """Write what was held for `subscriber`, or is to be replayed to it, as far as its client reads that, too."""
        if subscriber.state is LAGGING:
            self._writing.write_held(subscriber)
        # After that, because what was held may have paused the sink again, and its client has read all the same.
        self.backlogs.resume(subscriber, self._monotonic())
        self.backlogs.settle(subscriber)
        if subscriber.state is REPLAYING:
            self._replays.advance(subscriber)
        elif isinstance(subscriber, Watcher):
            self.watchers.resume(subscriber)

    def detach(self, subscriber: Subscriber) -> None:
        """End a stream whose client has disconnected."""
        self.registry.end(subscriber, CloseReason.DISCONNECTED)

    # Subscribers

    async def search(self, claims: Claims, count: int) -> Position | None:
        """Return where the last `count` events begin, if `attach` would have to search all of history for that."""
        return await self._replays.search(self.head, claims, count)

    async def foresee(self, claims: Claims, start: Start) -> Prospect:
        """Return what a stream that is attached now would begin with."""
        sent, reset = beginning(self._history, self.head, claims, start, self._monotonic())
        return Prospect(await self._replays.count(claims, sent), reset)

    def attach(
        self,
        claims: Claims,
        sink: Sink,
        start: Start,
        address: str | None = None,
        *,
        uses_datastar: bool = False,
        origin: Origin | None = None,
    ) -> Subscriber:
        """Register a stream, and write its first frame and what it has missed. When it ends, `sink` is closed.

        Limits apply to streams with an `address`. Raises StreamRefused.
        """
        self.registry.admit(claims, address)
        self.ticker.wake()
        now = self._monotonic()
        sent, reset = beginning(self._history, self.head, claims, start, now)
        subscriber = Subscriber(claims, sink, self.head, sent, uses_datastar=uses_datastar, origin=origin)
        sink.owner = _SinkOwner(self, subscriber)
        self.registry.add(subscriber, now, self._wall(), address)
        # An id before the reset would let a client that is disconnected between the two come back without a reset.
        position = sent if reset is None else None
        retry = self._retry_milliseconds(start.cursor)
        self.registry.send_frame(subscriber, hello(position, retry), position)
        if reset is not None:
            self.registry.send_reset(subscriber, reset)
        if subscriber.state is REPLAYING:
            self._replays.add(subscriber)
        return subscriber

    def watch(
        self,
        name: str,
        claims: Claims,
        sink: Sink,
        cursor: str | None = None,
        address: str | None = None,
        *,
        dialect: Dialect = Dialect.EVENTS,
        uses_datastar: bool = False,
        origin: Origin | None = None,
    ) -> Subscriber:
        """Register a stream of the run `name`, which `finder.find` has returned, and write its first frame.

        It begins behind `cursor`. Raises what `attach` raises; UnknownRun if the run is not there any more; TokenError
        if the token has expired, as it may while its client waits for the run.
        """
        if claims.expires_at is not None and claims.expires_at <= self._wall():
            raise TokenError("the token has expired", TokenReason.EXPIRED)
        feed = self.finder.require(name, claims)
        self.registry.admit(claims, address, watches=True)
        self.ticker.wake()
        sent, reset = feed.beginning(None if dialect is Dialect.AI_SDK else cursor)
        watcher = Watcher(claims, sink, self.head, feed, sent, dialect, uses_datastar=uses_datastar, origin=origin)
        sink.owner = _SinkOwner(self, watcher)
        self.registry.add(watcher, self._monotonic(), self._wall(), address)
        self.watchers.begin(watcher, reset, self._retry_milliseconds(cursor))
        return watcher

    def _retry_milliseconds(self, cursor: str | None) -> int | None:
        retry = self._streams.retry_milliseconds
        return RETURN_MILLISECONDS if retry is None and cursor is not None else retry

    def move(self, subscriber: Subscriber, sink: Sink, unsent: Iterable[Chunk]) -> None:
        """Write to `sink` from now on, first what the old sink had not sent."""
        old = subscriber.sink
        was_paused, sink.owner, old.owner = old.is_paused, old.owner, None
        subscriber.sink = sink
        for chunk in unsent:
            sink.write(chunk)
        if was_paused and not sink.is_paused:
            self.sink_resumed(subscriber)

    # The end

    async def drain(self, window_seconds: float) -> None:
        """Write what waits, then end every stream with `stream-drain`, spread over three quarters of the window."""
        # A quarter of the window is for clients to read what waits. The streams are ended until three quarters of it
        # have passed; the last quarter is for the server to send what it still holds and to close the connections.
        began = self._monotonic()
        self.registry.drain_until = began + window_seconds
        self.finder.refuse_waiting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(window_seconds / 4):
                await self.flush()
        self.is_ending_streams = True
        with contextlib.suppress(TimeoutError):  # what was published until now: there was no end to it if it timed out
            async with asyncio.timeout(window_seconds / 4):
                await self.flush()
        await self._draining.spread(began, began + window_seconds * 3 / 4)

    async def stop(self) -> None:
        """End every stream at once, and the ticker."""
        self.ticker.stop()
        self.finder.stop()
        await self._draining.at_once()


class _SinkOwner:
    """Owns the sink of one subscriber, and passes on to the engine what the sink reports."""

    __slots__ = ("_engine", "_subscriber")

    def __init__(self, engine: Engine, subscriber: Subscriber) -> None:
        self._engine = engine
        self._subscriber = subscriber

    def sink_paused(self) -> None:
        self._engine.sink_paused(self._subscriber)

    def sink_resumed(self) -> None:
        self._engine.sink_resumed(self._subscriber)

    def sink_lost(self) -> None:
        self._engine.detach(self._subscriber)
