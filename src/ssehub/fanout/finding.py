"""Finds the runs that clients ask for, and follows them as long as they are used.

The finder owns the feeds of a hub, one for each run that is followed, and the clients that wait for a run to appear. A
client is given no feed that its token does not grant, and a run that nobody may watch here is not followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from ..claims import Claims
from ..errors import BrokerUnavailable, StreamRefused, UnknownRun
from ..runs.model import Run
from .feeds import Feed, RunReader, grant_of, granted_channels
from .limits import Refusal
from .statistics import Statistics

TOLD_SECONDS = 2.0
"""How long a feed may take to be told of a run that the store has. 404, at which a browser stops for good, is wrong."""


class Finder:
    """All feeds of a hub. Each calls `wake` when it has news. `spawn` runs a task that ends with the hub."""

    def __init__(
        self,
        runs: RunReader,
        wake: Callable[[Feed], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
        *,
        max_waits: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._runs = runs
        self._wake = wake
        self._spawn = spawn
        self._max_waits = max_waits
        self._feeds: dict[str, Feed] = {}
        self._waits: set[asyncio.Future[None]] = set()
        """One for each client that waits for a run."""
        self._refuses_waiting = False

    def measure(self, statistics: Statistics) -> None:
        """Write the current values into `statistics`."""
        statistics.watched_runs = len(self._feeds)
        statistics.watchers = sum([len(feed.watchers) for feed in self._feeds.values()])
        statistics.run_waits = len(self._waits)

    async def find(self, name: str, claims: Claims, wait_seconds: float | None = None) -> Run:
        """Return the run `name` if `claims` grant it. With `wait_seconds`, wait for that, at most so long.

        It is followed from then on, and for at least two seconds: long enough to `require` its feed. Raises UnknownRun
        both if there is no such run and if it is not granted; StreamRefused if too many clients wait already, or if the
        hub drains meanwhile; BrokerUnavailable.
        """
        if wait_seconds is None or len(self._waits) >= self._max_waits:
            try:
                return await self._find_now(name, claims)
            except UnknownRun:
                if wait_seconds is None:
                    raise
                limit = f"{self._max_waits} clients wait for runs already (max_run_waits)"
                raise StreamRefused(Refusal.RUN_WAITS, limit) from None
        return await self._wait(name, claims, wait_seconds)

    def require(self, name: str, claims: Claims) -> Feed:
        """Return the feed of a run that `find` has returned.

        Raises UnknownRun if `claims` do not grant it any more; StreamRefused if it is not followed any more.
        """
        feed = self._feeds.get(name)
        if feed is None or not feed.ready.done():
            raise StreamRefused(Refusal.UNAVAILABLE, f"run {name!r} is not followed any more")
        if not _is_granted(feed.run, claims):
            raise UnknownRun(name)
        return feed

    async def _find_now(self, name: str, claims: Claims) -> Run:
        known = self._feeds.get(name)
        is_known = known is not None and _is_granted(known.run, claims)
        # What nobody may watch is not followed, and so takes nothing.
        if not is_known and not _is_granted(await self._runs.get(name), claims):
            raise UnknownRun(name)
        feed = await self._follow(name)
        if feed.run is not None and _is_granted(feed.run, claims):
            return feed.run
        try:
            return await self._wait(name, claims, TOLD_SECONDS)
        except UnknownRun:
            raise StreamRefused(Refusal.UNAVAILABLE, f"run {name!r} was not told of in time") from None

    async def _wait(self, name: str, claims: Claims, seconds: float) -> Run:
        """Return the run `name` as soon as `claims` grant it."""
        woken: asyncio.Future[None] = self._loop.create_future()
        self._waits.add(woken)
        feed: Feed | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    feed = await self._follow(name)
                    if feed.run is not None and _is_granted(feed.run, claims):
                        return feed.run
                    if self._refuses_waiting:  # since before this, or since it was woken by the run
                        raise _draining()
                    feed.waiting.add(woken)
                    await woken
                    feed.waiting.discard(woken)
                    self._waits.discard(woken)
                    woken = self._loop.create_future()
                    self._waits.add(woken)
        except TimeoutError:
            raise UnknownRun(name) from None
        finally:
            self._waits.discard(woken)
            if feed is not None:
                feed.waiting.discard(woken)

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
        """Drop the feeds that nobody has used since the last sweep."""
        for feed in [feed for feed in self._feeds.values() if not feed.is_used]:
            if feed.is_unused:
                del self._feeds[feed.name]
                self._runs.unfollow(feed.name, feed)
            feed.is_unused = True

    def refuse_waiting(self) -> None:
        """Refuse all clients that wait for a run, now and from now on, because the hub drains."""
        self._refuses_waiting = True
        for woken in self._waits:
            if not woken.done():
                woken.set_exception(_draining())
                woken.exception()  # it may not be asked for: asyncio would log that

    def stop(self) -> None:
        """Stop following runs. The store may outlive this hub, so each feed is taken off it."""
        self.refuse_waiting()
        for feed in self._feeds.values():
            self._runs.unfollow(feed.name, feed)
        self._feeds.clear()


def _draining() -> StreamRefused:
    return StreamRefused(Refusal.DRAINING, "the hub is draining and about to stop")


def _is_granted(run: Run | None, claims: Claims) -> bool:
    return bool(granted_channels(run, claims.user_id, grant_of(claims)))
