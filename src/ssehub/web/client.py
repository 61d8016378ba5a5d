"""The client app, which is public: `GET /events/`, where browsers listen."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..claims import Claims
from ..errors import ConfigError, Forbidden, InvalidRequest, TokenError, Unavailable
from ..event import encode_fields
from ..fanout.resume import Start
from ..hub import Hub
from ..tokens import Tokens
from .origins import is_own_page
from .stream import EventStream, ExitListener

logger = logging.getLogger("ssehub.client")

ALLOW = "GET, HEAD, OPTIONS"
CURSOR_PARAMETERS = ("lastEventId", "last_event_id", "lastEventID")
MAX_QUERY_FIELDS = 100

Authenticate = Callable[[HTTPConnection], Awaitable[Claims | None]]
"""A host's own login: what the request may listen to, None if nothing."""


def create_client_app(
    hub: Hub,
    *,
    tokens: Tokens | None = None,
    authenticate: Authenticate | None = None,
    token_cookie: str | None = None,
    cors_origins: Sequence[str] = (),
    drains_on_exit: bool = True,
) -> Starlette:
    """The app that serves `GET /events/` from `hub`: to whoever brings one of `tokens`, or whom `authenticate` knows.

    `token_cookie` names a cookie that may carry the token, too. `cors_origins` are the origins whose pages may listen
    from elsewhere, with credentials; `("*",)` is every one, without. `drains_on_exit` ends the streams when uvicorn is
    told to exit, which waits for them. Raises ConfigError unless exactly one of `tokens` and `authenticate` is given.
    """
    if (tokens is None) == (authenticate is None):
        raise ConfigError("create_client_app needs either tokens or authenticate")
    login = authenticate or TokenLogin(tokens, token_cookie, frozenset(cors_origins))  # type: ignore[arg-type]
    endpoint = EventsEndpoint(hub, login, ExitListener(hub) if drains_on_exit else None)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=("GET", "HEAD"),
        allow_headers=("Authorization", "Cache-Control", "Last-Event-ID"),
        allow_credentials="*" not in cors_origins,
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    app = Starlette(
        routes=[Route("/events/{rest:path}", endpoint), Route("/events", endpoint)],
        middleware=[cors] if cors_origins else [],
        lifespan=lifespan,
    )
    # A redirect would carry the token to whatever Host the client named.
    app.router.redirect_slashes = False
    return app


class TokenLogin:
    """Who a request is for, by the token it brings."""

    def __init__(self, tokens: Tokens, cookie: str | None, cors_origins: frozenset[str]) -> None:
        self._tokens = tokens
        self._cookie = cookie
        self._origins = cors_origins

    def verify(self, headers: Headers, query: Mapping[str, str]) -> Claims:
        """Raises TokenError or Forbidden."""
        return self._tokens.verify(self._token(headers, query))

    def _token(self, headers: Headers, query: Mapping[str, str]) -> str:
        """The first token there is: in the `Authorization` header (RFC 6750, 2.1), a cookie, the query."""
        authorization = headers.get("authorization", "")
        if authorization[:6].lower() == "bearer":
            return authorization[7:]
        if self._cookie is not None and (token := cookie_parser(headers.get("cookie", "")).get(self._cookie)):
            self._check_origin(headers)
            return token
        if "token" in query:
            return query["token"]
        raise TokenError("there is none")

    def _check_origin(self, headers: Headers) -> None:
        """Browsers send cookies for any page, so a cookie counts only for our own pages and those we were told of."""
        if is_own_page(headers) or headers.get("origin") in self._origins:
            return
        raise Forbidden("this origin may not listen with a cookie: add it to cors_origins")


class EventsEndpoint:
    """Answers `/events/`; an ASGI app itself, so that no request object lives as long as a stream."""

    def __init__(self, hub: Hub, login: TokenLogin | Authenticate, exit_listener: ExitListener | None) -> None:
        self._hub = hub
        self._login = login
        self._exit_listener = exit_listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(scope)
        # Servers write the query into their access logs when the response starts.
        scope["query_string"] = _without_token(scope["query_string"])
        try:
            await response(scope, receive, send)
        except Unavailable as exc:  # the hub has ended since it was asked, and nothing has been sent
            logger.debug("stream refused: %s", exc)
            await self._come_back()(scope, receive, send)

    async def _answer(self, scope: Scope) -> ASGIApp:
        method = scope["method"]
        if method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ALLOW})
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET is answered here\n", 405, headers={"Allow": ALLOW})
        headers = Headers(scope=scope)
        query = _query(scope["query_string"])
        try:
            claims = await self._claims(scope, headers, query or {})
        except Forbidden as exc:
            return PlainTextResponse(f"{exc}\n", exc.status)
        except TokenError as exc:
            logger.debug("stream refused: %s", exc)
            return PlainTextResponse("a valid token is needed\n", 401, headers={"WWW-Authenticate": "Bearer"})
        except Exception:
            logger.exception("authenticate failed: this client is answered 500")
            return PlainTextResponse("the server could not tell who you are\n", 500)
        try:
            if query is None:
                raise InvalidRequest(f"the query has more than {MAX_QUERY_FIELDS} fields")
            start = Start.parse(_cursor(headers, query), query.get("since"), query.get("on_reset"))
        except InvalidRequest as exc:
            return PlainTextResponse(f"{exc}\n", exc.status)
        if method == "GET" and not await self._is_ready():
            return self._come_back()
        if method == "GET":
            await self._hub.reach(start.cursor)
        return EventStream(self._hub, claims, start)

    async def _claims(self, scope: Scope, headers: Headers, query: Mapping[str, str]) -> Claims:
        if isinstance(self._login, TokenLogin):
            return self._login.verify(headers, query)
        claims = await self._login(HTTPConnection(scope))
        if claims is None:
            raise TokenError("authenticate knows nobody by this request")
        if not isinstance(claims, Claims):
            raise TypeError(f"authenticate returned {type(claims).__name__}: return ssehub.Claims, or None for nobody")
        return claims

    async def _is_ready(self) -> bool:
        """Whether a stream can be opened now; starts the hub at its first use."""
        if self._hub.is_full or self._hub.is_draining:
            return False
        try:
            await self._hub.start()
        except Unavailable as exc:
            logger.warning("the hub can't start: %s", exc)
            return False
        if self._exit_listener is not None:
            self._exit_listener.start()
        return self._hub.is_following

    def _come_back(self) -> Response:
        """An EventSource stops for good at any status but 200; so one that is to come back later is told within one."""
        frame = encode_fields(comment="busy", retry=self._hub.comeback_milliseconds())
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Connection": "close"}
        return Response(frame, media_type="text/event-stream", headers=headers)


def _query(query_string: bytes) -> dict[str, str] | None:
    """The fields of a query, the first of each name; None if there are too many.

    What is no UTF-8 is read all the same, as in a header: a cursor that nobody knows is told so.
    """
    try:
        pairs = parse_qsl(query_string.decode(errors="replace"), errors="replace", max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        return None
    return dict(reversed(pairs))


def _without_token(query_string: bytes) -> bytes:
    """The query without what its token says, however its name is written."""
    fields = query_string.split(b"&")
    return b"&".join([b"token=..." if unquote_to_bytes(one.partition(b"=")[0]) == b"token" else one for one in fields])


def _cursor(headers: Headers, query: dict[str, str]) -> str | None:
    """What the client says it has seen: the header of the HTML standard, 9.2.4, or what polyfills send instead."""
    cursor = headers.get("last-event-id")
    if cursor:
        # Browsers send it as UTF-8 (HTML, 9.2.3), and ASGI's headers are read as Latin-1.
        return cursor.encode("latin-1").decode(errors="replace")
    return next((query[name] for name in CURSOR_PARAMETERS if query.get(name)), None)
