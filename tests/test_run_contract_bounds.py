"""The contract of a store of runs, checked for every broker: time, bounds, and what is there after a restart."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_worlds import RecordingFollower
from run_worlds import DONE, FAILED, NAME, OPTIONS_BYTES, Node, RunWorld, key, let_time_pass, numbered, options, ticket
from ssehub.brokers import Broker
from ssehub.brokers.memory import MemoryBroker
from ssehub.brokers.sqlite import SqliteBroker
from ssehub.errors import ConflictReason, Overloaded, RunConflict
from ssehub.runs.deadlines import TICK_SECONDS
from ssehub.runs.model import NAME_OVERHEAD_BYTES, RunError, RunState
from ssehub.runs.store import CreateMode, RunFilter

pytest_plugins = ["redis_fixtures", "run_fixtures"]
pytestmark = pytest.mark.anyio

NEW, RESTART, TAKEOVER, JOIN = CreateMode


# Time


async def test_run_without_a_sign_of_life_fails(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create("short", idle=60)
        await node.create(idle=300, holder=ticket())
        world.pass_seconds(100)
        await node.ends(RunState.FAILED, "short")
        assert (await node.get()).state is RunState.OPEN
        world.pass_seconds(201)
        run = await node.ends(RunState.FAILED)

        assert run.error == RunError.IDLE and run.ended_at is not None
        assert node.transitions[2:] == [("short", 1, RunState.FAILED), (NAME, 1, RunState.FAILED)]
        with pytest.raises(RunConflict) as refused:
            await node.append("late", is_first=False)
        assert (refused.value.reason, refused.value.error) == (ConflictReason.ENDED, RunError.IDLE)


@pytest.mark.parametrize("data", [["1"], []], ids=["event", "empty step"])
async def test_idle_counts_from_the_last_event_or_sign_of_life(world: RunWorld, data: list[str]) -> None:
    async with world.running() as node:
        await node.create(idle=100, holder=ticket())
        for turn in range(3):
            world.pass_seconds(70)
            await node.append(*data, is_first=False)
            await node.create(f"marker {turn}", idle=20)
            world.pass_seconds(25)
            await node.ends(RunState.FAILED, f"marker {turn}")
        assert (await node.get()).state is RunState.OPEN
        world.pass_seconds(80)

        assert (await node.ends(RunState.FAILED)).error == RunError.IDLE


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_process_that_was_suspended_reads_what_arrived_before_it_fails_idle_runs(
    kind: str, make_run_world: Callable[[str], RunWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_run_world(kind)
    let_time_pass(monkeypatch, 0.2)
    async with world.running() as node:
        await node.create(idle=60, holder=ticket())
        await node.create("dead", idle=60)
        await asyncio.sleep(0.3)
        world.pass_seconds(100)
        time.sleep(1.5)  # noqa: ASYNC251  # nothing happens in this process
        for _ in range(5):  # the loop reads, and begins to decode
            await asyncio.sleep(0)
        await node.append("1", is_first=False)

        assert (await node.ends(RunState.FAILED, "dead")).error == RunError.IDLE
        assert (await node.get()).state is RunState.OPEN


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_store_that_sleeps_does_in_time_what_a_new_run_brings(kind: str, tmp_path: Path) -> None:
    broker: Broker = MemoryBroker() if kind == "memory" else SqliteBroker(tmp_path / "log.db")
    async with broker.run(RecordingFollower()):
        node = Node(broker)
        await node.create("first", idle=300)
        await asyncio.sleep(2 * TICK_SECONDS)  # its look is the next one now
        began = time.monotonic()
        await node.create("short", idle=1)
        await node.append("1", name="first", outcome=DONE)
        await node.ends(RunState.FAILED, "short")

        assert 1 <= time.monotonic() - began < 3


async def test_events_that_are_known_already_are_a_sign_of_life(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(idle=100)
        await node.append("1", offset=0)
        await node.create("marker", idle=105)
        world.pass_seconds(70)
        await node.append("1", is_first=False, offset=0)
        world.pass_seconds(40)
        await node.ends(RunState.FAILED, "marker")

        assert (await node.get()).state is RunState.OPEN


async def test_ended_run_is_kept_for_a_while_and_then_gone(world: RunWorld) -> None:
    async with world.running() as node:
        for name, keep in (("1", 0), ("2", 50), ("3", 500)):
            log = (await node.create(name, keep=keep)).run.log
            await node.append("x", name=name, outcome=DONE)
        listener = await node.follow("2")
        await node.goes("1")
        world.pass_seconds(60)
        await node.goes("2")

        assert [(told.is_gone, told.state) for told in listener.told] == [(True, RunState.DONE)]
        assert [run.name for run in await node.store.list_runs(RunFilter())] == ["3"]
        assert await node.store.read("2", log, 0, 100) is None
        assert node.store.totals().bytes == 33 + OPTIONS_BYTES
        assert len(node.transitions) == 6
        again = (await node.create("2")).run
        assert (again.generation, again.events) == (2, 0)


async def test_deadline_of_an_older_generation_ends_nothing(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(idle=50)
        await node.create(mode=RESTART, idle=1_000)
        await node.create("kept", keep=50)
        await node.store.finish("kept", DONE)
        await node.create("kept", idle=1_000)
        await node.create("marker", idle=60)
        world.pass_seconds(100)
        await node.ends(RunState.FAILED, "marker")

        assert (await node.get()).state is (await node.get("kept")).state is RunState.OPEN


@pytest.mark.soak
async def test_many_runs_that_are_due_at_once_end(world: RunWorld) -> None:
    count = 5_000 if "SOAK" in os.environ else 500
    async with world.running() as node:
        await asyncio.gather(*[node.create(f"{number}", idle=60, keep=60) for number in range(count)])
        world.pass_seconds(61)
        for number in (0, count // 2, count - 1):
            await node.ends(RunState.FAILED, f"{number}")
        world.pass_seconds(61)
        for number in (0, count // 2, count - 1):
            await node.goes(f"{number}")
        assert len(set(node.transitions)) == len(node.transitions) == 2 * count


# Bounds


async def test_run_that_becomes_too_large_fails_without_the_events_that_did_not_fit(world: RunWorld) -> None:
    async with world.running(run_bytes=1_000) as node:
        await node.create()
        await node.append(*["x" * 68] * 9)
        listener = await node.follow()
        for _ in range(2):
            with pytest.raises(RunConflict, match="run_bytes") as refused:
                await node.append("x" * 68, "x" * 68, is_first=False)
            assert refused.value.reason is ConflictReason.TOO_LARGE
            assert (refused.value.state, refused.value.events) == (RunState.FAILED, 9)

        run = await node.get()
        assert (run.state, run.error, run.events, run.bytes) == (RunState.FAILED, RunError.TOO_LARGE, 9, 900)
        assert len(await node.data()) == 9
        assert [(told.state, told.data) for told in listener.told] == [(RunState.FAILED, [])]
        assert node.transitions[1:] == [(NAME, 1, RunState.FAILED)]


async def test_run_may_have_as_many_bytes_as_allowed(world: RunWorld) -> None:
    async with world.running(run_bytes=1_000) as node:
        await node.create()

        assert (await node.append(*["x" * 68] * 10, outcome=DONE)).state is RunState.DONE


async def test_no_run_is_created_beyond_the_greatest_number(world: RunWorld) -> None:
    async with world.running(max_runs=3) as node:
        for name in ("1", "2", "3"):
            await node.create(name)
        await node.store.finish("1", DONE)
        with pytest.raises(Overloaded, match="max_runs"):
            await node.create("4")
        assert (await node.create("1")).run.generation == 2
        assert (await node.create("2", RESTART)).run.generation == 2
        await node.append("1", name="3")
        await node.store.delete("3")

        assert (await node.create("4")).is_new
        assert [run.name for run in await node.store.list_runs(RunFilter())] == ["1", "2", "4"]


async def test_nothing_is_appended_beyond_the_greatest_size_of_all_runs(world: RunWorld) -> None:
    async with world.running(max_runs_bytes=1_000 + 2 * OPTIONS_BYTES) as node:
        await node.create("1")
        await node.create("2")
        await node.append(*["x" * 68] * 9, name="1")
        with pytest.raises(Overloaded, match="max_runs_bytes"):
            await node.append(*["x" * 68] * 2, name="2", offset=0)
        run = await node.get("2")
        assert (run.state, run.events) == (RunState.OPEN, 0)
        await node.append("x" * 68, name="2", offset=0)
        with pytest.raises(Overloaded, match="max_runs_bytes"):
            await node.create("3")
        with pytest.raises(Overloaded, match="max_runs_bytes"):
            await node.append("", name="2", is_first=False, outcome=DONE)
        await node.store.delete("1")

        await node.append("x" * 68, name="2", is_first=False, offset=1, outcome=DONE)
        assert node.store.totals().bytes == 200 + OPTIONS_BYTES
        assert (await node.create("3")).is_new


async def test_what_is_dropped_by_a_restart_makes_room(world: RunWorld) -> None:
    async with world.running(max_runs_bytes=1_000 + OPTIONS_BYTES) as node:
        await node.create()
        await node.append(*["x" * 68] * 10)
        await node.create(mode=RESTART)
        await node.append(*numbered(1, 10), by=ticket("q"))

        assert (await node.get()).bytes == 331
        assert node.store.totals().bytes == 331 + OPTIONS_BYTES


async def test_options_of_runs_are_bounded_with_their_events(world: RunWorld) -> None:
    many = [f"user {number}é" for number in range(100)]
    size = options(many).size
    assert size > 100 * (NAME_OVERHEAD_BYTES + 8)
    async with world.running(max_runs_bytes=2 * size + 200) as node:
        await node.create("1", users=many)
        await node.create("2")
        await node.append("x" * 68, name="2")
        full = [
            node.create("3", users=many),
            node.create("2", RESTART, users=[*many, *"abcdefgh"]),
            node.create("2", TAKEOVER, users=[*many, "a"]),
        ]
        for call in full:
            with pytest.raises(Overloaded, match="max_runs_bytes"):
                await call
        assert node.store.totals().bytes == size + 100 + OPTIONS_BYTES
        assert await node.data("2") == ["x" * 68]
        await node.create("2", TAKEOVER, users=many)
        assert node.store.totals().bytes == 2 * size + 100
        await node.create("1", RESTART, users=many)  # needs no more than before
        await node.store.delete("2")

        assert node.store.totals().bytes == size
        await node.create("1", RESTART)
        assert node.store.totals().bytes == OPTIONS_BYTES


# What comes back after a restart


async def test_runs_go_on_after_a_restart(durable: RunWorld) -> None:
    async with durable.running() as node:
        first = (await node.create("open", idle=60, announce="run", key=key("k"))).run
        await node.append("1", "2", name="open", offset=0)
        await node.create("ended", keep=100)
        await node.append("3", name="ended", offset=0, outcome=FAILED)
        await node.create("gone")
        await node.store.delete("gone")
        totals = node.store.totals()

    async with durable.running() as node:
        run, ended = await node.get("open"), await node.get("ended")
        assert (run.generation, run.log, run.options) == (1, first.log, first.options)
        assert (run.state, run.events, run.created_at) == (RunState.OPEN, 2, first.created_at)
        assert (ended.state, ended.error, ended.events) == (RunState.FAILED, FAILED.error, 1)
        assert await node.data("open") == ["1", "2"] and await node.data("ended") == ["3"]
        assert node.store.totals() == totals
        assert not (await node.create("open", key=key("k"))).is_new
        assert (await node.create("gone")).run.generation == 2
        await node.append("2", "3", name="open", by=ticket("p", 2), offset=1, outcome=DONE)
        assert await node.data("open") == ["1", "2", "3"]
        repeated = await node.append("3", name="ended", by=ticket("p", 2), offset=0, outcome=FAILED)
        assert repeated == (1, 1, RunState.FAILED)
        durable.pass_seconds(200)
        await node.goes("ended")

    async with durable.running() as node:
        assert (await node.get("open")).state is RunState.DONE
        assert (await node.create("ended")).run.generation == 2


async def test_open_runs_fail_when_a_broker_stops_whose_runs_end_with_it(world: RunWorld) -> None:
    if world.is_durable:
        return
    async with world.running() as node:
        await node.create("open")
        await node.create("stopping", holder=ticket())
        await node.store.stop("stopping")
        await node.create("done")
        await node.append("1", name="done", outcome=DONE)
        listeners = [await node.follow(name) for name in ("open", "stopping", "done")]

    told = [(one.state, one.error) for listener in listeners for one in listener.told]
    assert told == [(RunState.FAILED, RunError.SHUTDOWN)] * 2
    async with node.broker.run(RecordingFollower()):
        assert (await node.get("open")).error == RunError.SHUTDOWN
        assert await node.data("done") == ["1"]
        assert (await node.create("open")).run.generation == 2
