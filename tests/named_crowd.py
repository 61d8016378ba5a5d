"""Many clients with a token each, as a process of its own: `named_crowd.py PORT`, with the tokens as lines on stdin.

After a token and a space, a line may have the address that a proxy would say the client has.
The data of each event must be its number and, by the monotonic clock, when it was published. After an empty line the
clients connect. When all streams are open this prints `open`, and for each further line, as JSON, what they have
received so far, or since a line with `again`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Received(NamedTuple):
    """What all clients together have received."""

    streams: int
    """Those that are open."""
    deliveries: int
    faults: int
    """Events that were not above the one before on the same stream."""
    median: float
    p99: float
    """How old half, and all but a hundredth, of the events were at most when they arrived, in seconds."""


class Client(asyncio.Protocol):
    def __init__(self, group: Group, token: str) -> None:
        self.group = group
        self.token = token
        self.is_open = False
        self.last = 0
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        token, _, address = self.token.partition(" ")
        forwarded = f"X-Forwarded-For: {address}\r\n" if address else ""
        request = f"GET /events/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n{forwarded}\r\n"
        transport.write(request.encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.group.streams -= self.is_open

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        *frames, self.rest = (self.rest + data).split(b"\n\n")
        for frame in frames:
            if b"event: stream-hello\n" in frame:
                self.is_open = True
                self.group.streams += 1
            elif b"event: " not in frame and (found := frame.partition(b"data: ")[2]):
                number, published_at = found.split(b"\n")[0].split()
                self.group.faults += int(number) <= self.last
                self.last = int(number)
                self.group.latencies.append(now - float(published_at))


class Group:
    def __init__(self) -> None:
        self.streams = self.faults = 0
        self.latencies: list[float] = []

    async def connect(self, port: int, tokens: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        for token in tokens:
            await loop.create_connection(lambda token=token: Client(self, token), "127.0.0.1", port)  # type: ignore[misc]  # a lambda with a default
        while self.streams < len(tokens):  # noqa: ASYNC110  # each stream would have to be waited for
            await asyncio.sleep(0.01)

    def report(self) -> Received:
        latencies = sorted(self.latencies) or [0.0]
        count = len(self.latencies)
        return Received(self.streams, count, self.faults, latencies[count // 2], latencies[count * 99 // 100])


async def main(port: int) -> None:
    group, loop = Group(), asyncio.get_running_loop()
    tokens = iter(sys.stdin.readline, "\n")
    await group.connect(port, [token.strip() for token in tokens])
    say("open")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == "again\n":
            group.latencies.clear()
        say(json.dumps(group.report()))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class NamedCrowd:
    """The process, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def write(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def report(self, line: str = "report") -> Received:
        """Return what the clients have received."""
        self.write(f"{line}\n")
        return Received(*json.loads(self.read()))

    def start_again(self) -> None:
        """Forget what the clients have received."""
        self.report("again")


@contextmanager
def named_crowd(port: int, tokens: Sequence[str]) -> Iterator[NamedCrowd]:
    """Open a stream with each of `tokens`."""
    command = [sys.executable, __file__, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            crowd = NamedCrowd(process)
            crowd.write("".join(f"{token}\n" for token in tokens) + "\n")
            assert crowd.read() == "open"
            yield crowd
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
