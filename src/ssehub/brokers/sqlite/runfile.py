"""The file of the runs: an SQLite database beside the log, with its own writer, so that neither waits for the other.

Each run that is kept has a record (JSON) and a number. Its events are rows under that number; a row has those of one
step of an append, or some of them, so that a batch costs little more than one event. How many events a run has, and
their size, stand in its last row, so an append changes nothing but the end of the table's part for its run. A run that
is deleted or begins anew leaves its number in `dropped`: its rows are deleted a few at a time, in later transactions.

There are few statements, each for many rows, and few rows are returned. For each statement and each row that it returns
Python gives up the GIL; while the event loop is busy, it gets it back only after 5 ms. Inserting a row at a time
(`executemany`) was measured at 300 rows a second then, instead of 25,000.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...runs.model import MAX_TOMBSTONES, TOMBSTONE_SECONDS
from .database import open_database, translated
from .run_rows import FORMAT, Step, rows_of

SCHEMA = """
CREATE TABLE writes (count INTEGER NOT NULL);
CREATE TABLE runs (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE events (run INTEGER NOT NULL, last INTEGER NOT NULL, bytes INTEGER NOT NULL, events TEXT NOT NULL,
                     PRIMARY KEY (run, last)) WITHOUT ROWID;
CREATE TABLE dropped (number INTEGER PRIMARY KEY, bytes INTEGER);
CREATE TABLE tombstones (n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL,
                         at REAL NOT NULL);
INSERT INTO writes VALUES (0);
"""
CHECKPOINT_PAGES = 8_000
"""The pages of the write-ahead log after which they are copied into the file: those of busy runs only once."""
CACHE_KIB = 8_192
"""Pages of the file in memory: a transaction that changes those of a thousand runs needs 4 MiB."""
SLICE_ROWS = 1_000
"""Most rows of a large run that are deleted in one transaction."""
SLICE_BYTES = 2**20
SMALL_BYTES = 2**18
"""The size of the runs that are deleted as a whole in one transaction, together."""
SMALL_RUN_BYTES = 1_000
"""What a run counts for there at least."""
SLICE_PAGES = 250
"""Most unused pages that are given back in one transaction."""
FREE_PAGES = 4_000
"""Unused pages that are kept in the file for new events."""
TIDY_ROWS = 2_000
"""Most tombstones that are deleted in one transaction."""
LOAD_ROWS = 1_000
CHUNKS = tuple(2**exponent for exponent in range(10, -1, -1))
"""For how many rows there are statements, which SQLite keeps prepared."""


def path_of_runs(log: Path) -> Path:
    """Return the path of the file that belongs to a log."""
    return log.with_name(f"{log.name}.runs")


class Stored(NamedTuple):
    """A run as it is in the file."""

    number: int
    name: str
    record: str
    events: int
    bytes: int


class Tombstone(NamedTuple):
    """The tombstone of a run that is gone since `at`, in Unix time."""

    name: str
    generation: int
    at: float


class Loaded(NamedTuple):
    """Everything in the file except for the events."""

    runs: list[Stored]
    tombstones: list[Tombstone]
    """The oldest first."""
    last_number: int
    """The highest number in use."""
    writes: int
    """How many transactions have been committed to the file, ever."""


@dataclass(slots=True)
class Changes:
    """The changes of one transaction."""

    records: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    """By name the number and the record, or None if there is no such run any more."""
    tombstones: dict[str, Tombstone | None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    dropped: dict[int, int | None] = field(default_factory=dict)
    """Numbers whose events are to be deleted, each with their size, if it is known."""

    @property
    def has_any(self) -> bool:
        return bool(self.records or self.tombstones or self.steps or self.dropped)


class RunFile:
    """The database, for one thread at a time. All methods raise BrokerUnavailable."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it."""
        self._path = path
        self._dropped: dict[int, int | None] = {}
        """What is in the table of that name."""
        self.writes = 0
        """How many transactions have been committed."""
        self._is_known = False
        """False if the table may say otherwise about these two, after a failed transaction."""
        self._has_space = True
        """True if there may be more unused pages than are kept."""
        self._database = open_database(path, FORMAT, _create)
        try:
            with translated(path, FORMAT.name):
                self._database.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                self._database.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
                self._refresh()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    @property
    def has_leftovers(self) -> bool:
        """True if there is more to delete, or space to give back: call `write`."""
        return bool(self._dropped) or self._has_space

    def load(self) -> Loaded:
        """Return what is in the file."""
        with translated(self._path, FORMAT.name):
            runs = self._load(
                """number, name, record,
                   ifnull((SELECT last FROM events WHERE run = number ORDER BY last DESC LIMIT 1), 0),
                   ifnull((SELECT bytes FROM events WHERE run = number ORDER BY last DESC LIMIT 1), 0)""",
                "runs",
                "number",
            )
            tombstones = self._load("name, generation, at, n", "tombstones", "n")
            last_number = self._one(
                "SELECT max(ifnull((SELECT max(number) FROM runs), 0), ifnull((SELECT max(number) FROM dropped), 0))"
            )
            return Loaded(
                [Stored(*row) for row in runs],
                [Tombstone(*row[:3]) for row in tombstones],
                last_number,
                self._one("SELECT count FROM writes"),
            )

    def _load(self, columns: str, table: str, key: str) -> list[list[Any]]:
        """Return the rows of a table in the order of a column that is a positive number."""
        rows: list[list[Any]] = []
        query = f"""SELECT ifnull(max({key}), 0), json_group_array(json_array({columns}))
                    FROM (SELECT * FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?)"""
        last = 0
        while True:
            last, found = self._database.execute(query, (last, LOAD_ROWS)).fetchone()
            if not last:
                return rows
            rows += json.loads(found)

    def tidy(self, now: float) -> None:
        """Delete tombstones that have run out at the Unix time `now`, which also shows if the file can be written."""
        with translated(self._path, FORMAT.name), self._transaction():
            self._database.execute(
                """DELETE FROM tombstones WHERE n IN (SELECT n FROM tombstones ORDER BY n LIMIT ?)
                   AND (at < ? OR n <= (SELECT max(n) FROM tombstones) - ?)""",
                (TIDY_ROWS, now - TOMBSTONE_SECONDS, MAX_TOMBSTONES),
            )

    def write(self, changes: Changes) -> None:
        """Apply `changes`, delete some of what was dropped, and give some space back.

        If this raises, it may have happened nevertheless: see `Loaded.writes`.
        """
        with translated(self._path, FORMAT.name):
            self._give_space_back()
            with self._transaction():
                self._put(changes)
                if self._dropped:
                    self._delete_dropped()

    def _put(self, changes: Changes) -> None:
        records = {name: record for name, record in changes.records.items() if record is not None}
        # REPLACE removes the row with another number and the same name.
        self._insert(
            "INSERT OR REPLACE INTO runs", [(number, name, record) for name, (number, record) in records.items()]
        )
        self._delete("runs", "name", changes.records.keys() - records.keys())
        self._insert(
            "INSERT OR REPLACE INTO tombstones (name, generation, at)", list(filter(None, changes.tombstones.values()))
        )
        self._delete("tombstones", "name", [name for name, found in changes.tombstones.items() if found is None])
        self._insert("INSERT INTO dropped", list(changes.dropped.items()))
        self._dropped |= changes.dropped
        steps = [step for step in changes.steps if step.number not in changes.dropped]
        self._insert("INSERT INTO events", [row for step in steps for row in rows_of(step)])

    def _insert(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        if not rows:
            return
        marks = f"({', '.join('?' * len(rows[0]))})"
        for chunk in _chunks(rows):
            fields = [field for row in chunk for field in row]
            self._database.execute(f"{statement} VALUES {', '.join([marks] * len(chunk))}", fields)

    def _delete(self, table: str, column: str, values: Iterable[object]) -> None:
        for chunk in _chunks(list(values)):
            marks = ", ".join("?" * len(chunk))
            self._database.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})", chunk)

    def _delete_dropped(self) -> None:
        """Delete the events of some runs that were dropped, or some of those of one that is large."""
        small: list[int] = []
        size = 0
        for number, run_bytes in self._dropped.items():
            size += max(run_bytes or 0, SMALL_RUN_BYTES)
            if run_bytes is None or size > SMALL_BYTES:
                break
            small.append(number)
        if small:
            self._delete("events", "run", small)
            self._forget_dropped(small)
        else:
            self._delete_slice(next(iter(self._dropped)))
        self._has_space = True

    def _delete_slice(self, number: int) -> None:
        """Delete the first rows of a large run. The column `bytes` counts from the run's beginning."""
        last, count = self._database.execute(
            """SELECT max(last), count(*) FROM (
                   SELECT last FROM events WHERE run = :run AND bytes <= :bytes +
                       (SELECT bytes FROM events WHERE run = :run ORDER BY last LIMIT 1)
                   ORDER BY last LIMIT :rows)""",
            {"run": number, "bytes": SLICE_BYTES, "rows": SLICE_ROWS},
        ).fetchone()
        if count:
            self._database.execute("DELETE FROM events WHERE run = ? AND last <= ?", (number, last))
        else:
            self._forget_dropped([number])

    def _forget_dropped(self, numbers: list[int]) -> None:
        self._delete("dropped", "number", numbers)
        for number in numbers:
            del self._dropped[number]

    def _give_space_back(self) -> None:
        if not self._has_space:
            return
        unused = self._one("PRAGMA freelist_count") - FREE_PAGES
        if unused > 0:
            # A transaction of its own: `execute` would do one page only, and `executescript` commits what is open.
            self._database.executescript(f"PRAGMA incremental_vacuum({min(unused, SLICE_PAGES)})")
        self._has_space = unused > SLICE_PAGES

    def _refresh(self) -> None:
        rows = json.loads(self._one("SELECT json_group_array(json_array(number, bytes)) FROM dropped"))
        self._dropped = {number: size for number, size in rows}
        self.writes = self._one("SELECT count FROM writes")
        self._is_known = True

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            if not self._is_known:
                self._refresh()
            yield
            # This is also what shows that the disk is full, if there is nothing else to write.
            self._database.execute("UPDATE writes SET count = count + 1")
            self._database.execute("COMMIT")
            self.writes += 1
        except BaseException:
            self._is_known = False
            with contextlib.suppress(sqlite3.Error):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                self._refresh()
            raise


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield `values` in parts as long as one of CHUNKS."""
    start = 0
    for size in CHUNKS:
        while len(values) - start >= size:
            yield values[start : start + size]
            start += size


def _create(database: sqlite3.Connection) -> None:
    database.executescript(f"BEGIN; {SCHEMA} {FORMAT.marks}; COMMIT")
