"""The runs of the SQLite broker, in a file of their own beside the log.

The file is separate because the two have little in common: the bound of the log in bytes is for the log alone, the file
of an older log needs no change, a run of many megabytes that is deleted delays no publisher, and damage to one is not
damage to the other. It costs an fsync for each, where events and runs are written at the same moment. Both are locked
by the lock of the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...errors import BrokerUnavailable
from ...runs.book import Book, Change
from ...runs.entries import RunEvent
from ...runs.model import Outcome, Run, RunState
from ...runs.store import Append, Appended, Created, Creation, RunFilter, RunListener, RunTotals, Ticket
from ...settings import RunLimits
from ..numbering import new_log_name
from .run_ledger import Ledger
from .run_rows import RunReader
from .run_writer import RunWriter
from .runfile import Loaded, RunFile, path_of_runs
from .tails import size_of
from .told_runs import ToldRuns

NOT_RUNNING = "the SQLite broker is not running: use it inside `async with hub`"

Answer = TypeVar("Answer")


class _Session(NamedTuple):
    """What there is while the store runs."""

    writer: RunWriter
    reader: RunReader
    reading: ThreadPoolExecutor


class SqliteRuns:
    """Runs in the file that belongs to the log at `path`.

    `now` returns Unix time and `monotonic` a monotonic clock, in seconds.
    """

    def __init__(
        self, path: Path, limits: RunLimits, *, now: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self.outlives_process = True
        self._path = path_of_runs(path)
        self.limits = limits
        self._now = now
        self._monotonic = monotonic
        self._told = ToldRuns()
        self._session: _Session | None = None
        """None while the broker is not running."""

    @property
    def on_transition(self) -> Callable[[Run], None]:
        return self._told.on_transition

    @on_transition.setter
    def on_transition(self, call: Callable[[Run], None]) -> None:
        self._told.on_transition = call

    @property
    def problem(self) -> str | None:
        """Why runs cannot be written at present, or None if they can."""
        return None if self._session is None else self._session.writer.problem

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside the context the store can be used. Raises BrokerUnavailable if the file can't."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "ssehub-runs") as writing, ThreadPoolExecutor(1, "ssehub-reads") as reading:
            async with AsyncExitStack() as stack:
                file = await loop.run_in_executor(writing, RunFile, self._path)
                stack.push_async_callback(_in_thread, writing, file.close)
                ledger = await loop.run_in_executor(writing, lambda: self._build(file.load()))
                reader = await loop.run_in_executor(reading, RunReader, self._path)
                stack.push_async_callback(_in_thread, reading, reader.close)
                self._told.begin({name: record.run for name, record in ledger.book.records.items()}, ledger.numbers())
                writer = RunWriter(file, writing, ledger, rebuild=self._build, tell=self._told.tell, now=self._now)
                self._session = _Session(writer, reader, reading)
                try:
                    yield
                finally:
                    self._session = None
                    await writer.stop()

    def _build(self, loaded: Loaded) -> Ledger:
        book = Book(self.limits, wall=self._now, monotonic=self._monotonic, new_log=new_log_name)
        try:
            return Ledger(book, loaded, self._now)
        except BrokerUnavailable as exc:
            raise BrokerUnavailable(f"{exc} in {self._path}: move that file away, or restore it from a backup") from exc

    # Calls

    async def create(self, name: str, creation: Creation) -> Created:
        run, is_new = await self._call(lambda book: book.create(name, creation))
        return Created(self._told.told(run), is_new)

    async def append(self, name: str, step: Append) -> Appended:
        return await self._call(lambda book: book.append(name, step), size_of(step.events))

    async def release(self, name: str, ticket: Ticket) -> None:
        await self._call(lambda book: (None, book.release(name, ticket)))

    async def finish(self, name: str, outcome: Outcome, generation: int | None = None) -> Run:
        return self._told.told(await self._call(lambda book: book.finish(name, outcome, generation)))

    async def stop(self, name: str, generation: int | None = None) -> Run:
        return self._told.told(await self._call(lambda book: book.stop(name, generation)))

    async def delete(self, name: str, generation: int | None = None) -> Run:
        return await self._call(lambda book: book.delete(name, generation))

    async def get(self, name: str) -> Run | None:
        self._running()
        return self._told.get(name)

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        session = self._running()
        run, number = self._told.get(name), self._told.number(name)
        if run is None or run.log != log:
            return None
        if after >= run.events:
            return []
        events = self._told.read_tail(name, log, after, max_bytes)
        if events is None:
            loop = asyncio.get_running_loop()
            events = await loop.run_in_executor(
                session.reading, session.reader.read, number, after, run.events, max_bytes
            )
            run = self._told.get(name)
            if run is None or run.log != log:
                return None  # the events that were read may have been deleted in part
            if events is None:
                raise BrokerUnavailable(f"the file {self._path} is damaged: events of run {name!r} are missing")
        return events

    async def list_runs(self, wanted: RunFilter, after: str | None = None, limit: int = 1_000) -> list[Run]:
        runs = await self._running().writer.ask(lambda book: book.list_runs(wanted, after, limit))
        return [self._told.told(run) for run in runs]

    async def follow(self, name: str, listener: RunListener) -> Run | None:
        self._running()
        self._told.follow(name, listener)
        return self._told.get(name)

    def unfollow(self, name: str, listener: RunListener) -> None:
        self._told.unfollow(name, listener)

    def totals(self) -> RunTotals:
        if self._session is None:
            return RunTotals(dict.fromkeys(RunState, 0), 0)
        return self._session.writer.ledger.book.totals()

    # Inside

    def _running(self) -> _Session:
        if self._session is None:
            raise BrokerUnavailable(NOT_RUNNING)
        return self._session

    def _call(self, decide: Callable[[Book], tuple[Answer, Change | None]], size: int = 0) -> asyncio.Future[Answer]:
        return self._running().writer.call(decide, size)


async def _in_thread(thread: ThreadPoolExecutor, function: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(thread, function)
