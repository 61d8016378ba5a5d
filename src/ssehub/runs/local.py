"""Writes a run into the store of the hub in this process.

Events wait in a queue until the store has them. One task at a time writes, as long as there is something to write:
all that waits, in one step, with the number of events before it. So a step whose result is unknown can be repeated,
and events that were appended while it was under way go out together. Signs of life and the end go the same way.

    open → append, beat … → finish    the end is stored, after everything that was appended
                          → close     after an interruption: the run is let go as it is
                          → shut_down the hub stops: the end is stored at once, whatever waits
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from ..errors import (
    BrokerUnavailable,
    ConflictReason,
    HubClosed,
    Overloaded,
    RunConflict,
    RunLost,
    RunStopped,
    SSEHubError,
    StaleRun,
    Unavailable,
    UnknownRun,
)
from .arguments import Order
from .entries import RunEvent
from .model import EVENT_OVERHEAD_BYTES, Outcome, Run, RunError, RunState
from .producer import Opened, ended, logger
from .runs import Runs
from .store import Append, Appended, Creation, Ticket

BEAT_SECONDS = 15.0
"""How long a run may be silent before its producer shows a sign of life; a quarter of `idle`, if that is less."""
MAX_UNSENT_BYTES = 2**20
GIVE_UP_SECONDS = 60.0
"""How long the store may be unavailable until the producer is interrupted."""
FIRST_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 2.0
CLOSING = "the hub is about to stop, or has been closed: run {!r} has failed as 'shutdown'"


class Owner(Protocol):
    """The producers of one hub; the writers report to it."""

    async def start(self) -> None:
        """Start the hub if necessary. Raises what `Hub.start` raises."""

    def require_open(self, name: str) -> None:
        """Raise HubClosed if the hub is about to stop, so that the run `name` can't be produced any more."""

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task that ends with the hub. Raises HubClosed."""

    def complete(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` as a task that the hub waits for when it closes."""

    def enter(self, writer: LocalWriter) -> None:
        """Give `writer` signs of life, and end it with the hub, from now on."""

    def leave(self, writer: LocalWriter) -> None:
        """Forget `writer`: its run has ended, or is somebody else's."""

    def monotonic(self) -> float:
        """Return the time of the hub's monotonic clock, in seconds."""


class _Unsent(NamedTuple):
    """The events of one call of `append`, and who waits for them."""

    events: Sequence[RunEvent]
    size: int
    stored: asyncio.Future[int]


class LocalWriter:
    """A `Writer`, see `producer.py`. It is also told what happens to the run, as a `RunListener`."""

    def __init__(self, order: Order, runs: Runs, owner: Owner) -> None:
        self._name = order.name
        self._order = order
        self._runs = runs
        self._owner = owner
        self._ticket = Ticket(uuid4().hex, uuid4().hex)
        self._interrupt: Callable[[SSEHubError], None] = lambda error: None
        self._opening: asyncio.Future[None] | None = None
        """Done when the run has been created, or could not be."""
        self._generation = 0
        self._stored = 0
        """How many events the run has, as the store has confirmed."""
        self._unsent: list[_Unsent] = []
        self._unsent_bytes = 0
        self._waiting: list[asyncio.Future[None]] = []
        """Calls of `append` that wait for capacity."""
        self._outcome: Outcome | None = None
        self._ended: asyncio.Future[RunState] | None = None
        """The result of `finish`, once that has been called."""
        self._is_writing = False
        self._wants_beat = False
        self._heard_at = 0.0
        """When the store last confirmed a step, by the hub's monotonic clock."""
        self._failure: SSEHubError | None = None
        """Why nothing more can be appended."""
        self._is_closed = False

    # Writer

    async def open(self, interrupt: Callable[[SSEHubError], None]) -> Opened:
        self._interrupt = interrupt
        await self._owner.start()
        self._owner.require_open(self._name)
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Opened] = loop.create_future()
        self._opening = loop.create_future()
        self._owner.spawn(self._open(opened, self._opening))
        self._owner.enter(self)
        try:
            return await opened
        except asyncio.CancelledError:
            if not opened.cancelled():  # the run was there at the same moment; otherwise `_open` ends it
                self._owner.spawn(self._abandon())
            raise

    async def _open(self, opened: asyncio.Future[Opened], opening: asyncio.Future[None]) -> None:
        """Create the run, also if nobody waits for it any more: then it ends at once."""
        try:
            creation = Creation(self._order.options, self._order.mode, ticket=self._ticket)
            created = await self._runs.create(self._name, creation)
            self._generation, self._stored = created.run.generation, created.run.events
            result = Opened(self._generation, self._stored)
            self._heard_at = self._owner.monotonic()
            run = await self._runs.follow(self._name, self)
        except asyncio.CancelledError:
            self._refuse(opened, HubClosed(CLOSING.format(self._name)))
            raise
        except Exception as exc:
            self._refuse(opened, exc)
            await self._abandon()
        else:
            if self._failure is not None:
                self._refuse(opened, self._failure)
            elif opened.done():
                await self._abandon()
            else:
                opened.set_result(result)
                self._look_at(run)
        finally:
            opening.set_result(None)

    def _refuse(self, opened: asyncio.Future[Opened], error: Exception) -> None:
        self._close()
        if not opened.done():
            _fail(opened, error)

    async def _abandon(self) -> None:
        """End the run that nobody produces, if it was created."""
        self._close()
        await self._end_as(Outcome(RunState.FAILED, RunError.CANCELLED))

    async def append(self, events: Sequence[RunEvent]) -> int:
        size = sum(event.size + EVENT_OVERHEAD_BYTES for event in events)
        while self._unsent and self._unsent_bytes + size > MAX_UNSENT_BYTES and self._failure is None:
            await self._wait_for_capacity()
        if self._outcome is not None:
            raise ended(self._name, self._generation, self._outcome.state, self._stored)
        self._write()
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._unsent.append(_Unsent(events, size, stored))
        self._unsent_bytes += size
        return await stored

    async def finish(self, outcome: Outcome) -> RunState:
        if self._ended is None:
            self._write()
            self._outcome = outcome
            self._ended = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._close()
        await asyncio.shield(self._owner.complete(self._release()))  # it goes on if this is cancelled

    async def _release(self) -> None:
        with contextlib.suppress(SSEHubError):  # the store ends the run later by itself
            await self._runs.release(self._name, self._ticket)

    # Owner

    def beat(self) -> None:
        """Show a sign of life if it is time."""
        is_due = self._generation and self._owner.monotonic() >= self.beat_at
        if is_due and self._failure is None and not self._is_writing:
            self._wants_beat = True
            self._write()

    @property
    def beat_seconds(self) -> float:
        return min(BEAT_SECONDS, self._order.options.idle / 4)

    @property
    def beat_at(self) -> float:
        """When the next sign of life is due, by the hub's monotonic clock."""
        return self._heard_at + self.beat_seconds

    def shut_down(self) -> Coroutine[None, None, None]:
        """Interrupt the producer, since the hub stops; return what is left to do.

        A producer that has ended the run may finish.
        """
        if self._ended is not None:
            return self._wait_for_end(self._ended)
        self._fail(HubClosed(CLOSING.format(self._name)))
        self._close()
        return self._end_with_hub()

    async def _wait_for_end(self, ended: asyncio.Future[RunState]) -> None:
        with contextlib.suppress(SSEHubError):
            await asyncio.shield(ended)

    async def _end_with_hub(self) -> None:
        if self._opening is not None:
            await asyncio.shield(self._opening)
        await self._end_as(Outcome(RunState.FAILED, RunError.SHUTDOWN))

    # RunListener

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        self._look_at(run)

    def vanished(self, run: Run) -> None:
        if self._outcome is None:
            self._fail(StaleRun(f"run {self._name!r} was deleted, or the store has lost it"))

    def claimed(self, connection: str) -> None:
        if connection != self._ticket.connection and self._failure is None:
            self._wants_beat = True  # the store refuses it if the run is another producer's now
            self._write()

    def _look_at(self, run: Run | None) -> None:
        """Interrupt the producer if the run is not its own any more. If it is ending the run, `finish` finds out."""
        if run is None:
            self._fail(RunLost(f"the store has lost run {self._name!r}"))
        elif self._outcome is not None or run.generation < self._generation:
            pass
        elif run.generation > self._generation:
            self._fail(StaleRun(f"run {self._name!r} was restarted or taken over: generation {run.generation} began"))
        elif run.state in (RunState.STOPPING, RunState.STOPPED):
            self._fail(RunStopped(f"run {self._name!r} was stopped"))
        elif run.state.is_end and run.error != RunError.TOO_LARGE:  # the step that was too large raises that
            self._fail(StaleRun(_ended_elsewhere(self._name, run.state, run.error)))

    # Writing

    async def _wait_for_capacity(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _write(self) -> None:
        """Let a task write what there is to be written, when this step of the event loop is over."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if not self._is_writing:
            self._owner.spawn(self._write_all())
            self._is_writing = True

    async def _write_all(self) -> None:
        try:
            while self._failure is None and (self._unsent or self._outcome is not None or self._wants_beat):
                await self._write_step()
        except asyncio.CancelledError:
            self._fail(HubClosed(CLOSING.format(self._name)))
            raise
        except SSEHubError as exc:
            self._fail(exc)
        except Exception as exc:
            logger.exception("run %r can't be written", self._name)
            self._fail(Unavailable(f"run {self._name!r} can't be written: {type(exc).__name__}"))
        finally:
            self._is_writing = False

    async def _write_step(self) -> None:
        """Write everything that waits. Raises why nothing more can be written."""
        count, outcome = len(self._unsent), self._outcome
        events = [event for unsent in self._unsent for event in unsent.events]
        self._wants_beat = False
        step = Append(self._ticket, events, generation=self._generation, offset=self._stored, outcome=outcome)
        try:
            appended = await self._append(step)
        except Overloaded as exc:
            if not events:
                raise
            for unsent in self._take(count):
                if not unsent.stored.done():
                    _fail(unsent.stored, exc)
            return
        except UnknownRun:
            raise RunLost(f"the store has no run {self._name!r} any more") from None
        except RunConflict as exc:
            if outcome is not None and exc.reason is ConflictReason.STOPPED:
                await self._release()
                self._end(RunState.STOPPED)
                return
            raise _interruption(self._name, exc, self._generation) from None
        self._heard_at = self._owner.monotonic()
        for unsent in self._take(count):
            self._stored += len(unsent.events)
            if not unsent.stored.done():
                unsent.stored.set_result(self._stored)
        if outcome is not None:
            self._end(appended.state)

    async def _append(self, step: Append) -> Appended:
        """Append `step`, and repeat it while the store is unavailable. Raises Unavailable after GIVE_UP_SECONDS."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_SECONDS
        retry_seconds = FIRST_RETRY_SECONDS
        while True:
            try:
                return await self._runs.append(self._name, step)
            except BrokerUnavailable as exc:
                if loop.time() >= give_up_at:
                    raise Unavailable(
                        f"run {self._name!r}: the store has been unavailable for {GIVE_UP_SECONDS:g} s, and does not "
                        "have all events"
                    ) from exc
            await asyncio.sleep(retry_seconds)
            retry_seconds = min(2 * retry_seconds, MAX_RETRY_SECONDS)
            if self._failure is not None:
                raise self._failure

    def _take(self, count: int) -> list[_Unsent]:
        """Remove the first calls that wait, and let others in."""
        taken = self._unsent[:count]
        del self._unsent[:count]
        self._unsent_bytes -= sum(unsent.size for unsent in taken)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
        return taken

    # Ends

    def _end(self, state: RunState) -> None:
        """The run has ended by its own producer. Events that wait were refused, since the run had been stopped."""
        assert self._ended is not None
        self._failure = ended(self._name, self._generation, state, self._stored)
        self._refuse_unsent(self._failure)
        self._close()
        if not self._ended.done():
            self._ended.set_result(state)

    def _fail(self, error: SSEHubError) -> None:
        """Nothing more can be appended: tell everyone who waits, and the producer."""
        if self._failure is not None:
            return
        self._failure = error
        self._refuse_unsent(error)
        if self._ended is not None and not self._ended.done():
            _fail(self._ended, error)
        self._interrupt(error)

    def _refuse_unsent(self, error: SSEHubError) -> None:
        for unsent in self._take(len(self._unsent)):
            if not unsent.stored.done():
                _fail(unsent.stored, error)

    def _close(self) -> None:
        self._is_closed = True
        self._runs.unfollow(self._name, self)
        self._owner.leave(self)

    async def _end_as(self, outcome: Outcome) -> None:
        """End the run if it has been created and is still this producer's."""
        if self._generation:
            with contextlib.suppress(SSEHubError):
                await self._runs.finish(self._name, outcome, self._generation)


def _interruption(name: str, conflict: RunConflict, generation: int) -> SSEHubError:
    """Return what a refused step means for the producer."""
    match conflict.reason:
        case ConflictReason.STOPPED:
            return RunStopped(f"run {name!r} was stopped")
        case ConflictReason.TOO_LARGE:
            return conflict
        case ConflictReason.OFFSET:
            return RunLost(f"the store has lost events of run {name!r}: {conflict.events} are left")
        case ConflictReason.ENDED:
            return StaleRun(_ended_elsewhere(name, conflict.state, conflict.error))
        case ConflictReason.STALE if conflict.generation < generation:
            return RunLost(f"the store has lost run {name!r}, and begun another one of that name")
    return StaleRun(f"run {name!r} is another producer's now: {conflict}")


def _ended_elsewhere(name: str, state: str, error: str | None) -> str:
    return f"run {name!r} was ended by somebody else, as {state}" + (f" ({error})" if error is not None else "")


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Set `error` on the future of a caller. If the caller has been cancelled, asyncio must not log the error."""
    future.set_exception(error)
    future.exception()
