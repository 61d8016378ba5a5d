"""The hub: the public face of the fan-out. Applications publish to it and subscribe from it; servers attach streams.

A hub runs in one event loop, from `async with` or its first use until it is closed. The work is done by the engine
(`fanout/engine.py`), which exists from when the broker begins to deliver the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from .brokers import create_broker
from .brokers.base import Broker
from .brokers.memory import MemoryBroker
from .claims import Claims
from .companions import Companion
from .errors import (
    HubClosed,
    InvalidRequest,
    TokenReason,
    WrongEventLoop,
)
from .fanout.comebacks import OpeningRate, Turns
from .fanout.engine import Engine
from .fanout.listing import Listing
from .fanout.origin import Origin
from .fanout.refusals import ConnectionRefusal, ControlRefusal, Refusal
from .fanout.resume import NOW, Prospect, Start
from .fanout.sinks import Chunk, Sink
from .fanout.statistics import Statistics
from .fanout.subscriber import Subscriber
from .fanout.tracing import Tracer
from .fields import one_or_many
from .lifespan import Lifespan
from .loglimit import limited_logger
from .memory import MemoryMeter
from .position import Position
from .run_production import RunProduction
from .run_streams import RunStreams
from .runs.announcements import Announcements
from .runs.model import check_run_name
from .runs.producers import Producers
from .runs.producing import Producing
from .runs.runs import Runs
from .settings import Backpressure, Memory, Retention, StreamLimits, Streams, takes_settings
from .subscription import Attach, Subscription

logger = limited_logger("ssehub.hub")

PRODUCERS_SECONDS = 5.0
"""How long a hub that is being closed waits for the producers of runs, after they were interrupted."""
FLUSH_SECONDS = 1.0
"""How long a hub that is being closed goes on writing what was published before."""


class Hub(RunStreams, RunProduction):
    """Fans out events to the streams of this process, in one event loop: inside `async with`, or from its first use.

    Its first use is there: `publish_sync`, which is for other threads, does not start it.

    `broker` carries and stores the events; without one, they live in the memory of this process. A URL, such as
    `sqlite:///events.db`, stands for `brokers.create_broker(url, retention=retention)`. The settings are described in
    `ssehub.settings`. `leeway_seconds` is how far the clocks of machines that sign tokens may differ from that of the
    log, by which tokens are revoked. `now` gives Unix time and `monotonic` a monotonic clock, in seconds.
    """

    @takes_settings
    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        retention: Retention = Retention(),
        backpressure: Backpressure = Backpressure(),
        streams: Streams = Streams(),
        memory: Memory = Memory(),
        stream_limits: StreamLimits = StreamLimits(),
        leeway_seconds: float = 5,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(broker, str):
            broker = create_broker(broker, retention=retention)
        opening_rate = OpeningRate(monotonic, stream_limits.max_new_streams_per_second)
        super().__init__(
            broker or MemoryBroker(now=now, monotonic=monotonic),
            streams,
            stream_limits,
            leeway_seconds,
            Turns(opening_rate, monotonic),
        )
        self._statistics.set_limits(streams, retention, backpressure, self.broker.runs.limits)
        self._announcements = Announcements(self.publish_events)
        self.runs = Runs(self.broker.runs, self.start, self._announcements.add, lambda: self.is_draining)
        """The streams with an end."""
        self.tracer = Tracer(now)
        """The traces of streams that somebody follows."""
        self._build = partial(
            Engine,
            retention=retention,
            backpressure=backpressure,
            streams=streams,
            stream_limits=stream_limits,
            statistics=self._statistics,
            wall=now,
            log_now=self.broker.now,
            monotonic=monotonic,
            opening_rate=opening_rate,
            revocations=self.broker.revocations,
            meter=MemoryMeter.for_limit(memory.max_memory_bytes),
            runs=self.runs,
            spawn=self.spawn,
            tracer=self.tracer,
        )
        self.control_responses: defaultdict[int, int] = defaultdict(int)
        """How often the control app has responded, by status. It counts that itself."""
        self.producers = Producers()
        """Who appends to runs here."""
        self.pipes = Producers()
        """Who publishes here by a pipe."""
        self._producing = Producing(
            self.runs, self.start, self.spawn, lambda: self._is_closed or self.is_draining, monotonic
        )
        self._companions: list[Companion] = [self._announcements]
        self._lifespan: Lifespan | None = None
        self._entered = 0
        self._is_closed = False
        self._closing: set[asyncio.Task[None]] = set()

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
        """Start in the running event loop, if the hub does not run there yet. Its first use does this by itself.

        Raises BrokerUnavailable; HubClosed after `aclose`; WrongEventLoop if the hub runs in another event loop.
        """
        loop = asyncio.get_running_loop()
        lifespan = self._lifespan
        if lifespan is None or lifespan.loop.is_closed():
            if self._is_closed:
                raise HubClosed("the hub has been closed: reopen it with `async with hub`")
            lifespan = self._lifespan = Lifespan(self.broker, self._follow)
        if lifespan.is_started and lifespan.loop is loop:
            return
        if lifespan.loop is not loop:
            raise WrongEventLoop("the hub runs in another event loop: call publish_sync, or use another hub")
        try:
            await lifespan.session.started()
        except asyncio.CancelledError:
            raise  # it goes on starting, for the next caller
        except BaseException:
            if self._lifespan is lifespan and not lifespan.is_started:
                self._lifespan = None
                if lifespan.engine is not None:  # the log had been followed before the start failed
                    await lifespan.engine.stop()
            raise
        if not lifespan.is_started:
            lifespan.is_started = True
            for companion in self._companions:
                lifespan.session.spawn(companion.run())

    async def aclose(self) -> None:
        """End every stream, and the hub. Raises WrongEventLoop if it runs in another event loop.

        Runs that are produced here end first, as `failed`, with the error `shutdown`, so that watchers are told; their
        producers are interrupted by HubClosed. In memory, runs are lost with the process.

        If this is cancelled, the hub goes on closing. That is also so if a producer closes its own hub: it is
        interrupted here.
        """
        lifespan = self._lifespan
        if lifespan is not None and lifespan.loop is not asyncio.get_running_loop():
            if not lifespan.loop.is_closed():
                raise WrongEventLoop("the hub runs in another event loop: close it there")
            lifespan = self._lifespan = None  # everything of the hub ended with that loop
        self._is_closed = True
        if lifespan is not None:
            closing = asyncio.create_task(self._close(lifespan))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def _close(self, lifespan: Lifespan) -> None:
        await self._producing.shut_down(PRODUCERS_SECONDS)
        if lifespan.engine is not None:
            lifespan.engine.is_ending_streams = True
        for producers in (self.producers, self.pipes):
            if len(producers):
                await producers.drain(0.0)
        if lifespan.is_started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.flush()
        if lifespan.engine is not None:
            await lifespan.engine.stop()
            lifespan.engine.measure()
        self.tracer.end()
        self._lifespan = None
        await lifespan.session.stop()
        self._announcements.clear()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task that is cancelled when the hub closes. Raises HubClosed."""
        self._running().session.spawn(work)

    def accompany(self, companion: Companion) -> None:
        """Let `companion` run whenever the hub does, once in each of its lifespans, however often this is called."""
        if companion not in self._companions:
            self._companions.append(companion)
            if self._lifespan is not None and self._lifespan.is_started:
                self._lifespan.session.spawn(companion.run())

    def not_ready(self) -> list[str]:
        """Return why new streams and events should be sent elsewhere; an empty list if they are welcome."""
        reasons = []
        if self._is_closed:
            reasons.append("the hub has been closed")
        if self.is_draining:
            reasons.append("the hub is draining and about to stop")
        if self.broker.problem is not None:
            reasons.append(self.broker.problem)
        return reasons + [companion.problem for companion in self._companions if companion.problem is not None]

    @property
    def statistics(self) -> Statistics:
        """The hub's totals and current values. Reading them is cheap."""
        if self._engine is not None:
            self._engine.measure()
        self._statistics.broker_ready = self.broker.problem is None
        self._statistics.log_skipped_entries = self.broker.skipped
        self._statistics.revocations = len(self.broker.revocations)
        runs = self.runs.totals()
        self._statistics.runs = {state.value: count for state, count in runs.states.items()}
        self._statistics.run_bytes = runs.bytes
        self._statistics.run_producers = len(self.producers)
        self._statistics.pipes = len(self.pipes)
        self._statistics.control_responses = {str(status): count for status, count in self.control_responses.items()}
        self._statistics.clock_skew_seconds = self.broker.clock_skew_seconds
        for companion in self._companions:
            companion.measure(self._statistics)
        return self._statistics

    def _follow(self, base: Position) -> Engine:
        """Build the engine, and start its ticker, when the broker begins to deliver the log."""
        engine = self._build(base)
        engine.ticker.start()
        return engine

    @property
    def _lifespan_here(self) -> Lifespan | None:
        lifespan = self._lifespan
        if lifespan is None or not lifespan.is_started or lifespan.loop is not asyncio.get_running_loop():
            return None
        return lifespan

    async def _start_here(self) -> Lifespan:
        await self.start()
        return self._running()

    def _running(self) -> Lifespan:
        if self._lifespan is None or not self._lifespan.is_started:
            raise HubClosed("the hub is not running: use it inside `async with hub`, or await hub.start()")
        return self._lifespan

    @property
    def _engine(self) -> Engine | None:
        return self._lifespan.engine if self._lifespan is not None else None

    async def flush(self) -> None:
        """Return when everything published here so far has been written to its subscribers."""
        if self._engine is not None:
            await self._engine.flush()

    async def drain(self, window_seconds: float) -> None:
        """Write what waits, then end every stream with `stream-drain`, spread over three quarters of the window.

        Producers of runs that append over HTTP, and pipes of publishers, are ended over the first half of it. Before
        the streams end, the runs that are produced here end as `failed`, with the error `shutdown`: see `aclose`. Those
        whose producers do not end keep the streams waiting for at most a quarter of the window.

        When the first stream ends, nothing more can be published if the log ends with this process: a client that has
        left could not get it any more.
        """
        if self._lifespan is not None:
            self._lifespan.is_draining = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.producers.drain(window_seconds / 2))
                group.create_task(self.pipes.drain(window_seconds / 2))
                began = time.monotonic()
                await self._producing.shut_down(window_seconds / 4)
                if self._engine is not None:
                    await self._engine.drain(window_seconds - (time.monotonic() - began))
        finally:
            self.tracer.end()

    # Streams

    def subscribe(
        self,
        *,
        run: str | None = None,
        channel: str | Sequence[str] | None = None,
        patterns: str | Sequence[str] = (),
        user_id: str,
        expires_at: float | None = None,
        cursor: str | None = None,
        since: str | None = None,
        wait_seconds: float | None = None,
    ) -> Subscription:
        """Return a stream for Python code: `async with hub.subscribe(…) as messages`.

        It shows what a browser with these channels and patterns, such as `orders.*`, would be shown. `expires_at` is
        Unix time. `cursor` is the id of the last message that was seen; `since` is `earliest`, `last:10` or a position.
        Raises InvalidRequest.

        With `run` it shows that run, from its first event or behind `cursor`, and ends with it. Entering raises
        UnknownRun if these channels and patterns do not grant it, or if there is none, after `wait_seconds` if given.
        """
        claims = self._claims(user_id, channel, patterns, expires_at)
        if run is not None:
            if since is not None:
                raise InvalidRequest("since can't be given together with run: a run is shown from its first event")
            check_run_name(run)
            start = Start.parse(cursor)
            return Subscription(partial(self._prepare_run, run, claims, start.cursor, wait_seconds), self.detach)
        if wait_seconds is not None:
            raise InvalidRequest("wait_seconds is how long to wait for a run: give run, too, or leave it out")
        return Subscription(partial(self._prepare, claims, Start.parse(cursor, since)), self.detach)

    def _claims(
        self,
        user_id: str,
        channel: str | Sequence[str] | None,
        patterns: str | Sequence[str],
        expires_at: float | None,
    ) -> Claims:
        """Return the claims of a stream for Python code. Raises InvalidRequest."""
        channels = () if channel is None else one_or_many(channel)
        patterns = one_or_many(patterns)
        if not channels and not patterns:
            raise InvalidRequest("a stream needs a channel or a pattern: give channel='chat', or patterns=['orders.*']")
        claims = Claims(user_id, channels, expires_at, patterns=patterns)
        self.check_patterns(patterns)
        return claims

    async def _prepare(self, claims: Claims, start: Start) -> Attach:
        """Return what attaches a stream for Python code."""
        await self.start()
        return partial(self._attach_at, claims, await self.prepare(claims, start))

    def _attach_at(self, claims: Claims, start: Start, sink: Sink) -> Subscriber:
        return self.attach(claims, sink, start)

    @property
    def listing(self) -> Listing | None:
        """What describes the open streams, for `GET /streams/`; None if there can't be any yet."""
        return self._engine.listing if self._engine is not None else None

    @property
    def is_draining(self) -> bool:
        """True since `drain` was called."""
        return self._lifespan is not None and self._lifespan.is_draining

    async def foresee(self, claims: Claims, start: Start) -> Prospect:
        """Return what a stream with these `claims` would begin with. Raises what `attach` raises, but for limits."""
        start = await self.prepare(claims, start)
        return await self._following().foresee(claims, start)

    async def prepare(self, claims: Claims, start: Start) -> Start:
        """Wait until a stream with these `claims` can begin at `start`; return the start that `attach` is to be given.

        A client that comes from another node may be ahead of this one: then this waits until the hub has read the log
        up to its cursor, or to the log's end, but at most 2 s. If `since=last:N` takes a search of history, it is done
        here, part by part. `attach` would do it in one pass of the event loop: 0.2 s for a million events.
        """
        lifespan = self._lifespan
        if lifespan is None or not self.must_wait(start):
            return start
        await lifespan.reach(start.cursor)
        if start.last is None or self._engine is None:
            return start
        return replace(start, last_after=await self._engine.search(claims, start.last))

    def must_wait(self, start: Start) -> bool:
        """True if `prepare` has something to do for a stream that begins at `start`."""
        lifespan = self._lifespan
        if lifespan is None:
            return False
        return start.last is not None or (start.cursor is not None and not lifespan.has_reached(start.cursor))

    def count_refusal(self, reason: Refusal | TokenReason | ControlRefusal) -> None:
        """Count a request that an app has refused."""
        if isinstance(reason, TokenReason):
            self._statistics.refused_tokens[reason] += 1
        elif isinstance(reason, ControlRefusal):
            self._statistics.refused_control[reason] += 1
        else:
            self._statistics.refused[reason] += 1

    def count_refused_connection(self, port: str, reason: ConnectionRefusal) -> None:
        """Count a connection that the server of `port`, `client` or `control`, has ended or not passed to its app."""
        self._statistics.refused_connections[port][reason] += 1

    def count_appended(self, events: int) -> None:
        """Count events that were appended to a run."""
        self._statistics.run_events += events

    def count_refused_append(self, reason: str) -> None:
        """Count an append that was refused, for a reason in `ssehub.errors.ConflictReason` or `AppendRefusal`."""
        self._statistics.refused_appends[reason] += 1

    def count_logout(self, result: str) -> None:
        """Count a back-channel logout, with one of the results in `ssehub.fanout.statistics.Logout`."""
        self._statistics.logouts[result] += 1

    def attach(
        self,
        claims: Claims,
        sink: Sink,
        start: Start = NOW,
        address: str | None = None,
        *,
        uses_datastar: bool = False,
        origin: Origin | None = None,
    ) -> Subscriber:
        """Open a stream that writes to `sink`, for a server's response; the hub closes `sink` when the stream ends.

        It receives everything that `claims` grant, from `start` on. Raises HubClosed, BrokerUnavailable if the log is
        not being read yet, and what `require_access` raises. The limits on streams apply if there is an `address`,
        which stands for the client; then this also raises StreamRefused. With `uses_datastar` a reset is also sent in
        the way that Datastar applies by itself. `origin` is where the client is, for log lines.
        """
        engine = self._following()
        self.require_access(claims)
        return engine.attach(claims, sink, start, address, uses_datastar=uses_datastar, origin=origin)

    def reattach(self, subscriber: Subscriber, sink: Sink, unsent: Iterable[Chunk]) -> None:
        """Let the stream write to another `sink` from now on, first the chunks that the old one had not sent."""
        if subscriber.reason is not None:
            for chunk in unsent:
                sink.write(chunk)
            if self._engine is not None:
                self._engine.registry.close(subscriber, sink, subscriber.reason)
            else:
                sink.close()
        elif self._engine is not None:
            self._engine.move(subscriber, sink, unsent)

    def detach(self, subscriber: Subscriber) -> None:
        """End a stream whose client has disconnected. A stream that has ended already is left alone."""
        if self._engine is not None:
            self._engine.detach(subscriber)
