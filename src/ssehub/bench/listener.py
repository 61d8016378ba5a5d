"""The subscribers of a worker process: protocols that count the events they receive.

A worker reads hundreds of thousands of events per second, so that it is not the bottleneck of the load test. The
subscribers of one channel receive the same bytes, usually one whole chunk per read. Therefore the content of a read
that begins and ends between two lines is cached, and the same bytes at such a position are not parsed again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

from .body import Chunked, Decoder, Identity, Scanner
from .latencies import Latencies
from .messages import Tally
from .sequences import Faults, Sequences
from .stamps import MARK, Content, content_of

MAX_CACHED = 64
RECEIVE_BUFFER_BYTES = 256 * 2**10


class Group:
    """All subscribers of a process: what they have received, and the reads that they have in common."""

    def __init__(self) -> None:
        self.opened = 0
        self.events = 0
        self.reads = 0
        self.closed = 0
        self.refused: Counter[str] = Counter()
        self.faults = Faults()
        self.latencies = Latencies()
        self.last_read_at = 0
        """The `time.monotonic_ns()` of the last read that contained events."""
        self.whole_reads: dict[bytes, Content] = {}
        """The content of reads that began and ended between two lines, by their bytes, with their chunk headers."""
        self._contents: dict[bytes, Content] = {}

    def content(self, data: bytes) -> Content:
        """Return the events in `data`, which has been decoded and scanned."""
        content = self._contents.get(data)
        if content is None:
            content = content_of(data)
            _cache(self._contents, data, content)
        return content

    def cache_whole_read(self, data: bytes, content: Content) -> None:
        _cache(self.whole_reads, data, content)

    def count(self, content: Content) -> None:
        """Count the events of one read."""
        now = self.last_read_at = time.monotonic_ns()
        for due in content.samples:
            self.latencies.add(now - due, content.weight)
        self.events += content.events
        self.reads += 1

    def tally(self, *, with_latencies: bool = False) -> Tally:
        return Tally(
            opened=self.opened,
            events=self.events,
            reads=self.reads,
            gaps=self.faults.gaps,
            duplicates=self.faults.duplicates,
            reordered=self.faults.reordered,
            closed=self.closed,
            finished_at=self.last_read_at / 1e9,
            cpu_seconds=time.process_time(),
            refused=dict(self.refused),
            latencies=dict(self.latencies.counts) if with_latencies else {},
        )


def _cache(cache: dict[bytes, Content], data: bytes, content: Content) -> None:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[data] = content


class State(Enum):
    """The part of its response that a subscriber reads."""

    HEAD = auto()
    """The status line and the headers, of which some bytes may have arrived."""
    STREAM = auto()
    """The body of a response with status 200."""
    REFUSED = auto()
    """The body of any other response: it is ignored."""


class Listener(asyncio.Protocol):
    """One subscriber. `settled` is called when its response's head has arrived, and when the connection is lost."""

    __slots__ = (
        "_decoder",
        "_group",
        "_head",
        "_is_between_lines",
        "_request",
        "_scanner",
        "_sequences",
        "_settled",
        "_state",
    )

    def __init__(self, request: bytes, group: Group, settled: Callable[[], None]) -> None:
        self._request = request
        self._group = group
        self._settled = settled
        self._state = State.HEAD
        self._head = b""
        self._decoder: Decoder = Identity()
        self._scanner = Scanner()
        self._sequences = Sequences(group.faults)
        self._is_between_lines = False
        """True if the last read ended between two lines and two chunks: the next one may be in the cache."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By default the kernel lets each receive buffer grow to 6 MB, until its memory for TCP is used up and it drops
        # packets.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's transports inherit no class of asyncio

    def data_received(self, data: bytes) -> None:
        if self._is_between_lines and (content := self._group.whole_reads.get(data)) is not None:
            self._group.count(content)
            self._sequences.check(content)
            return
        body = self._read_head(data) if self._state is State.HEAD else data
        if body and self._state is State.STREAM:
            self._read_body(body, data)

    def _read_head(self, data: bytes) -> bytes:
        """Read the response's head, and return the beginning of the body that follows it."""
        head, end, body = (self._head + data).partition(b"\r\n\r\n")
        if not end:
            self._head = head
            return b""
        self._head = b""
        status = head.partition(b"\r\n")[0].split(b" ", 1)[-1].decode(errors="replace")
        if status.startswith("200"):
            self._state = State.STREAM
            self._group.opened += 1
            if b"transfer-encoding: chunked" in head.lower():
                self._decoder = Chunked()
        else:
            self._state = State.REFUSED
            self._group.refused[status] += 1
        self._settled()
        return body

    def _read_body(self, body: bytes, data: bytes) -> None:
        """Count the events of `body`, the part of the read `data` that belongs to the body."""
        was_between_lines = self._is_between_lines
        scanned = self._scanner.scan(self._decoder.decode(body))
        self._is_between_lines = self._scanner.is_between_lines and self._decoder.is_at_boundary
        if MARK not in scanned:
            return
        content = self._group.content(scanned)
        if not content.events:
            return  # frames of the hub's own have data, but no stamps
        self._group.count(content)
        self._sequences.check(content)
        if was_between_lines and self._is_between_lines:
            self._group.cache_whole_read(data, content)

    def connection_lost(self, exc: Exception | None) -> None:
        self._group.closed += 1
        self._settled()
