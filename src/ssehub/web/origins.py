"""Cross-origin requests, as browsers mark them with `Origin` and `Sec-Fetch-Site`."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """True if a web page of another origin made the request. Clients other than browsers send neither header."""
    origin = headers.get("origin")
    if origin is not None and _host(origin) != headers.get("host", "").lower():
        return True
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _host(origin: str) -> str | None:
    """Return host and port of `origin`, None for `null` and malformed origins."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
