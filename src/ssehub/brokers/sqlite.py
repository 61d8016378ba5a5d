"""`sqlite:///path`: the log in a file, for one process, which survives `kill -9` and power loss.

One thread writes. What is published while it does is the next transaction: at rest an event is stored at once, under
load one commit, and one fsync, carries many. An event is given out and its publisher answered after the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BrokerUnavailable, IdempotencyConflict, InvalidEvent
from ..event import Event
from ..position import Position
from ..publication import Publication
from .base import Entry, Follower, Limits
from .numbering import (
    Appended,
    Kept,
    append,
    first_place,
    new_log_name,
)

try:
    import fcntl
except ImportError:  # Windows: there SQLite's own locks have to do
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("ssehub.brokers.sqlite")

APPLICATION_ID = 0x53534568  # "SSEh", by which `file` and we know the log from other databases
VERSION = 1
SCHEMA = """
CREATE TABLE log (name TEXT NOT NULL, last_ms INTEGER NOT NULL, last_seq INTEGER NOT NULL,
                  floor_ms INTEGER NOT NULL, floor_seq INTEGER NOT NULL);
CREATE TABLE events (n INTEGER PRIMARY KEY, ms INTEGER NOT NULL, seq INTEGER NOT NULL, event TEXT NOT NULL);
CREATE TABLE keys (n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
                   ms INTEGER NOT NULL, seq INTEGER NOT NULL, count INTEGER NOT NULL, at REAL NOT NULL);
"""
GROUP_EVENTS = 5_000
"""Events after which a transaction takes no further publication."""
MARK_AHEAD_MILLISECONDS = 10_000
TIDY_SECONDS = 30.0
TIDY_ROWS = 2_000
"""Rows that are deleted at once: what is published meanwhile waits."""
TAIL_CHUNK = 500


class _Waiting(NamedTuple):
    publications: Sequence[Publication]
    answer: asyncio.Future[list[str]]


class SqliteBroker:
    """The log in the file at `path`. `now` gives Unix time in seconds."""

    def __init__(self, path: Path, limits: Limits | None = None, *, now: Callable[[], float] = time.time) -> None:
        self.problem: str | None = None
        self.skipped = 0
        self._path = path.resolve()  # the lock has to be beside the file itself, by whatever name it is reached
        self._limits = limits or Limits()
        self._now = now
        self._waiting: list[_Waiting] = []
        self._wake: asyncio.Event | None = None
        self._file: LogFile | None = None

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        if self._wake is None:
            raise BrokerUnavailable("the SQLite broker is not running: use it inside `async with hub`")
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(publications, answer))
        self._wake.set()
        return await answer

    async def head(self) -> str | None:
        return None if self._file is None or self._file.is_empty else str(self._file.last)

    @asynccontextmanager
    async def run(self, follower: Follower) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "ssehub-sqlite") as thread, locked(self._path):
            file = self._file = await loop.run_in_executor(thread, LogFile.open, self._path, self._limits, self._now)
            try:
                base, tail = await loop.run_in_executor(thread, file.tail)
                await follower.begin(base)
                for start in range(0, len(tail), TAIL_CHUNK):
                    chunk = tail[start : start + TAIL_CHUNK]
                    await follower.deliver(chunk[-1].position, chunk)
                del tail
                await follower.deliver(await loop.run_in_executor(thread, file.start_now), ())
                self._wake = asyncio.Event()
                writing = asyncio.create_task(self._write(file, thread, follower, self._wake))
                try:
                    yield
                finally:
                    await self._stop(writing)
            finally:
                self._file = None
                await loop.run_in_executor(thread, file.close)

    async def _stop(self, writing: asyncio.Task[None]) -> None:
        """Refuse what waits; what is being written is written to its end."""
        self._wake = None
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            _refuse(one.answer, BrokerUnavailable("the hub has ended; nothing was stored"))

    async def _write(self, file: LogFile, thread: ThreadPoolExecutor, follower: Follower, wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        tidied_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIDY_SECONDS):
                    await wake.wait()
            wake.clear()
            while self._waiting:
                group = self._take_group()
                await asyncio.shield(self._write_group(file, thread, follower, group))
            if loop.time() - tidied_at > TIDY_SECONDS:
                has_more = await self._tidy(file, thread)
                tidied_at = loop.time() - (TIDY_SECONDS if has_more else 0)

    async def _tidy(self, file: LogFile, thread: ThreadPoolExecutor) -> bool:
        """Make room, which also tells whether the file can be written (again)."""
        try:
            has_more = await asyncio.get_running_loop().run_in_executor(thread, file.tidy)
        except BrokerUnavailable as exc:
            self._has_problem(exc)
            return False
        self.problem = None
        return has_more

    def _has_problem(self, exc: Exception) -> None:
        if self.problem != str(exc):
            logger.warning("%s", exc)
        self.problem = str(exc)

    def _take_group(self) -> list[_Waiting]:
        events = count = 0
        while count < len(self._waiting) and events < GROUP_EVENTS:
            events += sum(len(publication.events) for publication in self._waiting[count].publications)
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    async def _write_group(
        self, file: LogFile, thread: ThreadPoolExecutor, follower: Follower, group: list[_Waiting]
    ) -> None:
        loop = asyncio.get_running_loop()
        before = file.last
        try:
            results = await loop.run_in_executor(thread, file.append, [one.publications for one in group])
        except Exception as exc:
            self._has_problem(exc)
            for one in group:
                _refuse(one.answer, exc if isinstance(exc, BrokerUnavailable) else BrokerUnavailable(str(exc)))
            if file.last > before:  # the commit that failed was one after all, and nobody has had its events
                await follower.begin(file.last)
            return
        self.problem = None
        entries = [entry for result in results if isinstance(result, Appended) for entry in result.entries]
        try:
            if entries:
                await follower.deliver(entries[-1].position, entries)
        except Exception:
            logger.exception("giving out what was stored failed: all streams are told")
            await follower.begin(file.last)
        for one, result in zip(group, results, strict=True):
            if isinstance(result, IdempotencyConflict):
                _refuse(one.answer, result)
            elif not one.answer.done():
                one.answer.set_result(result.positions)


def _refuse(answer: asyncio.Future[list[str]], exc: Exception) -> None:
    if not answer.done():
        answer.set_exception(exc)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process has the log. The lock is a file beside it: closing the log itself anywhere in this
    process would end the locks that SQLite has on it.
    """
    if fcntl is None:
        yield
        return
    try:
        lock = open(f"{path}.lock", "a")  # noqa: SIM115
    except OSError as exc:
        raise BrokerUnavailable(f"the log {path} can't be opened: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise BrokerUnavailable(
                f"another process has the log {path}: one hub uses it at a time; end that one, or use another file"
            ) from exc
        yield


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            reason = f"the log {path} is damaged ({exc}): move it away, or put a good copy in its place"
        elif name.startswith("SQLITE_FULL"):
            reason = f"the log {path} can't grow: the disk is full"
        else:
            reason = f"the log {path} can't be used: {exc}"
        raise BrokerUnavailable(reason) from exc


class LogFile:
    """The database. All of it is called in one thread, or before there is another."""

    def __init__(self, path: Path, database: sqlite3.Connection, limits: Limits, now: Callable[[], float]) -> None:
        self._path = path
        self._database = database
        self._limits = limits
        self._now = now
        self._read_last()

    @classmethod
    def open(cls, path: Path, limits: Limits, now: Callable[[], float] = time.time) -> LogFile:
        """Open the log, or make a new one where there is no file. Raises BrokerUnavailable."""
        if path.is_dir():
            raise BrokerUnavailable(f"the log {path} can't be opened: it is a folder, name a file in it")
        with _explained(path):
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                is_new = not database.execute("PRAGMA schema_version").fetchone()[0]
                if not is_new:
                    _check(path, database)
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=FULL")
                if is_new:
                    _create(database, int(now() * 1000))
                return cls(path, database, limits, now)
            except BaseException:
                database.close()
                raise

    @classmethod
    def open_to_read(cls, path: Path) -> LogFile:
        """The same to read only, beside the process that writes it."""
        if not path.is_file():
            raise BrokerUnavailable(f"there is no log {path}")
        with _explained(path):
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            try:
                _check(path, database)
                return cls(path, database, Limits(), time.time)
            except BaseException:
                database.close()
                raise

    def close(self) -> None:
        self._database.close()

    def _read_last(self) -> None:
        row = self._one("SELECT name, last_ms, last_seq FROM log")
        if row is None:
            raise BrokerUnavailable(f"the log {self._path} is damaged (it has lost its name): move it away")
        self.last = self._marked = Position(row[1], row[2], row[0])
        self.is_empty = self._database.execute("SELECT 1 FROM events LIMIT 1").fetchone() is None

    def start_now(self) -> Position:
        """Where the log stands at a start: not before now, as clients may know of events that were not stored."""
        now = Position(int(self._now() * 1000), 0, self.last.log)
        self.last = max(self.last, now)
        with _explained(self._path), self._transaction():
            self._mark(self.last)
        return self.last

    def _mark(self, position: Position) -> None:
        """Have the file know that clients may have been told of `position`."""
        self._database.execute("UPDATE log SET last_ms = ?, last_seq = ?", position[:2])
        self._marked = position

    def tail(self) -> tuple[Position, list[Entry]]:
        """The newest entries, as many as a hub keeps, and the position before them."""
        with _explained(self._path):
            found: list[Entry] = []
            size = 0
            for entry in self.backwards():
                size += entry.event.size
                if len(found) >= self._limits.tail_events or (found and size > self._limits.tail_bytes):
                    return entry.position, found[::-1]
                found.append(entry)
            ms, seq = self._database.execute("SELECT floor_ms, floor_seq FROM log").fetchone()
            return Position(ms, seq, self.last.log), found[::-1]

    def backwards(self) -> Iterator[Entry]:
        """All entries, the newest first. Raises BrokerUnavailable if one can't be read."""
        with _explained(self._path):
            for n, ms, seq, text in self._database.execute("SELECT n, ms, seq, event FROM events ORDER BY n DESC"):
                try:
                    yield Entry(Position(ms, seq, self.last.log), Event.load(text))
                except InvalidEvent as exc:
                    raise BrokerUnavailable(f"the log {self._path} is damaged (row {n}: {exc}): move it away") from exc

    def append(self, requests: Sequence[Sequence[Publication]]) -> list[Appended | IdempotencyConflict]:
        """Store what is new in `requests` in one transaction: each whole, or refused without touching the others.

        Raises BrokerUnavailable when nothing was stored.
        """
        before, marked = self.last, self._marked
        try:
            with _explained(self._path), self._transaction():
                return [self._append(publications) for publications in requests]
        except BaseException:
            self.last, self._marked = before, marked
            with contextlib.suppress(sqlite3.Error):
                # A failed commit may have been one after all.
                ms, seq = self._one("SELECT last_ms, last_seq FROM log")
                stored = Position(ms, seq, before.log)
                if stored != marked:
                    self.last = self._marked = max(before, stored)
            raise

    def _append(self, publications: Sequence[Publication]) -> Appended | IdempotencyConflict:
        try:
            appended = append(publications, first_place(self.last, int(self._now() * 1000)), self._find)
        except IdempotencyConflict as exc:
            return exc
        rows = [
            (entry.position.milliseconds, entry.position.sequence, entry.event.dump())
            for entry in appended.entries
            if entry.event.store
        ]
        if rows:
            self._database.executemany("INSERT INTO events (ms, seq, event) VALUES (?, ?, ?)", rows)
            self.is_empty = False
        if appended.keys:
            self._keep(appended.keys)
        if appended.entries:
            self.last = last = appended.entries[-1].position
            if rows or appended.keys:
                self._mark(last)
            elif last > self._marked:
                # Events that are not stored have places, too: marking ahead saves them a commit each.
                self._mark(last._replace(milliseconds=last.milliseconds + MARK_AHEAD_MILLISECONDS))
        return appended

    def _find(self, name: str) -> Kept | None:
        since = self._now() - self._limits.idempotency_seconds
        row = self._database.execute(
            "SELECT body, ms, seq, count FROM keys WHERE name = ? AND at >= ?", (name, since)
        ).fetchone()
        return Kept(row[0], Position(row[1], row[2], self.last.log), row[3]) if row else None

    def _keep(self, keys: dict[str, Kept]) -> None:
        now = self._now()
        self._database.executemany(
            "INSERT OR REPLACE INTO keys (name, body, ms, seq, count, at) VALUES (?, ?, ?, ?, ?, ?)",
            [(name, kept.body, *kept.first[:2], kept.events, now) for name, kept in keys.items()],
        )

    def tidy(self) -> bool:
        """Delete some of what is over its limits; says whether there is more. Raises BrokerUnavailable."""
        limits, now = self._limits, self._now()
        with _explained(self._path), self._transaction():
            self._database.execute(
                "DELETE FROM keys WHERE at < ? OR n <= (SELECT max(n) FROM keys) - ?",
                (now - limits.idempotency_seconds, limits.idempotency_keys),
            )
            oldest = int((now - limits.log_seconds) * 1000)
            rows = self._database.execute("SELECT n, ms, seq FROM events ORDER BY n LIMIT ?", (TIDY_ROWS,)).fetchall()
            is_large = self._used_bytes() > limits.log_bytes
            old = [row for row in rows if is_large or row[1] < oldest]
            if old:
                self._database.execute("DELETE FROM events WHERE n <= ?", (old[-1][0],))
                self._database.execute("UPDATE log SET floor_ms = ?, floor_seq = ?", old[-1][1:])
            self._mark(self.last)  # a write in any case, which shows whether there is space
            return len(old) == TIDY_ROWS

    def _used_bytes(self) -> int:
        pages, free, size = (self._one(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise


def _create(database: sqlite3.Connection, milliseconds: int) -> None:
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}"
    start = f"INSERT INTO log VALUES ('{new_log_name()}', {milliseconds}, 0, {milliseconds}, 0)"
    database.executescript(f"BEGIN; {SCHEMA} {start}; {marks}; COMMIT")


def _check(path: Path, database: sqlite3.Connection) -> None:
    """Refuse what is none of ours, or of a version we don't know."""
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise BrokerUnavailable(f"{path} is a database of something else: name another file")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise BrokerUnavailable(f"the log {path} is of version {version}, this is for {VERSION}: take what made it")
