"""Opens many streams in one process: `listeners.py PORT TOKEN COUNT`.

The data of each event must begin with the time at which it was sent. Prints `open` when all streams are open. For each
line on stdin, prints how many events the streams have received (each number once) and the 99th percentile of the
latencies since the line before.
"""

from __future__ import annotations

import asyncio
import sys
import time

EVENT = b"\ndata: 1"
"""How each event begins, as its data is a time. The data of the hub's own frames is JSON."""


class Listener(asyncio.Protocol):
    def __init__(self, request: bytes, group: Group) -> None:
        self.request = request
        self.group = group
        self.count = 0
        self.is_open = False
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        if not self.is_open and b"stream-hello" in data:
            self.is_open = True
            self.group.opened()
        parts = data.split(EVENT)
        now = time.time()
        for part in parts[1:-1]:
            self.group.latencies.append(now - float(b"1" + part[:16]))
        self.count += len(parts) - 1
        last = parts[-1]
        if len(parts) > 1 and len(last) >= 16:
            self.group.latencies.append(now - float(b"1" + last[:16]))
            self.rest = last[-len(EVENT) + 1 :]
        elif len(parts) > 1:
            self.count -= 1
            self.rest = EVENT + last
        else:
            self.rest = last[-len(EVENT) + 1 :]


class Group:
    def __init__(self, count: int) -> None:
        self.missing = count
        self.all_open = asyncio.Event()
        self.latencies: list[float] = []

    def opened(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.all_open.set()


async def main(port: int, token: str, count: int) -> None:
    loop = asyncio.get_running_loop()
    group = Group(count)
    request = f"GET /events/?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    streams = []
    for _ in range(count):
        _, stream = await loop.create_connection(lambda: Listener(request, group), "127.0.0.1", port)
        streams.append(stream)
    await group.all_open.wait()
    say("open")
    while await loop.run_in_executor(None, sys.stdin.readline):
        latencies = sorted(group.latencies) or [0.0]
        group.latencies.clear()
        counts = ",".join(str(number) for number in {stream.count for stream in streams})
        say(f"{counts} {latencies[int(len(latencies) * 0.99)]:.6f}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
