"""Many clients that reconnect, as a process of its own: `crowd.py PORT TOKEN COUNT KIND [CA]`.

The data of each event must be a sequence number. A client whose stream ends reconnects with its last event id: at a
random time within `SPREAD_SECONDS`, or, if KIND is `native`, when `retry:` says, as browsers do. With the file of a CA
they connect over TLS. Prints `open` when all streams are open, and what they have received, as JSON, for each line on
stdin.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import RunningHub, wait_until

SPREAD_SECONDS = 1.0
LAST_CHUNK = b"\r\n0\r\n\r\n"
NATIVE_HEADERS = b"Accept: text/event-stream\r\nCache-Control: no-cache\r\nSec-Fetch-Mode: cors\r\n"


@dataclass
class Report:
    """What the clients of a crowd have received, all together."""

    open: int
    """Streams that are open now."""
    connected: int
    """Streams that were opened so far."""
    least: int
    most: int
    """The least and the most events that one client has received since it was last reset."""
    last: int
    """The lowest sequence number among the last events of all clients."""
    faults: int
    """Events that were missing, repeated or out of order, except after a reset."""
    resets: int
    pings: int
    busy: int
    """How often a client was told by the hub to come back later."""
    away: int
    """How often a proxy told it so in the hub's place."""
    retry_seconds: float
    """The longest time after which a client was told to come back last."""


class Client(asyncio.Protocol):
    retry_seconds = 0.0

    def __init__(self, group: Group) -> None:
        self.group = group
        self.is_open = False
        self.rest = b""
        self.last_event_id = b""
        self.last = 0
        self.count = 0

    def connect(self) -> None:
        self.group.loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self.group.loop.create_connection(lambda: self, "127.0.0.1", self.group.port, ssl=self.group.tls)
        except OSError:
            self.retry()

    def retry(self) -> None:
        self.group.loop.call_later(SPREAD_SECONDS * random.random(), self.connect)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.rest = b""
        cursor = b"Last-Event-ID: %b\r\n" % self.last_event_id if self.last_event_id else b""
        transport.write(self.group.request + cursor + b"\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open:
            self.is_open = False
            self.group.open -= 1
        self.retry()

    def data_received(self, data: bytes) -> None:
        self.group.pings += data.count(b": ping\n") + data.count(b"event: stream-position\n")
        frames = (self.rest + data).split(b"\n\n")
        self.rest = frames.pop()
        for frame in frames:
            self.read(frame)

    def read(self, frame: bytes) -> None:
        """Read one frame. Lines that are not fields, such as the headers of chunks, are left out."""
        fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line)
        if not self.is_open and b"stream-hello" in frame:
            self.is_open = True
            self.group.open += 1
            self.group.connected += 1
            self.group.all_open.set() if self.group.open == len(self.group.clients) else None
        self.last_event_id = fields.get(b"id", self.last_event_id)
        if fields.get(b"event") == b"stream-reset":
            self.group.resets += 1
            self.last = 0
        elif b"data" in fields and b"event" not in fields:
            number = int(fields[b"data"])
            self.group.faults += bool(self.last) and number != self.last + 1
            self.last = number
            self.count += 1


class NativeClient(Client):
    """Reconnects as a browser's EventSource does: after every end of a response, as late as `retry:` says."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.retry_seconds = 3.0
        self.transport: asyncio.BaseTransport | None = None
        self.tail = b""

    def retry(self) -> None:
        self.group.loop.call_later(self.retry_seconds, self.connect)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.tail = transport, b""
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.tail = (self.tail + data)[-len(LAST_CHUNK) :]
        if self.tail == LAST_CHUNK and self.transport is not None:
            self.transport.close()

    def read(self, frame: bytes) -> None:
        super().read(frame)
        if found := re.search(rb"^retry: (\d+)$", frame, re.MULTILINE):
            self.retry_seconds = int(found[1]) / 1000
        if b"event: stream-busy\n" in frame and self.transport is not None:
            is_of_a_proxy = b"\r\ncontent-length: " in frame.lower()
            self.group.away += is_of_a_proxy
            self.group.busy += not is_of_a_proxy
            self.transport.close()


class Group:
    def __init__(self, port: int, token: str, count: int, kind: str, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self.loop = asyncio.get_running_loop()
        self.port = port
        self.request = f"GET /events/?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
        if kind == "native":
            self.request += NATIVE_HEADERS
        self.open = self.connected = self.faults = self.resets = self.pings = self.busy = self.away = 0
        self.all_open = asyncio.Event()
        make = NativeClient if kind == "native" else Client
        self.clients = [make(self) for _ in range(count)]

    def report(self) -> dict[str, float]:
        counts = [client.count for client in self.clients]
        return {
            "open": self.open,
            "connected": self.connected,
            "least": min(counts),
            "most": max(counts),
            "last": min(client.last for client in self.clients),
            "faults": self.faults,
            "resets": self.resets,
            "pings": self.pings,
            "busy": self.busy,
            "away": self.away,
            "retry_seconds": max(client.retry_seconds for client in self.clients),
        }


async def main(port: int, token: str, count: int, kind: str, ca: str | None = None) -> None:
    group = Group(port, token, count, kind, ssl.create_default_context(cafile=ca) if ca else None)
    for client in group.clients:
        client.connect()
        await asyncio.sleep(0.0005)
    await group.all_open.wait()
    say("open")
    while await group.loop.run_in_executor(None, sys.stdin.readline):
        say(json.dumps(group.report()))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Crowd:
    """The process, seen from a test."""

    def __init__(self, port: int, token: str, count: int, kind: str = "plain", ca: Path | None = None) -> None:
        command = [sys.executable, __file__, str(port), token, str(count), kind, *([str(ca)] if ca else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_open(self) -> None:
        assert self._line() == "open"

    def report(self) -> Report:
        assert self._process.stdin
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        values: dict[str, Any] = json.loads(self._line())
        return Report(**values)

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


@contextmanager
def crowds(hub: RunningHub, *counts: int, ca: Path | None = None) -> Iterator[list[Crowd]]:
    """Open that many streams, each number in a process of its own, over TLS if there is a CA."""
    token = hub.token(exp=86_400)
    with opened([Crowd(hub.port, token, count, ca=ca) for count in counts]) as running:
        yield running


@contextmanager
def native_crowds(token: str, counts: Mapping[int, int]) -> Iterator[list[Crowd]]:
    """Open streams like those of browsers: as many as `counts` says, by port, each number in a process of its own."""
    with opened([Crowd(port, token, count, "native") for port, count in counts.items()]) as running:
        yield running


@contextmanager
def opened(running: list[Crowd]) -> Iterator[list[Crowd]]:
    try:
        for crowd in running:
            crowd.wait_until_open()
        yield running
    finally:
        for crowd in running:
            crowd.stop()


def wait_for_last(running: list[Crowd], number: int, seconds: float = 30.0) -> None:
    """Wait until the last event of every client is this one."""
    wait_until(lambda: min(crowd.report().last for crowd in running) == number, seconds)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
