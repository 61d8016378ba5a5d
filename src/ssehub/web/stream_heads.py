"""The heads of streams that no app sends: their headers, as the middleware for CORS would have sent them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..at_once import run_at_once
from .stream import CLOSING_HEADERS, HEADERS, STATUS

Headers = Sequence[tuple[bytes, bytes]]


class Heads(NamedTuple):
    """The headers of streams that pages of one origin ask for."""

    lasting: Headers
    closing: Headers
    """On connections that end with the stream in any case."""

    @classmethod
    def of(cls, behind_cors: Callable[[ASGIApp], ASGIApp], origin: str | None) -> Self:
        return cls(*[_headers(behind_cors(_sending(headers)), origin) for headers in (HEADERS, CLOSING_HEADERS)])


def stream_heads(cors_origins: Sequence[str], behind_cors: Callable[[ASGIApp], ASGIApp]) -> Mapping[str | None, Heads]:
    """Return the heads for pages of `cors_origins`, and for requests without an origin.

    `behind_cors` returns an app behind the middleware, which knows these origins.
    """
    return {origin: Heads.of(behind_cors, origin) for origin in (None, *cors_origins)}


def _sending(headers: Headers) -> ASGIApp:
    """Return an app that sends these headers of a stream, and nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": STATUS, "headers": list(headers)})

    return app


def _headers(app: ASGIApp, origin: str | None) -> Headers:
    """Return the headers that `app`, which waits for nothing, sends to a page of `origin`."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def request() -> None:
        headers = [] if origin is None else [(b"origin", origin.encode())]
        await app({"type": "http", "method": "GET", "headers": headers}, _receive, send)

    run_at_once(request(), lambda _: None)
    return tuple(sent[0]["headers"])


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
