"""The book of runs against a simple model, with calls in any order."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from run_worlds import events, options, ticket
from ssehub.errors import InvalidRequest, Overloaded, RunConflict
from ssehub.runs.book import Book, Change
from ssehub.runs.model import EVENT_OVERHEAD_BYTES, Outcome, RunState
from ssehub.runs.store import Append, CreateMode, Creation, RunFilter, Ticket
from ssehub.settings import RunLimits
from ssehub.testing import ManualClock

NAMES = st.sampled_from(["a", "b", "c"])
PRODUCERS = st.sampled_from(["p", "q"])
OUTCOMES = st.sampled_from([Outcome(RunState.DONE), Outcome(RunState.FAILED, "x"), Outcome(RunState.STOPPED)])
GENERATIONS = st.none() | st.integers(1, 6)
USERS = st.sampled_from([("alex",), ("sam", "alex"), ("*",)])
LIMITS = RunLimits(run_bytes=600, max_runs_bytes=2_400, run_stop_seconds=5)


@dataclass
class Stored:
    """What a store that writes down every change has of one name."""

    log: str = ""
    data: list[str] = field(default_factory=list)


class BookMachine(RuleBasedStateMachine):
    """Each producer sends the numbers from 1 on to each generation, and begins anywhere when it connects again."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.logs = itertools.count()
        self.book = Book(
            LIMITS,
            wall=lambda: self.clock.wall,
            monotonic=lambda: self.clock.monotonic,
            new_log=lambda: f"log{next(self.logs)}",
        )
        self.stored: dict[str, Stored] = {}
        self.generations: dict[str, int] = {}
        self.connections: dict[tuple[str, str], Ticket] = {}
        self.numbers = itertools.count(1)
        self.transitions: dict[tuple[str, int], list[RunState]] = {}

    def apply(self, change: Change | None) -> None:
        if change is None:
            return
        run = change.record.run
        if change.is_transition:
            self.transitions.setdefault((run.name, run.generation), []).append(run.state)
        if change.is_gone:
            del self.stored[run.name]
            return
        stored = self.stored.setdefault(run.name, Stored())
        if change.is_new_log:
            stored.log = run.log
            if change.first == 1:
                stored.data = []
        if change.events:
            assert change.first == len(stored.data) + 1
            stored.data += [event.data for event in change.events]

    def connected(self, name: str, producer: str) -> Ticket:
        """Return the ticket of a new connection."""
        self.connections[name, producer] = ticket(producer, next(self.numbers))
        return self.connections[name, producer]

    @rule(name=NAMES, mode=st.sampled_from(CreateMode), producer=st.none() | PRODUCERS, users=USERS, keep=st.booleans())
    def create(self, name: str, mode: CreateMode, producer: str | None, users: tuple[str, ...], keep: bool) -> None:
        holder = None if producer is None else self.connected(name, producer)
        asked = options(users, idle=60, keep=100 if keep else 0)
        with contextlib.suppress(RunConflict, Overloaded):
            created, change = self.book.create(name, Creation(asked, mode, ticket=holder))
            self.apply(change)
            if created.is_new:
                assert created.run.generation == self.generations.get(name, 0) + 1
                self.generations[name] = created.run.generation

    @rule(
        name=NAMES,
        producer=PRODUCERS,
        is_first=st.booleans(),
        back=st.integers(0, 4),
        count=st.integers(0, 3),
        outcome=st.none() | OUTCOMES,
        generation=GENERATIONS,
    )
    def append(
        self,
        name: str,
        producer: str,
        is_first: bool,
        back: int,
        count: int,
        outcome: Outcome | None,
        generation: int | None,
    ) -> None:
        record = self.book.records.get(name)
        offset = max(0, (0 if record is None else record.run.events) - back)
        before = None if record is None else (record.run.generation, record.run.state)
        if is_first or (name, producer) not in self.connections:
            self.connected(name, producer)
            is_first = True
        data = [f"{number}" for number in range(offset + 1, offset + count + 1)]
        step = Append(self.connections[name, producer], events(*data), is_first, generation, offset, outcome)
        with contextlib.suppress(InvalidRequest, Overloaded):
            appended, change = self.book.append(name, step)
            self.apply(change)
            assert before is not None and appended.generation == before[0]
            assert generation in (None, appended.generation)
            if not before[1].is_end and (change is None or change.refusal is None):
                assert appended.events >= offset + count
                if outcome is not None:
                    assert appended.state in (outcome.state, RunState.STOPPED)

    @rule(name=NAMES, producer=PRODUCERS)
    def release(self, name: str, producer: str) -> None:
        if (held := self.connections.get((name, producer))) is not None:
            self.apply(self.book.release(name, held))

    @rule(name=NAMES, outcome=OUTCOMES, generation=GENERATIONS)
    def finish(self, name: str, outcome: Outcome, generation: int | None) -> None:
        with contextlib.suppress(InvalidRequest):
            run, change = self.book.finish(name, outcome, generation)
            self.apply(change)
            assert run.state.is_end and generation in (None, run.generation)

    @rule(name=NAMES, generation=GENERATIONS)
    def stop(self, name: str, generation: int | None) -> None:
        with contextlib.suppress(InvalidRequest):
            run, change = self.book.stop(name, generation)
            self.apply(change)
            assert run.state is not RunState.OPEN and generation in (None, run.generation)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        with contextlib.suppress(InvalidRequest):
            self.apply(self.book.delete(name)[1])
            assert name not in self.book.records

    def teardown(self) -> None:
        self.pass_seconds(61)
        assert all(record.run.state.is_end for record in self.book.records.values())
        self.pass_seconds(101)
        assert not self.book.records and not self.stored

    @rule(seconds=st.sampled_from([1, 4, 6, 61, 101]))
    def pass_seconds(self, seconds: float) -> None:
        self.clock.pass_seconds(seconds)
        while (changes := self.book.overdue()) is not None:
            for change in changes:
                self.apply(change)

    @invariant()
    def totals_are_those_of_the_runs(self) -> None:
        runs = [record.run for record in self.book.records.values()]
        totals = self.book.totals()
        assert totals.bytes == sum(run.bytes + run.options.size for run in runs) <= LIMITS.max_runs_bytes
        assert totals.states == {state: sum(run.state is state for run in runs) for state in RunState}

    @invariant()
    def every_change_was_reported(self) -> None:
        assert self.stored.keys() == self.book.records.keys()
        for name, stored in self.stored.items():
            run = self.book.records[name].run
            assert run.log == stored.log and run.events == len(stored.data)
            assert stored.data == [f"{number}" for number in range(1, run.events + 1)], "each once, in order"
            assert run.bytes == sum(len(text) + EVENT_OVERHEAD_BYTES for text in stored.data) <= LIMITS.run_bytes
            assert (run.ended_at is not None) is run.state.is_end

    @invariant()
    def every_run_began_and_ended_once(self) -> None:
        for states in self.transitions.values():
            assert states[0] is RunState.OPEN and len(states) <= 2 and all(state.is_end for state in states[1:])
        for name, record in self.book.records.items():
            states = self.transitions[name, record.run.generation]
            assert states[-1] is (record.run.state if record.run.state.is_end else RunState.OPEN)

    @invariant()
    def every_run_has_a_deadline(self) -> None:
        for record in self.book.records.values():
            assert record.due <= record.since + 100

    @invariant()
    def lists_are_those_of_the_runs(self) -> None:
        for user in (None, "alex", "sam", "*"):
            found = [run.name for run in self.book.list_runs(RunFilter(user))]
            assert found == sorted(
                name
                for name, record in self.book.records.items()
                if user is None or {user, "*"} & set(record.run.options.users)
            )


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
