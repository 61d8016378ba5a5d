"""A transport without a socket, for our protocol."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from ssehub.server import HttpProtocol


class FakeTransport(asyncio.Transport):
    """Collects what is written, as asyncio's transports do until a client reads it."""

    def __init__(self, protocol: HttpProtocol, address: str = "192.0.2.2") -> None:
        super().__init__({"peername": ("192.0.2.1", 4711), "sockname": (address, 80)})
        self.protocol: HttpProtocol | None = protocol
        self.written = b""
        self.is_paused = False
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closed, "nothing may be written after the connection has been closed"
        self.written += data

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self.lose_connection)

    def lose_connection(self) -> None:
        protocol, self.protocol = self.protocol, None
        assert protocol is not None
        protocol.connection_lost(None)

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    numbers = random.Random(seed)
    rest = data
    while rest:
        size = numbers.choice((1, 2, 7, 100, 10_000, len(rest)))
        yield rest[:size]
        rest = rest[size:]
