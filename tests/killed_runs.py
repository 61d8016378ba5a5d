"""Producers of runs in a process that is killed: `killed_runs.py PATH`.

Each goes on with its run where the last process was cut, sending its last batch again. Prints a line for each step
that was answered: the run's name and how many events it has.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from broker_worlds import RecordingFollower
from ssehub.brokers.sqlite import SqliteBroker
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import RunOptions
from ssehub.runs.store import Append, CreateMode, Creation, RunStore, Ticket

RUNS = 10
BATCH = 7


async def produce(store: RunStore, name: str, connection: str) -> None:
    ticket = Ticket(name, connection)
    run = (await store.create(name, Creation(RunOptions(("chat",), ("alex",)), CreateMode.JOIN, ticket=ticket))).run
    offset, is_first = max(0, run.events - BATCH), True
    while True:
        events = [RunEvent(f"{ordinal}") for ordinal in range(offset + 1, offset + 1 + random.randint(1, BATCH))]
        offset = (await store.append(name, Append(ticket, events, is_first, offset=offset))).events
        is_first = False
        sys.stdout.write(f"{name} {offset}\n")
        sys.stdout.flush()


async def main(path: Path) -> None:
    broker = SqliteBroker(path)
    async with broker.run(RecordingFollower()), asyncio.TaskGroup() as group:
        for number in range(RUNS):
            group.create_task(produce(broker.runs, f"run-{number}", f"{random.random()}"))


asyncio.run(main(Path(sys.argv[1])))
