"""The base of the control app's endpoints: it checks the method, reads the body, and turns errors into responses."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import ControlKeyError, SSEHubError, TooManyRequests, Unavailable
from ..fanout.refusals import ControlRefusal
from ..rights import NO_KEY, ControlKey, Right
from .description import Description
from .forms import JSON, NDJSON
from .refusals import refusals_of
from .requests import HEADERS, KEY, NAME, ControlRequest, DroppedBodies, RequestHeaders, read_body, request_headers

RETRY_AFTER_SECONDS = "1"


class Endpoint:
    """An ASGI app for one path and one method. Starlette calls an app faster than a function.

    A subclass implements `respond`, and names the right that its requests need. An endpoint whose requests have bodies
    also passes their limit.
    """

    path: ClassVar[str]
    method: ClassVar[str]
    right: ClassVar[Right | None]
    """None if any request will do that the guard admits."""
    description: ClassVar[Description]

    def __init__(self, max_body_bytes: int = 0) -> None:
        self.max_body_bytes = max_body_bytes
        self._dropped = DroppedBodies()

    async def respond(self, request: ControlRequest) -> Response:
        """Handle `request`. SSEHubErrors become responses with their status."""
        raise NotImplementedError

    def answer(self, request: ControlRequest) -> Response | Coroutine[Any, Any, Response]:
        """Return the response, if it waits for nothing, or what is to be awaited for it. Raises what `respond` does."""
        return self.respond(request)

    def keeps_body_open(self, query_string: bytes) -> bool:
        """Return True if the body of a request with this query goes on arriving while it is answered."""
        return False

    def refusal(self, exc: SSEHubError, headers: RequestHeaders) -> Response:
        """Return the response for `exc`."""
        return error_response(exc, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: RequestHeaders = scope.get(HEADERS) or request_headers(scope)
        key: ControlKey = scope.get(KEY, NO_KEY)
        response: Response
        if scope["method"] != self.method and (scope["method"], self.method) != ("HEAD", "GET"):
            refusals_of(scope).refuse(ControlRefusal.METHOD, scope)
            response = PlainTextResponse(f"method not allowed: use {self.method}\n", 405, {"Allow": self.method})
        else:
            try:
                if self.right is not None:
                    key.require(self.right)
                body = await read_body(headers, receive, self.max_body_bytes) if self.method != "GET" else b""
            except ClientDisconnect:
                return
            except SSEHubError as exc:
                refusals_of(scope).refuse_control(exc, scope)
                await self._dropped.refuse(self.refusal(exc, headers), receive, send)
                return
            try:
                request = ControlRequest(scope["query_string"], headers, body, key, scope.get(NAME, ""))
                response = await self.respond(request)
            except SSEHubError as exc:
                refusals_of(scope).refuse_control(exc, scope)
                response = self.refusal(exc, headers)
        await response(scope, receive, send)


class Methods:
    """An ASGI app for one path, with an endpoint for each of several methods."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.path = endpoints[0].path
        self.endpoints = endpoints
        self._endpoints = {endpoint.method: endpoint for endpoint in endpoints}
        self._allow = ", ".join(self._endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if endpoint is None:
            refusals_of(scope).refuse(ControlRefusal.METHOD, scope)
            response = PlainTextResponse(f"method not allowed: use {self._allow}\n", 405, {"Allow": self._allow})
            await response(scope, receive, send)
        else:
            await endpoint(scope, receive, send)


def error_response(exc: SSEHubError, headers: RequestHeaders, more: Mapping[str, object] | None = None) -> Response:
    """Return the response for `exc`: JSON if the request was JSON, otherwise one line of text.

    It is also JSON if there is `more` to say, which is added to it.
    """
    extra = {}
    if isinstance(exc, Unavailable):
        extra["Retry-After"] = RETRY_AFTER_SECONDS
    if isinstance(exc, TooManyRequests):
        extra["Retry-After"] = str(max(1, math.ceil(exc.wait_seconds)))
    if isinstance(exc, ControlKeyError):
        extra["WWW-Authenticate"] = "Bearer"
    message = str(exc).encode(errors="backslashreplace").decode()
    if more is not None:
        return JSONResponse({"error": message, **more}, exc.status, extra)
    if headers.get("content-type", "").partition(";")[0].strip().lower() in (JSON, NDJSON):
        return JSONResponse({"error": message}, exc.status, extra)
    return PlainTextResponse(f"{message}\n", exc.status, extra)
