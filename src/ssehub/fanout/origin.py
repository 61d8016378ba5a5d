"""Where streams come from, for log lines and listings."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

MAX_CLIENT_LENGTH = 80
"""How much is kept of what a client calls itself."""
MAX_ORIGINS = 10_000
"""How many are kept to be shared: thousands of streams come from one proxy, or from one version of a browser."""


class Origin(NamedTuple):
    """The client of a stream. Most streams share one with others."""

    address: str
    """Its address, behind trusted proxies; empty for a Unix socket."""
    client: str
    """Its User-Agent, shortened."""

    def __str__(self) -> str:
        address = self.address or "a Unix socket"
        return f"{address}, {self.client!a}" if self.client else address


_shared = lru_cache(MAX_ORIGINS)(Origin)


def origin(address: str, client: str) -> Origin:
    """Return the origin of these two, one object as long as it is remembered."""
    return _shared(address, client[:MAX_CLIENT_LENGTH])  # shortened first: a client may send as much as a head can have
