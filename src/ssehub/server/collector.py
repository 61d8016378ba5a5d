"""The garbage collector of a process that serves a hub: many small steps instead of rare long pauses.

Nothing that the hub does for each event, connection or request makes cycles, so reference counting frees all of it. The
collector is there for what libraries leave behind. CPython looks at every object that it has not frozen, which with
10,000 streams takes a tenth of a second. So objects that exist at the start, or have survived a step, are frozen, and
each step looks only at what is new:

    step     every `STEP_OBJECTS` new objects, and at least every `STEP_SECONDS`. It collects everything that is not
             frozen. If that took longer than `FREEZE_SECONDS`, what is left is frozen, so that no step takes long.
    sleep    while hardly anything new is made. CPython's own schedule ends it: after `STEP_OBJECTS` new objects it
             collects the youngest, and tells `gc.callbacks`.
    whole    once a minute the frozen objects are counted, which takes milliseconds. If there are far more than the
             streams and the events in history account for, garbage may be among them. Only then, or when memory is
             short, everything is looked at.

Frozen objects that are no longer used are freed like any others. Only cycles among them have to wait for a whole
collection.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..hub import Hub

logger = logging.getLogger("ssehub.server")

TICK_SECONDS = 0.1
IDLE_TICK_SECONDS = 5.0
"""The time between ticks while hardly anything new is made, so that an idle hub wakes up rarely."""
IDLE_OBJECTS = 500
"""If no more objects are new since the tick before, nothing much goes on."""
STEP_OBJECTS = 5_000
STEP_SECONDS = 10.0
FREEZE_SECONDS = 0.002
"""A collection that took longer has looked at about 5,000 to 10,000 objects."""
COUNT_SECONDS = 60.0
OBJECTS_PER_STREAM = 30
OBJECTS_PER_EVENT = 8
OBJECTS_PER_RUN = 15
"""Upper estimates of the objects that an open stream, an event in history, or a run consists of. The events of runs are
no objects at which the collector looks again.
"""
SPARE_OBJECTS = 200_000
"""How many more objects there may be before a whole collection."""
BURST_OBJECTS = 50_000
"""If so many objects are made within a tick, CPython itself collects the youngest."""
NEVER = 1_000_000


class Collector:
    """Collects garbage in steps. `expected` returns how many objects are in use besides those of the start.

    `is_urgent` returns True if memory is short.
    """

    def __init__(self, expected: Callable[[], int], is_urgent: Callable[[], bool]) -> None:
        self._expected = expected
        self._is_urgent = is_urgent
        self._stepped_at = self._counted_at = 0.0
        self._base = 0
        """Objects that were frozen at the start."""
        self._others = 0
        """Objects besides those that were expected: as few as have been counted since the latest whole collection."""
        self._was_urgent = False
        self._youngest = 0
        """How many objects were new after the last tick."""

    def start(self, now: float) -> None:
        """Freeze what exists now, and take over from CPython's own schedule."""
        self._stepped_at = self._counted_at = now
        self._collect_whole()
        self._base = self._others
        gc.set_threshold(BURST_OBJECTS, NEVER, NEVER)
        self._youngest = gc.get_count()[0]

    def tick(self, now: float) -> float:
        """Do a step or a whole collection if it is due; return in how many seconds to call this again.

        If that is longer than TICK_SECONDS, call it at once when CPython has collected by itself.
        """
        youngest, bursts, _ = gc.get_count()
        is_urgent = self._is_urgent()
        if (is_urgent and not self._was_urgent) or (now - self._counted_at >= COUNT_SECONDS and self._has_garbage(now)):
            self._collect_whole()
            self._stepped_at = now
        elif youngest >= STEP_OBJECTS or bursts or now - self._stepped_at >= STEP_SECONDS:
            self._step()
            self._stepped_at = now
        self._was_urgent = is_urgent
        is_idle = youngest - self._youngest <= IDLE_OBJECTS and not bursts
        gc.set_threshold(STEP_OBJECTS if is_idle else BURST_OBJECTS, NEVER, NEVER)
        self._youngest = gc.get_count()[0]
        return IDLE_TICK_SECONDS if is_idle else TICK_SECONDS

    def _step(self) -> None:
        began = time.perf_counter()
        gc.collect()
        if time.perf_counter() - began > FREEZE_SECONDS:
            gc.freeze()

    def _has_garbage(self, now: float) -> bool:
        self._counted_at = now
        others = gc.get_freeze_count() - self._expected()
        # After a peak there are fewer. The base is the least, as fewer than expected may be in use.
        self._others = max(self._base, min(self._others, others))
        return others > self._others + SPARE_OBJECTS

    def _collect_whole(self) -> None:
        began = time.perf_counter()
        gc.unfreeze()
        found = gc.collect()
        gc.freeze()
        self._others = gc.get_freeze_count() - self._expected()
        logger.debug("collected %d objects in %.0f ms", found, 1000 * (time.perf_counter() - began))


@contextmanager
def collecting(hub: Hub) -> Iterator[None]:
    """Collect garbage in steps inside the context, in the running event loop."""

    def expected() -> int:
        statistics = hub.statistics
        streams, events, runs = statistics.subscribers, statistics.history_events, sum(statistics.runs.values())
        return streams * OBJECTS_PER_STREAM + events * OBJECTS_PER_EVENT + runs * OBJECTS_PER_RUN

    loop = asyncio.get_running_loop()
    thresholds = gc.get_threshold()
    collector = Collector(expected, lambda: hub.is_short_of_memory)
    collector.start(loop.time())
    timer: asyncio.TimerHandle
    is_asleep = False

    def tick() -> None:
        nonlocal timer, is_asleep
        is_asleep = False
        seconds = collector.tick(loop.time())
        is_asleep = seconds > TICK_SECONDS
        timer = loop.call_later(seconds, tick)

    def wake() -> None:
        if not timer.cancelled():  # as at the end of the context
            timer.cancel()
            tick()

    def on_collection(phase: str, info: dict[str, int]) -> None:
        nonlocal is_asleep
        if is_asleep and phase == "stop":
            is_asleep = False
            loop.call_soon_threadsafe(wake)  # any thread may have caused it, in the middle of anything

    timer = loop.call_later(TICK_SECONDS, tick)
    gc.callbacks.append(on_collection)
    try:
        yield
    finally:
        gc.callbacks.remove(on_collection)
        timer.cancel()
        gc.set_threshold(*thresholds)  # what is frozen stays frozen: most processes end here
