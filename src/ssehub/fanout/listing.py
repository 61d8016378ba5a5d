"""Listings: the open streams and their channels, as people who look after a hub ask for them.

A listing walks through a copy of the streams, for 5 ms in each turn of the event loop. It says of each stream what is
true when it comes to it. Streams cost nothing more as long as nobody asks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from ..pace import Pace
from .backlogs import Backlogs
from .index import Index
from .origin import Origin
from .registry import Registry
from .subscriber import State, Subscriber
from .wanted import Matching, Wanted, address_of

FEW = 1_000
"""Streams of a user or a channel are found by the index in up to so many steps, else by walking through all streams."""
PAGE_CHARACTERS = 2**20
"""A page ends when the names in it have so many characters: a stream may have a thousand channels."""
PART = 1_000
"""So many names of channels are compared before the loop may go on."""
MAX_GROUPS = 10_000
"""Most groups that are returned."""

_number = attrgetter("number")


class Group(StrEnum):
    """What streams can be counted by."""

    USER = "userId"
    ADDRESS = "address"
    CHANNEL = "channel"
    PATTERN = "pattern"
    CLIENT = "client"


class Stream(NamedTuple):
    """An open stream at one moment."""

    number: int
    user_id: str
    channels: Sequence[str]
    patterns: Sequence[str]
    run: str | None
    origin: Origin | None
    opened_at: float
    """Unix time in seconds."""
    last_id: str
    """The position up to which everything for it has been written."""
    events: int
    bytes: int
    backlog_bytes: int
    """What its connection has not accepted yet, and what is held for it."""
    state: str


class Page(NamedTuple):
    streams: list[Stream]
    has_more: bool


class Counted(NamedTuple):
    """The streams that have one `value` in common. It is None for the address and the client of Python code."""

    value: str | None
    streams: int
    backlog_bytes: int


class Listing:
    """Describes the streams of one hub. `wall` gives Unix time, and `monotonic` a monotonic clock, in seconds."""

    def __init__(
        self,
        index: Index,
        registry: Registry,
        backlogs: Backlogs,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._index = index
        self._registry = registry
        self._backlogs = backlogs
        self._wall = wall
        self._monotonic = monotonic

    async def page(self, wanted: Wanted, after: int, limit: int) -> Page:
        """Return up to `limit` of the streams whose number is above `after`, by number."""
        found: list[Stream] = []
        characters = 0
        async with aclosing(self.walk(wanted, after)) as walk:
            async for subscriber in walk:
                if len(found) == limit or characters >= PAGE_CHARACTERS:
                    return Page(found, True)
                stream = self._describe(subscriber)
                found.append(stream)
                characters += size_of(stream)
        return Page(found, False)

    async def largest(self, wanted: Wanted, limit: int) -> list[Stream]:
        """Return up to `limit` streams, those with the largest backlogs first."""
        heap: list[tuple[int, int, Subscriber]] = []
        async for subscriber in self.walk(wanted):
            item = (self._backlog_of(subscriber), -subscriber.number, subscriber)
            if len(heap) < limit:
                heapq.heappush(heap, item)
            elif item > heap[0]:
                heapq.heapreplace(heap, item)
        found: list[Stream] = []
        characters = 0
        for _, _, subscriber in sorted(heap, reverse=True):
            if characters < PAGE_CHARACTERS and subscriber.state is not State.ENDED:  # it may have ended meanwhile
                found.append(self._describe(subscriber))
                characters += size_of(found[-1])
        return found

    async def count(self, wanted: Wanted, by: Group) -> tuple[list[Counted], bool]:
        """Return the groups, in no order, and False; of more than MAX_GROUPS, the largest ones, and True."""
        values_of = _VALUES[by]
        # Numbers, and no lists of them, which the garbage collector would go through again and again.
        streams: dict[str | None, int] = {}
        backlogs: dict[str | None, int] = {}
        async for subscriber in self.walk(wanted):
            backlog = self._backlog_of(subscriber)
            for value in values_of(subscriber):
                streams[value] = streams.get(value, 0) + 1
                if backlog:
                    backlogs[value] = backlogs.get(value, 0) + backlog
        pace = Pace()
        await pace.rest()
        largest: list[tuple[int, int, Counted]] = []
        for number, (value, count) in enumerate(streams.items()):
            if number < MAX_GROUPS:
                heapq.heappush(largest, (count, -number, Counted(value, count, backlogs.get(value, 0))))
            elif count > largest[0][0]:
                heapq.heapreplace(largest, (count, -number, Counted(value, count, backlogs.get(value, 0))))
            if pace.is_due:
                await pace.rest()
        return [counted for _, _, counted in largest], len(streams) > MAX_GROUPS

    async def channels(self, prefix: str, after: str, limit: int) -> list[str]:
        """Return up to `limit` names of channels that begin with `prefix` and come after `after`, in order."""
        names = self._index.names()
        found: list[str] = []
        pace = Pace()
        for at in range(0, len(names), PART):
            part = [name for name in names[at : at + PART] if name > after and name.startswith(prefix)]
            found = heapq.nsmallest(limit, [*found, *part])
            if pace.is_due:
                await pace.rest()
        return found

    async def channel_counts(self, names: Iterable[str]) -> list[tuple[int, int]]:
        """Return what `Index.count` returns for each of `names`."""
        counts = []
        pace = Pace()
        for name in names:
            counts.append(self._index.count(name))
            if pace.is_due:
                await pace.rest()
        return counts

    async def walk(self, wanted: Wanted, after: int = 0) -> AsyncGenerator[Subscriber, None]:
        """Yield the streams that are wanted, by number, as far as they are still open."""
        candidates = self._candidates(wanted)
        matches = Matching(wanted).matches
        pace = Pace()
        for at in range(bisect_right(candidates, after, key=_number), len(candidates)):
            subscriber = candidates[at]
            if subscriber.state is not State.ENDED and matches(
                subscriber.user_id, subscriber.channels, subscriber.prefixes, subscriber.origin
            ):
                yield subscriber
            if pace.is_due:
                await pace.rest()

    def _candidates(self, wanted: Wanted) -> list[Subscriber]:
        """Return the streams among which all are that are wanted, by number."""
        found = self._index.few(wanted.user_id, wanted.channel, FEW)
        if found is not None:
            return sorted(found, key=_number)
        return list(self._index.all)  # in the order in which they were opened

    def _backlog_of(self, subscriber: Subscriber) -> int:
        return subscriber.sink.backlog + self._backlogs.held_for(subscriber)

    def _describe(self, subscriber: Subscriber) -> Stream:
        return Stream(
            subscriber.number,
            subscriber.user_id,
            subscriber.channels,
            subscriber.patterns,
            subscriber.run_name,
            subscriber.origin,
            self._wall() - (self._monotonic() - subscriber.connected_at),
            str(self._registry.position_of(subscriber)),
            subscriber.events,
            subscriber.bytes,
            self._backlog_of(subscriber),
            subscriber.state.value,
        )


def size_of(stream: Stream) -> int:
    """Return about how many characters it takes to describe `stream`, besides its numbers."""
    return len(stream.user_id) + sum(map(len, stream.channels)) + sum(map(len, stream.patterns))


_VALUES: Mapping[Group, Callable[[Subscriber], Iterable[str | None]]] = {
    Group.USER: lambda subscriber: (subscriber.user_id,),
    Group.ADDRESS: lambda subscriber: (address_of(subscriber.origin),),
    Group.CHANNEL: lambda subscriber: subscriber.channels,
    Group.PATTERN: lambda subscriber: subscriber.patterns,
    Group.CLIENT: lambda subscriber: (None if subscriber.origin is None else subscriber.origin.client,),
}
