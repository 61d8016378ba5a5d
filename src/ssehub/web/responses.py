"""The responses of the control app: they are counted by status, in `Hub.control_responses`, or made once for all."""

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


class SharedResponse(PlainTextResponse):
    """A response that is made once, and sent again and again."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = list(self.raw_headers)  # middleware may add some
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def counting_failures(hub: Hub) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of exceptions that no endpoint expects. Starlette calls it outside of all middleware.

    It is called for a response that has begun, too, which has been counted: what it returns is not sent then.
    """

    class Failure(PlainTextResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            hub.control_responses[self.status_code] += 1
            await super().__call__(scope, receive, send)

    async def respond(request: Request, exc: Exception) -> Response:
        return Failure("Internal Server Error", 500)

    return respond
