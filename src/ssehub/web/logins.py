"""Logins of the client app: what a request for a stream may listen to, by its token or by the host application."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

from starlette.requests import HTTPConnection
from starlette.types import Scope

from ..claims import Claims
from ..errors import ConfigError, LoginFailed, SSEHubError, TokenError, TokenReason
from ..proxies import Client
from ..tokens import Tokens
from .description import Schema
from .origins import check_page
from .query import parse_query
from .requests import RequestHeaders, parsed_headers


class StreamRequest:
    """A request for a stream, with its headers and its query parsed once."""

    __slots__ = ("client", "headers", "query")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]], query_string: bytes, client: Client | None) -> None:
        self.headers = parsed_headers(headers)
        self.query = parse_query(query_string)
        """None if the query exceeds QUERY_BOUNDS."""
        self.client = client
        """The client's address, behind trusted proxies."""


class AsgiRequest(StreamRequest):
    """A request that has reached the app, with its scope."""

    __slots__ = ("scope",)

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope["headers"], scope["query_string"], scope.get("client"))
        self.scope = scope


Authenticate = Callable[[HTTPConnection], Awaitable[Claims | None]]
"""A login of the host application: returns what the request may listen to, None if it is not logged in."""

Login = Callable[[AsgiRequest], Awaitable[Claims]]
"""Returns what the request may listen to. Raises TokenError, Forbidden, LoginFailed, or Unavailable if it can't yet."""


def choose_login(
    tokens: Tokens | None, authenticate: Authenticate | None, token_cookie: str | None, cors_origins: Sequence[str]
) -> Login:
    if tokens is not None and authenticate is None:
        return TokenLogin(tokens, token_cookie, frozenset(cors_origins))
    if authenticate is not None and tokens is None:
        return HostLogin(authenticate)
    raise ConfigError("create_client_app needs either tokens or authenticate")


class TokenLogin:
    """The login by token. The first token found counts: in `Authorization` (RFC 6750, 2.1), the cookie, the query."""

    def __init__(self, tokens: Tokens, cookie: str | None, cors_origins: frozenset[str]) -> None:
        self._tokens = tokens
        self._cookie = None if cookie is None else _cookie_pattern(cookie)
        self._cors_origins = cors_origins
        self.has_seen_sid = False
        """True if one of the tokens verified here so far named its session at the identity provider."""

    async def __call__(self, request: AsgiRequest) -> Claims:
        return await self.verify(self._token(request))

    async def verify(self, token: str) -> Claims:
        """Return what `token` grants. Raises TokenError, and KeysUnavailable."""
        return self._seen(await self._tokens.authenticate(token))

    def verify_at_once(self, request: StreamRequest) -> Claims:
        """Return what a call with `request` returns, and raise what it raises.

        If the call would ask for keys first, this raises UnknownKey or KeysUnavailable.
        """
        return self._seen(self._tokens.verify(self._token(request)))

    def _seen(self, claims: Claims) -> Claims:
        if claims.sid is not None:
            self.has_seen_sid = True
        return claims

    def _token(self, request: StreamRequest) -> str:
        headers = request.headers
        if (token := bearer_token(headers)) is not None:
            return token
        if self._cookie is not None and (token := _last_value(self._cookie, headers.get("cookie", ""))):
            # Browsers send cookies with requests of any page, so a cookie counts only for our own and listed origins.
            check_page(headers, self._cors_origins, "listen with a cookie")
            return token
        if request.query is not None and "token" in request.query.fields:
            return request.query.fields["token"]
        raise TokenError("the request has no token", TokenReason.MISSING)


def bearer_token(headers: RequestHeaders) -> str | None:
    """Return the token in `Authorization` (RFC 6750, 2.1), None if there is none."""
    authorization = headers.get("authorization", "")
    return authorization[7:] if authorization[:6].lower() == "bearer" else None


def _cookie_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf".*;\s*{re.escape(name)}\s*=\s*([^;]*)", re.DOTALL)


def _last_value(pattern: re.Pattern[str], cookies: str) -> str:
    """Return the value of the last cookie with the name of `pattern`, without quotes. A token has no escapes.

    Starlette's `cookie_parser` also unquotes all other cookies, which takes time that grows with the square of their
    length in Python before 3.11.10 and 3.12.6 (CVE-2024-7592): a cookie of 32 KiB took 3.5 s.
    """
    found = pattern.match(f";{cookies}")
    return found[1].strip().strip('"') if found else ""


class HostLogin:
    """The login by the host application's `authenticate`."""

    def __init__(self, authenticate: Authenticate) -> None:
        self._authenticate = authenticate

    async def __call__(self, request: AsgiRequest) -> Claims:
        try:
            claims = await self._authenticate(HTTPConnection(request.scope))
        except SSEHubError:
            raise
        except Exception as exc:
            raise LoginFailed("authenticate failed") from exc
        if claims is None:
            raise TokenError("authenticate returned None", TokenReason.MISSING)
        if not isinstance(claims, Claims):
            raise LoginFailed(
                f"authenticate returned {type(claims).__name__}: return ssehub.Claims, or None if not logged in"
            )
        return claims


HEADER = "tokenInHeader"
"""The name of the scheme that every login by token has, in the document of the client app."""


def login_schemes(login: Login, token_cookie: str | None) -> dict[str, Schema]:
    """Return how a request for a stream brings its login, for that document. Of a host's own login nothing is known."""
    if not isinstance(login, TokenLogin):
        return {}
    schemes: dict[str, Schema] = {HEADER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    if token_cookie is not None:
        schemes["tokenInCookie"] = {"type": "apiKey", "in": "cookie", "name": token_cookie}
    schemes["tokenInQuery"] = {"type": "apiKey", "in": "query", "name": "token"}
    return schemes
