"""The response to paths that an app does not have: what it serves, and where the rest is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response


def not_found(text: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler that answers 404 with `text`."""

    async def respond(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(text, 404)

    return respond
