"""Writes what happens to runs to the streams that watch them.

Each run that is watched here has one feed (`feeds.py`), whatever the number of its watchers. Everything that the store
tells a feed within one turn of the event loop is written together, in slices of watchers, so that the loop goes on in
between. A watcher that lacks earlier events is left to the reader (`reading.py`) until it is up to date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from time import perf_counter

from ..loglimit import limited_logger
from ..runs.model import Outcome, RunState
from .backlogs import Backlogs
from .delivery import Delivery
from .feeds import Feed, News, RunReader, Watcher, passages
from .history import ResetReason
from .index import Index
from .reading import END_COST, Reader
from .registry import Registry
from .slices import END_SLICE, SLICE_SECONDS, act_on_slice
from .statistics import Statistics
from .subscriber import FAILED, CloseReason, State, Subscriber
from .watching import Dialect, Passage, run_hello

logger = limited_logger("ssehub.hub")

SLICE = 100
"""Watchers written to before the loop goes on, as in a round."""


class Watchers:
    """Owns the news that are to be written, and knows which watchers are paused.

    `spawn` runs a task that ends with the hub. Times are seconds of the monotonic clock.
    """

    def __init__(
        self,
        runs: RunReader,
        registry: Registry,
        index: Index,
        backlogs: Backlogs,
        statistics: Statistics,
        spawn: Callable[[Coroutine[None, None, None]], None],
        monotonic: Callable[[], float],
        *,
        grace_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._registry = registry
        self._backlogs = backlogs
        self._monotonic = monotonic
        self._grace_seconds = grace_seconds
        self._delivery = Delivery(registry, index, statistics)
        self._reader = Reader(runs, self._delivery, registry, statistics, spawn)
        self._woken: dict[Feed, None] = {}
        """The feeds that have news."""
        self._visits: Iterator[tuple[Watcher, list[Passage], News]] | None = None
        """The rest of the news that are being written; None if nothing is being written."""
        self._paused: dict[Watcher, tuple[int, float]] = {}
        """For each watcher whose sink is paused: its backlog when it was last seen to read, and when that was."""

    @property
    def is_idle(self) -> bool:
        """True if everything that was told has been written to the watchers whose connections take it."""
        return self._visits is None and self._reader.is_idle

    def drop_pages(self) -> None:
        """Free the pages of runs that are kept for other watchers."""
        self._reader.drop_pages()

    # Beginning

    def begin(self, watcher: Watcher, reset: ResetReason | None, retry_milliseconds: int | None) -> None:
        """Enter `watcher` in its feed, and write its first frames; all that it is to be sent follows."""
        watcher.feed.watchers[watcher] = None
        watcher.feed.is_unused = False
        if not watcher.is_bare:
            # As in every stream: an id before the reset would let a client come back without one.
            position = watcher.sent if reset is None else None
            hello = run_hello(watcher.feed.name, watcher.generation, position, retry_milliseconds)
            self._registry.send_frame(watcher, hello, position)
            if reset is not None:
                self._registry.send_reset(watcher, reset)
        if not watcher.is_up_to_date:
            self._reader.read_on(watcher)

    # Writing news

    def wake(self, feed: Feed) -> None:
        """Write the news of `feed` soon."""
        self._woken[feed] = None
        if self._visits is None:
            self._visits = self._all_visits()
            self._loop.call_soon(self._write_slice)

    def _all_visits(self) -> Iterator[tuple[Watcher, list[Passage], News]]:
        """Yield each watcher for which there are news, with the events among them, and the news."""
        while self._woken:
            feed = next(iter(self._woken))
            del self._woken[feed]
            for news in feed.take_news():
                made: dict[Dialect, list[Passage]] = {}
                for watcher in news.watchers:
                    written = made.get(watcher.dialect)
                    if written is None:
                        written = made[watcher.dialect] = _passages(news, watcher.dialect)
                    yield watcher, written, news

    def _write_slice(self) -> None:
        """Write to the next watchers. Whatever happens, the others get what is theirs."""
        assert self._visits is not None
        cost = 0
        until = perf_counter() + SLICE_SECONDS
        for watcher, made, news in self._visits:
            try:
                if watcher.state is not State.ENDED:
                    cost += self._visit(watcher, made, news)
            except Exception:
                logger.exception("writing a run failed at one stream, so it ends")
                self._registry.end_failed(watcher, FAILED)
            if cost >= SLICE or perf_counter() >= until:
                self._loop.call_soon(self._write_slice)
                return
        self._visits = None

    def _visit(self, watcher: Watcher, made: list[Passage], news: News) -> int:
        """Write to one watcher what it lacks; return what that cost."""
        if news.loss is not None:
            self._visit_last(watcher, made, news)
            return END_COST
        if watcher not in watcher.feed.watchers:  # its run is gone meanwhile: the last news are still to come
            if watcher.generation == news.generation:
                self._delivery.write(watcher, made)
            return 1
        if not watcher.is_current and not self._delivery.renew(watcher):
            return END_COST
        if watcher.is_reading:
            return 0
        self._delivery.write(watcher, made)
        return self._reader.go_on(watcher)

    def _visit_last(self, watcher: Watcher, made: list[Passage], news: News) -> None:
        """The events of this run can't be read any more: write what is here, and then the end."""
        is_known = watcher.generation == news.generation and watcher.sent.log == news.log
        if is_known:  # else it may not be for this client
            self._delivery.write(watcher, made, even_if_paused=True)
        if watcher.state is not State.ENDED:
            has_all = is_known and watcher.ordinal >= news.tail
            if news.outcome is None or not has_all:
                self._delivery.finish(watcher, Outcome(RunState.FAILED, news.loss), news.tail)
            else:
                self._delivery.finish(watcher, news.outcome, news.tail)

    # Sinks

    def pause(self, watcher: Watcher) -> None:
        """The sink has paused."""
        self._paused[watcher] = watcher.sink.backlog, self._monotonic()

    def resume(self, watcher: Watcher) -> None:
        """The sink takes more."""
        self._paused.pop(watcher, None)
        if not watcher.is_reading:
            self._reader.go_on(watcher)

    def overdue(self, now: float) -> Iterator[Watcher]:
        """Yield the watchers that are behind and have read nothing for the grace time."""
        for watcher, (unread, since) in list(self._paused.items()):
            backlog = watcher.sink.backlog
            if watcher.state is State.ENDED or not watcher.sink.is_paused:
                self._paused.pop(watcher, None)
            elif backlog < unread or watcher.is_up_to_date:
                self._paused[watcher] = backlog, now
            elif now - since >= self._grace_seconds:
                yield watcher
            else:
                self._paused[watcher] = max(backlog, unread), since

    def make_room(self, now: float) -> None:
        """End the streams that memory does not allow for: without events in the hub's log no round does so."""
        if self._paused:
            act_on_slice(self._backlogs.excess(now), self._end_as_slow, END_SLICE)

    def _end_as_slow(self, subscriber: Subscriber) -> None:
        self._registry.end(subscriber, CloseReason.SLOW)


def _passages(news: News, dialect: Dialect) -> list[Passage]:
    """Return the events of `news`, or none if they can't be encoded: a watcher that reads them then ends."""
    try:
        return passages(news, dialect)
    except Exception:
        logger.exception("encoding events of a run failed")
        return []
