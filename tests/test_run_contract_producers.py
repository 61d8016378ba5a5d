"""The contract of a store of runs, checked for every broker: who may append, and that nothing is there twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import until
from run_worlds import DONE, FAILED, NAME, Node, RunWorld, events, key, numbered, ticket
from ssehub.errors import ConflictReason, RunConflict, UnknownRun
from ssehub.runs.model import RunState
from ssehub.runs.store import LEASE_SECONDS, Append, CreateMode, Ticket

pytest_plugins = ["redis_fixtures", "run_fixtures"]
pytestmark = pytest.mark.anyio

NEW, RESTART, TAKEOVER, JOIN = CreateMode


async def refusal(node: Node, *data: str, by: Ticket, **step: Any) -> RunConflict:
    """Return the conflict that refuses this step."""
    before = await node.data()
    with pytest.raises(RunConflict) as refused:
        await node.append(*data, by=by, **step)
    assert await node.data() == before
    return refused.value


# Generations


@pytest.mark.parametrize("mode", [RESTART, TAKEOVER], ids=str)
async def test_nothing_of_an_older_generation_changes_the_run(world: RunWorld, mode: CreateMode) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.append("1", is_first=False)
        await node.create(mode=mode)
        kept = await node.data()

        late = await refusal(node, "late", by=ticket(), generation=1, is_first=False)
        again = await refusal(node, "late", by=ticket("p", 2), generation=1)
        silent = await refusal(node, by=ticket(), is_first=False)
        end = await refusal(node, by=ticket(), is_first=False, outcome=DONE)
        assert {late.reason, again.reason, silent.reason, end.reason} == {ConflictReason.STALE}
        assert (late.generation, late.state, late.events) == (2, RunState.OPEN, len(kept))
        assert "generation 2" in str(late)
        await node.store.release(NAME, ticket())
        for call in (node.store.finish(NAME, DONE, 1), node.store.stop(NAME, 1)):
            with pytest.raises(RunConflict) as refused:
                await call
            assert refused.value.reason is ConflictReason.STALE
        run = await node.get()
        assert (run.state, run.generation) == (RunState.OPEN, 2)
        assert await node.data() == kept


async def test_nothing_of_a_deleted_run_reaches_the_one_created_after_it(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.append("1", is_first=False)
        await node.store.delete(NAME)
        with pytest.raises(UnknownRun):
            await node.append("late", is_first=False)
        generation = (await node.create()).run.generation

        assert generation == 2
        assert (await refusal(node, "late", by=ticket(), generation=1)).reason is ConflictReason.STALE
        assert (await refusal(node, "late", by=ticket(), is_first=False)).reason is ConflictReason.STALE
        with pytest.raises(RunConflict):
            await node.store.stop(NAME, 1)
        await node.store.release(NAME, ticket())
        await node.append("new", by=ticket("q"), generation=2)
        assert await node.data() == ["new"]


async def test_late_stop_and_end_of_an_ended_generation_are_refused(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", outcome=DONE)
        await node.create(holder=ticket("q"))
        for call in (node.store.stop(NAME, 1), node.store.finish(NAME, DONE, 1), node.store.finish(NAME, FAILED, 7)):
            with pytest.raises(RunConflict):
                await call

        assert (await node.get()).state is RunState.OPEN


async def test_holder_of_a_new_generation_appends_at_once(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.create(mode=TAKEOVER, holder=ticket("q"))
        await node.append("1", by=ticket("q"), is_first=False, generation=2)

        assert (await refusal(node, "2", by=ticket(), is_first=False)).reason is ConflictReason.PRODUCER
        assert await node.data() == ["1"]


# Producers


async def test_other_producer_is_refused_until_the_first_has_released_the_run(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        refused = await refusal(node, "2", by=ticket("q"))
        silent = await refusal(node, by=ticket("q"))
        end = await refusal(node, by=ticket("q"), outcome=DONE)
        assert {refused.reason, silent.reason, end.reason} == {ConflictReason.PRODUCER}
        await node.append("2", is_first=False)
        await node.store.release(NAME, ticket())
        await node.append("3", by=ticket("q"))

        assert (await refusal(node, "4", by=ticket())).reason is ConflictReason.PRODUCER
        assert await node.data() == ["1", "2", "3"]


async def test_step_without_events_claims_the_run(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        assert await node.append() == (1, 0, RunState.OPEN)

        assert (await refusal(node, "x", by=ticket("q"))).reason is ConflictReason.PRODUCER


async def test_same_producer_takes_over_from_its_old_connection(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        await node.append(by=ticket("p", 2))

        assert (await refusal(node, "late", by=ticket(), is_first=False)).reason is ConflictReason.SUPERSEDED
        await node.append("2", by=ticket("p", 2), is_first=False)
        await node.store.release(NAME, ticket("p", 1))
        assert (await refusal(node, "x", by=ticket("q"))).reason is ConflictReason.PRODUCER, "only the new one releases"
        await node.store.release(NAME, ticket("p", 2))
        assert (await refusal(node, "late", by=ticket(), is_first=False)).reason is ConflictReason.SUPERSEDED
        assert await node.data() == ["1", "2"]


async def test_superseded_connection_does_not_end_a_run_that_is_to_stop(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.append(by=ticket("p", 2))
        await node.store.stop(NAME)
        await node.store.release(NAME, ticket("p", 1))
        assert (await node.get()).state is RunState.STOPPING
        await node.store.release(NAME, ticket("p", 2))

        assert (await node.get()).state is RunState.STOPPED


async def test_late_step_after_another_producer_is_refused(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        await node.store.release(NAME, ticket())
        await node.append("2", by=ticket("q"))
        await node.store.release(NAME, ticket("q"))

        await refusal(node, "late", by=ticket(), is_first=False)
        await node.append("3", by=ticket("p", 2))
        assert await node.data() == ["1", "2", "3"]


async def test_released_connection_may_go_on_if_nobody_has_claimed_the_run_since(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.store.release(NAME, ticket())
        await node.append("1", is_first=False)

        assert (await refusal(node, "2", by=ticket("q"))).reason is ConflictReason.PRODUCER


async def test_joining_a_run_that_another_producer_holds_is_refused(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(mode=JOIN, holder=ticket())
        again = await node.create(mode=JOIN, holder=ticket("p", 2))
        with pytest.raises(RunConflict) as refused:
            await node.create(mode=JOIN, holder=ticket("q"))

        assert not again.is_new
        assert refused.value.reason is ConflictReason.PRODUCER
        assert (await refusal(node, "late", by=ticket(), is_first=False)).reason is ConflictReason.SUPERSEDED
        await node.append("1", by=ticket("p", 2), is_first=False)


async def test_joining_producer_holds_the_run(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.create(mode=JOIN, holder=ticket())

        assert (await refusal(node, "x", by=ticket("q"))).reason is ConflictReason.PRODUCER


async def test_creating_again_with_the_same_key_holds_the_run(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket(), key=key("k"))
        again = await node.create(holder=ticket("p", 2), key=key("k"))

        assert not again.is_new
        assert (await refusal(node, "late", by=ticket(), is_first=False)).reason is ConflictReason.SUPERSEDED
        await node.append("1", by=ticket("p", 2), is_first=False)


# Offsets


async def test_events_that_are_sent_again_are_skipped(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append(*numbered(1, 5), offset=0)
        again = await node.append(*numbered(4, 8), by=ticket("p", 2), offset=3)
        known = await node.append(*numbered(2, 6), by=ticket("p", 3), offset=1)
        next = await node.append("9", by=ticket("p", 3), is_first=False, offset=8)

        assert (again.events, known.events, next.events) == (8, 8, 9)
        assert await node.data() == numbered(1, 9)


async def test_gap_is_refused_with_the_count(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", "2", offset=0)
        refused = await refusal(node, "4", by=ticket("p", 2), offset=3)
        claim = await refusal(node, by=ticket("p", 2), offset=3)

        assert refused.reason is claim.reason is ConflictReason.OFFSET
        assert refused.events == 2 and "has 2 events, not the 3" in str(refused)
        await node.append("3", is_first=False, offset=2)
        assert await node.data() == ["1", "2", "3"]


async def test_sending_again_while_the_old_connection_still_writes_doubles_nothing(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append(offset=0)
        steps = [node.append(f"{n}", is_first=False, offset=n - 1) for n in range(1, 20)]
        steps += [node.append(*numbered(1, 30), by=ticket("p", 2), offset=0)]
        steps += [node.append(f"{n}", is_first=False, offset=n - 1) for n in range(20, 30)]
        await asyncio.gather(*steps, return_exceptions=True)

        assert await node.data() == numbered(1, 30)


# The last step again


async def test_last_step_may_be_repeated(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", "2", offset=0)
        last = await node.append("3", "4", is_first=False, offset=2, outcome=DONE)
        for repeated in (
            Append(ticket(), events("3", "4"), offset=2, outcome=DONE),
            Append(ticket("p", 2), events("3", "4"), True, 1, 2, DONE),
            Append(ticket("p", 2), events(*numbered(1, 4)), True, None, 0, DONE),
            Append(ticket("p", 2), (), True, None, 4, DONE),
            Append(ticket("p", 2), (), False, None, None, DONE),
            Append(ticket("p", 2), (), True, None, 0),
            Append(ticket("p", 2), events("1", "2"), False, None, 0),
        ):
            assert await node.store.append(NAME, repeated) == last, repeated

        assert await node.data() == numbered(1, 4)
        assert len(node.transitions) == 2


async def test_last_step_is_not_repeated_with_anything_that_is_missing(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", "2", offset=0, outcome=DONE)
        for other in (
            Append(ticket(), events("2", "3"), offset=1, outcome=DONE),
            Append(ticket(), events("3"), offset=2, outcome=DONE),
            Append(ticket(), events("1"), outcome=DONE),
            Append(ticket(), (), offset=3, outcome=DONE),
            Append(ticket(), (), offset=2, outcome=FAILED),
            Append(ticket("q"), (), True, None, 2, DONE),
        ):
            with pytest.raises(RunConflict) as refused:
                await node.store.append(NAME, other)
            assert refused.value.reason is ConflictReason.ENDED, other
            assert (refused.value.state, refused.value.events) == (RunState.DONE, 2)

        assert await node.data() == ["1", "2"]


async def test_last_step_of_a_stopped_run_may_be_repeated(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        await node.append("1", is_first=False, offset=0)
        await node.store.stop(NAME)
        last = await node.append(is_first=False, offset=1, outcome=DONE)

        assert last.state is RunState.STOPPED
        assert await node.append(by=ticket("p", 2), offset=1, outcome=DONE) == last


async def test_joining_after_the_end_creates_nothing_for_the_producer_that_created_it(world: RunWorld) -> None:
    """One request creates, appends and finishes. Its answer may be lost."""
    async with world.running() as node:
        for connection in (1, 2):
            created = await node.create(mode=JOIN, holder=ticket("p", connection))
            appended = await node.append("1", "2", by=ticket("p", connection), offset=0, outcome=DONE)
            assert (created.is_new, created.run.generation) == (connection == 1, 1)
            assert appended == (1, 2, RunState.DONE)
        other = await node.create(mode=JOIN, holder=ticket("q"))

        assert other.is_new and other.run.generation == 2


async def test_joining_after_the_end_creates_the_next_generation_if_another_producer_created_the_last(
    world: RunWorld,
) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", outcome=DONE)
        created = await node.create(mode=JOIN, holder=ticket())

        assert created.is_new and created.run.generation == 2


# Connections that are passed over


async def test_connection_that_another_one_replaces_is_told(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        listener = await node.follow()
        await node.append("1", by=ticket())
        await node.append("2", by=ticket("p", 2))
        await node.create(mode=JOIN, holder=ticket("p", 3))
        await until(lambda: listener.claims == ["p-2", "p-3"])


async def test_claim_of_a_run_that_nobody_holds_is_not_told(world: RunWorld) -> None:
    async with world.running() as node:
        await node.create()
        listener = await node.follow()
        await node.append("1", by=ticket())
        await node.store.release(NAME, ticket())
        await node.append("2", by=ticket("q"))
        await node.append("3", by=ticket("q", 2), outcome=DONE)
        await until(lambda: listener.data == ["1", "2", "3"])

        assert listener.claims == ["q-2"]


async def test_connection_that_is_replaced_at_another_node_is_told(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        await node.create(holder=ticket())
        listener = await node.follow()
        await other.append(by=ticket("p", 2))
        await until(lambda: listener.claims == ["p-2"])


async def test_connection_whose_lease_lapsed_is_told_of_the_next_producer(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other, shared.running() as third:
        await node.create(holder=ticket())
        listener = await third.follow()
        await shared.lose(node)
        shared.pass_seconds(LEASE_SECONDS + 1)
        await other.create(mode=JOIN, holder=ticket("q"))
        await until(lambda: listener.claims == ["q-1"])


# Producers that are lost


async def test_producer_on_a_lost_node_counts_as_alive_for_a_while_only(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        await node.create()
        await node.append("1")
        await shared.lose(node)
        assert (await refusal(other, "2", by=ticket("q"))).reason is ConflictReason.PRODUCER
        shared.pass_seconds(LEASE_SECONDS + 1)
        await other.append("2", by=ticket("q"))

        assert await other.data() == ["1", "2"]


async def test_same_producer_goes_on_at_another_node_at_once(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        await node.create()
        await node.append("1", "2", offset=0)
        await shared.lose(node)
        await other.append("2", "3", by=ticket("p", 2), offset=1, outcome=DONE)

        assert await other.data() == ["1", "2", "3"]


async def test_run_whose_producer_was_lost_has_stopped_at_once(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        await node.create(holder=ticket())
        await shared.lose(node)
        shared.pass_seconds(LEASE_SECONDS + 1)

        assert (await other.store.stop(NAME)).state is RunState.STOPPED


async def test_connection_at_one_node_is_superseded_at_another(shared: RunWorld) -> None:
    async with shared.running() as node, shared.running() as other:
        await node.create(holder=ticket())
        await other.append("1", by=ticket("p", 2))

        assert (await refusal(node, "late", by=ticket(), is_first=False)).reason is ConflictReason.SUPERSEDED
        await node.store.release(NAME, ticket())
        assert (await refusal(node, "x", by=ticket("q"))).reason is ConflictReason.PRODUCER
