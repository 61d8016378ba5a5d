"""The guard of the control app: keeps out web pages and, if control keys are set, clients without one of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from ..control_keys import ControlKeys
from ..errors import CallerForbidden, SSEHubError
from ..fanout.refusals import ControlRefusal
from ..fanout.statistics import AppendRefusal
from ..rights import ControlKey
from .endpoint import error_response
from .masking import masked
from .origins import is_cross_origin
from .refusals import refusals_of
from .requests import HEADERS, KEY, REFUSED_SECONDS, DroppedBodies, RequestHeaders, request_headers

OPEN_PATHS = ("/healthz", "/healthz/", "/readyz", "/readyz/")
"""Load balancers call these without a key, and under any name."""
RUNS = "/runs"
FORWARDING_HEADERS = frozenset(
    (
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-real-ip",
    )
)
"""A request with one of these came through a proxy, and so perhaps from another machine."""


class Guard:
    """Refuses requests from web pages and, if control keys are set, requests without one of them.

    Any web page can make a browser POST a form to this machine. The browser then sends `Origin` or `Sec-Fetch-Site`.
    A page can also rebind its own DNS name to this machine, and is then of the same origin. So without a key, `Host`
    must be one of `allowed_hosts`, and the address that was called must not be reachable from other machines. A proxy
    on this machine may pass on what others send, under a `Host` of its own: without a key, what it forwards is refused.
    """

    def __init__(self, keys: ControlKeys, allowed_hosts: Collection[str]) -> None:
        self._keys = keys
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    def check(self, headers: RequestHeaders, server: Sequence[Any] | None) -> ControlKey:
        """Return the key of a request. Raises CallerForbidden and ControlKeyError."""
        self.check_caller(headers, server)
        return self.key_of(headers)

    def check_caller(self, headers: RequestHeaders, server: Sequence[Any] | None) -> None:
        """Raise CallerForbidden unless the request comes from where requests may: the answer is always the same."""
        if not self._keys.is_required:
            if not FORWARDING_HEADERS.isdisjoint(headers):
                raise CallerForbidden(
                    ControlRefusal.FORWARDED,
                    "a proxy forwarded this request: set a control key, or call the control app directly",
                )
            self._check_host(headers.get("host", "").lower(), server)
        if is_cross_origin(headers):
            raise CallerForbidden(
                ControlRefusal.PAGE, "a web page of another origin can't call the control app: call it from a backend"
            )

    def key_of(self, headers: RequestHeaders) -> ControlKey:
        """Return the key of a request. Raises ControlKeyError."""
        keys = self._keys
        return keys.of_header(headers.get("authorization", "")) if keys.is_required else keys.anyone

    def _check_host(self, host: str, server: Sequence[Any] | None) -> None:
        """`server` is the ASGI scope's: the address that was called. The port of a Unix socket is None."""
        if _host_name(host) not in self._hosts:
            raise CallerForbidden(
                ControlRefusal.HOST,
                f"Host {host[:100]!r} is not allowed: call a loopback name, or add it to control_hosts",
            )
        if server is not None and server[1] is not None and not self._is_private(str(server[0])):
            raise CallerForbidden(
                ControlRefusal.REACHABLE,
                "other machines can reach this address: set a control key, or listen on loopback only",
            )

    def _is_private(self, address: str) -> bool:
        """True for a loopback address, and for a name in `allowed_hosts`."""
        is_loopback = _is_loopback(address)
        return address in self._hosts if is_loopback is None else is_loopback


class Guarding:
    """Middleware that lets through what `guard` admits. A request finds the key that it was made with in its scope."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard
        self._dropped = DroppedBodies(REFUSED_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["query_string"]:
            scope = masked(scope)  # a key there is refused, and must not get into the access log either
        if scope["type"] == "http" and path_of(scope) not in OPEN_PATHS:
            headers = request_headers(scope)
            try:
                scope[KEY] = self._guard.check(headers, scope.get("server"))
                scope[HEADERS] = headers
            except SSEHubError as exc:
                await self._refuse(exc, headers, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refuse(
        self, exc: SSEHubError, headers: RequestHeaders, scope: Scope, receive: Receive, send: Send
    ) -> None:
        refusals_of(scope).refuse_control(exc, scope)
        if _is_about_runs(scope):  # it may be an append, whose client looks at the answer when the connection is closed
            await self._dropped.refuse(error_response(exc, headers, {"reason": AppendRefusal.FORBIDDEN}), receive, send)
        else:
            await error_response(exc, headers)(scope, receive, send)


def path_of(scope: Scope) -> str:
    """Return the path that was asked for, below where the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_about_runs(scope: Scope) -> bool:
    path = path_of(scope)
    return path == RUNS or path.startswith(f"{RUNS}/")


@lru_cache(64)
def _is_loopback(address: str) -> bool | None:
    """True if `address` is on loopback, None if it is a name."""
    try:
        return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """Return a `Host` without its port (RFC 9110, 7.2)."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
