"""A TCP proxy on loopback that interferes with connections as networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self

Pair = tuple[socket.socket, socket.socket]
"""The two sockets of one proxied connection: to the client and to the server."""


class Mode(Enum):
    PASS = "pass"
    STALL = "stall"
    """Nothing passes in either direction; connections stay open, and new ones are accepted."""
    SWALLOW = "swallow"
    """What the server sends is lost."""
    DROP = "drop"
    """Every connection is closed at once."""


class Proxy:
    """Forwards connections to `port` on loopback, until its context is left, as `mode` specifies."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.bytes_per_second: float | None = None
        """Limits how fast the server's data passes."""
        self._mode = Mode.PASS
        self._bytes_left: int | None = None
        self._request_bytes_left: int | None = None
        self._fatal_request: bytes | None = None
        self._pairs: set[Pair] = set()
        self._doomed: set[Pair] = set()
        """Connections that are closed instead of forwarding what the server sends next."""
        self._truncated: set[Pair] = set()
        """Connections that are closed after what has been taken of the data is forwarded."""
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()
        if mode is Mode.DROP:
            self.cut()

    def cut_after(self, count: int) -> None:
        """Forward the next `count` bytes of the server, then close the connection that they belong to."""
        self._bytes_left = count

    def cut_request_after(self, count: int) -> None:
        """Forward the next `count` bytes of the clients, then close the connection that they belong to."""
        self._request_bytes_left = count

    def cut_answer_to(self, request: bytes) -> None:
        """Forward the next request that contains these bytes, then close its connection instead of the answer."""
        self._fatal_request = request

    @property
    def has_cut(self) -> bool:
        """True if what `cut_after`, `cut_request_after` or `cut_answer_to` asked for has happened."""
        waiting = (self._bytes_left, self._request_bytes_left, self._fatal_request)
        is_requested = any(each is not None for each in waiting)
        return not (is_requested or self._doomed or self._truncated)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._mode is Mode.DROP:
                    raise ConnectionError
                server = socket.create_connection(("127.0.0.1", self._server_port), 2)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._forward_both_ways((client, server))

    def _forward_both_ways(self, pair: Pair) -> None:
        client, server = pair
        with self._changed:
            self._pairs.add(pair)
        self._start(lambda: self._forward(client, server, pair))
        self._start(lambda: self._forward(server, client, pair))

    def _forward(self, source: socket.socket, target: socket.socket, pair: Pair) -> None:
        is_answer = source is pair[1]
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                with self._changed:
                    self._changed.wait_for(lambda: self._mode is not Mode.STALL or pair not in self._pairs)
                    data = self._answer(data, pair) if is_answer else self._request(data, pair)
                target.sendall(data)
                if is_answer and self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                if pair in self._truncated:
                    break
        self._close(pair)

    def _request(self, data: bytes, pair: Pair) -> bytes:
        if self._fatal_request is not None and self._fatal_request in data:
            self._fatal_request = None
            self._doomed.add(pair)
        if self._request_bytes_left is not None:
            data = data[: self._request_bytes_left]
            self._request_bytes_left -= len(data)
            if self._request_bytes_left == 0:
                self._request_bytes_left = None
                self._truncated.add(pair)
        return data

    def _answer(self, data: bytes, pair: Pair) -> bytes:
        """Return what is forwarded of `data`. Raises OSError to close the connection."""
        if pair in self._doomed:
            raise ConnectionError
        if self._mode is Mode.SWALLOW:
            return b""
        if self._bytes_left is not None:
            data = data[: self._bytes_left]
            self._bytes_left -= len(data)
            if self._bytes_left == 0:
                self._bytes_left = None
                self._truncated.add(pair)
        return data

    def _close(self, pair: Pair) -> None:
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._changed:
            self._pairs.discard(pair)
            self._doomed.discard(pair)
            self._truncated.discard(pair)
            self._changed.notify_all()

    def cut(self) -> None:
        """Close every connection."""
        with self._changed:
            pairs = list(self._pairs)
        for pair in pairs:
            self._close(pair)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
