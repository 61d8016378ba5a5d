"""The runs that are produced in this process: their signs of life, the tasks that the hub owns, and their end with it.

One task shows the signs of life of all runs. It exists while there are any.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine

from ..errors import HubClosed, InvalidRequest, RunInterrupted, SSEHubError
from .arguments import Order, event_of
from .local import LocalWriter
from .model import Outcome, RunError, RunState
from .producer import ProducedRun, outcome_of
from .runs import Runs
from .threads import Caller, SyncProducedRun

logger = logging.getLogger("ssehub.runs")

TICK_SECONDS = 1.0


class StartedRun:
    """A run that a task of the hub produces: the result of `await hub.start_run(…)`."""

    def __init__(self, run: ProducedRun, stop: Callable[[str, int], Awaitable[object]]) -> None:
        self._run = run
        self._stop = stop
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def generation(self) -> int:
        return self._run.generation

    @property
    def events(self) -> int:
        """How many events it has."""
        return self._run.events

    async def wait(self) -> Outcome:
        """Return how the run has ended, after the task that produces it. Waiting may be cancelled; the run goes on.

        If it is not this task's any more, that is `failed`, with the error StaleRun or RunLost.
        """
        return await asyncio.shield(self._outcome)

    async def stop(self) -> None:
        """Ask the run to stop: its iterator is cancelled. Nothing happens if it has ended."""
        await self._stop(self.name, self.generation)

    def note_end(self, outcome: Outcome) -> None:
        """Called once, when the task has ended."""
        self._outcome.set_result(outcome)


class Producing:
    """The producers of one hub.

    `start` starts the hub, `spawn` runs a task until it closes, and `is_closing` says if it is about to. `monotonic` is
    its monotonic clock, in seconds.
    """

    def __init__(
        self,
        runs: Runs,
        start: Callable[[], Awaitable[None]],
        spawn: Callable[[Coroutine[None, None, None]], None],
        is_closing: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._runs = runs
        self._start = start
        self._spawn = spawn
        self._is_closing = is_closing
        self._monotonic = monotonic
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of everything below."""
        self._writers: dict[LocalWriter, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Those that the hub waits for when it closes: they produce started runs, or end runs."""
        self._is_ticking = False
        self._woken = asyncio.Event()

    # Producers

    def produce(self, order: Order) -> ProducedRun:
        """Return a run that the task produces which enters it."""
        return ProducedRun(order.name, LocalWriter(order, self._runs, self))

    def produce_sync(self, order: Order, call: Caller) -> SyncProducedRun:
        """Return a run that the thread produces which enters it."""
        return SyncProducedRun(order.name, LocalWriter(order, self._runs, self), call)

    async def produce_all(self, order: Order, items: AsyncIterable[object]) -> StartedRun:
        """Create a run, and let a task append `items` to it. Raises what entering the run raises."""
        if not hasattr(items, "__aiter__"):
            raise InvalidRequest(
                f"start_run takes an async iterator, not {type(items).__name__}: give it model(), where model is an "
                "`async def` that yields"
            )
        await self._start()
        self._enter_loop()
        run = self.produce(order)
        started = StartedRun(run, self._runs.stop)
        created: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self.complete(self._produce(run, items, created, started))
        try:
            await created
        except asyncio.CancelledError:
            task.cancel()
            raise
        return started

    async def _produce(
        self, run: ProducedRun, items: AsyncIterable[object], created: asyncio.Future[None], started: StartedRun
    ) -> None:
        outcome = Outcome(RunState.DONE)
        try:
            async with run:
                if not created.done():
                    created.set_result(None)
                await _append_all(run, items)
        except BaseException as exc:
            outcome = _outcome_of(run, exc)
            if not created.done():
                created.set_exception(exc)
            elif isinstance(exc, RunInterrupted | HubClosed):
                logger.info("run %r was interrupted: %s", run.name, exc)
            elif isinstance(exc, Exception):
                logger.exception("run %r has failed", run.name)
            if not isinstance(exc, Exception):
                raise
        finally:
            started.note_end(outcome)

    # Owner of the writers

    async def start(self) -> None:
        await self._start()

    def require_open(self, name: str) -> None:
        if self._is_closing():
            raise HubClosed(f"the hub is about to stop, or has been closed: run {name!r} was not created")

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        try:
            self._spawn(work)
        except SSEHubError:
            work.close()
            raise

    def complete(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def enter(self, writer: LocalWriter) -> None:
        self._enter_loop()
        self._writers[writer] = None
        if not self._is_ticking:
            self.spawn(self._tick())
            self._is_ticking = True
        elif writer.beat_seconds < TICK_SECONDS:
            self._woken.set()

    def leave(self, writer: LocalWriter) -> None:
        self._writers.pop(writer, None)

    def monotonic(self) -> float:
        return self._monotonic()

    # Time

    def beat(self) -> None:
        """Show those signs of life that are due."""
        for writer in list(self._writers):
            writer.beat()

    async def _tick(self) -> None:
        try:
            while self._writers:
                self._woken.clear()
                self.beat()
                seconds = min([TICK_SECONDS, *(writer.beat_seconds for writer in self._writers)])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._woken.wait()
        finally:
            self._is_ticking = False

    # The end of the hub

    async def shut_down(self, seconds: float) -> None:
        """End all runs as `failed`, with the error `shutdown`, and interrupt their producers.

        Returns when that is stored and the hub's own tasks have ended, but after `seconds` at most.
        """
        if self._loop is not asyncio.get_running_loop():
            return
        for writer in list(self._writers):
            self.complete(writer.shut_down())
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        if others:
            _, late = await asyncio.wait(others, timeout=seconds)
            if late:
                logger.warning("%d producers of runs have not ended in %.1f s", len(late), seconds)

    def _enter_loop(self) -> None:
        """Forget what ended with another event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._writers, self._tasks, self._woken, self._is_ticking = {}, set(), asyncio.Event(), False


def _outcome_of(run: ProducedRun, exc: BaseException) -> Outcome:
    if run.is_stopped:
        return Outcome(RunState.STOPPED)
    if isinstance(exc, HubClosed):
        return Outcome(RunState.FAILED, RunError.SHUTDOWN)
    return outcome_of(exc)


async def _append_all(run: ProducedRun, items: AsyncIterable[object]) -> None:
    """Append each item. However this ends, a generator has ended before, with its own cleanup."""
    iterator = aiter(items)
    try:
        async for item in iterator:
            await run.append_events([event_of(item)])
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
