"""Runs that a thread produces: `hub.run_sync`, from the threads of an application to the hub's event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import until
from run_stores import ADDRESS, data_of, ending, faulty_hub, run_of
from run_worlds import OPTIONS_BYTES
from ssehub import AsyncPublisher, Hub, RunState, SyncProducedRun
from ssehub.errors import HubClosed, InvalidEvent, InvalidRequest, RunConflict, RunStopped, StaleRun, WrongEventLoop
from ssehub.runs.model import RunOptions
from ssehub.runs.store import CreateMode, Creation

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0


async def test_thread_produces_a_run() -> None:
    async with Hub() as hub:

        def work() -> SyncProducedRun:
            with hub.run_sync("job", **ADDRESS, stoppable=True) as run:
                assert run.append(data={"percent": 50}, type="progress") == 1
                assert run.append(data="text") == 2
            return run

        run = await asyncio.to_thread(work)

        assert await data_of(hub, "job") == ['{"percent":50}', "text"]
        assert await ending(hub, "job") == ("done", None)
        assert (run.state, run.generation, run.events) == ("done", 1, 2)


async def test_exception_in_a_thread_fails_the_run() -> None:
    async with Hub() as hub:

        def work() -> None:
            with hub.run_sync("job", **ADDRESS):
                raise ZeroDivisionError("secret")

        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(work)

        assert await ending(hub, "job") == ("failed", "ZeroDivisionError")


async def test_exception_in_a_thread_does_not_wait_long_for_a_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ssehub.runs.producer.LEAVE_SECONDS", 0.1)
    async with faulty_hub() as (hub, store):

        def work() -> None:
            with hub.run_sync("job", **ADDRESS):
                store.is_reachable = False
                raise ZeroDivisionError

        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(work)
        store.is_reachable = True
        await until(lambda: not hub.runs.totals().states[RunState.OPEN])

        assert await ending(hub, "job") == ("failed", "ZeroDivisionError")
    assert "run 'job' could not be ended as failed: no answer in time" in caplog.text


async def test_thread_says_more_about_its_failure() -> None:
    async with Hub() as hub:

        def work() -> None:
            with hub.run_sync("job", **ADDRESS) as run:
                run.fail("The file has no header.")
                with pytest.raises(RunConflict):
                    run.append(data="late")
                with pytest.raises(RunConflict):
                    run.finish()

        await asyncio.to_thread(work)

        assert await ending(hub, "job") == ("failed", "The file has no header.")


async def test_next_append_raises_that_the_run_was_stopped() -> None:
    async with Hub() as hub:
        has_appended, may_append = threading.Event(), threading.Event()

        def work() -> None:
            with hub.run_sync("job", **ADDRESS) as run:
                run.append(data="1")
                assert not run.is_stopped
                has_appended.set()
                assert may_append.wait(WAIT_SECONDS)
                assert run.is_stopped
                run.append(data="2")

        working = asyncio.create_task(asyncio.to_thread(work))
        await until(has_appended.is_set)
        await hub.runs.stop("job")
        may_append.set()
        with pytest.raises(RunStopped, match="run 'job' was stopped"):
            await working

        assert await ending(hub, "job") == ("stopped", None)
        assert await data_of(hub, "job") == ["1"]


async def stop_while_it_looks(hub: Hub, when_stopped: Callable[[], None]) -> SyncProducedRun:
    """Stop a run whose thread looks at `is_stopped`, and then calls `when_stopped` inside the block."""
    runs = list[SyncProducedRun]()

    def work() -> None:
        with hub.run_sync("job", **ADDRESS) as run:
            runs.append(run)
            deadline = time.monotonic() + WAIT_SECONDS
            while not run.is_stopped and time.monotonic() < deadline:
                time.sleep(0.001)
            when_stopped()

    working = asyncio.create_task(asyncio.to_thread(work))
    await until(lambda: runs)
    await hub.runs.stop("job")
    try:
        await working
    except RunStopped:
        return runs[0]
    raise AssertionError("leaving the block did not raise RunStopped")


async def test_thread_that_looks_at_is_stopped_ends_early_and_leaving_says_so() -> None:
    async with Hub() as hub:
        run = await stop_while_it_looks(hub, lambda: None)

        assert await ending(hub, "job") == ("stopped", None)
        assert run.state is RunState.STOPPED


async def test_exception_after_the_stop_is_raised_and_the_run_has_stopped() -> None:
    def fail() -> None:
        raise KeyError("of the job")

    async with Hub() as hub:
        with pytest.raises(KeyError):
            await stop_while_it_looks(hub, fail)

        assert await ending(hub, "job") == ("stopped", None)


async def test_thread_of_an_older_generation_appends_nothing() -> None:
    async with Hub() as hub:
        may_append = threading.Event()

        def work() -> None:
            with hub.run_sync("job", **ADDRESS) as run:
                run.append(data="old")
                assert may_append.wait(WAIT_SECONDS)
                run.append(data="stale")

        working = asyncio.create_task(asyncio.to_thread(work))
        await until(lambda: hub.runs.totals().bytes > OPTIONS_BYTES)
        await hub.runs.create("job", Creation(RunOptions(("chat",), ("alex",)), CreateMode.RESTART))
        may_append.set()
        with pytest.raises(StaleRun):
            await working

        assert (await run_of(hub, "job")).events == 0


async def test_threads_share_a_run() -> None:
    async with Hub() as hub:

        def work() -> None:
            with hub.run_sync("job", **ADDRESS) as run, ThreadPoolExecutor(8) as pool:
                ordinals = list(pool.map(lambda number: run.append(data=number), range(200)))
                assert sorted(ordinals) == list(range(1, 201))

        await asyncio.to_thread(work)

        assert sorted(map(int, await data_of(hub, "job"))) == list(range(200))
        assert await ending(hub, "job") == ("done", None)


async def test_block_in_the_thread_of_the_hub_is_refused() -> None:
    async with Hub() as hub:
        with pytest.raises(WrongEventLoop, match="would block the event loop"), hub.run_sync("job", **ADDRESS):
            pass

        assert await hub.runs.get("job") is None


def refuse_argument(hub: Hub) -> None:
    hub.run_sync("a/b", **ADDRESS)


def refuse_second_entry(hub: Hub) -> None:
    with hub.run_sync("job", **ADDRESS) as run, run:
        pass


def refuse_early_append(hub: Hub) -> None:
    hub.run_sync("job", **ADDRESS).append(data="x")


def refuse_event(hub: Hub) -> None:
    with hub.run_sync("job", **ADDRESS) as run:
        run.append(data=object())


def refuse_keyword(hub: Hub) -> None:
    hub.run_sync("job", **ADDRESS, chanel="chat")  # type: ignore[call-arg]


def refuse_missing_channel(hub: Hub) -> None:
    hub.run_sync("job", user_id="alex")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (refuse_argument, InvalidRequest),
        (refuse_second_entry, InvalidRequest),
        (refuse_early_append, InvalidRequest),
        (refuse_event, InvalidEvent),
        (refuse_keyword, TypeError),
        (refuse_missing_channel, TypeError),
    ],
)
async def test_wrong_use_in_a_thread_is_refused(use: Callable[[Hub], None], error: type[Exception]) -> None:
    async with Hub() as hub:
        with pytest.raises(error):
            await asyncio.to_thread(use, hub)


def test_misspelled_argument_is_named_with_those_there_are() -> None:
    hub = Hub()
    for call in (hub.run, hub.run_sync, AsyncPublisher().run):
        with pytest.raises(TypeError, match="unexpected keyword argument 'chanel': expected channel, user_id, keep"):
            call("job", **ADDRESS, chanel="chat")  # type: ignore[call-arg]


def test_hub_that_does_not_run_produces_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HubClosed, match="not running"), Hub().run_sync("job", **ADDRESS):
            pass
        gc.collect()


async def test_thread_is_told_that_the_hub_was_closed() -> None:
    may_append = threading.Event()
    async with Hub() as hub:

        def work() -> None:
            with hub.run_sync("job", **ADDRESS) as run:
                run.append(data="1")
                assert may_append.wait(WAIT_SECONDS)
                run.append(data="2")

        working = asyncio.create_task(asyncio.to_thread(work))
        await until(lambda: hub.runs.totals().bytes > OPTIONS_BYTES)
    may_append.set()
    with pytest.raises(HubClosed):
        await working
    async with hub:
        assert await ending(hub, "job") == ("failed", "shutdown")
