"""The messages of refused calls about runs. All stores use them."""

from __future__ import annotations

from ..errors import ConflictReason, RunConflict
from .model import Run, RunError, RunState

KEY_CONFLICT = "this idempotency key was already used with a different body: use a new key for a new run"
_MESSAGES = {
    ConflictReason.OPEN: "run {name!r} has not ended: append to it, or create it with restart or takeover",
    ConflictReason.STALE: "run {name!r} has generation {generation}",
    ConflictReason.PRODUCER: "another producer appends to run {name!r}: wait until it has ended, or take it over",
    ConflictReason.SUPERSEDED: "the same producer has connected to run {name!r} again: this connection is too old",
    ConflictReason.OFFSET: "run {name!r} has {events} events",
    ConflictReason.STOPPED: "run {name!r} was stopped: nothing can be appended",
    ConflictReason.ENDED: "run {name!r} has ended as {state}: create its next generation",
    ConflictReason.TOO_LARGE: "run {name!r} would be larger than run_bytes allows, and has failed",
}
_BEGAN_AFTER = ", which began after this connection"


def end_reason(run: Run) -> ConflictReason:
    """Return why nothing can be appended to a run that has ended."""
    if run.error == RunError.TOO_LARGE:
        return ConflictReason.TOO_LARGE
    return ConflictReason.STOPPED if run.state is RunState.STOPPED else ConflictReason.ENDED


def stale(run: Run, generation: int | None) -> RunConflict:
    """Return the error for a call that names another generation, or whose connection is older than the run's."""
    is_named = generation is not None and generation != run.generation
    return conflict(run, ConflictReason.STALE, f", not {generation}" if is_named else _BEGAN_AFTER)


def conflict(run: Run, reason: ConflictReason, more: str = "") -> RunConflict:
    """Return the error for a call that `run` refuses; `more` is added to its message."""
    return run_conflict(
        run.name, reason, more, generation=run.generation, state=run.state, events=run.events, error=run.error
    )


def run_conflict(
    name: str, reason: ConflictReason, more: str = "", *, generation: int, state: str, events: int, error: str | None
) -> RunConflict:
    """Return the error that says so about a run in this state; `more` is added to its message."""
    message = _MESSAGES[reason].format(name=name, generation=generation, state=state, events=events)
    return RunConflict(reason, message + more, generation=generation, state=state, events=events, error=error)
