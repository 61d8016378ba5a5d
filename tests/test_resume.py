"""Coming back: exactly what was missed, joined to what is live, or word that it can't be said."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import until
from engines import engine_of
from fakes import FakeSink
from hub_settings import hub_settings
from ssehub.claims import Claims
from ssehub.errors import InvalidRequest
from ssehub.fanout.resume import Start
from ssehub.fanout.subscriber import State, Subscriber
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.testing import ManualHub

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def hub_of(**settings: Any) -> AsyncIterator[ManualHub]:
    async with ManualHub(**hub_settings(**settings)) as hub:
        yield hub


def join(
    hub: Hub, cursor: str | None = None, *channels: str, sink: FakeSink | None = None, user: str = "alex", **start: Any
) -> tuple[Subscriber, FakeSink]:
    sink = sink or FakeSink()
    return hub.attach(Claims(user, channels or ("chat",)), sink, Start.parse(cursor, **start)), sink


async def emit(hub: Hub, *data: str, channel: str = "chat", **fields: Any) -> list[str]:
    return [await hub.publish(channel=channel, user_id="*", data=text, **fields) for text in data]


async def test_what_was_missed_comes_first_then_what_is_live() -> None:
    async with hub_of() as hub:
        ids = await emit(hub, "1", "2", "3")
        _, sink = join(hub, ids[0])
        await emit(hub, "4")
        await hub.flush()

        assert sink.data() == ["2", "3", "4"]
        assert sink.ids()[:3] == ids, "the first frame's id is what the client has had, never more"


async def test_resume_in_the_middle_of_a_round_repeats_and_leaves_out_nothing() -> None:
    async with hub_of() as hub:
        for _ in range(300):
            join(hub)
        ids = await emit(hub, "1")
        await until(lambda: engine_of(hub).is_writing)
        _, first = join(hub, ids[0])
        ids += await emit(hub, "2")
        _, second = join(hub, ids[0])
        _, third = join(hub, ids[1])
        await emit(hub, "3")
        await hub.flush()

        assert first.data() == ["2", "3"]
        assert second.data() == ["2", "3"]
        assert third.data() == ["3"]


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [("1-0.zzzzzzzz", "log-lost"), ("garbage", "unknown-id"), ("x" * 1_000_000, "unknown-id"), ("OLD", "too-old")],
)
@pytest.mark.parametrize("on_reset", [None, "replay"])
async def test_reset_says_why_and_goes_on(cursor: str, reason: str, on_reset: str | None) -> None:
    async with hub_of(history_events=2) as hub:
        ids = await emit(hub, "1", "2", "3", "4")
        _, sink = join(hub, {"OLD": ids[0]}.get(cursor, cursor), on_reset=on_reset)
        await emit(hub, "5")
        await hub.flush()

        retained = ["3", "4"] if on_reset else []
        assert sink.data() == [f'{{"reason":"{reason}"}}', *retained, "5"]
        hello, reset, *_ = sink.text.split("\n\n")
        assert hello == ": ok", "an id before the reset would hide the loss from a client that is cut between them"
        assert f"id: {ids[1] if on_reset else ids[3]}" in reset.split("\n")
        assert hub.statistics.resets[reason] == 1


@pytest.mark.parametrize(
    ("since", "data"),
    [("earliest", ["1", "2", "3"]), ("last:2", ["2", "3"]), ("last:99", ["1", "2", "3"]), ("ID", ["2", "3"])],
)
async def test_first_connection_with_a_past(since: str, data: list[str]) -> None:
    async with hub_of() as hub:
        ids = await emit(hub, "1", "2", "3")
        await emit(hub, "other", channel="elsewhere")
        _, sink = join(hub, since={"ID": ids[0]}.get(since, since))
        _, with_cursor = join(hub, ids[1], since="earliest")
        await emit(hub, "4")
        await hub.flush()

        assert sink.data() == [*data, "4"]
        assert with_cursor.data() == ["3", "4"]


@pytest.mark.parametrize("since", ["", "latest", "last:", "last:0", "last:-1", "last:x", "last:9999999999", "last:²"])
def test_since_that_says_nothing_is_refused(since: str) -> None:
    with pytest.raises(InvalidRequest, match="use earliest, last:10, or a position"):
        Start.parse(None, since)
    with pytest.raises(InvalidRequest, match="use replay"):
        Start.parse(None, None, "")


async def test_the_new_token_decides_what_is_replayed() -> None:
    async with hub_of() as hub:
        start = (await emit(hub, "start"))[0]
        await emit(hub, "chat")
        await emit(hub, "news", channel="news")
        await hub.publish(channel="chat", user_id="kim", data="for kim")

        assert join(hub, start)[1].data() == ["chat"]
        assert join(hub, start, "news")[1].data() == ["news"]
        assert join(hub, start, "chat", "news", user="kim")[1].data() == ["chat", "news", "for kim"]


async def test_long_replay_is_given_as_it_is_taken() -> None:
    async with hub_of(round_bytes=10_000, max_backlog_bytes=200_000) as hub:
        start = (await emit(hub, "start"))[0]
        wanted = [f"{number} " + "x" * 1_000 for number in range(300)]
        await emit(hub, *wanted)
        subscriber, sink = join(hub, start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        taken_at_once = len(sink.data())
        await emit(hub, "live")
        await hub.flush()
        largest = 0
        while subscriber.state is State.REPLAYING:
            largest = max(largest, sink.backlog)
            sink.take_all()
            await hub.pass_seconds(0.3)
        sink.reads = True
        sink.take_all()
        await emit(hub, "later")
        await hub.flush()

        assert taken_at_once < 80 and largest < 80_000
        assert sink.data() == [*wanted, "live", "later"]


async def test_replay_that_history_overtakes_is_told_there_and_then() -> None:
    async with hub_of(round_bytes=10_000, history_events=100) as hub:
        start = (await emit(hub, "start"))[0]
        await emit(hub, *[f"{number} " + "x" * 1_000 for number in range(99)])
        subscriber, sink = join(hub, start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        given = len(sink.data())
        last = await emit(hub, *["y" * 1_000 for _ in range(100)])
        sink.reads = True
        sink.take_all()
        await hub.pass_seconds(0.3)
        await emit(hub, "live")
        await hub.flush()

        assert subscriber.state is State.LIVE
        assert sink.data()[given:] == ['{"reason":"too-old"}', "live"]
        assert sink.ids()[-2] == last[-1]


async def test_unstored_events_reach_who_listens_and_nobody_later() -> None:
    async with hub_of() as hub:
        _, listening = join(hub)
        ids = await emit(hub, "1")
        await emit(hub, "typing", store=False)
        await hub.flush()
        _, late = join(hub, ids[0])
        await emit(hub, "2")
        await hub.flush()
        _, after_unstored = join(hub, listening.ids()[-2])
        await hub.flush()

        assert listening.data() == ["1", "typing", "2"]
        assert late.data() == ["2"]
        assert after_unstored.data() == ["2"], "its position is a cursor like any other"
        assert hub.statistics.resets == {"too-old": 0, "log-lost": 0, "unknown-id": 0}


async def test_heartbeats_of_who_catches_up_carry_what_it_was_given() -> None:
    async with hub_of(round_bytes=10_000) as hub:
        start = (await emit(hub, "start"))[0]
        ids = await emit(hub, *["x" * 30_000 for _ in range(20)])
        subscriber, sink = join(hub, start, sink=FakeSink(reads=False))
        await asyncio.sleep(0.01)
        engine_of(hub).registry.send(subscriber, "stream-expiring", {})

        assert subscriber.state is State.REPLAYING
        assert Position.parse(sink.ids()[-1]) == subscriber.sent
        assert sink.ids()[-1] == ids[len(sink.data()) - 2]


async def test_a_cursor_ahead_of_this_hub_is_waited_for() -> None:
    async with hub_of() as hub:
        await emit(hub, "1")
        ahead = engine_of(hub).head._replace(sequence=engine_of(hub).head.sequence + 1)

        async def far_head() -> str:
            return str(ahead)

        hub.broker.head = far_head  # type: ignore[method-assign]
        reaching = asyncio.create_task(hub.reach(str(ahead)))
        await asyncio.sleep(0.02)
        assert not reaching.done()
        await emit(hub, "2")
        await asyncio.wait_for(reaching, 1)

        assert join(hub, str(ahead))[1].data() == []
        await asyncio.wait_for(hub.reach(str(ahead._replace(sequence=99))), 1)
        assert join(hub, str(ahead._replace(sequence=99)))[1].data() == ['{"reason":"log-lost"}']


async def test_reading_on_in_python() -> None:
    async with hub_of() as hub:
        ids = await emit(hub, "1", "2", "3")
        async with hub.subscribe(channel="chat", user_id="alex", cursor=ids[1]) as messages:
            assert [(await anext(messages)).data] == ["3"]
        async with hub.subscribe(channel="chat", user_id="alex", since="last:2") as messages:
            assert [(await anext(messages)).data for _ in range(2)] == ["2", "3"]
        assert (await hub.record(channel="chat", user_id="alex", since="earliest")).messages[0].data == "1"


@pytest.mark.parametrize("seed", range(20))
async def test_kicked_again_and_again_nothing_is_missed_or_doubled(seed: int) -> None:
    """D4, D10 in small: subscribers leave and come back at any moment of a round."""
    chance = random.Random(seed)
    async with hub_of(round_bytes=500) as hub:
        clients: list[tuple[Subscriber, FakeSink, list[str]]] = []
        for _ in range(150):
            subscriber, sink = join(hub)
            clients.append((subscriber, sink, []))
        for number in range(60):
            await emit(hub, f"{number}")
            for index in chance.sample(range(len(clients)), 10):
                subscriber, sink, had = clients[index]
                sink.lose()
                had += sink.data()
                subscriber, sink = join(hub, sink.ids()[-1])
                clients[index] = subscriber, sink, had
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        await hub.flush()

        for _, sink, had in clients:
            assert had + sink.data() == [f"{number}" for number in range(60)]
