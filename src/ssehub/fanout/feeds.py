"""Feeds: the runs that are watched on this hub, each with its watchers and its last known ordinal.

A watcher is a stream that is sent one run. It has a cursor in the log of that run: the ordinal up to which it has been
sent everything. At any time it is in one of three states:

    up to date  it has everything that the feed was told of; new events are written to it at once
    reading     it is behind, and is sent pages of the run's log, read from the store, until it is up to date
    paused      its connection does not take more. Nothing is kept for it; it reads on from its cursor afterwards

A feed is told of events by the store. It keeps them only until they have been written to the watchers that are up to
date, a moment later. A watcher that needs an earlier event reads it from the store, so it does no harm if the feed is
not told of some events, or is told of some twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..claims import Claims
from ..grant import Grant, prefixes_of
from ..position import Position
from ..runs.entries import RunEvent
from ..runs.model import EVENT_OVERHEAD_BYTES, Outcome, Run, RunError
from ..runs.store import RunListener
from .history import ResetReason
from .origin import Origin
from .run_waits import RunWait
from .sinks import Sink
from .subscriber import State, Subscriber
from .watching import Dialect, Passage

MAX_PENDING_CHARACTERS = 256 * 2**10
"""What a feed keeps at most until it is written, apart from a single event. Beyond that its watchers read it from the
store, a page in each turn of the event loop.
"""
PASSAGE_CHARACTERS = 64 * 2**10
"""About how much is written to a watcher before its connection is asked whether it takes more."""


class Watcher(Subscriber):
    """A stream that is sent the run of one feed. `sent` is its position in the log of the run."""

    __slots__ = ("dialect", "feed", "generation", "granted", "granted_prefixes", "is_reading")

    def __init__(
        self,
        claims: Claims,
        sink: Sink,
        head: Position,
        feed: Feed,
        sent: Position,
        dialect: Dialect,
        *,
        uses_datastar: bool = False,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(claims, sink, head, sent, uses_datastar=uses_datastar, origin=origin)
        self.state = State.WATCHING
        self.is_bare = dialect is Dialect.AI_SDK
        self.granted = claims.channels
        self.granted_prefixes = self.prefixes
        """With `granted`, what the token grants: another generation of the run may be on other channels."""
        self.prefixes = ()
        self.channels = granted_channels(feed.run, self.user_id, self.grant)
        """The channels of the run that are granted: the stream counts as one on these."""
        self.feed = feed
        self.generation = feed.generation
        """The generation of the run that the client knows of."""
        self.dialect = dialect
        self.is_reading = False
        """True from when it is found to be behind until it has read up to where the feed is."""

    @property
    def run_name(self) -> str:
        return self.feed.name

    @property
    def grant(self) -> Grant:
        return Grant(frozenset(self.granted), self.granted_prefixes)

    @property
    def is_current(self) -> bool:
        """True if its client knows the generation of the run, and is sent the log that the run has."""
        return self.generation == self.feed.generation and self.sent.log == self.feed.log

    @property
    def ordinal(self) -> int:
        """The ordinal up to which it has been sent everything."""
        return self.sent[0]

    @property
    def is_up_to_date(self) -> bool:
        """True if there is nothing to be written."""
        feed = self.feed
        return self.is_current and feed.outcome is None and self.ordinal >= feed.tail

    def leave(self) -> None:
        self.feed.watchers.pop(self, None)


class News(NamedTuple):
    """The changes of a run since the feed was last asked for its news."""

    watchers: Sequence[Watcher]
    generation: int
    log: str
    first: int
    """The ordinal of the first of `events`."""
    events: Sequence[RunEvent]
    characters: int
    """The size of `events`."""
    tail: int
    """The ordinal of the last event that there is."""
    outcome: Outcome | None
    """How the run has ended, if it has."""
    loss: RunError | None = None
    """Why its events can't be read any more, if so. A watcher that lacks some of them is told this as the end."""


class RunReader(Protocol):
    """The part of a store of runs that watching needs; see `RunStore`."""

    async def get(self, name: str) -> Run | None: ...

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None: ...

    async def follow(self, name: str, listener: RunListener) -> Run | None: ...

    def unfollow(self, name: str, listener: RunListener) -> None: ...


class Feed:
    """One run as the store tells of it: a RunListener. It calls `wake` when there are news for its watchers."""

    __slots__ = (
        "_characters",
        "_first",
        "_gone",
        "_gone_generation",
        "_pending",
        "_wake",
        "generation",
        "is_unused",
        "log",
        "name",
        "outcome",
        "ready",
        "run",
        "tail",
        "told",
        "waiting",
        "watchers",
    )

    def __init__(self, name: str, ready: asyncio.Future[None], wake: Callable[[Feed], None]) -> None:
        self.name = name
        self.ready = ready
        """Done when the store tells of the run from then on."""
        self.run: Run | None = None
        """The run as the store knows it, None if there is none."""
        self.generation = 0
        self.log = ""
        self.tail = 0
        """The ordinal of the last event that is known of."""
        self.outcome: Outcome | None = None
        """How the run has ended, if it has."""
        self.told = 0
        """How often the store has told of it."""
        self.watchers: dict[Watcher, None] = {}
        self.waiting: set[RunWait] = set()
        """Clients that wait for a run of this name that they may watch. They are woken at each new generation."""
        self.is_unused = False
        """True if nobody watched or waited when the feeds were last looked through."""
        self._wake = wake
        self._first = 1
        self._pending: list[RunEvent] = []
        """Events that are to be written, from the ordinal `_first` on."""
        self._characters = 0
        self._gone: list[News] = []
        """The watchers of runs that are gone, who are still to be told so."""
        self._gone_generation = 0

    @property
    def is_used(self) -> bool:
        """True if somebody watches it or waits for it, or the store has not yet answered."""
        return bool(self.watchers or self.waiting) or not self.ready.done()

    def begin(self, run: Run | None) -> None:
        """The store tells of it from now on; `run` is the run as it was at some moment since it was asked for that."""
        if run is None or run.generation <= self._gone_generation or run.generation < self.generation:
            return
        is_known = self.run is not None and run.generation == self.generation
        if not is_known or (run.events >= self.tail and self.outcome is None):
            self.advanced(run, run.events + 1, ())

    def beginning(self, cursor: str | None) -> tuple[Position, ResetReason | None]:
        """Return where a client with this cursor begins, and why it has to begin anew, if so.

        A cursor above the last event of a run that goes on is believed: this node may not have been told of that event.
        """
        first = Position(0, 0, self.log)
        if cursor is None:
            return first, None
        position = Position.parse(cursor)
        is_of_log = position is not None and position.log == self.log and not position.sequence
        if position is not None and is_of_log and (self.outcome is None or position.milliseconds <= self.tail + 1):
            return position, None
        return first, ResetReason.RESTARTED if self.generation > 1 else ResetReason.LOG_LOST

    # What the store tells

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        self.told += 1
        # A store that has lost everything counts generations from 1 again.
        is_new = self.run is None or run.generation != self.generation
        if run.log != self.log:
            self._drop_pending()
        self.run, self.generation, self.log, self.tail = run, run.generation, run.log, run.events
        self.outcome = Outcome(run.state, run.error) if run.state.is_end else None
        if self.watchers:
            if events:
                self._add(first, events)
            self._wake(self)
        if is_new and self.waiting:
            self._wake_waiting()

    def vanished(self, run: Run) -> None:
        if run.generation < self.generation or self.run is None:
            return
        self.told += 1
        loss = RunError.DELETED if run.state.is_end else RunError.LOST
        outcome = self.outcome or (Outcome(run.state, run.error) if run.state.is_end else None)
        watchers, self.watchers = list(self.watchers), {}
        if watchers:
            self._gone.append(self._news(watchers, outcome, loss))
            self._wake(self)
        self._gone_generation = run.generation
        self._drop_pending()
        self.run, self.log, self.tail, self.outcome = None, "", 0, None

    def claimed(self, connection: str) -> None:
        pass  # watchers do not see who appends

    def _add(self, first: int, events: Sequence[RunEvent]) -> None:
        pending = self._pending
        following = self._first + len(pending)
        if pending and first < following:
            events, first = events[following - first :], following
        if not pending or first > following:
            self._drop_pending()
            self._first = first
        self._pending += events
        self._characters += sum([len(event.data) for event in events]) + EVENT_OVERHEAD_BYTES * len(events)
        if self._characters > MAX_PENDING_CHARACTERS and len(self._pending) > 1:
            self._drop_pending()

    def _drop_pending(self) -> None:
        self._pending = []
        self._characters = 0

    def _news(self, watchers: list[Watcher], outcome: Outcome | None, loss: RunError | None = None) -> News:
        pending, characters = self._pending, self._characters
        return News(watchers, self.generation, self.log, self._first, pending, characters, self.tail, outcome, loss)

    def _wake_waiting(self) -> None:
        for wait in self.waiting:
            wait.wake()

    # Writing

    def take_news(self) -> list[News]:
        """Return what is to be written, in order; it is not kept any longer."""
        news = self._gone
        self._gone = []
        if self.watchers:
            news.append(self._news(list(self.watchers), self.outcome))
        self._drop_pending()
        return news


def passages(news: News, dialect: Dialect) -> list[Passage]:
    """Return the events of `news` in parts of a moderate size."""
    events = news.events
    if not events:
        return []
    if news.characters < PASSAGE_CHARACTERS:
        return [Passage.of(events, news.first, news.log, dialect)]
    found: list[Passage] = []
    start = characters = 0
    for number, event in enumerate(events, 1):
        characters += len(event.data) + EVENT_OVERHEAD_BYTES
        if characters >= PASSAGE_CHARACTERS or number == len(events):
            found.append(Passage.of(events[start:number], news.first + start, news.log, dialect))
            start, characters = number, 0
    return found


def granted_channels(run: Run | None, user_id: str, grant: Grant) -> tuple[str, ...]:
    """Return the channels of `run` by which a user with this grant may watch it; none if it may not be watched."""
    if run is None:
        return ()
    channels = run.options.channels
    covers = [grant.covers(channel) for channel in channels]
    if not run.may_be_watched(user_id, covers):
        return ()
    return channels if all(covers) else tuple([name for name, covered in zip(channels, covers, strict=True) if covered])


def grant_of(claims: Claims) -> Grant:
    return Grant(frozenset(claims.channels), prefixes_of(claims.patterns))
