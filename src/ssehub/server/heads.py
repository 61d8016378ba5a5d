"""The head of a request: why it is refused, the target that it names, and what those take that are not complete."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote

import httptools

from ..fanout.refusals import ConnectionRefusal as Reason

MAX_PATH_ESCAPES = 2_000
"""Decoding each takes about half a microsecond, before anything is known about the client."""
MAX_URL_BYTES = 65_535
"""httptools can't parse a longer one, whatever `max_head_bytes` allows."""


class Refusal(NamedTuple):
    """The answer to a request that the server does not pass to the app."""

    status: int
    phrase: str
    reason: Reason
    message: str

    def response(self, default_lines: bytes) -> bytes:
        """Return the whole response, after which the connection ends. `default_lines` are those of every response."""
        message = self.message.encode()
        return (
            b"HTTP/1.1 %d %b\r\n" % (self.status, self.phrase.encode())
            + default_lines
            + b"content-type: text/plain; charset=utf-8\r\n"
            + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(message)
            + message
        )


BAD_REQUEST = Refusal(400, "Bad Request", Reason.MALFORMED, "Invalid HTTP request received.")
BAD_HOST = Refusal(400, "Bad Request", Reason.MALFORMED, "A request needs exactly one Host header.")
BAD_CODING = Refusal(
    501, "Not Implemented", Reason.UNSUPPORTED, "The only transfer coding that is supported is chunked."
)
BAD_METHOD = Refusal(501, "Not Implemented", Reason.UNSUPPORTED, "CONNECT is not supported.")
BAD_VERSION = Refusal(505, "HTTP Version Not Supported", Reason.UNSUPPORTED, "Use HTTP/1.1 or HTTP/1.0.")
TIMEOUT = Refusal(408, "Request Timeout", Reason.TIMEOUT, "The request took too long.")
URL_TOO_LONG = Refusal(414, "URI Too Long", Reason.HEAD_TOO_LARGE, "The URL is too long.")
HEAD_TOO_LARGE = Refusal(
    431,
    "Request Header Fields Too Large",
    Reason.HEAD_TOO_LARGE,
    "The header is too large, or has too many fields.",
)
CHUNKS_TOO_LARGE = Refusal(400, "Bad Request", Reason.BODY_TOO_LARGE, "The chunk extensions are too large.")
UNWANTED_BODY = Refusal(400, "Bad Request", Reason.BODY_TOO_LARGE, "Too much was sent behind the response.")
TOO_MANY_AHEAD = Refusal(400, "Bad Request", Reason.PIPELINED, "Too many requests were sent ahead of their responses.")


def oversize(url: bytes, headers: Sequence[tuple[bytes, bytes]], max_bytes: int) -> Refusal | None:
    """Return the refusal of a head of more than `max_bytes`."""
    size = len(url) + sum([len(name) + len(value) + 4 for name, value in headers])
    if size <= max_bytes:
        return None
    return URL_TOO_LONG if len(url) > size // 2 else HEAD_TOO_LARGE


def objection(version: str, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
    """Return the refusal of a request of this HTTP version with these headers, None if it is not refused."""
    if version != "1.1" and version != "1.0":
        return BAD_VERSION
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (not hosts and version == "1.1"):  # RFC 9112, section 3.2
        return BAD_HOST
    if b"transfer-encoding" in names:  # RFC 9112, section 6.1
        codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
        if codings != [b"chunked"]:
            return BAD_CODING
    return None


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return how long the body is according to `headers`, which the parser has accepted; 0 if they do not say."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


Target = tuple[str, bytes, bytes]
"""The path that a URL names, that path as it was sent, and the query."""


def target(url: bytes) -> Target | Refusal:
    """Return what `url` names."""
    if len(url) > MAX_URL_BYTES:
        return URL_TOO_LONG
    if url[:1] == b"/" and b"#" not in url:  # what the parser of URLs would do, too
        raw_path, _, query = url.partition(b"?")
    else:
        parsed = httptools.parse_url(url)
        raw_path, query = parsed.path or b"/", parsed.query or b""  # http://host is a URL without a path
    path = raw_path.decode("ascii")
    if "%" in path:
        if path.count("%") > MAX_PATH_ESCAPES:
            return URL_TOO_LONG
        path = unquote(path)
    return path, raw_path, query


Owner = TypeVar("Owner", bound=Hashable)


class UnfinishedHeads(Generic[Owner]):
    """The heads of all connections of a port that have begun to arrive, and how many bytes of them have arrived.

    If they take more than `max_bytes` together, `drop` is called for the connection whose head began first.
    """

    def __init__(self, max_bytes: int, drop: Callable[[Owner], None]) -> None:
        self._max_bytes = max_bytes
        self._drop = drop
        self._sizes: dict[Owner, int] = {}
        """In the order in which the heads began."""
        self.bytes = 0

    def add(self, connection: Owner, size: int) -> None:
        """`size` more bytes have arrived, and the head is still not complete. This may drop `connection` itself."""
        self._sizes[connection] = self._sizes.get(connection, 0) + size
        self.bytes += size
        while self.bytes > self._max_bytes:
            oldest = next(iter(self._sizes))
            self.remove(oldest)
            self._drop(oldest)

    def remove(self, connection: Owner) -> None:
        """The head is complete, or the rest of it is not waited for any more."""
        self.bytes -= self._sizes.pop(connection, 0)
