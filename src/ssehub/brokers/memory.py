"""`memory://`: the log and the runs of one process, which end with the process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

from ..errors import BrokerUnavailable
from ..node import Node, Nodes
from ..position import Position
from ..publication import Publication, Revoke, TakeBack
from ..revocations import Revocation, Revocations
from ..settings import Idempotency, RunLimits
from .base import Entry, Follower
from .memory_runs import MemoryRuns
from .numbering import KeyWindow, assign_positions, new_log_name, next_position

NOT_RUNNING = "the memory broker is not running: use it inside `async with hub`"


class MemoryBroker:
    """Delivers each event within the call that publishes it.

    `now` returns Unix time and `monotonic` a monotonic clock, in seconds.
    """

    outlives_process: ClassVar[bool] = False

    def __init__(
        self,
        idempotency: Idempotency = Idempotency(),
        *,
        runs: RunLimits = RunLimits(),
        node: Node | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        self.clock_skew_seconds = 0.0
        self.skipped = 0
        self.nodes = Nodes(node or Node.here())
        self.is_current = True
        self.revocations = Revocations()
        self.runs = MemoryRuns(runs, now=now, monotonic=monotonic)
        self.now = now
        self._last = Position(int(now() * 1000), 0, new_log_name())
        self._is_empty = True
        self._keys = KeyWindow(idempotency, now)
        self._follower: Follower | None = None

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        position, entries, positions = self.append(publications)
        assert self._follower is not None
        # Without entries, too: what was published before with a key may not have been dispatched yet.
        await self._follower.deliver(position, entries)
        return positions

    def append(self, publications: Sequence[Publication]) -> tuple[Position, list[Entry], list[str]]:
        if self._follower is None:
            raise BrokerUnavailable(NOT_RUNNING)
        numbered = assign_positions(publications, next_position(self._last, int(self.now() * 1000)), self._keys.find)
        if numbered.keys:
            self._keys.add(numbered.keys)
        if numbered.entries:
            self._last = numbered.entries[-1].position
            self._is_empty = False
        return self._last, numbered.entries, numbered.positions

    async def revoke(self, revocations: Sequence[Revocation]) -> str:
        if self._follower is None:
            raise BrokerUnavailable(NOT_RUNNING)
        self.revocations.require_room(revocations)
        for revocation in revocations:
            self.revocations.add(revocation)
        return (await self.publish([Publication([Revoke(tuple(revocations))])]))[0]

    async def take_back(self, keys: Sequence[str]) -> str:
        if self._follower is None:
            raise BrokerUnavailable(NOT_RUNNING)
        for key in keys:
            self.revocations.remove(key)
        return (await self.publish([Publication([TakeBack(tuple(keys))])]))[0]

    async def head(self) -> str | None:
        return None if self._is_empty else str(self._last)

    @asynccontextmanager
    async def run(self, follower: Follower) -> AsyncIterator[None]:
        await follower.begin(self._last)
        self._follower = follower
        try:
            async with self.runs.running():
                yield
        finally:
            self._follower = None
