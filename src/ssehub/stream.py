"""One subscriber's HTTP response: sse-starlette's, with the hub as the one who writes.

sse-starlette's response sends from tasks of its own, five a connection. Here its headers, `HEAD` and framing are kept,
and the hub writes to the connection itself; this coroutine only starts the response, waits, and ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Protocol

from sse_starlette import EventSourceResponse
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from .event import SEPARATOR, Claims
from .hub import Hub
from .sinks import TransportSink
from .subscribers import CloseReason

logger = logging.getLogger("ssehub.stream")

EXTENSION = "ssehub.transport"
"""The ASGI extension under which a server hands its transport to the app."""


class Connection(Protocol):
    """What the extension holds as `connection`: the server's protocol for this connection."""

    def open_stream(self) -> TransportSink:
        """A sink that writes to this connection's transport, in place of the server."""


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


class EventStream(EventSourceResponse):
    """Streams to one client what `claims` grant, until the hub ends it or the client goes.

    `cursor` is the last event id that the client has seen. A client that does not take the last bytes within
    `grace_seconds` is cut off.
    """

    def __init__(self, hub: Hub, claims: Claims, *, cursor: str | None = None, grace_seconds: float = 5.0) -> None:
        super().__init__(_nothing(), sep=SEPARATOR, ping=0)
        self._hub = hub
        self._claims = claims
        self._cursor = cursor
        self._grace = grace_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        connection: Connection | None = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
        if connection is None:
            logger.error("this server gives no transport: start it with --http ssehub.server:HttpProtocol")
            await PlainTextResponse("no transport for a stream\n", 500)(scope, receive, send)
            return
        await self._stream(connection.open_stream(), receive, send)

    async def _stream(self, sink: TransportSink, receive: Receive, send: Send) -> None:
        subscriber = self._hub.subscribe(self._claims, sink, cursor=self._cursor)
        try:
            if not sink.is_chunked:
                self.headers["Connection"] = "close"
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            sink.uncork()
            await subscriber.ended
        finally:
            self._hub.end(subscriber, CloseReason.DISCONNECTED)
        await self._finish(sink, receive, send)

    async def _finish(self, sink: TransportSink, receive: Receive, send: Send) -> None:
        if not sink.is_aborted:
            try:
                async with asyncio.timeout(self._grace):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            except TimeoutError:
                sink.abort()
        # A server takes it for an error if its app leaves before the connection has.
        while (await receive())["type"] != "http.disconnect":
            pass
