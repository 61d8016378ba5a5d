"""Watchers: writes runs to the streams that watch them.

Each run that is watched here has a feed (feeds.py), however many watch it. What the store tells a feed within one turn
of the event loop is written together, in slices of watchers, so that the loop goes on in between. Watchers that are
behind take turns to read a page of the run's log each. The pages that were read last are kept for those who need the
same ones: a thousand clients that come back at once read a run once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator
from time import perf_counter
from typing import Protocol

from ..claims import Claims
from ..errors import BrokerUnavailable, StreamRefused, UnknownRun
from ..loglimit import limited_logger
from ..position import Position
from ..runs.entries import RunEvent
from ..runs.model import Outcome, Run, RunState
from ..runs.store import RunListener
from .backlogs import Backlogs
from .feeds import Feed, News, Watcher, grant_of, granted_channels, passages
from .history import ResetReason
from .index import Index
from .limits import Refusal
from .registry import Registry
from .run_waits import RunWait, RunWaits
from .slices import END_SLICE, SLICE_SECONDS, act_on_slice
from .statistics import Statistics
from .subscriber import FAILED, CloseReason, State, Subscriber
from .watching import Dialect, Passage, farewell, run_hello

logger = limited_logger("ssehub.hub")

SLICE = 100
"""Watchers written to before the loop goes on, as in a round."""
END_COST = 2
"""To end a watcher takes as long as to write to so many."""
PAGE_BYTES = 32 * 2**10
"""How much of a run is read from the store at once, apart from a single event that is larger."""
MAX_PAGES_BYTES = 4 * 2**20
"""The size of the pages that are kept, until the feeds are looked through the next time."""
MAX_READERS = 8
"""Most pages that are being read at the same time, and so the most that are encoded in one turn of the event loop."""
TOLD_SECONDS = 2.0
"""How long a feed may take to be told of a run that the store has. 404, at which a browser stops for good, is wrong."""
RETRY_SECONDS = 0.25
"""How soon a page is read again if the store could not be reached, or lacks what it has told of."""
SWEEP_SECONDS = 2.0
"""How often feeds are looked through. One that nobody has used since the last time is dropped."""


class RunReader(Protocol):
    """What is needed of a store of runs; see `RunStore`."""

    async def get(self, name: str) -> Run | None: ...

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None: ...

    async def follow(self, name: str, listener: RunListener) -> Run | None: ...

    def unfollow(self, name: str, listener: RunListener) -> None: ...


class Watchers:
    """All feeds of a hub. `spawn` runs a task that ends with the hub. Times are seconds of the monotonic clock."""

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
        max_waits: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._runs = runs
        self._registry = registry
        self._index = index
        self._backlogs = backlogs
        self._statistics = statistics
        self._spawn = spawn
        self._monotonic = monotonic
        self._grace_seconds = grace_seconds
        self._feeds: dict[str, Feed] = {}
        self._woken: dict[Feed, None] = {}
        """The feeds that have news."""
        self._visits: Iterator[tuple[Watcher, list[Passage], News]] | None = None
        """What is left to do of the news that are being written; None if nothing is being written."""
        self._reading: deque[Watcher] = deque()
        """Watchers that wait for their turn to read a page."""
        self._readers = 0
        self._pages: OrderedDict[tuple[str, str, int, Dialect], Passage] = OrderedDict()
        self._pages_bytes = 0
        self._paused: dict[Watcher, tuple[int, float]] = {}
        """For each watcher whose sink is paused: its backlog when it was last seen to read, and when that was."""
        self._waits = RunWaits(max_waits, registry.counts)
        self._swept_at = 0.0

    @property
    def is_idle(self) -> bool:
        """True if everything that was told has been written to the watchers whose connections take it."""
        return self._visits is None and not self._readers

    def measure(self) -> None:
        """Write the current values into the statistics."""
        self._statistics.watched_runs = len(self._feeds)
        self._statistics.watchers = sum([len(feed.watchers) for feed in self._feeds.values()])
        self._statistics.run_waits = len(self._waits)

    # Finding a run

    async def find(
        self, name: str, claims: Claims, wait_seconds: float | None = None, address: str | None = None
    ) -> Run:
        """Return the run `name` if `claims` grant it, else wait so long for that.

        It is followed from then on, and for some seconds at least: long enough to `begin`. Raises UnknownRun, whether
        there is none or it is not granted; StreamRefused if too many wait already, in all or of this user or
        `address`, or the hub drains meanwhile.
        """
        if wait_seconds is None:
            return await self._find_now(name, claims)
        wait = RunWait(claims.user_id, address)
        try:
            self._waits.admit(wait)
        except StreamRefused as refused:
            try:
                return await self._find_now(name, claims)
            except UnknownRun:
                raise refused from None
        return await self._wait(wait, name, claims, wait_seconds)

    async def _find_now(self, name: str, claims: Claims) -> Run:
        known = self._feeds.get(name)
        is_known = known is not None and _is_granted(known.run, claims)
        # What nobody may watch is not followed, and so takes nothing.
        if not is_known and not _is_granted(await self._runs.get(name), claims):
            raise UnknownRun(name)
        feed = await self._follow(name)
        if feed.run is not None and _is_granted(feed.run, claims):
            return feed.run
        wait = RunWait(claims.user_id)
        self._waits.enter(wait)
        try:
            return await self._wait(wait, name, claims, TOLD_SECONDS)
        except UnknownRun:
            raise StreamRefused(Refusal.UNAVAILABLE, f"run {name!r} was not told of in time") from None

    async def _wait(self, wait: RunWait, name: str, claims: Claims, seconds: float) -> Run:
        """Return the run `name` as soon as `claims` grant it. `wait` has been entered, and leaves."""
        feed: Feed | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    feed = await self._follow(name)
                    if feed.run is not None and _is_granted(feed.run, claims):
                        return feed.run
                    feed.waiting.add(wait)
                    await wait.until_woken()
                    feed.waiting.discard(wait)
        except TimeoutError:
            raise UnknownRun(name) from None
        finally:
            self._waits.leave(wait)
            if feed is not None:
                feed.waiting.discard(wait)

    def refuse_waiting(self) -> None:
        """The hub drains: tell the clients that wait for a run to come back, and those that would wait from now on."""
        self._waits.refuse_all()

    def stop(self) -> None:
        """Follow nothing any more: the hub stops, and its store may be used again."""
        self.refuse_waiting()
        for feed in self._feeds.values():
            self._runs.unfollow(feed.name, feed)
        self._feeds.clear()

    async def _follow(self, name: str) -> Feed:
        """Return the feed of the run `name`, which the store tells of the run from then on."""
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = Feed(name, self._loop.create_future(), self._wake)
            self._spawn(self._begin_feed(feed))
        feed.is_unused = False
        await asyncio.shield(feed.ready)
        return feed

    async def _begin_feed(self, feed: Feed) -> None:
        try:
            feed.begin(await self._runs.follow(feed.name, feed))
            feed.ready.set_result(None)
        except BaseException as exc:
            self._feeds.pop(feed.name, None)
            self._runs.unfollow(feed.name, feed)
            error = exc if isinstance(exc, Exception) else BrokerUnavailable("the hub has been closed meanwhile")
            feed.ready.set_exception(error)
            feed.ready.exception()  # asyncio logs those that nobody has asked for
            if not isinstance(exc, Exception):
                raise

    def sweep(self) -> None:
        """Drop the pages that were kept, and the feeds that nobody has used for a while."""
        now = self._monotonic()
        if now < self._swept_at + SWEEP_SECONDS:
            return
        self._swept_at = now
        self._pages.clear()
        self._pages_bytes = 0
        for feed in [feed for feed in self._feeds.values() if not feed.is_used]:
            if feed.is_unused:
                del self._feeds[feed.name]
                self._runs.unfollow(feed.name, feed)
            feed.is_unused = True

    # Beginning

    def require(self, name: str, claims: Claims) -> Feed:
        """Return the feed of a run that was found. Raises UnknownRun if `claims` do not grant it any more."""
        feed = self._feeds.get(name)
        if feed is None or not feed.ready.done():
            raise StreamRefused(Refusal.UNAVAILABLE, f"run {name!r} is not followed any more")
        if not _is_granted(feed.run, claims):
            raise UnknownRun(name)
        return feed

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
        if not self._is_up_to_date(watcher):
            self._read_on(watcher)

    @staticmethod
    def _is_up_to_date(watcher: Watcher) -> bool:
        """True if there is nothing to be written."""
        feed = watcher.feed
        return watcher.is_current and feed.outcome is None and watcher.ordinal >= feed.tail

    # Writing news

    def _wake(self, feed: Feed) -> None:
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
                self._write(watcher, made)
            return 1
        if not watcher.is_current and not self._renew(watcher):
            return END_COST
        if watcher.is_reading:
            return 0
        self._write(watcher, made)
        return self._go_on(watcher)

    def _visit_last(self, watcher: Watcher, made: list[Passage], news: News) -> None:
        """The events of this run can't be read any more: write what is here, and then the end."""
        is_known = watcher.generation == news.generation and watcher.sent.log == news.log
        if is_known:  # else it may not be for this client
            self._write(watcher, made, even_if_paused=True)
        if watcher.state is not State.ENDED:
            has_all = is_known and watcher.ordinal >= news.tail
            if news.outcome is None or not has_all:
                self._finish(watcher, Outcome(RunState.FAILED, news.loss), news.tail)
            else:
                self._finish(watcher, news.outcome, news.tail)

    def _write(self, watcher: Watcher, made: list[Passage], *, even_if_paused: bool = False) -> None:
        """Write what follows on what `watcher` has, as far as its connection takes it."""
        for passage in made:
            sent = watcher.sent
            if sent.log != passage.position.log or passage.last <= sent[0]:
                continue
            if passage.first > sent[0] + 1 or (watcher.sink.is_paused and not even_if_paused):
                return
            rest = passage if passage.first == sent[0] + 1 else passage.after(sent[0])
            if rest.data and not watcher.send(rest, rest.position):  # as a chunk, nothing would be the last one
                self._registry.end_failed(watcher, FAILED)
                return
            watcher.sent = rest.position
            self._statistics.delivered += rest.count
            self._statistics.delivered_bytes += len(rest.data)

    def _go_on(self, watcher: Watcher) -> int:
        """Let `watcher` read if it is behind, or end it if it has everything; return what that cost."""
        feed = watcher.feed
        if watcher.state is State.ENDED or watcher.sink.is_paused or watcher not in feed.watchers:
            return 1
        if not watcher.is_current and not self._renew(watcher):
            return END_COST
        if watcher.ordinal < feed.tail:
            self._read_on(watcher)
        elif feed.outcome is not None and watcher.ordinal > feed.tail:
            # Its cursor is that of the end, which this node had not been told of yet. It is not told twice.
            self._registry.end(watcher, CloseReason.FINISHED)
            return END_COST
        elif feed.outcome is not None:
            self._finish(watcher, feed.outcome, feed.tail)
            return END_COST
        return 1

    def _finish(self, watcher: Watcher, outcome: Outcome, tail: int) -> None:
        """End a watcher that has all events, of which the last one has the ordinal `tail`."""
        end = Position(tail + 1, 0, watcher.sent.log)
        self._registry.send_frame(watcher, farewell(outcome, end, watcher.dialect), end)
        self._registry.end(watcher, CloseReason.FINISHED)

    def _renew(self, watcher: Watcher) -> bool:
        """Another generation of the run has begun, or the store has lost a part of it and continues it in another log.

        Tell `watcher`. Return False if that ended it, or has to wait.
        """
        feed = watcher.feed
        if feed.run is None:
            return False
        channels = granted_channels(feed.run, watcher.user_id, watcher.grant)
        if not channels:
            self._registry.revoke(watcher)
            return False
        is_same_log = watcher.sent.log == feed.log
        if watcher.is_bare and not is_same_log:
            self._registry.end(watcher, CloseReason.RESTARTED)
            return False
        if channels != watcher.channels:
            self._index.relocate(watcher, channels)
        if watcher.sink.is_paused:
            return False
        is_restarted, watcher.generation = watcher.generation != feed.generation, feed.generation
        if not is_same_log:
            watcher.sent = Position(0, 0, feed.log)
            self._registry.send_reset(watcher, ResetReason.RESTARTED if is_restarted else ResetReason.LOG_LOST)
        if not watcher.is_bare:
            hello = run_hello(feed.name, feed.generation, watcher.sent)
            self._registry.send_frame(watcher, hello, watcher.sent)
        return watcher.state is not State.ENDED

    # Reading pages

    def _read_on(self, watcher: Watcher) -> None:
        """Let `watcher` read when it is its turn."""
        if not watcher.is_reading:
            watcher.is_reading = True
            self._take_turn(watcher)

    def _take_turn(self, watcher: Watcher) -> None:
        if watcher.state is State.ENDED:
            return
        self._reading.append(watcher)
        if self._readers < MAX_READERS:
            self._readers += 1
            self._spawn(self._read())

    async def _read(self) -> None:
        """Read pages for the watchers whose turn it is, one page in each turn of the event loop."""
        try:
            while self._reading:
                watcher = self._reading.popleft()
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
                self._write(watcher, [page])
                self._statistics.replayed += self._statistics.delivered - delivered
            elif log == feed.log:
                await self._check(feed)
                self._loop.call_later(RETRY_SECONDS, self._take_turn, watcher)
                return
        watcher.is_reading = False
        self._go_on(watcher)

    def _needs_page(self, watcher: Watcher) -> bool:
        """True if `watcher`, which is reading, still may and can be written to. Else it does not read any more."""
        feed = watcher.feed
        has_left = watcher.state is State.ENDED or watcher not in feed.watchers
        if has_left or watcher.sink.is_paused or (not watcher.is_current and not self._renew(watcher)):
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
        """The store lacks events that it told of: ask it for the run, in case something was not told."""
        told = feed.told
        run = await self._runs.get(feed.name)
        if feed.told != told:  # what it has told meanwhile is newer
            return
        if run is not None:
            feed.advanced(run, run.events + 1, ())
        elif feed.run is not None:
            feed.vanished(feed.run)

    # Sinks

    def pause(self, watcher: Watcher) -> None:
        """The sink has paused."""
        self._paused[watcher] = watcher.sink.backlog, self._monotonic()

    def resume(self, watcher: Watcher) -> None:
        """The sink takes more."""
        self._paused.pop(watcher, None)
        if not watcher.is_reading:
            self._go_on(watcher)

    def overdue(self, now: float) -> Iterator[Watcher]:
        """Yield the watchers that are behind and have read nothing for the grace time."""
        for watcher, (unread, since) in list(self._paused.items()):
            backlog = watcher.sink.backlog
            if watcher.state is State.ENDED or not watcher.sink.is_paused:
                self._paused.pop(watcher, None)
            elif backlog < unread or self._is_up_to_date(watcher):
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


def _is_granted(run: Run | None, claims: Claims) -> bool:
    return bool(granted_channels(run, claims.user_id, grant_of(claims)))


def _passages(news: News, dialect: Dialect) -> list[Passage]:
    """Return the events of `news`, none if they can't be encoded: whoever reads them then ends."""
    try:
        return passages(news, dialect)
    except Exception:
        logger.exception("encoding events of a run failed")
        return []
