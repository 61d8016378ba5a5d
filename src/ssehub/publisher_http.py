"""An HTTP/1.1 client connection that hears the answer while it still sends the body.

httpx sends the whole body before it reads anything: it raises ReadError where a server answers early and closes the
connection, so that the answer (the run was stopped, another producer took it over) is never seen. This connection reads
the answer while it sends.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import httptools

from .errors import ControlKeyError, Forbidden, InvalidRequest, Overloaded, SSEHubError, Unavailable

MAX_ANSWER_BYTES = 1_048_576
TEMPORARY_STATUSES = (502, 503, 504)
_ERRORS: dict[int, type[SSEHubError]] = {401: ControlKeyError, 403: Forbidden, 429: Overloaded}


def refusal(url: str, status: int, reason: str) -> SSEHubError:
    """Return the exception for a hub's answer that is not 200."""
    error = _ERRORS.get(status, InvalidRequest if status < 500 else Unavailable)
    return error(f"{url} responded with {status}: {reason}")


class Answer(NamedTuple):
    """A response that has arrived whole."""

    status: int
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object in its body; empty if there is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def reason(self) -> str:
        """The message of a refusal."""
        error = self.fields.get("error")
        return error if isinstance(error, str) else " ".join(self.body.decode(errors="replace").split())[:500]


class Node(NamedTuple):
    """The address of a control app, and the headers of each request."""

    url: str
    """For messages: without user name and password."""
    host: str
    port: int
    path: str
    """What comes before `/runs/`; without a slash at its end."""
    tls: ssl.SSLContext | None
    headers: Mapping[str, str]
    socket_path: str | None = None
    """The Unix socket that it listens on, in place of host and port."""


class Connection(asyncio.Protocol):
    """A connection to `node`, for one request after another.

    A request begins with `begin`. Without a body there, any number of `write` and then `end` follow, as chunks. Its
    answer is in `answer` as soon as it is there, which may be before `end`. `on_change` is called when an answer has
    arrived or the connection is lost, and `on_part` with each part of the body of a 200, which is not kept then.
    Nothing waits until the network has taken what is written: the caller bounds it.
    """

    def __init__(self, node: Node, on_change: Callable[[], None]) -> None:
        self.node = node
        self.answer: Answer | None = None
        self.is_lost = False
        self._on_change = on_change
        self._on_part: Callable[[bytes], None] | None = None
        self._has_changed = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._in_request = False
        self._in_answer = False
        self._is_framed = False
        """True if the end of the answer's body can be told from its headers."""
        self._keeps_alive = True

    @property
    def is_usable(self) -> bool:
        """True if another request may be sent."""
        return self._keeps_alive and not (self.is_lost or self._in_request)

    @property
    def is_answering(self) -> bool:
        """True if an answer has begun."""
        return self._in_answer or self.answer is not None

    @property
    def unsent_bytes(self) -> int:
        """How much the network has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def begin(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        on_part: Callable[[bytes], None] | None = None,
    ) -> None:
        """Send the head of a request for `path` below the node's, and its body if it is given."""
        assert self.is_usable
        self.answer = None
        self._on_part = on_part
        self._in_request = body is None
        fields = {
            **self.node.headers,
            **headers,
            **({"Transfer-Encoding": "chunked"} if body is None else {"Content-Length": str(len(body))}),
        }
        lines = [f"{method} {self.node.path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def write(self, data: bytes) -> None:
        """Send a part of the body, which may not be empty."""
        self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Send the end of the body."""
        self._in_request = False
        self._send(b"0\r\n\r\n")

    async def answered(self, timeout_seconds: float) -> Answer:
        """Wait for the answer. Raises OSError if the connection is lost before, or after `timeout_seconds`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.answer is None:
                    if self.is_lost:
                        raise ConnectionResetError("the connection was closed without an answer")
                    self._has_changed.clear()
                    await self._has_changed.wait()
        except TimeoutError:
            raise TimeoutError(f"no answer within {timeout_seconds:g} s") from None
        return self.answer

    def close(self) -> None:
        """Close the connection at once. A body that has not ended breaks off."""
        self._keeps_alive = False
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self.is_lost:
            self._transport.write(data)

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        if len(self._body) > MAX_ANSWER_BYTES:
            self.close()

    def eof_received(self) -> None:
        self._end_unframed_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._end_unframed_answer()
        self._notify()

    def _end_unframed_answer(self) -> None:
        if self._in_answer and not self._is_framed:
            self._complete(keeps_alive=False)

    # The parser calls these.

    def on_message_begin(self) -> None:
        self._body = bytearray()
        self._is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        self._in_answer = self._parser.get_status_code() >= 200
        if self._on_part is not None:
            self._notify()  # an answer that is read in parts has begun

    def on_body(self, body: bytes) -> None:
        if self._on_part is not None and self._parser.get_status_code() == 200:
            self._on_part(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if self._in_answer:  # not an interim answer such as 100 Continue
            self._complete(keeps_alive=self._parser.should_keep_alive())

    def _complete(self, *, keeps_alive: bool) -> None:
        self._in_answer = False
        self._keeps_alive = self._keeps_alive and keeps_alive
        self.answer = Answer(self._parser.get_status_code(), bytes(self._body))
        self._notify()

    def _notify(self) -> None:
        self._has_changed.set()
        self._on_change()


def run_path(name: str, call: str = "") -> str:
    """Return the path of a run, or of one of the calls about it."""
    return f"/runs/{urllib.parse.quote(name, safe='')}{call}"
