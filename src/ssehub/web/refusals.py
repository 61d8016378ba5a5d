"""Refused requests: both apps count and log each of them here, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from starlette.types import Scope

from ..errors import (
    BodyTooLarge,
    CallerForbidden,
    ControlKeyError,
    Forbidden,
    HubClosed,
    IdempotencyConflict,
    InvalidRequest,
    KeyForbidden,
    KeysUnavailable,
    LineTimeout,
    LoginFailed,
    NotGranted,
    Overloaded,
    RunConflict,
    SSEHubError,
    StreamRefused,
    TokenError,
    TokenReason,
    TooManyRequests,
    Unavailable,
    UnknownRevocation,
    UnknownRun,
    UnsupportedContent,
)
from ..fanout.origin import Origin
from ..fanout.refusals import ControlRefusal, Refusal
from ..hub import Hub
from ..loglimit import LimitedLogger, limited_logger
from ..rights import ControlKey
from .addresses import origin_of
from .requests import KEY, request_headers

CLAIMS = "ssehub.claims"
"""Where in the scope the claims are of a client whose token, or login, has been verified."""
MAX_SHOWN_CHANNELS = 5
MAX_SHOWN_DETAIL = 300
MAX_SHOWN_NAME = 80
"""How much a line shows of a name that a client has sent: it may be a token that was sent as one by mistake."""

R = TypeVar("R")
Reason = Refusal | TokenReason | ControlRefusal

_client_logger = limited_logger("ssehub.client")
_control_logger = limited_logger("ssehub.control")
KINDS: Mapping[type, tuple[LimitedLogger, str]] = {
    Refusal: (_client_logger, "request"),
    TokenReason: (_client_logger, "token"),
    ControlRefusal: (_control_logger, "request"),
}
_WARNINGS = frozenset(("logout", "key-forbidden", "overloaded", "unavailable"))
"""Reasons that the operator has to look into. The lines of others are information, and that of `failed` an error."""


class Caller(NamedTuple):
    """Who made a request, as far as that is known and verified."""

    method: str
    path: str
    origin: Origin
    user_id: str | None
    channels: Sequence[str]
    patterns: Sequence[str]
    key_name: str
    """The name of its control key."""

    def __str__(self) -> str:
        parts = [f"{self.method} {self.path}"]
        if self.key_name:
            parts.append(f"control key {self.key_name!r}")
        if self.user_id is not None:
            parts.append(f"user {self.user_id!r}")
        if self.channels:
            parts.append(f"channels {_first(self.channels)}")
        if self.patterns:
            parts.append(f"patterns {_first(self.patterns)}")
        return f"{', '.join(parts)}, from {self.origin}"


def caller_of(scope: Scope) -> Caller:
    """Return who made the request of `scope`."""
    claims, key = scope.get(CLAIMS), scope.get(KEY)
    return Caller(
        scope["method"][:20],
        _shown_path(scope),
        origin_of(scope.get("client"), request_headers(scope)),
        None if claims is None else claims.user_id,
        () if claims is None else claims.channels,
        () if claims is None else claims.patterns,
        key.name if isinstance(key, ControlKey) else "",
    )


class Refusals:
    """Counts refused requests by their reason, in the statistics of `hub`, and logs them at a limited rate.

    Those to the client app are also in the traces of who is refused.

    A line shows nothing of tokens, keys and payloads, and what a client has written only shortened.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def refuse(
        self, reason: Reason, caller: Scope | Caller, detail: str = "", cause: BaseException | None = None
    ) -> None:
        """Count and log a request of `caller`, or with its scope. `detail` says more than the reason does."""
        self._hub.count_refusal(reason)
        if not isinstance(caller, Caller):
            caller = caller_of(caller)
        tracer = self._hub.tracer
        if tracer.is_watched and not isinstance(reason, ControlRefusal):
            tracer.refused(reason.value, caller.user_id, caller.channels, caller.patterns, caller.origin)
        logger, noun = KINDS[type(reason)]
        # The rate of lines is limited by their templates, so that there is one for each reason.
        template = f"{noun} refused, {reason}: %s%s"
        shown = f"{detail:.{MAX_SHOWN_DETAIL}}; " if detail else ""
        logger.log(_level(reason), template, shown, caller, exc_info=cause)

    def refuse_client(self, exc: SSEHubError, scope: Scope) -> None:
        """Refuse a request to the client app because of `exc`."""
        self.refuse(client_reason(exc), scope, _detail(exc), exc.__cause__ if isinstance(exc, LoginFailed) else None)

    def refuse_control(self, exc: SSEHubError, caller: Scope | Caller) -> None:
        """Refuse a request to the control app because of `exc`."""
        self.refuse(control_reason(exc), caller, _detail(exc))


def refusals_of(scope: Scope) -> Refusals:
    """Return those of the app that handles the request: both apps have them in their state, as `refusals`."""
    refusals: Refusals = scope["app"].state.refusals
    return refusals


def client_reason(exc: SSEHubError) -> Refusal | TokenReason:
    """Return why the client app refuses a request whose handling raised `exc`."""
    if isinstance(exc, TokenError):
        return exc.reason
    if isinstance(exc, StreamRefused | CallerForbidden):
        return Refusal(exc.reason)
    return _of_kind(exc, _CLIENT_REASONS)


def control_reason(exc: SSEHubError) -> ControlRefusal:
    """Return why the control app refuses a request whose handling raised `exc`."""
    return ControlRefusal(exc.reason) if isinstance(exc, CallerForbidden) else _of_kind(exc, _CONTROL_REASONS)


_CLIENT_REASONS: Mapping[type, Refusal] = {
    NotGranted: Refusal.NOT_GRANTED,
    Forbidden: Refusal.FORBIDDEN,
    RunConflict: Refusal.CONFLICT,
    BodyTooLarge: Refusal.TOO_LARGE,
    UnknownRun: Refusal.UNKNOWN_RUN,
    InvalidRequest: Refusal.INVALID,
    KeysUnavailable: Refusal.KEYS,
    Unavailable: Refusal.UNAVAILABLE,
    SSEHubError: Refusal.FAILED,
}
_CONTROL_REASONS: Mapping[type, ControlRefusal] = {
    ControlKeyError: ControlRefusal.KEY,
    KeyForbidden: ControlRefusal.KEY_FORBIDDEN,
    BodyTooLarge: ControlRefusal.TOO_LARGE,
    UnsupportedContent: ControlRefusal.UNSUPPORTED,
    LineTimeout: ControlRefusal.TIMEOUT,
    RunConflict: ControlRefusal.CONFLICT,
    IdempotencyConflict: ControlRefusal.CONFLICT,
    UnknownRun: ControlRefusal.NOT_FOUND,
    UnknownRevocation: ControlRefusal.NOT_FOUND,
    TooManyRequests: ControlRefusal.RATE,
    Overloaded: ControlRefusal.OVERLOADED,
    HubClosed: ControlRefusal.DRAINING,
    Unavailable: ControlRefusal.UNAVAILABLE,
    SSEHubError: ControlRefusal.INVALID,
}
_TOLD = (Forbidden, ControlKeyError, RunConflict, TooManyRequests, Unavailable, LoginFailed)
"""Exceptions whose messages are the hub's own. Those of others may contain a part of a token or of a payload."""


def _of_kind(exc: SSEHubError, reasons: Mapping[type, R]) -> R:
    return next(reasons[kind] for kind in type(exc).__mro__ if kind in reasons)


def _detail(exc: SSEHubError) -> str:
    if isinstance(exc, NotGranted):
        return f"channel {exc.channel!r:.{MAX_SHOWN_NAME}}"
    return str(exc) if isinstance(exc, _TOLD) else ""


def _level(reason: Reason) -> int:
    if reason is Refusal.FAILED:
        return logging.ERROR
    return logging.WARNING if reason in _WARNINGS else logging.INFO


def _shown_path(scope: Scope) -> str:
    """Return the path of a request, without anything that only its client knows: that may be a key or a token."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    if any(getattr(route, "path", None) == path for route in scope["app"].routes):
        return path
    return next((f"{below}..." for below in ("/events/", "/runs/") if path.startswith(below)), "an unknown path")


def _first(names: Sequence[str]) -> str:
    more = len(names) - MAX_SHOWN_CHANNELS
    return ", ".join(map(repr, names[:MAX_SHOWN_CHANNELS])) + (f" and {more} more" if more > 0 else "")
