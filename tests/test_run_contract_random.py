"""The contract of a store of runs, checked for every broker by calls in any order.

Every store does what the memory broker's does, whose rules `test_runs_book_machine.py` compares with a model.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from conftest import until
from run_worlds import (
    PAGE_BYTES,
    MemoryRunWorld,
    Node,
    RunWorld,
    events,
    key,
    options,
    ticket,
)
from ssehub.brokers.memory_runs import MemoryRuns
from ssehub.errors import Overloaded, SSEHubError
from ssehub.runs.model import Outcome, Run, RunState
from ssehub.runs.store import Append, CreateMode, Creation, RunFilter, RunStore, Ticket

pytest_plugins = ["redis_fixtures", "run_fixtures"]
pytestmark = pytest.mark.anyio

SOAK = "SOAK" in os.environ
SEEDS = range(100 if SOAK else 5)
STEPS = 120
LIMITS = {"run_bytes": 700, "max_runs_bytes": 2_600, "max_runs": 3, "run_stop_seconds": 5}

Call = Callable[[RunStore], Awaitable[object]]


class Calls:
    """Makes calls at random, so that each of them is often refused and often not."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.names = [f"{seed} {letter}" for letter in "abc"]
        self._connections = 0
        self._tickets: dict[str, Ticket] = {}
        """The latest connection of each producer."""

    def next(self, count: int, generation: int) -> tuple[str, Call]:
        """Return a call and its description. The run of its name has `count` events and this generation."""
        choose = self._random.choice
        name = choose(self.names)
        kind = choose(["append"] * 9 + ["create"] * 4 + ["release"] * 3 + ["finish", "stop", "delete"])
        about = choose([None, None, generation, generation, generation - 1])
        if kind == "append":
            step = self._step(count, about)
            return f"append {name} {step}", lambda store: store.append(name, step)
        if kind == "create":
            mode, used = choose(list(CreateMode)), choose([None, None, key(choose("kl"), choose("xxxy"))])
            holder = choose([None, self._ticket(is_new=True)])
            asked = options(choose([("alex",), ("sam", "alex"), ("*",)]), idle=60, keep=choose([30, 600]))
            creation = Creation(asked, mode, used, holder, choose([None, None, generation, 0]))
            return f"create {name} {creation}", lambda store: store.create(name, creation)
        if kind == "release":
            held = self._ticket()
            return f"release {name} {held}", lambda store: store.release(name, held)
        if kind == "finish":
            outcome = self._outcome()
            return f"finish {name} {outcome} {about}", lambda store: store.finish(name, outcome, about)
        if kind == "stop":
            return f"stop {name} {about}", lambda store: store.stop(name, about)
        return f"delete {name} {about}", lambda store: store.delete(name, about)

    def _step(self, count: int, generation: int | None) -> Append:
        choose = self._random.choice
        is_first = choose([True, False])
        offset = choose([None, count, count, max(0, count - choose([1, 2, 3])), count + 1])
        first = (count if offset is None else offset) + 1
        data = [f"{number}" for number in range(first, first + choose([0, 0, 1, 2, 4]))]
        outcome = choose([None, None, None, self._outcome()])
        return Append(self._ticket(is_new=is_first), events(*data), is_first, generation, offset, outcome)

    def _ticket(self, *, is_new: bool = False) -> Ticket:
        producer = self._random.choice("pq")
        if is_new or producer not in self._tickets:
            self._connections += 1
            self._tickets[producer] = ticket(producer, self._connections)
        return self._tickets[producer]

    def _outcome(self) -> Outcome:
        return self._random.choice(
            [Outcome(RunState.DONE), Outcome(RunState.FAILED, "x"), Outcome(RunState.FAILED), Outcome(RunState.STOPPED)]
        )


@asynccontextmanager
async def nodes_of(world: RunWorld, **limits: int) -> AsyncIterator[list[Node]]:
    """Run two nodes if the world allows it, or one."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(world.running(**limits)) for _ in range(2 if world.is_shared else 1)]


async def answer(call: Call, store: RunStore) -> object:
    """Return what can be compared of the result of a call, or of its error."""
    try:
        result = await call(store)
    except SSEHubError as exc:
        # A store that doesn't know the exact size of all runs says less about it.
        return type(exc), vars(exc), None if isinstance(exc, Overloaded) else str(exc)
    if isinstance(result, Run):
        return shown(result)
    if isinstance(result, tuple) and isinstance(result[0], Run):
        return shown(result[0]), result[1]
    return result


def shown(run: Run) -> object:
    """Return what can be compared of a run: not its log, which is random, nor when it was created."""
    return run.name, run.options, run.generation, run.state, run.error, run.events, run.bytes, run.ended_at is None


async def everything(store: RunStore) -> object:
    """Return what can be compared of all runs, and their events."""
    found = []
    for run in await store.list_runs(RunFilter()):
        page = await store.read(run.name, run.log, 0, PAGE_BYTES)
        found.append((shown(run), None if page is None else [event.data for event in page]))
    by_user = [run.name for run in await store.list_runs(RunFilter("sam"))]
    return found, by_user, {state: count for state, count in store.totals().states.items() if count}


async def same(left: Node, right: Node) -> None:
    """Return when both stores have the same runs: what time brings takes a moment."""
    for _ in range(300):
        if await everything(left.store) == await everything(right.store):
            return
        await asyncio.sleep(0.01)
    assert await everything(left.store) == await everything(right.store)


@pytest.mark.soak
async def test_every_store_answers_any_call_as_the_others(world: RunWorld) -> None:
    if isinstance(world, MemoryRunWorld):
        return
    for seed in SEEDS:
        reference = MemoryRunWorld(world.folder, lambda kind: pytest.fail(kind))
        async with nodes_of(world, **LIMITS) as nodes, reference.running(**LIMITS) as other:
            calls, done = Calls(seed), list[str]()
            logs: dict[str, str] = {}
            for number in range(STEPS):
                run = await other.store.get(calls.names[number % 3])
                shown_call, call = calls.next(run.events if run else 0, run.generation if run else 1)
                done.append(shown_call)
                expected, found = await answer(call, other.store), await answer(call, nodes[number % len(nodes)].store)
                assert found == expected, f"seed {seed}: {done[-12:]}"
                for name in calls.names:
                    left, right = await nodes[-1].store.get(name), await other.store.get(name)
                    assert (left is None) == (right is None), f"seed {seed}: {done[-12:]}"
                    if left is not None and right is not None:
                        assert logs.setdefault(right.log, left.log) == left.log, f"seed {seed}: {done[-12:]}"
                if number % 12 == 11:
                    seconds = (1.0, 6.0, 31.0, 61.0)[number // 12 % 4]
                    world.pass_seconds(seconds)
                    reference.pass_seconds(seconds)
                    assert isinstance(other.store, MemoryRuns)
                    other.store.advance()
                    await same(nodes[0], other)
            assert len(set(logs.values())) == len(logs)
            for run in await nodes[0].store.list_runs(RunFilter()):
                await nodes[0].store.delete(run.name)


# Listeners while anything happens


@pytest.mark.soak
async def test_listeners_see_one_history_whatever_happens_at_once(world: RunWorld) -> None:
    """Appenders, restarts, takeovers and deletions compete for one name. What is told fits what is there at the end."""
    for seed in range(40 if SOAK else 4):
        async with nodes_of(world) as nodes:
            watching = random.Random(seed)
            name, node = f"run {seed}", nodes[0]
            listener = await node.follow(name)
            accepted: set[str] = set()

            async def produce(
                node: Node,
                producer: str,
                turns: int,
                chance: random.Random,
                name: str = name,
                accepted: set[str] = accepted,
            ) -> None:
                for turn in range(turns):
                    held, generation = ticket(producer, turn), None
                    try:
                        mode = chance.choice(list(CreateMode))
                        run = (await node.store.create(name, Creation(options(), mode, ticket=held))).run
                        generation = run.generation
                        for number in range(chance.randrange(6)):
                            text = f"{generation} {producer} {turn} {number}"
                            await node.store.append(name, Append(held, events(text), False, generation))
                            accepted.add(text)
                        if chance.random() < 0.5:
                            await node.store.finish(name, Outcome(RunState.DONE), generation)
                        elif chance.random() < 0.3:
                            await node.store.delete(name)
                    except SSEHubError:
                        await asyncio.sleep(0)
                    finally:
                        await node.store.release(name, held)

            chances = [random.Random(watching.random()) for _ in range(6)]
            await asyncio.gather(
                *[produce(nodes[number % len(nodes)], f"{number}", 15, chance) for number, chance in enumerate(chances)]
            )
            await node.create(name, CreateMode.RESTART)
            run = await node.get(name)
            await node.append("last", name=name, by=ticket("last"), outcome=Outcome(RunState.DONE))
            await until(lambda listener=listener: listener.data[-1:] == ["last"])  # type: ignore[misc]

            generations = [told.generation for told in listener.told]
            assert generations == sorted(generations), "nothing of an older generation is told after a newer one"
            for told in listener.told:
                for text in told.data[: None if told.data != ["last"] else 0]:
                    assert text in accepted, "nothing is told that was refused"
                    assert int(text.split()[0]) <= told.generation
            listener.check_contiguous()
            assert listener.told[-1].log == run.log
            ends = [(told.generation, told.state) for told in listener.told if told.state.is_end]
            assert len({generation for generation, _ in ends}) == len(set(ends)), "no generation ends in two ways"
            counts: dict[tuple[str, int, RunState], int] = {}
            for transition in (one for each in nodes for one in each.transitions):
                counts[transition] = counts.get(transition, 0) + 1
            assert set(counts.values()) == {1}, "each is reported once"
