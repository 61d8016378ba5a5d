"""The gate that publishers pass: first come, first served, while there is capacity and their channels' clients read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sized

from ..errors import Overloaded

REVIEW_SECONDS = 0.005
"""While publishers wait for the clients of a channel, this is how often the gate asks whether they still have to."""

Turn = asyncio.Future[None]


class Gate:
    """Lets publishers through while `has_capacity` returns True, and `must_wait` False for each of their channels.

    The others wait: at most `max_waiting` of them for capacity, and as many for clients. `must_wait` is only asked
    while there are `laggards`.
    """

    def __init__(
        self,
        has_capacity: Callable[[], bool],
        max_waiting: int,
        laggards: Sized = (),
        must_wait: Callable[[str], bool] = lambda channel: False,
    ) -> None:
        self._has_capacity = has_capacity
        self._max_waiting = max_waiting
        self.laggards = laggards
        """The lagging subscribers: none on a healthy hub."""
        self._must_wait = must_wait
        self._queue: deque[Turn] = deque()
        self.held_up: dict[str, deque[Turn]] = {}
        """The publishers that wait for the clients of a channel."""
        self._review: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of publishers that wait."""
        return len(self._queue) + self._held_up_count()

    def _held_up_count(self) -> int:
        return sum(map(len, self.held_up.values()))

    @property
    def has_queue(self) -> bool:
        """True if publishers wait, or may have to wait for clients of their channels."""
        return bool(self._queue or self.laggards or self.held_up)

    async def enter(self) -> None:
        """Return when there is capacity. Raises Overloaded if too many are waiting already."""
        if not self._queue and self._has_capacity():
            return
        if len(self._queue) >= self._max_waiting:
            raise Overloaded(f"{len(self._queue)} publishers are waiting already: try again in a second")
        await self.wait()

    async def wait_for_readers(self, channels: Iterable[str]) -> None:
        """Return when most clients of each of `channels` have caught up, or have had their time.

        Raises Overloaded if too many are waiting already.
        """
        for channel in channels:
            has_waited = False
            # Those who come later wait behind the others. One whose turn has come only waits for the clients.
            while self._is_lagging(channel) or (not has_waited and self.held_up.get(channel)):
                if not has_waited and self._held_up_count() >= self._max_waiting:
                    raise Overloaded(
                        f"{self._max_waiting} publishers are waiting for slow clients already: try again in a second"
                    )
                if self._review is None:
                    self._review_later()
                await self._wait_in(self.held_up.setdefault(channel, deque()), is_first=has_waited)
                has_waited = True

    def _is_lagging(self, channel: str) -> bool:
        return bool(self.laggards) and self._must_wait(channel)

    async def wait(self) -> None:
        """Wait for capacity, however many are waiting already."""
        await self._wait_in(self._queue)

    async def _wait_in(self, queue: deque[Turn], *, is_first: bool = False) -> None:
        turn = asyncio.get_running_loop().create_future()
        if is_first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.open()
            raise
        finally:
            if turn in queue:
                queue.remove(turn)

    def open(self) -> None:
        """Let the first in each queue through that need not wait. Call this whenever that may have changed."""
        while self._queue and self._has_capacity():
            if _let_through(self._queue):
                return
        if self.held_up and not self._queue:
            self._open_channels()

    def _open_channels(self) -> None:
        for channel in [name for name in self.held_up if not self._must_wait(name)]:
            if self._has_capacity():
                _let_through(self.held_up[channel])
        for channel in [name for name, queue in self.held_up.items() if not queue]:
            del self.held_up[channel]

    def _review_later(self) -> None:
        self._review = asyncio.get_running_loop().call_later(REVIEW_SECONDS, self._do_review)

    def _do_review(self) -> None:
        self._review = None
        self.open()
        if self.held_up:
            self._review_later()


def _let_through(queue: deque[Turn]) -> bool:
    """Let the first in `queue` through; return False if there is nobody left who waits."""
    while queue:
        turn = queue.popleft()
        if not turn.done():
            turn.set_result(None)
            return True
    return False
