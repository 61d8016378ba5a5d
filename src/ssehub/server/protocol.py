"""The HTTP protocol: HTTP/1.1 and 1.0 on httptools, for uvicorn, with bounds on everything that a client sends.

Each connection has one request that is being answered and, behind it, a few that a client has sent ahead. An app may
take the connection over, to write a stream to the transport itself: `scope["extensions"]["ssehub.transport"]`.

What is being read of a request is a `Reading`, which `_enter` alone changes. What is answered is independent of that:
`_exchange`, and `_ahead` behind it.

What uvicorn's own protocol leaves open is bounded here: the size of a request's head, trailers and chunk extensions,
the number of requests that are read ahead, the time that a client takes, and the number of connections.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import httptools
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.server import ServerState

from ..fanout.refusals import ConnectionRefusal
from ..settings import RequestLimits
from ..web.fast_path import NO_FAST_PATHS, FastPath, Head
from ..web.transport import EXTENSION
from .connection import Connection, Port
from .deadlines import Wait
from .exchange import Exchange
from .heads import (
    BAD_METHOD,
    BAD_REQUEST,
    CHUNKS_TOO_LARGE,
    HEAD_TOO_LARGE,
    TIMEOUT,
    TOO_MANY_AHEAD,
    UNWANTED_BODY,
    URL_TOO_LONG,
    Refusal,
    Target,
    declared_length,
    objection,
    oversize,
    target,
)
from .reading import NEXT, Reading
from .refusals import UNCOUNTED, ConnectionRefusals

logger = logging.getLogger("ssehub.http")

BETWEEN, HEAD, BODY, NOTHING = Reading  # looking one up in the class takes longer, and a request needs two dozen

MAX_AHEAD = 8
"""How many requests a client may send before the first of them is answered, besides that one."""
PART_BYTES = 16 * 2**10
"""Heads and chunked bodies are parsed in parts of this size: the parser collects an unfinished field in memory."""
MAX_DISCARDED_BYTES = 32 * 2**20
"""How much of a request's body is read and discarded after the response to it."""

SERVICE_UNAVAILABLE: Any = service_unavailable  # typed with uvicorn's own types of messages


_NO_HEADERS: list[tuple[bytes, bytes]] = []
"""Of a connection on which no head is being read. Nothing is added to it: each request begins a list of its own."""


class Refused(Exception):
    """Raised by a callback of the parser, to stop it."""


class HttpProtocol(Connection):
    """Parses the requests of one connection, and runs the app for one after the other.

    While a stream is open, anything that the client sends drops the connection: such a client is not waiting for the
    stream, and behind a request that is not read the server would not notice that it disconnects.
    """

    __slots__ = (
        "_ahead",
        "_discarded_bytes",
        "_exchange",
        "_fast_left",
        "_fields_left",
        "_has_body_part",
        "_head_bytes",
        "_headers",
        "_held",
        "_overhead_bytes",
        "_parser",
        "_rated_bytes",
        "_reading",
        "_receiving",
        "_refusal",
        "_url",
    )

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: RequestLimits = RequestLimits(),
        max_connections: int | None = None,
        max_refusals_per_second: float = math.inf,
        logs_access: bool = True,
        refusals: ConnectionRefusals = UNCOUNTED,
        fast_paths: Mapping[bytes, FastPath] = NO_FAST_PATHS,
    ) -> None:
        port = Port.of(server_state)
        if port is None:
            port = Port(
                config,
                server_state,
                app_state,
                _loop or asyncio.get_event_loop(),
                limits,
                max_connections,
                max_refusals_per_second,
                logs_access,
                refusals,
                fast_paths,
            )
        super().__init__(port)
        self._exchange: Exchange | None = None
        """The request that is being answered."""
        self._ahead: tuple[tuple[Exchange, ASGIApp, Scope], ...] = ()
        """The requests behind it, in order. A stream, of which there are many, has no list here that would be empty."""
        # The request that is being read
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reading = BETWEEN
        self._url = b""
        self._headers = _NO_HEADERS
        self._head_bytes = 0
        """Size of the parts that the head has taken so far, without the last one."""
        self._receiving: Exchange | None = None
        """The exchange that gets the body; None if nobody wants it any more."""
        self._has_body_part = False
        self._overhead_bytes = 0
        """Size of the parts since the last one with some of the body: chunk extensions and trailers."""
        self._fields_left = 0
        """How many more headers and trailers the request may have."""
        self._rated_bytes = 0
        """How much has arrived in this interval of the body's deadline."""
        self._discarded_bytes = 0
        self._refusal: Refusal | None = None
        self._held: tuple[FastPath, Target, Exchange] | None = None
        """A request that waits for its body, if that is small, to be answered on a fast path: no app was called."""
        self._fast_left = 0
        """How many more requests of this read may be answered on a fast path."""

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self._reading is NOTHING:
            if self.stream is not None:
                self.refuse(ConnectionRefusal.PIPELINED, "more was sent on the connection of an open stream")
            self.drop()
            return
        begins = self._reading is BETWEEN and self._exchange is None
        if begins and self._answer_again(data):
            return
        self._rated_bytes += len(data)
        if len(data) <= PART_BYTES:
            self._fast_left = MAX_AHEAD
            self._feed(data, begins=begins)
        else:
            self._fast_left = 0
            rest = memoryview(data)
            while rest and self._is_reading():
                self._feed(rest[:PART_BYTES])
                rest = rest[PART_BYTES:]
        if self._reading is BODY and self._receiving is None:
            self._wait_to_discard(len(data))
        self._set_deadline()

    def _wait_to_discard(self, size: int) -> None:
        """Read no more for a while: `size` bytes have arrived of a body that nobody wants."""
        if delay := self.port.discards.delay(size):
            self.pause_reading()
            self.port.loop.call_later(delay, self.resume_reading)

    def _is_reading(self) -> bool:
        return self._reading is not NOTHING

    def _feed(self, part: bytes | memoryview, *, begins: bool = False) -> None:
        """`begins` says that a request begins with this part, which is all that was read, and nothing is before it."""
        try:
            self._parser.feed_data(part)
        except httptools.HttpParserUpgrade as exc:
            self._upgrade(bytes(part[exc.args[0] :]))
        except httptools.HttpParserError:
            self._refuse(self._refusal or BAD_REQUEST)
        else:
            self._settle(is_last=True, read=part if begins else b"")
            self._check_size(len(part))

    def _check_size(self, part_bytes: int) -> None:
        limits = self.port.limits
        if self._reading is HEAD:
            self._head_bytes += part_bytes
            # The first part may contain other requests before this one.
            if self._head_bytes > limits.max_head_bytes + PART_BYTES:
                self._refuse(HEAD_TOO_LARGE if self._headers else URL_TOO_LONG)
            else:
                self.port.unfinished_heads.add(self, part_bytes)
        elif self._reading is BODY:
            self._overhead_bytes = 0 if self._has_body_part else self._overhead_bytes + part_bytes
            self._has_body_part = False
            if self._overhead_bytes > limits.max_head_bytes:
                self._refuse(CHUNKS_TOO_LARGE)
            elif self._discarded_bytes > MAX_DISCARDED_BYTES:
                self._refuse(UNWANTED_BODY)

    def _set_deadline(self) -> None:
        if self._wait is Wait.DRAIN or self._wait is Wait.REFUSED or self.transport.is_closing():
            return
        if self._reading is HEAD:
            self.wait_for(Wait.HEAD)
        elif self._reading is BODY:
            if self._receiving is None:
                self.wait_for(Wait.DISCARD)
            elif self._receiving.has_unlimited_body:
                self.wait_for(None)
            elif self._wait is not Wait.MORE_BODY and self._wait is not Wait.BODY:
                self._rated_bytes = 0
                self.wait_for(Wait.BODY)
        elif self._exchange is not None or not self._is_reading():
            self.wait_for(None)
        elif self._wait is not Wait.HEAD:  # which a new connection waits for from the beginning
            self.wait_for(Wait.REQUEST)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._settle(is_last=False)
        if len(self._ahead) >= MAX_AHEAD:
            self._raise(TOO_MANY_AHEAD)
        self._enter(HEAD)
        self._url = b""
        self._headers = []
        self._fields_left = self.port.limits.max_head_fields

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields_left -= 1
        if self._fields_left < 0:
            self._raise(HEAD_TOO_LARGE)
        if self._reading is not BODY:  # there it is a trailer, which nobody uses
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._check_head()
        parser = self._parser
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                self._raise(BAD_METHOD)
            return  # the parser skips the body, and raises HttpParserUpgrade
        if self._wait is Wait.HEAD:
            self.wait_for(None)
        version = parser.get_http_version()
        method = parser.get_method().decode("ascii")
        found = target(self._url)
        if isinstance(found, Refusal):
            self._raise(found)
        self._begin_body()
        exchange = Exchange(
            self,
            method=method,
            version=version,
            is_persistent=version == "1.1" and parser.should_keep_alive(),
            needs_continue=version == "1.1" and (b"expect", b"100-continue") in self._headers,
        )
        self._receiving = exchange
        fast_path = self._fast_path(method, version, found, exchange)
        if fast_path is None:
            self._begin(exchange, self._scope(method, version, found, exchange))
        else:
            self._fast_left -= 1
            self._held = fast_path, found, exchange

    def on_body(self, body: bytes) -> None:
        self._has_body_part = True
        if self._receiving is not None:
            self._receiving.body_received(body)
        else:
            self._discarded_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._reading is HEAD:  # an upgrade
            return
        self._enter(BETWEEN)
        if self._wait is Wait.BODY or self._wait is Wait.MORE_BODY:
            self.wait_for(None)
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            receiving.body_ended()
        if not self._parser.should_keep_alive():  # a trailer may say so: the parser takes nothing behind this request
            self._end_behind(receiving)

    def _end_behind(self, exchange: Exchange | None) -> None:
        """Close the connection behind this answer; now, if it has been sent."""
        if exchange is not None:
            exchange.is_persistent = False
        elif self._exchange is None:
            self.close()

    def _begin_body(self) -> None:
        self._enter(BODY)
        self._has_body_part = True  # this part contains the head, which does not count as overhead
        self._overhead_bytes = self._discarded_bytes = 0

    def _check_head(self) -> None:
        max_bytes = self.port.limits.max_head_bytes
        refusal = None
        if self._head_bytes or max_bytes < PART_BYTES:
            refusal = oversize(self._url, self._headers, max_bytes)
        refusal = refusal or objection(self._parser.get_http_version(), self._headers)
        if refusal is not None:
            self._raise(refusal)

    def _enter(self, reading: Reading) -> None:
        """Change what is read. The table in `reading.py` says what may follow what."""
        assert reading in NEXT[self._reading], f"{self._reading} cannot be followed by {reading}"
        self._reading = reading
        if self._head_bytes:  # the head of several parts is complete, or nothing more of it is read
            self._head_bytes = 0
            self.port.unfinished_heads.remove(self)

    def _raise(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise Refused

    def _scope(self, method: str, version: str, target: Target, exchange: Exchange) -> Scope:
        path, raw_path, query = target
        root_path = self.port.config.root_path
        return {
            "type": "http",
            "asgi": self.port.asgi,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": root_path,
            "path": root_path + path,
            "raw_path": root_path.encode("ascii") + raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self.port.app_state.copy(),
            "extensions": {EXTENSION: {"connection": exchange}},
        }

    # Fast paths

    def _fast_path(self, method: str, version: str, target: Target, exchange: Exchange) -> FastPath | None:
        """Return the fast path that may answer the request, once all of it is there; None if an app is to do so."""
        _, raw_path, query = target
        fast_path = self.port.fast_paths.get(raw_path)
        if (
            fast_path is None
            or fast_path.method != method
            or not fast_path.takes(query)
            or not self._fast_left
            or self._exchange is not None
            or self.is_write_paused
            or version != "1.1"
            or exchange.needs_continue
        ):
            return None
        return fast_path

    def _settle(self, *, is_last: bool, read: bytes | memoryview = b"") -> None:
        """Answer the request that is held, or let an app do so. `is_last` says that nothing has arrived behind it.

        `read` is all that was read, if a request begins with it.
        """
        if self._held is None:
            return
        fast_path, target, exchange = self._held
        is_whole = self._reading is BETWEEN
        if not is_whole and is_last and max(exchange.body_bytes, declared_length(self._headers)) <= PART_BYTES:
            return  # many clients send head and body one after the other
        self._held = None
        if is_whole and (is_last or not fast_path.takes_connection):
            head = Head(target[2], self._headers)
            is_persistent = exchange.is_persistent  # until the answer may change that
            if self._answer_fast(fast_path, head, exchange.body, exchange):
                if read and is_persistent and head.admitted_at is not None:
                    self.port.known_heads.add(bytes(read), fast_path, head)
                return
        self._begin(exchange, self._scope(fast_path.method, "1.1", target, exchange))

    def _answer_again(self, data: bytes) -> bool:
        """Answer `data`, if it is one request with a known head, for which the parser has nothing to do."""
        known = self.port.known_heads.find(data)
        if known is None or self.is_write_paused or self.transport.is_closing():
            return False
        fast_path, head, body_bytes = known
        body = data[len(data) - body_bytes :]
        exchange = Exchange(self, method=fast_path.method, version="1.1", is_persistent=True, needs_continue=False)
        return self._answer_fast(fast_path, head, body, exchange)

    def _answer_fast(self, fast_path: FastPath, head: Head, body: bytes, exchange: Exchange) -> bool:
        self._exchange = exchange
        if self._wait is Wait.HEAD:
            self.wait_for(None)
        if not fast_path.answer(head, body, exchange):
            self._exchange = None
            return False
        if self._exchange is exchange:  # the answer comes later, or the client has left
            self.wait_for(None)
        return True

    # Upgrades

    def _upgrade(self, rest: bytes) -> None:
        """Hand the connection to the WebSocket protocol, or ignore any other upgrade (RFC 9110, section 7.8)."""
        headers = dict(self._headers)
        if self.port.ws_protocol_class is not None and headers[b"upgrade"].lower() == b"websocket":
            self._upgrade_to_websocket(rest)
        else:
            logger.debug("a client asked to upgrade its connection: the request is answered without the upgrade")
            self._headers = [(name, value) for name, value in self._headers if name != b"upgrade"]
            head = self._head()
            self._parser = httptools.HttpRequestParser(self)
            self._feed(head + rest)

    def _upgrade_to_websocket(self, rest: bytes) -> None:
        if self._exchange is not None:  # the upgrade would have to wait for a response
            self._refuse(BAD_REQUEST)
            return
        self._enter(NOTHING)
        port = self.port
        port.connections.discard(self)
        self.wait_for(None)
        protocol = port.ws_protocol_class(config=port.config, server_state=port.state, app_state=port.app_state)
        protocol.connection_made(self.transport)
        protocol.data_received(self._head() + rest)
        self.transport.set_protocol(protocol)
        self._parser = None

    def _head(self) -> bytes:
        """Return the head of the request as the client has sent it, apart from the headers that were removed."""
        parser = self._parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self._headers]
        return b"\r\n".join([*lines, b"", b""])

    # Exchanges

    def _begin(self, exchange: Exchange, scope: Scope) -> None:
        app = self.port.app if self.port.has_concurrency_left() else SERVICE_UNAVAILABLE
        if self._exchange is None:
            self._run(exchange, app, scope)
        else:
            self.pause_reading()
            self._ahead = (*self._ahead, (exchange, app, scope))

    def _run(self, exchange: Exchange, app: ASGIApp, scope: Scope) -> None:
        self._exchange = exchange
        port = self.port
        context = contextvars.Context() if port.config.reset_contextvars else None
        work = exchange.run(app, scope)
        task = port.loop.create_task(work) if context is None else port.loop.create_task(work, context=context)
        port.state.tasks.add(task)
        task.add_done_callback(port.state.tasks.discard)

    def read_on(self) -> None:
        # Without this the body of a request ahead would be collected while an app asks whether its client is there.
        receiving = self._receiving
        if receiving is None or not receiving.has_enough_body:
            self.resume_reading()

    def has_further_requests(self) -> bool:
        return bool(self._ahead) or self._reading is HEAD or not self._is_reading()

    def response_completed(self, is_persistent: bool) -> None:
        self.port.state.total_requests += 1
        exchange, self._exchange = self._exchange, None
        if self._receiving is exchange:
            self._receiving = None
        if self.transport.is_closing():
            return
        if not is_persistent:
            self._ahead = ()
            self.close()
            return
        if self._ahead:
            first, self._ahead = self._ahead[0], self._ahead[1:]
            self._run(*first)
        if not self._ahead:
            self.resume_reading()
        if self._wait is Wait.REQUEST and self._exchange is None:  # it was answered at once, on a fast path
            self.port.deadlines.restart(self, Wait.REQUEST)
        else:
            self._set_deadline()

    def stream_begun(self) -> None:
        self._enter(NOTHING)
        self._exchange = self._receiving = self._parser = None
        self._headers = _NO_HEADERS
        self._url = b""
        self.wait_for(None)
        self.resume_reading()

    # The end

    def _refuse(self, refusal: Refusal) -> None:
        """Read nothing more. Answer with `refusal` if it is the turn of that request, and close the connection."""
        self._settle(is_last=False)
        self.refuse(refusal.reason, refusal.message.removesuffix("."))
        is_answered = self._reading is BODY and self._exchange is None
        self._enter(NOTHING)
        self._parser = None
        receiving, self._receiving = self._receiving, None
        if receiving is not None and self._ahead and self._ahead[-1][0] is receiving:
            self._ahead = self._ahead[:-1]
        if is_answered:
            self.close()
        elif self._exchange is None:
            self._answer(refusal)
        elif receiving is self._exchange:
            receiving.disconnected()
            if receiving.has_started:
                self.close()
            else:
                self._answer(refusal)
        else:  # the responses that are due come first
            last = self._ahead[-1][0] if self._ahead else self._exchange
            last.is_persistent = False

    def _answer(self, refusal: Refusal) -> None:
        self._close_with(refusal.response(self.port.default_headers.lines()), self.refusal_delay())

    def _close_with(self, response: bytes, delay: float) -> None:
        if delay:
            self.port.loop.call_later(delay, self._close_with, response, 0.0)
        elif not self.transport.is_closing():
            self.transport.write(response)
            self.close()

    def expire(self, wait: Wait) -> None:
        if wait is Wait.DISCARD or (wait is Wait.HEAD and self._reading is HEAD):
            self._refuse(TIMEOUT)
        elif wait is Wait.REQUEST or wait is Wait.HEAD or wait is Wait.REFUSED:
            self.close()
        elif wait is Wait.FLUSH or wait is Wait.DRAIN:
            self.check_reader(wait)
        else:
            self._check_rate(self.port.deadlines.seconds(wait))

    def _check_rate(self, seconds: float) -> None:
        """Go on waiting for a body that arrives fast enough, or that the app does not read."""
        if self.is_read_paused or self._rated_bytes >= seconds * self.port.limits.min_body_bytes_per_second:
            self._rated_bytes = 0
            self.wait_for(Wait.MORE_BODY)
        else:
            self._refuse(TIMEOUT)

    def restore_deadline(self) -> None:
        self.wait_for(None)
        self._set_deadline()

    def shutdown(self) -> None:
        """Close the connection, once the request that is being answered has its response: uvicorn stops."""
        exchange = self._exchange if self._held is None else self._held[-1]
        if exchange is not None:
            exchange.is_persistent = False
        elif self.stream is None:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._enter(NOTHING)
        self._receiving = self._parser = self._held = None
        self._ahead = ()
        super().connection_lost(exc)
        if exchange is not None:
            exchange.disconnected()
