"""Paths below `/events/` that answer further methods than those of a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..fanout.refusals import Refusal
from .refusals import Refusals

STREAM_METHODS = ("GET", "HEAD", "OPTIONS")


class ByMethod:
    """An ASGI app that passes GET and HEAD on to `streams`, and other methods to the app in `others`.

    Any path below `/events/` is one of a stream. It is not a coroutine: a stream would keep one more of them for as
    long as it lasts.
    """

    def __init__(self, streams: ASGIApp, others: Mapping[str, ASGIApp], refusals: Refusals) -> None:
        self._apps = {"GET": streams, "HEAD": streams, **others}
        self._allow = ", ".join((*STREAM_METHODS, *others))
        self._refusals = refusals
        self._options = Response(status_code=204, headers={"Allow": self._allow})

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._apps.get(scope["method"])
        if app is None:
            app = self._options if scope["method"] == "OPTIONS" else self._not_allowed(scope)
        return app(scope, receive, send)

    def _not_allowed(self, scope: Scope) -> Response:
        self._refusals.refuse(Refusal.METHOD, scope)
        return PlainTextResponse(f"method not allowed: use one of {self._allow}\n", 405, {"Allow": self._allow})
