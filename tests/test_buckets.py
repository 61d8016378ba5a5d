"""Token buckets: a rate, with a burst."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ssehub.buckets import Buckets, Throttle, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_burst_passes_at_once_and_then_the_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(2, 10, clock)

    at_once = [bucket.spend() for _ in range(25)].count(True)
    clock.now += 3
    later = [bucket.spend() for _ in range(25)].count(True)

    assert (at_once, later) == (20, 6)


def test_slow_rate_allows_one_at_once() -> None:
    clock = Clock()
    bucket = TokenBucket(0.01, 10, clock)

    assert bucket.spend() and not bucket.spend()
    assert bucket.wait_seconds() == 100


def test_what_costs_more_than_the_burst_passes_and_is_paid_off() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 1, clock)

    assert bucket.spend(100)
    assert round(bucket.wait_seconds(), 6) == 9.1
    clock.now += 9.1
    assert bucket.spend(1)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), max_size=50))
def test_no_more_passes_than_the_burst_and_the_rate_allow(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket = TokenBucket(3, 4, clock)

    passed = 0
    for seconds, attempts in steps:
        clock.now += seconds
        passed += [bucket.spend() for _ in range(attempts)].count(True)

    assert passed <= 12 + 3 * (clock.now - 100) + 1e-6


def test_after_its_wait_something_passes() -> None:
    clock = Clock()
    bucket = TokenBucket(3, 1, clock)
    for _ in range(1_000):
        if not bucket.spend():
            clock.now += bucket.wait_seconds()
            assert bucket.spend()


def test_each_key_has_its_own_bucket() -> None:
    buckets = Buckets(1, 1, Clock())

    assert [buckets.spend(key) for key in ("a", "a", "b", "b")] == [True, False, True, False]
    assert buckets.wait_seconds("a") == 1 and buckets.wait_seconds("c") == 0


def test_number_of_buckets_is_bounded_and_the_ones_in_use_are_kept() -> None:
    buckets = Buckets(1, 1, Clock(), most=100)
    buckets.spend("busy")
    for number in range(10_000):
        buckets.spend(f"{number}")
        buckets.spend("busy")

    assert len(buckets) == 100
    assert not buckets.spend("busy") and buckets.spend("0")


def test_full_buckets_are_forgotten() -> None:
    clock = Clock()
    buckets = Buckets(1, 1, clock, most=100)
    for number in range(50):
        buckets.spend(f"{number}")
    clock.now += 60
    for number in range(50):
        buckets.spend(f"later {number}")

    assert len(buckets) == 50


def test_throttle_spaces_out_what_comes_at_once_and_delays_nothing_that_comes_slowly() -> None:
    clock = Clock()
    throttle = Throttle(10, 5, clock)

    at_once = [round(throttle.delay(), 6) for _ in range(4)]
    clock.now += 1
    slowly = []
    for _ in range(3):
        slowly.append(throttle.delay())
        clock.now += 0.2

    assert at_once == [0, 0.1, 0.2, 0.3]
    assert slowly == [0, 0, 0]


def test_throttle_delays_by_what_the_things_before_cost_and_never_for_longer_than_it_may() -> None:
    throttle = Throttle(10, 5, Clock())

    assert [throttle.delay(cost) for cost in (20, 10, 1000, 1, 1)] == [0, 2, 3, 5, 5]
