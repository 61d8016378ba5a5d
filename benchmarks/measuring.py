"""How the workloads are measured: runs of the load generators on servers that take turns, and single streams."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import generators
from generators import SSEHUB_BENCH, SSELOAD, WRK, Load, Report
from peers import SECRET, Running

from ssehub import Tokens

BUSY_SHARE = 0.7
"""A generator that used more of a core may have been the bottleneck: such a row is no result."""
MOST_DELAY = 1.05
"""Events with a rate that took longer against what was planned were not published at that rate: no result either."""
PAIRS = 5
NUMBERED = "numbered"
"""Names the runs in which no two requests have the same head."""
FEW_PAIRS = 2
"""For what takes long, or varies little."""

Figures = dict[str, list[float]]
FIGURES: Mapping[str, Callable[[Report], float]] = {
    "deliveries": lambda report: float(report["deliveries_per_cpu_second"]),
    "events": lambda report: float(report["events_per_cpu_second"]),
    "connections": lambda report: float(report["connections_per_cpu_second"]),
    "requests": lambda report: float(report["requests_per_cpu_second"]),
    "published": lambda report: float(report["published_per_second"]),
    "bytes": lambda report: float(report["bytes_per_subscriber"]),
    "wake-ups": lambda report: float(report["wakeups_per_second"]),
    "p50": lambda report: float(report["latency_ms"]["p50"]),
    "p99": lambda report: float(report["latency_ms"]["p99"]),
    "CPU": lambda report: 1e6 / report["events_per_cpu_second"],
    "core": lambda report: 100 * report["server_cpu_seconds"] / report["seconds"],
}
"""The figures of a report: work per CPU second, milliseconds, microseconds of CPU time per event, percent of a core."""


class Bench:
    """Runs the load generators, and keeps how busy they were and how much longer they took than planned.

    `name` says what is measured. The names of its figures are the same, or begin with it and a colon.
    """

    def __init__(self) -> None:
        self.generators: dict[str, str] = {}
        self.shares: dict[str, float] = {}
        """The highest share of the time in which the generator used its core or, as `sseload` says, waited for it."""
        self.delays: dict[str, float] = {}
        """The longest duration against the planned one, where events have a rate."""

    def sseload(self, name: str, server: Running, load: Load) -> Report:
        report = generators.sseload(server, load)
        self._keep(name, SSELOAD, report, waiting=report["own_wait_share"])
        if load.rate:
            self.delays[name] = max(self.delays.get(name, 0), delay(report))
        return report

    def wrk(
        self, name: str, server: Running, connections: int, body: str | None = None, headers: Sequence[str] = ()
    ) -> Report:
        return self._keep(name, WRK, generators.wrk(server, connections, 4, body, headers))

    def ssehub_bench(self, name: str, server: Running, arguments: str) -> Report:
        return self._keep(name, SSEHUB_BENCH, generators.ssehub_bench(server, arguments))

    def _keep(self, name: str, generator: str, report: Report, waiting: float = 0.0) -> Report:
        self.generators[name] = generator
        self.shares[name] = max(self.shares.get(name, 0.0), report["own_cpu_share"] + waiting)
        return report


def delay(report: Report) -> float:
    """Return how long events with a rate took against what was planned."""
    return float(report["seconds"] / report["planned_seconds"])


def is_late(report: Report) -> bool:
    return delay(report) > MOST_DELAY


def figure(report: Report, name: str) -> float:
    return FIGURES[name](report)


def figures(report: Report, names: Sequence[str]) -> dict[str, float]:
    return {name: figure(report, name) for name in names}


def in_turn(
    names: Sequence[str], one_run: Callable[[str], Mapping[str, float]], most: int, pairs: int | None
) -> Figures:
    """Run each name `most` times, or `pairs` times if that is less; the runs take turns: A B A B …

    Each figure F of the run of N is kept as `N: F`.
    """
    found: Figures = {}
    for _ in range(min(pairs or most, most)):
        for name in names:
            for what, value in one_run(name).items():
                found.setdefault(f"{name}: {what}", []).append(value)
                say(f"  {name}: {what} {value:,.4g}")
    return found


@contextmanager
def stalled_subscriber(server: Running) -> Iterator[None]:
    """Keep a stream open from which nothing is read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address_of(server))
        sock.sendall(stream_request("user-0", "bench-0"))
        yield


def first_frame_milliseconds(server: Running) -> float:
    """Return the time from connecting to the first frame of a stream."""
    request = stream_request("newcomer", "elsewhere")
    began = time.monotonic()
    with socket.create_connection(address_of(server), 5) as sock:
        sock.sendall(request)
        received = b""
        while b"stream-hello" not in received:
            received += sock.recv(4096)
    return (time.monotonic() - began) * 1000


def address_of(server: Running) -> tuple[str, int]:
    host, port = server.url.rpartition("/")[2].split(":")
    return host, int(port)


def stream_request(user: str, channel: str) -> bytes:
    token = Tokens(SECRET).issue(user, [channel], expires_at=time.time() + 3600)
    return f"GET /events/?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
