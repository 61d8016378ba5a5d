"""Responses of the client app to requests whose login failed, which are counted and logged."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from ..errors import Forbidden, TokenError, TokenReason
from ..hub import Hub
from ..loglimit import limited_logger
from .addresses import client_of

logger = limited_logger("ssehub.client")

_REFUSED: Mapping[str, str] = {reason: f"token refused, {reason}: from %s" for reason in TokenReason}
"""A template for each reason, as the rate of lines is limited by their templates."""


class Denials:
    """Turns what a login raises into a response. Refused tokens are counted by `hub`, and logged without the token."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def response(self, exc: Exception, scope: Scope) -> Response:
        """Return the response to a request whose login raised `exc`. Every TokenError gets the same response.

        The message of a TokenError is not logged: it may contain what a client wrote into its token.
        """
        if isinstance(exc, TokenError):
            self._hub.count_refused_token(exc.reason)
            logger.info(_REFUSED[exc.reason], client_of(scope))
            return PlainTextResponse("a valid token is required\n", 401, headers={"WWW-Authenticate": "Bearer"})
        if isinstance(exc, Forbidden):
            return PlainTextResponse(f"{exc}\n", exc.status)
        logger.error("authenticate failed: 500 sent to this client", exc_info=exc)
        return PlainTextResponse("the login failed on the server\n", 500)
