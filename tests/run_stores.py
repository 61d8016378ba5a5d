"""Stores of runs for tests: one that fails when it is told to, with a hub over it, and what a run has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from ssehub import Hub
from ssehub.brokers.memory import MemoryBroker
from ssehub.brokers.memory_runs import MemoryRuns
from ssehub.errors import BrokerUnavailable, Overloaded
from ssehub.runs.model import Outcome, Run
from ssehub.runs.store import Append, Appended, Created, Creation
from ssehub.settings import RunLimits


class Address(TypedDict):
    """For whom a run is."""

    channel: str
    user_id: str


ADDRESS = Address(channel="chat", user_id="alex")


class FaultyRuns(MemoryRuns):
    """Runs in memory, behind a connection that fails as a test says."""

    def __init__(self, limits: RunLimits = RunLimits()) -> None:
        super().__init__(limits, now=time.time, monotonic=time.monotonic)
        self.steps: list[Append] = []
        """The steps of appends that have arrived."""
        self.is_reachable = True
        self.loses_answers = False
        """True if steps are carried out, but the answer is lost."""
        self.is_full = False
        self.may_answer = asyncio.Event()
        """While it is not set, calls wait for it before they do anything."""
        self.may_answer.set()

    async def create(self, name: str, creation: Creation) -> Created:
        await self.may_answer.wait()
        return await super().create(name, creation)

    async def append(self, name: str, step: Append) -> Appended:
        self.steps.append(step)
        await self.may_answer.wait()
        if not self.is_reachable:
            raise BrokerUnavailable("the store can't be reached")
        if self.is_full and step.events:
            raise Overloaded("the store is full")
        appended = await super().append(name, step)
        if self.loses_answers:
            raise BrokerUnavailable("the connection was lost")
        return appended

    def lose(self, name: str) -> None:
        """Forget a run, as a store does that lost its data: nobody is told."""
        self._book.records.pop(name)


@asynccontextmanager
async def faulty_hub(limits: RunLimits = RunLimits()) -> AsyncIterator[tuple[Hub, FaultyRuns]]:
    """Run a hub whose store fails as the test says."""
    broker = MemoryBroker()
    store = FaultyRuns(limits)
    broker.runs = store
    async with Hub(broker) as hub:
        yield hub, store


async def run_of(hub: Hub, name: str) -> Run:
    """Return the run `name`, which is there."""
    run = await hub.runs.get(name)
    assert run is not None
    return run


async def ending(hub: Hub, name: str) -> Outcome:
    """Return how the run `name` has ended, or its state."""
    run = await run_of(hub, name)
    return Outcome(run.state, run.error)


async def data_of(hub: Hub, name: str) -> list[str]:
    """Return the data of all events of the run `name`."""
    run = await run_of(hub, name)
    events = await hub.runs.read(name, run.log, 0, 2**30)
    assert events is not None
    return [event.data for event in events]
