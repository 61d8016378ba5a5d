"""`GET /events/` without a detour: when the call returns that has read the request, its stream is open.

The app (`client.py`) answers by a task, through routes and middleware. Here the same functions decide, and whatever they
do not simply allow is left to the app: refusals, streams of runs, pages of other origins, and all that has to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..at_once import run_at_once
from ..errors import SSEHubError
from ..hub import Hub
from ..proxies import TrustedProxies
from ..settings import ComebackEnd
from .fast_path import FastRequest
from .logins import StreamRequest, TokenLogin
from .opening import Opening, opening_of
from .origins import ANY
from .stream import CLOSING_HEADERS, HEADERS, STATUS
from .transport import Connection

Headers = Sequence[tuple[bytes, bytes]]


class Heads(NamedTuple):
    """The headers of streams that pages of one origin ask for."""

    lasting: Headers
    closing: Headers
    """On connections that end with the stream in any case."""

    @classmethod
    def of(cls, behind_cors: Callable[[ASGIApp], ASGIApp], origin: str | None) -> Self:
        return cls(*[_headers(behind_cors(_sending(headers)), origin) for headers in (HEADERS, CLOSING_HEADERS)])


class FastStreams:
    """The fast path of streams of the hub's log, to clients with a token."""

    method = "GET"
    takes_connection = True

    def __init__(
        self,
        hub: Hub,
        login: TokenLogin,
        proxies: TrustedProxies,
        comeback_end: ComebackEnd,
        cors_origins: Sequence[str],
        behind_cors: Callable[[ASGIApp], ASGIApp],
    ) -> None:
        """`behind_cors` returns an app behind the middleware for pages of `cors_origins`."""
        self._hub = hub
        self._login = login
        self._proxies = proxies
        self._comeback_end = comeback_end
        self._heads = {origin: Heads.of(behind_cors, origin) for origin in (None, *cors_origins)}
        """By the origin of the page that asks for the stream. `*` is any other one."""

    def answer(self, request: FastRequest, connection: Connection) -> bool:
        found = self._opening(request)
        if found is None:
            return False
        opening, heads = found
        sink = connection.open_stream(cuts=opening.cuts)
        if sink is None:  # the client has left
            return True
        try:
            opening.attach(self._hub, sink, opening.start)
        except SSEHubError:  # a limit is reached
            connection.close_stream()
            return False
        sink.uncork(connection.begin_stream(STATUS, heads.lasting if connection.is_persistent else heads.closing))
        return True

    def _opening(self, request: FastRequest) -> tuple[Opening, Heads] | None:
        """Return the stream that can be opened now, and its headers. None if there is anything else to do."""
        hub = self._hub
        if not hub.is_ready() or request.body:
            return None
        client = self._proxies.client(request.client, request.headers) if self._proxies else request.client
        asked = StreamRequest(request.headers, request.query, client)
        heads = self._heads.get(asked.headers.get("origin")) or self._heads.get(ANY)
        if heads is None:  # the page is of another origin
            return None
        try:
            opening = opening_of(asked, self._login.verify_at_once(asked), hub, self._comeback_end)
        except SSEHubError:
            return None
        return None if opening.run is not None or hub.must_wait(opening.start) else (opening, heads)


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
