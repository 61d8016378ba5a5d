"""Clients of this node whose requests stay open: producers of runs, and pipes of publishers. A drain ends them."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol

DRAIN_STEP_SECONDS = 0.05
DRAINED_PER_STEP = 5
"""How many producers a step of a drain ends at least: a few are not spread over seconds."""


class Producer(Protocol):
    """Appends to one run, or publishes by one pipe. Called synchronously in the event loop; may not raise."""

    def on_drain(self) -> None:
        """The hub is about to stop: come to an end."""


class Producers:
    """The only list of them. Each counts from `add` to `remove`."""

    def __init__(self) -> None:
        self._producers: set[Producer] = set()

    def __len__(self) -> int:
        return len(self._producers)

    def add(self, producer: Producer) -> None:
        self._producers.add(producer)

    def remove(self, producer: Producer) -> None:
        self._producers.remove(producer)

    async def drain(self, window_seconds: float) -> None:
        """End all that are here now, in random order and spread over the window. From now on nobody may be entered.

        Most of them go on elsewhere, and would all arrive there at once.
        """
        waiting = list(self._producers)
        random.shuffle(waiting)
        end = time.monotonic() + window_seconds
        while waiting:
            # A step that was late makes the next ones larger.
            steps_left = max(1, int((end - time.monotonic()) / DRAIN_STEP_SECONDS))
            share = max(DRAINED_PER_STEP, -(-len(waiting) // steps_left))
            for producer in waiting[:share]:
                if producer in self._producers:
                    producer.on_drain()
            del waiting[:share]
            await asyncio.sleep(DRAIN_STEP_SECONDS)
