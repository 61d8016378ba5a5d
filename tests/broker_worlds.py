"""Brokers for tests: a world makes the brokers of one kind, and a follower records what they deliver."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from conftest import until
from redis_servers import RedisServer
from ssehub.brokers import Broker, Entry
from ssehub.brokers.memory import MemoryBroker
from ssehub.brokers.redis import RedisBroker
from ssehub.brokers.sqlite import SqliteBroker
from ssehub.event import Event
from ssehub.position import Position
from ssehub.publication import Command, IdempotencyKey, Publication
from ssehub.revocations import Revocation
from ssehub.settings import Idempotency, LogRetention, RedisOptions, Retention
from ssehub.testing import ManualClock

StartServer = Callable[[str], RedisServer]
"""Returns the server of a kind, "redis" or "valkey", starting it if no test has needed it yet."""


def event(data: str = "x", **fields: Any) -> Event:
    return Event(("chat",), ("*",), data=data, **fields)


def keyed(key: str, *events: Event) -> Publication:
    """Return a publication of `events` with an idempotency key."""
    return Publication(events, IdempotencyKey.make(key, ("", "chat"), events))


class RecordingFollower:
    """A follower, in place of a hub, that records what it is given and checks the order.

    Like a hub, it accepts entries before it first waits.
    """

    def __init__(self) -> None:
        self.bases: list[Position] = []
        self.entries: list[Entry] = []
        self.revocations: list[Revocation] = []
        """Those that the broker told it of by `revoked`."""
        self.has_capacity = asyncio.Event()
        """While it is not set, `deliver` does not return."""
        self.has_capacity.set()
        self.waiting = 0
        """Number of calls of `deliver` that have not returned."""
        self._position: Position | None = None

    async def begin(self, base: Position) -> None:
        self.bases.append(base)
        self._position = base

    async def revoked(self, revocations: Sequence[Revocation]) -> None:
        assert self.bases, "revoked was called before begin"
        self.revocations.extend(revocations)

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        positions = [self.position, *(entry.position for entry in entries)]
        assert all(before < after for before, after in pairwise(positions))
        assert positions[-1] <= position
        self._position = position
        self.entries.extend(entries)
        self.waiting += 1
        try:
            await self.has_capacity.wait()
        finally:
            self.waiting -= 1

    @property
    def position(self) -> Position:
        """The position up to which the log has been read."""
        assert self._position is not None, "deliver was called before begin"
        return self._position

    @property
    def events(self) -> list[Event]:
        return [entry.event for entry in self.entries if isinstance(entry.event, Event)]

    @property
    def commands(self) -> list[Command]:
        return [entry.event for entry in self.entries if not isinstance(entry.event, Event)]

    @property
    def data(self) -> list[str | None]:
        return [event.data for event in self.events]

    async def caught_up(self, broker: Broker) -> None:
        """Return when everything in the log has been delivered."""
        head = await broker.head()
        await until(lambda: head is None or str(self.position) == head)


class World(ABC):
    """Makes brokers of one kind, which share one log and one clock. Each test has a world of its own."""

    is_durable: ClassVar[bool]
    """True if the log outlives the broker."""
    delivers_before_it_answers: ClassVar[bool]
    """True if `publish` returns only after `deliver` has returned."""
    is_shared: ClassVar[bool] = False
    """True if several brokers may run at a time."""
    delivers_in_publish: ClassVar[bool] = False
    """True if each call of `publish` calls `deliver` itself, so that these calls may overlap."""

    def __init__(self, folder: Path, start_server: StartServer) -> None:
        """`folder` is empty; `start_server` returns a Redis or Valkey."""
        self.folder = folder
        self.clock = ManualClock()

    @abstractmethod
    def broker(self, *, idempotency: Idempotency = Idempotency(), retention: Retention = Retention()) -> Broker:
        """Create a broker whose clock is `self.clock`."""

    def pass_seconds(self, seconds: float) -> None:
        """Let the clock advance, or set it back if `seconds` is negative."""
        self.clock.pass_seconds(seconds)

    async def tidied(self) -> None:  # noqa: B027  # optional
        """Return when a running broker has removed what is over its limits; most do so in `publish`."""

    @asynccontextmanager
    async def running(
        self, *, idempotency: Idempotency = Idempotency()
    ) -> AsyncIterator[tuple[Broker, RecordingFollower]]:
        broker, follower = self.broker(idempotency=idempotency), RecordingFollower()
        async with broker.run(follower):
            yield broker, follower


class MemoryWorld(World):
    is_durable = False
    delivers_before_it_answers = True
    delivers_in_publish = True

    def broker(self, *, idempotency: Idempotency = Idempotency(), retention: Retention = Retention()) -> Broker:
        return MemoryBroker(idempotency, now=lambda: self.clock.wall)


class SqliteWorld(World):
    is_durable = True
    delivers_before_it_answers = True

    @property
    def path(self) -> Path:
        return self.folder / "log.db"

    def broker(
        self,
        *,
        idempotency: Idempotency = Idempotency(),
        log: LogRetention = LogRetention(),
        retention: Retention = Retention(),
    ) -> SqliteBroker:
        return SqliteBroker(
            self.path, idempotency=idempotency, log=log, retention=retention, now=lambda: self.clock.wall
        )

    async def tidied(self) -> None:  # optional
        """Wait for two commits: the transaction of the second began after this call.

        A test that calls this sets `TIDY_SECONDS` low and publishes nothing meanwhile.
        """
        with closing(sqlite3.connect(self.path)) as database:

            def version() -> Any:
                return database.execute("PRAGMA data_version").fetchone()

            for _ in range(2):
                before = version()
                await until(lambda before=before: version() != before)  # type: ignore[misc]  # a lambda with a default


class RedisWorld(World):
    """Redis uses its own clock, so `pass_seconds` moves the times stored in Redis instead."""

    is_durable = True
    is_shared = True
    delivers_before_it_answers = False
    kind: ClassVar[str] = "redis"
    _numbers = itertools.count()

    def __init__(self, folder: Path, start_server: StartServer) -> None:
        super().__init__(folder, start_server)
        self._server = start_server(self.kind)
        self._prefix = f"test-{next(self._numbers)}"

    def broker(self, *, idempotency: Idempotency = Idempotency(), retention: Retention = Retention()) -> Broker:
        options = RedisOptions(redis_prefix=self._prefix)
        return RedisBroker(self._server.url, idempotency=idempotency, retention=retention, options=options)

    def pass_seconds(self, seconds: float) -> None:
        milliseconds = round(seconds * 1000)
        with self._server.client() as client:
            ages = f"{{{self._prefix}}}:key-ages"
            for key, age in client.zrange(ages, 0, -1, withscores=True):
                client.zadd(ages, {key: age - milliseconds})
            if milliseconds < 0:
                client.hincrby(f"{{{self._prefix}}}:state", "ms", -milliseconds)
            table = f"{{{self._prefix}}}:revocations"
            for key, value in client.hgetall(table).items():
                before, ends, rest = value.split(" ", 2)
                if ends != "-":
                    client.hset(table, key, f"{before} {float(ends) - seconds} {rest}")

    async def tidied(self) -> None:
        async with self.running():
            pass  # a broker tidies before it is running


class ValkeyWorld(RedisWorld):
    kind = "valkey"
