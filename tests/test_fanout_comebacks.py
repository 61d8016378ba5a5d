"""Come-back times: a few clients are back at once, and many over as long as the hub needs for them."""

from __future__ import annotations

import pytest

from ssehub.fanout.comebacks import MAX_SPREAD_SECONDS, OpeningRate, Turns


class Times:
    """A monotonic clock and the CPU time of a thread, which stand still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 5.0

    def rate(self, max_per_second: float | None = None) -> OpeningRate:
        return OpeningRate(lambda: self.now, max_per_second, lambda: self.cpu)

    def turns(self, max_per_second: float | None = None) -> Turns:
        return Turns(self.rate(max_per_second), lambda: self.now)

    def measure(self, rate: OpeningRate, opened: int, streams: int, cpu_seconds: float) -> int:
        """Let `streams` be opened in a window in which the hub uses `cpu_seconds`; return how many are opened now."""
        rate.observe(opened)
        self.now += 1.0
        self.cpu += cpu_seconds
        rate.observe(opened + streams)
        return opened + streams


def test_clients_come_back_one_after_the_other_at_the_rate_of_the_hub() -> None:
    turns = Times().turns()

    assert [turns.milliseconds(2.0) for _ in range(1_001)] == [2_000 + 2 * number for number in range(1_001)]


def test_turns_pass_with_time() -> None:
    times = Times()
    turns = times.turns()
    for _ in range(500):
        turns.milliseconds(2.0)

    times.now += 0.5
    later = turns.milliseconds(2.0)
    times.now += 10.0
    much_later = turns.milliseconds(2.0)

    assert (later, much_later) == (2_500, 2_000)


def test_rate_is_half_of_what_the_hub_has_done() -> None:
    times = Times()
    rate = times.rate()

    times.measure(rate, 0, streams=300, cpu_seconds=0.1)

    assert rate.returning_per_second == pytest.approx(1_500)


def test_slower_machine_is_measured_too() -> None:
    times = Times()
    rate = times.rate()

    times.measure(rate, 0, streams=250, cpu_seconds=1.0)

    assert rate.returning_per_second == pytest.approx(125)


@pytest.mark.parametrize(("streams", "cpu_seconds", "per_second"), [(100, 1.0, 100), (2_000, 0.1, 2_500)])
def test_measurement_is_believed_within_bounds(streams: int, cpu_seconds: float, per_second: float) -> None:
    """The window may be full of events, or of streams that are opened in Python."""
    times = Times()
    rate = times.rate()

    times.measure(rate, 0, streams, cpu_seconds)

    assert rate.returning_per_second == per_second


def test_best_measurement_counts_and_fades() -> None:
    """In the others the CPU time was spent on events."""
    times = Times()
    rate = times.rate()
    opened = times.measure(rate, 0, streams=1_000, cpu_seconds=0.5)

    for _ in range(10):
        opened = times.measure(rate, opened, streams=200, cpu_seconds=1.0)

    assert rate.returning_per_second == pytest.approx(1_000 * 0.99**10)


@pytest.mark.parametrize(("streams", "cpu_seconds"), [(99, 0.01), (0, 1.0), (500, 0.0)])
def test_window_that_says_too_little_is_ignored(streams: int, cpu_seconds: float) -> None:
    times = Times()
    rate = times.rate()

    times.measure(rate, 0, streams, cpu_seconds)

    assert rate.returning_per_second == 500


def test_limit_on_new_streams_is_kept() -> None:
    turns = Times().turns(max_per_second=10)

    assert [turns.milliseconds(0) for _ in range(3)] == [0, 100, 200]


def test_nobody_is_put_off_for_longer_than_the_longest_spread() -> None:
    queue = Times().turns(max_per_second=100)
    in_queue = int(MAX_SPREAD_SECONDS * 100)

    turns = [queue.milliseconds(2.0) for _ in range(in_queue + 1_000)]

    assert max(turns) <= (2 + MAX_SPREAD_SECONDS) * 1000
    assert len(set(turns[-900:])) > 800
    assert min(turns[-900:]) < (2 + MAX_SPREAD_SECONDS / 2) * 1000 < max(turns[-900:])
