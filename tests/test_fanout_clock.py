"""The clock: when streams are warned and ended, by which of two clocks, and how heartbeats are spread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from builders import subscriber
from conftest import until
from fakes import FakeSink, ManualLoop
from hubs import join, running_hub
from ssehub.fanout.clock import JITTER, Clock, Ticker
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason, State, Subscriber
from ssehub.settings import Streams
from ssehub.testing import ManualClock

pytestmark = pytest.mark.anyio

EXPIRED, LIFETIME = CloseReason.EXPIRED, CloseReason.LIFETIME
EXPIRING = None
"""What `due` yields in place of a reason for a token that expires soon."""


class Timeline:
    """A clock that is driven by hand, as the engine drives it, and what it said was due, by seconds from the start."""

    def __init__(self, **settings: Any) -> None:
        self.times = ManualClock()
        self.clock = Clock(Streams(**settings))
        self.due: list[tuple[int, CloseReason | None]] = []
        self._began = self.times.monotonic

    def add(self, expires_in: float | None = None) -> Subscriber:
        added = subscriber(expires_at=None if expires_in is None else self.times.wall + expires_in)
        self.clock.add(added, self.times.monotonic, self.times.wall)
        return added

    def pass_seconds(self, seconds: float) -> None:
        end = self.times.monotonic + seconds
        while self.times.monotonic < end:
            self.times.pass_seconds(self.clock.tick_seconds)
            self.tick()

    def tick(self) -> list[Subscriber]:
        """Do what the engine does in a tick; return the subscribers that were visited."""
        now, wall = self.times.monotonic, self.times.wall
        for one, reason in self.clock.due(now, wall):
            self.due.append((round(now - self._began), reason))
            if reason is not None:
                self.clock.remove(one)
                one.enter(State.ENDED)
        visited = self.clock.next_bucket()
        for one in visited:
            self.clock.look_ahead(one, now, wall)
        return visited


@pytest.mark.parametrize(
    ("expires_in", "expected"),
    [
        pytest.param(None, [], id="never"),
        pytest.param(100, [(40, EXPIRING), (100, EXPIRED)], id="warned-60-s-before"),
        pytest.param(10, [(5, EXPIRING), (10, EXPIRED)], id="warned-halfway-if-less-is-left"),
        pytest.param(60, [(30, EXPIRING), (60, EXPIRED)], id="warned-halfway-if-no-more-is-left"),
        pytest.param(0, [(0, EXPIRED)], id="expired-already"),
        pytest.param(-100, [(0, EXPIRED)], id="expired-long-ago"),
        pytest.param(float("inf"), [], id="infinite"),
    ],
)
def test_stream_is_due_when_its_token_expires(
    expires_in: float | None, expected: list[tuple[int, CloseReason | None]]
) -> None:
    timeline = Timeline(expiring_seconds=60)
    timeline.add(expires_in)

    timeline.pass_seconds(200)

    assert timeline.due == expected


@pytest.mark.parametrize(
    ("at_seconds", "step", "ends_at"),
    [
        pytest.param(10, -3_600, 100, id="back-an-hour"),
        pytest.param(10, -30, 100, id="back-a-little"),
        pytest.param(10, 30, 70, id="forward-a-little"),
        pytest.param(10, 80, 20, id="forward-almost-to-the-end"),
        pytest.param(99, 3_600, 99, id="forward-just-before-the-end"),
    ],
)
def test_token_expires_by_whichever_clock_comes_first(at_seconds: int, step: float, ends_at: int) -> None:
    timeline = Timeline(heartbeat_seconds=1)
    timeline.add(100)

    timeline.pass_seconds(at_seconds)
    timeline.times.wall += step
    timeline.pass_seconds(200)

    seconds, reason = timeline.due[-1]
    assert reason is EXPIRED
    # A clock that is set forward is noticed at the next visit, which is within one heartbeat.
    assert ends_at <= seconds <= ends_at + 1


@pytest.mark.parametrize("heartbeat_seconds", [0.0, 1.0, 15.0])
def test_wall_clock_set_forward_past_the_end_is_noticed_within_one_interval(heartbeat_seconds: float) -> None:
    timeline = Timeline(heartbeat_seconds=heartbeat_seconds)
    timeline.add(1_000)
    timeline.pass_seconds(100)

    timeline.times.wall += 3_600
    timeline.pass_seconds((heartbeat_seconds or 15.0) + 0.5)

    assert [reason for _, reason in timeline.due] == [EXPIRED]


def test_stream_ends_at_its_jittered_lifetime_and_at_no_other_time() -> None:
    timeline = Timeline(stream_lifetime_seconds=100)
    for _ in range(50):
        timeline.add()

    timeline.pass_seconds(200)

    times = [seconds for seconds, _ in timeline.due]
    assert [reason for _, reason in timeline.due] == [LIFETIME] * 50
    assert 100 * JITTER[0] <= min(times) < max(times) <= 100 * JITTER[1]


@pytest.mark.parametrize(
    ("expires_in", "last"), [(50, (50, EXPIRED)), (1_000, (100, LIFETIME))], ids=["token-first", "lifetime-first"]
)
def test_stream_ends_by_its_token_or_its_lifetime_whichever_is_first(
    expires_in: float, last: tuple[int, CloseReason], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.fanout.clock.JITTER", (1.0, 1.0))
    timeline = Timeline(stream_lifetime_seconds=100)
    timeline.add(expires_in)

    timeline.pass_seconds(200)

    assert timeline.due[-1] == last
    assert [reason for _, reason in timeline.due].count(EXPIRING) == (1 if last[1] is EXPIRED else 0)


def test_stream_that_has_ended_is_not_due() -> None:
    timeline = Timeline()
    ended, still_open = timeline.add(6), timeline.add(6)
    timeline.clock.remove(ended)
    ended.enter(State.ENDED)

    timeline.pass_seconds(10)

    assert timeline.due == [(3, EXPIRING), (6, EXPIRED)]
    assert still_open.state is State.ENDED
    assert len(timeline.clock) == 0


def test_stream_that_ends_while_the_due_ones_are_read_is_skipped() -> None:
    timeline = Timeline()
    first, second, third = timeline.add(6), timeline.add(6), timeline.add(6)
    timeline.times.pass_seconds(7)

    due = timeline.clock.due(timeline.times.monotonic, timeline.times.wall)
    found = [next(due)]
    second.enter(State.ENDED)
    found += due

    assert found == [(first, EXPIRED), (third, EXPIRED)]


@pytest.mark.parametrize("heartbeat_seconds", [0.0, 0.15, 1.0, 15.0])
def test_every_subscriber_is_visited_once_per_interval_and_first_an_interval_after_it_came(
    heartbeat_seconds: float,
) -> None:
    timeline = Timeline(heartbeat_seconds=heartbeat_seconds)
    ticks = round((heartbeat_seconds or 15.0) / timeline.clock.tick_seconds)
    early = timeline.add()
    for _ in range(7):
        timeline.tick()
    late = timeline.add()

    visits = list(visits_of(timeline, 2 * ticks))

    assert visits.count((early, ticks - 7)) == visits.count((early, 2 * ticks - 7)) == 1
    assert visits.count((late, ticks)) == visits.count((late, 2 * ticks)) == 1
    assert len(visits) == 4
    assert timeline.clock.tick_seconds <= 0.25


def visits_of(timeline: Timeline, ticks: int) -> Iterator[tuple[Subscriber, int]]:
    for number in range(1, ticks + 1):
        for visited in timeline.tick():
            yield visited, number


@pytest.mark.parametrize("heartbeat_seconds", [0.0, 0.15, 1.0, 15.0])
def test_streams_are_visited_and_end_in_the_same_ticks_if_all_others_are_slept_over(heartbeat_seconds: float) -> None:
    awake, asleep = Timeline(heartbeat_seconds=heartbeat_seconds), Timeline(heartbeat_seconds=heartbeat_seconds)
    interval = heartbeat_seconds or 15.0
    for timeline in (awake, asleep):
        for expires_in in (None, interval / 2, 3 * interval):
            timeline.add(expires_in)
            timeline.pass_seconds(interval / 5)
    ticks = 5 * round(interval / awake.clock.tick_seconds)

    visits = [len(visited) for visited in visits_in_ticks(awake, ticks)]
    left, slept = ticks, 0
    seen = [0] * ticks
    while left:
        free = min(asleep.clock.free_ticks(asleep.times.monotonic, 1_000), left - 1)
        asleep.clock.skip(free)
        asleep.times.pass_seconds(free * asleep.clock.tick_seconds)
        slept, left = slept + free, left - free - 1
        seen[ticks - left - 1] = len(next(visits_in_ticks(asleep, 1)))

    assert seen == visits
    assert asleep.due == awake.due
    assert slept > ticks // 2


def visits_in_ticks(timeline: Timeline, ticks: int) -> Iterator[list[Subscriber]]:
    for _ in range(ticks):
        timeline.times.pass_seconds(timeline.clock.tick_seconds)
        yield timeline.tick()


@pytest.mark.parametrize(
    ("expires_in", "most", "free"),
    [
        pytest.param(None, 7, 7, id="nobody"),
        pytest.param(None, 100, 59, id="until-the-visit"),
        pytest.param(2.0, 100, 3, id="until-the-warning"),
        pytest.param(-1.0, 100, 0, id="overdue"),
        pytest.param(None, -1, 0, id="never"),
    ],
)
def test_ticks_are_free_until_something_is_due(expires_in: float | None, most: int, free: int) -> None:
    timeline = Timeline()
    if most > 7:
        timeline.add(expires_in)

    assert timeline.clock.free_ticks(timeline.times.monotonic, most) == free


class SleepyTicker:
    """A ticker of one tick a second that sleeps over `free` ticks after each, and what it has called."""

    def __init__(self, free: int) -> None:
        self.loop = ManualLoop()
        self.free = free
        self.calls: list[str | int] = []
        self.ticker = Ticker(self.loop.as_loop, 1.0, self._tick, self.calls.append)
        self.ticker.start()

    def _tick(self) -> int:
        self.calls.append("tick")
        return self.free


def test_ticker_sleeps_over_free_ticks_and_reports_them() -> None:
    sleepy = SleepyTicker(free=7)

    sleepy.loop.pass_seconds(17)

    assert sleepy.calls == ["tick", 7, "tick", 7, "tick"]
    assert sleepy.loop.wake_ups == 3


@pytest.mark.parametrize(
    ("seconds", "passed"), [(0.0, 0), (0.9, 0), (1.0, 1), (4.5, 4), (7.9, 7)], ids=lambda seconds: f"{seconds}"
)
def test_ticker_that_is_woken_goes_on_with_the_next_tick(seconds: float, passed: int) -> None:
    sleepy = SleepyTicker(free=7)
    sleepy.loop.pass_seconds(1)

    sleepy.loop.pass_seconds(seconds)
    sleepy.ticker.wake()
    sleepy.ticker.wake()
    sleepy.free = 0
    sleepy.loop.pass_seconds(1)

    assert sleepy.calls == ["tick", passed, "tick"]
    assert not sleepy.ticker.is_asleep


def test_ticker_that_is_late_makes_up_for_one_tick_only() -> None:
    sleepy = SleepyTicker(free=0)

    sleepy.loop.now += 5.5
    sleepy.loop.pass_seconds(0)
    at_once = len(sleepy.calls)
    sleepy.loop.pass_seconds(1)

    assert (at_once, len(sleepy.calls)) == (2, 3)


def test_ticker_that_is_stopped_in_a_tick_stays_stopped() -> None:
    loop = ManualLoop()

    def tick() -> int:
        ticker.stop()
        return 7

    ticker = Ticker(loop.as_loop, 1.0, tick, lambda ticks: None)
    ticker.start()
    loop.pass_seconds(20)
    ticker.wake()
    loop.pass_seconds(20)

    assert loop.wake_ups == 1


async def test_ticker_goes_on_after_a_tick_that_raises() -> None:
    ticks = 0
    errors: list[BaseException | None] = []

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        if ticks == 1:
            raise RuntimeError("a bug")
        return 0

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    ticker = Ticker(loop, 0.01, tick, lambda ticks: None)
    ticker.start()
    await until(lambda: ticks == 3)
    ticker.stop()
    await asyncio.sleep(0.03)

    assert ticks == 3
    assert [str(error) for error in errors] == ["a bug"]


async def test_ticker_measures_how_late_each_tick_is() -> None:
    lags: list[float] = []

    def tick() -> int:
        lags.append(ticker.lag_seconds)
        return 0

    ticker = Ticker(asyncio.get_running_loop(), 0.01, tick, lambda ticks: None)
    ticker.start()

    time.sleep(0.1)  # noqa: ASYNC251  # this is the lag to measure
    await until(lambda: lags)
    ticker.stop()

    # 0.1 - 0.01, less what the rounding of the clock's readings may take: uvloop's clock counts milliseconds.
    assert lags[0] >= 0.087


async def test_stream_is_warned_before_its_token_expires_and_then_ends() -> None:
    clock = ManualClock()
    async with running_hub(clock, heartbeat_seconds=0.15) as hub:
        subscriber, sink = join(hub, expires_at=clock.wall + 100)
        soon, soon_sink = join(hub, expires_at=clock.wall + 10)

        clock.pass_seconds(5.1)
        await until(lambda: "stream-expiring" in soon_sink.text)
        clock.pass_seconds(5)
        await until(lambda: soon.reason is not None)
        assert "stream-expiring" not in sink.text
        clock.pass_seconds(30)
        await until(lambda: "stream-expiring" in sink.text)
        clock.pass_seconds(60)
        await until(lambda: subscriber.reason is not None)

        assert sink.text.count("stream-expiring") == sink.text.count("stream-expired") == 1
        assert subscriber.reason is soon.reason is CloseReason.EXPIRED
        assert sink.is_closed and not sink.is_aborted


@pytest.mark.parametrize("step", [-3600.0, 3600.0], ids=["back", "forward"])
async def test_setting_the_wall_clock_lengthens_no_stream(step: float) -> None:
    clock = ManualClock()
    async with running_hub(clock, heartbeat_seconds=0.15) as hub:
        subscriber, _ = join(hub, expires_at=clock.wall + 100)

        clock.wall += step
        if step < 0:
            clock.pass_seconds(100.1)
        await until(lambda: subscriber.reason is not None)

        assert subscriber.reason is CloseReason.EXPIRED


async def test_stream_ends_at_its_lifetime() -> None:
    clock = ManualClock()
    async with running_hub(clock, heartbeat_seconds=0.15, stream_lifetime_seconds=100) as hub:
        subscriber, _ = join(hub)

        clock.pass_seconds(79)
        await asyncio.sleep(0.2)
        early = subscriber.reason
        clock.pass_seconds(22)
        await until(lambda: subscriber.reason is not None)

        assert early is None and subscriber.reason is CloseReason.LIFETIME


async def test_every_stream_gets_a_heartbeat_once_per_interval() -> None:
    async with running_hub(heartbeat_seconds=0.15) as hub:
        sinks = [join(hub)[1] for _ in range(250)]

        await until(lambda: all(sink.text.count(": ping") == 2 for sink in sinks))
        counts = {sink.text.count(": ping") for sink in sinks}

        assert counts <= {2, 3}


async def test_heartbeat_that_raises_ends_its_own_stream_only() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b": ping" in chunk.data:
                raise RuntimeError("the transport is closed")
            super().write(chunk)

    clock = ManualClock()
    async with running_hub(clock, heartbeat_seconds=1.0) as hub:
        _, broken = join(hub, sink=Broken())
        _, sink = join(hub)

        clock.pass_seconds(5)
        await until(lambda: sink.text.count(": ping") > 1)

        assert broken.is_aborted and not sink.is_closed
