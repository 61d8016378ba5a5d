"""Sinks: how bytes reach one connection, and how many of them are still in its backlog.

A sink is given `Chunk`s, which many subscribers share. It reports to its one owner, by the slot `owner`,
synchronously: that it has paused, that it has resumed, or that its connection is lost. This is the only call from here
upwards, and the fan-out does not know which kind of sink it writes to.
"""

from __future__ import annotations

import asyncio
from asyncio import WriteTransport
from collections import deque
from collections.abc import Callable
from typing import Protocol

HIGH_WATER_BYTES = 64 * 2**10
"""A `TaskSink` pauses above this backlog, as asyncio's transports do."""
LOW_WATER_BYTES = 16 * 2**10
LAST_CHUNK = b"0\r\n\r\n"
LINGER_SECONDS = 5.0
"""How long a client has to read what was written before its stream ended."""
CUT_SECONDS = 1.0
"""How long the last frame has to arrive before a response is cut: after 0.5 s none was lost by any proxy or client."""
MAX_READ_BYTES = 64 * 2**10
"""Most bytes that a task reads at once, unless the first chunk alone is larger: the server buffers them, where
they are not counted as backlog.
"""


class Chunk:
    """Bytes for many connections; the chunk header of HTTP/1.1 (RFC 9112, section 7.1) is made once for all of them."""

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
    """The object that a sink reports to."""

    def sink_paused(self) -> None:
        """The client does not read as fast as the sink is written to: what is written now is backlog."""

    def sink_resumed(self) -> None:
        """The client has read nearly all of the backlog."""

    def sink_lost(self) -> None:
        """The connection is lost, and writing does nothing any more."""


class Sink(Protocol):
    """One connection, as the fan-out sees it. After `close`, `abort` or a lost connection, writing does nothing."""

    owner: Owner | None
    is_paused: bool

    def write(self, chunk: Chunk) -> None:
        """Send `chunk`, or add it to the backlog. Never blocks."""

    @property
    def backlog(self) -> int:
        """Bytes written to this sink that have not been passed to the operating system."""

    def close(self, linger_seconds: float = LINGER_SECONDS, *, cut_after: float | None = None) -> None:
        """Accept nothing more. The backlog is still sent, as far as the client reads it within `linger_seconds`.

        `cut_after` is given if the client is to come back. A client that takes a complete response for the last one
        then has it cut off, after so many seconds.
        """

    def abort(self) -> None:
        """Discard the backlog and drop the connection."""


class TransportSink:
    """Writes straight to a transport: no task, no queue, no await. It also ends the response and the connection.

    It is corked until the response calls `uncork`, after its headers have been sent: what is written before that is
    kept, and counts as backlog. The server's protocol calls `pause_writing`, `resume_writing` and `connection_lost`
    when asyncio calls its own methods of these names.
    """

    __slots__ = (
        "_corked",
        "_corked_bytes",
        "_cut_after",
        "_is_closed",
        "_linger",
        "_transport",
        "cuts",
        "is_chunked",
        "is_paused",
        "owner",
    )

    def __init__(self, transport: WriteTransport, *, is_chunked: bool, cuts: bool = False) -> None:
        """`cuts` says that the client does not come back after a complete response."""
        self.owner: Owner | None = None
        self.is_paused = False
        self._transport = transport
        self.is_chunked = is_chunked
        self.cuts = cuts
        self._is_closed = False
        self._corked: list[Chunk] | None = []
        self._corked_bytes = 0
        self._linger = LINGER_SECONDS
        self._cut_after: float | None = None

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
        """Write `head`, the head of the response, and everything written since."""
        was_paused, self.is_paused = self.is_paused, False
        if corked := self.pop_corked():
            chunk = corked[0] if len(corked) == 1 else Chunk(b"".join([chunk.data for chunk in corked]))
            head += chunk.framed if self.is_chunked else chunk.data
        if head and not self._transport.is_closing():
            self._transport.write(head)
        if self._is_closed:
            self._finish()
        elif was_paused and not self.is_paused:
            self.resume_writing()

    def pop_corked(self) -> list[Chunk]:
        """Remove the cork without writing; return what was written since, for the caller to write."""
        corked, self._corked, self._corked_bytes = self._corked, None, 0
        return corked or []

    @property
    def backlog(self) -> int:
        if self._corked:
            return self._corked_bytes
        return 0 if self._is_closed else self._transport.get_write_buffer_size()

    def close(self, linger_seconds: float = LINGER_SECONDS, *, cut_after: float | None = None) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.owner = None
        self._linger = linger_seconds
        self._cut_after = cut_after if self.cuts and self.is_chunked else None
        if self._corked is None:
            self._finish()

    def _finish(self) -> None:
        """End the response and the connection."""
        if self._transport.is_closing():
            return
        if self._cut_after is not None:
            asyncio.get_running_loop().call_later(self._cut_after, self._disconnect)
            return
        if self.is_chunked:
            self._transport.write(LAST_CHUNK)
        self._disconnect()

    def _disconnect(self) -> None:
        """Close the connection when the client has read the rest, or after the linger time."""
        transport = self._transport
        if transport.is_closing():
            return
        transport.close()
        if transport.get_write_buffer_size():
            linger = max(0.0, self._linger - (self._cut_after or 0.0))
            asyncio.get_running_loop().call_later(linger, transport.abort)

    def abort(self) -> None:
        self._is_closed = True
        self.owner = None
        self.pop_corked()
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
        # Nothing may be written from now on: uvloop raises, and the descriptor may belong to another connection.
        owner, self.owner = self.owner, None
        self._is_closed = True
        if owner is not None:
            owner.sink_lost()


class TaskSink:
    """Keeps what is written for one task, which reads everything that has gathered whenever it can send more.

    It is for servers that hand out no transport: the task awaits the server's `send`, and meanwhile bytes gather here.
    `drop_connection` disconnects a client that does not read; without it, such a client keeps the task waiting.
    """

    __slots__ = (
        "_chunks",
        "_drop_connection",
        "_in_flight",
        "_is_closed",
        "_size",
        "_timer",
        "_waiter",
        "cut_after",
        "cuts",
        "is_paused",
        "owner",
    )

    def __init__(self, drop_connection: Callable[[], None] | None = None, *, cuts: bool = False) -> None:
        """`cuts` says that the client does not come back after a complete response."""
        self.owner: Owner | None = None
        self.is_paused = False
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._in_flight = 0
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._drop_connection = drop_connection
        self.cuts = cuts
        self.cut_after: float | None = None
        """How long after the last bytes the task is to cut the response off, None if it is to complete it."""
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

    def close(self, linger_seconds: float = LINGER_SECONDS, *, cut_after: float | None = None) -> None:
        self._is_closed = True
        self.owner = None
        self.cut_after = cut_after if self.cuts else None
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
        """The task has ended, and the connection belongs to the server again."""
        self._drop_connection = None
        if self._timer is not None:
            self._timer.cancel()

    async def read(self) -> bytes:
        """Wait for bytes and return them, or `b""` at the end. Calling it means that the previous ones were sent."""
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
        data = self._pop()
        self._in_flight = len(data)
        self._size -= len(data)
        return data

    def _pop(self) -> bytes:
        chunks = self._chunks
        popped = [chunks.popleft()]
        size = len(popped[0])
        while chunks and size + len(chunks[0]) <= MAX_READ_BYTES:
            size += len(chunks[0])
            popped.append(chunks.popleft())
        return popped[0] if len(popped) == 1 else b"".join(popped)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
