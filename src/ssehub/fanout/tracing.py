"""Traces: what happens to streams, for people who look for the reason why a client hears nothing.

Nobody traces most of the time. Then a trace costs a look at `Tracer.is_watched` when a stream opens, is reset or ends,
and nothing at all when an event is delivered: deliveries are found once a second, from the counts that each stream
keeps, and only while there is a reader who takes them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

from ..errors import Overloaded
from ..grant import prefixes_of
from .origin import Origin
from .subscriber import State, Subscriber
from .wanted import Matching, Wanted

MAX_TRACES = 20
MAX_WAITING = 1_000
"""Most records that wait for the reader of a trace. Beyond that the oldest ones are dropped, and counted."""
MAX_EACH = 50
"""Most streams whose deliveries in one second are reported one by one. Those of more streams are added up."""
INTERVAL_SECONDS = 1.0


class Step(StrEnum):
    """What a record is about."""

    OPENED = "opened"
    REFUSED = "refused"
    REPLAYED = "replayed"
    RESET = "reset"
    DELIVERED = "delivered"
    ENDED = "ended"
    MISSED = "missed"


class Record(NamedTuple):
    """One step of a stream, or of several: `streams` is their number. There is never an event, nor its id, in it."""

    step: Step
    at: float
    """Unix time in seconds."""
    number: int | None = None
    """That of the stream, as in listings."""
    user_id: str | None = None
    channels: Sequence[str] = ()
    patterns: Sequence[str] = ()
    run: str | None = None
    origin: Origin | None = None
    reason: str | None = None
    """Why it was refused, reset or ended."""
    streams: int | None = None
    seconds: float | None = None
    events: int | None = None
    bytes: int | None = None
    records: int | None = None
    """How many records were dropped, because the reader was too slow."""


class Tracer:
    """The traces of one hub, and what they are told. `wall` gives Unix time in seconds."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self.is_watched = False
        """True if there is a trace. Otherwise nothing needs to be told."""
        self.walk: Callable[[Wanted], AsyncIterator[Subscriber]] | None = None
        """Walks through the open streams of the engine; None while there is none."""
        self.wall = wall
        self._traces: list[Trace] = []

    @property
    def is_full(self) -> bool:
        return len(self._traces) >= MAX_TRACES

    @contextmanager
    def watching(self, wanted: Wanted) -> Iterator[Trace]:
        """Trace the wanted streams inside the context. Raises Overloaded if there are too many traces already."""
        if self.is_full:
            raise Overloaded(f"there are {MAX_TRACES} traces already: end one of them first")
        trace = Trace(self, wanted)
        self._traces.append(trace)
        self.is_watched = True
        try:
            yield trace
        finally:
            self._traces.remove(trace)
            self.is_watched = bool(self._traces)

    def end(self) -> None:
        """End every trace, after what it has been told."""
        for trace in self._traces:
            trace.end()

    def opened(self, subscriber: Subscriber) -> None:
        for trace in self._of(subscriber):
            trace.count_from(subscriber)
            trace.tell(self._record(Step.OPENED, subscriber))

    def replayed(self, subscriber: Subscriber) -> None:
        """All that `subscriber` has been written so far was a replay, which is over."""
        for trace in self._of(subscriber):
            trace.count_from(subscriber)
            events, size = subscriber.events, subscriber.bytes
            trace.tell(self._record(Step.REPLAYED, subscriber)._replace(events=events, bytes=size))

    def reset(self, subscriber: Subscriber, reason: str) -> None:
        for trace in self._of(subscriber):
            trace.tell(self._record(Step.RESET, subscriber)._replace(reason=reason))

    def ended(self, subscriber: Subscriber, reason: str, seconds: float) -> None:
        """`subscriber` was open for so many `seconds`."""
        for trace in self._of(subscriber):
            trace.forget(subscriber)
            events, size = subscriber.events, subscriber.bytes
            record = self._record(Step.ENDED, subscriber)
            trace.tell(record._replace(reason=reason, seconds=seconds, events=events, bytes=size))

    def refused(
        self, reason: str, user_id: str | None, channels: Sequence[str], patterns: Sequence[str], origin: Origin
    ) -> None:
        """A client was refused. Before its token is verified, nobody knows who it is: then there is no user."""
        prefixes, record = prefixes_of(patterns), None
        for trace in self._traces:
            if trace.matching.matches(user_id, channels, prefixes, origin):
                record = record or Record(
                    Step.REFUSED, self.wall(), None, user_id, channels, patterns, None, origin, reason
                )
                trace.tell(record)

    def _of(self, subscriber: Subscriber) -> list[Trace]:
        """Return the traces that `subscriber` is wanted by."""
        return [
            trace
            for trace in self._traces
            if trace.matching.matches(subscriber.user_id, subscriber.channels, subscriber.prefixes, subscriber.origin)
        ]

    def _record(self, step: Step, subscriber: Subscriber) -> Record:
        return record_of(step, self.wall(), subscriber)


class Trace:
    """One reader's trace: the records that wait, and what has been counted of each stream so far."""

    def __init__(self, tracer: Tracer, wanted: Wanted) -> None:
        self.matching = Matching(wanted)
        self._wanted = wanted
        self._tracer = tracer
        self._waiting: deque[Record] = deque()
        self._missed = 0
        self._has_news = asyncio.Event()
        self._is_over = False
        self._counted: dict[int, tuple[int, int]] = {}
        """The events and bytes of each stream, by its number, that were counted before: they are not reported again."""

    def tell(self, record: Record) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(record)
        self._has_news.set()

    def count_from(self, subscriber: Subscriber) -> None:
        """Report only what `subscriber` is written from now on as delivered."""
        self._counted[subscriber.number] = subscriber.events, subscriber.bytes

    def forget(self, subscriber: Subscriber) -> None:
        self._counted.pop(subscriber.number, None)

    def end(self) -> None:
        self._is_over = True
        self._has_news.set()

    async def records(self) -> AsyncGenerator[Record, None]:
        """Yield the records until the trace is ended. While the reader takes none, deliveries are not looked for."""
        clock = asyncio.get_running_loop().time
        await self._count_deliveries()  # what there was before the trace is not reported
        due = clock() + INTERVAL_SECONDS
        while True:
            while self._waiting or self._missed:
                yield self._next()
            if self._is_over:
                return
            self._has_news.clear()
            try:
                async with asyncio.timeout_at(due):
                    await self._has_news.wait()
            except TimeoutError:
                for record in await self._count_deliveries():
                    self.tell(record)
                due = clock() + INTERVAL_SECONDS

    def _next(self) -> Record:
        if self._missed:
            missed, self._missed = self._missed, 0
            return Record(Step.MISSED, self._tracer.wall(), records=missed)
        return self._waiting.popleft()

    async def _count_deliveries(self) -> list[Record]:
        """Return what the wanted streams were written since the last time, and know it from now on."""
        walk = self._tracer.walk
        if walk is None:
            return []
        streams = events = size = 0
        records: list[Record] = []
        async for subscriber in walk(self._wanted):
            if subscriber.state is State.REPLAYING:  # that is reported when it is over
                continue
            now = subscriber.events, subscriber.bytes
            before = self._counted.get(subscriber.number, now)
            self._counted[subscriber.number] = now
            if now == before:
                continue
            streams += 1
            events += now[0] - before[0]
            size += now[1] - before[1]
            if streams <= MAX_EACH:
                record = record_of(Step.DELIVERED, self._tracer.wall(), subscriber)
                records.append(record._replace(events=now[0] - before[0], bytes=now[1] - before[1]))
        if streams > MAX_EACH:
            return [Record(Step.DELIVERED, self._tracer.wall(), streams=streams, events=events, bytes=size)]
        return records


def record_of(step: Step, at: float, subscriber: Subscriber) -> Record:
    return Record(
        step,
        at,
        subscriber.number,
        subscriber.user_id,
        subscriber.channels,
        subscriber.patterns,
        subscriber.run_name,
        subscriber.origin,
    )
