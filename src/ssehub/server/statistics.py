"""How the workers of a group read each other's statistics, so that each of them can answer `/metrics` for all."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..fanout.statistics import Statistics
from ..hub import Hub
from ..web.process_metrics import measured

_TIMEOUT_SECONDS = 1.0


class WorkerStatistics:
    """The statistics of the workers 0 to `workers` - 1, each on a Unix socket in `folder`. This worker is `number`."""

    def __init__(self, folder: Path, number: int, workers: int) -> None:
        self._folder = folder
        self._number = number
        self._workers = workers

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.sock"

    @asynccontextmanager
    async def serving(self, hub: Hub) -> AsyncIterator[None]:
        """Inside the context, send the statistics of `hub` to every process that connects to this worker's socket."""

        async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(json.dumps(dataclasses.asdict(await measured(hub))).encode())
            writer.close()

        self._path(self._number).unlink(missing_ok=True)  # left by a worker that died
        async with await asyncio.start_unix_server(send, self._path(self._number)):
            yield

    async def gather(self, hub: Hub) -> dict[str, Statistics]:
        """Return the statistics by worker: those of `hub`, and of the other workers that answer in time."""
        others = [number for number in range(self._workers) if number != self._number]
        own, answers = await asyncio.gather(measured(hub), asyncio.gather(*map(self._read, others)))
        found = {number: answer for number, answer in zip(others, answers, strict=True) if answer is not None}
        found[self._number] = own
        return {str(number): found[number] for number in sorted(found)}

    async def _read(self, number: int) -> Statistics | None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    return Statistics(**json.loads(await reader.read()))
                finally:
                    writer.close()
        except (OSError, ValueError):
            return None
