"""Finds the runs that clients ask for, and follows them as long as they are used.

The finder owns the feeds of a hub, one for each run that is followed. `run_waits.py` decides which clients may wait for
a run to appear. A client without a grant for a run does not cause that run to be followed, unless it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from ..claims import Claims
from ..errors import BrokerUnavailable, StreamRefused, UnknownRun
from ..runs.model import Run
from .feeds import Feed, RunReader, grant_of, granted_channels
from .refusals import Refusal
from .run_waits import RunWait, RunWaits
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
        waits: RunWaits,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._runs = runs
        self._wake = wake
        self._spawn = spawn
        self._waits = waits
        self._feeds: dict[str, Feed] = {}

    def measure(self, statistics: Statistics) -> None:
        """Write the current values into `statistics`."""
        statistics.watched_runs = len(self._feeds)
        statistics.watchers = sum([len(feed.watchers) for feed in self._feeds.values()])
        statistics.run_waits = len(self._waits)

    async def find(
        self, name: str, claims: Claims, wait_seconds: float | None = None, address: str | None = None
    ) -> Run:
        """Return the run `name` if `claims` grant it. With `wait_seconds`, wait for that, at most so long.

        It is followed from then on, and for at least two seconds: long enough to `require` its feed. Raises UnknownRun
        both if there is no such run and if it is not granted; StreamRefused if too many clients wait already, in all or
        of this user or `address`, or if the hub drains meanwhile; BrokerUnavailable.
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
        self._waits.refuse_all()

    def stop(self) -> None:
        """Stop following runs. The store may outlive this hub, so each feed is taken off it."""
        self.refuse_waiting()
        for feed in self._feeds.values():
            self._runs.unfollow(feed.name, feed)
        self._feeds.clear()


def _is_granted(run: Run | None, claims: Claims) -> bool:
    return bool(granted_channels(run, claims.user_id, grant_of(claims)))
