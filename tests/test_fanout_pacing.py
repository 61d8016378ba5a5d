"""Pacing: how long a round is put off, by what the one before has carried and how fast that came."""

from __future__ import annotations

import pytest

from ssehub.fanout.pacing import Pace

NOW = 100.0


def pause(*, writes: int, events: int, since: float, seconds: float = 0.001) -> float:
    """Return the pause after a round that took so many seconds and began `since` seconds after one like it."""
    pace = Pace()
    for began in (NOW, NOW + since):
        pace.follow(began, began + seconds, writes, events)
    return pace.begins_at - (NOW + since + seconds)


@pytest.mark.parametrize(
    ("writes", "events", "since", "expected"),
    [
        pytest.param(32, 100, 0.001, 0.0, id="few-writes"),
        pytest.param(1_000, 1, 0.015, 0.0, id="one-event-in-a-full-period"),
        pytest.param(1_000, 1, 1.0, 0.0, id="one-event-a-second"),
        pytest.param(1_000, 3, 0.015, 0.007, id="half-of-what-makes-it-full"),
        pytest.param(1_000, 5, 0.015, 0.014, id="full"),
        pytest.param(10_000, 500, 0.015, 0.014, id="never-more"),
        pytest.param(100, 1, 0.001, 0.005, id="one-event-in-each-of-many-rounds"),
        pytest.param(100, 1, 0.006, 0.0, id="as-many-as-would-be-without-a-pause"),
        pytest.param(33, 10, 0.0, 0.002, id="a-clock-that-stands-still"),
    ],
)
def test_pause_is_longer_the_more_events_come_in_one(writes: int, events: int, since: float, expected: float) -> None:
    assert pause(writes=writes, events=events, since=since) == pytest.approx(expected)


def test_pause_after_a_long_round_is_a_quarter_of_it() -> None:
    assert pause(writes=10_000, events=500, since=0.1, seconds=0.1) == pytest.approx(0.025)


def test_first_round_is_followed_by_none() -> None:
    pace = Pace()

    pace.follow(NOW, NOW + 0.001, 1_000, 100)

    assert pace.begins_at == NOW + 0.001


def test_rounds_for_few_do_not_make_those_for_many_look_frequent() -> None:
    pace = Pace()
    for number in range(5):
        began = NOW + 0.05 * number
        pace.follow(began - 0.001, began - 0.0009, 1, 1)
        pace.follow(began, began + 0.01, 1_000, 1)

        assert pace.begins_at == began + 0.01


def test_enough_is_a_tenth_of_the_writes() -> None:
    pace = Pace()
    pace.follow(NOW, NOW + 0.001, 100, 20)
    pace.follow(NOW + 0.006, NOW + 0.007, 100, 20)

    assert pace.enough == 10
