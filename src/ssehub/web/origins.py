"""Cross-origin requests, as browsers mark them with `Origin` and `Sec-Fetch-Site`, and lists of accepted origins."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Collection, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import CallerForbidden, ConfigError, InvalidRequest
from ..fanout.refusals import Refusal
from .refusals import Refusals
from .requests import request_headers

ANY = "*"
OPAQUE = "null"
"""The origin of sandboxed frames and of local files, and so one that every web page can have."""
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:\[([0-9a-f:]+)\]|[a-z0-9_.-]+)(?::([1-9]\d{0,4}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_MAX_PORT = 65_535
_PAGELESS = frozenset(("ws", "wss", "file", "data", "blob", "about"))
"""Schemes of which no page has an origin: such a page has the origin `null`, or there is none."""


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """True if a web page of another origin made the request. Clients other than browsers send neither header."""
    origin = headers.get("origin")
    if origin is not None and _host(origin) != headers.get("host", "").lower():
        return True
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def check_page(headers: Mapping[str, str], origins: Collection[str], action: str) -> None:
    """Raise CallerForbidden, which names `action`, if a page made the request that is neither ours nor of `origins`."""
    origin = headers.get("origin")
    if _is_foreign(headers) and origin not in origins:
        page = "a page of another origin" if origin is None else f"a page of origin {origin[:100]!r}"
        raise CallerForbidden(Refusal.PAGE, f"{page} can't {action}: add its origin to cors_origins")


def _is_foreign(headers: Mapping[str, str]) -> bool:
    """Like `is_cross_origin` behind a proxy that may have changed `Host`.

    Where the browser says that the page is of the same origin, it knows better. No page can set `Sec-Fetch-Site`.
    """
    return headers.get("sec-fetch-site") != "same-origin" and is_cross_origin(headers)


def is_allowed(origin: str, origins: Collection[str]) -> bool:
    """True if pages of `origin` may read responses, as one of `origins`."""
    return ANY in origins or origin in origins


def require_origin(origin: object) -> str:
    """Return `origin` if a page can have it. Raises InvalidRequest."""
    problem = _problem(origin, with_cookies=False)
    if not isinstance(origin, str) or origin == ANY or problem is not None:
        raise InvalidRequest(f"origin {origin!r:.200}: {problem or 'give that of one page'}")
    return origin


def check_origins(origins: Sequence[str], *, with_cookies: bool) -> None:
    """Raise ConfigError, which names the entry, unless browsers can send each of `origins` as `Origin`.

    `with_cookies` says that a request may be authorised by a cookie, which browsers add to the requests of any page.
    """
    if isinstance(origins, str):
        raise ConfigError(f"cors_origins must be a list of origins, such as ['https://app.example'], not {origins!r}")
    for origin in origins:
        problem = _problem(origin, with_cookies)
        if problem is not None:
            raise ConfigError(f"cors_origins {origin!r:.200}: {problem}")
    if ANY in origins and len(origins) > 1:
        raise ConfigError("cors_origins: * allows every origin: remove it, or the other origins")


def _problem(origin: object, with_cookies: bool) -> str | None:
    if origin == ANY:
        return None
    if origin == OPAQUE:
        any_page = "every page can send it from a sandboxed frame, and would listen with the cookies of its visitors"
        return f"{any_page}: remove it" if with_cookies else None
    if isinstance(origin, str) and _is_origin(origin):
        return None
    example = "https://app.example or http://localhost:3000"
    return f"no browser sends this as its origin, so it would never match: use one such as {example}{_hint(origin)}"


def _is_origin(text: str) -> bool:
    """True if `text` is written as browsers serialise an origin (HTML, 7.1.1)."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    scheme, ipv6, port = found.groups()
    if scheme in _PAGELESS or (port is not None and (port == _DEFAULT_PORTS.get(scheme) or int(port) > _MAX_PORT)):
        return False
    return ipv6 is None or _shortest(ipv6) == ipv6


def _shortest(ipv6: str) -> str | None:
    """Return the address in its shortest form, None if it is not one."""
    try:
        return ipaddress.IPv6Address(ipv6).compressed
    except ValueError:
        return None


def _hint(origin: object) -> str:
    """Return why `origin` never matches, if it is a common mistake."""
    if not isinstance(origin, str):
        return ""
    scheme, separator, rest = origin.partition("://")
    if not separator:
        return ", with its scheme"
    if "*" in origin:
        return "; list each host, as there are no patterns"
    if re.search(r"[/?#]", rest):
        return ", without a path"
    if not origin.isascii():
        return ", with the host as browsers send it (xn--…)"
    if origin != origin.lower():
        return ", in small letters"
    if scheme in ("ws", "wss"):
        return ", with the scheme of the page"
    if scheme in _PAGELESS:
        return f", or {OPAQUE} for local files"
    return ", without the default port" if rest.endswith(f":{_DEFAULT_PORTS.get(scheme, '')}") else ""


def _host(origin: str) -> str | None:
    """Return host and port of `origin`, None for `null` and malformed origins."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


class OriginWatch:
    """Middleware that counts and logs requests of pages whose origin is not in `origins`.

    It refuses nothing: the browser keeps the response from such a page, and does not tell the page why. Requests
    without `Origin`, as of pages of the hub's own origin and of clients other than browsers, are passed on. It is not a
    coroutine: a stream would keep one more of them for as long as it lasts.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], refusals: Refusals) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._refusals = refusals

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and b"origin" in [name for name, _ in scope["headers"]]:
            self._watch(scope)
        return self._app(scope, receive, send)

    def _watch(self, scope: Scope) -> None:
        headers = request_headers(scope)
        origin = headers["origin"]
        if not is_allowed(origin, self._origins) and _is_foreign(headers):
            shown = f"{origin!r:.200} is not in cors_origins: the browser hides the response from the page"
            self._refusals.refuse(Refusal.ORIGIN, scope, shown)


class Cors(CORSMiddleware):
    """Lets pages of `origins` read the responses of a path, to streams and to further `methods`.

    A preflight for any other method is counted and logged here, and one from another origin by `OriginWatch`. It is not
    a coroutine either.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], methods: Sequence[str], refusals: Refusals) -> None:
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_methods=("GET", "HEAD", *methods),
            allow_headers=(ANY,),  # those requested: Datastar, htmx and others send headers of their own
            allow_credentials=ANY not in origins,
        )
        self._refusals = refusals

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if scope["method"] == "OPTIONS":
            headers = request_headers(scope)
            origin, method = headers.get("origin"), headers.get("access-control-request-method")
            if method not in (None, *self.allow_methods) and origin is not None and self.is_allowed_origin(origin):
                self._refusals.refuse(Refusal.METHOD, scope)
        return super().__call__(scope, receive, send)
