"""`ssehub serve` with a recorder in its event loop: how long it was kept from turning, at most, in each second.

Writes a line `<monotonic time> <longest gap in ms>` a second to the file named by `LAG_FILE`. A gap is the time between
two turns of a task that sleeps for 1 ms, less the 2 ms which that takes in an idle loop at most: 1 ms of sleep, and up
to 1 ms more because uvloop's timers count whole milliseconds. Only what the loop was kept from turning beyond that is
left, by one callback or by several in one turn: a callback that takes N ms shows as at least N - 2 ms.
"""

from __future__ import annotations

import asyncio
import os
import time

from ssehub import apps, cli
from ssehub.hub import Hub

SLEEP_AT_MOST = 0.002
"""What a sleep of 1 ms takes in an idle loop, rounded up to the next whole one."""


async def record(path: str) -> None:
    with open(path, "w", buffering=1) as file:  # noqa: ASYNC230
        while True:
            longest, began = 0.0, time.perf_counter()
            before = began
            while before - began < 1:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                longest, before = max(longest, now - before - SLEEP_AT_MOST), now
            file.write(f"{time.monotonic():.3f} {longest * 1000:.3f}\n")


class RecordingHub(Hub):
    async def start(self) -> None:
        is_new = self._running is None
        await super().start()
        if is_new:
            self.spawn(record(os.environ["LAG_FILE"]))


apps.Hub = RecordingHub  # type: ignore[misc]
cli.main()
