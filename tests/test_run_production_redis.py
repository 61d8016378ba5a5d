"""Runs that are produced in process over Redis and Valkey: other nodes, and servers that die."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from conftest import report
from redis_servers import RedisServer
from run_stores import ADDRESS, data_of, ending
from ssehub import Hub, RunState
from ssehub.brokers import create_broker
from ssehub.errors import RunConflict, RunInterrupted, RunStopped, StaleRun, Unavailable
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import RunOptions
from ssehub.runs.store import Append, CreateMode, Creation, Ticket

pytestmark = pytest.mark.anyio
pytest_plugins = ["redis_fixtures"]

OPTIONS = RunOptions(("chat",), ("alex",))


@asynccontextmanager
async def two_nodes(server: RedisServer) -> AsyncIterator[tuple[Hub, Hub]]:
    async with Hub(create_broker(server.url)) as here, Hub(create_broker(server.url)) as there:
        yield here, there


async def test_silent_producer_is_interrupted_by_what_another_node_does(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server) as (here, there):
        for act, error in (
            (there.runs.stop("answer"), RunStopped),
            (there.runs.create("answer", Creation(OPTIONS, CreateMode.RESTART)), StaleRun),
            (there.runs.create("answer", Creation(OPTIONS, CreateMode.TAKEOVER)), StaleRun),
            (there.runs.delete("answer"), StaleRun),
        ):
            with pytest.raises(error):
                async with asyncio.timeout(5), here.run("answer", **ADDRESS, restart=True) as run:
                    await run.append(data="1")
                    await act
                    await asyncio.Event().wait()


async def test_silent_producer_whose_lease_lapsed_is_interrupted_by_the_next_one(redis_server: RedisServer) -> None:
    async def claim(hub: Hub) -> None:
        while True:
            redis_server.command("DEL", "{ssehub}:run-leases")  # as if the other node had not been heard of
            with contextlib.suppress(RunConflict):
                await hub.runs.create("answer", Creation(OPTIONS, CreateMode.JOIN, ticket=Ticket("q", "q-1")))
                return

    async with two_nodes(redis_server) as (here, there):
        with pytest.raises(StaleRun, match="another producer"):
            async with asyncio.timeout(5), here.run("answer", **ADDRESS) as run:
                await run.append(data="1")
                await claim(there)
                await asyncio.Event().wait()

        await there.runs.append("answer", Append(Ticket("q", "q-1"), [RunEvent("2")]))
        assert await data_of(there, "answer") == ["1", "2"]


async def test_stop_on_another_node_reaches_the_producer_in_milliseconds(valkey: RedisServer) -> None:
    seconds = list[float]()

    async def silent() -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
            yield ""
        finally:
            seconds.append(time.perf_counter() - began)

    async with two_nodes(valkey) as (here, there):
        for number in range(100):
            started = await here.start_run(f"answer-{number}", silent(), **ADDRESS)
            began = time.perf_counter()
            await there.runs.stop(started.name)
            assert await started.wait() == ("stopped", None)

    seconds.sort()
    report(f"from stop on another node to the producer's exception: p99 {1000 * seconds[98]:.1f} ms")
    assert len(seconds) == 100
    assert seconds[98] < 0.1


async def test_events_are_stored_once_although_the_server_is_killed(redis_server: RedisServer) -> None:
    async with Hub(create_broker(redis_server.url)) as hub:
        count = 0

        async def kill_three_times() -> None:
            for _ in range(3):
                await asyncio.sleep(0.1)
                redis_server.kill()
                await asyncio.sleep(0.1)
                await asyncio.to_thread(redis_server.start)

        killing = asyncio.create_task(kill_three_times())
        async with hub.run("answer", **ADDRESS) as run:
            while not killing.done():
                async with asyncio.timeout(15):
                    await asyncio.gather(*(run.append(data=count + number) for number in range(3)))
                count += 3
        await killing

        assert await data_of(hub, "answer") == [str(number) for number in range(count)]
        assert await ending(hub, "answer") == ("done", None)


async def test_producer_of_a_server_that_lost_its_data_is_told(volatile_server: RedisServer) -> None:
    async with Hub(create_broker(volatile_server.url)) as hub:
        with pytest.raises(RunInterrupted, match=r"lost|no run"):
            async with asyncio.timeout(15), hub.run("answer", **ADDRESS) as run:
                await run.append(data="1")
                await asyncio.to_thread(volatile_server.restart)
                for _ in range(2):
                    await run.append(data="2")


async def test_producer_of_a_lost_run_never_writes_into_the_next_one(volatile_server: RedisServer) -> None:
    entered, may_append = asyncio.Event(), asyncio.Event()

    async def produce(hub: Hub) -> None:
        async with hub.run("answer", **ADDRESS) as run:
            await run.append(data="old")
            entered.set()
            await may_append.wait()
            while True:
                await run.append(data="stale")

    async with two_nodes(volatile_server) as (here, there), asyncio.timeout(20):
        producing = asyncio.create_task(produce(here))
        await entered.wait()
        await asyncio.to_thread(volatile_server.restart)
        await created(there)
        may_append.set()
        with pytest.raises(RunInterrupted):
            await producing

        assert await data_of(there, "answer") == []


async def created(hub: Hub) -> None:
    """Create the run as soon as the server can be used again."""
    while True:
        try:
            await hub.runs.create("answer", Creation(OPTIONS))
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def test_run_with_signs_of_life_outlives_its_idle_time(valkey: RedisServer) -> None:
    async with Hub(create_broker(valkey.url)) as hub:
        async with hub.run("answer", **ADDRESS, idle=1):
            await asyncio.sleep(1.9)

        assert await ending(hub, "answer") == ("done", None)


async def test_only_the_run_of_a_dead_producer_is_idle_after_an_outage(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server) as (here, there):
        await there.runs.create("dead", Creation(replace(OPTIONS, idle=2), ticket=Ticket("q", "q-1")))
        async with here.run("alive", **ADDRESS, idle=2) as run:
            await run.append(data="1")
            await asyncio.to_thread(redis_server.kill)
            await asyncio.sleep(6)
            await asyncio.to_thread(redis_server.start)
            await becomes(there, "dead", ("failed", "idle"))
            await run.append(data="2")

        assert await data_of(there, "alive") == ["1", "2"]
        assert await ending(there, "alive") == ("done", None)


async def test_silent_producer_outlives_a_server_that_hangs(valkey: RedisServer) -> None:
    async with two_nodes(valkey) as (here, there), here.run("answer", **ADDRESS, idle=2):
        valkey.signal(signal.SIGSTOP)
        await asyncio.sleep(6)
        valkey.signal(signal.SIGCONT)
        await asyncio.sleep(7)

        await becomes(there, "answer", ("open", None))


async def becomes(hub: Hub, name: str, ending: tuple[str, str | None]) -> None:
    """Return when this is the state and the error of a run. The store may be away at first."""
    async with asyncio.timeout(15):
        for seconds in itertools.repeat(0.05):
            with contextlib.suppress(Unavailable):
                run = await hub.runs.get(name)
                if run is not None and (run.state, run.error) == ending:
                    return
            await asyncio.sleep(seconds)


async def test_runs_of_a_node_that_closes_have_ended_for_the_others(valkey: RedisServer) -> None:
    async def silent() -> AsyncIterator[str]:
        yield "1"
        await asyncio.Event().wait()

    async with two_nodes(valkey) as (here, there):
        started = [await here.start_run(f"answer-{number}", silent(), **ADDRESS) for number in range(20)]
        await here.aclose()

        assert {await one.wait() for one in started} == {(RunState.FAILED, "shutdown")}
        assert {await ending(there, one.name) for one in started} == {(RunState.FAILED, "shutdown")}
