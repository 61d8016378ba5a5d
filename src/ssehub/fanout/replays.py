"""Replays: sends subscribers what they have missed, part by part as their clients read it, until they are live.

However many replay at once, only a few milliseconds of each pass of the event loop are spent on them: they take turns,
a part each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ..claims import Claims
from ..grant import prefixes_of
from ..position import Position
from .history import History, ResetReason, must_walk
from .registry import Registry
from .resume import PART_EVENTS, LastEvents, next_part
from .statistics import Statistics
from .subscriber import FAILED, State, Subscriber

logger = logging.getLogger("ssehub.hub")

BUDGET_SECONDS = 0.005
"""No further part is made in a pass of the event loop in which this CPU time has been spent on replays."""
WAIT_SECONDS = 0.001
"""How soon a replay that has to wait for a command tries again."""


class Replays:
    """The subscribers in the state REPLAYING. A part of a replay has at most `part_bytes`, or is a single event.

    While `must_wait` returns True nothing is written: a command that waits may end a stream, which is then not to be
    sent what was published after the command. A subscriber whose stream ends leaves the set lazily, when `advance` next
    visits it: at the next tick at the latest.
    """

    def __init__(
        self,
        history: History,
        registry: Registry,
        statistics: Statistics,
        part_bytes: int,
        must_wait: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._history = history
        self._registry = registry
        self._statistics = statistics
        self._part_bytes = part_bytes
        self._must_wait = must_wait
        self._monotonic = monotonic
        self._subscribers: set[Subscriber] = set()
        self._ready: dict[Subscriber, None] = {}
        """Those whose turn comes in one of the next passes of the loop, in this order."""
        self._spent_seconds = 0.0
        self._is_scheduled = False
        self._searching = asyncio.Lock()
        self._counting = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """True if nothing is being replayed."""
        return not self._subscribers

    async def search(self, head: Position, claims: Claims, count: int) -> Position | None:
        """Return the position after which come the last `count` events, None if finding it takes no search.

        There is one long search at a time, and one part of it in each pass of the event loop.
        """
        if not must_walk(claims.channels, claims.patterns):
            return None
        search = LastEvents(self._history, head, claims, count)
        if not search.advance(self._monotonic()):
            async with self._searching:
                while not search.advance(self._monotonic()):  # noqa: ASYNC110  # the search itself is the work
                    await asyncio.sleep(0)
        return search.after

    async def count(self, claims: Claims, after: Position) -> int:
        """Return how many events a stream that begins after this position would be replayed.

        There is one count at a time, and one part of it in each pass of the event loop.
        """
        channels, prefixes = claims.channels, prefixes_of(claims.patterns)
        events, is_last = 0, False
        async with self._counting:
            while not is_last and not self._history.has_evicted(after, channels, prefixes):
                frames, after, is_last = self._history.replay(
                    after, channels, claims.user_id, prefixes, now=self._monotonic(), max_visits=PART_EVENTS
                )
                events += len(frames)
                await asyncio.sleep(0)
        return events

    def add(self, subscriber: Subscriber) -> None:
        """Begin to replay to a subscriber that is REPLAYING."""
        self._subscribers.add(subscriber)
        self.advance(subscriber)

    def start_over(self) -> None:
        """Forget every replay: history has started over."""
        self._subscribers.clear()
        self._ready.clear()

    def advance(self, subscriber: Subscriber) -> None:
        """Write the next part, if the client has read the ones before. After the last part, the subscriber is live.

        If there is no time for it in this pass of the loop, that is done in one of the next.
        """
        if subscriber not in self._subscribers:
            return
        if self._ready or self._spent_seconds >= BUDGET_SECONDS or self._must_wait():
            self._ready[subscriber] = None
        else:
            self._write_part_timed(subscriber)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._take_turns)

    def _take_turns(self) -> None:
        self._is_scheduled = False
        self._spent_seconds = 0.0
        if self._ready and self._must_wait():
            self._is_scheduled = True
            self._loop.call_later(WAIT_SECONDS, self._take_turns)
            return
        while self._ready and self._spent_seconds < BUDGET_SECONDS:
            subscriber = next(iter(self._ready))
            del self._ready[subscriber]
            self._write_part_timed(subscriber)
        if self._ready or self._spent_seconds:
            self._is_scheduled = True
            self._loop.call_soon(self._take_turns)

    def _write_part_timed(self, subscriber: Subscriber) -> None:
        began = time.thread_time()
        self._write_part(subscriber)
        self._spent_seconds += time.thread_time() - began

    def _write_part(self, subscriber: Subscriber) -> None:
        if subscriber.state is not State.REPLAYING:
            self._subscribers.discard(subscriber)
            return
        if subscriber.sink.is_paused or subscriber.sink.backlog > self._part_bytes:
            return
        head = self._registry.head
        try:
            part = next_part(self._history, subscriber, self._part_bytes, self._monotonic())
        except Exception:
            logger.exception("a replay failed, so its stream ends")
            self._registry.end_failed(subscriber, FAILED)
            return
        if part is None:
            self._join(subscriber, head)
            self._registry.send_reset(subscriber, ResetReason.TOO_OLD)
            return
        if part.batch is not None:
            written = self._registry.replay(subscriber, part.batch)
            if written == FAILED:
                self._registry.end_failed(subscriber, FAILED)
                return
            self._statistics.replayed += written
        if subscriber.state is not State.REPLAYING:  # its connection was lost while it was written to
            self._subscribers.discard(subscriber)
        elif part.is_last:
            self._join(subscriber, head)
        else:
            subscriber.sent = max(subscriber.sent, part.reached)
            self._ready[subscriber] = None

    def advance_all(self) -> None:
        """Go on with every replay: some sinks do not report that their backlog has shrunk a little."""
        for subscriber in list(self._subscribers):
            self.advance(subscriber)

    def _join(self, subscriber: Subscriber, head: Position) -> None:
        """`subscriber` has been sent everything up to `head`, where the log ended when its last part was made."""
        self._subscribers.discard(subscriber)
        subscriber.sent = head
        subscriber.enter(State.LIVE)
        tracer = self._registry.tracer
        if tracer.is_watched:
            tracer.replayed(subscriber)
