"""Rounds: their states, what a round carries, and how far apart rounds begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import product

import pytest

from builders import BASE, at, frame
from fakes import FakeSink
from hubs import join, publish, running_hub
from ssehub.fanout.frames import Ending
from ssehub.fanout.rounds import Rounds, RoundState
from ssehub.hub import Hub
from ssehub.publication import Disconnect
from ssehub.testing import ManualClock

pytestmark = pytest.mark.anyio

IDLE, SCHEDULED = RoundState.IDLE, RoundState.SCHEDULED
WRITING, ENDING = RoundState.WRITING, RoundState.ENDING
NOW = 100.0
COMMAND = Ending(at(2), Disconnect(("alex",), ()))

STEPS: dict[str, Callable[[Rounds], object]] = {
    "schedule": lambda rounds: rounds.schedule(NOW),
    "begin": lambda rounds: rounds.begin(NOW, 1_000),
    "next_ending": lambda rounds: rounds.next_ending(),
    "finish": lambda rounds: rounds.finish(NOW),
    "finish_ending": lambda rounds: rounds.finish_ending(),
    "begin_alone": lambda rounds: rounds.begin_alone(NOW),
    "await_turn": lambda rounds: rounds.await_turn(),
    "rest": lambda rounds: rounds.rest(),
}
LEADS_TO = {
    (IDLE, "schedule"): SCHEDULED,
    # A round that is scheduled or under way is not scheduled again.
    (SCHEDULED, "schedule"): SCHEDULED,
    (WRITING, "schedule"): WRITING,
    (ENDING, "schedule"): ENDING,
    (SCHEDULED, "begin"): WRITING,
    (SCHEDULED, "next_ending"): ENDING,
    (WRITING, "finish"): IDLE,
    (ENDING, "finish_ending"): IDLE,
    (IDLE, "begin_alone"): WRITING,
    (IDLE, "await_turn"): SCHEDULED,
    (SCHEDULED, "rest"): IDLE,
}
"""Each step that is possible, by the state before it, and the state after it."""
# Several steps lead from different states to the same one, so the table of states cannot tell them apart.
AMBIGUOUS = {
    *product((SCHEDULED, WRITING, ENDING), ("finish", "finish_ending", "rest")),
    *product((IDLE, SCHEDULED), ("begin", "begin_alone")),
} - LEADS_TO.keys()
CASES = [case for case in product(RoundState, STEPS) if case not in AMBIGUOUS]


def rounds_in(state: RoundState, *waiting: Ending | int) -> Rounds:
    """Return rounds in `state`, for which `waiting` waits: commands, and events by their numbers."""
    rounds = Rounds(BASE, 1_000)
    if state is WRITING:
        rounds.add(frame(1))
        rounds.schedule(NOW)
        rounds.begin(NOW, 1_000)
    elif state is ENDING:
        rounds.add(COMMAND)
        rounds.schedule(NOW)
        rounds.next_ending()
    for item in waiting:
        rounds.add(item if isinstance(item, Ending) else frame(item))
    if state is SCHEDULED:
        rounds.schedule(NOW)
    assert rounds.state is state
    return rounds


@pytest.mark.parametrize(("state", "step"), CASES, ids=[f"{state.value}-{step}" for state, step in CASES])
def test_round_changes_its_state_only_as_the_table_allows(state: RoundState, step: str) -> None:
    rounds = rounds_in(state, COMMAND if step == "next_ending" else 3, 4)
    after = LEADS_TO.get((state, step))

    if after is not None:
        STEPS[step](rounds)
        assert rounds.state is after
    else:
        waiting_bytes = rounds.waiting_bytes
        with pytest.raises(AssertionError, match="cannot be followed by"):
            STEPS[step](rounds)
        assert (rounds.state, rounds.waiting_bytes) == (state, waiting_bytes)


def test_nothing_is_scheduled_when_nothing_waits() -> None:
    rounds = Rounds(BASE, 1_000)

    assert rounds.schedule(NOW) is None
    assert rounds.state is IDLE and rounds.is_idle


@pytest.mark.parametrize(
    ("capacity", "carried"),
    [
        pytest.param(10**6, [1, 2, 3], id="everything"),
        pytest.param(2 * len(frame(1).data), [1, 2], id="as-many-as-fit"),
        pytest.param(2 * len(frame(1).data) - 1, [1], id="whole-events"),
        pytest.param(0, [1], id="at-least-one"),
        pytest.param(-5, [1], id="at-least-one-without-capacity"),
    ],
)
def test_round_carries_as_many_events_as_it_may_and_at_least_one(capacity: int, carried: list[int]) -> None:
    rounds = rounds_in(SCHEDULED, 1, 2, 3)

    frames = rounds.begin(NOW, capacity)

    assert [one.position for one in frames] == [at(number) for number in carried]
    assert rounds.last == frames[-1].position
    assert rounds.waiting_bytes == (3 - len(carried)) * len(frame(1).data)
    assert rounds.is_under_way and not rounds.is_idle


def test_command_stands_between_the_events_in_the_order_of_the_log() -> None:
    rounds = rounds_in(SCHEDULED, 1, COMMAND, 3)

    assert rounds.next_ending() is None
    assert [one.position for one in rounds.begin(NOW, 10**6)] == [at(1)]
    rounds.finish(NOW)
    rounds.schedule(NOW)
    assert rounds.next_ending() is COMMAND
    rounds.finish_ending()
    rounds.schedule(NOW)
    assert rounds.next_ending() is None
    assert [one.position for one in rounds.begin(NOW, 10**6)] == [at(3)]
    assert rounds.finish(NOW + 1.5) == 1.5
    assert rounds.is_idle


@pytest.mark.parametrize(
    ("before", "waiting", "is_alone"),
    [
        pytest.param(0, [1], True, id="the-first-of-all"),
        pytest.param(1, [2], True, id="after-one"),
        pytest.param(1, [2, 3], False, id="together-with-another"),
        pytest.param(2, [3], False, id="after-two"),
        pytest.param(1, [COMMAND], False, id="a-command"),
    ],
)
def test_event_waits_alone_if_it_comes_at_rest(before: int, waiting: list[Ending | int], is_alone: bool) -> None:
    rounds = Rounds(BASE, 1_000)
    if before:
        rounds = rounds_in(SCHEDULED, *range(1, before + 1))
        rounds.begin(NOW, 1_000)
        rounds.finish(NOW)
    for item in waiting:
        rounds.add(item if isinstance(item, Ending) else frame(item))

    found = rounds.lone_event(NOW)

    assert (found is not None) is is_alone
    assert found is None or found.position == at(before + 1)


@pytest.mark.parametrize("state", [SCHEDULED, WRITING, ENDING])
def test_no_event_waits_alone_unless_the_round_before_is_over(state: RoundState) -> None:
    assert rounds_in(state, 3).lone_event(NOW) is None


def test_event_that_waits_alone_is_written_like_any_other() -> None:
    rounds = rounds_in(IDLE, 1)

    rounds.begin_alone(NOW)

    assert rounds.is_under_way and rounds.waiting_bytes == 0
    assert (rounds.last, rounds.events) == (at(1), 1)
    assert rounds.finish(NOW + 0.5) == 0.5 and rounds.is_idle


def test_capacity_for_publishers_ends_with_the_waiting_bytes() -> None:
    size = len(frame(1).data)
    rounds = Rounds(BASE, 2 * size)
    for number in (1, 2):
        assert rounds.has_capacity()
        rounds.add(frame(number))
    full = rounds.has_capacity()
    rounds.add(COMMAND)

    rounds.schedule(NOW)
    rounds.begin(NOW, size)

    assert not full and rounds.has_capacity()
    assert rounds.waiting_bytes == size


def busy_rounds(writes: int, *waiting: int) -> Rounds:
    """Return rounds after one with so many writes that carried six events and ended after 1 ms, at the full rate."""
    rounds = rounds_in(SCHEDULED, *range(1, 7), *waiting)
    for began in (NOW, NOW + 0.006):
        rounds.begin(began, 1 if began == NOW else 5 * len(frame(1).data))
        rounds.writes = writes
        rounds.finish(began + 0.001)
        if began == NOW:
            rounds.schedule(began + 0.001)
    return rounds


@pytest.mark.parametrize(("writes", "delay"), [(32, 0.0), (100, 0.005), (1_000, 0.014)])
def test_round_keeps_a_distance_from_a_large_one_under_load(writes: int, delay: float) -> None:
    assert busy_rounds(writes, 7).schedule(NOW + 0.007) == pytest.approx(delay)


def test_distance_ends_when_enough_events_wait() -> None:
    rounds = busy_rounds(100, *range(7, 16))

    delay, has_enough = rounds.schedule(NOW + 0.007), rounds.has_enough
    rounds.add(frame(16))

    assert delay == pytest.approx(0.005) and not has_enough
    assert rounds.has_enough


def test_round_for_which_enough_events_wait_begins_at_once() -> None:
    assert busy_rounds(100, *range(7, 17)).schedule(NOW + 0.007) == 0.0


def test_round_that_is_late_already_begins_at_once() -> None:
    assert busy_rounds(1_000, 7).schedule(NOW + 5) == 0.0


async def publish_five_times(hub: Hub, sink: FakeSink) -> list[str]:
    """Publish 1 to 5, each when the one before has been written, then 6 and 7; return what of these leaves at once."""
    for number in range(1, 6):
        await publish(hub, str(number))
        await hub.flush()
    await publish(hub, "6", "7")
    for _ in range(5):
        await asyncio.sleep(0)
    return sink.data()[5:]


@pytest.mark.parametrize(("subscribers", "seconds"), [(10, 0.0), (100, 0.006), (600, 0.015)])
async def test_rounds_begin_further_apart_the_more_they_write(subscribers: int, seconds: float) -> None:
    """The clock stands still, so that all events come at once."""
    async with running_hub(ManualClock()) as hub:
        sinks = [join(hub, f"user-{number}")[1] for number in range(subscribers)]

        began = time.monotonic()
        at_once = await publish_five_times(hub, sinks[0])
        await hub.flush()

        assert at_once == ([] if seconds else ["6", "7"])
        assert time.monotonic() - began >= 4 * seconds - 0.002  # the first of these rounds follows none
        assert [sink.data() for sink in sinks] == [[str(number) for number in range(1, 8)]] * subscribers


async def test_rounds_to_many_keep_no_distance_at_an_everyday_rate() -> None:
    clock = ManualClock()
    async with running_hub(clock) as hub:
        sinks = [join(hub, f"user-{number}")[1] for number in range(150)]
        for number in range(5):
            await publish(hub, str(number))
            await hub.flush()
            clock.pass_seconds(0.02)

        await publish(hub, "5")
        for _ in range(5):
            await asyncio.sleep(0)

        assert sinks[-1].data() == ["0", "1", "2", "3", "4", "5"]


async def test_pause_between_rounds_ends_when_enough_events_wait() -> None:
    async with running_hub(ManualClock()) as hub:
        _, sink, *_ = [join(hub, f"user-{number}")[1] for number in range(100)]
        await publish(hub, "1")
        await hub.flush()
        await publish(hub, "2")
        await hub.flush()

        await publish(hub, *map(str, range(3, 12)))
        for _ in range(5):
            await asyncio.sleep(0)
        nine_wait = sink.data() == ["1", "2"]
        await publish(hub, "12")
        for _ in range(5):
            await asyncio.sleep(0)

        assert nine_wait
        assert sink.data() == [str(number) for number in range(1, 13)]
        await hub.flush()
        assert sum(hub.statistics.round_counts) == 3
