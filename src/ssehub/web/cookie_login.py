"""`POST` and `DELETE /events/login`: set and clear the cookie with the token, so that no URL needs to contain it.

A native EventSource can't send headers. A page logs in once, with its token in `Authorization`, and then opens streams
with the cookie that the browser keeps, and that no script can read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote, urlsplit

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..address import LOOPBACK_HOSTS
from ..errors import BodyTooLarge, ConfigError, SSEHubError, TokenError, TokenReason, Unavailable
from ..hub import Hub
from .denials import Denials
from .description import Answer, Description
from .logins import TokenLogin, bearer_token
from .origins import check_page
from .refusals import CLAIMS
from .requests import RequestHeaders, request_headers
from .schemas import STRING

LOGIN = "/events/login"
LOGIN_METHODS = ("POST", "DELETE")
MAX_COOKIE_TOKEN_BYTES = 4_000
"""Browsers drop a cookie whose name and value have more than 4,096 bytes (RFC 6265bis, 5.7)."""
MAX_NAME_BYTES = 96
MAX_AGE_SECONDS = 400 * 86_400
"""Browsers keep no cookie for longer (RFC 6265bis, 5.5)."""
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PATH = re.compile(r"/[!-:<-~]*")
_PATH_SAFE = "/!$&'()*+,=:@~"


@dataclass(frozen=True, slots=True)
class LoginCookie:
    """The cookie `name` and its attributes. Raises ConfigError for those with which browsers would drop it.

    Without `path`, it is that of the request without `/login`, which is wrong behind a proxy that changes the path.
    With `is_secure`, browsers send the cookie over TLS only, except to this machine itself.
    """

    name: str
    path: str | None = None
    is_secure: bool = True

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME_BYTES:
            raise ConfigError(
                f"token_cookie {self.name[:100]!r}: the name of a cookie has 1 to {MAX_NAME_BYTES} letters, digits and "
                "characters such as - and _, without spaces"
            )
        if self.path is not None and not _PATH.fullmatch(self.path):
            raise ConfigError(
                f"token_cookie_path {self.path[:100]!r}: must begin with / and have no spaces, semicolons or "
                "characters that are not ASCII, such as /api/sse/"
            )
        if self.must_be_secure and not self.is_secure:
            raise ConfigError(
                f"token_cookie {self.name!r} must be secure because of how its name begins: remove "
                "token_cookie_secure, or rename the cookie"
            )
        if self._is_of_host and self.path not in (None, "/"):
            raise ConfigError(
                f"token_cookie {self.name!r} must have the path / because of how its name begins: set "
                "token_cookie_path to /, or rename the cookie"
            )

    @property
    def must_be_secure(self) -> bool:
        """True if browsers accept a cookie of this name only with `Secure` (RFC 6265bis, 4.1.3)."""
        return self.name.lower().startswith(("__secure-", "__host-", "__http-"))

    @property
    def _is_of_host(self) -> bool:
        return self.name.lower().startswith("__host-")

    def header(self, value: str, max_age: int | None, scope: Scope, headers: RequestHeaders) -> str:
        """Return `Set-Cookie` in the response to a request. Without `max_age`, it lasts as long as the browser runs."""
        lifetime = "" if max_age is None else f"; Max-Age={max_age}"
        secure = "; Secure" if self.must_be_secure or (self.is_secure and not _is_local(scope, headers)) else ""
        return f"{self.name}={value}; Path={self._path_for(scope)}{lifetime}; HttpOnly{secure}; SameSite=Lax"

    def _path_for(self, scope: Scope) -> str:
        if self.path is not None:
            return self.path
        if self._is_of_host:
            return "/"
        # Without a slash at its end it covers /events, too.
        return quote(scope["path"].removesuffix("/").removesuffix("/login"), safe=_PATH_SAFE)


_SET_COOKIE = {"Set-Cookie": (STRING, "The cookie.")}


class CookieLogin:
    """Responds to `POST` and `DELETE`. `now` returns Unix time in seconds."""

    path = LOGIN
    descriptions: ClassVar[Mapping[str, Description]] = {
        "POST": Description(
            "logIn",
            "Set the cookie with the token",
            [Answer(204, "The cookie is set.", headers=_SET_COOKIE)],
            refusals=(401, 403, 413, 503),
        ),
        "DELETE": Description(
            "logOut",
            "Clear the cookie",
            [Answer(204, "The cookie is cleared.", headers=_SET_COOKIE)],
            refusals=(403,),
        ),
    }

    def __init__(
        self,
        hub: Hub,
        login: TokenLogin,
        cookie: LoginCookie,
        cors_origins: frozenset[str],
        denials: Denials,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._login = login
        self._cookie = cookie
        self._cors_origins = cors_origins
        self._denials = denials
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(scope)
        except SSEHubError as exc:
            response = self._denials.response(exc, scope, "tokens can't be checked at present: try again")
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)

    async def _respond(self, scope: Scope) -> Response:
        headers = request_headers(scope)
        check_page(headers, self._cors_origins, "log in or out here")
        if scope["method"] == "DELETE":
            return self._response("", 0, scope, headers)
        token = bearer_token(headers)
        if token is None:
            raise TokenError("the request has no token in its header", TokenReason.MISSING)
        if len(token) > MAX_COOKIE_TOKEN_BYTES:
            raise BodyTooLarge(
                f"the token has more than {MAX_COOKIE_TOKEN_BYTES} bytes, and browsers drop such a cookie: send it in "
                "the header of each request, or grant fewer channels, or a pattern"
            )
        claims = scope[CLAIMS] = await self._login.verify(token)
        await self._hub.start()  # only then are the revocations known
        if not self._hub.broker.is_current:
            raise Unavailable("the log cannot be read now, so that revocations may be missing")
        self._hub.require_access(claims)
        max_age = None
        if claims.expires_at is not None:
            max_age = max(1, int(min(claims.expires_at - self._now(), MAX_AGE_SECONDS)))
        return self._response(token, max_age, scope, headers)

    def _response(self, value: str, max_age: int | None, scope: Scope, headers: RequestHeaders) -> Response:
        return Response(status_code=204, headers={"Set-Cookie": self._cookie.header(value, max_age, scope, headers)})


def _is_local(scope: Scope, headers: RequestHeaders) -> bool:
    """True if a browser on this machine called this machine, without TLS and without a proxy that ends it.

    nginx calls the hub as `127.0.0.1` unless told otherwise, so `Host` is not enough: the page's `Origin` must agree.
    """
    if scope.get("scheme", "http") != "http" or not _is_loopback(f"//{headers.get('host', '')}"):
        return False
    origin = headers.get("origin")
    return origin is None or (origin.startswith("http://") and _is_loopback(origin))


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in LOOPBACK_HOSTS or host.endswith(".localhost")
