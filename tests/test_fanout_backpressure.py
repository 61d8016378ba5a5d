"""Backpressure in a whole hub: what slow and stopped clients cost themselves, the others, and the publishers."""

from __future__ import annotations

import asyncio
import time

import pytest

from conftest import until
from fakes import FakeSink
from hubs import engine_of, join, publish, running_hub
from ssehub.event import Event
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason, State
from ssehub.hub import Hub
from ssehub.testing import ManualClock

pytestmark = pytest.mark.anyio


async def test_events_are_held_for_a_subscriber_over_its_bound_until_it_reads() -> None:
    async with running_hub(max_backlog_bytes=100_000) as hub:
        others = [join(hub)[1] for _ in range(3)]
        slow, sink = join(hub, sink=FakeSink(reads=False))

        for number in range(5):
            await publish(hub, f"{number}" * 60_000)
            await hub.flush()
        while_lagging = len(sink.data())
        was_lagging = slow.state is State.LAGGING
        engine_of(hub).registry.beat(slow, {})
        for _ in range(5):
            sink.read_all()

        assert was_lagging and while_lagging == 2
        assert sink.data() == others[0].data()
        assert slow.state is State.LIVE and engine_of(hub).backlogs.held_for(slow) == 0
        assert ": ping" not in sink.text


async def test_subscriber_that_never_reads_ends_as_slow_after_the_grace_time() -> None:
    clock = ManualClock()
    async with running_hub(clock, max_backlog_bytes=100_000, grace_seconds=5) as hub:
        others = [join(hub)[1] for _ in range(3)]
        slow, sink = join(hub, sink=FakeSink(reads=False))

        for number in range(3):
            await publish(hub, f"{number}" * 60_000)
            await hub.flush()
        clock.pass_seconds(4.9)
        engine_of(hub).upkeep.advance()
        before = slow.reason
        clock.pass_seconds(0.2)
        engine_of(hub).upkeep.advance()

        assert before is None
        assert slow.reason is CloseReason.SLOW and sink.is_aborted
        assert all(len(other.data()) == 3 for other in others)


async def test_bytes_held_for_one_subscriber_are_bounded() -> None:
    async with running_hub(max_backlog_bytes=100_000, history_bytes=300_000) as hub:
        join(hub), join(hub)
        slow, _ = join(hub, sink=FakeSink(reads=False))

        for _ in range(8):
            await publish(hub, "x" * 60_000)
            await hub.flush()

        assert slow.reason is CloseReason.SLOW
        assert hub.statistics.backlog_bytes == 0


async def test_stopped_majority_of_one_channel_delays_no_other_channel() -> None:
    async with running_hub(ManualClock(), max_backlog_bytes=100_000) as hub:
        readers = [join(hub, "alex", "good")[1] for _ in range(5)]
        stopped = [join(hub, "kim", "evil", sink=FakeSink(reads=False))[0] for _ in range(6)]

        for number in range(20):
            await publish(hub, "x" * 60_000, channel="evil")
            await publish(hub, str(number), channel="good")
            await hub.flush()

        assert all(subscriber.state is State.LAGGING for subscriber in stopped)
        assert all(sink.data() == [str(number) for number in range(20)] for sink in readers)


async def test_only_subscriber_that_never_reads_delays_no_publisher() -> None:
    clock = ManualClock()
    async with running_hub(clock, max_backlog_bytes=100_000, max_waiting_bytes=200_000) as hub:
        stopped, _ = join(hub, sink=FakeSink(reads=False))

        for _ in range(40):
            await publish(hub, "x" * 60_000)
            await hub.flush()
        meanwhile = stopped.reason
        clock.pass_seconds(5.1)
        engine_of(hub).upkeep.advance()

        assert meanwhile is None and stopped.reason is CloseReason.SLOW
        assert engine_of(hub).backlogs.held_bytes == hub.statistics.backlog_bytes == 0


async def fill(hub: Hub, sink: FakeSink) -> None:
    """Put the client on `chat` over its bound of 100,000 bytes, and let it read a little."""
    for _ in range(2):
        await publish(hub, "x" * 60_000)
        await hub.flush()
    sink.read(5_000)


async def test_publisher_waits_at_most_a_second_for_a_subscriber_that_has_stopped_reading() -> None:
    clock = ManualClock()
    async with running_hub(clock, max_backlog_bytes=100_000) as hub:
        subscriber, sink = join(hub, sink=FakeSink(reads=False))
        await fill(hub, sink)
        publishing = asyncio.create_task(publish(hub, "next"))
        await until(lambda: hub.statistics.waiting_publishers == 1)
        await asyncio.sleep(0.02)
        was_waiting = not publishing.done()
        clock.pass_seconds(1.1)
        async with asyncio.timeout(5):
            await publishing
        await hub.flush()

        assert was_waiting and engine_of(hub).backlogs.held_for(subscriber) > 0
        assert subscriber.reason is None


async def test_publishers_of_other_channels_and_commands_do_not_wait_for_a_subscriber() -> None:
    async with running_hub(ManualClock(), max_backlog_bytes=100_000) as hub:
        slow, sink = join(hub, "kim", sink=FakeSink(reads=False))
        _, calm = join(hub, "alex", "calm")
        await fill(hub, sink)
        publishing = asyncio.create_task(publish(hub, "next"))
        await until(lambda: hub.statistics.waiting_publishers == 1)

        async with asyncio.timeout(5):
            await publish(hub, "calm", channel="calm")
            await hub.flush()
            was_waiting = not publishing.done()
            await hub.disconnect(user_id="kim")
            await publishing

        assert was_waiting and calm.data() == ["calm"]
        assert slow.reason is CloseReason.REVOKED


async def test_publisher_of_several_channels_waits_for_the_slowest() -> None:
    async with running_hub(ManualClock(), max_backlog_bytes=100_000) as hub:
        sinks = {}
        for channel in ("one", "two"):
            _, sinks[channel] = join(hub, channel, channel, sink=FakeSink(reads=False))
            await publish(hub, "x" * 120_000, channel=channel)
            await hub.flush()
            sinks[channel].read(5_000)
        publishing = asyncio.create_task(hub.publish(channel=["one", "two"], user_id="*", data="both"))

        still_waiting = []
        for sink in sinks.values():
            await asyncio.sleep(0.03)
            still_waiting.append(not publishing.done())
            sink.read_all()
        async with asyncio.timeout(5):
            await publishing
        await hub.flush()

        assert still_waiting == [True, True]
        assert all(sink.data()[-1] == "both" for sink in sinks.values())


async def test_user_that_was_waited_for_in_vain_delays_no_publisher_after_it_has_reconnected() -> None:
    clock = ManualClock()
    async with running_hub(clock, max_backlog_bytes=100_000, grace_seconds=5) as hub:
        first, sink = join(hub, sink=FakeSink(reads=False))
        await fill(hub, sink)
        publishing = asyncio.create_task(publish(hub, "next"))
        await until(lambda: hub.statistics.waiting_publishers == 1)
        clock.pass_seconds(5.1)
        engine_of(hub).upkeep.advance()
        await publishing

        for _ in range(15):
            _, sink = join(hub, sink=FakeSink(reads=False))
        async with asyncio.timeout(5):
            await fill(hub, sink)
            await publish(hub, "again")

        assert first.reason is CloseReason.SLOW


async def test_bytes_held_for_many_are_counted_once() -> None:
    async with running_hub(ManualClock(), max_backlog_bytes=100_000, max_total_backlog_bytes=4_000_000) as hub:
        readers = [join(hub)[1] for _ in range(8)]
        stopped = [join(hub, sink=FakeSink(reads=False)) for _ in range(7)]

        for _ in range(12):
            await publish(hub, "x" * 60_000)
            await hub.flush()
        unread = sum(sink.backlog for _, sink in stopped)
        backlogs = engine_of(hub).backlogs

        assert all(len(sink.data()) == 12 for sink in readers)
        assert all(subscriber.reason is None for subscriber, _ in stopped)
        assert backlogs.held_bytes == backlogs.held_for(stopped[0][0]) > 9 * 60_000
        assert hub.statistics.backlog_bytes == unread + backlogs.held_bytes
        for _, sink in stopped:
            while sink.backlog:
                sink.read_all()
        assert backlogs.held_bytes == 0 and all(sink.data() == readers[0].data() for _, sink in stopped)


async def test_publishers_wait_for_subscribers_that_read_and_nothing_is_lost() -> None:
    async with running_hub(max_backlog_bytes=100_000) as hub:
        subscriber, sink = join(hub, sink=FakeSink(reads=False))
        published = 0

        async def publish_all() -> None:
            nonlocal published
            for number in range(40):
                await publish(hub, f"{number} " + "x" * 60_000)
                published += 1
                await asyncio.sleep(0)

        await fill(hub, sink)
        publisher = asyncio.create_task(publish_all())
        await until(lambda: hub.statistics.waiting_publishers == 1)
        stuck_at = published
        async with asyncio.timeout(20):
            while not publisher.done() or len(sink.data()) < 42:
                sink.read_all()
                await asyncio.sleep(0.001)

        assert stuck_at < 40
        assert [data.partition(" ")[0] for data in sink.data()[2:]] == [str(number) for number in range(40)]
        assert subscriber.reason is None


async def test_streams_of_many_that_read_are_not_ended_by_one_large_batch() -> None:
    async with running_hub(max_total_backlog_bytes=8_000_000, round_bytes=50_000) as hub:
        members = [join(hub, sink=FakeSink(reads=False)) for _ in range(40)]
        wanted = [f"{number} " + "x" * 1_000 for number in range(3_000)]

        await hub.publish_events([Event(("chat",), ("*",), data=text) for text in wanted])
        largest = 0
        async with asyncio.timeout(20):
            while hub.statistics.delivered < len(members) * len(wanted) or hub.statistics.lagging:
                assert all(subscriber.reason is None for subscriber, _ in members)
                largest = max(largest, hub.statistics.backlog_bytes)
                for _, sink in members:
                    sink.read_all()
                await asyncio.sleep(0.05)

        assert all(subscriber.reason is None and sink.data() == wanted for subscriber, sink in members)
        assert 3_000_000 < largest <= 8_000_000


async def test_when_memory_runs_short_streams_that_read_nothing_end_first_and_nobody_waits_for_them() -> None:
    clock = ManualClock()
    async with running_hub(clock, max_backlog_bytes=10**6, max_total_backlog_bytes=640_000) as hub:
        stopped = [join(hub, "kim", "evil", sink=FakeSink(reads=False)) for _ in range(3)]
        reading, sink = join(hub, "alex", "good", sink=FakeSink(reads=False))
        for _ in range(2):
            await publish(hub, "y" * 60_000, channel="good")
            await publish(hub, "x" * 60_000, channel="evil")
            await hub.flush()
            clock.pass_seconds(1.1)
        clock.pass_seconds(5.1)
        sink.read(20_000)
        await publish(hub, "x" * 60_000, channel="evil")
        await hub.flush()

        await publish(hub, "after", channel="good")
        await hub.flush()

        sink.read_all()
        assert sorted(subscriber.reason or "" for subscriber, _ in stopped) == ["", "", "slow"]
        assert reading.reason is None and sink.data()[-1] == "after"


async def test_above_the_bound_those_furthest_behind_end_even_if_they_read_and_no_round_waits() -> None:
    async with running_hub(ManualClock(), max_backlog_bytes=10**6, max_total_backlog_bytes=500_000) as hub:
        small, small_sink = join(hub, "kim", "small", sink=FakeSink(reads=False))
        large, large_sink = join(hub, "kim", "large", sink=FakeSink(reads=False))
        join(hub, "alex", "large"), join(hub, "lee", "large")  # they keep up, so that no publisher waits
        await publish(hub, "x" * 80_000, channel="small")
        await publish(hub, "x" * 150_000, channel="large")
        await hub.flush()
        small_sink.read(20_000)
        large_sink.read(20_000)
        for _ in range(4):
            await hub.publish_events([Event(("large",), ("*",), data="x" * 150_000)])
            await hub.flush()

        await publish(hub, "after", channel="small")
        await hub.flush()

        assert large.reason is CloseReason.SLOW
        assert small.reason is None
        small_sink.read_all()
        assert small_sink.data()[-1] == "after"


class FragileSink(FakeSink):
    """A connection that the client reads only when the test says so, and that raises once it `is_broken`."""

    def __init__(self) -> None:
        super().__init__(reads=False)
        self.is_broken = False

    def write(self, chunk: Chunk) -> None:
        if self.is_broken:
            raise RuntimeError("the transport is closed")
        super().write(chunk)


async def test_lagging_subscriber_whose_sink_raises_when_it_resumes_ends_and_nothing_is_held_for_it() -> None:
    async with running_hub(max_backlog_bytes=100_000) as hub:
        join(hub), join(hub)
        sink = FragileSink()
        slow, _ = join(hub, sink=sink)
        for _ in range(4):
            await publish(hub, "x" * 60_000)
            await hub.flush()
        was_lagging = slow.state is State.LAGGING

        sink.is_broken = True
        sink.read_all()

        assert was_lagging and slow.reason is CloseReason.DISCONNECTED
        assert hub.statistics.backlog_bytes == hub.statistics.lagging == 0


async def test_replaying_subscriber_whose_sink_raises_when_it_resumes_ends() -> None:
    async with running_hub(round_bytes=100_000) as hub:
        start, *_ = await publish(hub, "seen", *["x" * 60_000] * 5)
        sink = FragileSink()
        slow, _ = join(hub, cursor=start, sink=sink)
        await until(lambda: sink.is_paused)
        was_replaying = slow.state is State.REPLAYING

        sink.is_broken = True
        sink.read_all()

        assert was_replaying and slow.reason is CloseReason.DISCONNECTED


async def test_lagging_stream_that_moves_to_a_sink_that_reads_receives_what_was_held() -> None:
    async with running_hub(max_backlog_bytes=100_000) as hub:
        join(hub), join(hub)
        slow, stuck = join(hub, sink=FakeSink(reads=False))
        for number in range(4):
            await publish(hub, f"{number}" * 60_000)
            await hub.flush()
        was_lagging = slow.state is State.LAGGING
        sink = FakeSink()

        hub.reattach(slow, sink, [Chunk(data) for data in stuck.chunks])

        assert was_lagging and slow.state is State.LIVE
        assert [data[0] for data in sink.data()] == ["0", "1", "2", "3"]
        assert hub.statistics.backlog_bytes == 0


async def test_client_that_reads_everything_and_is_paused_by_what_was_held_counts_as_reading() -> None:
    class TimedSink(FakeSink):
        paused_at = 0.0

        def write(self, chunk: Chunk) -> None:
            was_paused = self.is_paused
            super().write(chunk)
            if self.is_paused and not was_paused:
                self.paused_at = time.monotonic()

    async with running_hub(max_backlog_bytes=100_000) as hub:
        sink = TimedSink(reads=False)
        slow, _ = join(hub, sink=sink)
        for _ in range(5):
            await publish(hub, "x" * 60_000)
            await hub.flush()

        sink.read_all()

        assert sink.is_paused and slow.state is State.LAGGING
        assert slow.read_at >= sink.paused_at


async def test_sink_that_can_neither_write_nor_abort_ends_its_stream_and_no_other() -> None:
    class BrokenSink(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b"data:" in chunk.data:
                raise RuntimeError("the handler is closed")

        def abort(self) -> None:
            raise RuntimeError("the handler is closed")

        def close(self, linger_seconds: float = 5.0, *, cut_after: float | None = None) -> None:
            raise RuntimeError("the handler is closed")

    async with running_hub() as hub:
        broken, _ = join(hub, sink=BrokenSink())
        _, sink = join(hub)

        for data in ("1", "2"):
            await publish(hub, data)
            await hub.flush()

        assert broken.reason is CloseReason.DISCONNECTED
        assert sink.data() == ["1", "2"]
        assert hub.statistics.backlog_bytes == hub.statistics.lagging == 0
