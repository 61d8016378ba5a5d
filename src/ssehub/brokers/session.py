"""A broker at work: its connection, held open in one event loop by a task of its own.

Who starts a hub is often a request, and who ends it somebody else; a context manager has to be left where it was
entered, so that a task does both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from .base import Broker, Follower


class Session:
    """Runs `broker` from now on, in the running event loop, until `stop`; also the tasks that are to end with it."""

    def __init__(self, broker: Broker, follower: Follower) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started: asyncio.Future[None] = self.loop.create_future()
        self._task = self.loop.create_task(self._hold(broker, follower))
        self._others: set[asyncio.Task[None]] = set()

    async def started(self) -> None:
        """Returns when the broker is connected; raises what kept it from that."""
        await asyncio.shield(self._started)

    async def _hold(self, broker: Broker, follower: Follower) -> None:
        try:
            async with broker.run(follower):
                self._started.set_result(None)
                await self._stop.wait()
        except BaseException as exc:
            if self._started.done():
                raise
            self._started.set_exception(exc)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do `work` beside it, and end it with it."""
        task = self.loop.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def stop(self) -> None:
        others = [task for task in self._others if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._stop.set()
        await self._task
