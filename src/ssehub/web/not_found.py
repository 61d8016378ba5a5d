"""The response to paths that an app does not have: what it serves, and where the rest is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope


def not_found(text: str, refuse: Callable[[Scope], None]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler that answers 404 with `text`, and calls `refuse` with the scope."""

    async def respond(request: Request, exc: Exception) -> Response:
        refuse(request.scope)
        return PlainTextResponse(text, 404)

    return respond
