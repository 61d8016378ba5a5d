"""One request and its response: the `receive` and `send` that an ASGI app is called with.

The head of a response is written together with the first part of its body, since each write is a system call and a
packet. If the app sends nothing more in the same turn of the event loop, the head is written alone.
"""

from __future__ import annotations

import asyncio
import http
import logging
import re
from collections.abc import Coroutine, Iterable
from functools import lru_cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from ..fanout.refusals import ConnectionRefusal
from ..fanout.sinks import LAST_CHUNK, TransportSink
from .connection import Connection

logger = logging.getLogger("uvicorn.error")

HIGH_WATER_BYTES = 64 * 2**10
"""Reading pauses while more than this of a request's body waits for the app."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER_ERROR = b"Internal Server Error"

Headers = Iterable[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110, section 5.5
_WITHOUT_BODY = (204, 304)
_CLOSE = b"connection: close\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_MAX_CACHED_BYTES = 100


class Exchange:
    """One request and its response, on `connection`.

    It is also what `ssehub.web.stream` takes over to write a stream to the transport itself.
    """

    __slots__ = (
        "_access_scope",
        "_adopted",
        "_body",
        "_connection",
        "_ends_with_connection",
        "_has_body_ended",
        "_has_delivered_end",
        "_has_no_body",
        "_head",
        "_is_chunked",
        "_is_complete",
        "_is_handed_over",
        "_remaining",
        "_waiters",
        "body_bytes",
        "has_started",
        "has_unlimited_body",
        "is_disconnected",
        "is_persistent",
        "needs_continue",
    )

    def __init__(
        self, connection: Connection, *, method: str, version: str, is_persistent: bool, needs_continue: bool
    ) -> None:
        self._connection = connection
        self._has_no_body = method == "HEAD"
        """True if whatever the app sends as a body is left out (RFC 9110, section 6.4.1)."""
        self._ends_with_connection = version == "1.0"
        """True if the response is not chunked: the end of the connection is its end."""
        self.is_persistent = is_persistent
        """False if the connection is to be closed after the response."""
        self.needs_continue = needs_continue
        self.is_disconnected = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        """Tasks that wait in `receive`: there is hardly ever more than one."""
        self._access_scope: Scope | None = None
        """The scope until the access log has been written: the app may remove a token from it before that."""
        self._adopted: Coroutine[Any, Any, None] | None = None
        """What goes on in place of the app, once that has returned."""
        # The request
        self.has_unlimited_body = False
        """True if the client may take as long as it likes to send the body."""
        self._body: list[bytes] = []
        self.body_bytes = 0
        self._has_body_ended = False
        self._has_delivered_end = False
        # The response
        self.has_started = False
        """True if the server has received the response's head from the app."""
        self._is_complete = False
        self._is_handed_over = False
        self._is_chunked = False
        self._remaining: int | None = None
        """How much of a body of a known length is still to come."""
        self._head = b""
        """The head of the response, while it has not been written."""

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Call `app`, and end the response if it does not do so itself."""
        if self._connection.port.access_logger is not None:
            self._access_scope = scope
        try:
            result = await app(scope, self.receive, self.send)  # type: ignore[func-returns-value]  # apps may be wrong
            if (work := self._adopted) is not None:
                del app, scope
                self._adopted = None
                await work
        except asyncio.CancelledError:
            self._connection.drop()
            raise
        except BaseException as exc:
            logger.error("Exception in ASGI application\n", exc_info=exc)
            await self._fail()
        else:
            if failure := self._failure(result):
                logger.error("ASGI callable %s", failure)
                await self._fail()
        finally:
            self._access_scope = None  # it refers to this object
            if self._adopted is not None:  # the app has failed after all
                self._adopted.close()
                self._adopted = None

    @property
    def client(self) -> tuple[str, int] | None:
        return self._connection.client

    @property
    def server(self) -> tuple[str, int | None] | None:
        return self._connection.server

    @property
    def _is_lost(self) -> bool:
        """True if nobody reads the response any more."""
        return self.is_disconnected or self._connection.transport.is_closing()

    def _failure(self, result: object) -> str | None:
        """Return in which way an app that returned `result` was wrong."""
        if result is not None:
            return f"should return None, but returned '{result}'."
        if self._is_complete or self._is_handed_over or self._is_lost:
            return None
        return f"returned without {'completing' if self.has_started else 'starting'} response."

    async def _fail(self) -> None:
        """Answer 500 or, if the response has begun, close the connection, so that the client does not wait."""
        if self.has_started:
            self.flush()
            self._connection.close()
            return
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(SERVER_ERROR)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": SERVER_ERROR})

    # The request

    def body_received(self, body: bytes) -> None:
        self._body.append(body)
        self.body_bytes += len(body)
        if self.body_bytes > HIGH_WATER_BYTES:
            self._connection.pause_reading()
        self._wake()

    @property
    def body(self) -> bytes:
        """What has arrived of the body, and the app has not taken."""
        return b"".join(self._body)

    @property
    def has_enough_body(self) -> bool:
        """True if nothing more of the body should be read, until the app has taken what has arrived."""
        return self.body_bytes > HIGH_WATER_BYTES

    def body_ended(self) -> None:
        self._has_body_ended = True
        self._wake()

    def disconnected(self) -> None:
        """The client has disconnected, or is treated as if it had."""
        self.is_disconnected = True
        self._wake()

    async def receive(self) -> Message:
        if self.needs_continue:
            self.needs_continue = False
            if not self._connection.transport.is_closing():
                self._connection.transport.write(CONTINUE)
        while not self._is_complete:
            has_part = self._body or (self._has_body_ended and not self._has_delivered_end)
            if has_part and (self.has_unlimited_body or not self.is_disconnected):
                return self._next_part()
            if self.is_disconnected:
                break
            self._connection.read_on()
            waiter = self._connection.port.loop.create_future()
            # The others go on waiting if one is cancelled.
            self._waiters = (*[other for other in self._waiters if not other.done()], waiter)
            await waiter
        return {"type": "http.disconnect"}

    def unlimit_body(self) -> None:
        self.has_unlimited_body = True
        if not self._connection.transport.is_closing():
            self._connection.restore_deadline()

    def adopt(self, work: Coroutine[Any, Any, None], receive: Receive) -> bool:
        if getattr(receive, "__self__", None) is not self:
            return False
        self._adopted = work
        return True

    def _next_part(self) -> Message:
        body = b"".join(self._body)
        self._body, self.body_bytes = [], 0
        self._has_delivered_end = self._has_body_ended
        return {"type": "http.request", "body": body, "more_body": not self._has_body_ended}

    def _wake(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, ()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # The response

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection.is_write_paused and not self.is_disconnected:
            await connection.drain()
        if self._is_lost:
            return
        kind = message["type"]
        if self._is_complete:
            raise RuntimeError(f"Unexpected ASGI message {kind!r} sent, after response already completed.")
        expected = "http.response.body" if self.has_started else "http.response.start"
        if kind != expected:
            raise RuntimeError(f"Expected ASGI message {expected!r}, but got {kind!r}.")
        if self.has_started:
            self._send_body(message.get("body", b""), message.get("more_body", False))
            return
        status = message["status"]
        if 400 <= status < 500 and (delay := connection.refusal_delay()):
            await asyncio.sleep(delay)
            if self._is_lost:
                return
            connection.restore_deadline()
        self._start(status, message.get("headers", ()))
        connection.port.loop.call_soon(self.flush)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Write the whole response, in place of an app: `headers` have its length. A client that has left gets none."""
        if self._is_lost:
            return
        connection = self._connection
        self.has_started = self._is_complete = True
        first, lines, has_close = _head_often(status, tuple(headers))
        if has_close:
            self.is_persistent = False
        elif not self.is_persistent:
            lines += _CLOSE
        connection.transport.write(b"%b%b%b\r\n%b" % (first, connection.port.default_headers.lines(), lines, body))
        connection.response_completed(self.is_persistent)

    def _start(self, status: int, headers: Headers) -> None:
        self.has_started = True
        self.needs_continue = False
        lines = [_status_line(status), self._connection.port.default_headers.lines()]
        has_close = False
        for name, value in headers:
            special, line = _parsed(name, value)
            lines.append(line)
            if special is None:
                continue
            if special == b"content-length" and not self._is_chunked:
                self._remaining = int(value)
            elif special == b"transfer-encoding" and value.lower() == b"chunked":
                self._is_chunked, self._remaining = True, None
            elif special == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
                self.is_persistent = False
                has_close = True
        self._choose_framing(status, lines)
        self._log_access(status)
        if not self.is_persistent and not has_close:
            lines.append(_CLOSE)
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def _log_access(self, status: int) -> None:
        scope: Any = self._access_scope
        self._access_scope = None
        access_logger = self._connection.port.access_logger
        if scope is not None and access_logger is not None:
            access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                get_client_addr(scope),
                scope["method"],
                get_path_with_query_string(scope),
                scope["http_version"],
                status,
            )

    def _choose_framing(self, status: int, lines: list[bytes]) -> None:
        if status in _WITHOUT_BODY:
            self._has_no_body = True
        if self._has_no_body or self._is_chunked or self._remaining is not None:
            return
        if self._ends_with_connection:
            self.is_persistent = False
            return
        self._is_chunked = True
        lines.append(_CHUNKED)

    def _send_body(self, body: bytes, more_body: bool) -> None:
        if self._has_no_body:
            body, self._remaining = b"", None
        elif self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more_body:
                body += LAST_CHUNK
        elif self._remaining is not None:
            self._remaining -= len(body)
            if self._remaining < 0:
                raise RuntimeError("Response content longer than Content-Length")
        data = self.take_head() + body
        if data:
            self._connection.transport.write(data)
        if more_body:
            return
        if self._remaining:
            raise RuntimeError("Response content shorter than Content-Length")
        self._is_complete = True
        self._wake()
        self._connection.response_completed(self.is_persistent)

    def take_head(self) -> bytes:
        """Return the head if it has not been written yet; the caller writes it."""
        head, self._head = self._head, b""
        return head

    def flush(self) -> None:
        if self._head and not self._is_lost:
            self._connection.transport.write(self.take_head())

    def cut(self) -> None:
        self.flush()
        self._connection.close()

    def drop(self) -> None:
        self._connection.drop()

    # A stream in place of the response

    def open_stream(self, *, cuts: bool) -> TransportSink | None:
        connection = self._connection
        if self._is_lost:
            return None
        if connection.is_write_paused or connection.has_further_requests():
            # A client that has sent further requests, or leaves earlier responses unread, is not waiting for a stream.
            self.is_disconnected = True
            if connection.is_write_paused:
                connection.refuse(ConnectionRefusal.UNREAD, "earlier responses are unread")
            else:
                connection.refuse(ConnectionRefusal.PIPELINED, "another request follows one for a stream")
            connection.drop()
            return None
        connection.stream = TransportSink(connection.transport, is_chunked=not self._ends_with_connection, cuts=cuts)
        return connection.stream

    def hand_over(self) -> bytes:
        self._is_handed_over = True
        self._connection.stream_begun()
        return self.take_head()

    def begin_stream(self, status: int, headers: Headers) -> bytes:
        first, lines, has_close = _head_often(status, tuple(headers))
        if not self._ends_with_connection:
            lines += _CHUNKED
        if not self.is_persistent and not has_close:
            lines += _CLOSE
        default = self._connection.port.default_headers.lines()
        self.has_started = True
        self._head = b"%b%b%b\r\n" % (first, default, lines)
        return self.hand_over()

    def close_stream(self) -> None:
        self._connection.stream = None


@lru_cache(64)
def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


def _parsed(name: bytes, value: bytes) -> tuple[bytes | None, bytes]:
    """Return the lower-case name of a header that means something to the server, else None; and the header's line.

    Raises RuntimeError for a header that an app must not send.
    """
    return _parse_often(name, value) if len(value) <= _MAX_CACHED_BYTES else _parse(name, value)


def _parse(name: bytes, value: bytes) -> tuple[bytes | None, bytes]:
    if not _NAME.fullmatch(name):
        raise RuntimeError("Invalid HTTP header name.")
    if not _VALUE.fullmatch(value):
        raise RuntimeError("Invalid HTTP header value.")
    name = name.lower()
    special = name if name in (b"content-length", b"transfer-encoding", b"connection") else None
    return special, b"%b: %b\r\n" % (name, value)


_parse_often = lru_cache(512)(_parse)
"""Most headers of most responses are the same every time."""


@lru_cache(256)
def _head_often(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, bytes, bool]:
    """Return the status line, the lines of `headers`, and True if one of them closes the connection."""
    parsed = [_parsed(name, value) for name, value in headers]
    lines = b"".join([line for _, line in parsed])
    return _status_line(status), lines, b"connection" in [special for special, _ in parsed]
