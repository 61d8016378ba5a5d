"""The garbage collector of a hub's process: what it finds, when, and how long it takes."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import weakref
from collections.abc import Iterator

import pytest

from conftest import RunningHub, StartHub, report, until, wait_until
from crowd import crowds
from ssehub.hub import Hub
from ssehub.server.collector import (
    COUNT_SECONDS,
    IDLE_OBJECTS,
    IDLE_TICK_SECONDS,
    SPARE_OBJECTS,
    STEP_OBJECTS,
    STEP_SECONDS,
    TICK_SECONDS,
    Collector,
    collecting,
)

SOAK = "SOAK" in os.environ


class Node:
    """An object that refers to itself, so that reference counting does not free it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def restore_collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.collect()


def make_garbage(count: int = 100) -> weakref.WeakSet[Node]:
    return weakref.WeakSet([Node() for _ in range(count)])


def test_cycles_are_collected_within_ten_seconds() -> None:
    collector = Collector(lambda: 0, lambda: False)
    collector.start(0)

    garbage = make_garbage()
    collector.tick(TICK_SECONDS)
    soon = len(garbage)
    collector.tick(STEP_SECONDS)

    assert soon == 100
    assert len(garbage) == 0


def test_many_new_objects_are_collected_at_the_next_tick() -> None:
    collector = Collector(lambda: 0, lambda: False)
    collector.start(0)

    garbage = make_garbage(10_000)
    collector.tick(TICK_SECONDS)

    assert len(garbage) == 0


def test_objects_that_survive_are_frozen_and_freed_when_they_are_no_longer_used() -> None:
    collector = Collector(lambda: 0, lambda: False)
    collector.start(0)
    before = gc.get_freeze_count()

    survivors = [[number] for number in range(100_000)]
    collector.tick(TICK_SECONDS)
    with_survivors = gc.get_freeze_count()
    survivors.clear()

    assert with_survivors - before >= 100_000
    assert gc.get_freeze_count() < before + 1_000


@pytest.mark.parametrize(("expected", "left"), [(0, 0), (10 * SPARE_OBJECTS, 100)], ids=["unexpected", "expected"])
def test_frozen_garbage_is_collected_once_there_are_more_objects_than_expected(expected: int, left: int) -> None:
    in_use = 0
    collector = Collector(lambda: in_use, lambda: False)
    collector.start(0)
    nodes = [Node() for _ in range(SPARE_OBJECTS + 1_000)]
    in_use = expected
    collector.tick(TICK_SECONDS)
    garbage = weakref.WeakSet(nodes[:100])

    nodes.clear()
    collector.tick(COUNT_SECONDS - 1)
    early = len(garbage)
    collector.tick(COUNT_SECONDS)

    assert early == 100
    assert len(garbage) == left


def test_frozen_garbage_after_a_peak_is_collected_as_before_it() -> None:
    is_short = False
    collector = Collector(lambda: 0, lambda: is_short)
    collector.start(0)
    peak = [Node() for _ in range(2 * SPARE_OBJECTS)]
    is_short = True
    collector.tick(TICK_SECONDS)  # a whole collection finds them in use
    for node in peak:
        del node.me
    del node
    peak.clear()
    collector.tick(COUNT_SECONDS)

    nodes = [Node() for _ in range(SPARE_OBJECTS + 1_000)]
    collector.tick(COUNT_SECONDS + TICK_SECONDS)
    garbage = weakref.WeakSet(nodes[:100])
    nodes.clear()
    collector.tick(2 * COUNT_SECONDS)

    assert len(garbage) == 0


def test_collector_ticks_rarely_while_nothing_happens() -> None:
    collector = Collector(lambda: 0, lambda: False)
    collector.start(0)

    idle = collector.tick(TICK_SECONDS)
    objects = [[number] for number in range(2 * IDLE_OBJECTS)]
    busy = collector.tick(2 * TICK_SECONDS)

    assert (idle, busy, len(objects)) == (IDLE_TICK_SECONDS, TICK_SECONDS, 2 * IDLE_OBJECTS)


@pytest.mark.anyio
async def test_collector_that_sleeps_is_woken_by_many_new_objects() -> None:
    async with Hub() as hub:
        with collecting(hub):
            await asyncio.sleep(5 * TICK_SECONDS)  # nothing is made, so it sleeps
            garbage = make_garbage(2 * STEP_OBJECTS)

            await until(lambda: not len(garbage), IDLE_TICK_SECONDS / 2)


def test_memory_that_is_short_causes_one_whole_collection() -> None:
    is_short = False
    collector = Collector(lambda: 0, lambda: is_short)
    collector.start(0)
    nodes = [Node() for _ in range(50_000)]
    collector.tick(TICK_SECONDS)
    garbage = weakref.WeakSet(nodes[:100])
    nodes.clear()

    is_short = True
    collector.tick(2 * TICK_SECONDS)
    found = len(garbage)
    wholes = gc.get_freeze_count()
    collector.tick(3 * TICK_SECONDS)

    assert found == 0
    assert gc.get_freeze_count() == pytest.approx(wholes, abs=100)


MEASURING_PAUSES = """
import gc, signal, sys, time, weakref
from ssehub.cli import main

began = longest = 0.0
garbage = weakref.WeakSet()

class Node:
    def __init__(self):
        self.me = self

def measure(phase, info):
    global began, longest
    now = time.thread_time()
    if phase == "start":
        began = now
    else:
        longest = max(longest, now - began)

def show(*_):
    global longest
    sys.stderr.write(f"longest {longest:.6f} s, garbage {len(garbage)}\\n")
    sys.stderr.flush()
    longest = 0.0

def litter(*_):
    for _ in range(1_000):
        garbage.add(Node())

gc.callbacks.append(measure)
signal.signal(signal.SIGUSR1, show)
signal.signal(signal.SIGUSR2, litter)
main()
"""
"""A hub that shows the CPU time of its longest collection, and how much of the garbage it was told to make is left."""


def longest_and_garbage(hub: RunningHub) -> tuple[float, int]:
    pattern = re.compile(r"longest (\S+) s, garbage (\d+)\n")
    before = len(pattern.findall(hub.log))
    hub.signal(signal.SIGUSR1)
    wait_until(lambda: len(pattern.findall(hub.log)) > before)
    longest, garbage = pattern.findall(hub.log)[-1]
    return float(longest), int(garbage)


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_no_collection_takes_long_however_many_streams_are_open(start_hub: StartHub) -> None:
    counts = (5_000, 5_000) if SOAK else (1_500,)
    hub = start_hub(code=MEASURING_PAUSES)
    longest_and_garbage(hub)  # forgets the collections of the start
    with crowds(hub, *counts):
        connecting, _ = longest_and_garbage(hub)
        hub.signal(signal.SIGUSR2)
        wait_until(lambda: longest_and_garbage(hub)[1] == 0, 60)
        idle, _ = longest_and_garbage(hub)
    report(f"{sum(counts)} streams: {1000 * connecting:.1f} ms while connecting, {1000 * idle:.1f} ms idle")

    assert max(connecting, idle) < (0.02 if SOAK else 0.05)
