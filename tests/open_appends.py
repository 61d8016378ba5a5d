"""A thousand open appends, and streams that watch their runs, over raw connections."""

from __future__ import annotations

import asyncio
import re
import time
from typing import cast

import psutil

from conftest import RunningHub

APPENDS = 1_000
LIMITS = ("--run-bytes", str(2**33), "--max-runs-bytes", str(2**33))
LINE = b'{"data": "token "}\n'
HEAD = b"\r\n".join(
    [
        b"POST /runs/r%d HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/x-ndjson",
        b"Transfer-Encoding: chunked",
        b"Run-Producer: 0123456789abcdef",
        b"Run-Offset: 0",
        b"Run-Generation: 1",
        b"\r\n",
    ]
)
_SENT_AT = re.compile(rb"data: (\d+)\n")


def chunk(line: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(line), line)


class Appender(asyncio.Protocol):
    """An open append to the run `r<number>`."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.is_paused = False
        self.received = b""

    def itself(self) -> Appender:
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses of it
        self.transport.write(HEAD % self._number)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def append_time(self) -> None:
        """Append an event whose data is the time."""
        self.transport.write(chunk(b'{"data": "%d"}\n' % time.monotonic_ns()))


async def open_appends(hub: RunningHub) -> list[Appender]:
    appenders = [Appender(number) for number in range(APPENDS)]
    for appender in appenders:
        await asyncio.get_running_loop().create_connection(appender.itself, "127.0.0.1", hub.control_port)
    await asyncio.to_thread(hub.wait_for, "ssehub_run_producers", APPENDS)
    return appenders


class Watcher(asyncio.Protocol):
    """Watches the run `r<number>`, and adds how long each event took to `latencies`, in milliseconds."""

    def __init__(self, number: int, token: str, latencies: list[float]) -> None:
        self._request = f"GET /events/?run=r{number}&token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._latencies = latencies
        self.has_ended = False

    def itself(self) -> Watcher:
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._latencies += [(now - int(sent_at)) / 1e6 for sent_at in _SENT_AT.findall(data)]
        self.has_ended = self.has_ended or b"event: stream-finished" in data


async def watch_all(hub: RunningHub, token: str, latencies: list[float]) -> list[Watcher]:
    watchers = [Watcher(number, token, latencies) for number in range(APPENDS)]
    for watcher in watchers:
        await asyncio.get_running_loop().create_connection(watcher.itself, "127.0.0.1", hub.port)
    await asyncio.to_thread(hub.wait_for, "ssehub_watchers", APPENDS)
    return watchers


def processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
