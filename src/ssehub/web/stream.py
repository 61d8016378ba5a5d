"""The HTTP response of one stream: the status, headers and framing of sse-starlette's, with the hub as its writer.

sse-starlette's response runs five tasks per connection to send. Here the hub writes to the connection itself, and the
response only sends the headers and, where the server doesn't hand over its transport, what the hub has written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

import anyio
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope, Send

from ..claims import Claims
from ..event import SEPARATOR
from ..fanout.resume import Start
from ..fanout.sinks import LINGER_SECONDS, Sink, TaskSink, TransportSink
from ..fanout.statistics import Statistics
from ..fanout.subscriber import Subscriber
from ..hub import Hub
from ..loglimit import limited_logger

logger = limited_logger("ssehub.stream")

EXTENSION = "ssehub.transport"
"""Name of the ASGI extension in which a server hands its transport to the app."""
END = {"type": "http.response.body", "body": b"", "more_body": False}
EXIT_SECONDS = 2.0
"""Drain window for the streams of a server that has been told to exit."""


class Connection(Protocol):
    """The server's protocol object of one connection: `connection` in the extension."""

    @property
    def has_started(self) -> bool:
        """True if the server has received the response's head from the app."""

    @property
    def is_persistent(self) -> bool:
        """False if the connection is to be closed after the response."""

    def cut(self) -> None:
        """Close the connection when the client has read what was written, without completing the response."""

    def drop(self) -> None:
        """Close the connection at once."""

    def open_stream(self, *, cuts: bool) -> TransportSink | None:
        """Return a sink that writes to the transport in place of the server, None if the connection is lost.

        `cuts` says that the client does not come back after a complete response.
        """

    def hand_over(self) -> bytes:
        """Leave the rest of the response and the connection to the sink, so that the app may return.

        Returns the part of the response's head that is still to be written.
        """

    def close_stream(self) -> None:
        """Discard the sink: the server writes the response."""


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _response() -> EventSourceResponse:
    return EventSourceResponse(_nothing(), sep=SEPARATOR, ping=0)


_TEMPLATE = _response()
"""The status and headers of every stream."""


class EventStream:
    """An ASGI app that streams what `claims` grant, from `start` on, until the hub ends it or the client leaves.

    If the server hands over its transport, the app returns as soon as the response has started: a coroutine that waits
    would take memory for as long as the stream lasts.
    """

    def __init__(
        self,
        hub: Hub,
        claims: Claims,
        start: Start,
        address: str | None = None,
        *,
        cuts: bool = False,
        uses_datastar: bool = False,
    ) -> None:
        """The limits on streams apply if there is an `address`, which stands for the client.

        `cuts` says that the client does not come back after a complete response: see ends.py.
        """
        self._hub = hub
        self._address = address
        self._cuts = cuts
        self._uses_datastar = uses_datastar
        self._claims = claims
        self._start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await _response()(scope, receive, send)
            return
        connection = _connection(scope)
        if connection is None:
            await self._send_from_task(_closing(scope, receive), receive, send)
        else:
            await self._write_to_transport(connection, receive, send)

    async def _write_to_transport(self, connection: Connection, receive: Receive, send: Send) -> None:
        sink = connection.open_stream(cuts=self._cuts)
        if sink is None:
            logger.debug("the client left before its stream began")
            return
        try:
            subscriber = self._attach(sink)
        except BaseException:
            connection.close_stream()  # the response will be another one
            raise
        try:
            await self._send_head(send, closes=not connection.is_persistent)
            if not connection.has_started:
                connection.close_stream()
                await self._move_to_task(subscriber, sink, Closing(connection.cut, connection.drop), receive, send)
                return
        except BaseException:
            self._hub.detach(subscriber)
            raise
        sink.uncork(connection.hand_over())

    def _attach(self, sink: Sink) -> Subscriber:
        return self._hub.attach(self._claims, sink, self._start, self._address, uses_datastar=self._uses_datastar)

    async def _send_head(self, send: Send, *, closes: bool = False) -> None:
        headers = list(_TEMPLATE.raw_headers)  # a copy: middleware may append to it
        if closes:
            MutableHeaders(raw=headers)["Connection"] = "close"
        await send({"type": "http.response.start", "status": _TEMPLATE.status_code, "headers": headers})

    async def _move_to_task(
        self, subscriber: Subscriber, corked: TransportSink, closing: Closing, receive: Receive, send: Send
    ) -> None:
        """Let the server write. Middleware that keeps the headers until it has a body must get the body, too."""
        sink = TaskSink(closing.drop, cuts=self._cuts)
        self._hub.reattach(subscriber, sink, corked.pop_corked())
        await _copy(sink, closing, receive, send)
        self._hub.detach(subscriber)

    async def _send_from_task(self, closing: Closing | None, receive: Receive, send: Send) -> None:
        sink = TaskSink(closing.drop if closing is not None else None, cuts=self._cuts)
        subscriber = self._attach(sink)
        try:
            await self._send_head(send)
            await _copy(sink, closing, receive, send)
        finally:
            self._hub.detach(subscriber)


class BusyResponse:
    """Tells a client to come back later: a stream of a single `frame`, in place of the one that it asked for.

    An EventSource stops for good at any status other than 200. The response is completed, or cut off if `cut_after` is
    given: so many seconds later if `waits` has room for one more that waits, else at once. The client then comes back
    as well, but may have lost the frame behind an HTTP/2 proxy.
    """

    def __init__(self, frame: bytes, cut_after: float | None, waits: asyncio.Semaphore) -> None:
        self._frame = frame
        self._cut_after = cut_after
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(_TEMPLATE.raw_headers))
        headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": _TEMPLATE.status_code, "headers": headers.raw})
        cut_after = None if scope["http_version"] == "1.0" else self._cut_after  # its end is that of the connection
        await send({"type": "http.response.body", "body": self._frame, "more_body": cut_after is not None})
        if cut_after is None:
            return
        closing = _closing(scope, receive)
        if self._waits.locked():
            await _cut_off(0.0, closing, receive)
        else:
            async with self._waits:
                await _cut_off(cut_after, closing, receive)


class Closing(NamedTuple):
    """How a server closes a connection without completing the response."""

    cut: Callable[[], None]
    """Close it when the client has read what was written."""
    drop: Callable[[], None]
    """Close it at once."""


def _connection(scope: Scope) -> Connection | None:
    connection: Connection | None = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
    return connection


def _closing(scope: Scope, receive: Receive) -> Closing | None:
    """Return how to close the connection, None if that can only be left to the server.

    uvicorn's own protocols offer no function for it, but `receive` is a method of the object that has the transport.
    """
    connection = _connection(scope)
    if connection is not None:
        return Closing(connection.cut, connection.drop)
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    return None if transport is None else Closing(transport.close, transport.abort)


async def _cut_off(after: float, closing: Closing | None, receive: Receive) -> None:
    """End the response without completing it, `after` seconds from now.

    If that is left to the server, it happens when the app returns.
    """
    await asyncio.sleep(after)
    if closing is None:
        return
    closing.cut()
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            await _disconnected(receive)
    except TimeoutError:
        closing.drop()
        await _disconnected(receive)


async def _copy(sink: TaskSink, closing: Closing | None, receive: Receive, send: Send) -> None:
    """Send what the hub writes to `sink` until the sink is closed and empty, or the client leaves."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_wait_for_disconnect, receive, group.cancel_scope)
            with contextlib.suppress(OSError):  # raised by `send` if the client has left (ASGI 2.4)
                while data := await sink.read():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                if sink.cut_after is None:
                    await send(END)
                else:
                    await _cut_off(sink.cut_after, closing, receive)
            group.cancel_scope.cancel()
    finally:
        sink.finish()


async def _wait_for_disconnect(receive: Receive, streaming: anyio.CancelScope) -> None:
    await _disconnected(receive)
    streaming.cancel()


async def _disconnected(receive: Receive) -> None:
    """Return when the connection has been lost."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ExitListener:
    """A companion that ends its hub's streams when the server is told to exit: sse-starlette has a task per stream.

    The end of the lifespan would be too late: uvicorn waits for all responses before it ends the lifespan.
    """

    problem = None

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def run(self) -> None:
        await EventSourceResponse._listen_for_exit_signal()  # sse-starlette offers no public function for this
        await self._hub.drain(EXIT_SECONDS)

    def measure(self, statistics: Statistics) -> None:
        """It has no statistics."""
