"""Nodes without hubs: Redis brokers whose followers record what they are told, and what is in Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker_worlds import RecordingFollower
from conftest import until
from proxy import Mode, Proxy
from redis_nodes import PROBE_SECONDS
from redis_servers import RedisServer
from ssehub.brokers.redis import RedisBroker
from ssehub.errors import Unavailable
from ssehub.event import Event
from ssehub.position import Position
from ssehub.publication import Publication
from ssehub.revocations import Revocation
from ssehub.settings import RedisOptions

TABLE = "{ssehub}:revocations"


class Peer(RecordingFollower):
    """A broker on the Redis at `url`, and its follower. Its revocations are those of tokens, by name."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._newest: Position | None = None
        """Of the newest revocation of this node."""
        self.broker = RedisBroker(url, options=RedisOptions(broker_probe_seconds=PROBE_SECONDS))

    @property
    def keys(self) -> set[str]:
        return set(self.broker.revocations.keys())

    async def revoke(self, *names: str) -> str:
        position = await self.broker.revoke([Revocation(jti=name) for name in names])
        self._newest = Position.parse(position)
        return position

    async def revoke_until_stored(self, name: str) -> None:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(Unavailable):
                    await self.revoke(name)
                    return
                await asyncio.sleep(0.02)

    async def take_back(self, *names: str) -> str:
        return await self.broker.take_back([f"jti:{name}" for name in names])

    async def publish(self, data: str) -> None:
        await self.broker.publish([Publication([Event(("chat",), ("*",), data=data)])])

    async def has(self, *names: str, seconds: float = 10.0) -> None:
        """Return when these tokens, and no others, are revoked here, and the log has been read so far."""
        keys = {f"jti:{name}" for name in names}
        await until(lambda: self.keys == keys and (self._newest is None or self.position >= self._newest), seconds)


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Peer]:
    peer = Peer(url)
    async with peer.broker.run(peer):
        yield peer


@asynccontextmanager
async def two_peers(server: RedisServer) -> AsyncIterator[tuple[Peer, Peer, Proxy]]:
    """Two nodes, and the proxy between the first and Redis."""
    with Proxy(server.port) as proxy:
        try:
            async with running(f"redis://127.0.0.1:{proxy.port}") as a, running(server.url) as b:
                yield a, b, proxy
        finally:
            proxy.mode = Mode.PASS


def stored(server: RedisServer) -> set[str]:
    """Return the fields of the table in Redis."""
    return set(server.command("HKEYS", TABLE))


async def until_stored(server: RedisServer, *names: str) -> None:
    """Return when the table in Redis has these tokens, and no others."""
    await until(lambda: stored(server) == {f"jti:{name}" for name in names}, 20)
