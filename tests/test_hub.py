"""The hub: who gets what, in which order, with which ids, and what happens to who does not read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import until
from engines import engine_of
from fakes import FakeSink
from hub_settings import hub_settings
from ssehub.claims import Claims
from ssehub.errors import HubClosed, Overloaded
from ssehub.event import Event
from ssehub.fanout.frames import Batch
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason, State, Subscriber
from ssehub.hub import Hub
from ssehub.position import Position

pytestmark = pytest.mark.anyio


class Clocks:
    """A wall clock and a monotonic one that tests set."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.mono = 1_000.0

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


@asynccontextmanager
async def running_hub(clocks: Clocks | None = None, **settings: Any) -> AsyncIterator[Hub]:
    if clocks is not None:
        settings.update(now=lambda: clocks.wall, monotonic=lambda: clocks.mono)
    async with Hub(**hub_settings(**settings)) as hub:
        yield hub


def join(
    hub: Hub, user: str = "alex", *channels: str, sink: FakeSink | None = None, **claims: Any
) -> tuple[Subscriber, FakeSink]:
    sink = sink or FakeSink()
    return hub.attach(Claims(user, channels or ("chat",), **claims), sink), sink


async def settle(hub: Hub) -> None:
    await hub.flush()


async def test_event_goes_to_its_user_on_its_channel_only() -> None:
    async with running_hub() as hub:
        _, alex = join(hub, "alex", "chat")
        _, kim = join(hub, "kim", "chat")
        _, elsewhere = join(hub, "alex", "news")

        await hub.publish(channel="chat", user_id="alex", data="hi")
        await settle(hub)

        assert alex.data() == ["hi"]
        assert kim.data() == elsewhere.data() == []


async def test_event_for_one_user_among_a_thousand_does_not_touch_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[Subscriber] = []
    write = Subscriber.write

    def noting(self: Subscriber, batch: Batch) -> int:
        touched.append(self)
        return write(self, batch)

    monkeypatch.setattr(Subscriber, "write", noting)
    async with running_hub() as hub:
        joined = {f"user-{number}": join(hub, f"user-{number}") for number in range(1_000)}
        before = {user: list(sink.chunks) for user, (_, sink) in joined.items()}

        await hub.publish(channel="chat", user_id="user-7", data="hi")
        await settle(hub)

        assert touched == [joined["user-7"][0]]
        assert [user for user, (_, sink) in joined.items() if sink.chunks != before[user]] == ["user-7"]


async def test_star_is_everyone_on_the_channel_and_an_ordinary_name_in_a_token() -> None:
    async with running_hub() as hub:
        _, star = join(hub, "*", "chat")
        _, kim = join(hub, "kim", "chat")

        await hub.publish(channel="chat", user_id="*", data="all")
        await hub.publish(channel="chat", user_id="kim", data="kim")
        await settle(hub)

        assert star.data() == ["all"]
        assert kim.data() == ["all", "kim"]


async def test_subscriber_of_two_channels_gets_both_in_log_order_each_event_once() -> None:
    async with running_hub() as hub:
        _, both = join(hub, "alex", "b", "a")
        _, only_a = join(hub, "alex", "a")
        events = [
            Event(("a",), ("*",), data="a1"),
            Event(("b",), ("alex", "kim"), data="b2"),
            Event(("a",), ("kim",), data="not for alex"),
            Event(("a", "b"), ("*", "alex"), data="ab3"),
            Event(("a",), ("alex",), data="a4"),
        ]

        await hub.publish_events(events)
        await settle(hub)

        assert both.data() == ["a1", "b2", "ab3", "a4"]
        assert only_a.data() == ["a1", "ab3", "a4"]
        assert both.ids() == sorted(set(both.ids()), key=lambda id: Position.parse(id))


@pytest.mark.parametrize(("subscribers", "least_seconds"), [(10, 0.0), (100, 0.006), (600, 0.015)])
async def test_rounds_begin_further_apart_the_more_they_write(subscribers: int, least_seconds: float) -> None:
    async with running_hub(Clocks()) as hub:
        sinks = [join(hub, f"user-{number}")[1] for number in range(subscribers)]
        await hub.publish(channel="chat", user_id="*", data="1")
        await settle(hub)

        began = time.monotonic()
        await hub.publish(channel="chat", user_id="*", data="2")
        for _ in range(3):
            await asyncio.sleep(0)
        assert (sinks[0].data() == ["1", "2"]) == (least_seconds == 0.0)
        await hub.publish(channel="chat", user_id="*", data="3")
        await settle(hub)

        assert time.monotonic() - began >= least_seconds - 0.001
        assert [sink.data() for sink in sinks] == [["1", "2", "3"]] * subscribers
        assert sum(hub.statistics.round_counts) == (3 if least_seconds == 0.0 else 2)


async def test_subscribers_with_the_same_audience_share_one_copy() -> None:
    async with running_hub() as hub:
        sinks = [join(hub, "alex", "a", "b")[1] for _ in range(3)]

        await hub.publish_events([Event((name,), ("*",), data=name) for name in "abab"])
        await settle(hub)

        assert len({id(sink.chunks[-1]) for sink in sinks}) == 1


async def test_who_joins_while_events_wait_gets_only_what_comes_after() -> None:
    async with running_hub() as hub:
        _, early = join(hub)
        await hub.publish(channel="chat", user_id="*", data="1")
        _, late = join(hub)
        await hub.publish(channel="chat", user_id="*", data="2")
        await settle(hub)

        assert early.data() == ["1", "2"]
        assert late.data() == ["2"]
        assert late.ids()[0] == early.ids()[1]


async def test_first_frame_carries_retry_comment_and_position() -> None:
    async with running_hub(retry_milliseconds=1500) as hub:
        position = await hub.publish(channel="chat", user_id="*", data="before")
        _, sink = join(hub)

        assert sink.text == f": ok\nid: {position}\nretry: 1500\n\n"


async def test_sink_that_raises_ends_its_subscriber_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenSink(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b"data:" in chunk.data:
                raise RuntimeError("the handler is closed")

    async with running_hub() as hub:
        sinks = [join(hub)[1] for _ in range(150)]
        broken, _ = join(hub, sink=BrokenSink())
        sinks += [join(hub)[1] for _ in range(150)]

        await hub.publish(channel="chat", user_id="*", data="1")
        await settle(hub)
        await hub.publish(channel="chat", user_id="*", data="2")
        await settle(hub)

        assert broken.reason is CloseReason.DISCONNECTED
        assert all(sink.data() == ["1", "2"] for sink in sinks)
        assert hub.statistics.subscribers == 300


async def test_subscriber_that_leaves_during_a_round_gets_nothing_more() -> None:
    async with running_hub() as hub:
        sinks = [join(hub)[1] for _ in range(250)]

        await hub.publish(channel="chat", user_id="*", data="1")
        await until(lambda: engine_of(hub).is_writing)
        sinks[-1].lose()
        await settle(hub)

        assert sinks[-1].data() == []
        assert sinks[-2].data() == ["1"]
        assert hub.statistics.endings["disconnected"] == 1


async def test_heartbeat_between_two_slices_never_carries_an_id_above_what_was_written() -> None:
    async with running_hub() as hub:
        members = [join(hub) for _ in range(250)]
        quiet, quiet_sink = join(hub, "kim", "quiet")

        position = await hub.publish(channel="chat", user_id="*", data="1")
        await until(lambda: engine_of(hub).is_writing)
        for subscriber, _ in [*members, (quiet, quiet_sink)]:
            engine_of(hub).registry.beat(subscriber, {})
        texts = [sink.text for _, sink in members]
        await settle(hub)
        engine_of(hub).registry.beat(quiet, {})

        told_early = [position in text for text in texts]
        written = ["data: 1" in text for text in texts]
        assert told_early == written
        assert True in written and False in written
        assert all(sink.data() == ["1"] for _, sink in members)
        assert quiet_sink.ids()[-1] == position
        assert quiet_sink.text.count(": ping") == 2


async def test_heartbeat_carries_the_position_only_when_it_has_moved() -> None:
    async with running_hub() as hub:
        subscriber, sink = join(hub)

        engine_of(hub).registry.beat(subscriber, {})
        first = await hub.publish(channel="chat", user_id="*", data="1")
        await settle(hub)
        engine_of(hub).registry.beat(subscriber, {})
        second = await hub.publish(channel="chat", user_id="*", data="2", id="mine")
        await settle(hub)
        engine_of(hub).registry.beat(subscriber, {})

        assert sink.text.endswith(
            f": ping\n\nid: {first}\ndata: 1\n\n: ping\n\nid: mine\ndata: 2\n\n: ping\nid: {second}\n\n"
        )


async def test_subscriber_over_its_bound_is_held_for_and_goes_on_where_it_was() -> None:
    async with running_hub(max_backlog_bytes=100_000) as hub:
        others = [join(hub)[1] for _ in range(3)]
        slow, sink = join(hub, sink=FakeSink(reads=False))

        for number in range(5):
            await hub.publish(channel="chat", user_id="*", data=f"{number}" * 60_000)
            await settle(hub)
        while_lagging = len(sink.data())
        was_lagging = slow.state is State.LAGGING
        engine_of(hub).registry.beat(slow, {})
        for _ in range(5):
            sink.take_all()

        assert was_lagging and while_lagging == 2
        assert sink.data() == others[0].data()
        assert slow.state is not State.LAGGING and engine_of(hub).backlogs.held_for(slow) == 0
        assert ": ping" not in sink.text


async def test_subscriber_that_never_reads_ends_as_slow_after_the_grace_time() -> None:
    clocks = Clocks()
    async with running_hub(clocks, max_backlog_bytes=100_000, grace_seconds=5) as hub:
        others = [join(hub)[1] for _ in range(3)]
        slow, sink = join(hub, sink=FakeSink(reads=False))

        for number in range(3):
            await hub.publish(channel="chat", user_id="*", data=f"{number}" * 60_000)
            await settle(hub)
        clocks.pass_seconds(4.9)
        engine_of(hub).advance()
        before = slow.reason
        clocks.pass_seconds(0.2)
        engine_of(hub).advance()

        assert before is None
        assert slow.reason is CloseReason.SLOW and sink.is_aborted
        assert all(len(other.data()) == 3 for other in others)


async def test_what_is_held_for_one_subscriber_is_bounded() -> None:
    async with running_hub(max_backlog_bytes=100_000, history_bytes=300_000) as hub:
        join(hub), join(hub)
        slow, _ = join(hub, sink=FakeSink(reads=False))

        for _ in range(8):
            await hub.publish(channel="chat", user_id="*", data="x" * 60_000)
            await settle(hub)

        assert slow.reason is CloseReason.SLOW
        assert hub.statistics.backlog_bytes == 0


async def test_stopped_majority_on_another_channel_costs_the_others_nothing() -> None:
    async with running_hub(Clocks(), max_backlog_bytes=100_000) as hub:
        honest = [join(hub, "alex", "good")[1] for _ in range(5)]
        stopped = [join(hub, "kim", "evil", sink=FakeSink(reads=False))[0] for _ in range(6)]

        for number in range(20):
            await hub.publish(channel="evil", user_id="*", data="x" * 60_000)
            await hub.publish(channel="good", user_id="*", data=str(number))
            await settle(hub)

        assert all(subscriber.state is State.LAGGING for subscriber in stopped)
        assert all(sink.data() == [str(number) for number in range(20)] for sink in honest)


async def test_only_subscriber_that_never_reads_delays_no_publisher() -> None:
    clocks = Clocks()
    async with running_hub(clocks, max_backlog_bytes=100_000, max_waiting_bytes=200_000) as hub:
        stopped, _ = join(hub, sink=FakeSink(reads=False))

        for _ in range(40):
            await hub.publish(channel="chat", user_id="*", data="x" * 60_000)
            await settle(hub)
        while_waited_for = stopped.reason
        clocks.pass_seconds(5.1)
        engine_of(hub).advance()

        assert while_waited_for is None and stopped.reason is CloseReason.SLOW
        assert engine_of(hub).backlogs.held_bytes == hub.statistics.backlog_bytes == 0


async def test_subscriber_that_stops_reading_is_waited_for_a_second_at_the_most() -> None:
    clocks = Clocks()
    async with running_hub(clocks, max_backlog_bytes=100_000) as hub:
        subscriber, sink = join(hub, sink=FakeSink(reads=False))
        await fill(hub, sink)
        await hub.publish(channel="chat", user_id="*", data="next")
        await asyncio.sleep(0.01)
        held_at_first = engine_of(hub).backlogs.held_for(subscriber)
        clocks.pass_seconds(1.1)
        engine_of(hub).advance()
        await settle(hub)

        assert held_at_first == 0 < engine_of(hub).backlogs.held_for(subscriber)
        assert subscriber.reason is None


async def test_what_many_wait_for_is_counted_once() -> None:
    async with running_hub(Clocks(), max_backlog_bytes=100_000, max_total_backlog_bytes=4_000_000) as hub:
        honest = [join(hub)[1] for _ in range(8)]
        stopped = [join(hub, sink=FakeSink(reads=False)) for _ in range(7)]

        for _ in range(12):
            await hub.publish(channel="chat", user_id="*", data="x" * 60_000)
            await settle(hub)
        untaken = sum(sink.untaken for _, sink in stopped)

        assert all(len(sink.data()) == 12 for sink in honest)
        assert all(subscriber.reason is None for subscriber, _ in stopped)
        assert engine_of(hub).backlogs.held_bytes == engine_of(hub).backlogs.held_for(stopped[0][0]) > 9 * 60_000
        assert hub.statistics.backlog_bytes == untaken + engine_of(hub).backlogs.held_bytes
        for _, sink in stopped:
            while sink.untaken:
                sink.take_all()
        assert engine_of(hub).backlogs.held_bytes == 0 and all(sink.data() == honest[0].data() for _, sink in stopped)


async def fill(hub: Hub, sink: FakeSink) -> None:
    """Put the listener on `chat`, bounded to 100,000 bytes, over its bound, and let it read a little."""
    for _ in range(2):
        await hub.publish(channel="chat", user_id="*", data="x" * 60_000)
        await settle(hub)
    sink.take(5_000)


async def test_publishers_wait_for_subscribers_that_read_and_nothing_is_lost() -> None:
    async with running_hub(Clocks(), max_backlog_bytes=100_000, max_waiting_bytes=200_000) as hub:
        subscriber, sink = join(hub, sink=FakeSink(reads=False))
        sent = 0

        async def publish() -> None:
            nonlocal sent
            for number in range(40):
                await hub.publish(channel="chat", user_id="*", data=f"{number} " + "x" * 60_000)
                sent += 1
                await asyncio.sleep(0)

        await fill(hub, sink)
        publisher = asyncio.create_task(publish())
        await until(lambda: hub.statistics.waiting_publishers == 1)
        await asyncio.sleep(0.01)
        stuck_at = sent
        while not publisher.done():
            sink.take_all()
            await asyncio.sleep(0)
        await until(lambda: sink.take_all() or len(sink.data()) == 42)

        assert stuck_at == 3
        assert [data.partition(" ")[0] for data in sink.data()[2:]] == [str(number) for number in range(40)]
        assert subscriber.reason is None


async def test_without_room_those_end_first_that_read_nothing_and_nobody_waits_for_them() -> None:
    clocks = Clocks()
    async with running_hub(clocks, max_backlog_bytes=10**6, max_total_backlog_bytes=730_000) as hub:
        stopped = [join(hub, "kim", "evil", sink=FakeSink(reads=False)) for _ in range(3)]
        reading, sink = join(hub, "alex", "good", sink=FakeSink(reads=False))
        for _ in range(2):
            await hub.publish(channel="evil", user_id="*", data="x" * 60_000)
            await hub.publish(channel="good", user_id="*", data="y" * 60_000)
            await settle(hub)
            clocks.pass_seconds(1.1)
        clocks.pass_seconds(5.1)
        sink.take(20_000)
        await hub.publish(channel="evil", user_id="*", data="x" * 60_000)
        await settle(hub)

        await hub.publish(channel="good", user_id="*", data="after")
        await settle(hub)

        assert sorted(subscriber.reason or "" for subscriber, _ in stopped) == ["", "", "slow"]
        assert reading.reason is None and sink.data()[-1] == "after"


async def test_reading_majority_that_fills_half_of_the_room_is_waited_for_and_none_of_it_ends() -> None:
    clocks = Clocks()
    async with running_hub(clocks, max_backlog_bytes=10**6, max_total_backlog_bytes=800_000) as hub:
        members = [join(hub, sink=FakeSink(reads=False)) for _ in range(4)]
        for _ in range(2):
            await hub.publish(channel="chat", user_id="*", data="x" * 60_000)
            await settle(hub)

        await hub.publish(channel="chat", user_id="*", data="after")
        await asyncio.sleep(0.01)
        held_back = [len(sink.data()) for _, sink in members]
        for _, sink in members:
            sink.take_all()
        await settle(hub)

        assert held_back == [2] * 4
        assert all(sink.data()[-1] == "after" and subscriber.reason is None for subscriber, sink in members)


async def test_when_backlogs_leave_no_room_the_next_round_waits_and_then_the_largest_end_first() -> None:
    clocks = Clocks()
    async with running_hub(clocks, max_backlog_bytes=10**9, max_total_backlog_bytes=280_000, grace_seconds=5) as hub:
        small, small_sink = join(hub, "kim", "small", sink=FakeSink(reads=False))
        large, _ = join(hub, "kim", "large", sink=FakeSink(reads=False))
        await hub.publish(channel="small", user_id="*", data="x" * 80_000)
        await hub.publish(channel="large", user_id="*", data="x" * 150_000)
        await settle(hub)

        await hub.publish(channel="small", user_id="*", data="after")
        await asyncio.sleep(0.01)
        held_back = small_sink.data()
        clocks.pass_seconds(5.1)
        engine_of(hub).advance()
        await settle(hub)

        assert len(held_back) == 1
        assert large.reason is CloseReason.SLOW
        assert small.reason is None and small_sink.data()[-1] == "after"


async def test_too_many_waiting_publishers_are_refused_before_anything_is_stored() -> None:
    async with running_hub(max_backlog_bytes=70_000, max_waiting_bytes=1_000, max_waiting_publishers=2) as hub:
        _, sink = join(hub, sink=FakeSink(reads=False))
        await hub.publish(channel="chat", user_id="*", data="x" * 70_000)
        await settle(hub)
        sink.take(5_000)
        waiting = [asyncio.create_task(hub.publish(channel="chat", user_id="*", data="y" * 70_000)) for _ in range(3)]
        await until(lambda: hub.statistics.waiting_publishers >= 2)

        results = [asyncio.create_task(hub.publish(channel="chat", user_id="*", data="z" * 70_000)) for _ in range(2)]
        with pytest.raises(Overloaded, match="try again"):
            await hub.publish(channel="chat", user_id="*", data="z")
        for task in [*waiting, *results]:
            task.cancel()
        await asyncio.gather(*waiting, *results, return_exceptions=True)

        assert hub.statistics.waiting_publishers == 0


async def test_waiting_publisher_that_gives_up_lets_the_next_one_through() -> None:
    async with running_hub(max_backlog_bytes=70_000, max_waiting_bytes=1_000) as hub:
        _, sink = join(hub, sink=FakeSink(reads=False))
        tasks = [asyncio.create_task(hub.publish(channel="chat", user_id="*", data=f"{n}" * 70_000)) for n in range(6)]
        await until(lambda: hub.statistics.waiting_publishers >= 3)

        tasks[-2].cancel()
        await until(lambda: sink.take_all() or all(task.done() for task in tasks))

        assert tasks[-2].cancelled()
        assert [task.exception() for task in tasks if not task.cancelled()] == [None] * 5


async def test_stream_is_warned_before_its_token_ends_and_then_ends() -> None:
    clocks = Clocks()
    async with running_hub(clocks, heartbeat_seconds=0.15) as hub:
        subscriber, sink = join(hub, expires_at=clocks.wall + 100)
        soon, soon_sink = join(hub, expires_at=clocks.wall + 10)

        clocks.pass_seconds(5.1)
        await until(lambda: "stream-expiring" in soon_sink.text)
        clocks.pass_seconds(5)
        await until(lambda: soon.reason is not None)
        assert "stream-expiring" not in sink.text
        clocks.pass_seconds(30)
        await until(lambda: "stream-expiring" in sink.text)
        clocks.pass_seconds(60)
        await until(lambda: subscriber.reason is not None)

        assert sink.text.count("stream-expiring") == sink.text.count("stream-expired") == 1
        assert subscriber.reason is soon.reason is CloseReason.EXPIRED
        assert sink.is_closed and not sink.is_aborted


@pytest.mark.parametrize("step", [-3600.0, 3600.0], ids=["back", "forward"])
async def test_setting_the_wall_clock_lengthens_no_stream(step: float) -> None:
    clocks = Clocks()
    async with running_hub(clocks, heartbeat_seconds=0.15) as hub:
        subscriber, _ = join(hub, expires_at=clocks.wall + 100)

        clocks.wall += step
        if step < 0:
            clocks.pass_seconds(100.1)
        await until(lambda: subscriber.reason is not None)

        assert subscriber.reason is CloseReason.EXPIRED


async def test_stream_ends_at_its_lifetime() -> None:
    clocks = Clocks()
    async with running_hub(clocks, heartbeat_seconds=0.15, stream_lifetime_seconds=100) as hub:
        subscriber, _ = join(hub)

        clocks.pass_seconds(79)
        await asyncio.sleep(0.2)
        early = subscriber.reason
        clocks.pass_seconds(22)
        await until(lambda: subscriber.reason is not None)

        assert early is None and subscriber.reason is CloseReason.LIFETIME


async def test_heartbeats_come_once_an_interval_to_everybody() -> None:
    async with running_hub(heartbeat_seconds=0.15) as hub:
        sinks = [join(hub)[1] for _ in range(250)]

        await until(lambda: all(sink.text.count(": ping") == 2 for sink in sinks))
        counts = {sink.text.count(": ping") for sink in sinks}

        assert counts <= {2, 3}


async def test_draining_ends_every_stream_with_a_farewell_and_a_retry(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ssehub.hub")
    async with running_hub() as hub:
        members = [join(hub) for _ in range(50)]
        position = await hub.publish(channel="chat", user_id="*", data="last")

        await hub.drain(0.2)

        assert hub.not_ready() == ["the hub is draining and about to stop"]
        for subscriber, sink in members:
            assert subscriber.reason is CloseReason.DRAINED and sink.is_closed and not sink.is_aborted
            assert sink.data() == ["last", "{}"]
            farewell = sink.text.split("\n\n")[-2].split("\n")
            assert farewell[:3] == [f"id: {position}", "event: stream-drain", "data: {}"]
            assert 2000 <= int(farewell[3].removeprefix("retry: ")) <= 8000
        assert len([record for record in caplog.records if "stream ended: drained" in record.message]) == 50


async def test_draining_is_done_before_its_window_is_over() -> None:
    """A share rounded down to one stream a step took 99 streams twice as long as it was meant to."""
    async with running_hub() as hub:
        for _ in range(99):
            join(hub)
        began = time.monotonic()

        await hub.drain(2)

        assert 1 < time.monotonic() - began < 1.8
        assert hub.statistics.subscribers == 0


async def test_publishing_to_a_closed_hub_says_so() -> None:
    async with Hub() as hub:
        pass

    with pytest.raises(HubClosed, match="async with"):
        await hub.publish(channel="chat", user_id="*", data="x")


async def test_publishers_all_see_one_order() -> None:
    async with running_hub() as hub:
        sinks = [join(hub)[1] for _ in range(120)]

        await asyncio.gather(*[hub.publish(channel="chat", user_id="*", data=str(n)) for n in range(200)])
        await settle(hub)

        assert sinks[0].data() == [str(n) for n in range(200)]
        assert all(sink.text.split("\n\n", 1)[1] == sinks[0].text.split("\n\n", 1)[1] for sink in sinks)


async def test_index_is_empty_when_everybody_has_left() -> None:
    async with running_hub() as hub:
        for number in range(100):
            _, sink = join(hub, f"user-{number}", f"channel-{number}", "shared")
            sink.lose()

        engine = engine_of(hub)
        assert engine.index.channels == {} and engine.index.all == {}
        assert len(engine.clock) == 0
        assert hub.statistics.endings["disconnected"] == 100


async def test_a_hub_gives_out_what_was_published_before_it_ends() -> None:
    async with running_hub(round_bytes=10) as hub:
        _, sink = join(hub)
        for n in range(20):
            await hub.publish(channel="chat", user_id="*", data=f"{n}")

    assert sink.data() == [*(f"{n}" for n in range(20)), "{}"]


async def test_first_use_that_is_cancelled_leaves_the_hub_usable() -> None:
    hub = Hub()
    first = asyncio.create_task(hub.publish(channel="chat", user_id="*", data="1"))
    await asyncio.sleep(0)
    first.cancel()

    await hub.publish(channel="chat", user_id="*", data="2")
    _, sink = join(hub)
    await hub.publish(channel="chat", user_id="*", data="3")
    await hub.flush()
    await hub.aclose()

    assert sink.data() == ["3", "{}"]


async def test_heartbeat_that_raises_ends_its_own_stream_only() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b": ping" in chunk.data:
                raise RuntimeError("the transport is closed")
            super().write(chunk)

    clocks = Clocks()
    async with running_hub(clocks, heartbeat_seconds=1.0) as hub:
        _, broken = join(hub, sink=Broken())
        _, sink = join(hub)

        clocks.pass_seconds(5)
        await until(lambda: sink.text.count(": ping") > 1)

        assert broken.is_aborted and not sink.is_closed
