"""The client app, which is public: `GET /events/`, the streams that browsers open, logins and logouts, and stops."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import get_args

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import (
    ConfigError,
    InvalidEvent,
    SSEHubError,
    Unavailable,
)
from ..fanout.frames import control_event
from ..fanout.refusals import Refusal
from ..fields import check_id
from ..hub import Hub
from ..position import Position
from ..proxies import TrustedProxies
from ..run_streams import MAX_WAIT_SECONDS
from ..settings import ComebackEnd
from ..tokens import Tokens
from .addresses import BelievingProxies
from .backchannel import BACKCHANNEL_LOGOUT, BackchannelLogout
from .cookie_login import LOGIN, LOGIN_METHODS, CookieLogin, LoginCookie
from .denials import Denials
from .description import TEXT, Answer, Description, Errors, Field, Operation, Parameter, queries
from .direct import DirectApp
from .ends import is_cut
from .fast_path import FastPath
from .fast_streams import FastStreams
from .feed import EVENT_STREAM
from .logins import HEADER, AsgiRequest, Authenticate, Login, TokenLogin, choose_login, login_schemes
from .masking import Masking
from .methods import STREAM_METHODS, ByMethod
from .not_found import not_found
from .openapi import DESCRIPTION, PATH, Document, PublicDocument
from .opening import CURSOR_PARAMETERS, Opening, cursor_of, opening_of
from .origins import Cors, OriginWatch, check_origins
from .query import CHANNEL, RUN
from .refusals import CLAIMS, Refusals, client_reason
from .run_request import AI_SDK, RunRequest
from .run_stop import STOP, RunStop
from .run_streams import run_stream
from .schemas import NAME_LIST, RUN_NAME, SINCE, STRING, one_of, whole_numbers
from .stream import BusyResponse, EventStream, ExitListener
from .stream_heads import stream_heads
from .unknown_run import UnknownRuns

ALLOW = ", ".join(STREAM_METHODS)
_ELSEWHERE = (
    "not found: this port serves streams, at /events/; tokens and events are POSTed to /token/ and /emit/ of the "
    "control app, which listens on another port (control_bind, by default 127.0.0.1:8001)\n"
)
STREAM_FIELDS = {
    CHANNEL: Field(NAME_LIST, "Only these of the granted channels."),
    "since": Field(SINCE, "Where a client without a cursor begins; now, if left out."),
    "on_reset": Field(one_of(["replay"]), "A client that may have missed something is sent what is retained."),
    "end": Field(one_of(["clean", "cut"]), "How the response ends of a client that is to come back."),
    RUN: Field(RUN_NAME, "Watch this run. It goes neither with `channel` nor with `since`."),
    "wait": Field(whole_numbers(1, int(MAX_WAIT_SECONDS)), "With `run`: how many seconds to wait until there is one."),
    "dialect": Field(one_of(["datastar", AI_SDK]), "How events are written. `ai-sdk` is for runs only."),
    "ended": Field(one_of(["replay"]), "With `dialect=ai-sdk`: all of a run that has ended, in place of 204."),
    **{name: Field(STRING, "The cursor, for clients that can't send the header.") for name in CURSOR_PARAMETERS},
}


def create_client_app(
    hub: Hub,
    *,
    tokens: Tokens | None = None,
    authenticate: Authenticate | None = None,
    token_cookie: str | None = None,
    token_cookie_path: str | None = None,
    token_cookie_secure: bool = True,
    cors_origins: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    comeback_end: ComebackEnd = "auto",
    max_busy_waits: int = 1_000,
    drains_on_exit: bool = True,
) -> DirectApp:
    """Return the app that serves `GET /events/` from `hub`, to clients with a token or logged in by `authenticate`.

    `token_cookie` names a cookie that may carry the token, too. `POST /events/login` sets it, with `token_cookie_path`
    and, unless `token_cookie_secure` is False, for TLS only. With `tokens` of an identity provider, `POST
    /events/backchannel-logout` takes its logout tokens. Pages of `cors_origins` may listen with credentials, and with
    `("*",)` all pages, without credentials. `trusted_proxies` are addresses and networks of proxies, or `unix`: what
    they say in `X-Forwarded-For` or `Forwarded` about the client is believed. `comeback_end` says how the response ends
    of a client that is to come back: complete (`clean`), cut off (`cut`), or as the client needs it (`auto`). Before it
    is cut off, a client that is refused waits a second, at most `max_busy_waits` of them at once. `drains_on_exit` ends
    the streams when uvicorn is told to exit, because uvicorn waits for them.

    Raises ConfigError unless exactly one of `tokens` and `authenticate` is given, for a cookie that browsers would
    drop, and for origins that no browser sends, or that every page can send to listen with its visitors' cookies.
    """
    if comeback_end not in get_args(ComebackEnd):
        raise ConfigError(f"comeback_end {comeback_end!r}: must be auto, clean or cut")
    check_origins(cors_origins, with_cookies=token_cookie is not None or authenticate is not None)
    login = choose_login(tokens, authenticate, token_cookie, cors_origins)
    refusals = Refusals(hub)
    denials = Denials(refusals)
    unknown_runs = UnknownRuns(refusals)
    streams = EventsEndpoint(hub, login, refusals, denials, unknown_runs, comeback_end, max_busy_waits)
    # A request is compared with one route after the other, so that of nearly all streams is the first.
    cors = partial(_cors, cors_origins, refusals)
    routes = [Route("/events/", streams, middleware=cors())]
    schemes = login_schemes(login, token_cookie)
    operations = [
        Operation(EventsEndpoint.path, "GET", EventsEndpoint.description, tuple(schemes)),
        Operation(RunStop.path, RunStop.method, RunStop.description, tuple(schemes)),
        Operation(PATH, "GET", DESCRIPTION),
    ]
    stop = RunStop(hub, login, frozenset(cors_origins), refusals, denials, unknown_runs)
    routes += _both(STOP, ByMethod(streams, {"POST": stop}, refusals), cors(("POST",)))
    if isinstance(login, TokenLogin) and token_cookie is not None:
        cookie = LoginCookie(token_cookie, token_cookie_path, token_cookie_secure)
        operations += [
            Operation(LOGIN, method, description, (HEADER,) if method == "POST" else ())
            for method, description in CookieLogin.descriptions.items()
        ]
        cookie_login = CookieLogin(hub, login, cookie, frozenset(cors_origins), denials)
        by_method = ByMethod(streams, dict.fromkeys(LOGIN_METHODS, cookie_login), refusals)
        routes += _both(LOGIN, by_method, cors(LOGIN_METHODS))
    elif token_cookie_path is not None:
        raise ConfigError("token_cookie_path is that of the cookie named by token_cookie: set token_cookie, too")
    if isinstance(login, TokenLogin) and tokens is not None and tokens.has_jwks:
        operations.append(Operation(BACKCHANNEL_LOGOUT, BackchannelLogout.method, BackchannelLogout.description))
        logout = BackchannelLogout(hub, tokens, login, refusals)
        routes += _both(BACKCHANNEL_LOGOUT, ByMethod(streams, {"POST": logout}, refusals), cors())
    routes += [Route(path, streams, middleware=cors()) for path in ("/events/{rest:path}", "/events")]
    document = PublicDocument(Document(_TITLE, _TEXT, operations, schemes, _ERRORS, lambda operation: set()))
    routes += _both(PATH, ByMethod(document, {}, refusals), cors())
    proxies = TrustedProxies.parse(trusted_proxies)
    if tokens is not None:
        hub.accompany(tokens)
    if drains_on_exit:
        hub.accompany(ExitListener(hub))

    @asynccontextmanager
    async def lifespan(app: DirectApp) -> AsyncIterator[None]:
        async with hub:
            yield

    fast_paths: dict[bytes, FastPath] = {}
    if isinstance(login, TokenLogin):
        heads = stream_heads(cors_origins, partial(_behind, cors()))
        fast = FastStreams(hub, login, proxies, comeback_end, heads)
        fast_paths = {b"/events/": fast, b"/events": fast}
    app = DirectApp(
        {},
        fast_paths,
        routes=routes,
        exception_handlers={404: not_found(_ELSEWHERE, partial(refusals.refuse, Refusal.NOT_FOUND))},
        middleware=[
            Middleware(Masking),
            *([Middleware(BelievingProxies, proxies=proxies)] if proxies else []),
            Middleware(OriginWatch, origins=cors_origins, refusals=refusals),
        ],
        lifespan=lifespan,
    )
    app.state.refusals = refusals
    # A redirect would send the token to a Host that the client chose.
    app.router.redirect_slashes = False
    return app


_TITLE = "ssehub client API"
_TEXT = """\
Open streams of events with the token of a user, and log in and out by cookie. It is for browsers.

A stream is `text/event-stream` as the HTML standard defines it, and goes on until the client or the hub ends it. \
Every path works with and without its final slash. A GET can also be a HEAD. OPTIONS answers 204, or a CORS \
preflight. Methods that a path does not have are answered 405, and unknown paths 404. Requests that are not valid \
HTTP, or too slow, are refused by the server with a status from 400 to 431."""
_ERRORS = Errors("Refusal", {TEXT: STRING})


def _both(path: str, app: ASGIApp, middleware: Sequence[Middleware]) -> list[Route]:
    """Return the routes of `path` without and with a slash at its end."""
    return [Route(path + slash, app, middleware=middleware) for slash in ("", "/")]


def _behind(middleware: Sequence[Middleware], app: ASGIApp) -> ASGIApp:
    """Return `app` behind `middleware`, of which the first is the outermost."""
    for cls, args, kwargs in reversed(middleware):
        app = cls(app, *args, **kwargs)
    return app


def _cors(origins: Sequence[str], refusals: Refusals, methods: Sequence[str] = ()) -> list[Middleware]:
    return [Middleware(Cors, origins=origins, methods=methods, refusals=refusals)] if origins else []


class EventsEndpoint:
    """Responds to `/events/`. It is an ASGI app itself, so that no request object lives as long as a stream."""

    path = "/events/"
    description = Description(
        "listen",
        "Open a stream",
        [
            Answer(200, "The stream; one that ends at once if the client is to come back.", {EVENT_STREAM: STRING}),
            Answer(204, "With `run`: the client has all of the run, which has ended."),
            Answer(414, "The query is longer than the server reads.", {TEXT: STRING}),
        ],
        [
            Parameter("Last-Event-ID", "header", STRING, "The cursor: the last id that the client has read."),
            *queries(STREAM_FIELDS),
        ],
        refusals=(400, 401, 403, 404, 500, 503),
        text=(
            "Any other path below `/events/` does the same. A parameter that is not listed is ignored. 404 is for a "
            "run that the client may not watch, and 503 is only with `dialect=ai-sdk`."
        ),
    )

    def __init__(
        self,
        hub: Hub,
        login: Login,
        refusals: Refusals,
        denials: Denials,
        unknown_runs: UnknownRuns,
        comeback_end: ComebackEnd,
        max_busy_waits: int,
    ) -> None:
        self._hub = hub
        self._login = login
        self._refusals = refusals
        self._denials = denials
        self._unknown_runs = unknown_runs
        self._comeback_end = comeback_end
        self._busy_waits = asyncio.Semaphore(max_busy_waits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(scope, receive)
            await response(scope, receive, send)
        except Unavailable as exc:  # over a limit, or the hub starts or has ended; nothing has been sent yet
            response = self._busy(exc, scope)
        except SSEHubError as exc:
            response = self._denials.response(exc, scope)
        else:
            return
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> ASGIApp:
        method = scope["method"]
        if method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ALLOW})
        if method not in ("GET", "HEAD"):
            self._refusals.refuse(Refusal.METHOD, scope)
            return PlainTextResponse("method not allowed: use GET\n", 405, headers={"Allow": ALLOW})
        request = AsgiRequest(scope)
        claims = scope[CLAIMS] = await self._login(request)
        opening = opening_of(request, claims, self._hub, self._comeback_end)
        if opening.run is not None:
            return await self._respond_with_run(opening.run, opening, scope, receive)
        start = opening.start
        if method == "GET":
            await self._hub.make_ready()
            start = await self._hub.prepare(opening.claims, start)
        return EventStream(self._hub, opening, start)

    async def _respond_with_run(self, wanted: RunRequest, opening: Opening, scope: Scope, receive: Receive) -> ASGIApp:
        is_head = scope["method"] == "HEAD"
        if not is_head:
            await self._hub.make_ready()
        response = await run_stream(self._hub, wanted, opening, scope, receive, self._unknown_runs, is_head=is_head)
        if not is_head:  # it may have waited
            await self._hub.make_ready()
        return response

    def _busy(self, exc: Unavailable, scope: Scope) -> ASGIApp:
        """Return a short stream that tells the client to come back later, or 503 where that would do harm."""
        self._refusals.refuse_client(exc, scope)
        request = AsgiRequest(scope)
        query = request.query.fields if request.query is not None else {}
        comeback = self._hub.comeback(client_reason(exc))
        if RUN in query and query.get("dialect") == AI_SDK:
            headers = {"Retry-After": str(math.ceil(comeback.retry_milliseconds / 1000)), "Cache-Control": "no-store"}
            return PlainTextResponse("no stream can be opened at present: try again\n", 503, headers)
        end = None if "since" in query or RUN in query else comeback.position
        id = _id_of_refused(cursor_of(request.headers, query), end)
        frame = control_event("stream-busy", {}, id, comeback.retry_milliseconds)
        cuts = is_cut(query.get("end"), self._comeback_end, request.headers)
        return BusyResponse(frame.data, comeback.cut_seconds if cuts else None, self._busy_waits)


def _id_of_refused(cursor: str | None, end: Position | None) -> str | None:
    """Return the id that is sent to a client in place of a stream: its own cursor, or the end of the log at `end`.

    Some clients forget theirs at a response without an id. A new client misses nothing from now on.
    """
    if cursor is None:
        return None if end is None else str(end)
    if Position.parse(cursor) is None:
        try:
            check_id("id", cursor)
        except InvalidEvent:
            return None
    return cursor
