"""The Redis broker: checks the log at its start, then runs the writer and the reader, and the store of runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, NamedTuple

from ...errors import BrokerUnavailable
from ...node import Node, Nodes
from ...publication import Publication
from ...revocations import Revocation, Revocations
from ...settings import Idempotency, LogRetention, RedisOptions, Retention, RunLimits
from ..base import Follower
from .connection import Connection, Server, explain
from .nodes import RedisNodes
from .reader import Reader
from .run_calls import check_access
from .run_channels import check_channels
from .run_wire import RunKeys
from .runs import RedisRuns
from .state import Knowledge
from .table import Table
from .writer import Writer

NOT_RUNNING = "the Redis broker is not running: use it inside `async with hub`"


class _Tasks(NamedTuple):
    """The two tasks of a running broker, each with a connection of its own."""

    reader: Reader
    writer: Writer


class RedisBroker:
    """The log in the Redis at `url`. Raises ConfigError if the URL cannot be used.

    Redis' clock counts. It is compared with this node's, `now`, which returns Unix time in seconds.
    """

    outlives_process: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        *,
        idempotency: Idempotency = Idempotency(),
        log: LogRetention = LogRetention(),
        retention: Retention = Retention(),
        runs: RunLimits = RunLimits(),
        options: RedisOptions = RedisOptions(),
        node: Node | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._server = Server(url, options.redis_prefix, now)
        self._nodes = RedisNodes(self._server, node or Node.here(), options.broker_probe_seconds)
        self.runs = RedisRuns(self._server, runs, options.broker_probe_seconds)
        self._idempotency = idempotency
        self._log = log
        self._retention = retention
        self._options = options
        self._knowledge = Knowledge()
        self._table = Table(self._server.clock, self._knowledge, log)
        self._tasks: _Tasks | None = None
        """None while the broker is not running."""

    @property
    def problem(self) -> str | None:
        tasks = self._tasks
        if tasks is None:
            return None
        return tasks.reader.health.problem or tasks.writer.health.problem or self.runs.problem

    @property
    def is_current(self) -> bool:
        return self._tasks is not None and self._tasks.reader.is_current

    @property
    def revocations(self) -> Revocations:
        return self._table.revocations

    @property
    def nodes(self) -> Nodes:
        return self._nodes.known

    @property
    def clock_skew_seconds(self) -> float:
        return self._server.clock.skew_seconds

    def now(self) -> float:
        return self._server.clock.now()

    @property
    def skipped(self) -> int:
        return self._knowledge.skipped

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        if self._tasks is None:
            raise BrokerUnavailable(NOT_RUNNING)
        return await self._tasks.writer.publish(publications)

    async def revoke(self, revocations: Sequence[Revocation]) -> str:
        if self._tasks is None:
            raise BrokerUnavailable(NOT_RUNNING)
        return await self._tasks.writer.revoke(revocations)

    async def take_back(self, keys: Sequence[str]) -> str:
        if self._tasks is None:
            raise BrokerUnavailable(NOT_RUNNING)
        return await self._tasks.writer.take_back(keys)

    async def head(self) -> str | None:
        if self._tasks is None:
            raise BrokerUnavailable(NOT_RUNNING)
        return await self._tasks.writer.head()

    @asynccontextmanager
    async def run(self, follower: Follower) -> AsyncIterator[None]:
        probe_seconds = self._options.broker_probe_seconds
        reader = Reader(self._server, self._knowledge, self._table, follower, self._retention, probe_seconds)
        writer = Writer(self._server, self._knowledge, self._table, self._idempotency, self._log, probe_seconds)
        tasks: list[asyncio.Task[None]] = []
        try:
            if self._options.wait_for_broker:
                reader.health.problem = f"the log at {self._server.shown} has not been read yet"
            else:
                # In a task of its own, so that `_cancel` ends it however often its cancellation is lost.
                tasks.append(asyncio.create_task(self._start(reader)))
                await asyncio.shield(tasks[0])
            tasks += [asyncio.create_task(one.run()) for one in (reader, writer, self._nodes)]
            self._tasks = _Tasks(reader, writer)
            async with self.runs.running() as run_tasks:
                tasks += run_tasks
                yield
        finally:
            self._tasks = None
            await _cancel(tasks)
            writer.close()
            await self._nodes.leave()

    async def _start(self, reader: Reader) -> None:
        """Deliver the log's tail and check that this user may use the log and the runs. Raises BrokerUnavailable."""
        try:
            async with self._server.connect(self._options.broker_probe_seconds) as connection:
                await connection.check_version()
                await reader.catch_up(connection)
                await self._check_access(connection)
        except Exception as exc:
            raise BrokerUnavailable(f"cannot use the log at {self._server.shown}: {explain(exc)}") from exc

    async def _check_access(self, connection: Connection) -> None:
        await connection.log_state(self._knowledge.newest, is_writer=True)
        await connection.command("XREAD", "COUNT", 1, "STREAMS", connection.keys.stream, "$")
        await connection.tidy(self._idempotency, self._log)
        keys = RunKeys.of(self._server.prefix, connection.database)
        await check_access(connection, keys)
        await check_channels(connection, keys)


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel `tasks` until they have ended: Python 3.11's `wait_for`, used with Sentinel, may lose one (gh-86296)."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=0.1)
