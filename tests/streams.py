"""Clients on raw sockets, which show every byte that a hub sends."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import time
from typing import ClassVar
from weakref import WeakSet

from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder, SSELineDecoder

HELLO = b"event: stream-hello\n"
BUSY = b"event: stream-busy\n"
NATIVE = ("Accept: text/event-stream", "Cache-Control: no-cache", "Sec-Fetch-Mode: cors")
"""The headers by which the hub recognises a native EventSource."""
LAST_CHUNK = b"\r\n0\r\n\r\n"


class RawStream:
    """A connection on which a request has been sent, over TLS if there is a context, and the bytes received so far."""

    _all: ClassVar[WeakSet[RawStream]] = WeakSet()

    def __init__(
        self,
        port: int,
        request: str | bytes,
        *,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._all.add(self)
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.socket.sendall(request.encode() if isinstance(request, str) else request)
        self.bytes = b""

    def read_until(self, what: bytes, seconds: float = 10.0) -> bytes:
        """Read until `what` has been received; return all bytes so far."""
        self._read_until_found(re.escape(what), seconds)
        return self.bytes

    def read_event(self, data: str, seconds: float = 10.0) -> None:
        """Read until an event with `data` as its last line of data has been received completely, with its id."""
        self._read_until_found(rb"(?m)^data: %b\n([^\n]+\n)*\n" % re.escape(data.encode()), seconds)

    def _read_until_found(self, pattern: bytes, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.bytes):
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            received = self.socket.recv(65_536)
            assert received, f"the connection ended before {pattern!r} was received: {self.bytes[-200:]!r}"
            self.bytes += received

    def read_to_end(self, seconds: float = 10.0) -> bytes:
        """Read until the connection has ended; return all bytes, and close the socket."""
        end = time.monotonic() + seconds
        with contextlib.suppress(ConnectionResetError):
            while True:
                self.socket.settimeout(max(0.01, end - time.monotonic()))
                received = self.socket.recv(65_536)
                if not received:
                    break
                self.bytes += received
        self.close()
        return self.bytes

    @property
    def body(self) -> bytes:
        """The bytes after the head, without chunk headers if the response is chunked."""
        head, _, rest = self.bytes.partition(b"\r\n\r\n")
        return unchunked(rest) if b"transfer-encoding: chunked" in head.lower() else rest

    @property
    def events(self) -> list[ServerSentEvent]:
        return decode(self.body)

    def reset(self) -> None:
        """Close the connection with an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    @classmethod
    def close_all(cls) -> None:
        """Close what a failed test has left open: the warnings of its sockets would fail other tests."""
        for stream in list(cls._all):
            stream.close()


def read_first_frame(sock: socket.socket) -> bytes:
    """Read the response's head and first frame."""
    received = b""
    while b"stream-hello\n" not in received and b"stream-busy\n" not in received:
        part = sock.recv(4_000)
        assert part, received
        received += part
    return received


def unchunked(data: bytes) -> bytes:
    """Return the body of chunks (RFC 9112, 7.1), without a last chunk that is not complete."""
    body = b""
    while found := re.match(rb"([0-9a-fA-F]+)\r\n", data):
        size = int(found[1], 16)
        start = found.end()
        if not size or len(data) < start + size + 2:
            return body
        assert data[start + size : start + size + 2] == b"\r\n"
        body += data[start : start + size]
        data = data[start + size + 2 :]
    assert data == b"" or re.fullmatch(rb"[0-9a-fA-F]+\r?", data), data[:80]
    return body


def decode(stream: bytes) -> list[ServerSentEvent]:
    """Decode the complete frames of a stream with httpx-sse.

    Frames without data are left out, as browsers do, and those in which the hub only tells the position.
    """
    complete = stream[: stream.rfind(b"\n\n") + 2].decode()
    lines, decoder = SSELineDecoder(), SSEDecoder()
    decoded = [decoder.decode(line) for line in lines.decode(complete)]
    shown = [sse for sse in decoded if sse is not None and (sse.data or sse.event != "message")]
    return [sse for sse in shown if sse.event not in ("stream-hello", "stream-position")]


def get(path: str, *headers: str, version: str = "1.1") -> str:
    """Return the text of a GET request, with a `Host` of its own unless `headers` have one."""
    host = [] if any(header.startswith("Host:") for header in headers) else ["Host: 127.0.0.1"]
    return "\r\n".join([f"GET {path} HTTP/{version}", *host, *headers, "", ""])


def listen(
    port: int,
    token: str,
    *headers: str,
    receive_buffer: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> RawStream:
    """Open a stream, and read its head and first frame."""
    stream = RawStream(port, get(f"/events/?token={token}", *headers), receive_buffer=receive_buffer, tls=tls)
    stream.read_until(HELLO)
    stream.read_until(b"\n\n")
    return stream
