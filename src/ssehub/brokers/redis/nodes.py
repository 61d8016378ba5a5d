"""The nodes that share a log in Redis: each has a key with a time to live, which it renews.

The ids of the nodes are in a sorted set beside these keys, because `SCAN` would visit every key that Redis has. An id
whose key has expired is removed by the node that sees that first.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import NamedTuple, Self, cast

from ...node import Node, Nodes
from .connection import CONNECTION_ERRORS, PERMISSION_ERRORS, Connection, Server, explain, keep_connected
from .state import Health

logger = logging.getLogger("ssehub.brokers.redis")

BEAT_SECONDS = 5.0
"""How often a node renews its key, and looks for the others."""
EXPIRY_SECONDS = 15
MAX_NODES = 1_000
LEAVE_SECONDS = 1.0


class NodeKeys(NamedTuple):
    """The names of the keys."""

    all: str
    prefix: str

    @classmethod
    def of(cls, prefix: str) -> Self:
        return cls(f"{{{prefix}}}:nodes", f"{{{prefix}}}:node:")


class RedisNodes:
    """Announces this node to the others that share the log at `server`, and reads which of them run.

    `known` returns what was read last: it does not wait for Redis.
    """

    def __init__(self, server: Server, this: Node, timeout_seconds: float) -> None:
        self._server = server
        self._this = this
        self._timeout_seconds = timeout_seconds
        self._keys = NodeKeys.of(server.prefix)
        self._health = Health("the other nodes", server.shown)
        self._others: list[Node] | None = None

    @property
    def known(self) -> Nodes:
        if self._health.problem is not None or self._others is None:
            return Nodes(self._this, None, self._health.problem or "the other nodes have not been read yet")
        return Nodes(self._this, self._others)

    async def run(self) -> None:
        """Renew the key, and look for the others, until cancelled."""
        await keep_connected(self._server, self._timeout_seconds, self._health, self._use)

    async def leave(self) -> None:
        """Remove the key, if Redis can be reached."""
        if self._health.problem is not None or self._others is None:
            return
        try:
            async with asyncio.timeout(LEAVE_SECONDS), self._server.connect(LEAVE_SECONDS) as connection:
                await connection.command("DEL", self._keys.prefix + self._this.id)
                await connection.command("ZREM", self._keys.all, self._this.id)
        except CONNECTION_ERRORS as exc:
            logger.info("this node stays listed for %d s: %s", EXPIRY_SECONDS, explain(exc))

    async def _use(self, connection: Connection) -> None:
        while True:
            try:
                ids = await self._announce(connection)
                self._others = await self._read(connection, ids)
            except PERMISSION_ERRORS as exc:  # which another connection would get, too
                self._health.report(explain(exc))
            else:
                self._health.clear()
            await asyncio.sleep(BEAT_SECONDS)

    async def _announce(self, connection: Connection) -> list[bytes]:
        """Renew the key, and return the ids of all nodes."""
        text = json.dumps(self._this.to_json(), ensure_ascii=False)
        *_, ids = await connection.commands(
            ("SET", self._keys.prefix + self._this.id, text, "EX", EXPIRY_SECONDS),
            ("ZADD", self._keys.all, 0, self._this.id),
            ("ZRANGE", self._keys.all, 0, MAX_NODES - 1),
        )
        return cast(list[bytes], ids)

    async def _read(self, connection: Connection, ids: list[bytes]) -> list[Node]:
        """Return the nodes with these ids, but this one, in the order of their hosts."""
        texts = await connection.command("MGET", *[self._keys.prefix.encode() + id for id in ids])
        gone = [id for id, text in zip(ids, texts, strict=True) if text is None]
        if gone:
            await connection.command("ZREM", self._keys.all, *gone)
        found = [node for text in texts if text is not None and (node := _parsed(text)) is not None]
        return sorted([node for node in found if node.id != self._this.id], key=lambda node: (node.host, node.pid))


def _parsed(text: bytes) -> Node | None:
    """Return the node that `text` describes, None if another program, or another version, has written it."""
    try:
        return Node.parse(text)
    except ValueError as exc:
        logger.debug("a node that can't be read is left out: %s", exc)
        return None
