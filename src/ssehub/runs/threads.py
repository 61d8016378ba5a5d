"""A run that a thread produces: the block, whose calls are carried out in an event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ..errors import InvalidRequest, SSEHubError
from .entries import RunEvent
from .model import Outcome, RunState
from .producer import Production, Writer, make_event, outcome_of, outcome_with

Answer = TypeVar("Answer")


class Caller(Protocol):
    """Carries out a coroutine in the event loop of a writer, and returns its result to another thread."""

    def __call__(self, work: Coroutine[Any, Any, Answer], /) -> Answer: ...


class SyncProducedRun(Production):
    """A run that a thread produces: the result of entering `with hub.run_sync(…)`.

    The block ends the run as that of ProducedRun does, and several threads may append. A thread can't be interrupted:
    after the run was stopped, or is somebody else's, the next `append` raises what says so, and so does leaving the
    block. A long computation looks at `is_stopped` meanwhile.
    """

    def __init__(self, name: str, writer: Writer, call: Caller) -> None:
        super().__init__(name, writer)
        self._call = call

    def append(self, *, data: object, type: str | None = None, id: str | None = None, retry: int | None = None) -> int:
        """Append one event; return its ordinal. See `ProducedRun.append`."""
        return self.append_events([make_event(data, type, id, retry)])

    def append_events(self, events: Sequence[RunEvent]) -> int:
        """Append `events` in one step, all or none; return the ordinal of the last one. See `ProducedRun.append`."""
        self._require_open()
        return self._note_appended(self._call(self._writer.append(events)))

    def finish(self, error: str | None = None) -> None:
        """End the run before the block is left: as `done`, or with an `error` as `failed`. Watchers read the error."""
        self._require_open()
        self._end(outcome_with(error))

    def fail(self, error: str) -> None:
        """End the run as `failed`, with an `error` that watchers read. The block goes on."""
        self.finish(error)

    def __enter__(self) -> Self:
        if self.generation:
            raise InvalidRequest(f"run {self.name!r} has been entered before: call run_sync again")
        self._note_opened(self._call(self._writer.open(self._note)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._interruption is not None:
            self._leave_interrupted(self._interruption, exc)
        elif self.state.is_end:
            pass
        elif exc is None:
            self._end(Outcome(RunState.DONE))
        else:
            self._leave_failed(outcome_of(exc))

    def _note(self, error: SSEHubError) -> None:
        self._note_interruption(error)

    def _leave_interrupted(self, reason: SSEHubError, exc: BaseException | None) -> None:
        with contextlib.suppress(SSEHubError):  # the hub has been closed
            self._call(self._writer.close())
        if self.is_stopped:
            self.state = RunState.STOPPED
        if exc is None:
            self._raise(reason)

    def _end(self, outcome: Outcome) -> None:
        self._note_end(self._call(self._writer.finish(outcome)))

    def _leave_failed(self, outcome: Outcome) -> None:
        try:
            self._call(self._end_failed(outcome))
        except SSEHubError as exc:  # the hub or the publisher has been closed
            self._log_open_end(outcome, exc)
