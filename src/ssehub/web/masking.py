"""Masking for access logs: servers log no token, whichever parameter or path contains it.

Servers log the path and the query of the ASGI scope when a response starts. The scope of the server is changed before
that, and the app gets a copy with the original values.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

EVENTS = "/events/"
_MAX_SHOWN_PATH = 32
"""Most characters of other paths that are shown. A token begins with its header, which is not secret."""
_SHOWN_PATHS = frozenset(
    path + slash for path in ("/events/login", "/events/stop", "/events/backchannel-logout") for slash in ("", "/")
)
_MAX_NAME_BYTES = 32
_MAX_SHOWN_FIELDS = 20


class Masking:
    """Middleware that hides query values, everything below `/events/` and the rest of long paths from access logs.

    It is not a coroutine: a stream would keep one more of them for as long as it lasts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # A WebSocket is refused, but its path and query are logged as well.
        return self._app(scope if scope["type"] == "lifespan" else masked(scope), receive, send)


def masked(scope: Scope) -> Scope:
    """Mask `scope`, which the server's access log reads, and return the scope that the app reads."""
    query, root = scope["query_string"], scope.get("root_path", "")
    path = _masked_path(scope["path"], root)
    if not query and path is None:
        return scope
    original = dict(scope)
    scope["query_string"] = mask_query(query)
    if path is not None:
        scope["path"] = path
        scope["raw_path"] = path.encode()
    return original


def _masked_path(path: str, root: str) -> str | None:
    """Return the path to show in place of `path`, None if that may be shown."""
    below = path.removeprefix(root)
    if below in _SHOWN_PATHS:
        return None
    shown_length = len(EVENTS) if below.startswith(EVENTS) else _MAX_SHOWN_PATH
    if len(below) <= shown_length:
        return None
    return f"{path[: len(path) - len(below)]}{below[:shown_length]}..."


def mask_query(query: bytes) -> bytes:
    """Return the names of the query's fields. A field without a value, or with a long name, may itself be a token."""
    fields = query.split(b"&", _MAX_SHOWN_FIELDS)
    return b"&".join(_mask_field(field) for field in fields[:_MAX_SHOWN_FIELDS])


def _mask_field(field: bytes) -> bytes:
    name, equals, _ = field.partition(b"=")
    return name + b"=..." if equals and len(name) <= _MAX_NAME_BYTES else b"..." if field else b""
