"""Addresses of the client app's clients: as limits count them, as log lines show them, and as proxies name them."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from ..fanout.origin import Origin, origin
from ..proxies import Client, TrustedProxies, limit_key
from .requests import RequestHeaders


class BelievingProxies:
    """Middleware that puts the client's address into the scope, if one of `proxies` names it.

    It is not a coroutine: a stream would keep one more of them for as long as it lasts.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            scope["client"] = self._proxies.client(scope.get("client"), scope["headers"])
        return self._app(scope, receive, send)


MAX_ADDRESS_LENGTH = 100
"""How much is kept of an address, more than any has. Another server may put there what a client sends in a header."""


def address_of(client: Client | None) -> str:
    """Return what the limits per address count as one address. It is empty for clients of a Unix socket."""
    return limit_key(_host(client))


def client_of(scope: Scope) -> str:
    """Return the client's address for a log line."""
    return address_of(scope.get("client")) or "a Unix socket"


def origin_of(client: Client | None, headers: RequestHeaders) -> Origin:
    """Return where the request comes from, for log lines and listings: the address itself, not that of limits."""
    return origin(_host(client), headers.get("user-agent", ""))


def _host(client: Client | None) -> str:
    return client[0][:MAX_ADDRESS_LENGTH] if client and client[0] else ""
