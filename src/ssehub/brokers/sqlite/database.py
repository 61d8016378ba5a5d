"""How the databases of this broker are opened, and how their errors are reported."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ...errors import BrokerUnavailable


class Format(NamedTuple):
    """The format of a file: its name in messages, the mark that `file` and ssehub know it by, and its version."""

    name: str
    application_id: int
    version: int
    shrinks: bool = False
    """True if `PRAGMA incremental_vacuum` can make the file smaller, at a small cost for each page."""

    def check(self, path: Path, database: sqlite3.Connection) -> None:
        """Raise BrokerUnavailable if the database is not such a file, or its format has another version."""
        if database.execute("PRAGMA application_id").fetchone()[0] != self.application_id:
            raise BrokerUnavailable(f"{path} is a database of another application: name another file")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version != self.version:
            raise BrokerUnavailable(
                f"the {self.name} {path} has format version {version}, not {self.version}: "
                "use the release of ssehub that created it"
            )

    @property
    def marks(self) -> str:
        """The statements that mark a new file."""
        return f"PRAGMA application_id = {self.application_id}; PRAGMA user_version = {self.version}"


def open_database(path: Path, file_format: Format, create: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """Open the file for one writer, or let `create` fill it if it does not exist. Raises BrokerUnavailable.

    A commit has reached the disk when it returns. Any thread may use the connection, but one at a time.
    """
    if path.is_dir():
        raise BrokerUnavailable(f"cannot open the {file_format.name} {path}: it is a directory; name a file in it")
    with translated(path, file_format.name):
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            is_new = not database.execute("PRAGMA schema_version").fetchone()[0]
            if not is_new:
                file_format.check(path, database)
            elif file_format.shrinks:
                database.execute("PRAGMA auto_vacuum=INCREMENTAL")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            if is_new:
                create(database)
        except BaseException:
            database.close()
            raise
    return database


@contextmanager
def translated(path: Path, name: str = "log") -> Iterator[None]:
    """Raise SQLite's errors as BrokerUnavailable. `name` is what the file is called in their messages."""
    try:
        yield
    except sqlite3.Error as exc:
        error = getattr(exc, "sqlite_errorname", "")
        if error.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            reason = f"the {name} {path} is damaged ({exc}): move it away, or restore it from a backup"
        elif error.startswith("SQLITE_FULL"):
            reason = f"cannot write to the {name} {path}: the disk is full"
        else:
            reason = f"cannot use the {name} {path}: {exc}"
        raise BrokerUnavailable(reason) from exc
