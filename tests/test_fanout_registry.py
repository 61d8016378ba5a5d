"""The registry: the position that a stream is sent, heartbeats, and how streams end."""

from __future__ import annotations

import logging

import pytest

from builders import BASE, at, batch, subscriber
from conftest import until
from fakes import FakeSink
from hubs import engine_of, join, publish, running_hub
from ssehub.fanout.backlogs import OVERRUN, Backlogs
from ssehub.fanout.clock import Clock
from ssehub.fanout.comebacks import OpeningRate, Turns
from ssehub.fanout.index import Index
from ssehub.fanout.registry import Registry
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.statistics import Statistics
from ssehub.fanout.subscriber import FAILED, CloseReason, State, Subscriber
from ssehub.fanout.tracing import Tracer
from ssehub.position import Position
from ssehub.settings import Backpressure, Streams
from ssehub.testing import ManualClock
from streams import decode

pytestmark = pytest.mark.anyio

REPLAYING, LIVE, LAGGING = State.REPLAYING, State.LIVE, State.LAGGING


class Books(Registry):
    """A registry with an index, backlogs and a clock of its own."""

    def __init__(self) -> None:
        self.times = ManualClock()
        self.index = Index()
        self.backlogs = Backlogs(Backpressure(), 10**6, self.index)
        self.clock = Clock(Streams())
        self.statistics = Statistics()
        super().__init__(
            self.index,
            self.backlogs,
            self.clock,
            self.statistics,
            BASE,
            Turns(OpeningRate(self.now), self.now),
            self.now,
            Tracer(lambda: self.times.wall),
        )

    def now(self) -> float:
        return self.times.monotonic

    def open(self, sink: FakeSink | None = None, *, expires_at: float | None = None) -> tuple[Subscriber, FakeSink]:
        sink = sink or FakeSink()
        one = subscriber(sink=sink, expires_at=expires_at)
        self.add(one, self.times.monotonic, self.times.wall)
        return one, sink


def position_frame(position: Position | str) -> str:
    return f"event: stream-position\ndata: {{}}\nid: {position}\n\n"


class BrokenSink(FakeSink):
    """A connection of which one method raises."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        self.broken = broken

    def write(self, chunk: Chunk) -> None:
        if self.broken == "write":
            raise RuntimeError("the transport is closed")
        super().write(chunk)

    def close(self, linger_seconds: float = 5.0, *, cut_after: float | None = None) -> None:
        if self.broken == "close":
            raise RuntimeError("the transport is closed")
        super().close(linger_seconds, cut_after=cut_after)


@pytest.mark.parametrize(
    ("state", "sent", "position"),
    [
        pytest.param(LIVE, at(3), at(5), id="live-has-the-finished-rounds"),
        pytest.param(LIVE, at(7), at(7), id="live-in-a-round-has-what-was-written"),
        pytest.param(LAGGING, at(3), at(3), id="lagging"),
        pytest.param(REPLAYING, at(3), at(3), id="replaying"),
    ],
)
def test_position_is_never_above_what_was_written(state: State, sent: Position, position: Position) -> None:
    registry = Books()
    one, sink = registry.open()
    one.state, one.sent, registry.settled = state, sent, at(5)

    registry.send(one, "stream-expiring", {})

    assert registry.position_of(one) == one.known_position == position
    assert sink.ids() == [str(position)]


@pytest.mark.parametrize(
    ("reason", "type", "linger_seconds", "cut_after", "is_aborted"),
    [
        (CloseReason.DISCONNECTED, None, 5.0, None, False),
        (CloseReason.LIFETIME, "stream-lifetime", 5.0, 1.0, False),
        (CloseReason.REVOKED, None, 5.0, None, False),
        (CloseReason.REPLACED, "stream-replaced", 5.0, None, False),
        (CloseReason.EXPIRED, "stream-expired", 5.0, None, False),
        (CloseReason.DRAINED, "stream-drain", 1.0, 1.0, False),
        (CloseReason.SLOW, None, None, None, True),
    ],
)
def test_stream_ends_as_its_reason_demands(
    reason: CloseReason, type: str | None, linger_seconds: float | None, cut_after: float | None, is_aborted: bool
) -> None:
    registry = Books()
    one, sink = registry.open()

    registry.end(one, reason)

    assert [event.event for event in decode(sink.text.encode())] == ([type] if type else [])
    assert (one.state, one.reason) == (State.ENDED, reason)
    assert sink.is_closed and (sink.linger_seconds, sink.is_aborted) == (linger_seconds, is_aborted)
    assert sink.cut_after == cut_after
    assert registry.statistics.endings[reason] == sum(registry.statistics.endings.values()) == 1


def test_drained_stream_lingers_until_a_second_after_the_window_and_comes_back_after_it() -> None:
    registry = Books()
    registry.drain_until = registry.times.monotonic + 10
    one, sink = registry.open()
    registry.times.pass_seconds(4)

    registry.end(one, CloseReason.DRAINED)
    registry.times.pass_seconds(100)

    assert sink.linger_seconds == 6 + 1
    assert sink.cut_after == 1.0
    (farewell,) = decode(sink.text.encode())
    assert farewell.retry == 6_000 + 2_000


def test_response_is_cut_within_the_drain_window() -> None:
    registry = Books()
    registry.drain_until = registry.times.monotonic + 0.5
    one, sink = registry.open()

    registry.end(one, CloseReason.DRAINED)

    assert sink.cut_after == 0.5


def test_expired_stream_is_sent_when_its_token_expired() -> None:
    registry = Books()
    one, sink = registry.open(expires_at=123.0)

    registry.end(one, CloseReason.EXPIRED)

    (event,) = decode(sink.text.encode())
    assert (event.event, event.json(), event.id) == ("stream-expired", {"expiresAt": 123.0}, str(BASE))


def test_of_several_reasons_the_first_counts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ssehub.hub")
    registry = Books()
    one, _ = registry.open()
    registry.times.pass_seconds(2.5)

    registry.end(one, CloseReason.REVOKED)
    registry.end(one, CloseReason.DRAINED)
    registry.end_failed(one, FAILED)

    assert one.reason is CloseReason.REVOKED
    assert [record.getMessage() for record in caplog.records] == [
        "stream opened: user 'alex', channels 'chat', from this process",
        "stream ended: user 'alex', channels 'chat', from this process, 2.5 s, 0 events, 0 bytes, revoked",
    ]


@pytest.mark.parametrize(
    ("channels", "patterns", "shown"),
    [
        ((), ("orders.*",), "patterns 'orders.*'"),
        (("b", "a"), ("*", "o*"), "channels 'a', 'b', patterns '*', 'o*'"),
        (
            tuple(f"c{number}" for number in range(100, 1_100)),
            (),
            "channels 'c100', 'c1000', 'c1001', 'c1002', 'c1003', 'c1004', 'c1005', 'c1006', 'c1007', "
            "'c1008' and 990 more",
        ),
    ],
)
def test_log_lines_about_a_stream_name_a_few_channels_and_patterns(
    channels: tuple[str, ...], patterns: tuple[str, ...], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ssehub.hub")
    registry = Books()
    one = subscriber("alex", *channels, patterns=patterns)
    registry.add(one, 0.0, 0.0)

    registry.end(one, CloseReason.EXPIRED)

    lines = [record.message for record in caplog.records]
    assert [line.partition(",")[0] for line in lines] == ["stream opened: user 'alex'", "stream ended: user 'alex'"]
    assert all(f"user 'alex', {shown}, from this process" in line for line in lines)


def test_subscriber_of_another_hub_is_left_alone() -> None:
    registry, other = Books(), Books()
    one, sink = registry.open()

    other.end(one, CloseReason.DISCONNECTED)

    assert one.state is LIVE and not sink.is_closed
    assert sum(other.statistics.endings.values()) == 0


def test_stream_that_has_ended_is_in_none_of_the_books() -> None:
    registry = Books()
    one, _ = registry.open(FakeSink(reads=False))
    registry.backlogs.pause(one, 0.0)
    one.enter(LAGGING)
    registry.backlogs.start_lag(one, 0.0)
    registry.backlogs.hold(one, batch(1))

    registry.end(one, CloseReason.SLOW)

    assert len(registry.index) == len(registry.clock) == registry.backlogs.lagging == registry.backlogs.bytes == 0


@pytest.mark.parametrize("broken", ["write", "close"])
@pytest.mark.parametrize("reason", [CloseReason.DRAINED, CloseReason.EXPIRED])
def test_connection_that_cannot_be_ended_in_order_is_dropped(broken: str, reason: CloseReason) -> None:
    registry = Books()
    one, sink = registry.open(BrokenSink(broken))

    registry.end(one, reason)

    assert sink.is_aborted
    assert one.reason is reason and registry.statistics.endings[reason] == 1


@pytest.mark.parametrize(
    ("failure", "reason"), [(FAILED, CloseReason.DISCONNECTED), (OVERRUN, CloseReason.SLOW)], ids=["failed", "overrun"]
)
def test_failure_ends_the_stream(failure: int, reason: CloseReason) -> None:
    registry = Books()
    one, sink = registry.open()

    registry.end_failed(one, failure)

    assert one.reason is reason and sink.is_aborted


def test_control_event_that_cannot_be_written_ends_the_stream() -> None:
    registry = Books()
    one, sink = registry.open(BrokenSink("write"))

    registry.send(one, "stream-reset", {})
    registry.send(one, "stream-reset", {})

    assert one.reason is CloseReason.DISCONNECTED and sink.is_aborted
    assert registry.statistics.endings["disconnected"] == 1


@pytest.mark.parametrize("is_paused", [False, True])
@pytest.mark.parametrize("state", [LIVE, LAGGING, REPLAYING])
def test_heartbeat_is_left_out_where_a_backlog_waits(state: State, is_paused: bool) -> None:
    registry = Books()
    one, sink = registry.open()
    one.state, sink.is_paused = state, is_paused

    registry.beat(one, {})

    assert (sink.text != "") == (state is not LAGGING and not is_paused)


def test_heartbeats_with_the_same_position_are_made_once() -> None:
    registry = Books()
    made: dict[Position, Chunk] = {}
    streams = [registry.open() for _ in range(3)]
    streams[0][0].known_position = BASE

    for one, _ in streams:
        registry.beat(one, made)

    assert set(made) == {BASE}
    assert [sink.text for _, sink in streams] == [": ping\n", *[position_frame(BASE)] * 2]
    assert streams[1][1].chunks[0] is streams[2][1].chunks[0]


async def test_heartbeat_between_two_slices_carries_no_id_above_what_was_written() -> None:
    async with running_hub() as hub:
        members = [join(hub) for _ in range(250)]
        quiet, quiet_sink = join(hub, "kim", "quiet")

        (position,) = await publish(hub, "1")
        await until(lambda: engine_of(hub).is_writing)
        for subscriber, _ in [*members, (quiet, quiet_sink)]:
            engine_of(hub).registry.beat(subscriber, {})
        texts = [sink.text for _, sink in members]
        await hub.flush()
        engine_of(hub).registry.beat(quiet, {})

        sent_early = [position in text for text in texts]
        written = ["data: 1" in text for text in texts]
        assert sent_early == written
        assert True in written and False in written
        assert all(sink.data() == ["1"] for _, sink in members)
        assert quiet_sink.ids()[-1] == position
        assert quiet_sink.text.endswith(f": ping\n{position_frame(position)}")


async def test_heartbeat_carries_the_position_only_when_it_has_moved() -> None:
    async with running_hub() as hub:
        subscriber, sink = join(hub)

        engine_of(hub).registry.beat(subscriber, {})
        (first,) = await publish(hub, "1")
        await hub.flush()
        engine_of(hub).registry.beat(subscriber, {})
        (second,) = await publish(hub, "2", id="mine")
        await hub.flush()
        engine_of(hub).registry.beat(subscriber, {})

        assert sink.text.endswith(
            f": ping\ndata: 1\nid: {first}\n\n: ping\ndata: 2\nid: mine\n\n{position_frame(second)}"
        )


@pytest.mark.parametrize("reason", [CloseReason.DRAINED, CloseReason.EXPIRED])
async def test_stream_whose_sink_pauses_at_the_farewell_stays_in_no_book(reason: CloseReason) -> None:
    """The sink reported that it had paused after the stream was removed from the backlogs, which kept it for good."""
    async with running_hub() as hub:
        ended, sink = join(hub, sink=FakeSink(reads=False))
        other, _ = join(hub)
        await publish(hub, "x" * 65_400)
        await hub.flush()
        was_paused = sink.is_paused

        engine_of(hub).registry.end(ended, reason)

        assert (was_paused, sink.is_paused) == (False, True)
        assert hub.statistics.backlog_bytes == 0
        assert other.state is LIVE
