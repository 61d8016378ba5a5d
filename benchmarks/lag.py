"""`ssehub serve` with a recorder in its event loop: the longest time per second in which the loop was blocked.

Writes one line per second, `<monotonic time> <longest gap in ms>`, to the file that `LAG_FILE` names. A gap is the time
between two steps of a task that sleeps for 1 ms, less the 2 ms that such a sleep takes at most in an idle loop: 1 ms,
and up to 1 ms more because uvloop's timers count whole milliseconds. What remains is the time for which callbacks, one
or several in one iteration, blocked the loop: a callback that takes N ms shows as at least N - 2 ms.
"""

from __future__ import annotations

import asyncio
import os
import time

import uvloop

from ssehub import cli

LONGEST_IDLE_SLEEP = 0.002

new_event_loop = uvloop.new_event_loop
recorders: list[asyncio.Task[None]] = []
"""The loop itself has only weak references to its tasks."""


async def record(path: str) -> None:
    with open(path, "w", buffering=1) as file:  # noqa: ASYNC230
        while True:
            longest, began = 0.0, time.perf_counter()
            before = began
            while before - began < 1:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                longest, before = max(longest, now - before - LONGEST_IDLE_SLEEP), now
            file.write(f"{time.monotonic():.3f} {longest * 1000:.3f}\n")


def recorded_event_loop() -> uvloop.Loop:
    loop = new_event_loop()
    recorders.append(loop.create_task(record(os.environ["LAG_FILE"])))
    return loop


uvloop.new_event_loop = recorded_event_loop
cli.main()
