"""Slices: what concerns many streams, or all of history, leaves the event loop to others in between."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from conftest import report, until
from fakes import FakeSink
from hubs import engine_of, join, publish, running_hub
from ssehub.fanout import writing
from ssehub.fanout.pacing import SLICE
from ssehub.fanout.slices import each_in_slices, in_slices
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.testing import ManualClock

pytestmark = pytest.mark.anyio

SOAK = "SOAK" in os.environ
COUNT = 4_000 if SOAK else 1_000
PASSES = 3
"""The least number of passes of the loop that such work is spread over: in one go, it would be one."""


class Passes:
    """Counts the passes of the event loop, and the longest of them in seconds."""

    async def __aenter__(self) -> Passes:
        self.count, self.longest = 0, 0.0
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        return self

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0)
            self.count += 1
            self.longest = max(self.longest, time.monotonic() - began)

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()


async def test_each_item_is_handled_a_few_in_each_pass_and_an_exception_concerns_only_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[int] = []
    finished: list[str] = []

    def act(number: int) -> None:
        if number == 1:
            raise RuntimeError("a bug")
        done.append(number)

    in_slices(iter(range(5)), act, 2, lambda: finished.append("then"))
    at_first = list(done)
    await until(lambda: finished)
    await each_in_slices(range(5), act, 2)

    assert at_first == [0]
    assert done == [0, 2, 3, 4] * 2
    assert caplog.text.count("RuntimeError: a bug") == 2


async def expire(hub: Hub, clock: ManualClock) -> None:
    clock.pass_seconds(11)
    engine_of(hub).upkeep.advance()
    await until(lambda: not hub.statistics.subscribers)


async def end_as_slow(hub: Hub, clock: ManualClock) -> None:
    clock.pass_seconds(6)
    engine_of(hub).upkeep.advance()
    await until(lambda: not hub.statistics.subscribers)


async def reset(hub: Hub, clock: ManualClock) -> None:
    await engine_of(hub).start_over(Position(10**15, 0, "newlog00"))


async def disconnect(hub: Hub, clock: ManualClock) -> None:
    await hub.disconnect(channel="chat")
    await hub.flush()


async def drain(hub: Hub, clock: ManualClock) -> None:
    await hub.drain(0.001)


async def close(hub: Hub, clock: ManualClock) -> None:
    await engine_of(hub).stop()


@pytest.mark.soak
@pytest.mark.parametrize("act", [expire, end_as_slow, reset, disconnect, drain, close])
async def test_f12_work_on_all_streams_leaves_the_loop_to_others(
    act: Callable[[Hub, ManualClock], Awaitable[None]],
) -> None:
    clock = ManualClock()
    async with running_hub(clock, max_backlog_bytes=65_536, max_total_backlog_bytes=10**9) as hub:
        reads = act is not end_as_slow
        streams = [
            join(hub, f"user-{number}", sink=FakeSink(reads=reads), expires_at=clock.wall + 10)
            for number in range(COUNT)
        ]
        await publish(hub, "x" * 70_000)
        await hub.flush()

        async with Passes() as passes:
            await act(hub, clock)

        report(f"{act.__name__} {COUNT} streams: longest pass of the loop {passes.longest * 1000:.1f} ms")
        assert passes.count >= PASSES
        assert passes.longest < (0.02 if SOAK else 0.5)
        if act is reset:
            assert all('{"reason":"log-lost"}' in sink.data() for _, sink in streams)
        else:
            assert all(subscriber.reason is not None for subscriber, _ in streams)


@pytest.mark.soak
@pytest.mark.parametrize("act", [expire, disconnect, drain, close])
async def test_f12_ending_streams_of_a_thousand_channels_leaves_the_loop_to_others(
    act: Callable[[Hub, ManualClock], Awaitable[None]],
) -> None:
    count = 1_000 if SOAK else 50  # one slice, if streams of one channel
    channels = ["chat", *(f"channel-{number}" for number in range(999))]
    clock = ManualClock()
    async with running_hub(clock) as hub:
        streams = [
            join(hub, f"user-{number}", *channels, patterns=("a*", "ch*"), expires_at=clock.wall + 10)
            for number in range(count)
        ]

        async with Passes() as passes:
            await act(hub, clock)

        report(f"{act.__name__} {count} streams: longest pass of the loop {passes.longest * 1000:.1f} ms")
        assert passes.count >= PASSES
        assert passes.longest < (0.05 if SOAK else 0.5)
        assert all(subscriber.reason is not None for subscriber, _ in streams)
        assert engine_of(hub).index.channels == engine_of(hub).index.prefixes == {}


async def test_slice_of_a_round_is_cut_short_if_its_writes_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SLICE_SECONDS", 0.0)
    async with running_hub() as hub:
        sinks = [join(hub, f"user-{number}", "chat", "news")[1] for number in range(SLICE)]
        before = len(sinks[0].chunks)
        publishing = asyncio.create_task(publish(hub, "1"))

        written = [0]
        while written[-1] < SLICE:
            await asyncio.sleep(0)
            written.append(sum(len(sink.chunks) > before for sink in sinks))
        await publishing

        assert max(after - before for before, after in pairwise(written)) <= writing.PART
        assert all(sink.data() == ["1"] for sink in sinks)


async def test_f12_history_that_expires_leaves_the_loop_to_others() -> None:
    clock = ManualClock()
    async with running_hub(clock) as hub:
        await publish(hub, *["x"] * 5_000)
        clock.pass_seconds(4_000)

        async with Passes() as passes:
            engine_of(hub).upkeep.advance()
            await until(lambda: not hub.statistics.history_events)

        assert passes.count >= PASSES


async def test_stream_is_sent_no_id_of_the_new_log_before_its_reset() -> None:
    """A client that is cut between the two would come back with that id, and never learn of the loss."""
    async with running_hub() as hub:
        first, *_, last = [join(hub) for _ in range(COUNT)]
        resetting = asyncio.create_task(engine_of(hub).start_over(Position(1, 0, "newlog00")))
        await until(lambda: "log-lost" in first[1].text)

        for subscriber, _ in (first, last):
            engine_of(hub).registry.send(subscriber, "stream-expiring", {})
        await resetting

        ids = [one.rpartition(".")[2] for one in last[1].ids()]
        assert ids[-1] == "newlog00" and ids[-2] != "newlog00"
        assert first[1].ids()[-1].endswith("newlog00")
