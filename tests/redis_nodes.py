"""Nodes of a deployment within one test: hubs on one Redis, each with a recorded stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from conftest import until
from proxy import Mode, Proxy
from redis_servers import RedisServer
from ssehub.brokers.redis import RedisBroker
from ssehub.claims import Claims
from ssehub.errors import BrokerUnavailable
from ssehub.fanout.resume import Start
from ssehub.hub import Hub
from ssehub.settings import RedisOptions, Streams
from ssehub.subscription import Message
from ssehub.testing import Recording

PROBE_SECONDS = 1.0


class Node:
    """A hub on the Redis at `url`, and a recorded stream on its channel `chat`.

    Its clock is `ahead_seconds` ahead of Redis'.
    """

    def __init__(self, url: str, ahead_seconds: float = 0.0) -> None:
        self.ahead_seconds = ahead_seconds
        self.broker = RedisBroker(url, options=RedisOptions(broker_probe_seconds=PROBE_SECONDS), now=self.now)
        self.hub = Hub(self.broker, streams=Streams(heartbeat_seconds=0.2), now=self.now)
        self.stream = Recording()

    def now(self) -> float:
        return time.time() + self.ahead_seconds

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
        """Open another stream, which reconnects with `cursor` if given."""
        stream = Recording()
        stream.subscriber = self.hub.attach(Claims("alex", ("chat",)), stream, Start.parse(cursor))
        return stream

    async def publish(self, data: str, **fields: Any) -> str:
        return await self.hub.publish(channel="chat", user_id="*", data=data, **fields)

    async def publish_until_stored(self, data: str, seconds: float = 10.0) -> str:
        """Publish with an idempotency key, again after each failure, as a publisher would."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await self.publish(data, idempotency_key=data)
                except BrokerUnavailable:
                    await asyncio.sleep(0.02)

    @property
    def received(self) -> list[tuple[str, str]]:
        """The position and data of each event that the stream has received."""
        return [(message.id, message.data) for message in events_of(self.stream)]

    @property
    def data(self) -> list[str]:
        return [data for _, data in self.received]

    @property
    def resets(self) -> list[str]:
        """The reasons of the resets that the stream has received."""
        return resets_of(self.stream)

    async def has(self, *data: str, seconds: float = 10.0) -> None:
        """Return when `data` are the last events that the stream has received."""
        await until(lambda: self.data[-len(data) :] == list(data), seconds)

    async def is_ready(self, seconds: float = 10.0) -> None:
        await until(lambda: self.broker.problem is None, seconds)

    async def is_not_ready(self, seconds: float = 10.0) -> str:
        """Return the broker's problem when there is one."""
        await until(lambda: self.broker.problem is not None, seconds)
        return str(self.broker.problem)


def events_of(stream: Recording) -> list[Message]:
    return [message for message in stream.messages if not message.type.startswith("stream-")]


def resets_of(stream: Recording) -> list[str]:
    return [message.json()["reason"] for message in stream.messages if message.type == "stream-reset"]


@asynccontextmanager
async def two_nodes(url: str, first_url: str | None = None) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes on one Redis; the first may reach it by another URL."""
    async with Node(first_url or url) as a, Node(url) as b:
        yield a, b


@asynccontextmanager
async def behind_proxy(server: RedisServer) -> AsyncIterator[tuple[Node, Node, Proxy]]:
    """Two nodes, and the proxy between the first one and Redis."""
    with Proxy(server.port) as proxy:
        try:
            async with two_nodes(server.url, f"redis://127.0.0.1:{proxy.port}") as (a, b):
                yield a, b, proxy
        finally:
            proxy.mode = Mode.PASS
