"""`ssehub.testing`: a hub whose time stands still, and streams that record."""

from __future__ import annotations

import asyncio

import pytest

from ssehub.settings import Streams
from ssehub.testing import ManualHub

pytestmark = pytest.mark.anyio


async def test_recording_has_what_was_published(sse_hub: ManualHub) -> None:
    recorded = await sse_hub.record(channel="chat", user_id="alex")

    await sse_hub.publish(channel="chat", user_id="alex", data="for alex", type="note")
    await sse_hub.publish(channel="chat", user_id="sam", data="for sam")
    await sse_hub.flush()

    assert [(message.type, message.data) for message in recorded.messages] == [("note", "for alex")]


async def test_time_passes_only_by_pass_seconds(sse_hub: ManualHub) -> None:
    recorded = await sse_hub.record(channel="chat", user_id="alex", expires_at=sse_hub.clock.wall + 3600)

    await sse_hub.pass_seconds(60)
    heartbeats = recorded.text.count(": ping")
    await sse_hub.pass_seconds(3600 - 61)
    before_the_end = recorded.reason
    await sse_hub.pass_seconds(2)

    assert heartbeats == 4
    assert before_the_end is None
    assert recorded.reason == "expired"
    assert [message.type for message in recorded.messages] == ["stream-expiring", "stream-expired"]
    await sse_hub.aclose()


async def test_pass_seconds_sends_heartbeats_on_every_stream() -> None:
    hub = ManualHub(streams=Streams(heartbeat_seconds=0.1))
    streams = [await hub.record(channel="chat", user_id="alex") for _ in range(150)]

    await asyncio.sleep(0.3)
    assert not any(": ping" in stream.text for stream in streams)
    await hub.pass_seconds(0.2)

    assert all(": ping" in stream.text for stream in streams)
    await hub.aclose()
