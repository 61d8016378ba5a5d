"""The gate: publishers pass in their order while there is capacity, and a bounded number of them waits."""

from __future__ import annotations

import asyncio

import pytest

from conftest import until
from fakes import FakeSink
from hubs import join, publish, running_hub
from ssehub.errors import Overloaded
from ssehub.fanout.gate import REVIEW_SECONDS, Gate
from ssehub.hub import Hub

pytestmark = pytest.mark.anyio


class Turnstile(Gate):
    """A gate with a capacity that the test sets. Each publisher that passes uses one of it."""

    def __init__(self, capacity: int, max_waiting: int = 100) -> None:
        self.capacity = capacity
        self.passed: list[int] = []
        super().__init__(lambda: self.capacity > 0, max_waiting)

    async def go_through(self, number: int) -> None:
        await self.enter()
        self.capacity -= 1
        self.passed.append(number)
        self.open()

    async def line_up(self, count: int) -> list[asyncio.Task[None]]:
        """Return the tasks of `count` publishers that have tried to pass."""
        tasks = [asyncio.create_task(self.go_through(number)) for number in range(count)]
        await asyncio.sleep(0)
        return tasks


async def test_publishers_pass_first_come_first_served_as_far_as_there_is_capacity() -> None:
    gate = Turnstile(2)

    tasks = await gate.line_up(5)
    passed_at_first, waiting_at_first = list(gate.passed), len(gate)
    gate.capacity += 2
    gate.open()
    await until(lambda: len(gate) == 1)
    await asyncio.sleep(0)

    assert (passed_at_first, waiting_at_first) == ([0, 1], 3)
    assert gate.passed == [0, 1, 2, 3]
    tasks[4].cancel()


async def test_newcomer_does_not_overtake_the_queue() -> None:
    gate = Turnstile(0)
    (first,) = await gate.line_up(1)

    gate.capacity = 1
    newcomer = asyncio.create_task(gate.go_through(99))
    await asyncio.sleep(0)
    gate.open()
    await first

    assert gate.passed == [0] and len(gate) == 1
    newcomer.cancel()


async def test_open_without_capacity_lets_nobody_through() -> None:
    gate = Turnstile(0)
    (waiting,) = await gate.line_up(1)

    gate.open()
    await asyncio.sleep(0)

    assert len(gate) == 1 and not waiting.done()
    waiting.cancel()


async def test_too_many_waiting_raise_overloaded_and_the_log_may_wait_all_the_same() -> None:
    gate = Turnstile(0, max_waiting=2)
    waiting = await gate.line_up(2)

    with pytest.raises(Overloaded, match="2 publishers are waiting already"):
        await gate.enter()
    log = asyncio.create_task(gate.wait())
    await asyncio.sleep(0)

    assert len(gate) == 3
    for task in [*waiting, log]:
        task.cancel()
    await asyncio.gather(*waiting, log, return_exceptions=True)
    assert len(gate) == 0


async def test_cancelled_publisher_leaves_the_queue() -> None:
    gate = Turnstile(0)
    tasks = await gate.line_up(3)

    tasks[1].cancel()
    await until(lambda: len(gate) == 2)
    gate.capacity = 2
    gate.open()
    await until(lambda: tasks[2].done())

    assert gate.passed == [0, 2]


async def test_publisher_that_is_cancelled_when_its_turn_has_come_passes_the_turn_on() -> None:
    gate = Turnstile(0)
    tasks = await gate.line_up(2)

    gate.capacity = 1
    gate.open()
    tasks[0].cancel()
    await until(lambda: tasks[1].done())

    assert tasks[0].cancelled()
    assert gate.passed == [1]


class SlowChannels:
    """A gate whose channels in `slow` have clients that publishers wait for."""

    def __init__(self, *slow: str, max_waiting: int = 100) -> None:
        self.slow = set(slow)
        self.passed: list[str] = []
        self.gate = Gate(lambda: True, max_waiting, self.slow, self.slow.__contains__)

    async def publish(self, *channels: str) -> None:
        await self.gate.wait_for_readers(channels)
        await self.gate.enter()
        self.passed.append("+".join(channels))
        self.gate.open()

    async def start(self, *channels: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self.publish(*channels))
        await asyncio.sleep(0)
        return task


async def test_publishers_of_a_slow_channel_wait_and_no_others() -> None:
    road = SlowChannels("busy")

    waiting = [await road.start("busy"), await road.start("calm", "busy")]
    await road.start("calm")
    passed_at_first, waiting_at_first = list(road.passed), len(road.gate)
    road.slow.clear()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)

    assert (passed_at_first, waiting_at_first) == (["calm"], 2)
    assert road.passed == ["calm", "busy", "calm+busy"]
    assert len(road.gate) == 0


async def test_publisher_that_comes_when_clients_have_caught_up_does_not_overtake_those_that_wait() -> None:
    road = SlowChannels("busy")
    waiting = [await road.start("busy"), await road.start("busy", "second")]

    road.slow.clear()
    waiting.append(await road.start("busy", "third"))
    passed_at_first = list(road.passed)
    await asyncio.wait_for(asyncio.gather(*waiting), 5)

    assert passed_at_first == []
    assert road.passed == ["busy", "busy+second", "busy+third"]


async def test_publisher_of_several_slow_channels_waits_for_each() -> None:
    road = SlowChannels("one", "two")
    waiting = await road.start("one", "two")

    still_waiting = []
    for channel in ("one", "two"):
        await asyncio.sleep(3 * REVIEW_SECONDS)
        still_waiting.append(not waiting.done())
        road.slow.discard(channel)
    await asyncio.wait_for(waiting, 5)

    assert still_waiting == [True, True]


async def test_too_many_that_wait_for_clients_raise_overloaded_and_other_channels_go_on() -> None:
    road = SlowChannels("busy", max_waiting=2)
    waiting = [await road.start("busy") for _ in range(2)]

    with pytest.raises(Overloaded, match="2 publishers are waiting for slow clients"):
        await road.publish("busy")
    await road.publish("calm")

    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(road.gate) == 0


async def test_publishers_of_a_slow_channel_pass_in_their_order_one_by_one() -> None:
    road = SlowChannels("busy")
    waiting = [await road.start("busy", str(number)) for number in range(5)]
    waiting[2].cancel()

    road.slow.clear()
    await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)

    assert road.passed == [f"busy+{number}" for number in (0, 1, 3, 4)]


async def test_too_many_waiting_publishers_are_refused_before_anything_is_stored() -> None:
    async with running_hub(max_backlog_bytes=70_000, max_waiting_bytes=1_000, max_waiting_publishers=2) as hub:
        _, sink = join(hub, sink=FakeSink(reads=False))
        await publish(hub, "x" * 70_000)
        await hub.flush()
        sink.read(5_000)
        waiting = [asyncio.create_task(publish(hub, "y" * 70_000)) for _ in range(3)]
        await until(lambda: hub.statistics.waiting_publishers >= 2)
        published = hub.statistics.published

        with pytest.raises(Overloaded, match="try again"):
            await publish(hub, "z")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

        assert hub.statistics.published == published
        assert hub.statistics.waiting_publishers == 0


async def test_waiting_publisher_that_gives_up_lets_the_next_one_through() -> None:
    async with running_hub(max_backlog_bytes=70_000) as hub:
        _, sink = join(hub, sink=FakeSink(reads=False))
        await publish(hub, "x" * 80_000)
        await hub.flush()
        sink.read(5_000)
        tasks = [asyncio.create_task(publish(hub, f"{n}" * 70_000)) for n in range(6)]
        await until(lambda: hub.statistics.waiting_publishers >= 3)

        tasks[-2].cancel()
        await read_until_done(hub, sink, tasks)

        assert tasks[-2].cancelled()
        assert [task.exception() for task in tasks if not task.cancelled()] == [None] * 5


async def read_until_done(hub: Hub, sink: FakeSink, tasks: list[asyncio.Task[list[str]]]) -> None:
    async with asyncio.timeout(5):
        while not all(task.done() for task in tasks):
            sink.read_all()
            await asyncio.sleep(0)
