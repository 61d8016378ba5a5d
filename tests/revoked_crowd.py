"""Clients of two nodes whose tokens are revoked, as a process of its own: `revoked_crowd.py PORT,PORT FILE`.

FILE has a token for each user, as JSON. Each user has two streams on each node. A client whose stream ends comes back
until it is answered 401. Prints `open` when all streams are open, and what has become of them for each line on stdin.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STREAMS = 2
"""Streams of each user on each node."""
AGAIN_SECONDS = 0.2
REFUSED_SECONDS = 1.0
"""How long a client waits while its node does not run."""


class Client(asyncio.Protocol):
    def __init__(self, port: int, user: str, token: str) -> None:
        self.port = port
        self.user = user
        self.token = token
        self.is_open = False
        self.opened_at = self.closed_at = 0.0
        self.revoked_at: float | None = None
        self.refused_at: float | None = None
        self.busy = 0
        self.reads = 0
        self.head = b""
        self.transport: asyncio.WriteTransport | None = None

    def connect(self) -> None:
        asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        except OSError:
            loop.call_later(REFUSED_SECONDS, self.connect)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        self.head = b""
        transport.write(f"GET /events/?token={self.token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if not self.is_open:
            self._read_head(data)
            return
        self.reads += 1
        if b"event: stream-revoked\n" in data:
            self.revoked_at = time.time()
            self._close()

    def _read_head(self, data: bytes) -> None:
        self.head += data
        if b"event: stream-hello\n" in self.head:
            self.is_open = True
            self.opened_at = time.time()
            if b"event: stream-revoked\n" in self.head:
                self.revoked_at = time.time()
                self._close()
        elif self.head.startswith(b"HTTP/1.1 401"):
            self.refused_at = time.time()
            self._close()
        elif b"event: stream-busy\n" in self.head:
            self.busy += 1
            self._close()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open:
            self.is_open = False
            self.closed_at = time.time()
        self.transport = None
        if self.refused_at is None:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self.connect)

    def report(self) -> dict[str, Any]:
        names = ("port", "user", "is_open", "opened_at", "closed_at", "revoked_at", "refused_at", "busy", "reads")
        return {name: getattr(self, name) for name in names}


async def main(ports: list[int], tokens: dict[str, str]) -> None:
    clients = [Client(port, user, token) for user, token in tokens.items() for port in ports * STREAMS]
    for client in clients:
        client.connect()
        await asyncio.sleep(0.001)
    while not all(client.is_open for client in clients):  # noqa: ASYNC110  # each may also close meanwhile
        await asyncio.sleep(0.01)
    say("open")
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        say(json.dumps([client.report() for client in clients]))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class RevokedCrowd:
    """The process, seen from a test."""

    def __init__(self, ports: tuple[int, int], tokens: dict[str, str], folder: Path) -> None:
        file = folder / "tokens.json"
        file.write_text(json.dumps(tokens))
        command = [sys.executable, __file__, ",".join(map(str, ports)), str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_open(self) -> None:
        assert self._process.stdout is not None and self._process.stdout.readline() == "open\n"

    def report(self) -> list[dict[str, Any]]:
        """Return what has become of each stream so far. The times are Unix times."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        clients: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return clients

    def __enter__(self) -> RevokedCrowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    asyncio.run(main([int(port) for port in sys.argv[1].split(",")], json.loads(Path(sys.argv[2]).read_text())))
