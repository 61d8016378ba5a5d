"""The extension of ASGI by which our server lets an app do more with a connection than receive and send."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.types import Receive, Scope

from ..fanout.sinks import TransportSink

EXTENSION = "ssehub.transport"
"""Name of the ASGI extension in which a server hands its transport to the app."""


class Connection(Protocol):
    """The server's protocol object of one connection: `connection` in the extension."""

    @property
    def has_started(self) -> bool:
        """True if the server has received the response's head from the app."""

    @property
    def is_persistent(self) -> bool:
        """False if the connection is to be closed after the response."""

    @property
    def client(self) -> tuple[str, int] | None:
        """The address of the client, as in ASGI."""

    @property
    def server(self) -> tuple[str, int | None] | None:
        """The address that the client has called, as in ASGI."""

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

    def begin_stream(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Begin the response with this head, for a request that no app answers, and `hand_over`."""

    def close_stream(self) -> None:
        """Discard the sink: the server writes the response."""

    def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write the whole response, for a request that no app answers. If the client has left, nothing is written."""

    def unlimit_body(self) -> None:
        """Let the client take as long as it likes for the rest of this request's body, of whatever size.

        No more of it than before waits for the app. What has arrived when the client disconnects is received, too.
        """

    def adopt(self, work: Coroutine[Any, Any, None], receive: Receive) -> bool:
        """Return True if `work` goes on to answer the request once the app, and all middleware around it, has returned.

        The frames of all these take memory for as long as a request lasts. `receive` is that of the app. If middleware
        has replaced it, it may not expect that the app returns without a response: then this returns False.
        """


def connection_of(scope: Scope) -> Connection | None:
    """Return the connection of a request, None if another server received it."""
    connection: Connection | None = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
    return connection


async def answer_open(scope: Scope, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which answers a request whose body may stay open for hours. The app has to return after this."""
    connection = connection_of(scope)
    if connection is not None:
        connection.unlimit_body()
        if connection.adopt(work, receive):
            return
    await work


class Closing(NamedTuple):
    """How a server closes a connection without completing the response."""

    cut: Callable[[], None]
    """Close it when the client has read what was written."""
    drop: Callable[[], None]
    """Close it at once."""


def closing_of(scope: Scope, receive: Receive) -> Closing | None:
    """Return how to close the connection, None if that can only be left to the server.

    uvicorn's own protocols offer no function for it, but `receive` is a method of the object that has the transport.
    """
    connection = connection_of(scope)
    if connection is not None:
        return Closing(connection.cut, connection.drop)
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    return None if transport is None else Closing(transport.close, transport.abort)
