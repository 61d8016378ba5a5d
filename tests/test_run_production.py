"""Runs that are produced in process: what the block stores, what ends it, and tasks that the hub owns."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import until
from run_stores import ADDRESS, FaultyRuns, data_of, ending, faulty_hub, run_of
from run_worlds import OPTIONS_BYTES
from ssehub import Hub, ProducedRun, RunEvent, RunState
from ssehub.brokers import create_broker
from ssehub.errors import (
    ConflictReason,
    HubClosed,
    InvalidEvent,
    InvalidRequest,
    Overloaded,
    RunConflict,
    RunLost,
    RunStopped,
    SSEHubError,
    StaleRun,
    Unavailable,
)
from ssehub.runs import local, producing
from ssehub.runs.model import Outcome
from ssehub.settings import RunLimits
from ssehub.testing import ManualHub

pytestmark = pytest.mark.anyio


async def words(*given: object) -> AsyncIterator[object]:
    for word in given:
        await asyncio.sleep(0)
        yield word


# The block


async def test_block_stores_its_events_and_ends_the_run() -> None:
    async with Hub() as hub:
        async with hub.run("answer", **ADDRESS, stoppable=True, announce="run", keep=60) as run:
            ordinals = [
                await run.append(data="Hello"),
                await run.append(data={"text": "Grüße"}, type="delta", id="chunk-2", retry=1000),
            ]
            state_inside = run.state
        stored = await run_of(hub, "answer")
        events = await hub.runs.read("answer", stored.log, 0, 2**20)

        assert ordinals == [1, 2]
        assert (state_inside, run.state) == ("open", "done")
        assert (run.name, run.generation, run.events) == ("answer", 1, 2)
        assert events == [RunEvent("Hello"), RunEvent('{"text":"Grüße"}', "delta", "chunk-2", 1000)]
        assert await ending(hub, "answer") == ("done", None)
        assert (stored.options.channels, stored.options.users) == (("chat",), ("alex",))
        assert (stored.options.keep, stored.options.idle) == (60, 60)
        assert (stored.options.announce, stored.options.stoppable) == ("run", True)


async def test_hub_starts_when_the_block_is_entered() -> None:
    hub = Hub()
    run = hub.run("answer", **ADDRESS)

    async with run:
        await run.append(data="x")

    assert await data_of(hub, "answer") == ["x"]
    await hub.aclose()


class ModelOverloadedError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "name"),
    [
        pytest.param(ModelOverloadedError("key sk-1234"), "ModelOverloadedError", id="exception"),
        pytest.param(ExceptionGroup("tasks", [ExceptionGroup("more", [OSError(5, "secret")])]), "OSError", id="group"),
        pytest.param(ExceptionGroup("tasks", [OSError(), ValueError()]), "ExceptionGroup", id="group of several"),
        pytest.param(SystemExit(3), "SystemExit", id="exit"),
    ],
)
async def test_exception_fails_the_run_and_watchers_read_only_its_class(error: BaseException, name: str) -> None:
    async with Hub() as hub:
        with pytest.raises(type(error)) as raised:
            async with hub.run("answer", **ADDRESS) as run:
                await run.append(data="half")
                raise error

        assert raised.value is error
        assert await ending(hub, "answer") == ("failed", name)
        assert run.state is RunState.FAILED


async def test_cancelled_block_fails_as_cancelled() -> None:
    async with Hub() as hub:
        entered = asyncio.Event()

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(produce())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert await ending(hub, "answer") == ("failed", "cancelled")


async def test_fail_tells_watchers_more() -> None:
    async with Hub() as hub:
        with pytest.raises(ModelOverloadedError):
            async with hub.run("answer", **ADDRESS) as run:
                try:
                    raise ModelOverloadedError
                except ModelOverloadedError:
                    await run.fail("The model is overloaded: ask again in a minute.")
                    raise

        assert await ending(hub, "answer") == ("failed", "The model is overloaded: ask again in a minute.")


async def test_run_that_was_finished_takes_nothing_more_and_the_block_goes_on() -> None:
    async with Hub() as hub:
        async with hub.run("answer", **ADDRESS) as run:
            await run.append(data="all")
            await run.finish()
            for call in (run.append(data="late"), run.finish(), run.fail("late")):
                with pytest.raises(RunConflict, match="has ended") as refused:
                    await call
                assert refused.value.reason is ConflictReason.ENDED
            await hub.runs.stop("answer")
            await asyncio.sleep(0.001)

        assert await data_of(hub, "answer") == ["all"]
        assert await ending(hub, "answer") == ("done", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a/b"}, "contains '/'"),
        ({"name": ""}, "run is empty"),
        ({"channel": []}, "channel is missing"),
        ({"user_id": "a\nb"}, "userId .* line break"),
        ({"keep": -1}, "keep -1 is not a number of seconds"),
        ({"idle": 0}, "idle 0 is not a number of seconds"),
        ({"announce": "stream-run"}, "announce 'stream-run' begins with"),
        ({"stoppable": 1}, "stoppable must be true or false"),
        ({"restart": True, "takeover": True}, "give one of them"),
    ],
)
async def test_arguments_that_cannot_be_used_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    hub = Hub()

    with pytest.raises(InvalidRequest, match=message):
        hub.run(**{"name": "answer", **ADDRESS, **arguments})
    with pytest.raises(TypeError, match="lifetime"):
        hub.run("answer", **ADDRESS, lifetime=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": object()}, "can't be written as JSON"),
        ({"data": "\ud800"}, "lone surrogate"),
        ({"data": "x", "type": "stream-end"}, "reserved for the hub"),
        ({"data": "x", "id": "1-0.abcdefgh"}, "looks like a position"),
        ({"data": "x", "retry": -1}, "retry -1"),
    ],
)
async def test_event_that_cannot_be_sent_is_refused_and_the_block_goes_on(fields: dict[str, Any], message: str) -> None:
    async with Hub() as hub:
        async with hub.run("answer", **ADDRESS) as run:
            with pytest.raises(InvalidEvent, match=message):
                await run.append(**fields)
            await run.append(data="fine")

        assert await data_of(hub, "answer") == ["fine"]


async def test_run_is_used_inside_its_block_and_once() -> None:
    async with Hub() as hub:
        run = hub.run("answer", **ADDRESS)
        with pytest.raises(InvalidRequest, match="inside its `with` block"):
            await run.append(data="early")
        async with run:
            with pytest.raises(InvalidRequest, match="entered before"):
                async with run:
                    pass
            await run.append(data="x")

        with pytest.raises(InvalidRequest, match="entered before"):
            async with run:
                pass


# Other producers of the same name


async def test_open_run_is_not_begun_anew_by_accident() -> None:
    async with Hub() as hub, hub.run("answer", **ADDRESS) as first:
        with pytest.raises(RunConflict) as refused:
            async with hub.run("answer", **ADDRESS):
                pass
        await first.append(data="unharmed")

        assert refused.value.reason is ConflictReason.OPEN


async def test_next_run_of_a_name_begins_after_the_first_has_ended() -> None:
    async with Hub() as hub:
        for word in ("first", "second"):
            async with hub.run("answer", **ADDRESS) as run:
                await run.append(data=word)

        assert run.generation == 2
        assert await data_of(hub, "answer") == ["second"]


async def test_restart_drops_the_events_and_takeover_keeps_them() -> None:
    async with Hub() as hub:

        async def append_and_wait(data: str, *, restart: bool = False) -> None:
            async with hub.run("answer", **ADDRESS, restart=restart) as run:
                await run.append(data=data)
                await asyncio.Event().wait()

        first = asyncio.create_task(append_and_wait("1"))
        await until(lambda: hub.runs.totals().bytes > OPTIONS_BYTES)
        second = asyncio.create_task(append_and_wait("2", restart=True))
        await asyncio.wait([first], timeout=5)
        await until(lambda: hub.runs.totals().bytes > OPTIONS_BYTES)
        async with hub.run("answer", **ADDRESS, takeover=True) as third:
            events = third.events
            ordinal = await third.append(data="3")
        await asyncio.wait([second], timeout=5)

        assert [type(task.exception()) for task in (first, second)] == [StaleRun, StaleRun]
        assert (events, ordinal) == (1, 2)
        assert await data_of(hub, "answer") == ["2", "3"]
        assert await ending(hub, "answer") == ("done", None)


async def test_run_that_somebody_else_has_ended_is_stale() -> None:
    async with Hub() as hub:
        with pytest.raises(StaleRun, match=r"was ended by somebody else, as failed \(by hand\)"):
            async with hub.run("answer", **ADDRESS):
                await hub.runs.finish("answer", Outcome(RunState.FAILED, "by hand"))
                await asyncio.Event().wait()


# Appending


async def test_events_that_come_together_are_stored_in_one_step() -> None:
    async with faulty_hub() as (hub, store):
        async with hub.run("answer", **ADDRESS) as run:
            ordinals = await asyncio.gather(*(run.append(data=number) for number in range(100)))
            steps = list(store.steps)

        assert ordinals == [100] * 100 or sorted(ordinals) == list(range(1, 101))
        assert [len(step.events) for step in steps] == [100]
        assert await data_of(hub, "answer") == [str(number) for number in range(100)]


async def test_each_of_the_events_that_come_together_has_its_ordinal() -> None:
    async with faulty_hub() as (hub, store):
        async with hub.run("answer", **ADDRESS) as run:
            store.may_answer.clear()
            first = asyncio.create_task(run.append(data="1"))
            await until(lambda: len(store.steps) == 1)
            others = [asyncio.create_task(run.append_events([RunEvent("x")] * count)) for count in (1, 3, 2)]
            await asyncio.sleep(0)
            store.may_answer.set()

            assert await asyncio.gather(first, *others) == [1, 2, 5, 7]
        assert [len(step.events) for step in store.steps] == [1, 6, 0]
        assert [step.offset for step in store.steps] == [0, 1, 7]


async def test_append_returns_when_the_event_is_stored() -> None:
    async with faulty_hub() as (hub, store), hub.run("answer", **ADDRESS) as run:
        store.may_answer.clear()
        appending = asyncio.create_task(run.append(data="x"))
        await until(lambda: store.steps)
        await asyncio.sleep(0.01)

        assert not appending.done()
        store.may_answer.set()
        assert await appending == 1


async def test_appends_wait_beyond_the_bytes_that_may_be_unsent() -> None:
    async with faulty_hub() as (hub, store):
        async with hub.run("answer", **ADDRESS) as run:
            store.may_answer.clear()
            sent = asyncio.create_task(run.append(data="first"))
            await until(lambda: len(store.steps) == 1)
            tasks = [asyncio.create_task(run.append(data="x" * 300_000)) for _ in range(10)]
            await asyncio.sleep(0.01)
            store.may_answer.set()
            await asyncio.gather(sent, *tasks)

        sizes = [sum(event.size for event in step.events) for step in store.steps]
        assert max(sizes) <= local.MAX_UNSENT_BYTES
        assert sum(sizes) == 3_000_005


async def test_event_larger_than_what_may_be_unsent_is_stored() -> None:
    async with Hub() as hub:
        async with hub.run("answer", **ADDRESS) as run:
            await run.append(data="x" * 2_000_000)

        assert (await run_of(hub, "answer")).bytes > 2_000_000


async def test_cancelled_append_is_stored_at_most_once_and_in_its_place() -> None:
    async with faulty_hub() as (hub, store):
        async with hub.run("answer", **ADDRESS) as run:
            store.may_answer.clear()
            for data in ("1", "2"):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await run.append(data=data)
            store.may_answer.set()
            await run.append(data="3")

        assert await data_of(hub, "answer") == ["1", "2", "3"]
        assert await ending(hub, "answer") == ("done", None)


async def test_what_was_appended_by_other_tasks_stands_before_the_end() -> None:
    async with faulty_hub() as (hub, _):
        async with hub.run("answer", **ADDRESS) as run:
            tasks = [asyncio.create_task(run.append(data=number)) for number in range(3)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

        assert await data_of(hub, "answer") == ["0", "1", "2"]
        assert await ending(hub, "answer") == ("done", None)


async def test_run_that_becomes_too_large_fails_and_its_block_is_interrupted() -> None:
    async with faulty_hub(RunLimits(run_bytes=10_000)) as (hub, _):
        with pytest.raises(RunConflict) as refused:
            async with hub.run("answer", **ADDRESS) as run:
                for _ in range(100):
                    await run.append(data="x" * 1_000)

        assert refused.value.reason is ConflictReason.TOO_LARGE
        assert await ending(hub, "answer") == ("failed", "too-large")


async def test_full_store_refuses_an_event_and_the_block_may_go_on() -> None:
    async with faulty_hub() as (hub, store):
        async with hub.run("answer", **ADDRESS) as run:
            await run.append(data="1")
            store.is_full = True
            with pytest.raises(Overloaded):
                await run.append(data="dropped")
            store.is_full = False
            assert await run.append(data="2") == 2

        assert await data_of(hub, "answer") == ["1", "2"]


# The store is away


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GIVE_UP_SECONDS", 0.2)


@pytest.mark.parametrize("loses_answers", [False, True], ids=["unreachable", "answers lost"])
async def test_producer_goes_on_when_the_store_was_away(loses_answers: bool) -> None:
    async with faulty_hub() as (hub, store):

        async def go_away() -> None:
            for _ in range(5):
                await asyncio.sleep(0.01)
                store.is_reachable, store.loses_answers = loses_answers, loses_answers
                await asyncio.sleep(0.02)
                store.is_reachable, store.loses_answers = True, False

        going_away = asyncio.create_task(go_away())
        async with hub.run("answer", **ADDRESS) as run:
            count = 0
            while not going_away.done():
                ordinals = await asyncio.gather(*(run.append(data=count + number) for number in range(10)))
                count += 10
                assert sorted(ordinals) == list(range(count - 9, count + 1))
                await asyncio.sleep(0.001)
            store.loses_answers = loses_answers
            asyncio.get_running_loop().call_later(0.05, setattr, store, "loses_answers", False)

        assert await data_of(hub, "answer") == [str(number) for number in range(count)]
        assert await ending(hub, "answer") == ("done", None)


@pytest.mark.usefixtures("short_patience")
async def test_producer_gives_up_when_the_store_stays_away() -> None:
    async with faulty_hub() as (hub, store):
        with pytest.raises(Unavailable, match="has been unavailable"):
            async with hub.run("answer", **ADDRESS) as run:
                await run.append(data="1")
                store.is_reachable = False
                await run.append(data="2")

        assert await ending(hub, "answer") == ("open", None)  # nobody shows a sign of life: it fails as idle


@pytest.mark.usefixtures("short_patience")
async def test_block_that_fails_while_the_store_is_away_raises_its_own_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with faulty_hub() as (hub, store):
        with pytest.raises(ModelOverloadedError):
            async with hub.run("answer", **ADDRESS):
                store.is_reachable = False
                raise ModelOverloadedError

    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "run 'answer' could not be ended as failed: run 'answer': the store has been unavailable for 0.2 s, and does "
        "not have all events"
    ]


@pytest.mark.usefixtures("short_patience")
async def test_block_without_an_error_raises_that_its_end_is_not_stored() -> None:
    async with faulty_hub() as (hub, store):
        with pytest.raises(Unavailable):
            async with hub.run("answer", **ADDRESS):
                store.is_reachable = False


async def lose_all(store: FaultyRuns, hub: Hub) -> None:
    store.lose("answer")


async def lose_tail(store: FaultyRuns, hub: Hub) -> None:
    run = await run_of(hub, "answer")
    run.events -= 1


@pytest.mark.parametrize("lose", [lose_all, lose_tail])
async def test_block_raises_run_lost_when_the_store_has_lost_events(
    lose: Callable[[FaultyRuns, Hub], Awaitable[None]],
) -> None:
    async with faulty_hub() as (hub, store):
        with pytest.raises(RunLost, match=r"lost|no run"):
            async with hub.run("answer", **ADDRESS) as run:
                await run.append(data="1")
                await lose(store, hub)
                await run.append(data="2")


async def test_error_in_the_store_reaches_the_producer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    async with faulty_hub() as (hub, store):
        with pytest.raises(Unavailable, match="ZeroDivisionError"):
            async with hub.run("answer", **ADDRESS) as run:
                monkeypatch.setattr(store, "append", fail)
                await run.append(data="1")

    assert "ZeroDivisionError: a bug" in caplog.text


async def test_producer_that_is_cancelled_while_its_run_is_created_leaves_none_open() -> None:
    async with faulty_hub() as (hub, store):

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS):
                entered.append(iterations)
                await asyncio.Event().wait()

        entered = list[int]()
        for iterations in range(8):
            store.may_answer.clear()
            task = asyncio.create_task(produce())
            await asyncio.sleep(0.001)
            store.may_answer.set()
            for _ in range(iterations):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await until(lambda: hub.runs.totals().states[RunState.FAILED])

            assert await ending(hub, "answer") == ("failed", "cancelled")
            assert (await run_of(hub, "answer")).generation == iterations + 1
            await hub.runs.delete("answer")
        assert (0 in entered, 7 in entered) == (False, True)


# Signs of life


async def test_silent_run_lives_while_its_producer_does() -> None:
    async with ManualHub() as hub:
        async with hub.run("answer", **ADDRESS) as run:
            await hub.pass_seconds(20 * 60)
            await run.append(data="after a long tool call")

        assert await ending(hub, "answer") == ("done", None)


async def test_run_whose_producer_is_gone_fails_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ManualHub() as hub:
        with pytest.raises(StaleRun, match="idle"):
            async with hub.run("answer", **ADDRESS):
                monkeypatch.setattr(local.LocalWriter, "beat", lambda self: None)
                await hub.pass_seconds(59)
                before = await ending(hub, "answer")
                await hub.pass_seconds(2)
                await asyncio.Event().wait()

        assert before == ("open", None)
        assert await ending(hub, "answer") == ("failed", "idle")


async def test_sign_of_life_is_shown_when_nothing_was_appended_for_15_seconds() -> None:
    async with ManualHub() as hub:
        store = FaultyRuns()
        hub.runs._store = store
        async with store.running(), hub.run("answer", **ADDRESS) as run:
            for _ in range(10):
                await hub.pass_seconds(14)
                await run.append(data="x")
            busy = sum(not step.events for step in store.steps)
            await hub.pass_seconds(61)
            silent = sum(not step.events for step in store.steps)

            assert (busy, silent) == (0, 4)


async def test_run_with_a_short_idle_time_lives() -> None:
    async with Hub() as hub:
        async with hub.run("long", **ADDRESS), hub.run("short", **ADDRESS, idle=1):
            await asyncio.sleep(1.7)

        assert await ending(hub, "short") == ("done", None)


async def test_one_task_shows_the_signs_of_life_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producing, "TICK_SECONDS", 0.05)
    async with Hub() as hub:
        async with contextlib.AsyncExitStack() as stack, hub.run("first", **ADDRESS):
            one = len(asyncio.all_tasks())
            for number in range(200):
                await stack.enter_async_context(hub.run(f"answer-{number}", **ADDRESS))
            await asyncio.sleep(0.001)
            many = len(asyncio.all_tasks())
        await until(lambda: len(asyncio.all_tasks()) < one, seconds=3)

    assert many == one


# The hub stops


@pytest.mark.parametrize("stop", ["drain", "aclose"])
async def test_runs_end_with_the_hub_and_watchers_are_told_before(stop: str) -> None:
    hub = ManualHub()
    recorded = await hub.record(channel="chat", user_id="alex")

    async def produce() -> None:
        async with hub.run("answer", **ADDRESS, announce="run") as run:
            await run.append(data="1")
            await asyncio.Event().wait()

    task = asyncio.create_task(produce())
    await until(lambda: hub.runs.totals().states[RunState.OPEN])
    await hub.flush()
    stopping = hub.drain(1) if stop == "drain" else hub.aclose()
    await asyncio.wait_for(stopping, 5)

    with pytest.raises(HubClosed, match="'shutdown'"):
        await task
    announced = [json.loads(message.data)["state"] for message in recorded.messages if message.type == "run"]
    assert announced == ["open", "failed"]
    await hub.aclose()


async def test_producer_may_close_its_own_hub() -> None:
    hub, tasks = Hub(), asyncio.all_tasks()
    with pytest.raises(HubClosed, match="'shutdown'"):
        async with hub.run("answer", **ADDRESS) as run:
            await run.append(data="1")
            await hub.aclose()
    await until(lambda: asyncio.all_tasks() <= tasks)

    with pytest.raises(HubClosed, match="has been closed"):
        await hub.start()


async def test_ends_of_runs_are_stored_before_the_broker_stops(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    appended = asyncio.Event()

    async def produce(hub: Hub) -> None:
        async with hub.run("answer", **ADDRESS) as run:
            await run.append(data="1")
            appended.set()
            await asyncio.Event().wait()

    async with Hub(create_broker(url)) as hub:
        task = asyncio.create_task(produce(hub))
        await until(appended.is_set)
    with pytest.raises(HubClosed):
        await task
    async with Hub(create_broker(url)) as hub:
        assert await ending(hub, "answer") == ("failed", "shutdown")
        assert await data_of(hub, "answer") == ["1"]


async def test_end_that_is_being_stored_is_waited_for_when_the_hub_closes() -> None:
    async with faulty_hub() as (hub, store):

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS):
                store.may_answer.clear()

        task = asyncio.create_task(produce())
        await until(lambda: store.steps)
        closing = asyncio.create_task(hub.aclose())
        await asyncio.sleep(0.01)
        store.may_answer.set()
        await task
        await closing
        async with hub:
            assert await ending(hub, "answer") == ("done", None)


async def test_hub_closes_while_the_store_is_away() -> None:
    async with faulty_hub() as (hub, store):

        async def produce() -> None:
            async with hub.run("answer", **ADDRESS) as run:
                store.is_reachable = False
                await run.append(data="x")

        task = asyncio.create_task(produce())
        await until(lambda: store.steps)
        async with asyncio.timeout(3):
            await hub.aclose()
            with pytest.raises(HubClosed):
                await task


async def test_run_that_is_being_created_ends_with_the_hub() -> None:
    async with faulty_hub() as (hub, store):
        store.may_answer.clear()
        starting = [asyncio.create_task(hub.start_run(f"answer-{number}", words(), **ADDRESS)) for number in range(3)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(hub.aclose())
        await asyncio.sleep(0.01)
        store.may_answer.set()
        results = await asyncio.gather(*starting, return_exceptions=True)
        await closing

        assert [type(result) for result in results] == [HubClosed] * 3
        async with hub:
            assert {await ending(hub, f"answer-{number}") for number in range(3)} == {("failed", "shutdown")}


@pytest.mark.parametrize("iterations", range(12))
async def test_nobody_waits_for_ever_for_a_hub_that_closes(iterations: int) -> None:
    hub = Hub()
    await hub.start()

    async def produce(name: str) -> None:
        async with hub.run(name, **ADDRESS) as run:
            while True:
                await run.append(data="x")

    closing = asyncio.create_task(hub.aclose())
    tasks = list[asyncio.Task[None]]()
    for number in range(iterations + 1):
        tasks.append(asyncio.create_task(produce(f"answer-{number}")))
        await asyncio.sleep(0)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    await closing

    assert {type(result) for result in results} == {HubClosed}


async def test_run_is_not_created_while_the_hub_drains() -> None:
    async with Hub() as hub:
        await hub.drain(0)
        with pytest.raises(HubClosed, match="was not created"):
            await hub.start_run("answer", words(), **ADDRESS)


async def test_run_in_a_hub_that_was_closed_raises_hub_closed() -> None:
    async with Hub() as hub:
        pass

    with pytest.raises(HubClosed):
        async with hub.run("answer", **ADDRESS):
            pass


def test_hub_produces_runs_in_one_event_loop_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producing, "TICK_SECONDS", 0.05)
    hub = Hub()

    async def produce(name: str) -> None:
        async with hub, hub.run(name, **ADDRESS) as run:
            await run.append(data="x")
            await asyncio.sleep(0.15)

    async def abandon() -> None:
        await hub.start()
        await hub.run("abandoned", **ADDRESS).__aenter__()

    asyncio.run(abandon())
    for name in ("first", "second"):
        asyncio.run(produce(name))


# Tasks that the hub owns


async def test_started_run_appends_all_items_and_ends() -> None:
    async with Hub() as hub:
        items = words("Hello", {"text": "world"}, 7, None, RunEvent("typed", "delta", "id-5"), RunEvent("{}", retry=5))
        started = await hub.start_run("answer", items, **ADDRESS)
        outcome = await asyncio.wait_for(started.wait(), 5)
        run = await run_of(hub, "answer")
        events = await hub.runs.read("answer", run.log, 0, 2**20)

        assert outcome == ("done", None)
        assert (started.name, started.generation, started.events) == ("answer", 1, 6)
        assert events == [
            RunEvent("Hello"),
            RunEvent('{"text":"world"}'),
            RunEvent("7"),
            RunEvent("null"),
            RunEvent("typed", "delta", "id-5"),
            RunEvent("{}", retry=5),
        ]


async def test_started_run_outlives_the_task_that_started_it() -> None:
    async with Hub() as hub:
        may_end = asyncio.Event()

        async def model() -> AsyncIterator[str]:
            yield "1"
            await may_end.wait()
            yield "2"

        async def handle_request() -> None:
            started = await hub.start_run("answer", model(), **ADDRESS)
            await started.wait()

        request = asyncio.create_task(handle_request())
        await until(lambda: hub.runs.totals().bytes > OPTIONS_BYTES)
        request.cancel()
        await asyncio.wait([request])
        gc.collect()
        may_end.set()
        await until(lambda: hub.runs.totals().states[RunState.DONE])

        assert await data_of(hub, "answer") == ["1", "2"]


async def test_exception_of_the_iterator_fails_the_run_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def model() -> AsyncIterator[str]:
        yield "half"
        raise ModelOverloadedError("key sk-1234")

    async with Hub() as hub:
        started = await hub.start_run("answer", model(), **ADDRESS)
        outcome = await asyncio.wait_for(started.wait(), 5)
        stored = await ending(hub, "answer")
    gc.collect()

    assert outcome == stored == ("failed", "ModelOverloadedError")
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in logged] == ["run 'answer' has failed"]
    assert logged[0].exc_info is not None
    assert isinstance(logged[0].exc_info[1], ModelOverloadedError)


async def test_item_that_cannot_be_sent_fails_the_run(caplog: pytest.LogCaptureFixture) -> None:
    async with Hub() as hub:
        started = await hub.start_run("answer", words("fine", b"bytes"), **ADDRESS)

        assert await started.wait() == ("failed", "InvalidEvent")
        assert await data_of(hub, "answer") == ["fine"]
    assert "can't be written as JSON" in caplog.text


@pytest.mark.parametrize("where", ["waiting", "appending"])
async def test_stopped_iterator_is_closed_with_its_cleanup(where: str, caplog: pytest.LogCaptureFixture) -> None:
    closed = list[str]()

    async def model() -> AsyncIterator[str]:
        try:
            yield "1"
            if where == "waiting":
                await asyncio.Event().wait()
            while True:
                yield "more"
        finally:
            await asyncio.sleep(0)
            closed.append("cleanup")

    async with faulty_hub() as (hub, store):
        started = await hub.start_run("answer", model(), **ADDRESS)
        await until(lambda: len(store.steps) >= 1 + (where == "appending"))
        await started.stop()
        outcome = await asyncio.wait_for(started.wait(), 5)

        assert outcome == await ending(hub, "answer") == ("stopped", None)
        assert closed == ["cleanup"]
        await started.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_started_run_that_is_not_its_own_any_more_says_so() -> None:
    async def model() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    async with Hub() as hub:
        first = await hub.start_run("answer", model(), **ADDRESS)
        second = await hub.start_run("answer", words("2"), **ADDRESS, restart=True)

        assert await first.wait() == ("failed", "StaleRun")
        assert await second.wait() == ("done", None)


async def test_start_raises_what_prevents_it_and_leaves_the_iterator_alone() -> None:
    async with Hub() as hub:
        items = words("1")
        async with hub.run("answer", **ADDRESS):
            with pytest.raises(RunConflict):
                await hub.start_run("answer", items, **ADDRESS)
        with pytest.raises(InvalidRequest, match="takes an async iterator, not list"):
            await hub.start_run("answer", ["1"], **ADDRESS)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"takes an async iterator, not function: give it model\(\)"):
            await hub.start_run("answer", words, **ADDRESS)  # type: ignore[arg-type]

        await (await hub.start_run("answer", items, **ADDRESS)).wait()
        assert await data_of(hub, "answer") == ["1"]


async def test_start_that_is_cancelled_starts_nothing() -> None:
    async with faulty_hub() as (hub, store):
        store.may_answer.clear()
        starting = asyncio.create_task(hub.start_run("answer", words("1"), **ADDRESS))
        await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
        store.may_answer.set()
        await until(lambda: hub.runs.totals().states[RunState.FAILED])

        assert await ending(hub, "answer") == ("failed", "cancelled")
        assert await data_of(hub, "answer") == []


async def test_started_runs_end_with_the_hub() -> None:
    closed = list[int]()

    async def model(number: int) -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
                await asyncio.sleep(0.001)
        finally:
            closed.append(number)

    hub = Hub()
    async with hub:
        started = [await hub.start_run(f"answer-{number}", model(number), **ADDRESS) for number in range(50)]
        await asyncio.sleep(0.01)

    assert sorted(closed) == list(range(50))
    assert {await one.wait() for one in started} == {("failed", "shutdown")}
    async with hub:
        assert {await ending(hub, f"answer-{number}") for number in range(50)} == {("failed", "shutdown")}


async def test_iterator_that_does_not_end_does_not_keep_the_hub(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ssehub.hub.PRODUCERS_SECONDS", 0.05)
    may_end = asyncio.Event()

    async def stubborn() -> AsyncIterator[str]:
        yield "x"
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    async with Hub() as hub:
        started = await hub.start_run("answer", stubborn(), **ADDRESS)
        await until(lambda: started.events)
        async with asyncio.timeout(2):
            await hub.aclose()

    assert "1 producers of runs have not ended in 0.1 s" in caplog.text
    may_end.set()
    assert await started.wait() == ("failed", "shutdown")


async def test_block_in_an_async_generator_fails_when_the_generator_is_closed() -> None:
    async def stream(hub: Hub) -> AsyncIterator[str]:
        async with hub.run("answer", **ADDRESS) as run:
            while True:
                await run.append(data="x")
                yield "x"

    async with Hub() as hub:
        generator = stream(hub)
        await anext(generator)
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]

        assert await ending(hub, "answer") == ("failed", "cancelled")


def test_errors_of_interruptions_have_one_base() -> None:
    for error in (RunStopped, StaleRun, RunLost):
        assert issubclass(error, SSEHubError)
        assert error("x").status == 409


async def test_memory_of_an_open_run_that_is_produced() -> None:
    async with Hub() as hub:
        runs = list[ProducedRun]()
        gc.collect()
        before = len(gc.get_objects())
        for number in range(100):
            run = hub.run(f"answer-{number}", **ADDRESS)
            runs.append(await run.__aenter__())
        gc.collect()
        after = len(gc.get_objects())

        assert (after - before) / 100 < 25
        for run in runs:
            await run.__aexit__(None, None, None)
