"""Memory pressure: when memory is short, and how much has to be freed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from ssehub.fanout.pressure import CLOSE_SECONDS, REGROW_SECONDS, SETTLE_SECONDS, Pressure
from ssehub.memory import Reading

LIMIT = 1_000


@dataclass
class FakeMeter:
    """Memory of which `free` bytes can be returned to the operating system."""

    used: int = 0
    free: int = 0
    close_readings: int = 0

    def read(self) -> Reading:
        return Reading(self.used, LIMIT)

    def read_closely(self) -> Reading:
        self.close_readings += 1
        self.used -= self.free
        self.free = 0
        return self.read()


def test_without_a_meter_nothing_has_to_be_freed() -> None:
    pressure = Pressure(None)

    assert pressure.check(0) == 0
    assert not pressure.is_short
    assert pressure.reading == (0, 0)


@pytest.mark.parametrize(
    ("used", "free", "missing"),
    [(900, 0, 0), (1_000, 0, 0), (1_001, 0, 101), (1_500, 0, 600), (1_500, 500, 0), (1_500, 400, 200)],
)
def test_what_is_missing_to_a_tenth_below_the_limit_has_to_be_freed(used: int, free: int, missing: int) -> None:
    pressure = Pressure(FakeMeter(used, free))

    assert pressure.check(0) == missing
    assert pressure.is_short is (missing > 0)


def test_memory_that_is_within_its_limit_is_not_read_closely() -> None:
    meter = FakeMeter(999)
    pressure = Pressure(meter)

    for tick in range(100):
        pressure.check(tick)

    assert meter.close_readings == 0


def test_memory_is_read_closely_at_most_twice_a_second() -> None:
    meter = FakeMeter(2_000)
    pressure = Pressure(meter)

    missing = [pressure.check(tick / 10) for tick in range(10)]

    assert meter.close_readings == 1 / CLOSE_SECONDS
    assert [bool(size) for size in missing] == [tick in (0, 5) for tick in range(10)]


def test_memory_stays_short_until_it_has_been_well_below_its_limit_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    meter = FakeMeter(1_100)
    pressure = Pressure(meter)

    pressure.check(0)
    meter.used = 950
    still_missing = pressure.check(10)
    meter.used = 900
    pressure.check(20)
    meter.used = 901
    pressure.check(21)
    meter.used = 900
    pressure.check(30)
    pressure.check(30 + SETTLE_SECONDS - 0.1)
    is_short = pressure.is_short
    pressure.check(30 + SETTLE_SECONDS)

    assert still_missing == 50
    assert is_short and not pressure.is_short
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "memory is short",
        f"memory is sufficient again after {30 + SETTLE_SECONDS:.0f} s",
    ]


def test_history_may_grow_again_a_minute_after_memory_was_short() -> None:
    meter = FakeMeter(1_100)
    pressure = Pressure(meter)
    pressure.check(0)
    meter.used = 500
    pressure.check(1)
    pressure.check(1 + SETTLE_SECONDS)
    ended = 1 + SETTLE_SECONDS

    early = pressure.may_regrow(ended + REGROW_SECONDS - 1)
    on_time = pressure.may_regrow(ended + REGROW_SECONDS)
    again = pressure.may_regrow(ended + REGROW_SECONDS + 1)

    assert (early, on_time, again) == (False, True, False)


def test_memory_that_is_short_again_keeps_history_small() -> None:
    meter = FakeMeter(1_100)
    pressure = Pressure(meter)
    pressure.check(0)
    meter.used = 500
    pressure.check(1)
    pressure.check(1 + SETTLE_SECONDS)

    meter.used = 1_100
    pressure.check(20)

    assert not pressure.may_regrow(20 + REGROW_SECONDS)


def test_memory_that_stays_within_its_limit_is_no_longer_short_after_a_while() -> None:
    meter = FakeMeter(LIMIT + 1)
    pressure = Pressure(meter)
    pressure.check(0.0)
    meter.used = LIMIT * 95 // 100

    short = {}
    for now in (1.0, 20.0, 30.0, 31.5):
        pressure.check(now)
        short[now] = pressure.is_short

    assert short == {1.0: True, 20.0: True, 30.0: True, 31.5: False}
