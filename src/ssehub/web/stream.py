"""The HTTP response of one stream: the status, headers and framing of sse-starlette's, with the hub as its writer.

sse-starlette's response runs five tasks per connection to send. Here the hub writes to the connection itself, and the
response only sends the headers and, where the server doesn't hand over its transport, what the hub has written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import anyio
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope, Send

from ..claims import Claims
from ..event import SEPARATOR
from ..fanout.resume import Start
from ..fanout.sinks import TaskSink, TransportSink
from ..fanout.subscriber import Subscriber
from ..hub import Hub
from ..loglimit import limited_logger

logger = limited_logger("ssehub.stream")

EXTENSION = "ssehub.transport"
"""Name of the ASGI extension in which a server hands its transport to the app."""
DROP = "ssehub.drop_connection"
"""Name of the extension with a function that drops the connection, for servers that write themselves."""
END = {"type": "http.response.body", "body": b"", "more_body": False}
EXIT_SECONDS = 2.0
"""Drain window for the streams of a server that has been told to exit."""


class Connection(Protocol):
    """The server's protocol object of one connection: `connection` in the extension."""

    @property
    def has_started(self) -> bool:
        """True if the server has received the response's head from the app."""

    def open_stream(self) -> TransportSink | None:
        """Return a sink that writes to the transport in place of the server, None if the connection is lost."""

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


class EventStream:
    """An ASGI app that streams what `claims` grant, from `start` on, until the hub ends it or the client leaves.

    If the server hands over its transport, the app returns as soon as the response has started: a coroutine that waits
    would take memory for as long as the stream lasts.
    """

    _template = _response()
    """The status and headers of every stream."""

    def __init__(self, hub: Hub, claims: Claims, start: Start, address: str | None = None) -> None:
        """The limits on streams apply if there is an `address`, which stands for the client."""
        self._hub = hub
        self._address = address
        self._claims = claims
        self._start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await _response()(scope, receive, send)
            return
        extensions = scope.get("extensions", {})
        connection: Connection | None = extensions.get(EXTENSION, {}).get("connection")
        if connection is None:
            await self._send_from_task(TaskSink(extensions.get(DROP)), receive, send)
        else:
            await self._write_to_transport(connection, receive, send)

    async def _write_to_transport(self, connection: Connection, receive: Receive, send: Send) -> None:
        sink = connection.open_stream()
        if sink is None:
            logger.debug("the client left before its stream began")
            return
        try:
            subscriber = self._hub.attach(self._claims, sink, self._start, self._address)
        except BaseException:
            connection.close_stream()  # the response will be another one
            raise
        try:
            await self._send_head(send, closes=not sink.is_chunked)
            if not connection.has_started:
                connection.close_stream()
                await self._move_to_task(subscriber, sink, receive, send)
                return
        except BaseException:
            self._hub.detach(subscriber)
            raise
        sink.uncork(connection.hand_over())

    async def _send_head(self, send: Send, *, closes: bool = False) -> None:
        headers = list(self._template.raw_headers)  # a copy: middleware may append to it
        if closes:
            MutableHeaders(raw=headers)["Connection"] = "close"
        await send({"type": "http.response.start", "status": self._template.status_code, "headers": headers})

    async def _move_to_task(self, subscriber: Subscriber, corked: TransportSink, receive: Receive, send: Send) -> None:
        """Let the server write. Middleware that keeps the headers until it has a body must get the body, too."""
        sink = TaskSink(corked.abort)
        self._hub.reattach(subscriber, sink, corked.pop_corked())
        await _copy(sink, receive, send)
        self._hub.detach(subscriber)

    async def _send_from_task(self, sink: TaskSink, receive: Receive, send: Send) -> None:
        subscriber = self._hub.attach(self._claims, sink, self._start, self._address)
        try:
            await self._send_head(send)
            await _copy(sink, receive, send)
        finally:
            self._hub.detach(subscriber)


async def _copy(sink: TaskSink, receive: Receive, send: Send) -> None:
    """Send what the hub writes to `sink` until the sink is closed and empty, or the client leaves."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_wait_for_disconnect, receive, group.cancel_scope)
            with contextlib.suppress(OSError):  # raised by `send` if the client has left (ASGI 2.4)
                while data := await sink.read():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send(END)
            group.cancel_scope.cancel()
    finally:
        sink.finish()


async def _wait_for_disconnect(receive: Receive, streaming: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    streaming.cancel()


class ExitListener:
    """Ends a hub's streams when the server is told to exit: one task per hub, where sse-starlette has one per stream.

    The end of the lifespan would be too late: uvicorn waits for all responses before it ends the lifespan.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Listen in the running event loop, at most once per loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._hub.spawn(self._listen())

    async def _listen(self) -> None:
        try:
            await EventSourceResponse._listen_for_exit_signal()  # sse-starlette offers no public function for this
            await self._hub.drain(EXIT_SECONDS)
        finally:
            self._loop = None
