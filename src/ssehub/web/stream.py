"""One subscriber's HTTP response: sse-starlette's, with the hub as the one who writes.

sse-starlette's response sends from tasks of its own, five a connection. Here its headers, `HEAD` and framing are kept,
and the hub writes to the connection itself; this coroutine only starts the response, waits, and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Protocol

import anyio
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope, Send

from ..claims import Claims
from ..event import SEPARATOR
from ..fanout.resume import NOW, Start
from ..fanout.sinks import TaskSink, TransportSink
from ..fanout.subscriber import Subscriber
from ..hub import Hub

logger = logging.getLogger("ssehub.stream")

EXTENSION = "ssehub.transport"
"""The ASGI extension under which a server hands its transport to the app."""
DROP = "ssehub.drop_connection"
"""The extension under which something tells the app how to drop its connection, where the server writes."""
END = {"type": "http.response.body", "body": b"", "more_body": False}


EXIT_SECONDS = 2.0
"""In which a server that has been told to exit gets rid of its streams."""


class Connection(Protocol):
    """What the extension holds as `connection`: the server's protocol for this connection."""

    @property
    def has_started(self) -> bool:
        """Whether the response's headers have been written."""

    def open_stream(self) -> TransportSink | None:
        """A sink that is to write to this connection's transport, in place of the server; None if it is gone."""

    def hand_over(self) -> bytes:
        """Leave the rest of the response, and the connection, to that sink: the app may return.

        Returns what is still to be written of the response's head.
        """

    def close_stream(self) -> None:
        """Let the server write after all."""


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _response() -> EventSourceResponse:
    return EventSourceResponse(_nothing(), sep=SEPARATOR, ping=0)


class EventStream:
    """Streams to one client what `claims` grant, until the hub ends it or the client goes; an ASGI app.

    `start` says where it begins. Where the server hands over its transport this returns as
    soon as the response has begun, because each frame that waits costs memory for as long as a stream lasts.
    """

    _head = _response()
    """Whose status and headers every stream has."""

    def __init__(self, hub: Hub, claims: Claims, start: Start = NOW) -> None:
        self._hub = hub
        self._claims = claims
        self._begin = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await _response()(scope, receive, send)
            return
        extensions = scope.get("extensions", {})
        connection: Connection | None = extensions.get(EXTENSION, {}).get("connection")
        if connection is None:
            await self._send_by_task(TaskSink(extensions.get(DROP)), receive, send)
        else:
            await self._write_to(connection, receive, send)

    async def _write_to(self, connection: Connection, receive: Receive, send: Send) -> None:
        sink = connection.open_stream()
        if sink is None:
            logger.debug("a client has gone before its stream began")
            return
        subscriber = self._hub.attach(self._claims, sink, self._begin)
        try:
            await self._start(send, closes=not sink.is_chunked)
            if not connection.has_started:
                connection.close_stream()
                await self._move_to_task(subscriber, sink, receive, send)
                return
        except BaseException:
            self._hub.detach(subscriber)
            raise
        sink.uncork(connection.hand_over())

    async def _start(self, send: Send, *, closes: bool = False) -> None:
        headers = list(self._head.raw_headers)  # theirs who send it on, to add to
        if closes:
            MutableHeaders(raw=headers)["Connection"] = "close"
        await send({"type": "http.response.start", "status": self._head.status_code, "headers": headers})

    async def _move_to_task(self, subscriber: Subscriber, corked: TransportSink, receive: Receive, send: Send) -> None:
        """Some middleware keeps the headers until it has a body: then the body has to go through it, too."""
        sink = TaskSink(corked.abort)
        self._hub.reattach(subscriber, sink, corked.pop_corked())
        await _copy(sink, receive, send)
        self._hub.detach(subscriber)

    async def _send_by_task(self, sink: TaskSink, receive: Receive, send: Send) -> None:
        subscriber = self._hub.attach(self._claims, sink, self._begin)
        try:
            await self._start(send)
            await _copy(sink, receive, send)
        finally:
            self._hub.detach(subscriber)


async def _copy(sink: TaskSink, receive: Receive, send: Send) -> None:
    """Send what is written to `sink` until it is closed and empty, or the client has gone."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_wait_for_disconnect, receive, group.cancel_scope)
            with contextlib.suppress(OSError):  # what `send` raises by ASGI 2.4 when the client has gone
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
    """Ends a hub's streams when the server is told to exit: one task a hub, where sse-starlette has one a stream.

    A server waits for its responses to end before it tells its apps that it is about to.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Listen in the running event loop, unless that is done already."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._hub.spawn(self._listen())

    async def _listen(self) -> None:
        try:
            await EventSourceResponse._listen_for_exit_signal()
            await self._hub.drain(EXIT_SECONDS)
        finally:
            self._loop = None
