"""The block of a producer: how it is interrupted while it waits, and who else may cancel it at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from itertools import product

import anyio
import pytest

from conftest import report, until
from run_stores import ADDRESS, ending, faulty_hub, run_of
from ssehub import Hub, ProducedRun, RunState
from ssehub.errors import RunConflict, RunInterrupted, RunStopped, StaleRun
from ssehub.runs.model import RunOptions
from ssehub.runs.store import CreateMode, Creation

pytestmark = pytest.mark.anyio

OPTIONS = RunOptions(("chat",), ("alex",))


async def wait_for_ever(run: ProducedRun) -> None:
    await asyncio.Event().wait()


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def require_usable_task() -> None:
    """Fail if anything of a cancellation is left in this task."""
    assert cancelling() == 0
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.sleep(0.001)


async def test_stop_interrupts_a_body_that_waits_for_ever() -> None:
    async with Hub() as hub:
        with pytest.raises(RunStopped, match="run 'answer' was stopped"):
            async with hub.run("answer", **ADDRESS) as run:
                await run.append(data="one")
                await hub.runs.stop("answer")
                await wait_for_ever(run)

        assert await ending(hub, "answer") == ("stopped", None)
        assert run.state is RunState.STOPPED
        assert run.is_stopped
        await require_usable_task()


async def test_stop_by_another_task_is_seen_in_milliseconds() -> None:
    async with Hub() as hub:
        entered, stopping = list[str](), dict[str, float]()
        seconds = list[float]()

        async def produce(name: str) -> None:
            with contextlib.suppress(RunStopped):
                async with hub.run(name, **ADDRESS) as run:
                    entered.append(name)
                    try:
                        await wait_for_ever(run)
                    finally:
                        seconds.append(time.perf_counter() - stopping[name])

        names = [f"answer-{number}" for number in range(100)]
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(produce(name))
            await until(lambda: len(entered) == len(names))
            for name in names:
                stopping[name] = time.perf_counter()
                await hub.runs.stop(name)
                await asyncio.sleep(0.001)

        p99 = statistics.quantiles(seconds, n=100)[98]
        report(f"from stop to the producer's exception: p99 {1000 * p99:.2f} ms")
        assert len(seconds) == 100
        assert p99 < 0.1


async def test_stop_after_the_body_has_ended_raises_run_stopped() -> None:
    async with Hub() as hub:
        with pytest.raises(RunStopped):
            async with hub.run("answer", **ADDRESS):
                await hub.runs.stop("answer")  # told within this call: the body ends without another wait

        assert await ending(hub, "answer") == ("stopped", None)
        await require_usable_task()


@pytest.mark.parametrize("iterations", range(8))
async def test_stop_before_the_block_was_entered_is_not_missed(iterations: int) -> None:
    async with Hub() as hub:

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS) as run:
                await wait_for_ever(run)

        task = asyncio.create_task(produce())
        while not hub.runs.totals().states[RunState.OPEN]:  # noqa: ASYNC110  # each iteration counts
            await asyncio.sleep(0)
        for _ in range(iterations):
            await asyncio.sleep(0)
        await hub.runs.stop("answer")

        with pytest.raises(RunStopped):
            await asyncio.wait_for(task, 5)
        assert await ending(hub, "answer") == ("stopped", None)


@pytest.mark.parametrize("error", [None, ValueError])
async def test_stop_while_the_last_events_are_being_stored(
    error: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with faulty_hub() as (hub, store):

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS) as run:
                store.may_answer.clear()
                appending.append(asyncio.create_task(run.append(data="late")))
                await asyncio.sleep(0)
                if error is not None:
                    raise error

        appending = list[asyncio.Task[int]]()
        task = asyncio.create_task(produce())
        await until(lambda: store.steps)
        await hub.runs.stop("answer")
        store.may_answer.set()

        with pytest.raises(error or RunStopped):
            await asyncio.wait_for(task, 5)
        await asyncio.wait(appending)
        assert isinstance(appending[0].exception(), RunInterrupted | RunConflict)
        assert await ending(hub, "answer") == ("stopped", None)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_body_that_swallows_the_cancellation_can_append_nothing() -> None:
    async with Hub() as hub:
        with pytest.raises(RunStopped):
            async with hub.run("answer", **ADDRESS) as run:
                await hub.runs.stop("answer")
                with contextlib.suppress(asyncio.CancelledError):
                    await wait_for_ever(run)
                for _ in range(2):
                    with pytest.raises(RunStopped):
                        await run.append(data="late")

        assert (await run_of(hub, "answer")).events == 0
        await require_usable_task()


async def test_error_in_the_cleanup_of_a_stopped_body_is_raised() -> None:
    async with Hub() as hub:
        with pytest.raises(ValueError, match="cleanup") as raised:
            async with hub.run("answer", **ADDRESS) as run:
                await hub.runs.stop("answer")
                try:
                    await wait_for_ever(run)
                finally:
                    raise ValueError("cleanup")

        assert isinstance(raised.value.__context__, asyncio.CancelledError)
        assert await ending(hub, "answer") == ("stopped", None)
        await require_usable_task()


async def test_other_generation_interrupts_the_old_producer() -> None:
    async with Hub() as hub:
        for mode in (CreateMode.RESTART, CreateMode.TAKEOVER):
            with pytest.raises(StaleRun, match="generation"):
                async with hub.run(mode.value, **ADDRESS) as run:
                    await hub.runs.create(mode.value, Creation(OPTIONS, mode))
                    await wait_for_ever(run)

            assert await ending(hub, mode.value) == ("open", None)
        await require_usable_task()


async def test_deleted_run_interrupts_its_producer() -> None:
    async with Hub() as hub:
        with pytest.raises(StaleRun, match="run 'answer' was deleted"):
            async with hub.run("answer", **ADDRESS) as run:
                await hub.runs.delete("answer")
                await wait_for_ever(run)

        assert await hub.runs.get("answer") is None


async def test_late_stop_of_an_older_generation_interrupts_nobody() -> None:
    async with Hub() as hub:
        async with hub.run("answer", **ADDRESS) as run:
            pass
        async with hub.run("answer", **ADDRESS) as run:
            with contextlib.suppress(Exception):
                await hub.runs.stop("answer", generation=1)
            await asyncio.sleep(0)
            await run.append(data="unharmed")

        assert run.generation == 2
        assert await ending(hub, "answer") == ("done", None)


# Cancelled from outside, too


async def test_cancelled_block_stays_cancelled_though_it_was_stopped_before() -> None:
    async with Hub() as hub:
        entered = asyncio.Event()

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS) as run:
                entered.set()
                await wait_for_ever(run)

        for stop_first in (True, False):
            task = asyncio.create_task(produce())
            await until(entered.is_set)
            entered.clear()
            if stop_first:
                await hub.runs.stop("answer")
                task.cancel()
            else:
                task.cancel()
                await hub.runs.stop("answer")
            await asyncio.wait([task], timeout=5)

            assert task.cancelled()
            assert (await ending(hub, "answer")).state is RunState.STOPPED


async def test_timeout_around_the_block_is_a_timeout() -> None:
    async with Hub() as hub:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), hub.run("answer", **ADDRESS) as run:
                await wait_for_ever(run)
        assert await ending(hub, "answer") == ("failed", "cancelled")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout, hub.run("answer", **ADDRESS) as run:
                timeout.reschedule(0)
                await asyncio.sleep(0)
                await hub.runs.stop("answer")
                await wait_for_ever(run)
        await require_usable_task()


async def test_stop_ends_a_timeout_within_the_block_without_timeout_error() -> None:
    async with Hub() as hub:

        async def expire_and_stop(inner: asyncio.Timeout) -> None:
            inner.reschedule(0)  # cancels the task in the next iteration of the event loop
            await hub.runs.stop("answer")

        with pytest.raises(RunStopped):
            async with hub.run("answer", **ADDRESS) as run, asyncio.timeout(None) as timeout:
                both = asyncio.create_task(expire_and_stop(timeout))
                await wait_for_ever(run)
        await both
        await require_usable_task()


async def test_timeout_within_the_block_leaves_the_block_usable() -> None:
    async with Hub() as hub:
        async with hub.run("answer", **ADDRESS) as run:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await wait_for_ever(run)
            await run.append(data="goes on")

        assert await ending(hub, "answer") == ("done", None)


async def test_blocks_within_blocks_are_interrupted_one_by_one() -> None:
    async with Hub() as hub:
        async with hub.run("outer", **ADDRESS) as outer:
            with pytest.raises(RunStopped, match="inner"):
                async with hub.run("inner", **ADDRESS) as inner:
                    await hub.runs.stop("inner")
                    await wait_for_ever(inner)
            await outer.append(data="goes on")
        assert await ending(hub, "outer") == ("done", None)

        with pytest.raises(RunStopped, match="outer"):
            async with hub.run("outer", **ADDRESS), hub.run("inner", **ADDRESS) as inner:
                await hub.runs.stop("outer")
                await wait_for_ever(inner)
        assert await ending(hub, "outer") == ("stopped", None)
        assert await ending(hub, "inner") == ("failed", "cancelled")

        with pytest.raises(RunStopped, match="outer"):
            async with hub.run("outer", **ADDRESS), hub.run("inner", **ADDRESS) as inner:
                await hub.runs.stop("inner")
                await hub.runs.stop("outer")
                await wait_for_ever(inner)
        assert await ending(hub, "inner") == ("stopped", None)
        await require_usable_task()


# Task groups


async def test_stop_ends_a_task_group_within_the_block() -> None:
    async with Hub() as hub:

        async def append_for_ever(run: ProducedRun) -> None:
            while True:
                await run.append(data="x")
                await asyncio.sleep(0)

        for works in ([append_for_ever], [wait_for_ever], [append_for_ever, append_for_ever, wait_for_ever]):
            with pytest.raises(RunStopped):
                async with hub.run("answer", **ADDRESS) as run, asyncio.TaskGroup() as group:
                    for work in works:
                        group.create_task(work(run))
                    await asyncio.sleep(0.002)
                    await hub.runs.stop("answer")
                    await wait_for_ever(run)

            assert await ending(hub, "answer") == ("stopped", None)
            await require_usable_task()


async def test_stop_of_a_block_within_a_task_group_fails_that_task_alone() -> None:
    async with Hub() as hub:

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS) as run:
                await hub.runs.stop("answer")
                await wait_for_ever(run)

        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                group.create_task(produce())
                await asyncio.Event().wait()

        assert [type(exc) for exc in raised.value.exceptions] == [RunStopped]
        await require_usable_task()


async def test_error_of_a_group_within_the_block_is_raised_though_the_run_was_stopped() -> None:
    async with Hub() as hub:

        async def fail(run: ProducedRun) -> None:
            try:
                await wait_for_ever(run)
            finally:
                raise ValueError("of a child")

        with pytest.raises(ExceptionGroup) as raised:
            async with hub.run("answer", **ADDRESS) as run, asyncio.TaskGroup() as group:
                group.create_task(fail(run))
                await asyncio.sleep(0)
                await hub.runs.stop("answer")
                await wait_for_ever(run)

        assert [type(exc) for exc in raised.value.exceptions] == [ValueError]
        assert await ending(hub, "answer") == ("stopped", None)
        await require_usable_task()


# anyio, which Starlette and FastAPI use


async def test_stop_ends_scopes_of_anyio_within_the_block() -> None:
    async with Hub() as hub:
        with pytest.raises(RunStopped):
            async with hub.run("answer", **ADDRESS) as run:
                with anyio.fail_after(60):
                    async with anyio.create_task_group() as group:
                        group.start_soon(wait_for_ever, run)
                        await hub.runs.stop("answer")
                        await wait_for_ever(run)

        assert await ending(hub, "answer") == ("stopped", None)
        await require_usable_task()


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_scope_of_anyio_around_the_block_is_cancelled_as_usual(is_stopped: bool) -> None:
    async with Hub() as hub:
        with anyio.CancelScope() as scope:
            async with hub.run("answer", **ADDRESS) as run:
                scope.cancel()
                if is_stopped:
                    await hub.runs.stop("answer")
                await wait_for_ever(run)
        await until(lambda: not hub.runs.totals().states[RunState.OPEN])

        assert scope.cancelled_caught
        await require_usable_task()
        await until(lambda: hub.runs.totals().states[RunState.STOPPED if is_stopped else RunState.FAILED])


# Races


async def _pass(iterations: int) -> None:
    for _ in range(iterations):
        await asyncio.sleep(0)


async def test_any_interleaving_of_stop_cancellation_and_end_has_one_clean_result() -> None:
    """Each combination of when the body ends, when it is stopped, and when it is cancelled: 1,000 of them."""
    combinations = list(product(range(10), range(10), range(10)))
    random.Random(17).shuffle(combinations)
    results = dict[str, str]()
    async with Hub() as hub:

        async def produce(name: str, ends_after: int, entered: asyncio.Event) -> None:
            try:
                async with hub.run(name, **ADDRESS) as run:
                    entered.set()
                    await run.append(data="x")
                    await _pass(ends_after)
            except RunStopped:
                results[name] = "stopped"
            except asyncio.CancelledError:
                results[name] = "cancelled"
                raise
            else:
                results[name] = "done"
            await require_usable_task()

        async def stop(name: str, after: int) -> None:
            await _pass(after)
            await hub.runs.stop(name)

        for number, (ends_after, stopped_after, cancelled_after) in enumerate(combinations):
            name, entered = f"answer-{number}", asyncio.Event()
            producing = asyncio.create_task(produce(name, ends_after, entered))
            await entered.wait()
            stopping = asyncio.create_task(stop(name, stopped_after))
            await _pass(cancelled_after)
            was_cancelled = cancelled_after != 9 and producing.cancel()  # in a tenth of them, nobody cancels
            await asyncio.wait([producing, stopping], timeout=5)

            state = (await ending(hub, name)).state
            assert producing.cancelled() is was_cancelled, name
            assert state == results[name] or (results[name] == "cancelled" and state.is_end), name

    counts = Counter(results.values())
    report(f"results of interleavings: {counts}")
    assert counts.total() == 1_000
    assert min(counts["done"], counts["stopped"], counts["cancelled"]) > 20
