"""Whose page a request comes from, as browsers say it in `Origin` and `Sec-Fetch-Site`."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether no page of another origin has made this request; what is no browser says nothing, and counts as ours."""
    origin = headers.get("origin")
    if origin is not None and _host(origin) != headers.get("host", "").lower():
        return False
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _host(origin: str) -> str | None:
    """Host and port of an origin, None if it has none, as `null` and broken ones."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
