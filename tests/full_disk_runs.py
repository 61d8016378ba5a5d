"""A hub with a run on a full disk, which is then freed: `full_disk_runs.py FOLDER`. Prints what happened as JSON.

Run it in user and mount namespaces of its own: see `small_disk.py`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from small_disk import small_disk
from ssehub.brokers import create_broker
from ssehub.errors import BrokerUnavailable
from ssehub.hub import Hub
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Outcome, Run, RunOptions, RunState
from ssehub.runs.store import Append, Creation, RunFilter, Ticket

NAME = "answer"
TICKET = Ticket("producer", "connection")


class Listener:
    def __init__(self) -> None:
        self.told = 0

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        self.told = run.events

    def vanished(self, run: Run) -> None:
        raise AssertionError("the run is there all the time")

    def claimed(self, connection: str) -> None:
        raise AssertionError("there is one connection only")


async def count_events(hub: Hub) -> int:
    """Return how many events can be read."""
    run = await hub.runs.get(NAME)
    assert run is not None
    count = 0
    while page := await hub.runs.read(NAME, run.log, count, 100_000):
        count += len(page)
    return count


async def main(folder: Path) -> None:
    url = f"sqlite:///{folder}/log.db"
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * 500_000)
    listener = Listener()
    async with Hub(create_broker(url)) as hub:
        await hub.runs.create(NAME, Creation(RunOptions(("chat",), ("alex",)), ticket=TICKET))
        await hub.runs.follow(NAME, listener)
        answered = 0

        async def append(outcome: Outcome | None = None) -> None:
            nonlocal answered
            step = Append(TICKET, [RunEvent(f"{answered + 1}" * 10_000)], offset=answered, outcome=outcome)
            answered = (await hub.runs.append(NAME, step)).events

        found: dict[str, object] = {}
        try:
            while True:
                await append()
        except BrokerUnavailable as exc:
            found["why"] = str(exc)
        found["not ready"] = hub.not_ready()
        found["lost while full"] = answered - await count_events(hub)
        found["told while full"] = listener.told - answered
        found["listed while full"] = len(await hub.runs.list_runs(RunFilter()))
        ballast.unlink()
        async with asyncio.timeout(5):
            while hub.not_ready():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await append()
        await append(Outcome(RunState.DONE))
        found["told at last"] = listener.told - answered
    async with Hub(create_broker(url)) as hub:
        found["lost"] = answered - await count_events(hub)
    sys.stdout.write(json.dumps(found))


with small_disk(sys.argv[1]) as folder:
    asyncio.run(main(folder))
