"""The log file: an SQLite database with the events, the idempotency keys, the revocations, the log's name and position.

The last position has a table of its own, so that deleting old events never makes a position be assigned twice.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import BrokerUnavailable, IdempotencyConflict, InvalidEvent, Overloaded
from ...event import Event
from ...position import Position
from ...publication import Publication, Revoke, TakeBack
from ...revocations import EXPIRY_MARGIN_SECONDS, MAX_REVOCATIONS, Revocation, full_table
from ...settings import Idempotency, LogRetention, Retention
from ..base import Entry
from ..numbering import Numbered, Receipt, assign_positions, new_log_name, next_position, position_after
from .database import Format, open_database, translated

try:
    import fcntl
except ImportError:  # Windows: there SQLite's own locks have to do
    fcntl = None  # type: ignore[assignment]

Outcome = Numbered | IdempotencyConflict | Overloaded
"""Of one request: what has been stored, or why nothing has."""
_Row = tuple[int, int, str]
"""Of an event: the milliseconds and the sequence of its position, and the event itself, dumped."""
FORMAT = Format("log", 0x53534568, version=2)  # "SSEh"
SCHEMA = """
CREATE TABLE log (name TEXT NOT NULL, last_ms INTEGER NOT NULL, last_seq INTEGER NOT NULL,
                  floor_ms INTEGER NOT NULL, floor_seq INTEGER NOT NULL);
CREATE TABLE events (n INTEGER PRIMARY KEY, ms INTEGER NOT NULL, seq INTEGER NOT NULL, event TEXT NOT NULL);
CREATE TABLE keys (n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
                   ms INTEGER NOT NULL, seq INTEGER NOT NULL, count INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE revocations (key TEXT PRIMARY KEY, revocation TEXT NOT NULL, expires_at REAL) WITHOUT ROWID;
CREATE INDEX revocations_by_end ON revocations (expires_at) WHERE expires_at IS NOT NULL;
"""
RESERVED_MILLISECONDS = 10_000
TIDY_ROWS = 2_000
"""Most rows deleted in one transaction: publishers wait for it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the log against other processes. Raises BrokerUnavailable if another one has locked it.

    The lock is a file beside the log: closing a descriptor of the log itself, anywhere in this process, would release
    the locks that SQLite has on it.
    """
    if fcntl is None:
        yield
        return
    try:
        lock = open(f"{path}.lock", "a")  # noqa: SIM115
    except OSError as exc:
        raise BrokerUnavailable(f"cannot open the log {path}: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise BrokerUnavailable(
                f"another process is using the log {path}: only one hub can; stop that process, or use another file"
            ) from exc
        yield


@contextmanager
def open_log(path: Path) -> Iterator[Iterator[Entry]]:
    """Open the log for reading and yield its entries, newest first. Raises BrokerUnavailable."""
    file = LogFile.open_to_read(path)
    try:
        yield file.newest_first()
    finally:
        file.close()


class LogFile:
    """The database. Not thread-safe: only one thread may use it at a time. `now` returns Unix time in seconds."""

    def __init__(
        self,
        path: Path,
        database: sqlite3.Connection,
        idempotency: Idempotency,
        log: LogRetention,
        now: Callable[[], float],
    ) -> None:
        self._path = path
        self._database = database
        self._idempotency = idempotency
        self._log = log
        self._now = now
        row = self._one("SELECT name, last_ms, last_seq FROM log")
        if row is None:
            raise BrokerUnavailable(f"the log {path} is damaged (its name is missing): move it away")
        self.last = Position(row[1], row[2], row[0])
        """The last position that was assigned."""
        self._recorded = self.last
        """The last position in the file: not below `last`."""
        self.is_empty = self._one("SELECT 1 FROM events LIMIT 1") is None
        self._revoked = self._count_revocations()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        idempotency: Idempotency = Idempotency(),
        log: LogRetention = LogRetention(),
        now: Callable[[], float] = time.time,
    ) -> LogFile:
        """Open the log, or create it if the file does not exist. Raises BrokerUnavailable."""
        database = open_database(path, FORMAT, lambda new: _create(new, int(now() * 1000)))
        with translated(path):
            try:
                return cls(path, database, idempotency, log, now)
            except BaseException:
                database.close()
                raise

    @classmethod
    def open_to_read(cls, path: Path) -> LogFile:
        """Open an existing log for reading only; another process may write to it. Raises BrokerUnavailable."""
        if not path.is_file():
            raise BrokerUnavailable(f"cannot open the log {path}: the file does not exist")
        with translated(path):
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            try:
                FORMAT.check(path, database)
                return cls(path, database, Idempotency(), LogRetention(), time.time)
            except BaseException:
                database.close()
                raise

    def close(self) -> None:
        self._database.close()

    def advance_to_now(self) -> Position:
        """Move `last` up to the present time and return it.

        Clients may know later positions than the file does, of events that were not stored.
        """
        now = Position(int(self._now() * 1000), 0, self.last.log)
        self.last = max(self.last, now)
        with translated(self._path), self._transaction():
            self._record(self.last)
        return self.last

    def _record(self, position: Position) -> None:
        """Write `position` to the file: after a restart only later ones are assigned."""
        self._database.execute("UPDATE log SET last_ms = ?, last_seq = ?", position[:2])
        self._recorded = position

    def tail(self, retention: Retention) -> tuple[Position, list[Entry]]:
        """Return the newest entries, as many as `retention` allows, and the position before them."""
        with translated(self._path):
            entries: list[Entry] = []
            size = 0
            for entry in self.newest_first():
                size += entry.event.size
                if len(entries) >= retention.history_events or (entries and size > retention.history_bytes):
                    return entry.position, entries[::-1]
                entries.append(entry)
            ms, seq = self._one("SELECT floor_ms, floor_seq FROM log")
            return Position(ms, seq, self.last.log), entries[::-1]

    def newest_first(self) -> Iterator[Entry]:
        """Yield all entries, newest first. Raises BrokerUnavailable if one cannot be read."""
        with translated(self._path):
            for n, ms, seq, text in self._database.execute("SELECT n, ms, seq, event FROM events ORDER BY n DESC"):
                try:
                    yield Entry(Position(ms, seq, self.last.log), Event.load(text))
                except InvalidEvent as exc:
                    raise BrokerUnavailable(f"the log {self._path} is damaged (row {n}: {exc}): move it away") from exc

    def revocations(self) -> list[Revocation]:
        """Return the whole table. Raises BrokerUnavailable if one cannot be read."""
        with translated(self._path):
            rows = self._database.execute("SELECT revocation FROM revocations").fetchall()
        try:
            return [Revocation.from_json(text) for (text,) in rows]
        except InvalidEvent as exc:
            raise BrokerUnavailable(f"the log {self._path} is damaged ({exc}): move it away") from exc

    def append(self, requests: Sequence[Sequence[Publication]]) -> list[Outcome]:
        """Store all `requests` in one transaction.

        One with a key conflict, or for which the table of revocations is too full, is refused without affecting the
        others. Raises BrokerUnavailable if nothing was stored.
        """
        last, changes = self.last, self._database.total_changes
        rows: list[_Row] = []
        try:
            with translated(self._path), self._transaction():
                outcomes = [self._append(publications, rows) for publications in requests]
                if rows:
                    self._database.executemany("INSERT INTO events (ms, seq, event) VALUES (?, ?, ?)", rows)
                    self.is_empty = False
                if self._database.total_changes > changes:
                    self._record(self.last)
                elif self.last > self._recorded:
                    # Positions of events that are not stored must not be assigned again either. Recording one that
                    # lies ahead saves a commit for each of these events.
                    self._record(self.last._replace(milliseconds=self.last.milliseconds + RESERVED_MILLISECONDS))
                return outcomes
        except BaseException:
            self.last = last
            with contextlib.suppress(sqlite3.Error):
                # A commit that reports an error may still have taken effect.
                ms, seq = self._one("SELECT last_ms, last_seq FROM log")
                stored = Position(ms, seq, last.log)
                if stored != self._recorded:
                    self.last = self._recorded = max(last, stored)
                self._revoked = self._count_revocations()
            raise

    def _append(self, publications: Sequence[Publication], rows: list[_Row]) -> Outcome:
        """Number `publications`, store all of them but the events, and add the rows of these to `rows`."""
        try:
            first = next_position(self.last, int(self._now() * 1000))
            numbered = assign_positions(publications, first, self._find)
            self._apply_commands(numbered.entries)
        except (IdempotencyConflict, Overloaded) as exc:
            return exc
        rows += [(at.milliseconds, at.sequence, event.dump()) for at, event in numbered.entries if event.store]
        if numbered.keys:
            self._add_keys(numbered.keys)
        if numbered.entries:
            self.last = numbered.entries[-1].position
        return numbered

    def _apply_commands(self, entries: Sequence[Entry]) -> None:
        """Change the table of revocations as `entries` say.

        Raises Overloaded if the table is too full for a command, which then changes nothing.
        """
        for _, command in entries:
            if isinstance(command, Revoke):
                self._revoke(command.revocations)
            elif isinstance(command, TakeBack):
                for key in command.keys:
                    self._revoked -= self._database.execute("DELETE FROM revocations WHERE key = ?", (key,)).rowcount

    def _revoke(self, revocations: Sequence[Revocation]) -> None:
        merged: dict[str, Revocation] = {}
        new = set()
        for revocation in revocations:
            key = revocation.key
            known = merged.get(key)
            if known is None:
                row = self._database.execute("SELECT revocation FROM revocations WHERE key = ?", (key,)).fetchone()
                known = None if row is None else Revocation.from_json(row[0])
            if known is None:
                new.add(key)
            merged[key] = revocation if known is None else known.extended(revocation)
        if new and self._revoked + len(new) > MAX_REVOCATIONS:
            raise full_table()
        self._database.executemany(
            "INSERT OR REPLACE INTO revocations (key, revocation, expires_at) VALUES (?, ?, ?)",
            [(key, revocation.to_json(), revocation.expires_at) for key, revocation in merged.items()],
        )
        self._revoked += len(new)

    def _count_revocations(self) -> int:
        return int(self._one("SELECT count(*) FROM revocations")[0])

    def _find(self, name: str) -> Receipt | None:
        since = self._now() - self._idempotency.idempotency_seconds
        row = self._database.execute(
            "SELECT body, ms, seq, count FROM keys WHERE name = ? AND at >= ?", (name, since)
        ).fetchone()
        return Receipt(row[0], Position(row[1], row[2], self.last.log), row[3]) if row else None

    def _add_keys(self, receipts: dict[str, Receipt]) -> None:
        now = self._now()
        self._database.executemany(
            "INSERT OR REPLACE INTO keys (name, body, ms, seq, count, at) VALUES (?, ?, ?, ?, ?, ?)",
            [(name, receipt.body, *receipt.first[:2], receipt.events, now) for name, receipt in receipts.items()],
        )

    def tidy(self) -> bool:
        """Delete some of what is over the limits, and of what has run out; return True if there is more to delete.

        Raises BrokerUnavailable.
        """
        idempotency, log, now = self._idempotency, self._log, self._now()
        with translated(self._path), self._transaction():
            self._database.execute(
                "DELETE FROM keys WHERE at < ? OR n <= (SELECT max(n) FROM keys) - ?",
                (now - idempotency.idempotency_seconds, idempotency.idempotency_keys),
            )
            run_out = self._database.execute(
                "DELETE FROM revocations WHERE key IN (SELECT key FROM revocations WHERE expires_at < ? LIMIT ?)",
                (now - EXPIRY_MARGIN_SECONDS, TIDY_ROWS),
            ).rowcount
            oldest = int((now - log.log_seconds) * 1000)
            rows = self._database.execute("SELECT n, ms, seq FROM events ORDER BY n LIMIT ?", (TIDY_ROWS,)).fetchall()
            is_large = self._used_bytes() > log.log_bytes and self._log_bytes() > log.log_bytes
            old = [row for row in rows if is_large or row[1] < oldest]
            if old:
                self._database.execute("DELETE FROM events WHERE n <= ?", (old[-1][0],))
                self._database.execute("UPDATE log SET floor_ms = ?, floor_seq = ?", old[-1][1:])
            # Always write something, which shows if the disk has space again. SQLite skips an update without a change.
            self._record(self.last if self._recorded != self.last else position_after(self.last, 1))
        self._revoked -= run_out
        return TIDY_ROWS in (len(old), run_out)

    def _used_bytes(self) -> int:
        pages, free, size = (self._one(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)

    def _log_bytes(self) -> int:
        """Return the bytes that are used without the revocations, which are kept whatever the log's limit is."""
        size = self._one("SELECT total(2 * length(key) + length(revocation) + 32) FROM revocations")[0]
        return self._used_bytes() - int(size)

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        recorded = self._recorded
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._recorded = recorded
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise


def _create(database: sqlite3.Connection, milliseconds: int) -> None:
    start = f"INSERT INTO log VALUES ('{new_log_name()}', {milliseconds}, 0, {milliseconds}, 0)"
    database.executescript(f"BEGIN; {SCHEMA} {start}; {FORMAT.marks}; COMMIT")
