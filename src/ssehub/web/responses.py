"""Counts the responses of the control app by their status, in `Hub.control_responses`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..hub import Hub


def counting_responses(app: ASGIApp, hub: Hub) -> ASGIApp:
    """Return `app` as one that counts all its responses, also those that the guard and the router give.

    It stands in the path of every event, so it is made of plain functions, which return what they would await.
    """
    counts = hub.control_responses

    def counting(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        def counted(message: Message) -> Awaitable[None]:
            if "status" in message:
                counts[message["status"]] += 1
            return send(message)

        return app(scope, receive, counted)

    return counting


def counting_failures(hub: Hub) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of exceptions that no endpoint expects. Starlette calls it outside of all middleware."""

    async def respond(request: Request, exc: Exception) -> Response:
        hub.control_responses[500] += 1
        return PlainTextResponse("Internal Server Error", 500)

    return respond
