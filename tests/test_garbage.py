"""What requests leave behind: nothing that reference counting does not free, and no memory."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import pytest

from conftest import ERROR_LINES, RunningHub, StartHub, report, wait_until
from streams import RawStream, get

SOAK = "SOAK" in os.environ
COUNT = 100_000 if SOAK else 100
"""Requests of each kind."""
BATCH = 100
"""Requests that are sent on one connection, one after the other."""

COUNTING_GARBAGE = """
import gc, signal, sys
import ssehub.server.http_server
from ssehub.cli import main

ssehub.server.http_server.MAX_REFUSALS_PER_SECOND = 1e6

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
"""A hub that counts the objects that its garbage collector has found, and shows their number on SIGUSR1.

It answers refused requests at once.
"""


def garbage(hub: RunningHub) -> int:
    """Return how many objects the collector of `hub`, which runs COUNTING_GARBAGE, has found so far."""
    before = hub.log.count("garbage: ")
    hub.signal(signal.SIGUSR1)
    wait_until(lambda: len(re.findall(r"garbage: \d+\n", hub.log)) > before)
    return int(re.findall(r"garbage: (\d+)\n", hub.log)[-1])


def post(path: str, body: str, kind: str = "application/x-www-form-urlencoded", *headers: str) -> str:
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers, "", body])


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
    "web-page": (post("/emit/", "userId=*", JSON, "Origin: https://evil.example"), 403),
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


def read_response(responses: BinaryIO, status: int, *, has_body: bool) -> bool:
    """Read one response, and check its status; return True if the connection stays open."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = responses.readline()
        assert line, head
        head += line
    assert int(head.split()[1]) == status, head
    if has_body and (length := re.search(rb"content-length: (\d+)", head, re.IGNORECASE)):
        responses.read(int(length[1]))
    return b"connection: close" not in head.lower()


def open_and_close(port: int, path: str, first: bytes, count: int) -> None:
    """Open `count` streams, read from each until `first` is there, and close or reset it."""
    for number in range(count):
        stream = RawStream(port, get(path))
        stream.read_until(first)
        (stream.reset if number % 2 else stream.close)()


def send_broken(port: int, request: str, count: int) -> None:
    for _ in range(count):
        RawStream(port, request).read_to_end()


def leave_early(port: int, request: str, count: int) -> None:
    """Send `request`, and leave before the response."""
    for _ in range(count):
        RawStream(port, request).reset()


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_no_kind_of_request_leaves_a_reference_cycle_or_memory(start_hub: StartHub) -> None:
    options = ("--cors-origins", "https://a.example", "--history-events", "100", "--history-seconds", "5")
    hub = start_hub(*options, code=COUNTING_GARBAGE)
    full = start_hub("--max-connections", "1", code=COUNTING_GARBAGE)
    token = hub.token()
    only_stream = RawStream(full.port, get(f"/events/?token={full.token()}"))
    only_stream.read_until(b"stream-hello")
    stream = f"/events/?token={token}"
    kinds: dict[str, tuple[RunningHub, Callable[[int], None]]] = {
        "stream": (hub, partial(open_and_close, hub.port, stream, b"stream-hello")),
        "stream with a past": (hub, partial(open_and_close, hub.port, f"{stream}&since=earliest", b"stream-hello")),
        "stream with a reset": (hub, partial(open_and_close, hub.port, f"{stream}&lastEventId=x", b"stream-reset")),
        "busy": (full, partial(open_and_close, full.port, f"/events/?token={full.token()}", b"retry:")),
        "stream left early": (hub, partial(leave_early, hub.port, get(stream))),
        "publisher left early": (hub, partial(leave_early, hub.control_port, ON_CONTROL_PORT["emit-json"][0])),
        "half a head": (hub, partial(leave_early, hub.port, BROKEN[:20])),
        "half a body": (hub, partial(leave_early, hub.control_port, ON_CONTROL_PORT["emit-json"][0][:-9])),
        "broken": (hub, partial(send_broken, hub.port, BROKEN)),
        "broken on control": (hub, partial(send_broken, hub.control_port, BROKEN)),
        "not HTTP": (hub, partial(send_broken, hub.port, "\x16\x03\x01\x02\x00\x01" * 10)),
    }
    for name, (request, status) in ON_CLIENT_PORT.items():
        kinds[name] = hub, partial(send_all, hub.port, request.replace("{token}", token), status)
    for name, (request, status) in ON_CONTROL_PORT.items():
        kinds[f"{name} on control"] = hub, partial(send_all, hub.control_port, request, status)
    for _, act in kinds.values():
        act(20)
    memory = hub.memory_bytes()

    found = {name: garbage_of(server, act) for name, (server, act) in kinds.items()}

    grown = hub.memory_bytes() - memory
    only_stream.close()
    report(f"{COUNT} requests of {len(kinds)} kinds, rss {memory >> 20} MiB, grown by {grown >> 10} KiB")
    assert {name: objects for name, objects in found.items() if objects} == {}
    assert grown < 10 * 2**20
    assert not ERROR_LINES.search(hub.log)


def garbage_of(hub: RunningHub, act: Callable[[int], None]) -> int:
    before = garbage(hub)
    act(COUNT)
    return garbage(hub) - before
