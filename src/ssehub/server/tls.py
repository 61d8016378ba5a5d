"""TLS: the handshake of a connection, which counts like any other part of it, and the transport behind it.

asyncio's own TLS servers tell the protocol about a connection after its handshake. Until then nobody counts it, and
nobody but asyncio ends it. Here the listener accepts plain connections, and each begins with a `TlsHandshake`: it is
among the server's connections from its first moment, and has the time that the head of a request has.

    stage      what happens                                                     next
    BEGINNING  waits for the first byte, which shows whether the client         HANDSHAKE, REFUSED
               speaks TLS
    HANDSHAKE  waits for its turn; then `loop.start_tls` is at work             DONE
    REFUSED    the client speaks plain HTTP: it is told so, and the connection
               is closed
    DONE       the HTTP protocol has taken over, or the connection is lost

A PROXY preamble comes before all this. What has arrived behind it, and the first bytes of the handshake, are passed on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, cast

from ..fanout.refusals import ConnectionRefusal
from ..fanout.sinks import HIGH_WATER_BYTES, LINGER_SECONDS, LOW_WATER_BYTES
from ..loglimit import limited_logger
from .certificates import ServerCertificate
from .connection import Connection
from .deadlines import Wait
from .heads import Refusal

logger = limited_logger("ssehub.http")

_HANDSHAKE_RECORD = b"\x16"
"""The first byte of every TLS connection (RFC 8446, section 5.1)."""
PLAIN_HTTP = Refusal(400, "Bad Request", ConnectionRefusal.PLAIN_HTTP, "This port speaks TLS: use https://")
ANSWER_SECONDS = 1.0
"""How long a client has to answer the end of TLS. Pools of idle connections never do."""
_NEVER_SECONDS = 86_400.0
"""For the deadlines of asyncio, which all begin later than ours and end nothing that ours do not."""
HANDSHAKES_PER_PASS = 2
"""How many handshakes begin in one pass of the event loop."""


class Stage(Enum):
    BEGINNING = "beginning"
    HANDSHAKE = "handshake"
    REFUSED = "refused"
    DONE = "done"


_NEXT: dict[Stage, tuple[Stage, ...]] = {
    Stage.BEGINNING: (Stage.HANDSHAKE, Stage.REFUSED, Stage.DONE),
    Stage.HANDSHAKE: (Stage.DONE,),
    Stage.REFUSED: (Stage.DONE,),
    Stage.DONE: (Stage.DONE,),
}


class Turns:
    """Begins handshakes a few at a time, so that those of a crowd do not keep the event loop from open streams.

    Each takes 0.5 ms of a processor with a key of P-256, 1.5 ms with RSA. All that arrive together would run in one
    pass of the loop: 1,000 delayed a stream by 0.5 s or 2.3 s.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def wait(self, loop: asyncio.AbstractEventLoop, start: Callable[[], None]) -> None:
        """Call `start`, which must raise nothing, when it is its turn."""
        self._waiting.append(start)
        if len(self._waiting) == 1:
            loop.call_soon(self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(min(HANDSHAKES_PER_PASS, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            loop.call_soon(self._run, loop)


class TlsHandshake(Connection):
    """A connection until its handshake is done. Then `http` takes over."""

    __slots__ = ("_certificate", "_early", "_http", "_stage", "_turns")

    def __init__(self, http: Connection, certificate: ServerCertificate, turns: Turns) -> None:
        super().__init__(http.port)
        self._http = http
        self._certificate = certificate
        self._turns = turns
        self._early: list[bytes] = []
        """Data that the client has sent right behind its handshake, before `start_tls` has returned."""
        self._stage = Stage.BEGINNING

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.HANDSHAKE:  # decrypted: asyncio's loop delivers it before `start_tls` returns
            self._early.append(data)
        elif self._stage is Stage.BEGINNING:
            self._begin(data)

    def _begin(self, data: bytes) -> None:
        if data.startswith(_HANDSHAKE_RECORD):
            self._enter(Stage.HANDSHAKE)
            self.transport.pause_reading()  # more could arrive before TLS is there to read it
            self._turns.wait(self.port.loop, partial(self._start, data))
        elif b"A" <= data[:1] <= b"Z":  # the method of a request
            self.refuse(PLAIN_HTTP.reason, "plain HTTP on a port with TLS")
            self._enter(Stage.REFUSED)
            self.transport.write(PLAIN_HTTP.response(self.port.default_headers.lines()))
            self.close()
        else:
            self.refuse(ConnectionRefusal.TLS, "neither TLS nor HTTP on a port with TLS")
            self.drop()

    def _start(self, data: bytes) -> None:
        if self._stage is not Stage.HANDSHAKE:  # the connection has been lost meanwhile
            return
        loop = self.port.loop
        task = asyncio.Task(self._handshake(), loop=loop)  # its first step must not run now, as an eager task's would
        tasks = self.port.state.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        # The first step of the task makes the loop call `connection_made` of TLS and then `resume_reading`. `_feed` is
        # called right behind them, in the same turn of the loop, so before anything more is read.
        loop.call_soon(loop.call_soon, self._feed, data)

    def _feed(self, data: bytes) -> None:
        """Pass the bytes that were read to TLS, which is the protocol of the transport now."""
        if self.transport.is_closing():
            return
        protocol = cast(asyncio.BufferedProtocol, self.transport.get_protocol())
        rest = memoryview(data)
        while rest:
            buffer = memoryview(protocol.get_buffer(len(rest)))
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            protocol.buffer_updated(size)
            rest = rest[size:]

    async def _handshake(self) -> None:
        below = self.transport
        tls: asyncio.Transport | None = None
        try:
            if not below.is_closing():
                tls = await self.port.loop.start_tls(
                    below,
                    self,
                    self._certificate.context,
                    server_side=True,
                    ssl_handshake_timeout=_NEVER_SECONDS,
                    ssl_shutdown_timeout=_NEVER_SECONDS,
                )
        except OSError as exc:
            self._log(exc)
        finally:
            self._leave()
        # If the client has gone, asyncio's loop returns None, and uvloop a transport that is closing.
        if tls is not None and not tls.is_closing() and not below.is_closing():
            self._become_http(tls, below)

    def _become_http(self, tls: asyncio.Transport, below: asyncio.Transport) -> None:
        tls.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        http = self._http
        tls.set_protocol(http)
        http.connection_made(TlsTransport(tls, below))
        http.client = self.client  # a PROXY preamble may have named another one than that of the transport
        for data in self._early:
            if not tls.is_closing():  # the port is full, and this connection has made room for itself
                http.data_received(data)

    def _log(self, exc: OSError) -> None:
        if isinstance(exc, ssl.SSLError):
            reason = (exc.reason or "unknown error").lower().replace("_", " ")
            self.refuse(ConnectionRefusal.TLS, f"the handshake failed: {reason}")
        else:
            logger.debug("connection lost during the TLS handshake, from %s", self.client)

    def _enter(self, stage: Stage) -> None:
        """Change the stage. The table at the head of this file says what may follow what."""
        assert stage in _NEXT[self._stage], f"{self._stage} cannot be followed by {stage}"
        self._stage = stage

    def _leave(self) -> None:
        """From now on this object is not a connection of the server."""
        self._enter(Stage.DONE)
        self.port.connections.discard(self)
        self.wait_for(None)

    def expire(self, wait: Wait) -> None:
        if wait is Wait.FLUSH:
            self.check_reader(wait)
        else:
            self.refuse(ConnectionRefusal.TLS, "the handshake took too long")
            self.drop()

    def shutdown(self) -> None:
        """The server stops."""
        self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()


class TlsTransport(asyncio.Transport):
    """The transport of a connection with TLS, as the HTTP protocol and a stream's sink expect a transport to be.

    Of what was written, some is in the buffers of TLS, and some in those of the transport below. Both are unread.
    """

    __slots__ = ("_below", "_is_ending", "_tls")

    def __init__(self, tls: asyncio.Transport, below: asyncio.Transport) -> None:
        super().__init__()
        self._tls = tls
        self._below = below
        self._is_ending = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._below.is_closing():  # TLS would raise, or log a warning; neither loop tells it at once
            self._end()
        else:
            self._tls.write(data)

    def _end(self) -> None:
        """Drop a connection that the client has ended without reading what was written, as `close` has a deadline."""
        if not self._is_ending:
            self._is_ending = True
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._below.abort)

    def get_write_buffer_size(self) -> int:
        """Return how much of what was written has not been passed to the operating system."""
        return self._tls.get_write_buffer_size() + self._below.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self._tls.is_closing() or self._below.is_closing()

    def close(self) -> None:
        """Send the rest and the end of TLS, and wait a moment for the client's answer to that.

        Closing a socket on which something arrives afterwards resets the connection, and a proxy answers a reset by
        discarding what it has buffered.
        """
        if not self._tls.is_closing():  # asyncio's loop loses the connection at a second call
            self._tls.close()
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._below.is_closing():
            return
        if self.get_write_buffer_size():  # whoever has called `close` has a deadline for that
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._stop_waiting)
        else:
            self._below.close()

    def abort(self) -> None:
        self._tls.abort()

    def pause_reading(self) -> None:
        self._tls.pause_reading()

    def resume_reading(self) -> None:
        self._tls.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls.get_extra_info(name, default)


def over_tls(http: Callable[..., Connection], certificate: ServerCertificate) -> Callable[..., TlsHandshake]:
    """Return a factory with the arguments of `http` for connections that begin with a handshake."""

    turns = Turns()

    def make(**arguments: Any) -> TlsHandshake:
        return TlsHandshake(http(**arguments), certificate, turns)

    return make
