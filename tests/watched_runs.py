"""Runs for tests: a producer, and streams that record what they are sent of a run."""

from __future__ import annotations

import itertools
from typing import Any

from fakes import FakeSink
from ssehub.claims import Claims
from ssehub.fanout.subscriber import Subscriber
from ssehub.fanout.watching import Dialect
from ssehub.hub import Hub
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Outcome, Run, RunOptions, RunState
from ssehub.runs.store import Append, CreateMode, Creation, Ticket

NAME = "answer"
_TICKETS = itertools.count()


class Producer:
    """One producer of the run `name`, in this process."""

    def __init__(self, hub: Hub, name: str = NAME) -> None:
        self.hub = hub
        self.name = name
        self.ticket = Ticket(f"producer-{next(_TICKETS)}", "1")

    async def create(
        self,
        mode: CreateMode = CreateMode.NEW,
        *,
        channels: tuple[str, ...] = ("chat",),
        users: tuple[str, ...] = ("alex",),
        **options: Any,
    ) -> Run:
        """Create the run, on `chat` for alex unless told otherwise."""
        created = await self.hub.runs.create(
            self.name, Creation(RunOptions(channels, users, **options), mode, ticket=self.ticket)
        )
        return created.run

    async def append(self, *data: str, is_first: bool = False, **fields: Any) -> None:
        """Append an event for each of `data`. `is_first` says that the producer has connected again."""
        events = [RunEvent(text, **fields) for text in data]
        await self.hub.runs.append(self.name, Append(self.ticket, events, is_first=is_first))

    async def finish(self, state: RunState = RunState.DONE, error: str | None = None) -> None:
        await self.hub.runs.finish(self.name, Outcome(state, error))

    async def delete(self) -> None:
        await self.hub.runs.delete(self.name)


async def producing(hub: Hub, *data: str, name: str = NAME, **options: Any) -> Producer:
    """Create a run with an event for each of `data`."""
    producer = Producer(hub, name)
    await producer.create(**options)
    if data:
        await producer.append(*data)
    return producer


async def watch(
    hub: Hub,
    user_id: str = "alex",
    *channels: str,
    name: str = NAME,
    sink: FakeSink | None = None,
    cursor: str | None = None,
    address: str | None = None,
    dialect: Dialect = Dialect.EVENTS,
    patterns: tuple[str, ...] = (),
    wait_seconds: float | None = None,
    **token: Any,
) -> tuple[Subscriber, FakeSink]:
    """Watch a run, on `chat` if no channel or pattern is named. `token` are other fields of `Claims`."""
    sink = sink or FakeSink()
    claims = Claims(user_id, channels or (() if patterns else ("chat",)), patterns=patterns, **token)
    await hub.find_run(name, claims, wait_seconds, address)
    return hub.watch(name, claims, sink, cursor, address, dialect=dialect), sink
