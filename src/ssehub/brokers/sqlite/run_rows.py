"""The events of runs as rows of their file. The events of a row were appended in one step."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import BrokerUnavailable
from ...runs.entries import RunEvent
from ...runs.model import EVENT_OVERHEAD_BYTES
from .database import Format, translated
from .tails import first_events

FORMAT = Format("file of the runs", 0x53534572, version=1, shrinks=True)  # "SSEr"
ROW_EVENTS = 100
ROW_BYTES = 64 * 2**10
PAGE_ROWS = 2_000


class Step(NamedTuple):
    """Events that were appended to the run with a number: the ordinal of the last, and the run's size with them."""

    number: int
    last: int
    bytes: int
    events: Sequence[RunEvent]


def rows_of(step: Step) -> Iterator[tuple[int, int, int, str]]:
    """Yield the rows for the events of a step, none of which is larger than necessary."""
    events = step.events
    if len(events) == 1:
        yield step.number, step.last, step.bytes, f"[{events[0].dump()}]"
        return
    sizes = [event.size + EVENT_OVERHEAD_BYTES for event in events]
    total = step.bytes - sum(sizes)
    ordinal = step.last - len(events)
    texts: list[str] = []
    row_bytes = 0
    for event, size in zip(events, sizes, strict=True):
        if texts and (len(texts) == ROW_EVENTS or row_bytes + size > ROW_BYTES):
            yield step.number, ordinal, total, f"[{','.join(texts)}]"
            texts, row_bytes = [], 0
        texts.append(event.dump())
        ordinal += 1
        row_bytes += size
        total += size
    yield step.number, ordinal, total, f"[{','.join(texts)}]"


class RunReader:
    """Reads the events of runs from the file, in a thread of its own: it waits for no transaction of the writer."""

    def __init__(self, path: Path) -> None:
        """Raises BrokerUnavailable."""
        self._path = path
        with translated(path, FORMAT.name):
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA query_only=1")

    def close(self) -> None:
        self._database.close()

    def read(self, number: int, after: int, until: int, max_bytes: int) -> list[RunEvent] | None:
        """Return the events from the ordinal `after + 1` to `until`, as many as `max_bytes` allow, at least one.

        Returns None if they are not in the file. Raises BrokerUnavailable.
        """
        # One row is returned, whatever there is: see runfile.py. No text contains a line end, as it is JSON.
        query = """SELECT min(last), max(last), group_concat(events, char(10)) FROM (
                       SELECT last, events FROM events WHERE run = :run AND last > :after AND bytes <= :bytes +
                           (SELECT bytes FROM events WHERE run = :run AND last > :after ORDER BY last LIMIT 1)
                       ORDER BY last LIMIT :rows)"""
        given = {"run": number, "after": after, "bytes": max_bytes, "rows": PAGE_ROWS}
        with translated(self._path, FORMAT.name), contextlib.closing(self._database.execute(query, given)) as rows:
            first_last, last, text = rows.fetchone()
        if text is None:
            return None
        parts = [self._parse(part) for part in text.split("\n")]
        before = first_last - len(parts[0])
        if before > after or last - before != sum(map(len, parts)):
            return None  # some are missing
        events = [event for part in parts for event in part]
        return first_events(events[after - before : until - before], max_bytes)

    def _parse(self, text: str) -> list[RunEvent]:
        try:
            return [RunEvent(*fields) for fields in json.loads(text)]
        except (ValueError, TypeError) as exc:
            raise BrokerUnavailable(f"the {FORMAT.name} {self._path} is damaged ({exc}): move it away") from exc
