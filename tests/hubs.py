"""Hubs for tests: their settings by name, streams that record, and the engine of a running hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fakes import FakeSink
from ssehub.claims import Claims
from ssehub.fanout.engine import Engine
from ssehub.fanout.resume import Start
from ssehub.fanout.subscriber import Subscriber
from ssehub.hub import Hub
from ssehub.settings import Backpressure, Memory, Retention, Settings, StreamLimits, Streams, settings_of
from ssehub.testing import ManualClock, ManualHub

GROUPS: dict[str, type[Settings]] = {
    "backpressure": Backpressure,
    "memory": Memory,
    "retention": Retention,
    "stream_limits": StreamLimits,
    "streams": Streams,
}


def hub_settings(**given: Any) -> dict[str, Any]:
    """Return keywords for `Hub`: each setting in its group. Other keywords, such as `now`, stay as they are."""
    keywords: dict[str, Any] = {}
    for keyword, group in GROUPS.items():
        names = {setting.name for setting in settings_of(group)}
        keywords[keyword] = group(**{name: given.pop(name) for name in names & given.keys()})
    return keywords | given


@asynccontextmanager
async def running_hub(clock: ManualClock | None = None, **settings: Any) -> AsyncIterator[Hub]:
    """Run a hub that ticks in real time. With `clock`, it reads the time from that, and sleeps over no tick."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if clock is not None:
            settings.update(now=lambda: clock.wall, monotonic=lambda: clock.monotonic)
            monkeypatch.setattr("ssehub.fanout.upkeep.REST_SECONDS", 0.0)
        async with Hub(**hub_settings(**settings)) as hub:
            yield hub


@asynccontextmanager
async def manual_hub(**settings: Any) -> AsyncIterator[ManualHub]:
    """Run a hub that ticks only in `pass_seconds`."""
    async with ManualHub(**hub_settings(**settings)) as hub:
        yield hub


def engine_of(hub: Hub) -> Engine:
    """Return the engine of a hub that follows its log. `Hub` does not show it."""
    engine = hub._engine
    assert engine is not None
    return engine


def join(
    hub: Hub,
    user_id: str = "alex",
    *channels: str,
    patterns: tuple[str, ...] = (),
    sink: FakeSink | None = None,
    expires_at: float | None = None,
    cursor: str | None = None,
    since: str | None = None,
    on_reset: str | None = None,
    **token: Any,
) -> tuple[Subscriber, FakeSink]:
    """Open a stream, on `chat` if no channel or pattern is named. `token` are other fields of `Claims`."""
    sink = sink or FakeSink()
    channels = channels or (() if patterns else ("chat",))
    claims = Claims(user_id, channels, expires_at, patterns=patterns, **token)
    return hub.attach(claims, sink, Start.parse(cursor, since, on_reset)), sink


async def publish(hub: Hub, *data: str, channel: str = "chat", **fields: Any) -> list[str]:
    """Publish an event for everyone on `channel` for each of `data`; return their ids."""
    return [await hub.publish(channel=channel, user_id="*", data=text, **fields) for text in data]
