"""The gate that publishers pass: first come, first served, while there is capacity."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..errors import Overloaded


class Gate:
    """Lets publishers through while `has_capacity` returns True. The others wait, at most `max_waiting` of them."""

    def __init__(self, has_capacity: Callable[[], bool], max_waiting: int) -> None:
        self._has_capacity = has_capacity
        self._max_waiting = max_waiting
        self._queue: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    async def enter(self) -> None:
        """Return when there is capacity. Raises Overloaded if too many are waiting already."""
        if not self._queue and self._has_capacity():
            return
        if len(self._queue) >= self._max_waiting:
            raise Overloaded(f"{len(self._queue)} publishers are waiting already: try again in a second")
        await self.wait()

    async def wait(self) -> None:
        """Wait for capacity, however many are waiting already."""
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.open()
            raise
        finally:
            if turn in self._queue:
                self._queue.remove(turn)

    def open(self) -> None:
        """Let the first in the queue through if there is capacity. Call this whenever there may be some."""
        while self._queue and self._has_capacity():
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
