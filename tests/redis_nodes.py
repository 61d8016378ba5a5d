"""Nodes of a deployment inside a test: hubs on one Redis, each with a stream that is recorded."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from conftest import until
from ssehub.brokers import Limits
from ssehub.brokers.redis import RedisBroker
from ssehub.claims import Claims
from ssehub.errors import BrokerUnavailable
from ssehub.fanout.resume import Start
from ssehub.hub import Hub
from ssehub.settings import Streams
from ssehub.subscription import Message
from ssehub.testing import Recording

PROBE_SECONDS = 1.0


class Node:
    """A hub on the Redis at `url`, and a stream on its channel `chat`."""

    def __init__(self, url: str, limits: Limits | None = None, **options: Any) -> None:
        self.broker = RedisBroker(url, limits, **{"probe_seconds": PROBE_SECONDS, **options})
        self.hub = Hub(self.broker, streams=Streams(heartbeat_seconds=0.2))
        self.stream = Recording()

    async def __aenter__(self) -> Self:
        await self.hub.__aenter__()
        await until(lambda: self.hub.is_following)
        self.stream = self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.wait_for(self.hub.__aexit__(kind, exc, traceback), 5)

    def listen(self, cursor: str | None = None) -> Recording:
        """One more stream, which comes back with `cursor`."""
        stream = Recording()
        stream.subscriber = self.hub.attach(Claims("alex", ("chat",)), stream, Start.parse(cursor))
        return stream

    async def publish(self, data: str, **fields: Any) -> str:
        return await self.hub.publish(channel="chat", user_id="*", data=data, **fields)

    async def publish_until_stored(self, data: str, seconds: float = 10.0) -> str:
        """As a publisher would that tries again with an idempotency key."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await self.publish(data, idempotency_key=data)
                except BrokerUnavailable:
                    await asyncio.sleep(0.02)

    @property
    def had(self) -> list[tuple[str, str]]:
        """The events that its stream was given, each with its position."""
        return [(message.id, message.data) for message in events_of(self.stream)]

    @property
    def data(self) -> list[str]:
        return [data for _, data in self.had]

    @property
    def resets(self) -> list[str]:
        return resets_of(self.stream)

    async def has(self, *data: str, seconds: float = 10.0) -> None:
        """Returns when its stream has been given `data` at last."""
        await until(lambda: self.data[-len(data) :] == list(data), seconds)

    async def is_ready(self, seconds: float = 10.0) -> None:
        await until(lambda: self.broker.problem is None, seconds)

    async def is_not_ready(self, seconds: float = 10.0) -> str:
        await until(lambda: self.broker.problem is not None, seconds)
        return str(self.broker.problem)


def events_of(stream: Recording) -> list[Message]:
    return [message for message in stream.messages if not message.type.startswith("stream-")]


def resets_of(stream: Recording) -> list[str]:
    return [message.json()["reason"] for message in stream.messages if message.type == "stream-reset"]
