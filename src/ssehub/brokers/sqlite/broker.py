"""The SQLite broker: one thread writes, and publishers that wait for it share the next transaction.

At rest an event is stored immediately; under load one commit, with one fsync, stores many. Events are delivered, and
their publishers answered, after the commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

from ...errors import BrokerUnavailable
from ...node import Node, Nodes
from ...publication import Publication, Revoke, TakeBack
from ...revocations import Revocation, Revocations
from ...settings import Idempotency, LogRetention, Retention, RunLimits
from ..base import Follower, apply_commands
from ..numbering import Numbered
from .logfile import LogFile, Outcome, locked
from .runs import SqliteRuns

logger = logging.getLogger("ssehub.brokers.sqlite")

GROUP_EVENTS = 5_000
"""A transaction with this many events accepts no further publications."""
TIDY_SECONDS = 30.0
TAIL_CHUNK = 500


class SqliteBroker:
    """The log in the file at `path`, and the runs in another one beside it.

    `now` returns Unix time and `monotonic` a monotonic clock, in seconds.
    """

    outlives_process: ClassVar[bool] = True

    def __init__(
        self,
        path: Path,
        *,
        idempotency: Idempotency = Idempotency(),
        log: LogRetention = LogRetention(),
        retention: Retention = Retention(),
        runs: RunLimits = RunLimits(),
        node: Node | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock_skew_seconds = 0.0
        self.skipped = 0
        self.nodes = Nodes(node or Node.here())
        self.is_current = True
        self.revocations = Revocations()
        self.now = now
        self._path = path.resolve()  # the lock file must be beside the file itself, however `path` refers to it
        self.runs = SqliteRuns(self._path, runs, now=now, monotonic=monotonic)
        self._idempotency = idempotency
        self._log = log
        self._retention = retention
        self._writer: _Writer | None = None
        """None while the broker is not running."""

    @property
    def problem(self) -> str | None:
        return None if self._writer is None else self._writer.problem or self.runs.problem

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        if self._writer is None:
            raise BrokerUnavailable("the SQLite broker is not running: use it inside `async with hub`")
        return await self._writer.append(publications)

    async def revoke(self, revocations: Sequence[Revocation]) -> str:
        return (await self.publish([Publication([Revoke(tuple(revocations))])]))[0]

    async def take_back(self, keys: Sequence[str]) -> str:
        return (await self.publish([Publication([TakeBack(tuple(keys))])]))[0]

    async def head(self) -> str | None:
        return None if self._writer is None else self._writer.head

    @asynccontextmanager
    async def run(self, follower: Follower) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "ssehub-sqlite") as thread, locked(self._path):
            file = await loop.run_in_executor(thread, self._open)
            try:
                self.revocations.replace(await loop.run_in_executor(thread, file.revocations))
                await self._deliver_tail(file, thread, follower)
                writer = self._writer = _Writer(file, thread, follower, self.revocations)
                try:
                    async with self.runs.running():
                        yield
                finally:
                    self._writer = None
                    writer.stop()
            finally:
                await loop.run_in_executor(thread, file.close)

    def _open(self) -> LogFile:
        return LogFile.open(self._path, idempotency=self._idempotency, log=self._log, now=self.now)

    async def _deliver_tail(self, file: LogFile, thread: ThreadPoolExecutor, follower: Follower) -> None:
        loop = asyncio.get_running_loop()
        base, tail = await loop.run_in_executor(thread, file.tail, self._retention)
        await follower.begin(base)
        for start in range(0, len(tail), TAIL_CHUNK):
            chunk = tail[start : start + TAIL_CHUNK]
            await follower.deliver(chunk[-1].position, chunk)
        await follower.deliver(await loop.run_in_executor(thread, file.advance_to_now), ())


class _Request(NamedTuple):
    publications: Sequence[Publication]
    answer: asyncio.Future[list[str]]


class _Writer:
    """The task that writes what publishers hand over to the log and delivers it, from now until `stop`."""

    def __init__(self, file: LogFile, thread: ThreadPoolExecutor, follower: Follower, revocations: Revocations) -> None:
        self.problem: str | None = None
        self._file = file
        self._thread = thread
        self._follower = follower
        self._revocations = revocations
        self._loop = asyncio.get_running_loop()
        self._requests: list[_Request] = []
        self._wake = asyncio.Event()
        self._is_stopped = False
        self._is_tidy_due = False
        self._timer = self._loop.call_later(TIDY_SECONDS, self._tidy_soon)
        self._task = self._loop.create_task(self._run())

    @property
    def head(self) -> str | None:
        return None if self._file.is_empty else str(self._file.last)

    def append(self, publications: Sequence[Publication]) -> asyncio.Future[list[str]]:
        """Write `publications` with the next group; the result is their positions."""
        answer: asyncio.Future[list[str]] = self._loop.create_future()
        self._requests.append(_Request(publications, answer))
        self._wake.set()
        return answer

    def stop(self) -> None:
        """Refuse the requests that wait; the group that is being written is still written and answered."""
        self._is_stopped = True
        self._is_tidy_due = False
        self._timer.cancel()
        self._wake.set()
        requests, self._requests = self._requests, []
        for request in requests:
            _refuse(request, BrokerUnavailable("the hub has stopped; nothing was stored"))

    async def _run(self) -> None:
        while not self._is_stopped:
            if self._requests:
                await self._write(self._next_group())
            if self._is_tidy_due:
                await self._tidy()
            if not self._requests:
                await self._wake.wait()
                self._wake.clear()

    def _tidy_soon(self) -> None:
        self._is_tidy_due = True
        self._wake.set()

    async def _tidy(self) -> None:
        """Delete what is over the limits, which also shows whether the file can be written again."""
        self._is_tidy_due = has_more = False
        try:
            has_more = await self._loop.run_in_executor(self._thread, self._file.tidy)
        except BrokerUnavailable as exc:
            self._report_problem(exc)
        else:
            self.problem = None
        if not self._is_stopped:
            self._timer = self._loop.call_later(0 if has_more else TIDY_SECONDS, self._tidy_soon)

    def _report_problem(self, exc: Exception) -> None:
        if self.problem != str(exc):
            logger.warning("%s", exc)
        self.problem = str(exc)

    def _next_group(self) -> list[_Request]:
        events = count = 0
        while count < len(self._requests) and events < GROUP_EVENTS:
            events += sum(len(publication.events) for publication in self._requests[count].publications)
            count += 1
        group, self._requests = self._requests[:count], self._requests[count:]
        return group

    async def _write(self, group: list[_Request]) -> None:
        before = self._file.last
        publications = [request.publications for request in group]
        try:
            results = await self._loop.run_in_executor(self._thread, self._file.append, publications)
        except Exception as exc:
            self._report_problem(exc)
            for request in group:
                _refuse(request, exc if isinstance(exc, BrokerUnavailable) else BrokerUnavailable(str(exc)))
            if self._file.last > before:  # the commit reported an error but took effect: its events are not delivered
                await self._read_table()
                await self._follower.begin(self._file.last)
            return
        self.problem = None
        await self._deliver(results)
        for request, result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                _refuse(request, result)
            elif not request.answer.done():
                request.answer.set_result(result.positions)

    async def _read_table(self) -> None:
        """Read the whole table of revocations. If that fails, the publisher who is told so may try again."""
        try:
            table = await self._loop.run_in_executor(self._thread, self._file.revocations)
        except BrokerUnavailable as exc:
            self._report_problem(exc)
        else:
            await self._follower.revoked(self._revocations.replace(table))

    async def _deliver(self, results: list[Outcome]) -> None:
        entries = [entry for result in results if isinstance(result, Numbered) for entry in result.entries]
        apply_commands(self._revocations, entries)
        try:
            if entries:
                await self._follower.deliver(entries[-1].position, entries)
        except Exception:
            logger.exception("delivering stored events failed: every stream is sent a reset")
            await self._follower.begin(self._file.last)


def _refuse(request: _Request, exc: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(exc)
