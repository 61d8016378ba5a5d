"""The network between a client and a hub: counts requests, and cuts a response at a chosen byte."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

Cut = Callable[[bytes, int], int | None]
"""Called with all bytes of a response so far, and how many of them have been forwarded. Returns how many are to be
forwarded before the cut, or None for all."""


def behind(pattern: bytes) -> Cut:
    """Cut where a match of `pattern` ends that has not been forwarded completely."""
    compiled = re.compile(pattern, re.DOTALL)

    def cut(response: bytes, forwarded: int) -> int | None:
        return next((found.end() for found in compiled.finditer(response) if found.end() > forwarded), None)

    return cut


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of the client, and what has passed."""

    client: socket.socket
    server: socket.socket
    response: bytes = b""
    """What the hub has sent."""
    forwarded: int = 0
    is_closed: bool = False

    @property
    def is_stream(self) -> bool:
        """True if a part of the body has been forwarded."""
        head, separator, _ = self.response[: self.forwarded].partition(b"\r\n\r\n")
        return bool(separator) and head.startswith(b"HTTP/1.1 200") and self.forwarded > len(head) + 4


class Link:
    """Forwards connections to `port` on loopback, until its context is left."""

    def __init__(self, port: int, *, bytes_per_second: float | None = None) -> None:
        self._server_port = port
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cut: Cut | None = None
        """Ends one connection, then is None."""
        self.connections: list[Connection] = []
        self.requests: list[float] = []
        """When each request was sent; several may share a connection."""
        self.ends: list[float] = []
        """When each connection ended."""
        self._bytes_per_second = bytes_per_second
        self._open_door = threading.Event()
        self._open_door.set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def streams(self) -> int:
        """How many streams have begun."""
        return sum(connection.is_stream for connection in list(self.connections))

    @property
    def forwarded(self) -> int:
        """How many bytes of the latest connection's response have been forwarded."""
        return self.connections[-1].forwarded

    def has_forwarded(self, what: bytes) -> bool:
        return any(what in connection.response[: connection.forwarded] for connection in list(self.connections))

    def hold(self) -> None:
        """Accept new connections, but forward nothing of them until `release`."""
        self._open_door.clear()

    def release(self) -> None:
        self._open_door.set()

    def cut_all(self) -> None:
        for connection in list(self.connections):
            self._close(connection)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._open_door.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port), 5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server)
        self.connections.append(connection)
        self._start(self._forward_requests, connection)
        self._forward_responses(connection)

    def _forward_requests(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while data := connection.client.recv(65_536):
                self.requests += [time.monotonic()] * data.count(b"GET /")
                connection.server.sendall(data)
        self._close(connection)

    def _forward_responses(self, connection: Connection) -> None:
        size = 65_536 if self._bytes_per_second is None else 8_192
        with contextlib.suppress(OSError):
            while data := connection.server.recv(size):
                connection.response += data
                index = self.cut(connection.response, connection.forwarded) if self.cut else None
                if index is not None:
                    self.cut = None
                self._forward(connection, index)
                if index is not None:
                    break
        self._close(connection)

    def _forward(self, connection: Connection, end: int | None) -> None:
        data = connection.response[connection.forwarded : end]
        connection.client.sendall(data)
        connection.forwarded += len(data)
        if self._bytes_per_second:
            time.sleep(len(data) / self._bytes_per_second)

    def _close(self, connection: Connection) -> None:
        if not connection.is_closed:
            connection.is_closed = True
            self.ends.append(time.monotonic())
        for one in (connection.client, connection.server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._open_door.set()
        self.cut_all()
        for thread in self._threads:
            thread.join(5)
