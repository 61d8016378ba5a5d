"""Clients that watch a run as a page would, cut off at any byte, until they have its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from urllib.parse import urlencode

from streams import decode, unchunked

COMES_BACK = ("stream-busy", "stream-drain")
PAUSE_SECONDS = 0.05
"""How long a client waits that found no hub, or was told to come back."""


class Viewer:
    """Shows what a page would, and comes back with its last event id whenever it was cut off."""

    def __init__(self, chance: random.Random, name: str, token: str) -> None:
        self._chance = chance
        self._query = urlencode({"run": name, "token": token, "wait": "30"})
        self.last_id = ""
        self.data: list[str] = []
        self.ends: list[str] = []
        self.connections = 0

    async def watch(self, port: int, *, lets_through: bool = False) -> bool:
        """Connect once, and read at most so many bytes; return True if the client need not come back.

        With `lets_through` it reads to the end.
        """
        self.connections += 1
        most = 10**9 if lets_through else self._chance.choice([150, 400, 1_000, 5_000, 50_000])
        size = self._chance.randrange(most)
        headers = ["Connection: close", *([f"Last-Event-ID: {self.last_id}"] if self.last_id else [])]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            "\r\n".join([f"GET /events/?{self._query} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()
        )
        received = b""
        try:
            async with asyncio.timeout(20):
                while len(received) < size:
                    part = await reader.read(min(size - len(received), self._chance.choice([10, 100, 1_000, 65_536])))
                    if not part:
                        break
                    received += part
        except ConnectionError:  # the hub was killed
            pass
        finally:
            writer.transport.abort()
        return self._show(received)

    async def watch_to_the_end(self, port: Callable[[], int], most_connections: int = 400) -> None:
        """Connect to a hub at one of its ports again and again, until it says that there is nothing more."""
        while self.connections < most_connections:
            try:
                if await self.watch(port(), lets_through=self.connections > 60):
                    return
            except ConnectionError:
                await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError("the client was never told that the run has ended")

    def _show(self, received: bytes) -> bool:
        head, _, rest = received.partition(b"\r\n\r\n")
        if b" 204 " in head.split(b"\r\n")[0]:
            return True
        for event in decode(unchunked(rest)):
            self.last_id = event.id or self.last_id
            if event.event == "stream-finished":
                self.ends.append(event.data)
            elif event.event == "message":
                self.data.append(event.data)
            elif event.event not in COMES_BACK:
                raise AssertionError(event)
        return False
