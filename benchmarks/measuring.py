"""How the workloads are measured: runs of `ssehub bench` on servers that take turns, and single streams beside them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peers import SECRET, Running, pinned

from ssehub import Tokens

PAIRS = 5
FEW_PAIRS = 2
"""For SQLite, Redis and the reader, so that all workloads take less than half an hour."""
CPU = "deliveries_per_cpu_second"

Report = dict[str, Any]
Figures = dict[str, list[float]]


class Bench:
    """Runs `ssehub bench`, and keeps the highest CPU share of the load."""

    def __init__(self) -> None:
        self.load_share = 0.0

    def __call__(self, server: Running, arguments: str) -> Report:
        """Return the report of one run; raises RuntimeError if an event was lost, duplicated or reordered."""
        addresses = ["--url", server.url, "--control-url", server.control_url, "--server-pid", str(server.pid)]
        command = [sys.executable, "-m", "ssehub", "bench", "--json", *addresses, *server.arguments, *arguments.split()]
        env = {**os.environ, "SSL_CERT_FILE": str(server.ca)} if server.ca else None
        result = subprocess.run([*pinned(1), *command], capture_output=True, text=True, timeout=300, env=env)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}{result.stdout}")
        report: Report = json.loads(result.stdout)
        self.load_share = max(self.load_share, report["own_cpu_share"])
        return report


def figure(report: Report, name: str) -> float:
    return float(report["latency_ms"]["p50"] if name == "latency_ms" else report[name])


def in_turn(names: Sequence[str], one_run: Callable[[str], float], most: int, pairs: int | None) -> Figures:
    """Return `most` figures for each name, or `pairs` if that is less; the runs take turns: A B A B …"""
    found: Figures = {name: [] for name in names}
    for _ in range(min(pairs or most, most)):
        for name in names:
            found[name].append(one_run(name))
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
