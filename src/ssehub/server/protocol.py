"""The HTTP protocol: uvicorn's on httptools, extended so that an app can write a stream directly to the transport."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..fanout.sinks import TransportSink
from ..web.stream import EXTENSION

NO_SCOPE: Any = {}


class HttpProtocol(HttpToolsProtocol):
    """Lets an app open a stream on the connection's transport, through `scope["extensions"]["ssehub.transport"]`.

    While a stream is open, anything that the client sends aborts the connection. uvicorn would queue a second,
    pipelined request behind the stream for ever, and would then not notice that the client has disconnected.
    """

    __slots__ = ("running", "stream")  # in the instance's dict they would cost 1.4 KB

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stream: TransportSink | None = None
        self.running: RequestResponseCycle | None = None
        """The request that is being answered. `cycle` is the newest request, which may still be queued behind it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"connection": self}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: Any = self.cycle
        if cycle is not None and cycle.transport is self.transport:
            cycle.transport = _Output(self.transport, cycle, self.loop)
        if not self.pipeline:
            self.running = self.cycle

    def open_stream(self) -> TransportSink | None:
        if self.running is None:
            return None
        if self.pipeline or self.flow.write_paused or self.transport.is_closing():
            # A client that has sent further requests, or leaves earlier responses unread, is not waiting for a stream.
            self.running.disconnected = True
            self.transport.abort()
            return None
        is_chunked = self.running.keep_alive
        if not is_chunked:
            # Otherwise uvicorn sends chunks to HTTP/1.0 clients, too.
            self.running.chunked_encoding = False
        self.stream = TransportSink(self.transport, is_chunked=is_chunked)
        return self.stream

    @property
    def has_started(self) -> bool:
        return self.running is not None and self.running.response_started

    def hand_over(self) -> bytes:
        assert self.running is not None
        # uvicorn logs an error if an app returns before its response is complete, unless the client has disconnected.
        self.running.disconnected = True
        self.loop.call_soon(self._forget_request)
        head = self._output.take_head()
        self.running.transport = self.transport
        return head

    @property
    def _output(self) -> _Output:
        assert self.running is not None
        return cast(_Output, self.running.transport)  # set in on_headers_complete

    def _forget_request(self) -> None:
        """Release the memory of the request for the time that its stream is open."""
        if self.running is not None:
            self.running.scope = self.scope = NO_SCOPE
            self.headers = []
            self.url = b""

    def close_stream(self) -> None:
        self.stream = None
        if self.running is not None:
            self.running.chunked_encoding = None

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.transport.abort()
        else:
            super().data_received(data)

    def _unsupported_upgrade_warning(self) -> None:
        self.logger.debug("a client asked to upgrade its connection: the request is answered without the upgrade")

    def on_response_complete(self) -> None:
        self.stream = None
        if self.running is not None:
            self._output.flush()
        self.running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.stream is not None:
            self.stream.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stream is not None:
            self.stream.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        stream, self.stream = self.stream, None
        running, self.running = self.running, None
        super().connection_lost(exc)
        if running is not None:
            # uvicorn does this only for the newest request.
            running.disconnected = True
            running.message_event.set()
        if stream is not None:
            stream.connection_lost()


class _Output:
    """The transport as one response sees it. The head of the response is written together with what follows it.

    Each write is a system call and a packet. If the app does not write again in the same turn of the event loop, the
    head is written alone.
    """

    __slots__ = ("_cycle", "_head", "_loop", "_transport")

    def __init__(
        self, transport: asyncio.Transport, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport = transport
        self._cycle = cycle
        self._loop = loop
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None and self._cycle.response_started:
            self._head = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(self.take_head() + data)

    def take_head(self) -> bytes:
        """Return the head if it has not been written yet; the caller writes it."""
        head = self._head
        if not head:
            return b""
        self._head = b""
        return head

    def flush(self) -> None:
        if head := self.take_head():
            self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def capped(max_connections: int) -> type[HttpProtocol]:
    """Return the protocol for a server that accepts at most `max_connections`. Further ones are dropped at once.

    uvicorn's own limit applies only when a request is complete, and an EventSource stops for good at its 503.
    """

    class CappedProtocol(HttpProtocol):
        __slots__ = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()

    return CappedProtocol
