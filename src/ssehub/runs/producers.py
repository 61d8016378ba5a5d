"""The producers that append to runs on this node at present, whom a drain ends."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol

from .store import Ticket

DRAIN_STEP_SECONDS = 0.05
DRAINED_PER_STEP = 5
"""How many producers a step of a drain ends at least: a few are not spread over seconds."""


class Producer(Protocol):
    """Appends to one run. Called synchronously in the event loop; may not raise."""

    @property
    def run_name(self) -> str:
        """The run that it appends to."""

    @property
    def ticket(self) -> Ticket:
        """Who it is for the store."""

    def on_superseded(self) -> None:
        """The same producer has another connection to the run, on this node."""

    def on_drain(self) -> None:
        """The hub is about to stop: come to an end."""


class Producers:
    """The only list of them. Each counts from `add` to `remove`."""

    def __init__(self) -> None:
        self._by_run: dict[str, dict[Producer, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, producer: Producer) -> None:
        """Enter a producer. Once it has claimed its run, it tells `claimed`."""
        self._by_run.setdefault(producer.run_name, {})[producer] = None
        self._count += 1

    def remove(self, producer: Producer) -> None:
        """Remove a producer that was entered."""
        others = self._by_run[producer.run_name]
        del others[producer]
        if not others:
            del self._by_run[producer.run_name]
        self._count -= 1

    def claimed(self, name: str, ticket: Ticket) -> None:
        """Tell the older connections of the producer of `ticket` to the run `name`."""
        for other in list(self._by_run.get(name, ())):
            if other.ticket.producer == ticket.producer and other.ticket != ticket:
                other.on_superseded()

    async def drain(self, window_seconds: float) -> None:
        """End all that are here now, in random order and spread over the window. From now on nobody may be entered.

        Most of them go on elsewhere, and would all arrive there at once.
        """
        waiting = [producer for others in self._by_run.values() for producer in others]
        random.shuffle(waiting)
        end = time.monotonic() + window_seconds
        while waiting:
            # A step that was late makes the next ones larger.
            steps_left = max(1, int((end - time.monotonic()) / DRAIN_STEP_SECONDS))
            share = max(DRAINED_PER_STEP, -(-len(waiting) // steps_left))
            for producer in waiting[:share]:
                if producer in self._by_run.get(producer.run_name, ()):
                    producer.on_drain()
            del waiting[:share]
            await asyncio.sleep(DRAIN_STEP_SECONDS)
