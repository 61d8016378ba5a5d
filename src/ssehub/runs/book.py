"""The rules of runs: the effect of each call and each deadline. For stores that decide in Python.

The book knows everything about the runs except their events: their states, claims, sizes and deadlines. It does no I/O
and tells nobody. Each method either raises and changes nothing, or changes the book and returns what has changed:

    decide   call a method of the book; collect its Change
    store    write down the Change, if the store outlives the process
    tell     the listeners and `on_transition`, then the caller; raise `Change.refusal` if there is one

A store that commits several changes at once collects them first. If the commit fails, the book is ahead of what is
stored: build another one from that, with `load` and `bury`. A book is used by one thread at a time.

A claim says which connection of which producer appends. It stays after its release, so that a late step of an older
connection is still refused; a new generation begins without it, unless a ticket comes with it.

    step of a connection      claim: none   mine   same producer         another producer
    first                     claims        claims claims                claims if released, else PRODUCER
    later                     STALE         goes   SUPERSEDED            PRODUCER

Deadlines run by the monotonic clock from `Record.since`, and an append only moves that: see `deadlines.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import ConflictReason, IdempotencyConflict, Overloaded, UnknownRun
from ..settings import RunLimits
from .conflicts import KEY_CONFLICT, conflict, end_reason, run_conflict, stale
from .deadlines import Deadlines, Tombstones
from .model import (
    EVENT_OVERHEAD_BYTES,
    MAX_TOMBSTONES,
    TOMBSTONE_SECONDS,
    Outcome,
    Run,
    RunError,
    RunState,
)
from .names import NameIndex
from .records import Change, Claim, Record
from .store import Append, Appended, Created, CreateMode, Creation, RunFilter, RunTotals, Ticket

__all__ = ["KEY_CONFLICT", "Book", "Change", "Claim", "Record", "run_conflict"]

OVERDUE_CHANGES = 200
"""How many deadlines are handled at a time."""

OPEN, STOPPING, DONE, FAILED, STOPPED = RunState


class Book:
    """All runs of one store. `wall` returns Unix time, `monotonic` a monotonic clock, in seconds; `new_log` a name."""

    def __init__(
        self,
        limits: RunLimits,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        new_log: Callable[[], str],
    ) -> None:
        self.records: dict[str, Record] = {}
        self._limits = limits
        self._wall = wall
        self._monotonic = monotonic
        self._new_log = new_log
        self._bytes = 0
        self._counts = dict.fromkeys(RunState, 0)
        self._names = NameIndex()
        self._deadlines: Deadlines[Record] = Deadlines()
        self._tombstones = Tombstones(TOMBSTONE_SECONDS, MAX_TOMBSTONES)

    # What is stored

    def load(self, record: Record) -> None:
        """Enter a run that was stored, with all that its `record` says. It is this book's from then on.

        Nobody holds its claim; a deadline of an open run begins anew.
        """
        run = record.run
        record.since = self._monotonic()
        if run.ended_at is not None:  # the clock may have been set back
            record.since -= min(run.options.keep, max(0.0, self._wall() - run.ended_at))
        if record.claim is not None:
            record.claim = record.claim._replace(is_held=False)
        self._enter(record)

    def bury(self, name: str, generation: int, gone_at: float) -> None:
        """Enter a tombstone that was stored. They are entered in the order of `gone_at`, in Unix time."""
        self._tombstones.add(name, generation, gone_at)

    # Calls of the store, see `RunStore`

    def create(self, name: str, creation: Creation) -> tuple[Created, Change | None]:
        old = self.records.get(name)
        _, mode, key, ticket, expected = creation
        if old is None:
            if expected:
                raise UnknownRun(name)
            return self._begin(name, creation, None)
        run = old.run
        if expected is not None and expected != run.generation:
            raise stale(run, expected)
        if key is not None and old.key is not None and old.key.name == key.name:
            if old.key.body != key.body:
                raise IdempotencyConflict(KEY_CONFLICT)
            return Created(run, False), None if _is_held_by_another(old, ticket) else self._join(old, ticket)
        if mode is CreateMode.JOIN and not run.state.is_end:
            if _is_held_by_another(old, ticket):
                raise conflict(run, ConflictReason.PRODUCER)
            return Created(run, False), self._join(old, ticket)
        if mode is CreateMode.JOIN and ticket is not None and old.creator == ticket.producer:
            return Created(run, False), None
        if mode is CreateMode.NEW and not run.state.is_end:
            raise conflict(run, ConflictReason.OPEN)
        return self._begin(name, creation, old)

    def append(self, name: str, step: Append) -> tuple[Appended, Change | None]:
        record = self.records.get(name)
        if record is None:
            raise UnknownRun(name)
        run = record.run
        if step.generation is not None and step.generation != run.generation:
            raise stale(run, step.generation)
        if run.state is not OPEN:
            return self._append_late(record, step)
        is_claimed = self._check_claim(record, step)
        events, first = step.events, run.events + 1
        if step.offset is not None:
            if step.offset > run.events:
                raise conflict(run, ConflictReason.OFFSET, f", not the {step.offset} that were sent before")
            if events and step.offset < run.events:
                events = events[run.events - step.offset :]
        if events:
            size = len(events) * EVENT_OVERHEAD_BYTES
            for event in events:
                size += event.size
            if run.bytes + size > self._limits.run_bytes:
                self._end(record, Outcome(FAILED, RunError.TOO_LARGE))
                refusal = conflict(run, ConflictReason.TOO_LARGE)
                change = Change(record, first, is_transition=True, refusal=refusal)
                return Appended(run.generation, run.events, run.state), change
            if self._bytes + size > self._limits.max_runs_bytes:
                raise self._full()
            run.events += len(events)
            run.bytes += size
            self._bytes += size
        record.since = self._monotonic()
        claimant = self._claim(record, step.ticket) if is_claimed else None
        if step.outcome is not None:
            self._end(record, step.outcome, step.ticket.producer)
            change = Change(record, first, events, is_transition=True, claimant=claimant)
            return Appended(run.generation, run.events, run.state), change
        appended = Appended(run.generation, run.events, OPEN)
        if not events and not is_claimed:
            return appended, None
        return appended, Change(record, first, events, is_told=bool(events), claimant=claimant)

    def release(self, name: str, ticket: Ticket) -> Change | None:
        record = self.records.get(name)
        if record is None or record.claim != (ticket, True):
            return None
        record.claim = Claim(ticket, False)
        if record.run.state is STOPPING:
            self._end(record, Outcome(STOPPED))
            return self._told(record, is_transition=True)
        return self._told(record)._replace(is_told=False)

    def finish(self, name: str, outcome: Outcome, generation: int | None = None) -> tuple[Run, Change | None]:
        record = self._find(name, generation)
        run = record.run
        if run.state.is_end:
            if run.state is not outcome.state:
                raise conflict(run, end_reason(run))
            return run, None
        self._end(record, outcome)
        return run, self._told(record, is_transition=True)

    def stop(self, name: str, generation: int | None = None) -> tuple[Run, Change | None]:
        record = self._find(name, generation)
        run = record.run
        if run.state is not OPEN:
            return run, None
        if record.claim is None or not record.claim.is_held:
            self._end(record, Outcome(STOPPED))
            return run, self._told(record, is_transition=True)
        self._enter_state(record, STOPPING)
        return run, self._told(record)

    def delete(self, name: str, generation: int | None = None) -> tuple[Run, Change]:
        record = self._find(name, generation)
        was_open = not record.run.state.is_end
        if was_open:
            self._end(record, Outcome(FAILED, RunError.DELETED))
        self._remove(record)
        return record.run, self._told(record, is_transition=was_open)._replace(is_gone=True)

    def list_runs(self, wanted: RunFilter, after: str | None = None, limit: int = 1_000) -> list[Run]:
        found: list[Run] = []
        for name in self._names.select(wanted.user_id, after):
            if len(found) >= limit:
                break
            run = self.records[name].run
            if (wanted.states is None or run.state in wanted.states) and (
                wanted.channel is None or wanted.channel in run.options.channels
            ):
                found.append(run)
        return found

    def totals(self) -> RunTotals:
        return RunTotals(dict(self._counts), self._bytes)

    # Time

    @property
    def due_at(self) -> float:
        """The monotonic time at which `overdue` has something to do, at the earliest. Tombstones do not count."""
        return self._deadlines.first

    @property
    def due_in(self) -> float:
        """How many seconds are left until then."""
        return self.due_at - self._monotonic()

    def overdue(self, most: int = OVERDUE_CHANGES) -> list[Change] | None:
        """Do what is due: fail idle runs, stop those that were asked to, drop those that have been kept long enough.

        At most so many at a time: None says that there was nothing to do, and a list, even if it is empty, that there
        may be more.
        """
        self._tombstones.expire(self._wall(), most)
        now, changes, has_visited = self._monotonic(), [], False
        for record in self._deadlines.pop(now, most):
            has_visited = True
            if record is None:
                continue
            if self._deadline(record) > now:
                self._watch(record)
            else:
                changes.append(self._run_out(record))
        return changes if has_visited else None

    def shut_down(self, most: int = OVERDUE_CHANGES) -> Iterator[list[Change]]:
        """End every open run as FAILED with RunError.SHUTDOWN, `most` of them in each list that is yielded."""
        changes = []
        for record in list(self.records.values()):
            if not record.run.state.is_end and self.records.get(record.run.name) is record:
                self._end(record, Outcome(FAILED, RunError.SHUTDOWN))
                changes.append(self._told(record, is_transition=True))
                if len(changes) == most:
                    yield changes
                    changes = []
        if changes:
            yield changes

    # Inside

    def _find(self, name: str, generation: int | None) -> Record:
        record = self.records.get(name)
        if record is None:
            raise UnknownRun(name)
        if generation is not None and generation != record.run.generation:
            raise stale(record.run, generation)
        return record

    def _require_room(self, creation: Creation, old: Record | None) -> None:
        """Raise Overloaded if there is no room for a run, in place of `old`, if there is one."""
        if old is None and len(self.records) >= self._limits.max_runs:
            raise Overloaded(
                f"there are {len(self.records)} runs, and max_runs allows {self._limits.max_runs}: delete runs, keep "
                "them for a shorter time, or raise it"
            )
        growth = creation.options.size
        if old is not None:
            growth -= old.run.options.size + (0 if creation.mode is CreateMode.TAKEOVER else old.run.bytes)
        if growth > 0 and self._bytes + growth > self._limits.max_runs_bytes:
            raise self._full()

    def _full(self) -> Overloaded:
        return Overloaded(
            f"all runs together have {self._bytes} bytes, and max_runs_bytes allows {self._limits.max_runs_bytes}: "
            "delete runs, keep them for a shorter time, or raise it"
        )

    def _begin(self, name: str, creation: Creation, old: Record | None) -> tuple[Created, Change]:
        """Begin the next generation."""
        self._require_room(creation, old)
        options, mode, key, ticket, _ = creation
        before = None if old is None else old.run
        generation = 1 + (self._tombstones.generation(name) if before is None else before.generation)
        kept = before if mode is CreateMode.TAKEOVER else None
        # The end of the generation before has an ordinal, which a client may have as its cursor: in the same log it
        # would miss the event that is given this ordinal now.
        is_new_log = kept is None or kept.state.is_end
        log = kept.log if kept is not None and not is_new_log else self._new_log()
        run = Run(name, options, generation, log, self._wall())
        if kept is not None:
            run.events, run.bytes = kept.events, kept.bytes
        record = Record(run, key, None if ticket is None else ticket.producer)
        if ticket is not None:
            record.claim = Claim(ticket, True)
        record.since = self._monotonic()
        if old is not None:
            self._leave(old)
        self._tombstones.remove(name)
        self._enter(record)
        change = Change(record, run.events + 1, is_transition=True, is_new_log=is_new_log)
        return Created(run, True), change

    def _join(self, record: Record, ticket: Ticket | None) -> Change | None:
        """Let `ticket` hold an open run."""
        if ticket is None or record.run.state is not OPEN or record.claim == (ticket, True):
            return None
        claimant = self._claim(record, ticket)
        return self._told(record)._replace(is_told=False, claimant=claimant)

    def _claim(self, record: Record, ticket: Ticket) -> str | None:
        """Let `ticket` hold the run. Return its connection if another one held it."""
        before, record.claim = record.claim, Claim(ticket, True)
        return ticket.connection if before is not None and before.is_held and before.ticket != ticket else None

    def _check_claim(self, record: Record, step: Append) -> bool:
        """Return True if the step claims the run for its connection: see the table at the head of this file."""
        claim, ticket = record.claim, step.ticket
        if claim is not None and claim.ticket == ticket:
            return not claim.is_held
        if step.is_first:
            if _is_held_by_another(record, ticket):
                raise conflict(record.run, ConflictReason.PRODUCER)
            return True
        if claim is None:
            raise stale(record.run, step.generation)
        same = claim.ticket.producer == ticket.producer
        raise conflict(record.run, ConflictReason.SUPERSEDED if same else ConflictReason.PRODUCER)

    def _append_late(self, record: Record, step: Append) -> tuple[Appended, Change | None]:
        """Append to a run that is to stop, or has ended: only what has been appended already, and the end."""
        run, producer = record.run, step.ticket.producer
        is_known = not step.events or (step.offset is not None and step.offset + len(step.events) <= run.events)
        if run.state is STOPPING:
            if step.outcome is None or not is_known:
                raise conflict(run, ConflictReason.STOPPED)
            self._check_claim(record, step)
            self._end(record, step.outcome, producer)
            change = self._told(record, is_transition=True)
            return Appended(run.generation, run.events, run.state), change
        is_known = is_known and (step.offset is None or step.offset <= run.events)
        if run.error == RunError.TOO_LARGE or producer != record.finisher or not is_known:
            raise conflict(run, end_reason(run))
        if step.outcome is not None and step.outcome.state is not run.state and run.state is not STOPPED:
            raise conflict(run, end_reason(run))
        return Appended(run.generation, run.events, run.state), None

    def _end(self, record: Record, outcome: Outcome, finisher: str | None = None) -> None:
        run = record.run
        state, error = outcome
        if run.state is STOPPING and state is not FAILED:
            state, error = STOPPED, None
        run.error = error
        run.ended_at = self._wall()
        record.finisher = finisher
        record.claim = None
        self._enter_state(record, state)

    def _enter_state(self, record: Record, state: RunState) -> None:
        self._counts[record.run.state] -= 1
        self._counts[state] += 1
        record.run.state = state
        record.since = self._monotonic()
        self._watch(record)

    def _told(self, record: Record, *, is_transition: bool = False) -> Change:
        return Change(record, record.run.events + 1, is_transition=is_transition)

    def _enter(self, record: Record) -> None:
        run = record.run
        self.records[run.name] = record
        self._names.add(run.name, run.options.users)
        self._counts[run.state] += 1
        self._bytes += run.bytes + run.options.size
        self._watch(record)

    def _leave(self, record: Record) -> None:
        """Take away everything that `_enter` has added, for a record that is gone or is being replaced."""
        run = record.run
        del self.records[run.name]
        self._names.remove(run.name, run.options.users)
        self._counts[run.state] -= 1
        self._bytes -= run.bytes + run.options.size
        self._deadlines.forget(record)

    def _remove(self, record: Record) -> None:
        self._leave(record)
        self.bury(record.run.name, record.run.generation, self._wall())

    # Deadlines

    def _deadline(self, record: Record) -> float:
        run = record.run
        if run.state is OPEN:
            return record.since + run.options.idle
        return record.since + (self._limits.run_stop_seconds if run.state is STOPPING else run.options.keep)

    def _watch(self, record: Record) -> None:
        self._deadlines.watch(record, self._deadline(record))

    def _run_out(self, record: Record) -> Change:
        """Do what is to be done after the deadline of `record`."""
        state = record.run.state
        if state.is_end:
            self._remove(record)
            return self._told(record)._replace(is_gone=True)
        self._end(record, Outcome(STOPPED) if state is STOPPING else Outcome(FAILED, RunError.IDLE))
        return self._told(record, is_transition=True)


def _is_held_by_another(record: Record, ticket: Ticket | None) -> bool:
    """True if a producer other than that of `ticket` holds the run."""
    claim = record.claim
    return claim is not None and claim.is_held and ticket is not None and claim.ticket.producer != ticket.producer
