"""A log that is not the one it was, and commands that come through it: what streams are told, in which order."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from conftest import SECRET
from engines import engine_of
from fakes import FakeSink
from hub_settings import hub_settings
from ssehub.brokers import Entry
from ssehub.claims import Claims
from ssehub.errors import InvalidEvent
from ssehub.event import Event
from ssehub.fanout.resume import Start
from ssehub.fanout.subscriber import CloseReason
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.publication import Disconnect, load_entry
from ssehub.testing import ManualHub
from ssehub.tokens import Tokens
from ssehub.web.control import create_control_app

pytestmark = pytest.mark.anyio

OLD, NEW = "oldlog00", "newlog00"


def entries(log: str, *numbers: int) -> list[Entry]:
    return [Entry(Position(number, 0, log), Event(("chat",), ("*",), data=f"{log} {number}")) for number in numbers]


def join(hub: Hub, user: str = "alex", *channels: str, sink: FakeSink | None = None, cursor: str = "") -> FakeSink:
    sink = sink or FakeSink()
    hub.attach(Claims(user, channels or ("chat",)), sink, Start(cursor or None))
    return sink


async def follow(hub: Hub, log: str, *numbers: int) -> None:
    await engine_of(hub).deliver(Position(numbers[-1], 0, log), entries(log, *numbers))
    await hub.flush()


def reasons(sink: FakeSink) -> list[str]:
    return [data for data in sink.data() if "reason" in data]


@pytest.mark.parametrize(("log", "reason"), [(NEW, "log-lost"), (OLD, "too-old")])
async def test_when_the_log_begins_anew_every_stream_is_told_and_gets_what_comes(log: str, reason: str) -> None:
    async with ManualHub() as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        listening, lagging = join(hub), join(hub, sink=FakeSink(reads=False))
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


async def test_what_waits_is_given_out_before_a_stream_is_told() -> None:
    async with ManualHub() as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        sink = join(hub)
        await engine_of(hub).deliver(Position(9_002, 0, OLD), entries(OLD, 9_001, 9_002))

        await engine_of(hub).start_over(Position(9_500, 0, OLD))

        assert sink.data()[-3:] == [f"{OLD} 9001", f"{OLD} 9002", '{"reason":"too-old"}']


async def test_who_is_behind_loses_what_is_held_and_is_told_so() -> None:
    async with ManualHub(**hub_settings(max_backlog_bytes=70_000, round_bytes=40_000)) as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        _, _, sink = join(hub), join(hub), join(hub, sink=FakeSink(reads=False))
        big = Event(("chat",), ("*",), data="x" * 40_000)
        await engine_of(hub).deliver(
            Position(9_005, 0, OLD), [Entry(Position(9_000 + n, 0, OLD), big) for n in range(1, 6)]
        )
        await hub.flush()
        assert hub.statistics.lagging == 1

        await engine_of(hub).start_over(Position(9_500, 0, OLD))
        await follow(hub, OLD, 9_501)
        sink.take_all()

        assert [data if len(data) < 100 else "big" for data in sink.data()] == [
            "big",
            "big",
            '{"reason":"too-old"}',
            f"{OLD} 9501",
        ]
        assert hub.statistics.lagging == 0


async def test_a_replay_that_is_under_way_ends_with_the_reset() -> None:
    async with ManualHub(**hub_settings(round_bytes=1_000)) as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        await follow(hub, OLD, *range(9_001, 9_101))
        sink = join(hub, cursor=f"9000-0.{OLD}")

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
)
async def test_who_comes_back_after_a_new_beginning_gets_what_it_missed_or_is_told(
    cursor: str, expected: list[str]
) -> None:
    async with ManualHub() as hub:
        await engine_of(hub).start_over(Position(9_000, 0, OLD))
        await follow(hub, OLD, 9_001)
        await engine_of(hub).start_over(Position(5_000, 0, NEW))
        await follow(hub, NEW, 5_001)

        assert join(hub, cursor=cursor).data() == expected


async def test_a_sink_that_raises_at_a_new_beginning_ends_itself_only() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Any) -> None:
            if b"stream-reset" in chunk.data:
                raise RuntimeError("the transport is closed")

    async with ManualHub() as hub:
        broken = join(hub, sink=Broken())
        sink = join(hub)

        await engine_of(hub).start_over(Position(5_000, 0, NEW))

        assert broken.is_aborted
        assert reasons(sink) == ['{"reason":"log-lost"}']


# Commands


async def test_disconnect_ends_who_it_names_behind_what_was_published_before() -> None:
    async with ManualHub() as hub:
        here, there, kim = join(hub, "alex"), join(hub, "alex", "news", "chat"), join(hub, "kim")

        await hub.publish(channel="chat", user_id="*", data="before")
        await hub.disconnect(user_id="alex")
        await hub.publish(channel="chat", user_id="*", data="after")
        await hub.flush()

        for sink in (here, there):
            assert sink.data() == ["before", "{}"] and "event: stream-revoked" in sink.text
            retry = int(sink.text.rpartition("retry: ")[2].split()[0])
            assert 600_000 <= retry <= 720_000
            assert sink.is_closed and not sink.is_aborted
        assert kim.data() == ["before", "after"]
        assert hub.statistics.endings["revoked"] == 2


@pytest.mark.parametrize(
    ("command", "ended"),
    [
        ({"user_id": "alex"}, ["alex chat", "alex news"]),
        ({"channel": "chat"}, ["alex chat", "kim chat"]),
        ({"user_id": "*", "channel": "chat"}, ["alex chat", "kim chat"]),
        ({"user_id": "alex", "channel": "chat"}, ["alex chat"]),
        ({"user_id": ["alex", "kim"], "channel": ["chat", "news"]}, ["alex chat", "alex news", "kim chat"]),
        ({"user_id": "nobody"}, []),
        ({"channel": "nothing"}, []),
    ],
)
async def test_a_user_a_channel_or_both_are_named(command: dict[str, Any], ended: list[str]) -> None:
    async with ManualHub() as hub:
        sinks = {f"{user} {channel}": join(hub, user, channel) for user, channel in USERS}

        await hub.disconnect(**command)
        await hub.flush()

        assert [name for name, sink in sinks.items() if sink.is_closed] == ended


USERS = [("alex", "chat"), ("alex", "news"), ("kim", "chat")]


async def test_who_comes_after_the_command_is_served_and_the_rest_of_a_long_list_still_ends() -> None:
    async with ManualHub() as hub:
        sinks = [join(hub) for _ in range(250)]  # more than one slice

        await hub.disconnect(channel="chat", retry=0)
        newcomer = join(hub)
        await hub.publish(channel="chat", user_id="*", data="after")
        await hub.flush()

        assert all(sink.is_closed and sink.data() == ["{}"] for sink in sinks)
        assert newcomer.data() == ["after"] and not newcomer.is_closed


async def test_who_was_there_before_the_command_ends_though_it_was_still_catching_up() -> None:
    async with ManualHub(**hub_settings(round_bytes=500)) as hub:
        first = await hub.publish(channel="chat", user_id="*", data="0")
        for n in range(1, 50):
            await hub.publish(channel="chat", user_id="*", data=f"{n}")
        sink = join(hub, cursor=first)

        await hub.disconnect(channel="chat")
        await hub.publish(channel="chat", user_id="*", data="secret")
        await hub.flush()

        assert sink.is_closed and "secret" not in sink.data()


async def test_who_has_gone_or_can_not_be_told_holds_up_nobody() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Any) -> None:
            if b"stream-revoked" in chunk.data:
                raise RuntimeError("the transport is closed")

    async with ManualHub() as hub:
        gone, broken, sink = join(hub), join(hub, sink=Broken()), join(hub)

        await hub.disconnect(channel="chat")
        gone.lose()
        await hub.flush()

        assert broken.is_aborted and sink.is_closed
        assert hub.statistics.endings == {
            **dict.fromkeys(CloseReason, 0),
            "disconnected": 2,
            "revoked": 1,
        }


async def test_disconnect_is_nothing_to_those_who_come_back() -> None:
    async with ManualHub() as hub:
        position = await hub.publish(channel="chat", user_id="*", data="1")
        await hub.disconnect(channel="chat")
        await hub.publish(channel="chat", user_id="*", data="2")

        assert join(hub, cursor=position).data() == ["2"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "channel is missing: name a user, a channel, or both"),
        ({"userId": "*"}, 400, "channel is missing"),
        ({"userId": ""}, 400, "userId is empty"),
        ({"userId": 5}, 400, "userId must be a string"),
        ({"userId": None}, 400, "userId is null"),
        ({"userId": "a", "retry": -1}, 400, "retry -1 is no number"),
        ({"userId": "a", "data": "x"}, 400, "data"),
        ({"userId": ["a", "b"]}, 200, ""),
    ],
)
async def test_disconnect_over_http(body: dict[str, Any], status: int, says: str) -> None:
    async with ManualHub() as hub:
        app = create_control_app(hub, tokens=Tokens(SECRET))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            answer = await client.post("/disconnect/", json=body)
            form = await client.post("/disconnect", data={"channel": "chat", "retry": "5"})

        assert answer.status_code == status and says in answer.text
        assert (form.status_code, form.text) == (200, "OK")


@pytest.mark.parametrize("entry", [Event(("a",), ("b",), data="x"), Disconnect(("a",), ()), Disconnect((), ("b",), 7)])
def test_what_is_in_the_log_is_read_as_it_was_written(entry: Event | Disconnect) -> None:
    assert load_entry(entry.dump()) == entry


@pytest.mark.parametrize("text", ['{"command":"dance"}', '{"command":"disconnect"}', '{"command":', "{}", "", "[]"])
def test_what_nobody_wrote_is_refused(text: str) -> None:
    with pytest.raises(InvalidEvent):
        load_entry(text)
