"""One run of a broker in an event loop, from its start to its stop.

A hub is often started by one request and stopped by other code, but a context manager has to be left by the task that
entered it. Therefore a task of its own runs the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from .base import Broker, Follower


class Session:
    """Runs `broker` in the running event loop from now until `stop`, together with tasks that end with it."""

    def __init__(self, broker: Broker, follower: Follower) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._started: asyncio.Future[None] = self.loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._broker_task = self.loop.create_task(self._run(broker, follower))

    async def started(self) -> None:
        """Return when the broker is connected; raise the error that prevented it."""
        await asyncio.shield(self._started)

    async def _run(self, broker: Broker, follower: Follower) -> None:
        try:
            async with broker.run(follower):
                self._started.set_result(None)
                await self._stopping.wait()
        except BaseException as exc:
            if self._started.done():
                raise
            self._started.set_exception(exc)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task that `stop` cancels."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel the spawned tasks, then disconnect the broker; return when both have ended.

        A spawned task may call it: that task is not cancelled.
        """
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._stopping.set()
        await self._broker_task
