"""Servers that are not hubs, or faulty ones: they lose, duplicate or reorder events, refuse requests, or are silent."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase

Fault = Callable[[int, bytes], list[bytes]]
"""Returns what every stream is sent for an event, given its number and its frame."""


class FaultyServer(ThreadingHTTPServer):
    """The client app and the control app on one port."""

    daemon_threads = True

    def __init__(
        self, fault: Fault, statuses: Mapping[str, int], is_chunked: bool, keep_alive_seconds: float | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.keep_alive_seconds = keep_alive_seconds
        self.is_chunked = is_chunked
        self.fault = fault
        self.statuses = statuses
        self.streams: list[BufferedIOBase] = []
        self.count = 0

    def emit(self, data: str) -> None:
        frame = f"data: {data}\n\n".encode()
        for part in self.fault(self.count, frame):
            for stream in self.streams:
                stream.write(part)
        self.count += 1


class FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def setup(self) -> None:
        self.request.settimeout(self.server.keep_alive_seconds)
        super().setup()

    def respond(self, text: str) -> None:
        self.send_response(self.server.statuses.get(self.path, 200))
        if self.server.is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in [*[f"1;a=b\r\n{letter}\r\n" for letter in text], "0\r\nTrailer: x\r\n\r\n"]:
                self.wfile.write(part.encode())
            return
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        if self.path in self.server.statuses:
            self.respond("no")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b": ok\n\n")
        self.server.streams.append(self.wfile)
        threading.Event().wait(30)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/emit/" and self.path not in self.server.statuses:
            self.server.emit(body["data"])
        self.respond(json.dumps({"token": "t"}))

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def faulty_server(
    fault: Fault | None = None,
    statuses: Mapping[str, int] | None = None,
    *,
    is_chunked: bool = False,
    keep_alive_seconds: float | None = None,
) -> Iterator[str]:
    """Run a server and return its URL. `statuses` has the status of each path that it refuses."""
    server = FaultyServer(fault or faultless, statuses or {}, is_chunked, keep_alive_seconds)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def faultless(number: int, frame: bytes) -> list[bytes]:
    return [frame]


def dropping(number: int, frame: bytes) -> list[bytes]:
    return [] if number == 10 else [frame]


def duplicating(number: int, frame: bytes) -> list[bytes]:
    return [frame] * (2 if number == 10 else 1)


def stalling(number: int, frame: bytes) -> list[bytes]:
    return [frame] if number < 10 else []


def splitting(number: int, frame: bytes) -> list[bytes]:
    return [frame[:20], frame[20:]]


def disconnecting(number: int, frame: bytes) -> list[bytes]:
    if number == 10:
        raise ConnectionAbortedError
    return [frame]


def sleeping(number: int, frame: bytes) -> list[bytes]:
    time.sleep(5)
    return [frame]


def swapping() -> Fault:
    delayed: list[bytes] = []

    def fault(number: int, frame: bytes) -> list[bytes]:
        if number == 10:
            delayed.append(frame)
            return []
        return [frame, *delayed] if number == 11 else [frame]

    return fault


@contextmanager
def scripted_server(*parts: bytes, closes: bool = False) -> Iterator[str]:
    """Run a server that sends `parts` to its first client, then nothing, or closes the connection; return its URL."""
    stop = threading.Event()

    def serve() -> None:
        connection = server.accept()[0]
        with connection:
            connection.recv(65_536)
            for part in parts:
                connection.sendall(part)
                time.sleep(0.01)
            if not closes:
                stop.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()
