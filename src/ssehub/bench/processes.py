"""The worker processes of a load test, as the process that publishes sees them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import cast

from .messages import Order, Tally, total_of
from .plan import Plan

MAX_LINE_BYTES = 2**24


class Worker:
    """A worker process and its latest report."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.tally = Tally()
        self._process = process
        # Process has None in place of a stream that is not a pipe; both of these are pipes.
        self._stdin = cast(asyncio.StreamWriter, process.stdin)
        self._stdout = cast(asyncio.StreamReader, process.stdout)
        self._has_begun = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def started(cls) -> Worker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ssehub.bench"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C reaches only the process that publishes, which then stops its workers
        )
        return cls(process)

    async def give(self, order: Order) -> None:
        self._stdin.write(order.to_line())
        await self._stdin.drain()

    async def begun(self) -> None:
        """Wait for the first report, or for the end of the process."""
        await self._has_begun.wait()

    async def _read(self) -> None:
        try:
            async for line in self._stdout:
                self.tally = Tally.from_line(line)
                self._has_begun.set()
        finally:
            self._has_begun.set()

    async def stop(self) -> None:
        """Wait for the last report and the end of the process."""
        with suppress(ProcessLookupError, ConnectionError):
            self._stdin.close()
        await self._reading
        await self._process.wait()


class Load:
    """All worker processes of a load test."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    @property
    def total(self) -> Tally:
        """The latest reports of all workers together."""
        return total_of(worker.tally for worker in self._workers)

    @property
    def cpu_seconds(self) -> list[float]:
        """The CPU time that each process of the load test has used so far: this one, then the workers."""
        return [time.process_time(), *[worker.tally.cpu_seconds for worker in self._workers]]

    async def add(self, order: Order) -> None:
        worker = await Worker.started()
        self._workers.append(worker)
        await worker.give(order)

    async def begun(self) -> None:
        await asyncio.gather(*[worker.begun() for worker in self._workers])

    async def stop(self) -> None:
        await asyncio.gather(*[worker.stop() for worker in self._workers])


@asynccontextmanager
async def listening(plan: Plan, tokens: list[str]) -> AsyncIterator[Load]:
    """Run the workers of `plan`; the load has their last reports after the `with` block.

    The block begins when all workers have started, so that on a slow machine this does not use up the plan's patience.
    """
    load = Load()
    try:
        for order in orders(plan, tokens):
            await load.add(order)
        await load.begun()
        yield load
    finally:
        await load.stop()


def orders(plan: Plan, tokens: list[str]) -> Iterator[Order]:
    """Yield the order for each worker. Subscriber n has the token of audience n, modulo their number."""
    for number in range(plan.processes):
        subscribers = range(number, plan.subscribers, plan.processes)
        first = number * (plan.subscribers // plan.processes + 1)
        yield Order(plan.url, [tokens[subscriber % len(tokens)] for subscriber in subscribers], first)
