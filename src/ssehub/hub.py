"""The hub: the public face of the fan-out. Applications publish to it and subscribe from it; servers attach streams.

A hub runs in one event loop, from `async with` or its first use until it is closed. The work is done by the engine
(`fanout/engine.py`), which exists from when the broker begins to deliver the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from types import TracebackType
from typing import Self

from .brokers.base import Broker, Entry
from .brokers.memory import MemoryBroker
from .brokers.session import Session
from .claims import Claims
from .errors import BrokerUnavailable, ConfigError, HubClosed, InvalidEvent, WrongEventLoop
from .event import Event
from .fanout.comebacks import Comeback, OpeningRate, Turns
from .fanout.engine import Engine
from .fanout.limits import OF_ONE_CLIENT
from .fanout.registry import RESTART_SECONDS
from .fanout.resume import NOW, Start
from .fanout.sinks import CUT_SECONDS, Chunk, Sink
from .fanout.statistics import Statistics
from .fanout.subscriber import Subscriber
from .fields import json_text, one_or_many
from .memory import MemoryMeter
from .position import Position
from .publication import Disconnect, IdempotencyKey, Publication
from .settings import Backpressure, Memory, Retention, StreamLimits, Streams
from .subscription import Subscription

FLUSH_SECONDS = 1.0
"""How long a hub that is being closed goes on writing what was published before."""
REFUSED_MILLISECONDS = 5_000
"""Clients that were refused at the same moment reconnect over at least this time."""
REACH_SECONDS = 2.0
"""How long a client whose cursor is ahead of this hub waits for the hub to catch up."""


class Hub:
    """Fans out events to the streams of this process, in one event loop: inside `async with`, or from its first use.

    `broker` carries and stores the events; without one, they live in the memory of this process. The settings are
    described in `ssehub.settings`. `now` gives Unix time and `monotonic` a monotonic clock, both in seconds.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        retention: Retention = Retention(),
        backpressure: Backpressure = Backpressure(),
        streams: Streams = Streams(),
        memory: Memory = Memory(),
        stream_limits: StreamLimits = StreamLimits(),
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(broker, str):
            raise ConfigError(f"Hub takes a broker, not a URL: use Hub(ssehub.brokers.create_broker({broker!r}))")
        self.broker: Broker = broker or MemoryBroker(now=now)
        self._max_connections = streams.max_connections
        self.limits_streams = stream_limits.has_any
        """True if streams that are attached with an address may be refused because of how many there are."""
        self._statistics = Statistics()
        opening_rate = OpeningRate(monotonic, stream_limits.max_new_streams_per_second)
        self._turns = Turns(opening_rate, monotonic)
        """When the clients come back that were refused. Those whose streams ended do not wait behind them."""
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
            meter=MemoryMeter.for_limit(memory.max_memory_bytes),
        )
        self._run: _Run | None = None
        self._entered = 0
        self._is_closed = False

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
        run = self._run
        if run is None or run.loop.is_closed():
            if self._is_closed:
                raise HubClosed("the hub has been closed: reopen it with `async with hub`")
            run = self._run = _Run(self.broker, self._follow)
        if run.is_started and run.loop is loop:
            return
        if run.loop is not loop:
            raise WrongEventLoop("the hub runs in another event loop: call publish_sync, or use another hub")
        try:
            await run.session.started()
        except asyncio.CancelledError:
            raise  # it goes on starting, for the next caller
        except BaseException:
            if self._run is run and not run.is_started:
                self._run = None
                if run.engine is not None:  # the log had been followed before the start failed
                    await run.engine.stop()
            raise
        run.is_started = True

    async def aclose(self) -> None:
        """End every stream, and the hub. Raises WrongEventLoop if it runs in another event loop."""
        run = self._run
        if run is not None and run.loop is not asyncio.get_running_loop():
            if not run.loop.is_closed():
                raise WrongEventLoop("the hub runs in another event loop: close it there")
            run = self._run = None  # everything of the hub ended with that loop
        self._is_closed = True
        if run is None:
            return
        if run.engine is not None:
            run.engine.is_ending_streams = True
        if run.is_started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.flush()
        if run.engine is not None:
            await run.engine.stop()
            run.engine.measure()
        self._run = None
        await run.session.stop()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task that is cancelled when the hub closes. Raises HubClosed."""
        self._running().session.spawn(work)

    def not_ready(self) -> list[str]:
        """Return why new streams and events should be sent elsewhere; an empty list if they are welcome."""
        reasons = []
        if self._is_closed:
            reasons.append("the hub has been closed")
        if self.is_draining:
            reasons.append("the hub is draining and about to stop")
        if self.broker.problem is not None:
            reasons.append(self.broker.problem)
        return reasons

    @property
    def statistics(self) -> Statistics:
        """The hub's totals and current values. Reading them is cheap."""
        if self._engine is not None:
            self._engine.measure()
        self._statistics.broker_ready = self.broker.problem is None
        self._statistics.log_skipped_entries = self.broker.skipped
        self._statistics.clock_skew_seconds = self.broker.clock_skew_seconds
        return self._statistics

    def _follow(self, base: Position) -> Engine:
        """Build the engine, and start its ticker, when the broker begins to deliver the log."""
        engine = self._build(base)
        engine.ticker.start()
        return engine

    def _running(self) -> _Run:
        if self._run is None or not self._run.is_started:
            raise HubClosed("the hub is not running: use it inside `async with hub`, or await hub.start()")
        return self._run

    @property
    def _engine(self) -> Engine | None:
        return self._run.engine if self._run is not None else None

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
        """Publish one event; return its position once the broker has stored it.

        `data` that is not a string is written as JSON; `retry` is in milliseconds. With `store` False the event is only
        for clients that are connected now; after `ttl` seconds it is no longer replayed. Publishing again with the same
        `idempotency_key` returns the first position and stores nothing.

        Raises InvalidEvent for an event that cannot be sent; IdempotencyConflict if the key was used for another event;
        Overloaded or HubClosed if nothing was stored; BrokerUnavailable if that is not known.
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
        """Do what `publish` does from any other thread. In the hub's own thread this raises WrongEventLoop.

        Raises BrokerUnavailable after `timeout_seconds`; then the event may or may not be stored.
        """
        loop = self._running().loop
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
            raise HubClosed("the event loop that the hub ran in has ended: await hub.start() in the new one") from exc
        try:
            return waiting.result(timeout_seconds)
        except CancelledError:
            raise BrokerUnavailable("the event loop has ended: the event may or may not be stored") from None
        except TimeoutError:
            waiting.cancel()
            raise BrokerUnavailable(f"no answer in {timeout_seconds:g} s: the event may or may not be stored") from None

    async def publish_events(self, events: Sequence[Event]) -> list[str]:
        """Publish `events`, all or none, and return their positions. Raises what `publish` raises."""
        # Anything else among them would only be noticed by the log, in one commit with the events of others.
        if isinstance(events, Event) or not all([isinstance(event, Event) for event in events]):
            raise InvalidEvent("publish_events takes a list of ssehub.Event: publish takes the fields of one event")
        return await self.publish_all([Publication(events)])

    async def publish_all(self, publications: Sequence[Publication]) -> list[str]:
        """Publish events of which some have idempotency keys, all or none; see `publish_events`."""
        run = self._run
        if run is None or not run.is_started or run.loop is not asyncio.get_running_loop():
            await self.start()
            run = self._running()
        engine = run.engine
        if engine is None:
            positions = await self.broker.publish(publications)
        else:
            gate = engine.gate
            if gate.laggards or gate.held_up:
                await gate.wait_for_readers(_channels(publications))
            await gate.enter()
            try:
                if engine.is_ending_streams and not self.broker.outlives_process:
                    raise HubClosed("the hub is about to stop, and its log ends with it; nothing was stored")
                positions = await self.broker.publish(publications)
            finally:
                gate.open()
        self._statistics.published += len(positions)
        return positions

    async def disconnect(
        self, *, user_id: str | Sequence[str] = (), channel: str | Sequence[str] = (), retry: int | None = None
    ) -> str:
        """End the open streams of these users, on these channels, or both, in this process and every other.

        Each ends after everything published before, with `stream-revoked`. Browsers come back after `retry`
        milliseconds, and are served if their token is still valid. Returns the position; raises what `publish` raises.
        """
        given = {} if retry is None else {"retry": retry}
        command = Disconnect(one_or_many(user_id), one_or_many(channel), **given)
        return (await self.publish_all([Publication([command])]))[0]

    async def flush(self) -> None:
        """Return when everything published here so far has been written to its subscribers."""
        if self._engine is not None:
            await self._engine.flush()

    async def drain(self, window_seconds: float) -> None:
        """Write what waits, then end every stream with `stream-drain`, spread over three quarters of the window.

        When the first stream ends, nothing more can be published if the log ends with this process: a client that has
        left could not get it any more.
        """
        if self._run is not None:
            self._run.is_draining = True
        if self._engine is not None:
            await self._engine.drain(window_seconds)

    # Streams

    def subscribe(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str,
        expires_at: float | None = None,
        cursor: str | None = None,
        since: str | None = None,
    ) -> Subscription:
        """Return a stream for Python code: `async with hub.subscribe(…) as messages`.

        It shows what a browser with these channels would be shown. `expires_at` is Unix time. `cursor` is the id of the
        last message that was seen; `since` is `earliest`, `last:10` or a position. Raises InvalidRequest.
        """
        claims, start = Claims(user_id, one_or_many(channel), expires_at), Start.parse(cursor, since)
        return Subscription(partial(self._prepare, start), partial(self.attach, claims, start=start), self.detach)

    async def _prepare(self, start: Start) -> None:
        await self.start()
        await self.reach(start.cursor)

    @property
    def is_following(self) -> bool:
        """True if the log is being read. A hub that waits for its broker takes no streams yet."""
        return self._engine is not None

    @property
    def is_full(self) -> bool:
        """True if there are as many streams as `max_connections` allows, or memory is short."""
        engine = self._engine
        if engine is None:
            return False
        has_most = self._max_connections is not None and len(engine) >= self._max_connections
        return has_most or engine.pressure.is_short

    @property
    def is_short_of_memory(self) -> bool:
        """True if the process uses more than `max_memory_bytes`, or has until a few seconds ago."""
        return self._engine is not None and self._engine.pressure.is_short

    @property
    def is_draining(self) -> bool:
        """True since `drain` was called."""
        return self._run is not None and self._run.is_draining

    def comeback(self, reason: str) -> Comeback:
        """Return how a client that is refused for `reason`, one of `ssehub.fanout.limits.Refusal`, should reconnect."""
        registry = self._engine.registry if self._engine is not None else None
        earliest = RESTART_SECONDS if registry is None else registry.restart_seconds
        turn = int(earliest * 1000) if reason in OF_ONE_CLIENT else self._turns.milliseconds(earliest)
        retry = turn + random.randrange(REFUSED_MILLISECONDS)
        if registry is None:
            return Comeback(retry, CUT_SECONDS, None)
        return Comeback(retry, registry.cut_seconds, registry.head)

    async def reach(self, cursor: str | None) -> None:
        """Wait until this hub has read the log up to `cursor`, or to its end, but at most 2 s.

        A client that comes from another node may be ahead of this one.
        """
        position, engine = Position.parse(cursor or ""), self._engine
        if position is None or engine is None or _has_reached(engine, position):
            return
        with contextlib.suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(REACH_SECONDS):
                end = Position.parse(await self.broker.head() or "")
                if end is None or end.log != position.log:
                    return
                while not _has_reached(engine, min(end, position)):  # noqa: ASYNC110  # dispatch is the hot path
                    await asyncio.sleep(0.005)

    def count_refusal(self, reason: str) -> None:
        """Count a stream or a request that was refused. The reasons are those of `ssehub.fanout.limits.Refusal`."""
        self._statistics.refused[reason] += 1

    def attach(
        self,
        claims: Claims,
        sink: Sink,
        start: Start = NOW,
        address: str | None = None,
        *,
        uses_datastar: bool = False,
    ) -> Subscriber:
        """Open a stream that writes to `sink`, for a server's response; the hub closes `sink` when the stream ends.

        It receives everything that `claims` grant, from `start` on. Raises HubClosed, and BrokerUnavailable if the log
        is not being read yet. The limits on streams apply if there is an `address`, which stands for the client; then
        this also raises StreamRefused. With `uses_datastar` a reset is also sent in the way that Datastar applies by
        itself.
        """
        engine = self._running().engine
        if engine is None:
            raise BrokerUnavailable(self.broker.problem or "the log has not been read yet")
        return engine.attach(claims, sink, start, address, uses_datastar=uses_datastar)

    def reattach(self, subscriber: Subscriber, sink: Sink, unsent: Iterable[Chunk]) -> None:
        """Let the stream write to another `sink` from now on, first the chunks that the old one had not sent."""
        if subscriber.reason is not None:
            for chunk in unsent:
                sink.write(chunk)
            if self._engine is not None:
                self._engine.registry.close(sink, subscriber.reason)
            else:
                sink.close()
        elif self._engine is not None:
            self._engine.move(subscriber, sink, unsent)

    def detach(self, subscriber: Subscriber) -> None:
        """End a stream whose client has disconnected. A stream that has ended already is left alone."""
        if self._engine is not None:
            self._engine.detach(subscriber)


def _channels(publications: Sequence[Publication]) -> set[str]:
    """Return the channels of all events. A command is carried out whatever its channel's clients read."""
    return {
        name
        for publication in publications
        for event in publication.events
        if isinstance(event, Event)
        for name in event.channels
    }


def _has_reached(engine: Engine, position: Position) -> bool:
    return engine.head.log == position.log and engine.head >= position


class _Run:
    """One run of a hub in one event loop: the broker's session, and the engine as soon as the log is followed."""

    def __init__(self, broker: Broker, follow: Callable[[Position], Engine]) -> None:
        self.loop = asyncio.get_running_loop()
        self.engine: Engine | None = None
        self.is_started = False
        self.is_draining = False
        self._follow = follow
        self.session = Session(broker, self)

    async def begin(self, base: Position) -> None:
        if self.engine is None:
            self.engine = self._follow(base)
        else:
            await self.engine.start_over(base)

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        if self.engine is None:
            raise RuntimeError("the broker must call begin before deliver")
        await self.engine.deliver(position, entries)
