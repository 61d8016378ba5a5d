"""Searching for the last events of a stream with patterns: exact, and never long in one pass of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import SECRET, until
from fakes import FakeSink
from hubs import join, publish, running_hub
from ssehub import Hub, Tokens, create_client_app
from ssehub.claims import Claims
from ssehub.event import Event
from ssehub.fanout.resume import PART_EVENTS, Start
from ssehub.subscription import MessageReader

pytestmark = pytest.mark.anyio


class Passes:
    """Counts the passes of the event loop inside `async with`."""

    async def __aenter__(self) -> Passes:
        self.count = 0
        self._task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


async def test_search_for_the_last_events_of_a_pattern_leaves_the_loop_to_others_and_is_exact() -> None:
    async with running_hub(history_events=10_500) as hub:
        await publish(hub, "1", "2", "3")
        for _ in range(10):
            await hub.publish_events([Event(("busy",), ("*",), "x")] * 1_000)
        claims, start = Claims("alex", patterns=("ch*",)), Start.parse(None, "last:2")
        async with Passes() as passes:
            found, other = await asyncio.gather(hub.prepare(claims, start), hub.prepare(claims, start))
        await publish(hub, "4")
        sink = FakeSink()
        hub.attach(claims, sink, found)
        await until(lambda: len(sink.data()) == 3)

        assert passes.count >= 2 * 10_000 / PART_EVENTS - 2
        assert other == found
        assert sink.data() == ["2", "3", "4"]

        _, unsearched = join(hub, patterns=("ch*",), since="last:2")
        await until(lambda: len(unsearched.data()) == 2)
        assert unsearched.data() == ["3", "4"]


async def test_search_is_for_streams_that_need_it() -> None:
    async with running_hub() as hub:
        await publish(hub, "1", "2", "3")
        last, cursor = Start.parse(None, "last:2"), Start.parse("mine")

        assert await hub.prepare(Claims("alex", ("chat",)), last) == last
        assert await hub.prepare(Claims("alex", patterns=("ch*",)), cursor) == cursor
        assert (await hub.prepare(Claims("alex", patterns=("ch*",)), last)).last_after is not None
        assert (await hub.prepare(Claims("alex", tuple(f"{n}" for n in range(101))), last)).last_after is not None


@pytest.mark.parametrize("opens", ["python", "browser"])
async def test_streams_are_opened_after_the_search(opens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.fanout.resume.PART_EVENTS", 10)
    async with running_hub() as hub:
        await publish(hub, "wanted")
        await hub.publish_events([Event(("busy",), ("*",), "x")] * 1_000)
        async with Passes() as passes:
            if opens == "python":
                async with hub.subscribe(patterns=["ch*"], user_id="alex", since="last:1") as messages:
                    received = (await anext(messages)).data
            else:
                received = await first_data(hub)

        assert passes.count > 90
        assert received == "wanted"


async def first_data(hub: Hub) -> str:
    """Return the data of the first event that a browser receives which asks for the last one of a pattern."""
    token = Tokens(SECRET).issue("alex", [], patterns=["ch*"], expires_at=9e9)
    app = create_client_app(hub, tokens=Tokens(SECRET), drains_on_exit=False)
    scope = {"type": "http", "method": "GET", "path": "/events/", "headers": [], "http_version": "1.1"}
    query = {"query_string": f"since=last:1&token={token}".encode()}
    body = bytearray()
    left = asyncio.Event()

    async def send(message: Any) -> None:
        body.extend(message.get("body", b""))

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    streaming = asyncio.create_task(app({**scope, **query}, receive, send))
    await until(lambda: b"data: wanted" in body)
    left.set()
    await streaming
    return next(message.data for message in MessageReader().read(body.decode()))
