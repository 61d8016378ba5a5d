"""Resuming: where a stream begins, exactly what was missed, and how that joins the live events."""

from __future__ import annotations

import asyncio
import random

import pytest

from builders import BASE, at, frame, subscriber
from conftest import until
from fakes import FakeSink
from hubs import engine_of, join, manual_hub, publish, running_hub
from ssehub.claims import Claims
from ssehub.errors import InvalidRequest
from ssehub.fanout.history import History, ResetReason
from ssehub.fanout.resume import PART_EVENTS, Beginning, Start, beginning, next_part
from ssehub.fanout.subscriber import CloseReason, State, Subscriber
from ssehub.position import Position
from ssehub.settings import Retention
from ssehub.testing import ManualClock

pytestmark = pytest.mark.anyio

HEAD = at(9)
"""The end of the log in the tests without a hub, above everything that their history retains."""


def history_of(*numbers: int, evicted: tuple[int, ...] = ()) -> History:
    """Return a history that retains events of these numbers on `chat`, after it has evicted others."""
    history = History(BASE, Retention(history_events=max(1, len(numbers))))
    for number in (*evicted, *numbers):
        history.add(frame(number))
    return history


# Where a stream begins


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param(Start(), Beginning(HEAD, None), id="now"),
        pytest.param(Start(str(at(6))), Beginning(at(6), None), id="after-the-cursor"),
        pytest.param(Start(str(HEAD)), Beginning(HEAD, None), id="nothing-missed"),
        pytest.param(Start(str(at(3))), Beginning(at(3), None), id="at-the-floor"),
        pytest.param(Start(str(at(2))), Beginning(HEAD, ResetReason.TOO_OLD), id="below-the-floor"),
        pytest.param(Start(str(at(10))), Beginning(HEAD, ResetReason.LOG_LOST), id="from-the-future"),
        pytest.param(Start("1-0.other"), Beginning(HEAD, ResetReason.LOG_LOST), id="of-another-log"),
        pytest.param(Start("mine"), Beginning(HEAD, ResetReason.UNKNOWN_ID), id="unknown"),
        pytest.param(
            Start(str(at(2)), replays_on_reset=True), Beginning(at(3), ResetReason.TOO_OLD), id="replay-on-reset"
        ),
        pytest.param(Start(str(at(6)), replays_on_reset=True), Beginning(at(6), None), id="replay-on-no-reset"),
        pytest.param(Start(last=2), Beginning(at(5).before, None), id="last-2"),
        pytest.param(Start(last=99), Beginning(at(4).before, None), id="last-99"),
        pytest.param(Start(is_earliest=True), Beginning(at(3), None), id="earliest"),
    ],
)
def test_stream_begins_where_the_client_asks_or_is_reset(start: Start, expected: Beginning) -> None:
    history = history_of(4, 5, 6, evicted=(1, 2, 3))

    assert beginning(history, HEAD, Claims("alex", ("chat",)), start, now=0.0) == expected


OLDEST, OTHER = at(4).before, Position(9_999, 0, "other")


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param(Start(str(at(6))), Beginning(at(6), None), id="after-the-cursor"),
        pytest.param(Start(str(at(2))), Beginning(HEAD, ResetReason.TOO_OLD), id="below-the-floor"),
        pytest.param(Start("mine"), Beginning(HEAD, ResetReason.UNKNOWN_ID), id="unknown"),
        pytest.param(Start("mine", replays_on_reset=True), Beginning(OLDEST, ResetReason.UNKNOWN_ID), id="replay"),
        pytest.param(Start(last=2), Beginning(at(5).before, None), id="last-2"),
        pytest.param(Start(last=99), Beginning(OLDEST, None), id="last-99"),
        pytest.param(Start(last=2, last_after=at(5)), Beginning(at(5), None), id="last-searched-for"),
        pytest.param(Start(last=2, last_after=at(1)), Beginning(OLDEST, None), id="last-evicted-since"),
        pytest.param(
            Start(last=2, last_after=Position(9_999, 0, "other")),
            Beginning(at(5).before, None),
            id="last-of-another-log",
        ),
        pytest.param(Start(is_earliest=True), Beginning(OLDEST, None), id="earliest"),
    ],
)
def test_stream_with_a_pattern_begins_where_the_client_asks_or_is_reset(start: Start, expected: Beginning) -> None:
    history = history_of(4, 5, 6, evicted=(1, 2, 3))

    assert beginning(history, HEAD, Claims("alex", patterns=("ch*",)), start, now=0.0) == expected


@pytest.mark.parametrize(
    ("cursor", "since", "on_reset", "expected"),
    [
        (None, None, None, Start()),
        ("", None, None, Start()),
        ("mine", None, None, Start("mine")),
        ("mine", None, "replay", Start("mine", replays_on_reset=True)),
        ("mine", "earliest", None, Start("mine")),
        (None, "earliest", "replay", Start(is_earliest=True, replays_on_reset=True)),
        (None, "last:10", None, Start(last=10)),
        (None, str(BASE), None, Start(str(BASE))),
        ("", "last:1", None, Start(last=1)),
    ],
)
def test_start_is_read_from_the_request(
    cursor: str | None, since: str | None, on_reset: str | None, expected: Start
) -> None:
    assert Start.parse(cursor, since, on_reset) == expected


@pytest.mark.parametrize("since", ["", "latest", "last:", "last:0", "last:-1", "last:x", "last:9999999999", "last:²"])
def test_unknown_since_is_refused(since: str) -> None:
    with pytest.raises(InvalidRequest, match="use earliest, last:10, or a position"):
        Start.parse(None, since)
    with pytest.raises(InvalidRequest, match="use earliest, last:10, or a position"):
        Start.parse("mine", since)


def test_unknown_on_reset_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="use replay"):
        Start.parse(None, None, "")


# The parts of a replay


def test_replay_comes_in_parts_of_at_most_max_bytes() -> None:
    history = history_of(1, 2, 3)
    one = subscriber(sent=BASE, head=HEAD)
    parts = []

    while (part := next_part(history, one, 2 * len(frame(1).data), now=0.0)) is not None:
        assert part.batch is not None
        one.write(part.batch)
        parts.append(([found.position for found in part.batch.frames], part.is_last))
        if part.is_last:
            break

    assert parts == [([at(1), at(2)], False), ([at(3)], True)]


def test_last_part_of_a_replay_may_be_empty() -> None:
    one = subscriber(sent=at(3), head=HEAD)

    assert next_part(history_of(1, 2, 3), one, 1_000, now=0.0) == (None, at(3), True)


def test_replay_that_eviction_has_overtaken_has_no_next_part() -> None:
    one = subscriber(sent=at(1), head=HEAD)

    assert next_part(history_of(2, 3, evicted=(1,)), one, 1_000, now=0.0) is not None
    assert next_part(history_of(3, evicted=(1, 2)), one, 1_000, now=0.0) is None


# In a whole hub


async def test_replay_passes_over_any_number_of_events_that_have_expired() -> None:
    clock = ManualClock()
    async with running_hub(clock) as hub:
        await publish(hub, *["x"] * (2 * PART_EVENTS + 10), ttl=1)
        await publish(hub, "wanted")
        clock.pass_seconds(2)

        replaying, sink = join(hub, since="earliest")
        await until(lambda: replaying.state is State.LIVE)

        assert sink.data() == ["wanted"]


async def test_replays_take_turns_and_leave_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.fanout.replays.BUDGET_SECONDS", 1e-9)
    async with running_hub(round_bytes=1_000) as hub:
        await publish(hub, *["x" * 900] * 5)
        sinks = [join(hub, since="earliest")[1] for _ in range(3)]

        counts = []
        for _ in range(9):
            counts.append(sorted(len(sink.data()) for sink in sinks))
            await asyncio.sleep(0)
        await until(lambda: all(len(sink.data()) == 5 for sink in sinks))

        assert all(most - least <= 2 for least, _, most in counts)
        assert len({sum(three) for three in counts}) > 5, "one part in each pass of the loop"


async def test_missed_events_come_first_then_live_events() -> None:
    async with manual_hub() as hub:
        ids = await publish(hub, "1", "2", "3")
        _, sink = join(hub, cursor=ids[0])
        await publish(hub, "4")
        await hub.flush()

        assert sink.data() == ["2", "3", "4"]
        assert sink.ids()[:3] == ids, "the first frame's id is what the client has received, never more"


async def test_resume_during_a_round_repeats_nothing_and_misses_nothing() -> None:
    async with manual_hub() as hub:
        for _ in range(300):
            join(hub)
        ids = await publish(hub, "1")
        await until(lambda: engine_of(hub).is_writing)
        _, first = join(hub, cursor=ids[0])
        ids += await publish(hub, "2")
        _, second = join(hub, cursor=ids[0])
        _, third = join(hub, cursor=ids[1])
        await publish(hub, "3")
        await hub.flush()

        assert first.data() == ["2", "3"]
        assert second.data() == ["2", "3"]
        assert third.data() == ["3"]


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [("1-0.zzzzzzzz", "log-lost"), ("garbage", "unknown-id"), ("x" * 1_000_000, "unknown-id"), ("OLD", "too-old")],
    ids=["other-log", "garbage", "1-MB", "too-old"],
)
@pytest.mark.parametrize("on_reset", [None, "replay"])
async def test_reset_gives_its_reason_and_live_events_follow(cursor: str, reason: str, on_reset: str | None) -> None:
    async with manual_hub(history_events=2) as hub:
        ids = await publish(hub, "1", "2", "3", "4")
        _, sink = join(hub, cursor={"OLD": ids[0]}.get(cursor, cursor), on_reset=on_reset)
        await publish(hub, "5")
        await hub.flush()

        retained = ["3", "4"] if on_reset else []
        assert sink.data() == [f'{{"reason":"{reason}"}}', *retained, "5"]
        hello, reset, *_ = sink.text.split("\n\n")
        assert "event: stream-hello" in hello
        assert "id:" not in hello, "an id before the reset would hide the loss from a client cut off between the two"
        assert f"id: {ids[1] if on_reset else ids[3]}" in reset.split("\n")
        assert hub.statistics.resets[reason] == 1


@pytest.mark.parametrize(
    ("since", "data"),
    [("earliest", ["1", "2", "3"]), ("last:2", ["2", "3"]), ("last:99", ["1", "2", "3"]), ("ID", ["2", "3"])],
)
async def test_c12_first_connection_can_ask_for_past_events(since: str, data: list[str]) -> None:
    async with manual_hub() as hub:
        ids = await publish(hub, "1", "2", "3")
        await publish(hub, "other", channel="elsewhere")
        _, sink = join(hub, since={"ID": ids[0]}.get(since, since))
        _, with_cursor = join(hub, cursor=ids[1], since="earliest")
        await publish(hub, "4")
        await hub.flush()

        assert sink.data() == [*data, "4"]
        assert with_cursor.data() == ["3", "4"]


async def test_replay_follows_the_new_token() -> None:
    async with manual_hub() as hub:
        (start,) = await publish(hub, "start")
        await publish(hub, "chat")
        await publish(hub, "news", channel="news")
        await hub.publish(channel="chat", user_id="kim", data="for kim")

        assert join(hub, cursor=start)[1].data() == ["chat"]
        assert join(hub, "alex", "news", cursor=start)[1].data() == ["news"]
        assert join(hub, "kim", "chat", "news", cursor=start)[1].data() == ["chat", "news", "for kim"]


async def test_long_replay_is_written_as_fast_as_the_client_reads() -> None:
    async with manual_hub(round_bytes=10_000, max_backlog_bytes=200_000) as hub:
        (start,) = await publish(hub, "start")
        wanted = [f"{number} " + "x" * 1_000 for number in range(300)]
        await publish(hub, *wanted)
        slow, sink = join(hub, cursor=start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        written_at_once = len(sink.data())
        await publish(hub, "live")
        await hub.flush()
        largest = 0
        while slow.state is State.REPLAYING:
            largest = max(largest, sink.backlog)
            sink.read_all()
            await hub.pass_seconds(0.3)
        sink.reads = True
        sink.read_all()
        await publish(hub, "later")
        await hub.flush()

        assert written_at_once < 80 and largest < 80_000
        assert sink.data() == [*wanted, "live", "later"]


@pytest.mark.parametrize("patterns", [(), ("ch*",)], ids=["channel", "pattern"])
async def test_replay_overtaken_by_eviction_is_reset_at_once(patterns: tuple[str, ...]) -> None:
    async with manual_hub(round_bytes=10_000, history_events=100) as hub:
        (start,) = await publish(hub, "start")
        await publish(hub, *[f"{number} " + "x" * 1_000 for number in range(99)])
        slow, sink = join(hub, patterns=patterns, cursor=start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        written = len(sink.data())
        last = await publish(hub, *["y" * 1_000 for _ in range(100)])
        sink.reads = True
        sink.read_all()
        await hub.pass_seconds(0.3)
        await publish(hub, "live")
        await hub.flush()

        assert slow.state is State.LIVE
        assert sink.data()[written:] == ['{"reason":"too-old"}', "live"]
        assert sink.ids()[-2] == last[-1]


async def test_replay_to_a_pattern_goes_on_if_only_other_channels_are_evicted() -> None:
    async with manual_hub(round_bytes=10_000, history_events=100) as hub:
        (start,) = await publish(hub, "start")
        await publish(hub, *["x"] * 60, channel="busy")
        wanted = [f"{number} " + "x" * 2_000 for number in range(39)]
        await publish(hub, *wanted)
        slow, sink = join(hub, patterns=("ch*",), cursor=start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        assert 0 < len(sink.data()) < 39
        await publish(hub, *["x"] * 59, channel="busy")
        sink.reads = True
        sink.read_all()
        await hub.pass_seconds(0.3)

        assert slow.state is State.LIVE
        assert sink.data() == wanted


async def test_unstored_events_reach_open_streams_only() -> None:
    async with manual_hub() as hub:
        _, listening = join(hub)
        ids = await publish(hub, "1")
        await publish(hub, "typing", store=False)
        await hub.flush()
        _, late = join(hub, cursor=ids[0])
        await publish(hub, "2")
        await hub.flush()
        _, after_unstored = join(hub, cursor=listening.ids()[-2])
        await hub.flush()

        assert listening.data() == ["1", "typing", "2"]
        assert late.data() == ["2"]
        assert after_unstored.data() == ["2"], "its position is a cursor like any other"
        assert hub.statistics.resets == {"too-old": 0, "log-lost": 0, "unknown-id": 0, "restarted": 0}


async def test_control_event_during_a_replay_carries_the_position_replayed_so_far() -> None:
    async with manual_hub(round_bytes=10_000) as hub:
        (start,) = await publish(hub, "start")
        ids = await publish(hub, *["x" * 30_000 for _ in range(20)])
        slow, sink = join(hub, cursor=start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        engine_of(hub).registry.send(slow, "stream-expiring", {})

        assert slow.state is State.REPLAYING
        assert Position.parse(sink.ids()[-1]) == slow.sent
        assert sink.ids()[-1] == ids[len(sink.data()) - 2]


@pytest.mark.parametrize("reason", [CloseReason.DRAINED, CloseReason.EXPIRED])
async def test_d11_stream_that_ends_while_it_replays_is_sent_no_id_above_what_it_received(reason: CloseReason) -> None:
    """Its last control event had the id of the last finished round: a client that resumed from it lost the rest."""
    async with running_hub(round_bytes=10_000) as hub:
        join(hub, "kim")
        (start,) = await publish(hub, "start")
        wanted = [f"{number} " + "x" * 1_000 for number in range(100)]
        await publish(hub, *wanted)
        await hub.flush()
        slow, sink = join(hub, cursor=start, sink=FakeSink(reads=False))
        await until(lambda: sink.backlog > 10_000)
        received = sink.data()

        if reason is CloseReason.DRAINED:
            await hub.drain(0.01)
        else:
            engine_of(hub).registry.end(slow, reason)
        _, resumed = join(hub, cursor=sink.ids()[-1])
        await until(lambda: len(received) + len(resumed.data()) >= 100)

        assert 0 < len(received) < 100
        assert slow.reason is reason and f"event: stream-{'drain' if reason == 'drained' else 'expired'}" in sink.text
        assert Position.parse(sink.ids()[-1]) == slow.sent
        assert received + resumed.data() == wanted
        assert sum(hub.statistics.resets.values()) == 0


async def test_hub_waits_until_it_reaches_a_cursor_ahead_of_it() -> None:
    async with manual_hub() as hub:
        await publish(hub, "1")
        ahead = engine_of(hub).head._replace(sequence=engine_of(hub).head.sequence + 1)

        async def far_head() -> str:
            return str(ahead)

        hub.broker.head = far_head  # type: ignore[method-assign]
        claims = Claims("alex", ("chat",))
        reaching = asyncio.create_task(hub.prepare(claims, Start(str(ahead))))
        await asyncio.sleep(0.02)
        assert not reaching.done()
        await publish(hub, "2")
        await asyncio.wait_for(reaching, 1)

        assert join(hub, cursor=str(ahead))[1].data() == []
        far = str(ahead._replace(sequence=99))
        await asyncio.wait_for(hub.prepare(claims, Start(far)), 1)
        assert join(hub, cursor=far)[1].data() == ['{"reason":"log-lost"}']


@pytest.mark.parametrize("seed", range(20))
async def test_clients_cut_off_again_and_again_miss_nothing_and_receive_nothing_twice(seed: int) -> None:
    """D4, D10 at a small scale: subscribers leave and come back at any moment of a round."""
    chance = random.Random(seed)
    async with manual_hub(round_bytes=500) as hub:
        clients: list[tuple[Subscriber, FakeSink, list[str]]] = []
        for _ in range(150):
            one, sink = join(hub)
            clients.append((one, sink, []))
        for number in range(60):
            await publish(hub, f"{number}")
            for index in chance.sample(range(len(clients)), 10):
                one, sink, received = clients[index]
                sink.lose()
                received += sink.data()
                one, sink = join(hub, cursor=sink.ids()[-1])
                clients[index] = one, sink, received
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        await hub.flush()

        for _, sink, received in clients:
            assert received + sink.data() == [f"{number}" for number in range(60)]
