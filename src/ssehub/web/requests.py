"""Requests to the control app: their headers, and their bodies, which are read within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..buckets import Throttle
from ..errors import BodyTooLarge, UnsupportedContent
from ..fields import check_key
from ..rights import NO_KEY, ControlKey

MAX_DROPPED_BYTES = 32 * 2**20
DROPPED_BYTES_PER_SECOND = 16 * 2**20
"""How fast an endpoint drops the bodies of all requests together, so that other requests go on meanwhile."""
MAX_DROPPING_SECONDS = 5.0
REFUSED_SECONDS = 0.3
"""How long the rest of a refused append is read. httpx, requests, aiohttp, Node, Go and curl see the answer then."""

KEY = "ssehub.key"
HEADERS = "ssehub.headers"
"""Where in the scope the guard leaves the `ControlKey` of a request, and its headers, for the endpoint."""
NAME = "ssehub.name"
"""Where in the scope the name is that the path contains, if it contains one."""

RequestHeaders = Mapping[str, str]


class ControlRequest:
    """A request to the control app whose whole body has been read.

    `key` is the one that it was made with, and `name` the name in its path.
    """

    __slots__ = ("body", "headers", "key", "name", "query_string")

    def __init__(
        self, query_string: bytes, headers: RequestHeaders, body: bytes, key: ControlKey = NO_KEY, name: str = ""
    ) -> None:
        self.query_string = query_string
        self.name = name
        self.headers = headers
        self.body = body
        self.key = key


def request_headers(scope: Scope) -> RequestHeaders:
    """Return the headers of a request by lower-case name: see `parsed_headers`."""
    return parsed_headers(scope["headers"])


def parsed_headers(headers: Iterable[tuple[bytes, bytes]]) -> RequestHeaders:
    """Return `headers` by lower-case name. The first of several with one name counts, as in Starlette's `Headers`.

    Starlette's class searches a list at each lookup, and a request takes seven lookups.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(list(headers))}


def idempotency_key(headers: RequestHeaders) -> str | None:
    """Return the key of the `Idempotency-Key` header, bare or in quotes as the IETF draft writes it, None without one.

    Raises InvalidEvent if it can't be a key.
    """
    value = headers.get("idempotency-key")
    if value is None:
        return None
    key = value.encode("latin-1").decode(errors="replace")
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    return check_key("Idempotency-Key", key)


def require_identity(headers: RequestHeaders) -> None:
    """Raise UnsupportedContent if the body is compressed."""
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedContent(f"unsupported Content-Encoding {encoding[:40]!r}: send the body uncompressed")


def check_body(headers: RequestHeaders, declared: str, max_bytes: int) -> None:
    """Raise UnsupportedContent if the body is compressed, and BodyTooLarge if it is `declared` to be too large."""
    require_identity(headers)
    if declared.isascii() and declared.isdigit():
        check_size(int(declared[:20]), max_bytes)


def check_size(body_bytes: int, max_bytes: int) -> None:
    """Raise BodyTooLarge if the body has, or is declared to have, more than `max_bytes`."""
    if body_bytes > max_bytes:
        raise BodyTooLarge(f"the body has {body_bytes} bytes: at most {max_bytes} are allowed")


async def read_body(headers: RequestHeaders, receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises UnsupportedContent, BodyTooLarge as soon as the body is known to be larger than `max_bytes`, and
    ClientDisconnect.
    """
    check_body(headers, headers.get("content-length", "0"), max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                chunks.clear()  # the exception keeps this frame while the rest of the body is dropped
                raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
        if not message.get("more_body", False):
            return b"".join(chunks)


class DroppedBodies:
    """The rests of refused bodies, which are read and discarded within bounds.

    Many clients read no response before they have sent everything. If the connection is closed while they send, the
    response is lost to them.
    """

    __slots__ = ("_seconds", "_throttle")

    def __init__(self, seconds: float = MAX_DROPPING_SECONDS) -> None:
        """Each of them is read for at most so many `seconds`."""
        self._seconds = seconds
        self._throttle = Throttle(DROPPED_BYTES_PER_SECOND, MAX_DROPPING_SECONDS, time.monotonic)

    async def refuse(self, response: Response, receive: Receive, send: Send) -> None:
        """Send the whole response at once, but end it only after the rest of the request.

        Clients that read while they send then stop early, and the others still get the response.
        """
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await self.drop(receive)
        await send({"type": "http.response.body", "body": b""})

    async def drop(self, receive: Receive) -> None:
        """Read the rest of one body, as fast as the others leave time for it."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while size < MAX_DROPPED_BYTES:
                    message = await receive()
                    part_bytes = len(message.get("body", b""))
                    size += part_bytes
                    if not message.get("more_body", False):
                        return
                    await asyncio.sleep(self._throttle.delay(part_bytes))
