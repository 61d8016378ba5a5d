"""The HTTP response of one stream: the status, headers and framing of sse-starlette's, with the hub as its writer.

sse-starlette's response runs five tasks per connection to send. Here the hub writes to the connection itself, and the
response only sends the headers and, where the server doesn't hand over its transport, what the hub has written.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping

import anyio
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope, Send

from ..event import SEPARATOR
from ..fanout.resume import Start
from ..fanout.sinks import LINGER_SECONDS, Sink, TaskSink, TransportSink
from ..fanout.statistics import Statistics
from ..fanout.subscriber import Subscriber
from ..hub import Hub
from ..loglimit import limited_logger
from .opening import Opening
from .transport import Closing, Connection, closing_of, connection_of

logger = limited_logger("ssehub.stream")

END = {"type": "http.response.body", "body": b"", "more_body": False}
EXIT_SECONDS = 2.0
"""Drain window for the streams of a server that has been told to exit."""


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _response() -> EventSourceResponse:
    return EventSourceResponse(_nothing(), sep=SEPARATOR, ping=0)


STATUS = 200
HEADERS = tuple(_response().raw_headers)
"""Those of every stream."""
CLOSING_HEADERS = tuple([(name, b"close" if name == b"connection" else value) for name, value in HEADERS])
"""Those of a stream on a connection that the client has said it will use for nothing else."""


class StreamResponse(ABC):
    """An ASGI app that sends a stream until the hub ends it or the client leaves.

    If the server hands over its transport, the app returns as soon as the response has started: a coroutine that waits
    would take memory for as long as the stream lasts.
    """

    def __init__(self, hub: Hub, *, cuts: bool, headers: Mapping[str, str] | None = None) -> None:
        """`headers` are sent besides those of every stream.

        `cuts` says that the client does not come back after a complete response: see ends.py.
        """
        self._hub = hub
        self._cuts = cuts
        self._headers = headers

    @abstractmethod
    def attach(self, sink: Sink) -> Subscriber:
        """Open the stream, which writes to `sink` from now on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            response = _response()
            response.headers.update(self._headers or {})
            await response(scope, receive, send)
            return
        connection = connection_of(scope)
        if connection is None:
            await self._send_from_task(closing_of(scope, receive), receive, send)
        else:
            await self._write_to_transport(connection, receive, send)

    async def _write_to_transport(self, connection: Connection, receive: Receive, send: Send) -> None:
        sink = connection.open_stream(cuts=self._cuts)
        if sink is None:
            logger.debug("the client left before its stream began")
            return
        try:
            subscriber = self.attach(sink)
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

    async def _send_head(self, send: Send, *, closes: bool = False) -> None:
        headers = list(CLOSING_HEADERS if closes else HEADERS)  # a copy: middleware may append to it
        if self._headers is not None:
            MutableHeaders(raw=headers).update(self._headers)
        await send({"type": "http.response.start", "status": STATUS, "headers": headers})

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
        subscriber = self.attach(sink)
        try:
            await self._send_head(send)
            await _copy(sink, closing, receive, send)
        finally:
            self._hub.detach(subscriber)


class EventStream(StreamResponse):
    """The stream of what `opening` grants of the hub's log, from `start` on."""

    def __init__(self, hub: Hub, opening: Opening, start: Start) -> None:
        super().__init__(hub, cuts=opening.cuts)
        self._opening = opening
        self._start = start

    def attach(self, sink: Sink) -> Subscriber:
        return self._opening.attach(self._hub, sink, self._start)


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
        await send({"type": "http.response.start", "status": STATUS, "headers": list(CLOSING_HEADERS)})
        cut_after = None if scope["http_version"] == "1.0" else self._cut_after  # its end is that of the connection
        await send({"type": "http.response.body", "body": self._frame, "more_body": cut_after is not None})
        if cut_after is None:
            return
        closing = closing_of(scope, receive)
        if self._waits.locked():
            await _cut_off(0.0, closing, receive)
        else:
            async with self._waits:
                await _cut_off(cut_after, closing, receive)


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
            await disconnected(receive)
    except TimeoutError:
        closing.drop()
        await disconnected(receive)


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
    await disconnected(receive)
    streaming.cancel()


async def disconnected(receive: Receive) -> None:
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
