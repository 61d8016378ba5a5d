"""The contract of a store of runs (`ssehub.runs.store`), checked for every broker: creation, states, reading, listing.

`run_worlds.py` says how to check the store of another broker.
"""

from __future__ import annotations

import pytest

from run_worlds import DONE, FAILED, NAME, OPTIONS_BYTES, RunWorld, key, numbered, options, ticket
from ssehub.errors import BrokerUnavailable, ConflictReason, IdempotencyConflict, RunConflict, UnknownRun
from ssehub.position import Position
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import EVENT_OVERHEAD_BYTES, Outcome, RunError, RunState
from ssehub.runs.store import Append, CreateMode, Creation, RunFilter

pytest_plugins = ["redis_fixtures", "run_fixtures"]
pytestmark = pytest.mark.anyio

NEW, RESTART, TAKEOVER, JOIN = CreateMode


# Creation


async def test_new_run_is_open_and_empty(world: RunWorld) -> None:
    async with world.running() as node:
        asked = options(["alex", "sam"], ["chat", "news"], keep=7, idle=9, announce="run", stoppable=True)
        created = await node.store.create(NAME, Creation(asked))
        run = await node.get()

        assert created.is_new and created.run.generation == 1
        assert (run.name, run.options, run.generation, run.log) == (NAME, asked, 1, created.run.log)
        assert (run.state, run.error, run.events, run.bytes, run.last) == (RunState.OPEN, None, 0, 0, 0)
        assert run.created_at > 1e9 and run.ended_at is None
        assert Position.parse(str(run.position(1))) == Position(1, 0, run.log)
        assert await node.data() == []


async def test_there_is_no_run_that_was_not_created(world: RunWorld) -> None:
    async with world.running() as node:
        assert await node.store.get(NAME) is None
        assert await node.store.read(NAME, "log", 0, 100) is None
        for call in (
            node.append("1"),
            node.append(outcome=DONE),
            node.store.finish(NAME, DONE),
            node.store.stop(NAME),
            node.store.delete(NAME),
        ):
            with pytest.raises(UnknownRun, match="there is no run 'answer'"):
                await call
        await node.store.release(NAME, ticket())


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_open_run_is_not_created_again(world: RunWorld, is_stopping: bool) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.append("1", "2")
        if is_stopping:
            await node.store.stop(NAME)
        with pytest.raises(RunConflict, match="has not ended") as refused:
            await node.create()

        assert refused.value.reason is ConflictReason.OPEN
        state = RunState.STOPPING if is_stopping else RunState.OPEN
        assert (refused.value.generation, refused.value.state, refused.value.events) == (1, state, 2)


@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize("mode", CreateMode, ids=str)
async def test_only_the_expected_generation_is_replaced(world: RunWorld, mode: CreateMode, has_ended: bool) -> None:
    async with world.running() as node:
        with pytest.raises(UnknownRun):
            await node.create(mode=mode, expected=1)
        assert (await node.create(mode=mode, expected=0)).is_new
        await node.create(mode=RESTART, expected=1, key=key("k"), holder=ticket())
        await node.append("1", outcome=DONE if has_ended else None)
        for expected in (0, 1, 3):
            for same in (None, key("k")):
                with pytest.raises(RunConflict, match=f"has generation 2, not {expected}") as refused:
                    await node.create(mode=mode, expected=expected, key=same, holder=ticket("q"))
                assert (refused.value.reason, refused.value.generation) == (ConflictReason.STALE, 2)
        run = await node.get()
        assert (run.generation, run.events, run.state.is_end) == (2, 1, has_ended)
        assert not (await node.create(mode=mode, expected=2, key=key("k"))).is_new

        if mode is not NEW or has_ended:
            assert (await node.create(mode=mode, expected=2)).is_new is (mode is not JOIN or has_ended)


async def test_only_the_named_generation_is_deleted(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.create(mode=RESTART)
        for generation in (0, 1, 3):
            with pytest.raises(RunConflict, match=f"has generation 2, not {generation}"):
                await node.store.delete(NAME, generation)
        assert (await node.get()).state is RunState.OPEN

        assert (await node.store.delete(NAME, 2)).generation == 2
        for generation in (0, 2):
            with pytest.raises(UnknownRun):
                await node.store.delete(NAME, generation)


@pytest.mark.parametrize("outcome", [DONE, FAILED, Outcome(RunState.STOPPED)], ids=lambda outcome: outcome.state)
@pytest.mark.parametrize("mode", [NEW, RESTART, JOIN], ids=str)
async def test_next_generation_after_an_end_is_empty(world: RunWorld, mode: CreateMode, outcome: Outcome) -> None:
    async with world.running() as node:
        first = (await node.create()).run.log
        await node.append("1", "2", outcome=outcome)
        created = await node.create(mode=mode, users=["sam"])
        run = await node.get()

        assert created.is_new and run.generation == 2 and run.log != first
        assert (run.state, run.error, run.events, run.bytes, run.ended_at) == (RunState.OPEN, None, 0, 0, None)
        assert run.options.users == ("sam",)
        assert await node.store.read(NAME, first, 0, 100) is None
        await node.append("3", by=ticket("q"))
        assert await node.data() == ["3"]


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_restart_of_an_open_run_drops_its_events(world: RunWorld, is_stopping: bool) -> None:
    async with world.running() as node:
        first = (await node.create(holder=ticket())).run.log
        await node.append("1", "2")
        if is_stopping:
            await node.store.stop(NAME)
        created = await node.create(mode=RESTART)
        run = await node.get()

        assert created.is_new and run.generation == 2 and run.log != first
        assert (run.state, run.events, run.bytes) == (RunState.OPEN, 0, 0)
        assert node.store.totals().bytes == OPTIONS_BYTES


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_takeover_of_an_open_run_keeps_its_events_and_its_log(world: RunWorld, is_stopping: bool) -> None:
    async with world.running() as node:
        first = (await node.create(holder=ticket())).run.log
        await node.append("1", "2")
        if is_stopping:
            await node.store.stop(NAME)
        size = (await node.get()).bytes
        created = await node.create(mode=TAKEOVER, users=["sam"])
        run = await node.get()

        assert created.is_new and run.generation == 2 and run.log == first
        assert (run.state, run.events, run.bytes) == (RunState.OPEN, 2, size)
        assert run.options.users == ("sam",)
        await node.append("3", by=ticket("q"))
        assert await node.data() == ["1", "2", "3"]


async def test_takeover_of_an_ended_run_keeps_its_events_in_another_log(world: RunWorld) -> None:
    """The ordinal of the end is that of the next event now: a client that has seen the end would miss the event."""
    async with world.running() as node:
        first = (await node.create()).run.log
        await node.append("1", "2", outcome=FAILED)
        created = await node.create(mode=TAKEOVER)
        await node.append("3", by=ticket("q"))
        run = await node.get()

        assert created.is_new and run.generation == 2 and run.log != first
        assert (run.state, run.error, run.events) == (RunState.OPEN, None, 3)
        assert await node.data() == ["1", "2", "3"]
        assert await node.store.read(NAME, first, 0, 100) is None


@pytest.mark.parametrize("mode", [NEW, RESTART, TAKEOVER, JOIN], ids=str)
async def test_every_mode_creates_a_run_that_is_not_there(world: RunWorld, mode: CreateMode) -> None:
    async with world.running() as node:
        created = await node.create(mode=mode)

        assert created.is_new and created.run.generation == 1 and created.run.events == 0


async def test_joining_an_open_run_creates_nothing(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        await node.store.release(NAME, ticket())
        created = await node.create(mode=JOIN, users=["sam"], holder=ticket("q"))

        assert not created.is_new and (created.run.generation, created.run.events) == (1, 1)
        assert (await node.get()).options.users == ("alex",)
        assert len(node.transitions) == 1


# Idempotency keys


async def test_creating_again_with_the_same_key_creates_nothing(world: RunWorld) -> None:
    async with world.running() as node:
        first = await node.create(key=key("k"))
        await node.append("1")
        while_open = await node.create(key=key("k"))
        await node.store.finish(NAME, DONE)
        after_the_end = await node.create(key=key("k"))

        assert (first.is_new, while_open.is_new, after_the_end.is_new) == (True, False, False)
        assert (after_the_end.run.generation, after_the_end.run.state) == (1, RunState.DONE)
        assert [state for _, _, state in node.transitions] == [RunState.OPEN, RunState.DONE]


@pytest.mark.parametrize("mode", [RESTART, TAKEOVER], ids=str)
async def test_restart_and_takeover_with_a_key_happen_once(world: RunWorld, mode: CreateMode) -> None:
    async with world.running() as node:
        await node.create()
        answers = [await node.create(mode=mode, key=key("k")) for _ in range(3)]

        assert [(answer.is_new, answer.run.generation) for answer in answers] == [(True, 2), (False, 2), (False, 2)]


async def test_key_used_with_another_body_is_refused(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(key=key("k"))
        with pytest.raises(IdempotencyConflict, match="different body"):
            await node.create(key=key("k", "other"))

        assert (await node.get()).generation == 1


async def test_key_is_forgotten_when_another_call_has_created_the_run_anew(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(key=key("k"))
        await node.store.finish(NAME, DONE)
        await node.create(key=key("l"))
        with pytest.raises(RunConflict, match="has not ended"):
            await node.create(key=key("k"))
        await node.store.finish(NAME, DONE)
        again = await node.create(key=key("k"))

        assert again.is_new and again.run.generation == 3


# Ends


@pytest.mark.parametrize("outcome", [DONE, FAILED, Outcome(RunState.STOPPED)], ids=lambda outcome: outcome.state)
async def test_finished_run_has_its_outcome(world: RunWorld, outcome: Outcome) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        finished = await node.store.finish(NAME, outcome, 1)
        run = await node.get()

        assert finished.state is run.state is outcome.state
        assert run.error == outcome.error
        assert (run.events, run.last) == (1, 2)
        assert run.ended_at is not None and run.ended_at >= run.created_at - 1
        assert await node.data() == ["1"]


async def test_finishing_again_changes_nothing_but_otherwise_is_refused(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.store.finish(NAME, FAILED)
        again = await node.store.finish(NAME, Outcome(RunState.FAILED, "other"))
        with pytest.raises(RunConflict, match="has ended as failed") as refused:
            await node.store.finish(NAME, DONE)

        assert again.error == (await node.get()).error == FAILED.error
        assert refused.value.reason is ConflictReason.ENDED
        assert refused.value.error == FAILED.error
        assert len(node.transitions) == 2


async def test_append_after_the_end_is_refused(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        await node.store.finish(NAME, DONE)
        for step in (Append(ticket(), [RunEvent("2")]), Append(ticket()), Append(ticket("q"), is_first=True)):
            with pytest.raises(RunConflict, match="has ended as done") as refused:
                await node.store.append(NAME, step)

            assert refused.value.reason is ConflictReason.ENDED
            assert (refused.value.state, refused.value.events) == (RunState.DONE, 1)
        assert await node.data() == ["1"]


async def test_last_events_and_the_end_are_one_step(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        listener = await node.follow()
        appended = await node.append("1", "2", outcome=DONE)

        assert appended == (1, 2, RunState.DONE)
        assert await node.data() == ["1", "2"]
        assert [(told.state, told.data) for told in listener.told[-1:]] == [(RunState.DONE, ["1", "2"])]


# Stop


async def test_producer_that_is_alive_has_time_to_stop(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.append("1", is_first=False)
        stopping = await node.store.stop(NAME, 1)
        assert stopping.state is RunState.STOPPING
        for step in (
            Append(ticket(), [RunEvent("2")]),
            Append(ticket()),
            Append(ticket(), [RunEvent("2")], outcome=DONE),
        ):
            with pytest.raises(RunConflict, match="was stopped") as refused:
                await node.store.append(NAME, step)
            assert refused.value.reason is ConflictReason.STOPPED
        assert (await node.get()).state is RunState.STOPPING
        await node.store.release(NAME, ticket())

        run = await node.get()
        assert (run.state, run.error, run.events) == (RunState.STOPPED, None, 1)
        assert [state for _, _, state in node.transitions] == [RunState.OPEN, RunState.STOPPED]


@pytest.mark.parametrize("outcome", [DONE, Outcome(RunState.STOPPED), FAILED], ids=lambda outcome: outcome.state)
@pytest.mark.parametrize("by", ["append", "finish"])
async def test_run_that_is_to_stop_ends_as_stopped_unless_it_failed(world: RunWorld, by: str, outcome: Outcome) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.store.stop(NAME)
        if by == "append":
            await node.append(outcome=outcome, is_first=False)
        else:
            await node.store.finish(NAME, outcome)

        run = await node.get()
        assert run.state is (RunState.FAILED if outcome is FAILED else RunState.STOPPED)
        assert run.error == outcome.error


@pytest.mark.parametrize("was_held", [False, True])
async def test_run_without_a_producer_has_stopped_at_once(world: RunWorld, was_held: bool) -> None:
    async with world.running() as node:
        await node.create()
        if was_held:
            await node.append("1")
            await node.store.release(NAME, ticket())
        run = await node.store.stop(NAME)

        assert run.state is (await node.get()).state is RunState.STOPPED


async def test_stopping_again_or_after_the_end_changes_nothing(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.store.stop(NAME)
        again = await node.store.stop(NAME)
        assert again.state is RunState.STOPPING
        await node.store.finish(NAME, FAILED)

        assert (await node.store.stop(NAME)).state is RunState.FAILED
        assert len(node.transitions) == 2


async def test_producer_that_does_not_stop_is_not_waited_for(world: RunWorld) -> None:
    async with world.running(run_stop_seconds=5) as node:
        await node.create(holder=ticket())
        await node.store.stop(NAME)
        world.pass_seconds(6)

        await node.ends(RunState.STOPPED)


# Deletion


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_deleted_run_has_failed_and_is_gone(world: RunWorld, is_stopping: bool) -> None:
    async with world.running() as node:
        log = (await node.create(holder=ticket())).run.log
        await node.append("1")
        if is_stopping:
            await node.store.stop(NAME)
        run = await node.store.delete(NAME)

        assert (run.state, run.error, run.generation, run.events) == (RunState.FAILED, RunError.DELETED, 1, 1)
        assert await node.store.get(NAME) is None
        assert await node.store.read(NAME, log, 0, 100) is None
        assert await node.store.list_runs(RunFilter()) == []
        assert node.store.totals().bytes == sum(node.store.totals().states.values()) == 0
        assert node.transitions[1:] == [(NAME, 1, RunState.FAILED)]
        with pytest.raises(UnknownRun):
            await node.append("2", is_first=False)


async def test_ended_run_is_deleted_as_it_was(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", outcome=DONE)
        run = await node.store.delete(NAME)

        assert (run.state, run.error, run.events) == (RunState.DONE, None, 1)
        assert len(node.transitions) == 2


async def test_generation_goes_on_after_a_deletion(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.create(mode=RESTART)
        first = await node.store.delete(NAME)
        second = (await node.create(key=key("k"))).run
        assert (second.generation, second.events) == (3, 0)
        assert second.log != first.log
        await node.store.delete(NAME)

        assert (await node.create(key=key("k"))).run.generation == 4


# Events


async def test_event_is_read_as_it_was_appended(world: RunWorld) -> None:
    stored = [
        RunEvent("line\u2028\r\n\0é"),
        RunEvent(""),
        RunEvent("x" * 100_000, "token", "my id", 5),
        RunEvent("[1]", None, None, 0),
        RunEvent("\U0001f600", "é"),
    ]
    async with world.running() as node:
        log = (await node.create()).run.log
        await node.store.append(NAME, Append(ticket(), stored, True))

        assert await node.store.read(NAME, log, 0, 10**6) == stored
        run = await node.get()
        assert run.bytes == sum(event.size + EVENT_OVERHEAD_BYTES for event in stored)
        assert node.store.totals().bytes == run.bytes + OPTIONS_BYTES


async def test_page_has_as_many_events_as_bytes_allow_but_at_least_one(world: RunWorld) -> None:
    async with world.running() as node:
        log = (await node.create()).run.log
        await node.append(*["x" * 68] * 10)

        async def page(after: int, max_bytes: int) -> int:
            found = await node.store.read(NAME, log, after, max_bytes)
            assert found is not None
            return len(found)

        assert [await page(0, size) for size in (1, 100, 199, 200, 350, 1_000, 5_000)] == [1, 1, 1, 2, 3, 10, 10]
        assert [await page(after, 300) for after in (1, 7, 8, 9, 10, 11)] == [3, 3, 2, 1, 0, 0]


async def test_appended_events_are_numbered_and_counted(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        counts = [(await node.append(*numbered(n * 10 + 1, n * 10 + 10))).events for n in range(20)]

        assert counts == list(range(10, 201, 10))
        assert await node.data() == numbered(1, 200)
        assert await node.data(after=150) == numbered(151, 200)


# Lists


async def test_runs_are_listed_in_the_order_of_their_names_page_by_page(world: RunWorld) -> None:
    names = sorted(["b", "a", "B", "é", "\U0001f600", "a b", "a%", "\ufb01", *numbered(1, 20)])
    async with world.running() as node:
        for name in reversed(names):
            await node.create(name)
        found: list[str] = []
        while page := await node.store.list_runs(RunFilter(), found[-1] if found else None, 6):
            assert len(page) <= 6
            found += [run.name for run in page]

        assert found == names
        assert [run.name for run in await node.store.list_runs(RunFilter(), "a!")] == names[names.index("a%") :]


async def test_runs_are_listed_by_user_channel_and_state(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create("1", users=["alex", "sam"], channels=["chat", "news"])
        await node.create("2", users=["*"], channels=["news"])
        await node.create("3", users=["sam"])
        await node.create("4", users=["alex"], holder=ticket())
        await node.store.finish("1", DONE)
        await node.store.stop("4")

        async def names(user: str | None = None, channel: str | None = None, *states: RunState) -> list[str]:
            wanted = RunFilter(user, channel, frozenset(states) if states else None)
            return [run.name for run in await node.store.list_runs(wanted)]

        assert await names() == ["1", "2", "3", "4"]
        assert await names("alex") == ["1", "2", "4"]
        assert await names("nobody") == ["2"]
        assert await names("*") == ["2"]
        assert await names(None, "news") == ["1", "2"]
        assert await names("sam", "chat") == ["1", "3"]
        assert await names(None, "none") == []
        assert await names("alex", None, RunState.OPEN) == ["2"]
        assert await names("alex", None, RunState.OPEN, RunState.STOPPING) == ["2", "4"]
        assert await names("alex", "chat", RunState.DONE) == ["1"]
        await node.create("3", RESTART, users=["alex"])
        await node.store.delete("1")
        assert await names("sam") == ["2"]
        assert await names("alex") == ["2", "3", "4"]


async def test_page_is_full_although_most_runs_do_not_match(world: RunWorld) -> None:
    async with world.running() as node:
        for number in range(300):
            await node.create(f"{number:03}", users=["sam" if number % 100 else "alex"])
        found = await node.store.list_runs(RunFilter("alex"), None, 2)
        rest = await node.store.list_runs(RunFilter("alex"), found[-1].name, 2)

        assert [run.name for run in found + rest] == ["000", "100", "200"]


# The store


async def test_totals_count_runs_by_state_and_their_bytes(world: RunWorld) -> None:
    async with world.running() as node:
        for name, outcome in (("1", DONE), ("2", FAILED), ("3", None), ("4", None)):
            await node.create(name, holder=ticket())
            await node.append("x" * 68, name=name, outcome=outcome, is_first=False)
        await node.store.stop("4")
        totals = node.store.totals()

        assert totals.bytes == 400 + 4 * OPTIONS_BYTES
        assert totals.states == {
            RunState.OPEN: 1,
            RunState.STOPPING: 1,
            RunState.DONE: 1,
            RunState.FAILED: 1,
            RunState.STOPPED: 0,
        }


async def test_calls_are_refused_before_and_after_running(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
    fresh = world.broker().runs

    for store in (fresh, node.store):
        for call in (
            store.create(NAME, Creation(options())),
            store.append(NAME, Append(ticket())),
            store.release(NAME, ticket()),
            store.finish(NAME, DONE),
            store.stop(NAME),
            store.delete(NAME),
            store.get(NAME),
            store.read(NAME, "log", 0, 100),
            store.list_runs(RunFilter()),
        ):
            with pytest.raises(BrokerUnavailable):
                await call
    assert fresh.outlives_process is world.is_durable
