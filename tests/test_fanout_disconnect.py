"""The command `disconnect` in the log: which streams it ends, and when."""

from __future__ import annotations

from typing import Any

import pytest

from fakes import FakeSink
from hubs import join, manual_hub, publish
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason

pytestmark = pytest.mark.anyio

STREAMS = [("alex", "chat"), ("alex", "news"), ("kim", "chat")]


async def test_disconnect_ends_the_named_streams_after_everything_published_before() -> None:
    async with manual_hub() as hub:
        (_, here), (_, there), (_, kim) = join(hub, "alex"), join(hub, "alex", "news", "chat"), join(hub, "kim")

        await publish(hub, "before")
        await hub.disconnect(user_id="alex")
        await publish(hub, "after")
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
async def test_disconnect_names_users_channels_or_both(command: dict[str, Any], ended: list[str]) -> None:
    async with manual_hub() as hub:
        sinks = {f"{user} {channel}": join(hub, user, channel)[1] for user, channel in STREAMS}

        await hub.disconnect(**command)
        await hub.flush()

        assert [name for name, sink in sinks.items() if sink.is_closed] == ended


async def test_disconnect_spares_later_streams_and_ends_more_than_one_slice() -> None:
    async with manual_hub() as hub:
        sinks = [join(hub)[1] for _ in range(250)]  # more than one slice

        await hub.disconnect(channel="chat", retry=0)
        _, newcomer = join(hub)
        await publish(hub, "after")
        await hub.flush()

        assert all(sink.is_closed and sink.data() == ["{}"] for sink in sinks)
        assert newcomer.data() == ["after"] and not newcomer.is_closed


async def test_disconnect_ends_a_stream_that_is_still_replaying() -> None:
    async with manual_hub(round_bytes=500) as hub:
        (first, *_) = await publish(hub, *[str(number) for number in range(50)])
        _, sink = join(hub, cursor=first)

        await hub.disconnect(channel="chat")
        await publish(hub, "secret")
        await hub.flush()

        assert sink.is_closed and "secret" not in sink.data()


async def test_disconnect_goes_on_past_streams_that_have_left_or_that_raise() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b"stream-revoked" in chunk.data:
                raise RuntimeError("the transport is closed")

    async with manual_hub() as hub:
        (_, gone), (_, broken), (_, sink) = join(hub), join(hub, sink=Broken()), join(hub)

        await hub.disconnect(channel="chat")
        gone.lose()
        await hub.flush()

        assert broken.is_aborted and sink.is_closed
        others = dict.fromkeys([reason.value for reason in CloseReason], 0)
        assert hub.statistics.endings == {**others, "disconnected": 2, "revoked": 1}


async def test_disconnect_is_not_replayed() -> None:
    async with manual_hub() as hub:
        (position,) = await publish(hub, "1")
        await hub.disconnect(channel="chat")
        await publish(hub, "2")

        assert join(hub, cursor=position)[1].data() == ["2"]
