"""Writing straight through: when an event is written in the call that dispatches it, and what still holds then."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_worlds import MemoryWorld, RedisWorld, SqliteWorld, StartServer, World
from conftest import report, until
from fakes import FakeSink
from hubs import join, manual_hub, publish
from ssehub.claims import Claims
from ssehub.event import Event
from ssehub.fanout.engine import Engine
from ssehub.fanout.frames import Batch
from ssehub.fanout.index import Index
from ssehub.fanout.resume import Start
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason, State, Subscriber
from ssehub.hub import Hub
from ssehub.position import Position

pytest_plugins = ["redis_fixtures"]
pytestmark = pytest.mark.anyio

SEEDS = 200 if "SOAK" in os.environ else 20


class ActingSink(FakeSink):
    """A connection whose owner does something when it is written text that contains `text`, before or after it."""

    def __init__(self, text: bytes, act: Callable[[], object], *, before: bool = False) -> None:
        super().__init__()
        self._text = text
        self._act = act
        self._before = before

    def write(self, chunk: Chunk) -> None:
        acts = self._text in chunk.data
        if acts and self._before:
            self._act()
        super().write(chunk)
        if acts and not self._before:
            self._act()


def publish_at_once(hub: Hub, text: str) -> None:
    """Publish an event on `chat` in this call: with the memory broker, publishing awaits nothing at rest."""
    publishing = hub.publish(channel="chat", user_id="*", data=text)
    with pytest.raises(StopIteration):
        publishing.send(None)


async def test_event_at_rest_is_written_before_its_publisher_is_answered() -> None:
    async with manual_hub() as hub:
        _, sink = join(hub)
        _, elsewhere = join(hub, "alex", "news")

        await publish(hub, "1")

        assert sink.data() == ["1"] and elsewhere.data() == []
        assert sum(hub.statistics.round_counts) == hub.statistics.delivered == 1


async def test_only_one_event_is_written_so_in_each_turn_of_the_loop() -> None:
    async with manual_hub() as hub:
        _, sink = join(hub)

        await publish(hub, "1", "2", "3")
        at_once = sink.data()
        await asyncio.sleep(0)

        assert at_once == ["1"]
        assert sink.data() == ["1", "2", "3"]
        assert sum(hub.statistics.round_counts) == 2


async def test_no_event_is_written_so_after_a_round_that_carried_several() -> None:
    async with manual_hub() as hub:
        _, sink = join(hub)
        await publish(hub, "1", "2", "3")
        await hub.flush()

        await publish(hub, "4")
        after_several = sink.data()[3:]
        await hub.flush()
        await publish(hub, "5")

        assert after_several == []
        assert sink.data() == ["1", "2", "3", "4", "5"]


async def test_events_of_one_call_wait_for_a_round_that_carries_them_together() -> None:
    async with manual_hub() as hub:
        _, sink = join(hub)

        await hub.publish_events([Event(("chat",), ("*",), text) for text in ("1", "2")])
        at_once = sink.data()
        await hub.flush()

        assert (at_once, sink.data()) == ([], ["1", "2"])
        assert sum(hub.statistics.round_counts) == 1


@pytest.mark.parametrize(
    ("streams", "users", "is_at_once"),
    [
        pytest.param(32, "*", True, id="32-streams"),
        pytest.param(33, "*", False, id="33-streams"),
        pytest.param(33, ["user-0"], True, id="one-of-33"),
        pytest.param(40, [f"user-{number}" for number in range(33)], False, id="33-of-40"),
        pytest.param(0, [f"user-{number}" for number in range(33)], False, id="33-who-are-not-there"),
    ],
)
async def test_event_for_many_streams_waits_for_its_turn(
    streams: int, users: str | list[str], is_at_once: bool
) -> None:
    async with manual_hub() as hub:
        sinks = {name: join(hub, name)[1] for name in (f"user-{number}" for number in range(streams))}
        join(hub, "somebody", "news")

        await hub.publish(channel="chat", user_id=users, data="1")
        rounds = sum(hub.statistics.round_counts)
        await hub.flush()

        assert rounds == is_at_once
        assert all(sink.data() == (["1"] if users == "*" or name in users else []) for name, sink in sinks.items())


async def test_streams_that_hear_a_channel_by_a_pattern_count_as_well() -> None:
    async with manual_hub() as hub:
        sinks = [join(hub, f"user-{number}", patterns=("cha*",))[1] for number in range(32)]
        await publish(hub, "1")
        few = sinks[-1].data()
        await hub.flush()
        join(hub)

        await publish(hub, "2")

        assert few == ["1"] and sinks[-1].data() == ["1"]


async def test_command_stands_between_events_that_are_written_straight_through() -> None:
    async with manual_hub() as hub:
        ended, sink = join(hub, "alex")
        _, other = join(hub, "kim")

        await publish(hub, "1")
        await hub.disconnect(user_id="alex")
        await publish(hub, "2")
        await hub.flush()

        assert ended.reason is CloseReason.REVOKED
        assert sink.data() == ["1", "{}"] and other.data() == ["1", "2"]


async def test_event_behind_a_command_that_is_carried_out_waits_for_it() -> None:
    async with manual_hub() as hub:
        ending = [join(hub, "alex")[1] for _ in range(200)]
        _, other = join(hub, "kim")

        await hub.disconnect(user_id="alex")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await hub.publish(channel="chat", user_id="kim", data="1")
        at_once, ended = other.data(), hub.statistics.endings["revoked"]
        await hub.flush()

        assert 0 < ended < 200 and at_once == []
        assert other.data() == ["1"] and all(sink.data() == ["{}"] for sink in ending)


async def test_lagging_stream_is_held_what_others_are_written_straight_through() -> None:
    async with manual_hub(max_backlog_bytes=70_000) as hub:
        slow, sink = join(hub, sink=FakeSink(reads=False))
        _, reading = join(hub)
        await publish(hub, "x" * 80_000)

        await publish(hub, "2")
        await hub.flush()
        await publish(hub, "3")
        is_lagging, at_once = slow.state is State.LAGGING, reading.data()[1:]
        sink.read_all()

        assert is_lagging and at_once == ["2", "3"]
        assert slow.state is State.LIVE and sink.data()[1:] == ["2", "3"]


# Failures, and sinks that act while they are written to


async def test_sink_that_raises_ends_its_own_stream_and_the_publisher_is_answered() -> None:
    def fail() -> None:
        raise RuntimeError("the transport is closed")

    async with manual_hub() as hub:
        _, first = join(hub)
        broken, sink = join(hub, sink=ActingSink(b"data: 1", fail))
        _, last = join(hub)

        (position,) = await publish(hub, "1")
        await hub.flush()
        await publish(hub, "2")
        await hub.flush()

        assert first.ids()[1] == position
        assert broken.reason is CloseReason.DISCONNECTED and sink.is_aborted
        assert first.data() == last.data() == ["1", "2"]


async def test_failure_to_write_straight_through_does_not_reach_the_publisher(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Index, frame: object, most: int) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Index, "few_for", fail)
    async with manual_hub() as hub:
        _, sink = join(hub)

        (position,) = await publish(hub, "1")
        await hub.flush()

        assert "a bug" in caplog.text
        assert sink.data() == ["1"] and sink.ids()[1:] == [position]


async def test_failure_at_one_stream_ends_that_stream_and_the_publisher_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Subscriber.write

    def fail(self: Subscriber, batch: Batch) -> int:
        if self is failing:
            raise RuntimeError("a bug")
        return write(self, batch)

    monkeypatch.setattr(Subscriber, "write", fail)
    async with manual_hub() as hub:
        _, first = join(hub)
        failing, _ = join(hub)
        _, last = join(hub)

        await publish(hub, "1")
        await hub.flush()

        assert "a bug" in caplog.text and failing.reason is CloseReason.DISCONNECTED
        assert first.data() == last.data() == ["1"]


async def test_connection_that_is_lost_while_it_is_written_to_ends_its_own_stream() -> None:
    async with manual_hub() as hub:
        _, first = join(hub)
        sink = ActingSink(b"data: 1", lambda: sink.lose())
        lost, _ = join(hub, sink=sink)
        _, last = join(hub)

        await publish(hub, "1")

        assert lost.reason is CloseReason.DISCONNECTED
        assert first.data() == last.data() == ["1"]
        assert hub.statistics.subscribers == 2


async def test_stream_that_others_end_while_it_is_about_to_be_written_to_receives_nothing() -> None:
    async with manual_hub() as hub:
        _, first = join(hub, sink=ActingSink(b"data: 1", lambda: hub.detach(leaving)))
        leaving, sink = join(hub)
        _, last = join(hub)

        await publish(hub, "1")

        assert first.data() == last.data() == ["1"]
        assert sink.data() == [] and leaving.reason is CloseReason.DISCONNECTED


async def test_event_that_a_sink_publishes_while_it_is_written_to_comes_behind_the_one_it_is_written() -> None:
    async with manual_hub() as hub:
        _, first = join(hub)
        _, acting = join(hub, sink=ActingSink(b"data: 1", lambda: publish_at_once(hub, "2"), before=True))
        _, last = join(hub)

        await publish(hub, "1")
        at_once = first.data()
        await hub.flush()

        assert at_once == ["1"]
        assert first.data() == acting.data() == last.data() == ["1", "2"]


async def test_event_that_a_sink_publishes_when_its_stream_opens_comes_behind_the_reset() -> None:
    """Behind the hello, its id would have let a client that was cut off then come back without the reset."""
    async with manual_hub() as hub:
        _, other = join(hub)
        await publish(hub, "before")
        await hub.flush()
        sink = ActingSink(b"event: stream-hello", lambda: publish_at_once(hub, "nested"))

        join(hub, cursor="unknown", sink=sink)
        await hub.flush()

        assert sink.data() == ['{"reason":"unknown-id"}', "nested"]
        assert other.data() == ["before", "nested"]


@pytest.mark.parametrize("before", [True, False])
async def test_event_that_a_sink_publishes_during_its_replay_reaches_it_behind_the_replay(before: bool) -> None:
    """It was lost: the stream counted as one that has everything up to the end of the log."""
    async with manual_hub() as hub:
        _, other = join(hub)
        first, *_ = await publish(hub, "1", "2", "3")
        await hub.flush()
        sink = ActingSink(b"data: 3", lambda: publish_at_once(hub, "nested"), before=before)

        join(hub, cursor=first, sink=sink)
        await hub.flush()

        assert sink.data() == ["2", "3", "nested"]
        assert other.data() == ["1", "2", "3", "nested"]


async def test_connection_that_is_lost_during_its_replay_ends_its_stream() -> None:
    async with manual_hub() as hub:
        first, *_ = await publish(hub, "1", "2")
        sink = ActingSink(b"data: 2", lambda: sink.lose())

        lost, _ = join(hub, cursor=first, sink=sink)

        assert lost.reason is CloseReason.DISCONNECTED and hub.statistics.subscribers == 0


async def test_connection_that_is_lost_while_it_is_written_what_was_held_ends_its_stream() -> None:
    async with manual_hub(max_backlog_bytes=70_000) as hub:
        sink = ActingSink(b"data: held", lambda: sink.lose())
        sink.reads = False
        lost, _ = join(hub, sink=sink)
        await publish(hub, "x" * 80_000, "held", "more")
        await hub.flush()

        sink.read_all()

        assert lost.reason is CloseReason.DISCONNECTED
        assert hub.statistics.subscribers == hub.statistics.lagging == hub.statistics.backlog_bytes == 0


async def test_what_is_published_straight_through_is_drained_as_well() -> None:
    async with manual_hub() as hub:
        _, sink = join(hub)
        await publish(hub, "1")

        await hub.drain(0.05)

        assert sink.data() == ["1", "{}"] and sink.is_closed


# On every broker


@pytest.mark.parametrize("kind", [MemoryWorld, SqliteWorld, RedisWorld])
async def test_event_at_rest_is_written_in_the_call_that_dispatches_it_on_every_broker(
    kind: type[World], start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch, after = Engine.dispatch, list[list[str]]()

    def recorded(self: Engine, position: Position, entries: object) -> None:
        dispatch(self, position, entries)  # type: ignore[arg-type]
        after.append(sink.data())

    monkeypatch.setattr(Engine, "dispatch", recorded)
    sink = FakeSink()
    async with Hub(kind(tmp_path, start_server).broker()) as hub:
        join(hub, sink=sink)
        after.clear()
        for text in ("1", "2", "3"):
            await publish(hub, text)
            await until(lambda: sink.data()[-1:] == [text])  # noqa: B023  # it has returned by the next one
            await asyncio.sleep(0.002)

    assert after == [["1"], ["1", "2"], ["1", "2", "3"]]


class Journal:
    """Writes down the rounds of a hub: which connection was written up to where, in this order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Listener, Position]] = []

    def check(self, log: dict[Position, tuple[str, str]]) -> None:
        """No stream may be more than one round behind another: when a round begins, all have the one before."""
        open_now: dict[Listener, list[Position]] = {}
        before = end = Position(0, 0, "")
        for kind, listener, position in self.lines:
            if kind == "opened":
                wanted = [at for at, event in log.items() if at > position and listener.hears(*event)]
                open_now[listener] = wanted[::-1]
            elif kind == "closed":
                open_now.pop(listener, None)
            else:
                if position != end:
                    before, end = end, position
                for other, missing in open_now.items():
                    assert not missing or missing[-1] > before, f"{other} lacks {missing[-1]} at {position}"
                missing = open_now[listener]
                while missing and missing[-1] <= position:
                    missing.pop()


class Listener(FakeSink):
    """A connection of one user on some channels, which writes down what rounds write to it."""

    def __init__(self, journal: Journal, user: str, channels: tuple[str, ...]) -> None:
        super().__init__()
        self.user = user
        self.channels = channels
        self.subscriber: Subscriber | None = None
        self._journal = journal

    def hears(self, channel: str, user: str) -> bool:
        return channel in self.channels and user in ("*", self.user)

    def write(self, chunk: Chunk) -> None:
        super().write(chunk)
        if isinstance(chunk, Batch) and self.subscriber is not None and self.subscriber.state is State.LIVE:
            self._journal.lines.append(("written", self, chunk.last))

    async def open(self, hub: Hub, cursor: str | None) -> None:
        claims = Claims(self.user, self.channels)
        start = await hub.prepare(claims, Start.parse(cursor))
        self.subscriber = hub.attach(claims, self, start)
        await until(lambda: self.subscriber is not None and self.subscriber.state is not State.REPLAYING)
        self._journal.lines.append(("opened", self, self.subscriber.sent))

    def cut(self) -> None:
        self.lose()
        self._journal.lines.append(("closed", self, Position(0, 0, "")))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_no_stream_is_more_than_one_round_behind_another_and_none_misses_anything(seed: int) -> None:
    """D14: two channels, publishers at full speed, and clients that come back, in all of which order holds."""
    chance = random.Random(seed)
    journal, log = Journal(), dict[Position, tuple[str, str]]()
    data: dict[Position, str] = {}
    counts: Counter[str] = Counter()
    async with manual_hub(round_bytes=chance.choice([300, 5_000, 500_000])) as hub:
        clients: list[tuple[Listener, list[str]]] = []

        async def come(user: str, channels: tuple[str, ...], cursor: str | None, received: list[str]) -> None:
            listener = Listener(journal, user, channels)
            await listener.open(hub, cursor)
            clients.append((listener, received))

        async def publish_all(name: str) -> None:
            for number in range(150):
                channel, user = chance.choice(["a", "b"]), chance.choice(["*", "*", "alex", "kim"])
                before = hub.statistics.delivered
                text = await hub.publish(channel=channel, user_id=user, data=f"{name}{number}")
                counts["straight"] += hub.statistics.delivered > before
                position = Position.parse(text)
                assert position is not None
                log[position], data[position] = (channel, user), f"{name}{number}"
                for _ in range(chance.choice([0, 0, 1, 1, 2, 3])):
                    await asyncio.sleep(0)

        async def come_and_go() -> None:
            while len(log) < 600:
                listener, received = clients.pop(chance.randrange(len(clients)))
                listener.cut()
                received += listener.data()
                await come(listener.user, listener.channels, listener.ids()[-1], received)
                await asyncio.sleep(0)

        for _ in range(chance.randint(3, 30)):
            await come(chance.choice(["alex", "kim"]), chance.choice([("a",), ("b",), ("a", "b")]), None, [])
        async with asyncio.timeout(30):
            await asyncio.gather(*[publish_all(name) for name in "wxyz"], come_and_go())
            await hub.flush()
        counts["rounds"] = sum(hub.statistics.round_counts)
        for listener, received in clients:
            wanted = [text for at, text in sorted(data.items()) if listener.hears(*log[at])]
            assert received + listener.data() == wanted

    journal.check(dict(sorted(log.items())))
    assert 0 < counts["straight"] < counts["rounds"] < len(log), counts
    report(f"D14 seed {seed}: {dict(counts)} of {len(log)} events")
