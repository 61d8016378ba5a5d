"""Backlogs: the books on what is unread and held, who lags, and who has to end.

`test_fanout_backpressure.py` shows what a hub does by them.
"""

from __future__ import annotations

from typing import Any

import pytest

from builders import at, batch, subscriber
from fakes import FakeSink
from ssehub.fanout.backlogs import OVERRUN, Backlogs
from ssehub.fanout.frames import Batch
from ssehub.fanout.index import Index
from ssehub.fanout.subscriber import Subscriber
from ssehub.settings import Backpressure

GRACE = 5.0
LATER = 10.0
"""A time at which the grace time of whatever began at 0 is over."""
ROOM = 750
"""Three quarters of the bound on all backlogs: above this, memory runs short."""
BOUND = 1_000


def backlogs_of(*, max_held_bytes: int = 10_000, **bounds: Any) -> Backlogs:
    small = {"max_backlog_bytes": 100, "max_total_backlog_bytes": BOUND, "grace_seconds": GRACE, "round_bytes": 200}
    return Backlogs(Backpressure(**{**small, **bounds}), max_held_bytes, Index())


def paused(backlogs: Backlogs, backlog: int, since: float = 0.0) -> Subscriber:
    """Return a subscriber whose sink paused at `since`, with this backlog."""
    sink = FakeSink(reads=False)
    sink.backlog, sink.is_paused = backlog, True
    one = subscriber(sink=sink)
    backlogs.pause(one, since)
    return one


def lagging(backlogs: Backlogs, *held: Batch, backlog: int = 101, since: float = 0.0) -> Subscriber:
    """Return a paused subscriber that lags since then, for which `held` is held."""
    one = paused(backlogs, backlog, since)
    backlogs.is_over(one, 0)
    backlogs.start_lag(one, since)
    for one_batch in held:
        backlogs.hold(one, one_batch)
    return one


def batch_of(size: int, number: int = 1) -> Batch:
    """Return a batch of one event that has `size` bytes."""
    found = batch(number, data="x" * (size - len(batch(number, data="x").data) + 1))
    assert len(found.data) == size
    return found


def read(one: Subscriber, size: int) -> None:
    assert isinstance(one.sink, FakeSink)
    one.sink.read(size)


def write(backlogs: Backlogs, one: Subscriber, size: int) -> None:
    assert isinstance(one.sink, FakeSink)
    one.sink.backlog += size
    backlogs.is_over(one, size)


# The books


def test_batch_that_is_held_for_many_is_counted_once_until_the_last_holder_lets_go() -> None:
    backlogs = backlogs_of()
    shared, own = batch_of(300), batch_of(50, number=2)
    first, second, third = (lagging(backlogs, shared) for _ in range(3))
    backlogs.hold(third, own)

    counted = [backlogs.held_bytes]
    backlogs.next_held(first)
    counted.append(backlogs.held_bytes)
    backlogs.end_lag(second)
    counted.append(backlogs.held_bytes)
    backlogs.next_held(third)
    counted.append(backlogs.held_bytes)
    backlogs.remove(third)
    counted.append(backlogs.held_bytes)

    assert counted == [350, 350, 350, 50, 0]


def test_only_the_part_of_a_batch_that_a_subscriber_does_not_have_is_held() -> None:
    backlogs = backlogs_of()
    ahead = subscriber(sent=at(1))
    backlogs.start_lag(ahead, 0.0)

    held = [backlogs.hold(ahead, one) for one in (batch(1), batch(1, 2), batch(2, 3, 4), batch(3, 4))]

    assert held == [0, 1, 2, 0]
    assert positions(backlogs, ahead) == [[at(2)], [at(3), at(4)]]


def positions(backlogs: Backlogs, one: Subscriber) -> list[list[Any]]:
    found = []
    while (held := backlogs.next_held(one)) is not None:
        found.append([frame.position for frame in held.frames])
    return found


def test_more_than_history_retains_is_not_held_for_one_subscriber() -> None:
    backlogs = backlogs_of(max_held_bytes=250)
    one = lagging(backlogs)

    held = [backlogs.hold(one, batch_of(100, number)) for number in (1, 2, 3)]

    assert held == [1, 1, OVERRUN]


def test_bytes_are_what_is_unread_and_what_is_held() -> None:
    backlogs = backlogs_of()
    shared = batch_of(300)
    first = lagging(backlogs, shared, backlog=120)
    lagging(backlogs, shared, backlog=110)
    paused(backlogs, 30)

    both = (backlogs.bytes, backlogs.lagging, backlogs.held_for(first))
    backlogs.remove(first)

    assert both == (120 + 110 + 30 + 300, 2, 300)
    assert (backlogs.bytes, backlogs.lagging, backlogs.held_for(first)) == (110 + 30 + 300, 1, 0)


def test_what_is_dropped_is_not_held_and_the_subscriber_lags_on() -> None:
    backlogs = backlogs_of()
    one = lagging(backlogs, batch_of(300))

    backlogs.drop_held(one)

    assert (backlogs.held_bytes, backlogs.held_for(one), backlogs.lagging) == (0, 0, 1)
    assert backlogs.overdue(GRACE) == [one]


def test_subscriber_that_does_not_lag_has_nothing_held() -> None:
    backlogs = backlogs_of()
    one = paused(backlogs, 10)

    backlogs.end_lag(one)

    assert backlogs.next_held(one) is None and backlogs.held_for(one) == 0


@pytest.mark.parametrize(("backlog", "is_over"), [(100, False), (101, True)])
def test_backlog_is_over_above_its_bound(backlog: int, is_over: bool) -> None:
    backlogs = backlogs_of()

    assert backlogs.is_over(paused(backlogs, backlog), 10) is is_over


@pytest.mark.parametrize("pauses_again", [False, True])
def test_sink_that_pauses_again_while_it_resumes_stays_paused(pauses_again: bool) -> None:
    backlogs = backlogs_of()
    one = paused(backlogs, 120)
    one.sink.is_paused = pauses_again

    backlogs.resume(one, 1.0)
    backlogs.settle(one)

    assert backlogs.bytes == (120 if pauses_again else 0)


def test_grace_time_begins_anew_with_each_start_and_what_is_held_stays() -> None:
    backlogs = backlogs_of()
    one, other = lagging(backlogs, batch_of(300)), lagging(backlogs)

    before = backlogs.overdue(GRACE - 0.1)
    backlogs.start_lag(one, 3.0)

    assert before == []
    assert backlogs.overdue(GRACE) == [other]
    assert backlogs.overdue(3.0 + GRACE) == [one, other]
    assert backlogs.held_for(one) == 300


@pytest.mark.parametrize(
    ("backlog", "subscribers", "capacity"),
    [
        pytest.param(0, 1, 200, id="round-bytes"),
        pytest.param(0, 5, 100, id="half-of-the-bound-for-all"),
        pytest.param(700, 5, 60, id="what-is-left-for-all"),
        pytest.param(990, 5, 2, id="little-left"),
        pytest.param(0, 0, 200, id="without-subscribers"),
    ],
)
def test_capacity_of_a_round_leaves_all_backlogs_within_their_bound(
    backlog: int, subscribers: int, capacity: int
) -> None:
    backlogs = backlogs_of()
    if backlog:
        paused(backlogs, backlog)

    assert backlogs.capacity(subscribers) == capacity


@pytest.mark.parametrize(("unread", "is_over"), [(250, False), (251, True)])
def test_when_a_quarter_of_the_bound_is_unread_whoever_is_paused_lags(unread: int, is_over: bool) -> None:
    backlogs = backlogs_of()
    one = paused(backlogs, 50)
    paused(backlogs, unread - 50)

    before = backlogs.is_over(one, 0)
    backlogs.capacity(2)

    assert not before
    assert backlogs.is_over(one, 0) is is_over
    assert backlogs.is_tight is is_over


def test_pressure_ends_when_nobody_is_paused_any_more() -> None:
    backlogs = backlogs_of()
    one = paused(backlogs, 500)
    backlogs.capacity(1)
    backlogs.remove(one)

    assert (backlogs.capacity(1), backlogs.is_tight) == (200, False)


# Who has to end


def test_largest_backlogs_of_those_that_have_stopped_end_first_until_there_is_room() -> None:
    backlogs = backlogs_of()
    _, largest, _, large = (paused(backlogs, backlog) for backlog in (200, 400, 300, 350))

    assert list(backlogs.excess(LATER)) == [largest, large]


def test_above_the_whole_bound_readers_end_too_and_those_furthest_behind_first() -> None:
    backlogs = backlogs_of()
    held = batch_of(300)
    readers = [paused(backlogs, backlog) for backlog in (400, 500)]
    behind = lagging(backlogs, held, backlog=350)
    for one in (*readers, behind):
        backlogs.is_over(one, 0)
        read(one, 10)

    ends = []
    for one in backlogs.excess(1.0):
        ends.append(one)
        backlogs.remove(one)

    assert ends == [behind]


@pytest.mark.parametrize(("unread", "now"), [(ROOM, LATER), (BOUND, 1.0)], ids=["stopped", "any"])
def test_nobody_ends_while_there_is_room(unread: int, now: float) -> None:
    backlogs = backlogs_of()
    paused(backlogs, 300)
    paused(backlogs, unread - 300)

    assert list(backlogs.excess(now)) == []


@pytest.mark.parametrize(
    ("is_shared", "is_removed", "expected"),
    [
        pytest.param(False, True, ["first"], id="only-holder-ends"),
        pytest.param(True, True, ["first", "second"], id="one-of-two-holders-ends"),
        pytest.param(False, False, ["first", "second", "third"], id="nobody-is-ended"),
    ],
)
def test_ending_one_changes_who_follows_because_held_bytes_fall_with_the_last_holder(
    is_shared: bool, is_removed: bool, expected: list[str]
) -> None:
    backlogs = backlogs_of()
    held = batch_of(800)
    members = {
        "third": lagging(backlogs, backlog=101),
        "first": lagging(backlogs, held, backlog=120),
        "second": lagging(backlogs, *([held] if is_shared else []), backlog=110),
    }
    names = {member: name for name, member in members.items()}

    ended = []
    for one in backlogs.excess(LATER):
        ended.append(names[one])
        if is_removed:
            backlogs.remove(one)

    assert ended[: len(expected)] == expected
    assert not is_removed or len(ended) == len(expected)


def test_only_those_end_as_stopped_that_have_read_nothing_for_the_grace_time() -> None:
    backlogs = backlogs_of()
    stopped, reader, recent = paused(backlogs, 300), paused(backlogs, 300), paused(backlogs, 350, since=LATER - GRACE)
    for one in (stopped, reader, recent):
        backlogs.is_over(one, 0)
    read(reader, 5)

    ends = list(backlogs.excess(LATER))

    assert ends == [stopped]


@pytest.mark.parametrize(("size", "counts"), [(1, True), (0, False)])
def test_client_reads_if_its_backlog_shrinks_by_a_64th_of_the_bound(size: int, counts: bool) -> None:
    backlogs = backlogs_of()
    one = paused(backlogs, 800)
    backlogs.is_over(one, 0)
    read(one, size)

    assert list(backlogs.excess(LATER)) == ([] if counts else [one])


def test_bytes_that_are_written_meanwhile_do_not_hide_that_a_client_reads() -> None:
    backlogs = backlogs_of()
    one = paused(backlogs, 800)
    backlogs.is_over(one, 0)

    read(one, 50)
    write(backlogs, one, 60)

    assert list(backlogs.excess(LATER)) == []


def test_stream_that_has_caught_up_is_not_overdue() -> None:
    backlogs = backlogs_of()
    one = lagging(backlogs)

    overdue = backlogs.is_overdue(one, GRACE)
    backlogs.end_lag(one)

    assert overdue and not backlogs.is_overdue(one, GRACE)
