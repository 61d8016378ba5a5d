"""One open append: what arrives in the body of its request is appended to a run, step by step, until the body ends.

It waits for the client or for its rate, in `OpenBody.wait`. While it waits, it can be interrupted, by the run's
listeners, by another connection of the same producer, and by a drain. It then asks the store, with a step that has no
events, whether it may go on: the store alone decides what a producer is refused for, and says why. A producer that is
silent learns so at once that its run was stopped, restarted or deleted.

While a step is under way nothing is read: what arrives meanwhile, up to what the server keeps, is the next step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from ..errors import ConflictReason, HubClosed, InvalidRequest, LineTimeout, RunConflict, SSEHubError, UnknownRun
from ..pace import Pace
from ..runs.book import run_conflict
from ..runs.entries import RunEvent
from ..runs.model import Outcome, Run, RunError, RunState
from ..runs.runs import Runs
from ..runs.store import Append, Appended, Ticket
from .feed import Feed
from .open_body import OpenBody
from .rates import PublishRates

PART_BYTES = 16 * 1024
"""Bodies are parsed in parts of this size, and other work may be done in between."""
MAX_STEP_EVENTS = 500
MAX_STEP_BYTES = 2**20
"""As soon as a part of the body makes so many events, or of this size, wait for a step, they are appended."""
LIFE_SECONDS = 1.0
"""The store is told of signs of life at most so often."""


class KeyCheck(Protocol):
    """Says if the control key of an append is still valid."""

    @property
    def is_due(self) -> bool:
        """True if the control keys have been replaced since it was checked."""

    async def repeat(self) -> None:
        """Raises ControlKeyError or KeyForbidden if the key may not append to the run any more."""


class Appending:
    """An append of `ticket` to the run `name`: a listener of the run, and one of the producers of this node.

    `generation` and `offset` are what the client has said. `count` is told how many events were stored.
    """

    __slots__ = (
        "_ahead",
        "_appended",
        "_body",
        "_count",
        "_end",
        "_generation",
        "_is_doubtful",
        "_is_first",
        "_is_stepping",
        "_key_check",
        "_key_name",
        "_loop",
        "_offset",
        "_rates",
        "_runs",
        "_stepped_at",
        "is_read",
        "run_name",
        "stored",
        "ticket",
    )

    def __init__(
        self,
        runs: Runs,
        name: str,
        ticket: Ticket,
        *,
        generation: int | None,
        offset: int | None,
        rates: PublishRates,
        key_name: str,
        key_check: KeyCheck,
        body: OpenBody,
        count: Callable[[int], None],
    ) -> None:
        self.run_name = name
        self.ticket = ticket
        self.is_read = False
        """True if nothing more of the body will arrive."""
        self.stored = 0
        """How many events of this body are in the run."""
        self._runs = runs
        self._generation = generation
        self._offset = offset
        self._rates = rates
        self._key_name = key_name
        self._key_check = key_check
        self._body = body
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._is_first = True
        self._appended: Appended | None = None
        """The result of the latest step."""
        self._stepped_at = 0.0
        # Interruptions
        self._is_stepping = False
        self._ahead = 0
        """How many events the run is known to have."""
        self._is_doubtful = False
        """True if the store has to be asked whether it may go on."""
        self._end: SSEHubError | None = None
        """What it is to be refused for, whatever the store says."""

    @property
    def appended(self) -> Appended | None:
        """The result of the latest step, None before the first one."""
        return self._appended

    def expect(self, generation: int) -> None:
        """Append to this generation only, if the client has not named one."""
        if self._generation is None:
            self._generation = generation

    # What interrupts it

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        """The run has changed, perhaps by a step of this append."""
        is_foreign = run.events > self._ahead and not self._is_stepping
        is_newer = self._generation is not None and run.generation != self._generation
        if is_foreign or is_newer or run.state is not RunState.OPEN:
            self._interrupt()
        self._ahead = max(self._ahead, run.events)

    def vanished(self, run: Run) -> None:
        """The run is gone."""
        self._interrupt()

    def claimed(self, connection: str) -> None:
        """A connection, perhaps this one, has taken the run over from another."""
        if connection != self.ticket.connection:
            self._interrupt()

    def on_drain(self) -> None:
        """The hub is about to stop."""
        self._end = HubClosed("the hub is about to stop: append the rest to another node, or here after its restart")
        self._interrupt()

    def _interrupt(self) -> None:
        self._is_doubtful = True
        self._body.interrupt()

    # What it does

    async def append(self, events: Sequence[RunEvent], outcome: Outcome | None = None) -> Appended:
        """Append `events`, and end the run with `outcome` if there is one, in one step.

        The first step claims the run for its producer. Raises what `RunStore.append` raises.
        """
        step = Append(self.ticket, events, self._is_first, self._generation, self._offset, outcome)
        self._is_stepping = True
        try:
            appended = await self._runs.append(self.run_name, step)
        except UnknownRun as exc:
            if self._appended is None:
                raise
            raise self._conflict(RunState.FAILED, RunError.DELETED) from exc
        finally:
            self._is_stepping = False
        if self._offset is not None:
            self._offset += len(events)
        if self._is_first:
            self._is_first = False
            self._generation = appended.generation
        self._appended = appended
        self._stepped_at = self._loop.time()
        if self._ahead > appended.events:
            self._is_doubtful = True
        self._ahead = appended.events  # also if that is less: a store that has lost some must not be asked for ever
        self.stored += len(events)
        self._count(len(events))
        return appended

    async def copy(self, receive: Receive, feed: Feed, outcome: Outcome | None) -> Appended:
        """Append what arrives until the body ends, and end the run with `outcome` if there is one.

        Raises ClientDisconnect if the body breaks off, LineTimeout, InvalidRequest for a bad line, HubClosed in a
        drain, ControlKeyError and KeyForbidden if the key is not valid any more, and what `RunStore.append` raises.
        """
        appended = await self.append(())
        has_more = True
        while has_more:
            message = await self._receive(receive, feed)
            if message is None:
                await self._make_sure()
                continue
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if self._key_check.is_due:
                await self._key_check.repeat()
            has_more = message.get("more_body", False)
            self.is_read = not has_more
            appended = await self._read(feed, message.get("body", b""), has_more, outcome) or appended
        return appended

    async def _receive(self, receive: Receive, feed: Feed) -> Message | None:
        """Return what arrives next, None if this was interrupted. Raises LineTimeout."""
        if self._is_doubtful:
            return None
        message = await self._body.part(receive, feed.unfinished_bytes)
        if message is None and not self._is_doubtful:
            raise LineTimeout(f"line {feed.line_number + 1} did not arrive in time: send each line as a whole")
        return message

    async def _read(self, feed: Feed, body: bytes, has_more: bool, outcome: Outcome | None) -> Appended | None:
        """Append the events of a part of the body, and return the result of the last step, None without any."""
        lines = feed.line_number
        appended = None
        if len(body) > PART_BYTES:
            pace = Pace()
            for at in range(0, len(body), PART_BYTES):
                if len(feed.events) >= MAX_STEP_EVENTS or feed.event_bytes >= MAX_STEP_BYTES:
                    appended = await self._append_at_rate(feed.take())
                if pace.is_due:
                    await pace.rest()
                await self._parse(feed, feed.read(body[at : at + PART_BYTES]))
        elif body:
            await self._parse(feed, feed.read(body))
        if not has_more:
            await self._parse(feed, feed.end())
        if feed.line_number != lines:
            self._body.line_ended()
        is_alive, events = feed.is_alive, feed.take()
        if events or (outcome is not None and not has_more):
            return await self._append_at_rate(events, None if has_more else outcome)
        if is_alive and self._loop.time() - self._stepped_at >= LIFE_SECONDS:
            return await self.append(())
        return appended

    async def _parse(self, feed: Feed, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except InvalidRequest as exc:
            if events := feed.take():
                await self._append_at_rate(events)
            raise type(exc)(f"{exc}; {self.stored} events are stored") from exc

    async def _append_at_rate(self, events: Sequence[RunEvent], outcome: Outcome | None = None) -> Appended:
        """Append when the control key may. Until then nothing more is read."""
        while events and (seconds := self._rates.try_spend(self._key_name, len(events))):
            if self._is_doubtful or not await self._body.wait(asyncio.sleep(seconds, True), None):
                await self._make_sure()
        return await self.append(events, outcome)

    async def _make_sure(self) -> None:
        """Return if this append may go on. Otherwise raise why not."""
        self._is_doubtful = False
        if self._end is not None:
            raise self._end
        appended = await self.append(())
        if appended.state is not RunState.OPEN:  # by another connection of this producer, which may repeat its end
            raise self._conflict(appended.state, None)

    def _conflict(self, state: RunState, error: str | None) -> RunConflict:
        """Return the error for a run that has ended since the latest step."""
        before = self._appended
        assert before is not None  # the run was claimed
        return run_conflict(
            self.run_name,
            ConflictReason.ENDED,
            generation=before.generation,
            state=state,
            events=before.events,
            error=error,
        )
