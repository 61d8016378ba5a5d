"""The runs of the memory broker. They are kept while the broker exists, and are open only while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ..errors import BrokerUnavailable
from ..loglimit import limited_logger
from ..runs.book import Book, Change
from ..runs.deadlines import NEVER, Looks
from ..runs.entries import RunEvent
from ..runs.followers import Followers
from ..runs.model import Outcome, Run
from ..runs.packed import PackedEvents
from ..runs.store import Append, Appended, Created, Creation, RunFilter, RunListener, RunTotals, Ticket
from ..settings import RunLimits
from .numbering import new_log_name

logger = limited_logger("ssehub.runs")

NOT_RUNNING = "the memory broker is not running: use it inside `async with hub`"


class _Timer:
    """Calls `look` when a deadline of `book` may have been reached, until `stop`.

    `look` does some of what is due, and returns True if there may be more to do.
    """

    def __init__(self, book: Book, look: Callable[[], bool]) -> None:
        self._book = book
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._looks = Looks(self._loop.time())
        self._plan()

    def stop(self) -> None:
        self._handle.cancel()

    def changed(self) -> None:
        """The book has changed, and with it perhaps its first deadline."""
        if self._book.due_at < self._due_at:
            self._handle.cancel()
            self._plan()

    def _plan(self) -> None:
        self._due_at = self._book.due_at
        self._looks.plan(self._loop.time(), self._book.due_in)
        self._handle: asyncio.Handle = self._loop.call_at(self._looks.next, self._run)

    def _run(self) -> None:
        if self._looks.acts(self._loop.time()):
            self._act()
        else:
            self._plan()

    def _act(self) -> None:
        self._due_at = -NEVER  # whatever changes now, the next look is planned afterwards
        if self._look():
            self._handle = self._loop.call_soon(self._act)
        else:
            self._plan()


class MemoryRuns:
    """Runs in the memory of this process. `now` returns Unix time, `monotonic` a monotonic clock, in seconds."""

    def __init__(self, limits: RunLimits, *, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.on_transition: Callable[[Run], None] = lambda run: None
        self.outlives_process = False
        self.limits = limits
        self._book = Book(limits, wall=now, monotonic=monotonic, new_log=new_log_name)
        self._events: dict[str, PackedEvents] = {}
        """The events by run, for those that have any."""
        self._followers = Followers()
        self._timer: _Timer | None = None
        """Lets time pass while the store is running; None while it is not."""

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside the context the store can be used, and time passes. Runs that are open at its end have failed."""
        self._timer = _Timer(self._book, self._advance_once)
        try:
            yield
        finally:
            self._timer.stop()
            self._timer = None
            for changes in self._book.shut_down():
                self._apply_all(changes)
                await asyncio.sleep(0)

    def advance(self) -> None:
        """Do everything that time has brought. It is done by itself while the store is running, in slices."""
        while self._advance_once():
            pass

    def _advance_once(self) -> bool:
        """Return True if there may be more to do."""
        changes = self._book.overdue()
        if changes:
            self._apply_all(changes)
        return changes is not None

    # Calls

    async def create(self, name: str, creation: Creation) -> Created:
        self._require_running()
        created, change = self._book.create(name, creation)
        self._apply(change)
        return created

    async def append(self, name: str, step: Append) -> Appended:
        self._require_running()
        appended, change = self._book.append(name, step)
        if change is not None:
            self._apply(change)
            if change.refusal is not None:
                raise change.refusal
        return appended

    async def release(self, name: str, ticket: Ticket) -> None:
        self._require_running()
        self._apply(self._book.release(name, ticket))

    async def finish(self, name: str, outcome: Outcome, generation: int | None = None) -> Run:
        self._require_running()
        run, change = self._book.finish(name, outcome, generation)
        self._apply(change)
        return run

    async def stop(self, name: str, generation: int | None = None) -> Run:
        self._require_running()
        run, change = self._book.stop(name, generation)
        self._apply(change)
        return run

    async def delete(self, name: str, generation: int | None = None) -> Run:
        self._require_running()
        run, change = self._book.delete(name, generation)
        self._apply(change)
        return run

    async def get(self, name: str) -> Run | None:
        self._require_running()
        record = self._book.records.get(name)
        return None if record is None else record.run

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        self._require_running()
        record = self._book.records.get(name)
        if record is None or record.run.log != log:
            return None
        events = self._events.get(name)
        return [] if events is None else events.page(after, max_bytes)

    async def list_runs(self, wanted: RunFilter, after: str | None = None, limit: int = 1_000) -> list[Run]:
        self._require_running()
        return self._book.list_runs(wanted, after, limit)

    async def follow(self, name: str, listener: RunListener) -> Run | None:
        self._require_running()
        self._followers.add(name, listener)
        record = self._book.records.get(name)
        return None if record is None else record.run

    def unfollow(self, name: str, listener: RunListener) -> None:
        self._followers.remove(name, listener)

    def totals(self) -> RunTotals:
        return self._book.totals()

    # Changes

    def _require_running(self) -> None:
        if self._timer is None:
            raise BrokerUnavailable(NOT_RUNNING)

    def _apply_all(self, changes: Sequence[Change]) -> None:
        for change in changes:
            try:
                self._apply(change)
            except Exception:
                logger.exception("telling what has become of a run failed")

    def _apply(self, change: Change | None) -> None:
        """Store what has changed, then tell it."""
        if change is None:
            return
        if self._timer is not None:
            self._timer.changed()
        run = change.record.run
        if change.is_gone or (change.is_new_log and change.first == 1):
            self._events.pop(run.name, None)
        if change.events:
            events = self._events.get(run.name)
            if events is None:
                events = self._events[run.name] = PackedEvents()
            events.extend(change.events)
        if change.claimant is not None:
            self._followers.claimed(run.name, change.claimant)
        if change.is_gone:
            self._followers.vanished(run)
        elif change.is_told:
            self._followers.advanced(run, change.first, change.events)
        if change.is_transition:
            self.on_transition(run)
