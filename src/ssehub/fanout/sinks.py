"""Sinks: how bytes reach one connection, and how much of them it has not taken yet.

The hub gives a sink `Chunk`s, which many subscribers share, and hears from it through an `Owner`, synchronously. It
does not know which kind of sink it has.
"""

from __future__ import annotations

import asyncio
from asyncio import WriteTransport
from collections import deque
from collections.abc import Callable
from typing import Protocol

HIGH_WATER_BYTES = 64 * 2**10
"""A task that is this far behind counts as paused, as asyncio's transports do."""
LOW_WATER_BYTES = 16 * 2**10
LAST_CHUNK = b"0\r\n\r\n"
LINGER_SECONDS = 5.0
"""How long a client may take for what was written before its stream ended."""
MAX_TAKEN_BYTES = 64 * 2**10
"""What a task takes at once, beyond a first chunk of any size: the server holds that, too, out of our sight."""


class Chunk:
    """Bytes on their way to many connections, with the chunk header of HTTP/1.1 (RFC 9112, 7.1) made once."""

    __slots__ = ("_framed", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._framed: bytes | None = None

    @property
    def framed(self) -> bytes:
        framed = self._framed
        if framed is None:
            framed = self._framed = b"%x\r\n%b\r\n" % (len(self.data), self.data)
        return framed


class Owner(Protocol):
    """Who a sink reports to."""

    def sink_paused(self) -> None:
        """The connection does not take its bytes: what is written now is backlog."""

    def sink_resumed(self) -> None:
        """Nearly all of the backlog has gone out."""

    def sink_lost(self) -> None:
        """The connection is gone; nothing can be written any more."""


class Sink(Protocol):
    """One connection, as the hub sees it. After `close`, `abort` or a lost connection, writing does nothing."""

    owner: Owner | None
    is_paused: bool

    def write(self, chunk: Chunk) -> None:
        """Send `chunk`, or put it to the backlog. Never blocks."""

    @property
    def backlog(self) -> int:
        """Bytes given to this sink that the operating system has not taken."""

    def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        """Take nothing more; what is in the backlog still goes out, as far as the client takes it in this time."""

    def abort(self) -> None:
        """Drop the backlog and the connection."""


class TransportSink:
    """Writes straight to a transport: no task, no queue, no await. It also ends the response and the connection.

    It is corked until `uncork`, which the response calls when its headers have gone out: what is written earlier
    waits, and is backlog like any other. The server's protocol calls `pause_writing`, `resume_writing` and
    `connection_lost`, as asyncio calls them.
    """

    __slots__ = ("_corked", "_corked_bytes", "_is_closed", "_linger", "_transport", "is_chunked", "is_paused", "owner")

    def __init__(self, transport: WriteTransport, *, is_chunked: bool) -> None:
        self.owner: Owner | None = None
        self.is_paused = False
        self._transport = transport
        self.is_chunked = is_chunked
        self._is_closed = False
        self._corked: list[Chunk] | None = []
        self._corked_bytes = 0
        self._linger = LINGER_SECONDS

    def write(self, chunk: Chunk) -> None:
        if self._is_closed:
            return
        if self._corked is not None:
            self._cork(self._corked, chunk)
        else:
            self._transport.write(chunk.framed if self.is_chunked else chunk.data)

    def _cork(self, corked: list[Chunk], chunk: Chunk) -> None:
        corked.append(chunk)
        self._corked_bytes += len(chunk.data)
        if not self.is_paused and self._corked_bytes > HIGH_WATER_BYTES:
            self.pause_writing()

    def uncork(self, head: bytes = b"") -> None:
        """Write `head`, the response's, and what has waited behind it."""
        was_paused, self.is_paused = self.is_paused, False
        if corked := self.take_corked():
            chunk = Chunk(b"".join([chunk.data for chunk in corked]))
            head += chunk.framed if self.is_chunked else chunk.data
        if head and not self._transport.is_closing():
            self._transport.write(head)
        if self._is_closed:
            self._finish()
        elif was_paused and not self.is_paused:
            self.resume_writing()

    def take_corked(self) -> list[Chunk]:
        """What has waited, for who writes it now; the cork is off."""
        corked, self._corked, self._corked_bytes = self._corked, None, 0
        return corked or []

    @property
    def backlog(self) -> int:
        if self._corked:
            return self._corked_bytes
        return 0 if self._is_closed else self._transport.get_write_buffer_size()

    def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.owner = None
        self._linger = linger_seconds
        if self._corked is None:
            self._finish()

    def _finish(self) -> None:
        """End the response, and the connection as soon as the client has taken the rest, or after a while."""
        transport = self._transport
        if transport.is_closing():
            return
        if self.is_chunked:
            transport.write(LAST_CHUNK)
        transport.close()
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(self._linger, transport.abort)

    def abort(self) -> None:
        self._is_closed = True
        self.owner = None
        self.take_corked()
        self._transport.abort()

    def pause_writing(self) -> None:
        self.is_paused = True
        if self.owner is not None:
            self.owner.sink_paused()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.owner is not None:
            self.owner.sink_resumed()

    def connection_lost(self) -> None:
        # After this nothing may be written: uvloop raises then, and the descriptor may be somebody else's connection.
        owner, self.owner = self.owner, None
        self._is_closed = True
        if owner is not None:
            owner.sink_lost()


class TaskSink:
    """Keeps what is written for one task, which takes all that has gathered whenever it can send more.

    For servers that give no transport: that task awaits the server's `send`, and while it does, bytes gather here.
    `drop_connection` is how a client that does not read is got rid of; without it, it keeps that task waiting.
    """

    __slots__ = (
        "_chunks",
        "_drop_connection",
        "_in_flight",
        "_is_closed",
        "_size",
        "_timer",
        "_waiter",
        "is_paused",
        "owner",
    )

    def __init__(self, drop_connection: Callable[[], None] | None = None) -> None:
        self.owner: Owner | None = None
        self.is_paused = False
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._in_flight = 0
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._drop_connection = drop_connection
        self._timer: asyncio.TimerHandle | None = None

    def write(self, chunk: Chunk) -> None:
        if self._is_closed:
            return
        self._chunks.append(chunk.data)
        self._size += len(chunk.data)
        self._wake()
        if not self.is_paused and self.backlog > HIGH_WATER_BYTES:
            self.is_paused = True
            if self.owner is not None:
                self.owner.sink_paused()

    @property
    def backlog(self) -> int:
        return self._size + self._in_flight

    def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        self._is_closed = True
        self.owner = None
        self._wake()
        if self._drop_connection is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(linger_seconds, self._drop_connection)

    def abort(self) -> None:
        self._chunks.clear()
        self._size = 0
        drop, self._drop_connection = self._drop_connection, None
        self.close()
        if drop is not None:
            drop()

    def finish(self) -> None:
        """The task has ended: the connection is the server's again."""
        self._drop_connection = None
        if self._timer is not None:
            self._timer.cancel()

    async def take(self) -> bytes:
        """The next bytes, once there are any; empty at the end. Asking says that the last ones have been sent."""
        self._in_flight = 0
        if self.is_paused and self.backlog <= LOW_WATER_BYTES:
            self.is_paused = False
            if self.owner is not None:
                self.owner.sink_resumed()
        while not self._chunks:
            if self._is_closed:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._gathered()
        self._in_flight = len(data)
        self._size -= len(data)
        return data

    def _gathered(self) -> bytes:
        chunks = self._chunks
        taken = [chunks.popleft()]
        size = len(taken[0])
        while chunks and size + len(chunks[0]) <= MAX_TAKEN_BYTES:
            size += len(chunks[0])
            taken.append(chunks.popleft())
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
