"""A TCP proxy of our own, between two ends on loopback, that can do to connections what networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from enum import Enum
from types import TracebackType
from typing import Self

Pair = tuple[socket.socket, socket.socket]


class Mode(Enum):
    PASS = "pass"
    STALL = "stall"
    """Nothing passes, either way; connections stay, and new ones are taken."""
    SWALLOW = "swallow"
    """What the server says is lost."""
    DROP = "drop"
    """Every connection ends at once."""


class Proxy:
    """Passes bytes to `port` of loopback while it is open, as its `mode` allows."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.bytes_per_second: float | None = None
        """How fast what the server says passes."""
        self._mode = Mode.PASS
        self._left: int | None = None
        self._fatal: bytes | None = None
        self._pairs: set[Pair] = set()
        self._doomed: set[Pair] = set()
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
        """Pass the next `count` bytes of what the server says, then cut whoever was to have the rest."""
        self._left = count

    def cut_answer_to(self, request: bytes) -> None:
        """Pass the next request that has these bytes in it, and cut instead of passing its answer."""
        self._fatal = request

    @property
    def has_cut(self) -> bool:
        """Whether that has happened."""
        return self._left is None and self._fatal is None and not self._doomed

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
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
                server = socket.create_connection(("127.0.0.1", self._to), 2)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = client, server
            with self._changed:
                self._pairs.add(pair)
            self._start(self._pass, client, server, pair)
            self._start(self._pass, server, client, pair)

    def _pass(self, source: socket.socket, target: socket.socket, pair: Pair) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                with self._changed:
                    self._changed.wait_for(lambda: self._mode is not Mode.STALL or pair not in self._pairs)
                    data = self._of_answer(data, pair) if source is pair[1] else self._of_request(data, pair)
                target.sendall(data)
                if source is pair[1] and self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                if source is pair[1] and self._left == 0:
                    self._left = None
                    break
        self._end(pair)

    def _of_request(self, data: bytes, pair: Pair) -> bytes:
        if self._fatal is not None and self._fatal in data:
            self._fatal = None
            self._doomed.add(pair)
        return data

    def _of_answer(self, data: bytes, pair: Pair) -> bytes:
        """What is passed of it; raises OSError to cut."""
        if pair in self._doomed:
            raise ConnectionError
        if self._mode is Mode.SWALLOW:
            return b""
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        return data

    def _end(self, pair: Pair) -> None:
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._changed:
            self._pairs.discard(pair)
            self._doomed.discard(pair)
            self._changed.notify_all()

    def cut(self) -> None:
        """End every connection there is."""
        with self._changed:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

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
