"""What requests leave behind: nothing that reference counting does not free, and no memory."""

from __future__ import annotations

import os
import re
import signal
import socket

import httpx
import pytest

from conftest import RunningHub, StartHub, report, wait_until
from streams import RawStream, get

COUNT = 100_000 if "SOAK" in os.environ else 300
"""Requests of each kind."""
BATCH = 100
"""Requests that are sent on one connection, one after the other."""

COUNTING_GARBAGE = """
import gc, signal, sys
from ssehub.cli import main

total = 0

def count(phase, info):
    global total
    total += info.get("collected", 0) if phase == "stop" else 0

def show(*_):
    gc.unfreeze()
    gc.collect()
    sys.stderr.write(f"garbage: {total}\\n")
    sys.stderr.flush()

gc.callbacks.append(count)
signal.signal(signal.SIGUSR1, show)
main()
"""
"""A hub that counts the objects that its garbage collector has found, and shows their number on SIGUSR1."""


def garbage(hub: RunningHub) -> int:
    """Return how many objects the collector of `hub`, which runs COUNTING_GARBAGE, has found so far."""
    before = hub.log.count("garbage: ")
    hub.signal(signal.SIGUSR1)
    wait_until(lambda: len(re.findall(r"garbage: \d+\n", hub.log)) > before)
    return int(re.findall(r"garbage: (\d+)\n", hub.log)[-1])


def post(path: str, body: str, kind: str = "application/x-www-form-urlencoded", method: str = "POST") -> str:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )


JSON = "application/json"
EVENT = '{"userId": "*", "channel": "chat", "data": "hello"}'
ON_CLIENT_PORT = {
    "refused": (get("/events/?token=x"), 401),
    "no-token": (get("/events/"), 401),
    "bad-since": (get("/events/?token={token}&since=nonsense"), 400),
    "head": (get("/events/?token={token}").replace("GET", "HEAD", 1), 200),
    "options": (get("/events/", "Origin: https://a.example").replace("GET", "OPTIONS", 1), 204),
    "preflight": (
        get("/events/", "Origin: https://a.example", "Access-Control-Request-Method: GET").replace("GET", "OPTIONS", 1),
        200,
    ),
    "405": (post("/events/", "a=b"), 405),
    "404": (get("/nothing"), 404),
}
ON_CONTROL_PORT = {
    "emit-form": (post("/emit/", "userId=*&channel=chat&data=hello"), 200),
    "emit-payload": (post("/emit/", "userId=*&channel=chat&payload=data:+hello"), 200),
    "emit-json": (post("/emit/", EVENT, JSON), 200),
    "emit-batch": (post("/emit/", f"[{EVENT}, {EVENT}]", JSON), 200),
    "emit-ndjson": (post("/emit/", f"{EVENT}\n{EVENT}", "application/x-ndjson"), 200),
    "emit-bad-form": (post("/emit/", "userId=*&nonsense=1"), 400),
    "emit-bad-json": (post("/emit/", "{nonsense", JSON), 400),
    "emit-too-large": (
        "POST /emit/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n",
        413,
    ),
    "token": (post("/token/", "userId=alex&channel=chat"), 200),
    "disconnect": (post("/disconnect/", "userId=nobody"), 200),
    "healthz": (get("/healthz"), 200),
    "readyz": (get("/readyz"), 200),
    "metrics": (get("/metrics"), 200),
    "404": (get("/nothing"), 404),
    "405": (get("/emit/"), 405),
    "foreign-host": (get("/metrics").replace("127.0.0.1", "evil.example"), 403),
    "web-page": (post("/emit/", "userId=*").replace("Host:", "Origin: https://evil.example\r\nHost:"), 403),
    "head": (get("/healthz").replace("GET", "HEAD", 1), 200),
}
BROKEN = "GET / HTTP/1.1\r\nbroken header\r\n\r\n"


def send_all(port: int, request: str, status: int, count: int) -> None:
    """Send `request` `count` times, most of them on connections that stay open, and check each response."""
    left = count
    while left:
        with socket.create_connection(("127.0.0.1", port), 10) as connection, connection.makefile("rb") as responses:
            for _ in range(min(left, BATCH)):
                connection.sendall(request.encode())
                left -= 1
                if not read_response(responses, status, has_body=not request.startswith("HEAD")):
                    break


def read_response(responses: socket.SocketIO | object, status: int, *, has_body: bool) -> bool:
    """Read one response, and check its status; return True if the connection stays open."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = responses.readline()  # type: ignore[union-attr]
        assert line, head
        head += line
    assert int(head.split()[1]) == status, head
    if has_body and (length := re.search(rb"content-length: (\d+)", head, re.IGNORECASE)):
        responses.read(int(length[1]))  # type: ignore[union-attr]
    return b"connection: close" not in head.lower()


def open_and_close(port: int, token: str, count: int) -> None:
    for number in range(count):
        stream = RawStream(port, get(f"/events/?token={token}"))
        stream.read_until(b": ok")
        (stream.reset if number % 2 else stream.close)()


def send_broken(port: int, count: int) -> None:
    for _ in range(count):
        stream = RawStream(port, BROKEN)
        stream.read_to_end()


def test_no_kind_of_request_leaves_a_reference_cycle(start_hub: StartHub) -> None:
    hub = start_hub("--cors-origins", "https://a.example", code=COUNTING_GARBAGE)
    token = hub.token()
    kinds = {f"client {name}": (hub.port, request.replace("{token}", token), status) for name, (request, status) in ON_CLIENT_PORT.items()}
    kinds |= {f"control {name}": (hub.control_port, *kind) for name, kind in ON_CONTROL_PORT.items()}
    found: dict[str, int] = {}

    def measure(name: str, act) -> None:
        act(2)
        before = garbage(hub)
        act(COUNT)
        found[name] = garbage(hub) - before

    for name, (port, request, status) in kinds.items():
        measure(name, lambda count: send_all(port, request, status, count))
    measure("stream", lambda count: open_and_close(hub.port, token, count))
    measure("broken", lambda count: send_broken(hub.port, count))
    measure("broken control", lambda count: send_broken(hub.control_port, count))
    report(str(found))

    assert {name: count for name, count in found.items() if count} == {}
