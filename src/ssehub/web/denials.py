"""Responses of the client app to requests that are refused in words, and not by a stream that ends at once."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from ..errors import LoginFailed, SSEHubError, TokenError, Unavailable
from .endpoint import RETRY_AFTER_SECONDS
from .refusals import Refusals


class Denials:
    """Turns what the handling of a request raised into a response, and tells `refusals` about it."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def response(self, exc: SSEHubError, scope: Scope, unavailable: str = "") -> Response:
        """Return the response to a request whose handling raised `exc`. Every TokenError gets the same response.

        `unavailable` is the text for Unavailable.
        """
        self._refusals.refuse_client(exc, scope)
        if isinstance(exc, TokenError):
            return PlainTextResponse("a valid token is required\n", 401, {"WWW-Authenticate": "Bearer"})
        if isinstance(exc, LoginFailed):
            return PlainTextResponse("the login failed on the server\n", 500)
        if isinstance(exc, Unavailable):
            return PlainTextResponse(f"{unavailable}\n", 503, {"Retry-After": RETRY_AFTER_SECONDS})
        return PlainTextResponse(f"{exc}\n", exc.status)
