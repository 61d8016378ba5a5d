"""The contract of a store of runs, checked for every broker: what listeners are told, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from conftest import until
from run_worlds import DONE, FAILED, NAME, RecordingListener, RunWorld, numbered, ticket
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Run, RunError, RunState
from ssehub.runs.store import CreateMode

pytest_plugins = ["redis_fixtures", "run_fixtures"]
pytestmark = pytest.mark.anyio

NEW, RESTART, TAKEOVER, JOIN = CreateMode


async def test_listener_is_told_of_events_and_of_the_end_in_order(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", offset=0)
        listener = RecordingListener()
        run = await node.store.follow(NAME, listener)
        assert run is not None and run.events == 1
        await node.append("2", "3", is_first=False, offset=1)
        await node.append("3", "4", is_first=False, offset=2)
        await node.append("5", is_first=False, outcome=DONE)
        await until(lambda: listener.states[-1:] == [(1, RunState.DONE)])

        told = [one for one in listener.told if one.first > 1]
        assert [(one.first, one.data) for one in told if one.data] == [(2, ["2", "3"]), (4, ["4"]), (5, ["5"])]
        assert {one.log for one in told} == {run.log}
        assert listener.told[-1].events == 5


async def test_listener_that_waits_is_told_when_the_run_is_created(world: RunWorld) -> None:
    async with world.running() as node:
        listener = RecordingListener()
        assert await node.store.follow(NAME, listener) is None
        run = (await node.create()).run
        await until(lambda: listener.told)

        assert listener.told[0][:6] == (False, 1, run.log, RunState.OPEN, None, 0)
        await node.append("1")
        await until(lambda: listener.data == ["1"])


@pytest.mark.parametrize("is_ended", [False, True])
async def test_restart_is_seen_by_the_log(world: RunWorld, is_ended: bool) -> None:
    async with world.running() as node:
        await node.create()
        listener = await node.follow()
        await node.append("1", "2", outcome=DONE if is_ended else None)
        run = (await node.create(mode=RESTART)).run
        await node.append("3", by=ticket("q"))
        await until(lambda: listener.data == ["1", "2", "3"])

        assert listener.told[-1].log == run.log != listener.told[0].log
        assert (listener.told[-1].generation, listener.told[-1].first) == (2, 1)
        listener.check_contiguous()


async def test_takeover_of_an_open_run_is_told_in_the_same_log(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        listener = await node.follow()
        await node.append("1", "2")
        await node.create(mode=TAKEOVER)
        await until(lambda: listener.states[-1:] == [(2, RunState.OPEN)])
        await node.append("3", by=ticket("q"))
        await until(lambda: listener.data == ["1", "2", "3"])

        assert len({told.log for told in listener.told}) == 1
        listener.check_contiguous()


async def test_takeover_of_an_ended_run_is_told_in_another_log(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        listener = await node.follow()
        await node.append("1", "2", outcome=FAILED)
        run = (await node.create(mode=TAKEOVER)).run
        await node.append("3", by=ticket("q"))
        await until(lambda: "3" in listener.data)

        assert listener.told[-1].log == run.log
        assert listener.told[-1].events == 3 and listener.told[-1].first in (1, 3)


async def test_stop_and_its_end_are_told(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        listener = await node.follow()
        await node.store.stop(NAME)
        await until(lambda: listener.states[-1:] == [(1, RunState.STOPPING)])
        await node.store.release(NAME, ticket())
        await until(lambda: listener.states[-1:] == [(1, RunState.STOPPED)])


async def test_end_that_time_brings_is_told(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(idle=60)
        listener = await node.follow()
        world.pass_seconds(61)
        await until(lambda: listener.states[-1:] == [(1, RunState.FAILED)])

        assert listener.told[-1].error == RunError.IDLE


async def test_deletion_is_told_with_the_state_at_last(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create("open", holder=ticket())
        await node.create("ended")
        await node.store.finish("ended", DONE)
        listeners = [await node.follow(name) for name in ("open", "ended")]
        await node.append("1", name="open", is_first=False)
        for name in ("open", "ended"):
            await node.store.delete(name)
        await until(lambda: all(listener.told and listener.told[-1].is_gone for listener in listeners))

        last = [(told.state, told.error, told.events) for told in (listener.told[-1] for listener in listeners)]
        assert last == [(RunState.FAILED, RunError.DELETED, 1), (RunState.DONE, None, 0)]
        assert not [told for told in listeners[0].told[:-1] if told.state is not RunState.OPEN]
        again = (await node.create("open")).run
        await until(lambda: listeners[0].told[-1].log == again.log)
        assert (listeners[0].told[-1].is_gone, listeners[0].told[-1].generation) == (False, 2)


async def test_listener_that_no_longer_follows_is_told_nothing(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        gone, other = await node.follow(), await node.follow()
        node.store.unfollow(NAME, gone)
        node.store.unfollow(NAME, gone)
        node.store.unfollow("unknown", gone)
        gone.told.clear()  # what happened before may have been told
        await node.append("1", outcome=DONE)
        await until(lambda: other.data == ["1"])

        assert gone.told == []


async def test_listener_may_end_itself_and_others_while_it_is_told(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        second = RecordingListener()

        class Ending(RecordingListener):
            def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
                super().advanced(run, first, events)
                if events:
                    node.store.unfollow(NAME, self)
                    node.store.unfollow(NAME, second)

        first, last = Ending(), RecordingListener()
        for listener in (first, second, last):
            await node.store.follow(NAME, listener)
        await node.append("1")
        await node.append("2", is_first=False)
        await until(lambda: last.data == ["1", "2"])

        assert (first.data, second.data) == (["1"], [])


async def test_refused_step_is_not_told(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        listener = await node.follow()
        listener.told.clear()
        for step in (node.append("x", by=ticket("q")), node.append("x", offset=5), node.create()):
            with pytest.raises(Exception, match="answer"):
                await step
        await node.append("2", is_first=False)
        await until(lambda: listener.data == ["2"])

        assert {told.state for told in listener.told} == {RunState.OPEN}


async def test_fifty_concurrent_appenders_to_different_runs_are_told_in_order(world: RunWorld) -> None:
    async with world.running() as node:
        names = [f"run {number}" for number in range(50)]
        listeners = []
        for name in names:
            await node.create(name)
            listeners.append(await node.follow(name))

        async def append_all(name: str) -> None:
            sent = 0
            while sent < 60:
                size = sent % 3 + 1
                data = [f"{name}: {number}" for number in range(sent, sent + size)]
                outcome = DONE if sent + size >= 60 else None
                await node.append(*data, name=name, is_first=not sent, offset=sent, outcome=outcome)
                sent += size

        await asyncio.gather(*map(append_all, names))
        await until(lambda: all(listener.states[-1:] == [(1, RunState.DONE)] for listener in listeners))

        for name, listener in zip(names, listeners, strict=True):
            listener.check_contiguous()
            assert listener.data == await node.data(name)
            assert len(listener.data) >= 60 and listener.data[:1] == [f"{name}: 0"]
        assert len(node.transitions) == 100


async def test_follower_that_comes_while_events_are_appended_misses_none(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()

        async def append_all() -> None:
            for number in range(1, 301):
                await node.append(f"{number}", is_first=number == 1, offset=number - 1)
                await asyncio.sleep(0)

        appending = asyncio.create_task(append_all())
        for _ in range(10):
            await asyncio.sleep(0.002)
            listener = RecordingListener()
            run = await node.store.follow(NAME, listener)
            assert run is not None
            log, seen = run.log, run.events  # the run changes
            await node.append(is_first=False)
            before = await node.store.read(NAME, log, 0, 10**6)
            assert before is not None and len(before) >= seen
            if not appending.done():
                count = len(before)
                await until(lambda: appending.done() or (listener.told and listener.told[-1].events > count))  # noqa: B023
            listener.check_contiguous()
            first = next((told.first for told in listener.told if told.data), None)
            assert first is None or first <= len(before) + 1
        await appending

        assert await node.data() == numbered(1, 300)


# Several nodes


async def test_listener_at_another_node_is_told_everything(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        listener = RecordingListener()
        assert await other.store.follow(NAME, listener) is None
        await node.create(holder=ticket())
        for number in range(1, 101):
            await node.append(f"{number}", is_first=False, offset=number - 1)
        await until(lambda: listener.data == numbered(1, 100))
        await other.store.stop(NAME)
        await until(lambda: listener.states[-1:] == [(1, RunState.STOPPING)])
        await node.store.release(NAME, ticket())
        await until(lambda: listener.states[-1:] == [(1, RunState.STOPPED)])
        await node.store.delete(NAME)
        await until(lambda: listener.told[-1].is_gone)

        listener.check_contiguous()
        assert node.transitions + other.transitions == [(NAME, 1, RunState.OPEN), (NAME, 1, RunState.STOPPED)]
        assert other.transitions == []


async def test_producer_learns_of_a_stop_at_another_node(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        await node.create(holder=ticket())
        listener = await node.follow()
        await other.store.stop(NAME, 1)

        await until(lambda: listener.states[-1:] == [(1, RunState.STOPPING)])


async def test_end_that_time_brings_is_reported_by_one_node_only(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        for number in range(20):
            await node.create(f"{number}", idle=60)
        listener = await other.follow("0")
        shared.pass_seconds(61)
        await until(lambda: len(node.transitions) + len(other.transitions) == 40)
        await until(lambda: listener.states[-1:] == [(1, RunState.FAILED)])
        await asyncio.sleep(0.05)

        assert len(set(node.transitions + other.transitions)) == 40
        assert len(node.transitions) + len(other.transitions) == 40
