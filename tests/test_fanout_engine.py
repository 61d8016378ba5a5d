"""The engine: what each stream receives of the log, in which order, through failures, resets and the drain."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from conftest import until
from fakes import FakeSink
from hubs import engine_of, join, manual_hub, publish, running_hub
from ssehub.brokers import Entry
from ssehub.errors import HubClosed
from ssehub.event import Event
from ssehub.fanout.backlogs import Backlogs
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason, State, Subscriber
from ssehub.hub import Hub
from ssehub.position import Position

pytestmark = pytest.mark.anyio

OLD, NEW = "oldlog00", "newlog00"


class BrokenSink(FakeSink):
    """A connection on which writing anything that contains `text` raises."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self._text = text

    def write(self, chunk: Chunk) -> None:
        if self._text in chunk.data:
            raise RuntimeError("the transport is closed")
        super().write(chunk)


async def test_event_reaches_only_its_user_on_its_channel() -> None:
    async with running_hub() as hub:
        _, alex = join(hub, "alex", "chat")
        _, kim = join(hub, "kim", "chat")
        _, elsewhere = join(hub, "alex", "news")

        await hub.publish(channel="chat", user_id="alex", data="hi")
        await hub.flush()

        assert alex.data() == ["hi"]
        assert kim.data() == elsewhere.data() == []


async def test_star_means_everyone_in_an_event_and_is_an_ordinary_name_in_a_token() -> None:
    async with running_hub() as hub:
        _, star = join(hub, "*", "chat")
        _, kim = join(hub, "kim", "chat")

        await hub.publish(channel="chat", user_id="*", data="all")
        await hub.publish(channel="chat", user_id="kim", data="kim")
        await hub.flush()

        assert star.data() == ["all"]
        assert kim.data() == ["all", "kim"]


async def test_subscriber_that_joins_while_events_wait_receives_only_later_events() -> None:
    async with running_hub() as hub:
        _, early = join(hub)
        await publish(hub, "1")
        _, late = join(hub)
        await publish(hub, "2")
        await hub.flush()

        assert early.data() == ["1", "2"]
        assert late.data() == ["2"]
        assert late.ids()[0] == early.ids()[1]


async def test_first_frame_carries_retry_and_position() -> None:
    async with running_hub(retry_milliseconds=1500) as hub:
        (position,) = await publish(hub, "before")
        _, sink = join(hub)

        assert sink.text == f"event: stream-hello\ndata: {{}}\nretry: 1500\nid: {position}\n\n"


async def test_c11_all_subscribers_see_the_events_of_all_publishers_in_one_order() -> None:
    async with running_hub() as hub:
        sinks = [join(hub)[1] for _ in range(120)]

        await asyncio.gather(*[publish(hub, str(n)) for n in range(200)])
        await hub.flush()

        assert sinks[0].data() == [str(n) for n in range(200)]
        assert all(sink.text.split("\n\n", 1)[1] == sinks[0].text.split("\n\n", 1)[1] for sink in sinks)


async def test_sink_that_raises_ends_its_own_subscriber_and_no_other() -> None:
    async with running_hub() as hub:
        sinks = [join(hub)[1] for _ in range(150)]
        broken, _ = join(hub, sink=BrokenSink(b"data:"))
        sinks += [join(hub)[1] for _ in range(150)]

        await publish(hub, "1")
        await hub.flush()
        await publish(hub, "2")
        await hub.flush()

        assert broken.reason is CloseReason.DISCONNECTED
        assert all(sink.data() == ["1", "2"] for sink in sinks)
        assert hub.statistics.subscribers == 300


async def test_exception_at_one_stream_of_a_round_ends_that_stream_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the round: the subscribers that came next lost its events, and were sent ids above them."""

    def fail(self: Backlogs, subscriber: Subscriber, written_bytes: int) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Backlogs, "is_over", fail)
    async with running_hub() as hub:
        _, first = join(hub)
        failing, sink = join(hub, sink=FakeSink(reads=False))
        rest = [join(hub)[1] for _ in range(250)]

        await publish(hub, "x" * 70_000)
        await hub.flush()
        await publish(hub, "next")
        await hub.flush()

        assert failing.reason is CloseReason.DISCONNECTED and sink.is_aborted
        assert all(len(one.data()) == 2 and one.data()[1] == "next" for one in [first, *rest])
        assert "a bug" in caplog.text


async def test_subscriber_that_leaves_during_a_round_receives_nothing_more() -> None:
    async with running_hub() as hub:
        sinks = [join(hub)[1] for _ in range(250)]

        await publish(hub, "1")
        await until(lambda: engine_of(hub).is_writing)
        sinks[-1].lose()
        await hub.flush()

        assert sinks[-1].data() == []
        assert sinks[-2].data() == ["1"]
        assert hub.statistics.endings["disconnected"] == 1


async def test_publisher_that_waits_for_a_client_goes_on_when_its_stream_is_detached() -> None:
    async with manual_hub(max_backlog_bytes=100_000) as hub:
        reading, sink = join(hub, sink=FakeSink(reads=False))
        for _ in range(2):
            await publish(hub, "x" * 60_000)
            await hub.flush()
        sink.read(5_000)
        publishing = asyncio.create_task(publish(hub, "next"))
        await asyncio.sleep(0.05)
        waits = hub.statistics.waiting_publishers == 1 and not publishing.done()

        hub.detach(reading)
        async with asyncio.timeout(5):
            await publishing

        assert waits and hub.statistics.waiting_publishers == 0


async def test_stream_that_moves_to_another_sink_goes_on_there_in_order() -> None:
    async with running_hub() as hub:
        moved, corked = join(hub)
        await publish(hub, "1")
        await hub.flush()
        sink = FakeSink()

        hub.reattach(moved, sink, [Chunk(data) for data in corked.chunks])
        await publish(hub, "2")
        await hub.flush()
        sink.lose()

        assert corked.data() == ["1"] and sink.data() == ["1", "2"]
        assert moved.reason is CloseReason.DISCONNECTED


async def test_stream_that_ends_before_it_moves_to_another_sink_closes_that_too() -> None:
    """The response waited for its client to disconnect, because nobody closed the new sink."""
    async with running_hub() as hub:
        moved, corked = join(hub)
        await hub.drain(0.01)
        sink = FakeSink()

        hub.reattach(moved, sink, [Chunk(data) for data in corked.chunks])

        assert sink.text == corked.text and "stream-drain" in sink.text
        assert sink.is_closed and not sink.is_aborted
        assert sink.cut_after is not None, "its client is to come back"


# The drain


async def test_drain_ends_every_stream_with_stream_drain_and_a_retry(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ssehub.hub")
    async with running_hub() as hub:
        members = [join(hub) for _ in range(50)]
        (position,) = await publish(hub, "last")

        await hub.drain(0.2)

        assert hub.not_ready() == ["the hub is draining and about to stop"]
        retries = []
        for subscriber, sink in members:
            assert subscriber.reason is CloseReason.DRAINED and sink.is_closed and not sink.is_aborted
            assert sink.data() == ["last", "{}"]
            farewell = sink.text.split("\n\n")[-2].split("\n")
            assert farewell[:2] == ["event: stream-drain", "data: {}"] and farewell[3] == f"id: {position}"
            retries.append(int(farewell[2].removeprefix("retry: ")))
        # They come back after the drain and a restart, one after the other.
        assert min(retries) >= 2_000 and max(retries) < 2_300 and len(set(retries)) > 10
        lines = [record.message for record in caplog.records if record.message.startswith("stream")]
        assert len(lines) == 51 and lines[-1].startswith("streams drained: 50 in ")  # 50 were opened


async def test_log_that_ends_with_the_process_takes_no_events_once_streams_end() -> None:
    async with Hub() as hub:
        sinks = [join(hub)[1] for _ in range(50)]
        draining = asyncio.create_task(hub.drain(1))

        with pytest.raises(HubClosed, match="its log ends with it; nothing was stored"):
            while True:
                await publish(hub, "taken")
                await asyncio.sleep(0)

        assert not any(sink.is_closed for sink in sinks)
        await draining
        counts = {sink.text.count("data: taken") for sink in sinks}
        assert counts == {hub.statistics.published} != {0}


@pytest.mark.alone
async def test_drain_is_done_before_its_window_is_over() -> None:
    """A share that was rounded down to one stream per step took 99 streams twice the time."""
    async with running_hub() as hub:
        for _ in range(99):
            join(hub)
        began = time.monotonic()

        await hub.drain(2)

        assert 1 < time.monotonic() - began < 1.8
        assert hub.statistics.subscribers == 0


# Gaps and new logs


def entries(log: str, *numbers: int) -> list[Entry]:
    return [Entry(Position(number, 0, log), Event(("chat",), ("*",), data=f"{log} {number}")) for number in numbers]


async def follow(hub: Hub, log: str, *numbers: int) -> None:
    """Deliver these events of `log`, and wait until they are written."""
    await engine_of(hub).deliver(Position(numbers[-1], 0, log), entries(log, *numbers))
    await hub.flush()


@pytest.mark.parametrize(("log", "reason"), [(NEW, "log-lost"), (OLD, "too-old")])
async def test_new_log_or_gap_resets_every_stream_and_live_events_follow(log: str, reason: str) -> None:
    async with manual_hub() as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        (_, listening), (_, lagging) = join(hub), join(hub, sink=FakeSink(reads=False))
        await follow(hub, OLD, 9_001)

        # A new log's positions may be below the old one's, after a clock was set back.
        first = 10_000 if log == OLD else 5_000
        await engine_of(hub).start_over(Position(first, 0, log))
        await follow(hub, log, first + 1, first + 2)

        for sink in (listening, lagging):
            assert sink.data()[-4:] == [
                f"{OLD} 9001",
                f'{{"reason":"{reason}"}}',
                f"{log} {first + 1}",
                f"{log} {first + 2}",
            ]
            assert sink.ids()[-3] == f"{first}-0.{log}"
        assert hub.statistics.resets[reason] == 2


async def test_waiting_events_are_written_before_the_reset() -> None:
    async with manual_hub() as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        _, sink = join(hub)
        await engine_of(hub).deliver(Position(9_002, 0, OLD), entries(OLD, 9_001, 9_002))

        await engine_of(hub).start_over(Position(9_500, 0, OLD))

        assert sink.data()[-3:] == [f"{OLD} 9001", f"{OLD} 9002", '{"reason":"too-old"}']


async def test_reset_discards_what_is_held_for_a_lagging_subscriber() -> None:
    async with manual_hub(max_backlog_bytes=70_000, round_bytes=40_000) as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        _, _, (slow, sink) = join(hub), join(hub), join(hub, sink=FakeSink(reads=False))
        big = Event(("chat",), ("*",), data="x" * 40_000)
        await engine_of(hub).deliver(
            Position(9_005, 0, OLD), [Entry(Position(9_000 + n, 0, OLD), big) for n in range(1, 6)]
        )
        await hub.flush()
        assert hub.statistics.lagging == 1

        await engine_of(hub).start_over(Position(9_500, 0, OLD))
        await follow(hub, OLD, 9_501)
        sink.read_all()

        assert [data if len(data) < 100 else "big" for data in sink.data()] == [
            "big",
            "big",
            '{"reason":"too-old"}',
            f"{OLD} 9501",
        ]
        assert hub.statistics.lagging == 0 and slow.state is State.LIVE


async def test_reset_ends_a_replay_that_is_under_way() -> None:
    async with manual_hub(round_bytes=1_000) as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        await follow(hub, OLD, *range(9_001, 9_101))
        _, sink = join(hub, cursor=f"9000-0.{OLD}")

        await engine_of(hub).start_over(Position(9_500, 0, OLD))
        await follow(hub, OLD, 9_501)

        assert sink.data()[-2:] == ['{"reason":"too-old"}', f"{OLD} 9501"]
        assert len(sink.data()) < 100


@pytest.mark.parametrize(
    ("cursor", "expected"),
    [
        (f"9001-0.{OLD}", ['{"reason":"log-lost"}']),
        (f"4000-0.{NEW}", ['{"reason":"too-old"}']),
        (f"5000-0.{NEW}", [f"{NEW} 5001"]),
    ],
    ids=["of-the-old-log", "before-the-new-one", "of-the-new-log"],
)
async def test_client_that_reconnects_after_a_new_log_resumes_or_is_reset(cursor: str, expected: list[str]) -> None:
    async with manual_hub() as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        await follow(hub, OLD, 9_001)
        await engine_of(hub).start_over(Position(5_000, 0, NEW))
        await follow(hub, NEW, 5_001)

        assert join(hub, cursor=cursor)[1].data() == expected


async def test_sink_that_raises_at_a_reset_ends_its_own_stream_only() -> None:
    async with manual_hub() as hub:
        _, broken = join(hub, sink=BrokenSink(b"stream-reset"))
        _, sink = join(hub)

        await engine_of(hub).start_over(Position(5_000, 0, NEW))

        assert broken.is_aborted
        assert sink.data() == ['{"reason":"log-lost"}']
