"""Deliveries per CPU second (workload W1) and memory per idle stream (workload M) of a hub started for the purpose.

W1: 1,000 subscribers of one channel, 1,000 events of 100 bytes, each POSTed when the last has been answered.
M: 10,000 subscribers that hear nothing; how much the hub's resident memory grew, divided by their number.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

SECRET = "the secret of the benchmark has 32 bytes or more"
EVENT = b"\ndata: "
TICKS = os.sysconf("SC_CLK_TCK")


class Hub:
    """A hub in a process of its own, and what it costs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, control_port: int) -> None:
        self.process = process
        self.port = port
        self.control_port = control_port

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def running_hub() -> Iterator[Hub]:
    command = [sys.executable, "-m", "ssehub", "serve", "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, "SSEHUB_SECRET": SECRET}, stderr=log)
        try:
            ports: list[str] = []
            while len(ports) < 2 and process.poll() is None:
                time.sleep(0.05)
                ports = re.findall(r"listening for \S+ on http://127.0.0.1:(\d+)/", Path(log.name).read_text())
            yield Hub(process, *map(int, ports))
        finally:
            process.terminate()
            process.wait()


class Listener(asyncio.Protocol):
    """Counts the events of one stream."""

    def __init__(self, request: bytes, load: Load) -> None:
        self.request = request
        self.load = load
        self.tail = b""
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        data = self.tail + data
        self.tail = data[1 - len(EVENT) :]
        self.load.events += data.count(EVENT)
        if not self.is_open and b": ok" in data:
            self.is_open = True
            self.load.opened += 1


def post(connection: socket.socket, path: str, body: bytes) -> bytes:
    """POST a form and return the body of the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    connection.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body))
    answer = b""
    while True:
        answer += connection.recv(65_536)
        head_part, _, rest = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head_part)
        if length and len(rest) >= int(length[1]):
            assert answer.startswith(b"HTTP/1.1 200"), answer
            return rest


def publish(port: int, count: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        body = b"userId=*&channel=chat&data=" + b"x" * size
        for _ in range(count):
            post(connection, "/emit/", body)


class Load:
    """Streams of one channel."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.opened = 0
        self.events = 0

    async def listen(self, count: int) -> None:
        with socket.create_connection(("127.0.0.1", self.hub.control_port)) as connection:
            token = post(connection, "/token/", b"userId=alex&channel=chat&exp=3600")
        request = b"GET /events/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n\r\n" % token
        loop = asyncio.get_running_loop()
        for wanted in range(1, count + 1):
            await loop.create_connection(lambda: Listener(request, self), "127.0.0.1", self.hub.port)
            if wanted % 100 == 0 or wanted == count:
                await self.until(partial(self.has_opened, wanted))

    def has_opened(self, count: int) -> bool:
        return self.opened == count

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.001)


async def deliveries_per_cpu_second(hub: Hub) -> float:
    load = Load(hub)
    await load.listen(1_000)
    before = hub.cpu_seconds()
    publisher = multiprocessing.get_context("spawn").Process(target=publish, args=(hub.control_port, 1_000, 100))
    publisher.start()
    await load.until(lambda: load.events >= 1_000_000)
    publisher.join()
    return load.events / (hub.cpu_seconds() - before)


async def bytes_per_idle_stream(hub: Hub) -> float:
    before = hub.memory_bytes()
    await Load(hub).listen(10_000)
    return (hub.memory_bytes() - before) / 10_000


WORKLOADS = {
    "W1": (deliveries_per_cpu_second, "deliveries per CPU second"),
    "M": (bytes_per_idle_stream, "bytes per idle stream"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help="W1, M (default: both)")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in arguments.workloads:
        measure, unit = WORKLOADS[name]
        figures = []
        for _ in range(arguments.runs):
            with running_hub() as hub:
                figures.append(asyncio.run(measure(hub)))
        spread = f"{min(figures):,.0f} to {max(figures):,.0f}"
        sys.stdout.write(f"{name}: {statistics.median(figures):,.0f} {unit} ({spread}, {len(figures)} runs)\n")


if __name__ == "__main__":
    main()
