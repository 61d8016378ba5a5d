"""A run as its producer sees it: a block that appends to the run, and is interrupted when nothing can be appended.

    async with hub.run("answer-42", channel="chat", user_id="alex") as run:
        async for token in model:
            await run.append(data=token)

A producer may be silent for minutes, in the middle of an `await`, when its run is stopped, restarted or lost. So its
task is cancelled, as `asyncio.timeout` does, and the block raises the error that says why in place of CancelledError.
Three things make that safe:

- The block counts its own cancellation (`Task.uncancel`). If the task was also cancelled from outside, by a timeout
  around the block, a task group or the server, then CancelledError goes on, and its owner finds it.
- Nothing cancels the task before the block has been entered, or once it is being left.
- A block that is left without an exception has ended its run as DONE. If the run was stopped at the very end, or was
  somebody else's by then, the block raises that.

A `Writer` brings the events to the run: that of `local.py` writes into the store of a hub in this process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, NoReturn, Protocol, Self

from ..errors import ConflictReason, InvalidRequest, RunConflict, RunInterrupted, RunStopped, SSEHubError
from ..fields import json_text
from .entries import RunEvent
from .model import Outcome, RunError, RunState

logger = logging.getLogger("ssehub.runs")

LEAVE_SECONDS = 5.0
"""How long a block that raises an exception waits until the end of its run is stored. It is stored later, if it can."""


class Opened(NamedTuple):
    """The run that a writer has created, and how many events it had: more than 0 only after a takeover."""

    generation: int
    events: int


class Writer(Protocol):
    """Brings what a producer appends to its run. Used in one event loop, and once.

    All methods raise RunInterrupted if nothing more can be appended, and Unavailable after a minute without the store.
    """

    async def open(self, interrupt: Callable[[SSEHubError], None]) -> Opened:
        """Create the run, and keep it alive from then on. Raises InvalidRequest; RunConflict if it is open already.

        `interrupt` is called once nothing more can be appended, in the event loop, also while nobody waits for the
        writer. The first call counts.
        """

    async def append(self, events: Sequence[RunEvent]) -> int:
        """Append `events`, after those of earlier calls; return the ordinal of the last one.

        If it is cancelled, they may be appended nevertheless.
        """

    async def finish(self, outcome: Outcome) -> RunState:
        """End the run after everything that was appended; return how it has ended: STOPPED if it was to stop.

        If it is cancelled, the writer goes on by itself. The writer is closed then.
        """

    async def close(self) -> None:
        """Let the run go as it is. One that was asked to stop has stopped then. Raises nothing of this package."""


class Production:
    """A run as far as its producer knows it, in a task or in a thread."""

    def __init__(self, name: str, writer: Writer) -> None:
        self.name = name
        self.generation = 0
        """Which of the runs with this name it is; 0 until the block has been entered."""
        self.events = 0
        """How many events it has, as far as is known here."""
        self.state = RunState.OPEN
        """Its state, as far as is known here."""
        self._writer = writer
        self._interruption: SSEHubError | None = None

    @property
    def is_stopped(self) -> bool:
        """True once somebody has asked the run to stop."""
        return isinstance(self._interruption, RunStopped)

    def _note_interruption(self, error: SSEHubError) -> bool:
        """Return True if this is the first reason, and the run has not been ended here."""
        if self._interruption is not None or self.state.is_end:
            return False
        self._interruption = error
        if isinstance(error, RunStopped):
            self.state = RunState.STOPPING
        return True

    def _note_opened(self, opened: Opened) -> None:
        self.generation, self.events = opened

    def _note_appended(self, ordinal: int) -> int:
        self.events = max(self.events, ordinal)
        return ordinal

    def _note_end(self, state: RunState) -> None:
        """Raises RunStopped if the run was stopped before it could end otherwise."""
        self.state = state
        if state is RunState.STOPPED:
            self._interruption = self._interruption or RunStopped(f"run {self.name!r} was stopped")
            self._raise(self._interruption)

    def _require_open(self) -> None:
        """Raises what has interrupted the run; RunConflict if the producer itself has ended it."""
        if self._interruption is not None:
            self._raise(self._interruption)
        if not self.generation:
            raise InvalidRequest(f"run {self.name!r} has not been created: use it inside its `with` block")
        if self.state.is_end:
            raise ended(self.name, self.generation, self.state, self.events)

    async def _end_failed(self, outcome: Outcome) -> None:
        """End the run while an exception is on its way, which nothing here may replace."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                self._note_end(await self._writer.finish(outcome))
        except RunInterrupted:
            pass  # somebody else has ended it, or it is somebody else's
        except (TimeoutError, SSEHubError) as exc:
            self._log_open_end(outcome, exc)

    def _log_open_end(self, outcome: Outcome, exc: Exception) -> None:
        logger.warning("run %r could not be ended as %s: %s", self.name, outcome.state, str(exc) or "no answer in time")

    def _raise(self, error: SSEHubError) -> NoReturn:
        raise error.with_traceback(None)  # it may be raised many times


class ProducedRun(Production):
    """A run that a task produces: the result of entering `async with hub.run(…)`.

    Leaving the block ends the run as `done`. An exception ends it as `failed`, with the name of the exception's class
    as its error, since watchers read that: `fail` says more. A cancelled block is `failed`, with the error `cancelled`.

    The block is interrupted while it waits for something, and raises RunStopped if the run was asked to stop; StaleRun
    if it was restarted, taken over, deleted or ended by somebody else; RunLost if the store has lost it; HubClosed if
    the hub stops. Several tasks may append to one run. Only the task that has entered the block is interrupted; in
    the others, the next `append` raises the same.
    """

    def __init__(self, name: str, writer: Writer) -> None:
        super().__init__(name, writer)
        self._task: asyncio.Task[object] | None = None
        """The task that can be interrupted, while it is inside the block."""
        self._cancelling = 0
        """How often the task had been cancelled when it entered the block."""
        self._has_cancelled = False

    async def append(
        self, *, data: object, type: str | None = None, id: str | None = None, retry: int | None = None
    ) -> int:
        """Append one event; return its ordinal, counted from 1.

        In a run of the hub, this returns once the event is stored; in one of AsyncPublisher, before that.

        `data` that is not a string is written as JSON. The `id` is kept for backends that read the run; watchers see
        the event's position. Raises InvalidEvent; Overloaded if the store is full; RunConflict if the run has become
        too large, which has ended it; Unavailable after a minute without the store; and what interrupts the block.
        """
        return await self.append_events([make_event(data, type, id, retry)])

    async def append_events(self, events: Sequence[RunEvent]) -> int:
        """Append `events` in one step, all or none; return the ordinal of the last one. See `append`."""
        self._require_open()
        return self._note_appended(await self._writer.append(events))

    async def finish(self, error: str | None = None) -> None:
        """End the run before the block is left: as `done`, or with an `error` as `failed`. Raises what `append` does.

        Watchers read the error.
        """
        self._require_open()
        await self._end(outcome_with(error))

    async def fail(self, error: str) -> None:
        """End the run as `failed`, with an `error` that watchers read. The block goes on."""
        await self.finish(error)

    def interrupt(self, error: SSEHubError) -> None:
        """Interrupt the block, unless it has been interrupted, or the run has ended."""
        if self._note_interruption(error) and self._task is not None:
            self._has_cancelled = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        if self.generation:
            raise InvalidRequest(f"run {self.name!r} has been entered before: call hub.run again")
        self._note_opened(await self._writer.open(self.interrupt))
        if self._interruption is not None:
            await self._writer.close()
            self._raise(self._interruption)
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cancelled = await self._take_back_cancellation()
        if self._interruption is not None:
            await self._leave_interrupted(self._interruption, exc, cancelled)
        elif self.state.is_end:
            pass
        elif exc is None:
            await self._end(Outcome(RunState.DONE))
        else:
            await self._end_failed(outcome_of(exc))

    async def _take_back_cancellation(self) -> asyncio.CancelledError | None:
        """Undo what `interrupt` did to the task. If it was cancelled by somebody else, too, return what to raise."""
        task, self._task = self._task, None
        # An async generator may be closed by another task than the one that ran it.
        if not self._has_cancelled or task is not asyncio.current_task() or task is None:
            return None
        task.uncancel()
        cancelled = asyncio.CancelledError()
        # The body may have ended before the cancellation was raised in it. Before Python 3.13, uncancel leaves that.
        # anyio cancels in each iteration of the event loop, and knows its own CancelledError only by the message.
        for _ in range(2):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as exc:
                cancelled = exc
            if task.cancelling() <= self._cancelling:
                return None
            if cancelled.args:
                break
        return cancelled

    async def _leave_interrupted(
        self, reason: SSEHubError, exc: BaseException | None, cancelled: asyncio.CancelledError | None
    ) -> None:
        await self._writer.close()
        if self.is_stopped:
            self.state = RunState.STOPPED
        if cancelled is not None:
            raise cancelled from exc
        if exc is None or (exc is not reason and _comes_from(exc, reason)):
            raise reason.with_traceback(None) from exc

    async def _end(self, outcome: Outcome) -> None:
        self._note_end(await self._writer.finish(outcome))


def make_event(data: object, type: object = None, id: object = None, retry: object = None) -> RunEvent:
    """Return the event with these fields; `data` that is not a string is written as JSON. Raises InvalidEvent."""
    return RunEvent.checked(json_text(data), type, id, retry)


def ended(name: str, generation: int, state: RunState, events: int) -> RunConflict:
    """Return the error for an append to a run that its own producer has ended."""
    message = f"run {name!r} has ended ({state}): nothing can be appended"
    return RunConflict(ConflictReason.ENDED, message, generation=generation, state=state, events=events)


def outcome_with(error: str | None) -> Outcome:
    """Return the outcome of a producer that gives an error, or none."""
    return Outcome(RunState.DONE) if error is None else Outcome(RunState.FAILED, error)


def outcome_of(exc: BaseException) -> Outcome:
    """Return how a run ends whose block has raised `exc`. Watchers read the error, so it has no message."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        return Outcome(RunState.FAILED, RunError.CANCELLED)
    return Outcome(RunState.FAILED, type(exc).__name__)


def _comes_from(exc: BaseException, reason: SSEHubError) -> bool:
    """True if `exc` is only a consequence of the interruption: in the block's own task, or in those of a group."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_comes_from(inner, reason) for inner in exc.exceptions)
    return exc is reason or isinstance(exc, asyncio.CancelledError)
