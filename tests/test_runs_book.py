"""The book of runs: what the contract of a store does not show of its rules, deadlines and bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from run_worlds import DONE, NAME, OPTIONS_BYTES, events, key, options, ticket
from ssehub.errors import ConflictReason, RunConflict
from ssehub.runs import book as book_module
from ssehub.runs.book import Book, Change, Record
from ssehub.runs.model import TOMBSTONE_SECONDS, Run, RunError, RunState
from ssehub.runs.store import Append, CreateMode, Creation, RunFilter
from ssehub.settings import RunLimits
from ssehub.testing import ManualClock


class Books:
    """Makes books with one clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._logs = itertools.count(1)

    def book(self, **limits: int) -> Book:
        return Book(
            RunLimits(**limits),
            wall=lambda: self.clock.wall,
            monotonic=lambda: self.clock.monotonic,
            new_log=lambda: f"log{next(self._logs)}",
        )


@pytest.fixture
def books() -> Books:
    return Books()


def all_overdue(book: Book) -> list[Change]:
    found: list[Change] = []
    while (changes := book.overdue()) is not None:
        found += changes
    return found


def changed(result: tuple[object, Change | None]) -> Change:
    assert result[1] is not None
    return result[1]


# Changes


def test_change_says_what_is_to_be_stored(books: Books) -> None:
    book = books.book()
    created = changed(book.create(NAME, Creation(options(), key=key("k"), ticket=ticket())))
    appended = changed(book.append(NAME, Append(ticket(), events("1", "2"), offset=0)))
    overlapping = changed(book.append(NAME, Append(ticket("p", 2), events("2", "3"), True, offset=1)))
    taken_over = changed(book.create(NAME, Creation(options(), CreateMode.TAKEOVER)))
    ended = changed(book.append(NAME, Append(ticket(), events("4"), True, outcome=DONE)))
    after_the_end = changed(book.create(NAME, Creation(options(), CreateMode.TAKEOVER)))
    restarted = changed(book.create(NAME, Creation(options(), CreateMode.RESTART)))
    deleted = changed(book.delete(NAME))

    assert created[1:] == (1, (), True, True, True, False, None, None)
    assert (created.record.key, created.record.creator) == (key("k"), "p")
    assert (appended.first, appended.events, appended.is_transition) == (1, events("1", "2"), False)
    assert (overlapping.first, overlapping.events) == (3, events("3"))
    assert (taken_over.first, taken_over.is_new_log, taken_over.is_transition) == (4, False, True)
    assert (ended.first, ended.events, ended.is_transition) == (4, events("4"), True)
    assert (ended.record.finisher, ended.record.claim) == ("p", None)
    assert (after_the_end.first, after_the_end.is_new_log) == (5, True)
    assert (restarted.first, restarted.is_new_log) == (1, True)
    assert (deleted.is_gone, deleted.is_transition, deleted.is_told) == (True, True, True)


def test_only_a_claim_is_not_told(books: Books) -> None:
    book = books.book()
    book.create(NAME, Creation(options()))
    claimed = changed(book.append(NAME, Append(ticket(), is_first=True)))
    released = book.release(NAME, ticket())
    joined = changed(book.create(NAME, Creation(options(), CreateMode.JOIN, ticket=ticket("q"))))

    assert released is not None
    assert [change.is_told for change in (claimed, released, joined)] == [False] * 3


def test_claim_says_who_has_taken_the_run_over_from_another_connection(books: Books) -> None:
    book = books.book()
    book.create(NAME, Creation(options(), ticket=ticket()))
    taken_over = changed(book.append(NAME, Append(ticket("p", 2), is_first=True)))
    joined = changed(book.create(NAME, Creation(options(), CreateMode.JOIN, ticket=ticket("p", 3))))
    book.release(NAME, ticket("p", 3))
    after_release = changed(book.append(NAME, Append(ticket("q"), events("1"), is_first=True)))

    assert [change.claimant for change in (taken_over, joined, after_release)] == ["p-2", "p-3", None]


def test_sign_of_life_changes_nothing_that_is_stored(books: Books) -> None:
    book = books.book()
    book.create(NAME, Creation(options(), ticket=ticket()))
    book.append(NAME, Append(ticket(), events("1"), offset=0))

    assert book.append(NAME, Append(ticket()))[1] is None
    assert book.append(NAME, Append(ticket(), events("1"), offset=0))[1] is None
    assert book.create(NAME, Creation(options(), CreateMode.JOIN, ticket=ticket()))[1] is None


def test_run_that_has_become_too_large_has_changed_although_the_call_is_refused(books: Books) -> None:
    book = books.book(run_bytes=50)
    book.create(NAME, Creation(options()))
    change = changed(book.append(NAME, Append(ticket(), events("x" * 19), True)))

    assert isinstance(change.refusal, RunConflict) and change.refusal.reason is ConflictReason.TOO_LARGE
    assert (change.refusal.state, change.refusal.error) == (RunState.FAILED, RunError.TOO_LARGE)
    assert (change.is_transition, change.first, list(change.events)) == (True, 1, [])
    assert book.totals().bytes == OPTIONS_BYTES


# Deadlines


def test_run_that_is_busy_does_not_fail(books: Books) -> None:
    book = books.book()
    book.create(NAME, Creation(options(idle=60), ticket=ticket()))
    for _ in range(200):
        books.clock.pass_seconds(1)
        book.append(NAME, Append(ticket(), events("x")))
        assert not all_overdue(book)
    books.clock.pass_seconds(60)

    (change,) = all_overdue(book)
    assert change.record.run.error == RunError.IDLE


def test_earlier_deadline_of_another_state_counts(books: Books) -> None:
    book = books.book()
    for name in ("stopped", "ended"):
        book.create(name, Creation(options(idle=10_000, keep=100), ticket=ticket()))
    book.stop("stopped")
    book.finish("ended", DONE)
    books.clock.pass_seconds(4.9)
    assert not all_overdue(book)
    books.clock.pass_seconds(0.1)
    assert [change.record.run.state for change in all_overdue(book)] == [RunState.STOPPED]
    books.clock.pass_seconds(95)
    assert [(change.record.run.name, change.is_gone) for change in all_overdue(book)] == [("ended", True)]
    books.clock.pass_seconds(5)
    assert [change.record.run.name for change in all_overdue(book)] == ["stopped"]
    assert not book.records


def test_what_is_due_at_once_is_done_a_part_at_a_time(books: Books) -> None:
    book = books.book()
    for number in range(1_000):
        book.create(f"{number}", Creation(options(idle=60)))
    books.clock.pass_seconds(60)
    parts = []
    while (changes := book.overdue(300)) is not None:
        parts.append(len(changes))

    assert parts == [300, 300, 300, 100]
    assert book.totals().states[RunState.FAILED] == 1_000


def test_setting_the_wall_clock_changes_no_deadline(books: Books) -> None:
    book = books.book()
    book.create(NAME, Creation(options(idle=60)))
    books.clock.wall += 1e6
    assert not all_overdue(book)
    books.clock.wall -= 2e6
    books.clock.monotonic += 60

    assert [change.record.run.error for change in all_overdue(book)] == [RunError.IDLE]


# Tombstones


def test_generation_is_remembered_for_a_day(books: Books) -> None:
    book = books.book()
    for name in ("a", "b"):
        book.create(name, Creation(options()))
        book.delete(name)
    books.clock.pass_seconds(TOMBSTONE_SECONDS - 1)
    book.overdue()
    assert book.create("a", Creation(options()))[0].run.generation == 2
    books.clock.pass_seconds(2)
    book.overdue()

    assert book.create("b", Creation(options()))[0].run.generation == 1


def test_oldest_generation_is_forgotten_when_there_are_too_many(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_TOMBSTONES", 3)
    book = books.book()
    for name in ("a", "b", "c", "a", "d"):
        book.create(name, Creation(options()))
        book.delete(name)

    generations = {name: book.create(name, Creation(options()))[0].run.generation for name in ("a", "b", "c", "d")}
    assert generations == {"a": 3, "b": 1, "c": 2, "d": 2}


# What was stored


def test_runs_that_were_stored_go_on(books: Books) -> None:
    before = books.book()
    for name, keep in (("open", 100), ("stopping", 100), ("ended", 100), ("long", 10_000)):
        before.create(name, Creation(options(idle=60, keep=keep), ticket=ticket()))
        before.append(name, Append(ticket(), events("x" * 68), offset=0))
    before.stop("stopping")
    for name in ("ended", "long"):
        before.append(name, Append(ticket(), offset=1, outcome=DONE))
    before.create("gone", Creation(options()))
    before.delete("gone")
    books.clock.pass_seconds(99)
    after = books.book()
    for record in before.records.values():
        record.due = float("inf")  # as it is when it was read
        after.load(record)
    after.bury("gone", 1, books.clock.wall)

    assert after.totals() == before.totals()
    assert not all_overdue(after), "time in which no producer could connect does not count as idle"
    assert after.append("ended", Append(ticket("p", 2), offset=1, outcome=DONE))[0].state is RunState.DONE
    books.clock.pass_seconds(5)
    gone = [(change.record.run.name, change.record.run.state) for change in all_overdue(after)]
    assert gone == [("ended", RunState.DONE), ("stopping", RunState.STOPPED)]
    after.append("open", Append(ticket("q"), events("1"), True))
    assert after.create("gone", Creation(options()))[0].run.generation == 2
    assert [run.name for run in after.list_runs(RunFilter("alex"))] == ["gone", "long", "open", "stopping"]


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_kept_time_of_a_stored_run_is_bounded_whatever_the_clock_says(books: Books, step: float) -> None:
    run = Run(NAME, options(keep=100), 1, "log", books.clock.wall)
    run.state, run.ended_at = RunState.DONE, books.clock.wall + step
    book = books.book()
    book.load(Record(run))
    books.clock.pass_seconds(100)

    assert [change.is_gone for change in all_overdue(book)] == [True]


def test_open_runs_end_when_the_store_shuts_down(books: Books) -> None:
    book = books.book()
    for number in range(25):
        book.create(f"{number}", Creation(options(), ticket=ticket()))
    book.stop("3")
    book.finish("4", DONE)
    parts = list(book.shut_down(10))

    assert [len(part) for part in parts] == [10, 10, 4]
    assert all(
        change.is_transition and change.record.run.error == RunError.SHUTDOWN for part in parts for change in part
    )
    assert book.totals().states == {**dict.fromkeys(RunState, 0), RunState.FAILED: 24, RunState.DONE: 1}


# Messages


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda book: book.create("a", Creation(options())),
            "run 'a' has not ended: append to it, or create it with restart or",
        ),
        (lambda book: book.stop("a", 7), "run 'a' has generation 1, not 7"),
        (lambda book: book.append("a", Append(ticket("q"), is_first=True)), "another producer appends to run 'a'"),
        (lambda book: book.append("a", Append(ticket(), offset=3)), "run 'a' has 0 events, not the 3 that were sent"),
    ],
)
def test_refusal_says_why(books: Books, call: Callable[[Book], object], message: str) -> None:
    book = books.book()
    book.create("a", Creation(options(), ticket=ticket()))
    with pytest.raises(RunConflict) as refused:
        call(book)

    assert str(refused.value).startswith(message)
