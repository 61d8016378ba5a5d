"""Translates changes of the book of runs into changes of their file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ...runs.book import Book, Change, Claim, Record
from ...runs.model import RunState
from ...runs.store import Ticket
from .run_records import dump_record, load_record
from .run_rows import Step
from .runfile import Changes, Loaded, Tombstone


class Telling(NamedTuple):
    """A change and how it left the run, for listeners after the commit. The run itself may have changed since."""

    change: Change
    number: int
    state: RunState
    error: str | None
    events: int
    bytes: int
    ended_at: float | None
    claim: Claim | None

    @classmethod
    def of(cls, change: Change, number: int) -> Telling:
        run, claim = change.record.run, change.record.claim
        return cls(change, number, run.state, run.error, run.events, run.bytes, run.ended_at, claim)


class _Stored(NamedTuple):
    """How a run is in the file: the number of its events, and the ticket in its record."""

    number: int
    ticket: Ticket | None


class Ledger:
    """The book, with what is in the file as `loaded`. `now` returns Unix time. Raises BrokerUnavailable if damaged.

    After a failed commit the book is ahead of the file: then another ledger takes its place.
    """

    def __init__(self, book: Book, loaded: Loaded, now: Callable[[], float]) -> None:
        self.book = book
        self._now = now
        self._last_number = loaded.last_number
        self._stored: dict[str, _Stored] = {}
        self._changes = Changes()
        self._held: dict[str, Claim] = {}
        """The claims that were held at the last commit. The file does not say which are."""
        self._touched: dict[str, None] = {}
        """The names whose records the next transaction stores."""
        for tombstone in loaded.tombstones:
            book.bury(*tombstone)
        for stored in loaded.runs:
            record = load_record(stored)
            book.load(record)
            self._stored[stored.name] = _Stored(stored.number, _ticket(record))

    def committed(self, tellings: Iterable[Telling]) -> None:
        """Note that changes have been committed."""
        for telling in tellings:
            name, claim = telling.change.record.run.name, telling.claim
            if claim is not None and claim.is_held and not telling.change.is_gone:
                self._held[name] = claim
            else:
                self._held.pop(name, None)

    def keep_claims(self, before: Ledger) -> None:
        """Let the connections that held runs in the ledger `before`, at its last commit, go on holding them."""
        for name, claim in before._held.items():
            record = self.book.records.get(name)
            if record is not None and record.claim == claim._replace(is_held=False):
                record.claim = self._held[name] = claim

    def numbers(self) -> dict[str, int]:
        """Return the number of each run's events by name."""
        return {name: stored.number for name, stored in self._stored.items()}

    def collect(self, change: Change) -> Telling:
        """Add what the book has changed to the next transaction. To be called before it changes anything else."""
        record = change.record
        name = record.run.name
        stored = self._stored.get(name)
        if change.is_gone:
            assert stored is not None, "a run that is gone was there"
            self._drop(name, stored, record.run.bytes)
            self._changes.tombstones[name] = Tombstone(name, record.run.generation, self._now())
            return Telling.of(change, stored.number)
        begins = change.is_new_log and change.first == 1
        if stored is None or begins:
            if stored is not None:
                self._drop(name, stored)
            elif record.run.generation > 1:
                self._changes.tombstones[name] = None
            self._last_number += 1
            stored = self._stored[name] = _Stored(self._last_number, None)
        ticket = _ticket(record)
        # An append without anything new about its run adds only its events. A claim that was released is not stored:
        # nobody holds a claim after a restart.
        if ticket != stored.ticket or change.is_transition or (change.is_told and not change.events):
            self._touched[name] = None
            self._stored[name] = stored._replace(ticket=ticket)
        if change.events:
            last = change.first + len(change.events) - 1
            self._changes.steps.append(Step(stored.number, last, record.run.bytes, change.events))
        return Telling.of(change, stored.number)

    def take_changes(self) -> Changes:
        """Return what was collected, for one transaction, and begin anew."""
        changes, self._changes = self._changes, Changes()
        for name in self._touched:
            stored = self._stored.get(name)
            changes.records[name] = None if stored is None else (stored.number, dump_record(self.book.records[name]))
        self._touched.clear()
        return changes

    def _drop(self, name: str, stored: _Stored, size: int | None = None) -> None:
        self._changes.dropped[stored.number] = size
        self._touched[name] = None
        del self._stored[name]


def _ticket(record: Record) -> Ticket | None:
    return None if record.claim is None else record.claim.ticket
