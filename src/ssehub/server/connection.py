"""One connection of an HTTP server, apart from what HTTP says on it: its flow control, deadlines and end.

    wait         the server waits for …                                started
    HEAD         a request, or the rest of its head                    by the connection, or the head's first byte
    BODY         the rest of a body                                    by the end of the head
    MORE_BODY    enough of a body that takes longer                    when BODY has passed
    DISCARD      the rest of a body that nobody wants                  by the end of a response
    REQUEST      the next request, on a connection that is kept alive  by the end of a response
    REFUSED      the turn of a refused request to be answered          by its refusal
    DRAIN        the client to read what was written of a response     by `drain`
    FLUSH        the client to read what was written before the end    by `close`
    None         the app, or the hub: no deadline

`wait_for` alone changes the wait. Whatever a client does, one of these ends its connection, unless an app or the hub
still has something for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from ..buckets import Throttle
from ..fanout.refusals import ConnectionRefusal
from ..fanout.sinks import LINGER_SECONDS, TransportSink
from ..settings import RequestLimits
from ..web.fast_path import FastPath
from .deadlines import Deadlines, Wait
from .default_headers import DefaultHeaders
from .heads import UnfinishedHeads
from .known_heads import KnownHeads
from .refusals import ConnectionRefusals

RATE_SECONDS = 10.0
"""A body that takes longer than `body_seconds` is measured in intervals of this length."""
DISCARDED_BYTES_PER_SECOND = 16 * 2**20
"""How fast all connections together are read if nobody wants what they send."""
MAX_DELAY_SECONDS = 2.0
"""How long one connection waits for the others at the most, to be answered or to be read."""
MAX_UNFINISHED_BYTES = 64 * 2**20
"""How much the unfinished heads of all connections of a port take together at the most."""
_PORT = "ssehub"
"""Name of the attribute of uvicorn's ServerState that has our part of it."""


class Port:
    """What all connections of one uvicorn server share: its configuration, books and deadlines."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        limits: RequestLimits,
        max_connections: int | None,
        max_refusals_per_second: float,
        logs_access: bool,
        refusals: ConnectionRefusals,
        fast_paths: Mapping[bytes, FastPath],
    ) -> None:
        if not config.loaded:
            config.load()
        self.app: ASGIApp = config.loaded_app
        self.default_headers = DefaultHeaders(config.encoded_headers, has_date=config.date_header)
        self.app_state = app_state
        self.config = config
        self.loop = loop
        self.limits = limits
        self.max_connections = max_connections
        self.refusals = refusals
        self.fast_paths = fast_paths
        """By the paths of their requests."""
        self.known_heads = KnownHeads()
        self.discards = Throttle(DISCARDED_BYTES_PER_SECOND, MAX_DELAY_SECONDS, loop.time)
        """What nobody wants is read in turns: a client that floods the server must not keep it from its work."""
        self.refused_answers = Throttle(max_refusals_per_second, MAX_DELAY_SECONDS, loop.time)
        """Refused requests are answered in turns, for the same reason."""
        self.state = state
        self.connections: set[Any] = state.connections  # typed as uvicorn's own protocols there
        self.ws_protocol_class: Any = config.ws_protocol_class  # None, or called with keywords of uvicorn's own
        access_logger = logging.getLogger("uvicorn.access")
        is_logged = logs_access and config.access_log and access_logger.hasHandlers()
        self.access_logger = access_logger if is_logged else None
        self.asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self.unfinished_heads: UnfinishedHeads[Connection] = UnfinishedHeads(
            MAX_UNFINISHED_BYTES, Connection.drop_unfinished
        )
        self.deadlines: Deadlines[Connection] = Deadlines(
            loop,
            {
                Wait.HEAD: limits.head_seconds,
                Wait.BODY: limits.body_seconds,
                Wait.MORE_BODY: RATE_SECONDS,
                Wait.DISCARD: limits.body_seconds,
                Wait.REFUSED: 2 * MAX_DELAY_SECONDS,
                Wait.REQUEST: config.timeout_keep_alive,
                Wait.DRAIN: limits.body_seconds,
                Wait.FLUSH: LINGER_SECONDS,
            },
            Connection.expired,
        )
        vars(state)[_PORT] = self

    @classmethod
    def of(cls, state: ServerState) -> Port | None:
        """Return the port of the server with this `state`, None if that has had no connection yet."""
        port: Port | None = vars(state).get(_PORT)
        return port

    def has_concurrency_left(self) -> bool:
        limit = self.config.limit_concurrency
        return limit is None or (len(self.connections) < limit and len(self.state.tasks) < limit)


class Connection(asyncio.Protocol):
    """The transport of one client, and everything about it that does not depend on what the client has sent."""

    __slots__ = (
        "_server",
        "_unread_bytes",
        "_wait",
        "_writable",
        "client",
        "is_read_paused",
        "is_write_paused",
        "port",
        "stream",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, port: Port) -> None:
        self.port = port
        self.client: tuple[str, int] | None = None
        """The client's address, for `scope["client"]`."""
        self._server: tuple[str, int | None] | None = None
        self.stream: TransportSink | None = None
        """The stream that writes to the transport in place of the server."""
        self.is_read_paused = False
        self.is_write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._wait: Wait | None = None
        self._unread_bytes = 0
        """How much the client had not read when the running deadline of DRAIN or FLUSH began."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses of it
        self.client = peer_of(transport)
        port = self.port
        port.connections.add(self)
        self.wait_for(Wait.HEAD)
        if port.max_connections is not None and len(port.connections) > port.max_connections:
            self._drop_oldest()

    @property
    def server(self) -> tuple[str, int | None] | None:
        """The address that the client has called, for `scope["server"]`. It is looked up at its first use."""
        if self._server is None:
            self._server = _name_of(self.transport)
        return self._server

    @property
    def scheme(self) -> str:
        """`https` over TLS, for `scope["scheme"]`."""
        return "https" if self.transport.get_extra_info("sslcontext") else "http"

    def connection_lost(self, exc: Exception | None) -> None:
        self.port.connections.discard(self)
        self.wait_for(None)
        stream, self.stream = self.stream, None
        self.resume_writing()
        if stream is not None:
            stream.connection_lost()

    def wait_for(self, wait: Wait | None) -> None:
        """Start the deadline of `wait`, unless it is running already, in place of any other."""
        before = self._wait
        if wait is before:
            return
        if before is not None:
            self.port.deadlines.stop(self, before)
        self._wait = wait
        if wait is not None:
            self.port.deadlines.start(self, wait)

    def expired(self, wait: Wait) -> None:
        """The deadline of `wait` has passed."""
        self._wait = None
        self.expire(wait)

    def drop(self) -> None:
        """Close the connection at once, whatever is on it."""
        self.port.connections.discard(self)
        self.wait_for(None)
        self.transport.abort()

    def refuse(self, reason: ConnectionRefusal, detail: str) -> None:
        """Count and log that this connection, or a request on it, is refused."""
        self.port.refusals.refuse(reason, self.client, detail)

    def drop_unfinished(self) -> None:
        """Drop the connection, because unfinished heads take too much memory and this one has waited longest."""
        self.refuse(ConnectionRefusal.MEMORY, "unfinished heads of requests take too much memory")
        self.drop()

    def _drop_oldest(self) -> None:
        """Make room for this connection: drop the one that has sent nothing of use for longest."""
        deadlines = self.port.deadlines
        oldest = deadlines.oldest(Wait.REFUSED, Wait.HEAD)
        if oldest is self:
            oldest = deadlines.oldest(Wait.REQUEST, Wait.DISCARD, Wait.HEAD)
        assert oldest is not None  # this connection waits for its head
        oldest.refuse(ConnectionRefusal.FULL, "it makes room for another connection")
        oldest.drop()

    def close(self) -> None:
        """Close the connection when the client has read what was written, or reads it too slowly."""
        transport = self.transport
        if transport.is_closing():
            return
        transport.close()
        self._unread_bytes = transport.get_write_buffer_size()
        self.wait_for(Wait.FLUSH if self._unread_bytes else None)

    def refusal_delay(self) -> float:
        """Return for how many seconds a request that is refused now has to wait. Until then nothing more is read."""
        delay = self.port.refused_answers.delay()
        if delay:
            self.pause_reading()  # what arrives while nothing is read would drop the connection
            self.wait_for(Wait.REFUSED)
        return delay

    def check_reader(self, wait: Wait) -> None:
        """Go on with `wait`, DRAIN or FLUSH, if the client has read enough in the time that it had, else drop it."""
        port = self.port
        before, self._unread_bytes = self._unread_bytes, self.transport.get_write_buffer_size()
        if before - self._unread_bytes >= max(1, port.deadlines.seconds(wait) * port.limits.min_body_bytes_per_second):
            self.wait_for(wait)
        else:
            self.refuse(ConnectionRefusal.UNREAD, "the client does not read its response")
            self.drop()

    def eof_received(self) -> None:
        """Close the connection. The transport would do so itself, but without a deadline for the client to read."""
        self.close()

    # What HTTP says

    def expire(self, wait: Wait) -> None:
        """The client has not sent in time what `wait` names."""
        raise NotImplementedError

    def restore_deadline(self) -> None:
        """DRAIN or REFUSED is over: wait again for what the request needs."""
        raise NotImplementedError

    def read_on(self) -> None:
        """An app waits for what the client sends, or for its end."""
        raise NotImplementedError

    def has_further_requests(self) -> bool:
        """True if the client has sent anything after the request that is being answered."""
        raise NotImplementedError

    def response_completed(self, is_persistent: bool) -> None:
        """The response to the request that is being answered has been written."""
        raise NotImplementedError

    def stream_begun(self) -> None:
        """The rest of the response and the connection belong to `stream`."""
        raise NotImplementedError

    # Flow control

    def pause_reading(self) -> None:
        if not self.is_read_paused:
            self.is_read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_read_paused:
            self.is_read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self.stream is not None:
            self.stream.pause_writing()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)
            if not self.transport.is_closing():
                self.restore_deadline()
        if self.stream is not None:
            self.stream.resume_writing()

    async def drain(self) -> None:
        """Wait until the client has read most of what was written, or the connection is lost."""
        while self.is_write_paused:
            if self._writable is None:
                self._writable = self.port.loop.create_future()
                if not self.transport.is_closing():
                    self._unread_bytes = self.transport.get_write_buffer_size()
                    self.wait_for(Wait.DRAIN)
            await asyncio.shield(self._writable)


def peer_of(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Return the address of the client, None on a Unix socket, and if the connection is lost already.

    uvicorn's function makes a socket object, and asks the kernel for what the transport knows.
    """
    name = transport.get_extra_info("peername")
    return (name[0], name[1]) if isinstance(name, tuple) else None


def _name_of(transport: asyncio.BaseTransport) -> tuple[str, int | None] | None:
    """Return the address of the server's end: a host and a port, or the path of a Unix socket and None."""
    try:
        name = transport.get_extra_info("sockname")
    except OSError:  # raised by uvloop, if the connection is lost
        return None
    if isinstance(name, tuple):
        return name[0], name[1]
    return (name, None) if isinstance(name, str) else None
