"""Streams for Python code: what an iterator yields, when it ends, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from conftest import until
from hubs import hub_settings, manual_hub, publish
from ssehub import Hub
from ssehub.errors import InvalidRequest
from ssehub.event import Event
from ssehub.subscription import Message, MessageReader

pytestmark = pytest.mark.anyio


async def test_subscription_yields_what_a_browser_would_be_shown() -> None:
    async with Hub() as hub, hub.subscribe(channel=["chat", "news"], user_id="alex") as messages:
        await hub.publish(channel="chat", user_id="alex", data={"n": 1}, type="note")
        await hub.publish(channel="news", user_id="*", data="two\nlines", id="own")
        await hub.publish(channel="chat", user_id="sam", data="not for alex")
        await hub.publish_events([Event(("chat",), ("*",), payload="data:raw\r\rid: 7\rdata: second")])
        shown = [await anext(messages) for _ in range(4)]

    assert [(message.type, message.data) for message in shown] == [
        ("note", '{"n":1}'),
        ("message", "two\nlines"),
        ("message", "raw"),
        ("message", "second"),
    ]
    assert shown[0].json() == {"n": 1}
    assert [message.id for message in shown[1:]] == ["own", "own", "7"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        pytest.param("id: 1\ndata: a\n\n", [Message("message", "a", "1")], id="event"),
        pytest.param(": ok\nid: 1\n\ndata: a\n\n", [Message("message", "a", "1")], id="id-without-data-counts"),
        pytest.param(
            "id: 1\ndata: a\n\ndata: b\n\n",
            [Message("message", "a", "1"), Message("message", "b", "1")],
            id="id-stays",
        ),
        pytest.param("event: note\ndata\n\n", [Message("note", "", "")], id="empty-data"),
        pytest.param("event: note\n\ndata: a\n\n", [Message("message", "a", "")], id="type-without-data-is-lost"),
        pytest.param("data:a\ndata:  b\n\n", [Message("message", "a\n b", "")], id="lines-and-one-space"),
        pytest.param(
            "data: a\r\n\r\ndata: b\r\r",
            [Message("message", "a", ""), Message("message", "b", "")],
            id="all-line-ends",
        ),
        pytest.param("id: a\0b\ndata: x\n\n", [Message("message", "x", "")], id="id-with-NUL-is-ignored"),
        pytest.param(": ping\n\n", [], id="comment"),
    ],
)
def test_message_reader_reads_as_the_html_standard_demands(text: str, messages: list[Message]) -> None:
    assert list(MessageReader().read(text)) == messages


async def test_subscription_resumes_after_a_cursor_or_at_past_events() -> None:
    async with manual_hub() as hub:
        ids = await publish(hub, "1", "2", "3")
        async with hub.subscribe(channel="chat", user_id="alex", cursor=ids[1]) as messages:
            assert [(await anext(messages)).data] == ["3"]
        async with hub.subscribe(channel="chat", user_id="alex", since="last:2") as messages:
            assert [(await anext(messages)).data for _ in range(2)] == ["2", "3"]
        assert (await hub.record(channel="chat", user_id="alex", since="earliest")).messages[0].data == "1"


async def test_subscription_ends_with_the_hub_and_has_the_reason() -> None:
    async with Hub() as hub:
        messages = hub.subscribe(channel="chat", user_id="alex")
        async with messages:
            pass
        late = hub.subscribe(channel="chat", user_id="alex")
        reading = asyncio.create_task(anext(late))
        await until(lambda: hub.statistics.subscribers == 1)

    assert (await reading).type == "stream-drain"
    assert [message async for message in late] == []
    assert (messages.reason, late.reason) == ("disconnected", "drained")


async def test_subscription_that_nobody_reads_ends_as_slow() -> None:
    async with Hub(**hub_settings(max_backlog_bytes=10_000, grace_seconds=0.1)) as hub:
        messages = hub.subscribe(channel="chat", user_id="alex")
        async with messages:
            for _ in range(20):
                await publish(hub, "x" * 10_000)
            await until(lambda: messages.reason == "slow")


async def test_subscription_ends_after_its_loop_is_left_or_it_is_deleted() -> None:
    async with Hub() as hub:
        await publish(hub, "first")
        async for message in hub.subscribe(channel="chat", user_id="alex", since="earliest"):
            assert message.data == "first"
            assert hub.statistics.subscribers == 1
            break
        await until(lambda: hub.statistics.subscribers == 0)

        given_up = hub.subscribe(channel="chat", user_id="alex")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(given_up), 0.01)
        assert hub.statistics.subscribers == 1
        del given_up
        await until(lambda: hub.statistics.subscribers == 0)


async def test_subscription_that_two_tasks_enter_at_once_is_one_stream() -> None:
    """Each task waited for the hub to start and then opened a stream, of which one was never closed."""
    hub = Hub()
    messages = hub.subscribe(channel="chat", user_id="alex")

    await asyncio.gather(messages.__aenter__(), messages.__aenter__())
    await publish(hub, "1", "2")
    shown = [(await anext(messages)).data for _ in range(2)]

    assert hub.statistics.connected == 1
    assert shown == ["1", "2"]
    await hub.aclose()


async def test_closed_subscription_still_yields_what_has_arrived() -> None:
    async with Hub() as hub:
        async with hub.subscribe(channel="chat", user_id="alex") as messages:
            await publish(hub, "1", "2")
            await hub.flush()

        assert [message.data async for message in messages] == ["1", "2"]
        assert hub.statistics.subscribers == 0


async def test_subscription_that_was_never_entered_leaves_nothing() -> None:
    async with Hub() as hub:
        messages = hub.subscribe(channel="chat", user_id="alex")
        messages.close()
        del messages
        gc.collect()

        assert hub.statistics.connected == 0


@pytest.mark.parametrize("given", [{"cursor": 5}, {"since": 5}, {"expires_at": float("nan")}])
async def test_subscription_refuses_invalid_arguments(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"{next(iter(given))} must be"):
        Hub().subscribe(channel="chat", user_id="alex", **given)
