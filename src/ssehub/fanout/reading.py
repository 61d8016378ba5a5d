"""Reads the runs of watchers that are behind, a page at a time, until they are up to date.

Watchers take turns to read a page of the run's log each. Recently read pages are kept for other watchers that need the
same ones: a thousand clients that come back at once read a run once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine

from ..errors import BrokerUnavailable
from ..loglimit import limited_logger
from .delivery import Delivery
from .feeds import Feed, RunReader, Watcher
from .registry import Registry
from .statistics import Statistics
from .subscriber import FAILED, CloseReason, State
from .watching import Dialect, Passage

logger = limited_logger("ssehub.hub")

END_COST = 2
"""Ending a watcher takes as long as writing to this many."""
PAGE_BYTES = 32 * 2**10
"""How much of a run is read from the store at once, apart from a single event that is larger."""
MAX_PAGES_BYTES = 4 * 2**20
"""The size of the pages that are kept, until `drop_pages`."""
MAX_READERS = 8
"""Most pages that are being read at the same time, and so the most that are encoded in one turn of the event loop."""
RETRY_SECONDS = 0.25
"""How soon a page is read again if the store could not be reached, or lacks events that it has told of."""


class Reader:
    """Owns the turns of watchers that are behind, and the pages that are kept. `Watcher.is_reading` is changed here."""

    def __init__(
        self,
        runs: RunReader,
        delivery: Delivery,
        registry: Registry,
        statistics: Statistics,
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._runs = runs
        self._delivery = delivery
        self._registry = registry
        self._statistics = statistics
        self._spawn = spawn
        self._turns: deque[Watcher] = deque()
        """Watchers that wait for their turn to read a page."""
        self._readers = 0
        self._pages: OrderedDict[tuple[str, str, int, Dialect], Passage] = OrderedDict()
        self._pages_bytes = 0

    @property
    def is_idle(self) -> bool:
        """True if no page is being read, and none is waited for."""
        return not self._readers

    def drop_pages(self) -> None:
        """Forget the pages that were kept for other watchers."""
        self._pages.clear()
        self._pages_bytes = 0

    def go_on(self, watcher: Watcher) -> int:
        """Let `watcher` read if it is behind, or end it if it has everything; return what that cost."""
        feed = watcher.feed
        if watcher.state is State.ENDED or watcher.sink.is_paused or watcher not in feed.watchers:
            return 1
        if not watcher.is_current and not self._delivery.renew(watcher):
            return END_COST
        if watcher.ordinal < feed.tail:
            self.read_on(watcher)
        elif feed.outcome is not None and watcher.ordinal > feed.tail:
            # Its cursor is that of the end, which this node had not been told of yet. It is not told twice.
            self._registry.end(watcher, CloseReason.FINISHED)
            return END_COST
        elif feed.outcome is not None:
            self._delivery.finish(watcher, feed.outcome, feed.tail)
            return END_COST
        return 1

    def read_on(self, watcher: Watcher) -> None:
        """Let `watcher`, which is behind, read when it is its turn."""
        if not watcher.is_reading:
            watcher.is_reading = True
            self._take_turn(watcher)

    def _take_turn(self, watcher: Watcher) -> None:
        if watcher.state is State.ENDED:
            return
        self._turns.append(watcher)
        if self._readers < MAX_READERS:
            self._readers += 1
            self._spawn(self._read())

    async def _read(self) -> None:
        """Read pages for the watchers whose turn it is, one page in each turn of the event loop."""
        try:
            while self._turns:
                watcher = self._turns.popleft()
                try:
                    await self._read_page(watcher)
                except BrokerUnavailable:
                    self._loop.call_later(RETRY_SECONDS, self._take_turn, watcher)
                except Exception:
                    logger.exception("reading a run failed, so a stream of it ends")
                    self._registry.end_failed(watcher, FAILED)
                await asyncio.sleep(0)
        finally:
            self._readers -= 1

    async def _read_page(self, watcher: Watcher) -> None:
        """Write one page to `watcher`, and let it read on if that was not all."""
        feed = watcher.feed
        if not self._needs_page(watcher):
            return
        log, after = watcher.sent.log, watcher.ordinal
        if log == feed.log and after < feed.tail:
            page = self._pages.get((feed.name, log, after, watcher.dialect))
            page = page or await self._page(feed, log, after, watcher.dialect)
            if not self._needs_page(watcher):
                return
            if page is not None:
                delivered = self._statistics.delivered
                self._delivery.write(watcher, [page])
                self._statistics.replayed += self._statistics.delivered - delivered
            elif log == feed.log:
                await self._check(feed)
                self._loop.call_later(RETRY_SECONDS, self._take_turn, watcher)
                return
        watcher.is_reading = False
        self.go_on(watcher)

    def _needs_page(self, watcher: Watcher) -> bool:
        """True if `watcher`, which is reading, still may and can be written to. Else it does not read any more."""
        feed = watcher.feed
        has_left = watcher.state is State.ENDED or watcher not in feed.watchers
        if has_left or watcher.sink.is_paused or (not watcher.is_current and not self._delivery.renew(watcher)):
            watcher.is_reading = False
        return watcher.is_reading

    async def _page(self, feed: Feed, log: str, after: int, dialect: Dialect) -> Passage | None:
        """Read the events after the ordinal `after`; return None if there are none, or it is another log by now.

        Events of which the feed has not been told yet are left out: they may be of the next generation, which may be
        for others, and the store notices that it has lost events only if it has told of them.
        """
        events = await self._runs.read(feed.name, log, after, PAGE_BYTES)
        if not events or log != feed.log or after >= feed.tail:
            return None
        page = Passage.of(events[: feed.tail - after], after + 1, log, dialect)
        key = feed.name, log, after, dialect
        if key not in self._pages:  # else another reader was faster
            self._pages[key] = page
            self._pages_bytes += len(page.data)
        while self._pages_bytes > MAX_PAGES_BYTES:
            _, oldest = self._pages.popitem(last=False)
            self._pages_bytes -= len(oldest.data)
        return page

    async def _check(self, feed: Feed) -> None:
        """Ask the store for the run: it lacks events that it told of, so the feed may have missed something."""
        told = feed.told
        run = await self._runs.get(feed.name)
        if feed.told != told:  # what it has told meanwhile is newer
            return
        if run is not None:
            feed.advanced(run, run.events + 1, ())
        elif feed.run is not None:
            feed.vanished(feed.run)
