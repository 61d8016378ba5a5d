"""Responses of the control app about runs. All are JSON, errors included."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from ..errors import (
    ConflictReason,
    ControlKeyError,
    Forbidden,
    HubClosed,
    LineTimeout,
    RunConflict,
    SSEHubError,
    TooManyRequests,
    Unavailable,
    UnknownRun,
)
from ..fanout.statistics import AppendRefusal
from ..runs.model import Run, RunState
from ..runs.store import Appended
from .description import Named, list_of, object_of
from .endpoint import error_response
from .requests import RequestHeaders
from .schemas import BOOLEAN, COUNT, NAME, NUMBER, POSITION, RUN_NAME, STRING, TYPE, UNIX_TIME, nullable, one_of

RUN = Named(
    "Run",
    object_of(
        {
            "run": RUN_NAME,
            "generation": COUNT,
            "state": one_of([*RunState]),
            "events": {**COUNT, "description": "How many it has. The end is not counted."},
            "bytes": COUNT,
            "error": nullable(STRING),
            "channel": list_of(NAME, 1),
            "userId": list_of(NAME, 1),
            "keep": NUMBER,
            "idle": NUMBER,
            "announce": nullable(TYPE),
            "stoppable": BOOLEAN,
            "createdAt": UNIX_TIME,
            "endedAt": nullable(UNIX_TIME),
            "position": POSITION,
        }
    ),
)
APPENDED = object_of({"generation": COUNT, "state": one_of([*RunState]), "events": COUNT})
RUN_ERROR = Named(
    "RunError",
    object_of(
        {
            "error": STRING,
            "reason": one_of([*ConflictReason, *AppendRefusal]),
            "generation": COUNT,
            "state": one_of([*RunState]),
            "events": COUNT,
            "runError": {**STRING, "description": "Why the run has failed."},
        },
        optional=("reason", "generation", "state", "events", "runError"),
    ),
)


def run_object(run: Run) -> dict[str, object]:
    """Return everything about a run except its events."""
    options = run.options
    return {
        "run": run.name,
        "generation": run.generation,
        "state": run.state,
        "events": run.events,
        "bytes": run.bytes,
        "error": run.error,
        "channel": list(options.channels),
        "userId": list(options.users),
        "keep": options.keep,
        "idle": options.idle,
        "announce": options.announce,
        "stoppable": options.stoppable,
        "createdAt": run.created_at,
        "endedAt": run.ended_at,
        "position": str(run.position(run.last)),
    }


def appended_object(appended: Appended) -> dict[str, object]:
    return {"generation": appended.generation, "state": appended.state, "events": appended.events}


def run_error(exc: SSEHubError, headers: RequestHeaders) -> Response:
    """Return the response for `exc`, which a call about runs has raised."""
    return error_response(exc, headers, _of_conflict(exc) if isinstance(exc, RunConflict) else {})


def append_error(exc: SSEHubError, appended: Appended | None) -> Response:
    """Return the response for `exc`, which an append has raised after the step with the result `appended`."""
    more: Mapping[str, object]
    if isinstance(exc, RunConflict):
        more = _of_conflict(exc)
    else:
        more = {"reason": append_refusal(exc), **(appended_object(appended) if appended is not None else {})}
    return error_response(exc, {}, more)


def append_refusal(exc: SSEHubError) -> str:
    """Return why an append was refused with `exc`: one of ConflictReason or AppendRefusal."""
    if isinstance(exc, RunConflict):
        return exc.reason
    return next((reason for kind, reason in _REFUSALS.items() if isinstance(exc, kind)), AppendRefusal.INVALID)


_REFUSALS: dict[type[SSEHubError], AppendRefusal] = {
    UnknownRun: AppendRefusal.UNKNOWN,
    ControlKeyError: AppendRefusal.FORBIDDEN,
    Forbidden: AppendRefusal.FORBIDDEN,
    LineTimeout: AppendRefusal.TIMEOUT,
    TooManyRequests: AppendRefusal.RATE,
    HubClosed: AppendRefusal.DRAINING,
    Unavailable: AppendRefusal.UNAVAILABLE,
}


def _of_conflict(exc: RunConflict) -> dict[str, object]:
    more = {"reason": exc.reason, "generation": exc.generation, "state": exc.state, "events": exc.events}
    return more if exc.error is None else {**more, "runError": exc.error}
