"""Cross-origin requests, as browsers mark them with `Origin` and `Sec-Fetch-Site`, and lists of accepted origins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from ..errors import ConfigError

ANY = "*"
OPAQUE = "null"
"""The origin of sandboxed frames and of local files, and so one that every web page can have."""
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([1-9]\d{0,4}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """True if a web page of another origin made the request. Clients other than browsers send neither header."""
    origin = headers.get("origin")
    if origin is not None and _host(origin) != headers.get("host", "").lower():
        return True
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


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
    found = _ORIGIN.fullmatch(origin) if isinstance(origin, str) else None
    if found is not None and found[2] != _DEFAULT_PORTS.get(found[1], ""):
        return None
    example = "https://app.example or http://localhost:3000"
    return f"no browser sends this as its origin, so it would never match: use one such as {example}{_hint(origin)}"


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
    return ", without the default port" if rest.endswith(f":{_DEFAULT_PORTS.get(scheme, '')}") else ""


def _host(origin: str) -> str | None:
    """Return host and port of `origin`, None for `null` and malformed origins."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
