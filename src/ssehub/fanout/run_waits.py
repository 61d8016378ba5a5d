"""The clients that wait for a run to appear.

A client that waits counts as a stream of its user and its address, where those are limited. The number of all that wait
is bounded, too. Beyond it, the newest one of the user with the most gives way to that of a user with fewer, so that one
client with a token does not keep others from waiting, however often it asks.
"""

from __future__ import annotations

import asyncio

from ..errors import StreamRefused
from .limits import StreamCounts
from .refusals import Refusal


class RunWait:
    """One client that waits. Limits apply to those with an `address`."""

    __slots__ = ("_refusal", "_woken", "address", "user_id")

    def __init__(self, user_id: str, address: str | None = None) -> None:
        self.user_id = user_id
        self.address = address
        self._woken = asyncio.Event()
        self._refusal: StreamRefused | None = None

    def wake(self) -> None:
        """There may be what it waits for."""
        self._woken.set()

    def refuse(self, refusal: StreamRefused) -> None:
        """It may not wait any longer."""
        self._refusal = refusal
        self._woken.set()

    async def until_woken(self) -> None:
        """Return when it is woken. Raises StreamRefused if it may not wait any longer."""
        await self._woken.wait()
        self._woken.clear()
        if self._refusal is not None:
            raise self._refusal


class RunWaits:
    """The clients that wait, at most `most`; `counts` are the streams that limits are about, if there are limits."""

    def __init__(self, most: int, counts: StreamCounts | None) -> None:
        self._most = most
        self._counts = counts
        self._by_user: dict[str, dict[RunWait, None]] = {}
        self._number = 0
        self._refuses_all = False

    def __len__(self) -> int:
        return self._number

    def admit(self, wait: RunWait) -> None:
        """Let a client wait, if necessary in place of another one. Raises StreamRefused if it may not."""
        giving_way = None
        if self._number >= self._most:
            largest = max(self._by_user.values(), key=len)
            if len(largest) <= len(self._by_user.get(wait.user_id, ())) + 1:
                raise self._full()
            giving_way = next(reversed(largest))
        if self._counts is not None and wait.address is not None:
            self._counts.add_wait(wait.user_id, wait.address)
        if giving_way is not None:
            giving_way.refuse(self._full())
            self.leave(giving_way)
        self.enter(wait)

    def _full(self) -> StreamRefused:
        return StreamRefused(Refusal.RUN_WAITS, f"{self._most} clients wait for runs already (max_run_waits)")

    def enter(self, wait: RunWait) -> None:
        """Let a client wait, whatever the limits are."""
        self._by_user.setdefault(wait.user_id, {})[wait] = None
        self._number += 1
        if self._refuses_all:
            wait.refuse(_draining())

    def leave(self, wait: RunWait) -> None:
        """`wait` is over. One that has left already is ignored."""
        waits = self._by_user.get(wait.user_id, {})
        if wait not in waits:
            return
        del waits[wait]
        if not waits:
            del self._by_user[wait.user_id]
        self._number -= 1
        if self._counts is not None and wait.address is not None:
            self._counts.remove_wait(wait.user_id, wait.address)

    def refuse_all(self) -> None:
        """The hub drains: refuse those that wait, and those that would from now on."""
        self._refuses_all = True
        for waits in self._by_user.values():
            for wait in waits:
                wait.refuse(_draining())


def _draining() -> StreamRefused:
    return StreamRefused(Refusal.DRAINING, "the hub is draining and about to stop")
