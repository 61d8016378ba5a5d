"""The Pub/Sub connection of a node, on which it hears of the runs that are followed there.

A channel belongs to the name of a run. Redis says when it has subscribed the connection: from then on every message
arrives, in order, until the connection is lost. What happened before that has to be looked up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from ...errors import BrokerUnavailable
from .connection import Connection, Server, keep_connected
from .run_wire import RunKeys
from .state import Health
from .wire import NOT_REDIS

SLICE_NAMES = 500
"""Names in one command."""
SLICE_MESSAGES = 50
"""Messages that are handled before the loop goes on: some milliseconds, if they are large."""


class Channels:
    """The task that hears of runs. Built within `RedisBroker.run`, in the event loop that it works in.

    `on_message` is called with a name and a message, `on_subscribed` with a name whose messages arrive from now on, and
    `on_lost` when none arrive any more.
    """

    def __init__(
        self,
        server: Server,
        probe_seconds: float,
        *,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.health = Health("messages about runs", server.shown)
        self._server = server
        self._probe_seconds = probe_seconds
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0
        """When something last arrived, by the time of the event loop."""
        self._wanted: set[str] = set()
        self._requested: set[str] = set()
        """Names that Redis has been asked for on this connection."""
        self._changed: set[str] = set()
        """Names of which Redis may have to be told, one way or the other."""
        self._unanswered: dict[str, int] = {}
        """How often Redis has been asked for a name without having answered."""
        self._wake = asyncio.Event()

    def subscribe(self, name: str) -> None:
        """Hear of `name`, which `on_subscribed` will be called with, again after each loss of the connection."""
        self._wanted.add(name)
        self._changed.add(name)
        self._wake.set()

    def unsubscribe(self, name: str) -> None:
        self._wanted.discard(name)
        self._changed.add(name)
        self._wake.set()

    async def run(self) -> None:
        """Hear of runs, connecting again after errors, until cancelled."""
        await keep_connected(self._server, self._probe_seconds, self.health, self._work)

    async def _work(self, connection: Connection) -> None:
        keys = RunKeys.of(self._server.prefix, connection.database)
        await check_channels(connection, keys)
        self._requested.clear()
        self._unanswered.clear()
        self._changed = set(self._wanted)
        self._heard_at = self._loop.time()
        self._wake.set()
        tasks = (
            asyncio.create_task(self._request(connection, keys.channel)),
            asyncio.create_task(self._receive(connection, len(keys.channel.encode()))),
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()
            self._on_lost()

    async def _request(self, connection: Connection, channel: str) -> None:
        """Tell Redis which names are wanted, and ask for a sign of life if there is nothing to tell."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._probe_seconds / 2):
                    await self._wake.wait()
            self._wake.clear()
            if self._loop.time() - self._heard_at > 2 * self._probe_seconds:
                raise TimeoutError
            if not self._changed:
                await connection.send("PING")
            while self._changed:
                names = [self._changed.pop() for _ in range(min(SLICE_NAMES, len(self._changed)))]
                added = [name for name in names if name in self._wanted and name not in self._requested]
                removed = [name for name in names if name not in self._wanted and name in self._requested]
                for name in added:
                    self._unanswered[name] = self._unanswered.get(name, 0) + 1
                self._requested.update(added)
                self._requested.difference_update(removed)
                if removed:
                    await connection.send("UNSUBSCRIBE", *[channel + name for name in removed])
                if added:
                    await connection.send("SUBSCRIBE", *[channel + name for name in added])

    async def _receive(self, connection: Connection, skip: int) -> None:
        handled = 0
        while True:
            reply = await connection.receive()
            self._heard_at = self._loop.time()
            if self.health.problem is not None:
                self.health.clear()
            if type(reply) is list:
                self._handle(reply, skip)
            handled += 1
            if handled % SLICE_MESSAGES == 0:
                await asyncio.sleep(0)

    def _handle(self, reply: list[Any], skip: int) -> None:
        try:
            kind, channel, content = reply
        except ValueError:
            return  # the answer to PING
        if kind == b"message":
            self._on_message(channel[skip:].decode(), content)
        elif kind == b"subscribe":
            name = channel[skip:].decode()
            left = self._unanswered.pop(name, 1) - 1
            if left:
                self._unanswered[name] = left
            elif name in self._requested:
                self._on_subscribed(name)
        elif kind != b"unsubscribe":
            raise BrokerUnavailable(NOT_REDIS)


async def check_channels(connection: Connection, keys: RunKeys) -> None:
    """Subscribe to a channel that is never used, and unsubscribe. Raises RedisError if this user may not."""
    await connection.command("SUBSCRIBE", keys.channel + "/")
    await connection.command("UNSUBSCRIBE", keys.channel + "/")
