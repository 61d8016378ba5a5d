"""The contract of a broker (`ssehub.brokers.base`), checked for every broker.

To check a new broker, describe it by a subclass of `World` in `broker_worlds.py` and add that to `WORLDS`:

- `broker()` creates a broker. All brokers of one world share a log, as after a restart; a new world has a new log.
- The broker's clock is `self.clock.wall`, Unix time in seconds. If the broker cannot be given a clock, override
  `pass_seconds`, as `RedisWorld` does.
- `is_durable` says whether the log outlives the broker: if so, the tests of restarts run as well.
- `delivers_before_it_answers` says whether `publish` returns only after the follower has received the events.
- `delivers_in_publish` says whether each call of `publish` calls `deliver` itself, so that these calls may overlap.
- `is_shared` says whether several brokers may run at a time.
- `tidied` is needed only by a broker that forgets idempotency keys and revocations in the background.

Then run `python -m pytest tests/test_broker_contract.py -k NAME`. What only one broker does is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from broker_worlds import (
    MemoryWorld,
    RecordingFollower,
    RedisWorld,
    SqliteWorld,
    StartServer,
    ValkeyWorld,
    World,
    event,
    keyed,
)
from conftest import until
from ssehub.brokers import Entry
from ssehub.errors import BrokerUnavailable, IdempotencyConflict, Overloaded
from ssehub.event import Event
from ssehub.position import Position
from ssehub.publication import Publication, Revoke, TakeBack
from ssehub.revocations import EXPIRY_MARGIN_SECONDS, Revocation
from ssehub.settings import Idempotency, Retention

WORLDS: dict[str, type[World]] = {
    "memory": MemoryWorld,
    "sqlite": SqliteWorld,
    "valkey": ValkeyWorld,
    "redis": RedisWorld,
}

pytest_plugins = ["redis_fixtures"]
pytestmark = pytest.mark.anyio


@pytest.fixture
def make_world(start_server: StartServer, tmp_path: Path) -> Callable[[str], World]:
    return lambda name: WORLDS[name](tmp_path, start_server)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    """Any broker."""
    return make_world(request.param)


@pytest.fixture(params=[name for name, world in WORLDS.items() if world.is_durable])
def durable(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    """A broker whose log outlives it."""
    return make_world(request.param)


@pytest.fixture(params=[name for name, world in WORLDS.items() if world.delivers_before_it_answers])
def direct(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    """A broker that delivers an event before it answers the publisher."""
    return make_world(request.param)


# Nodes


async def test_node_is_known_and_others_are_named_where_the_log_is_shared(world: World) -> None:
    async with world.running() as (broker, _):
        await until(lambda: broker.nodes.others is not None)
        assert broker.nodes.this.pid == os.getpid() and broker.nodes.problem is None
        assert broker.nodes.others == ([] if world.is_shared else ())
        if world.is_shared:
            async with world.running() as (other, _):
                await until(lambda: other.nodes.others == [broker.nodes.this])


# Order and positions


async def test_follower_is_given_the_start_of_the_log_then_every_event_in_order(world: World) -> None:
    async with world.running() as (broker, follower):
        start = follower.position
        assert follower.entries == []
        assert await broker.head() is None

        ids = await broker.publish([Publication([event("1"), event("2")]), Publication([event("3")])])
        ids += await broker.publish([Publication([event("4")])])
        await follower.caught_up(broker)

        assert follower.data == ["1", "2", "3", "4"]
        assert [str(entry.position) for entry in follower.entries] == ids
        assert await broker.head() == ids[-1] == str(follower.position)
        assert start < follower.entries[0].position and start.log == follower.position.log


async def test_event_is_delivered_as_it_was_published(world: World) -> None:
    events = [
        event("line\u2028\r\n\0é", type="t", id="my id", retry=5, ttl=1.5),
        event("", store=False),
        Event(("a", "b"), ("u", "v"), payload="data: x\nid: 7"),
    ]
    async with world.running() as (broker, follower):
        await broker.publish([Publication(events)])
        await follower.caught_up(broker)

        assert [entry.event for entry in follower.entries] == events


async def test_concurrent_publishers_get_distinct_positions(world: World) -> None:
    async with world.running() as (broker, follower):
        answers = await asyncio.gather(*[broker.publish([Publication([event(f"{n}")])]) for n in range(200)])
        await follower.caught_up(broker)

        ids = [id for answer in answers for id in answer]
        positions = [str(entry.position) for entry in follower.entries]
        assert len(set(ids)) == 200
        assert dict(zip(follower.data, positions, strict=True)) == {f"{n}": ids[n] for n in range(200)}


@pytest.mark.parametrize("step", [-3_600.0, -0.001, 0.0, 3_600.0])
async def test_positions_increase_whatever_the_clock_does(world: World, step: float) -> None:
    async with world.running() as (broker, follower):
        for _ in range(3):
            world.pass_seconds(step)
            await broker.publish([Publication([event()])])
        await follower.caught_up(broker)

        positions = [entry.position for entry in follower.entries]
        assert len(positions) == 3 and positions == sorted(set(positions))
        assert len(follower.bases) == 1


# Idempotency keys


async def test_publishing_again_with_the_same_key_returns_the_first_positions(world: World) -> None:
    async with world.running() as (broker, follower):
        first = await broker.publish([keyed("k", event("1"), event("2"))])
        answers = await asyncio.gather(*[broker.publish([keyed("k", event("1"), event("2"))]) for _ in range(20)])
        mixed = await broker.publish(
            [keyed("new", event("3")), keyed("k", event("1"), event("2")), keyed("new", event("3"))]
        )
        await follower.caught_up(broker)

        assert all(answer == first for answer in answers)
        assert mixed == [str(follower.entries[-1].position), *first, str(follower.entries[-1].position)]
        assert follower.data == ["1", "2", "3"]


async def test_twenty_concurrent_publishers_with_one_new_key_store_one_event(world: World) -> None:
    async with world.running() as (broker, follower):
        answers = await asyncio.gather(*[broker.publish([keyed("k", event("1"))]) for _ in range(20)])
        await follower.caught_up(broker)

        assert follower.data == ["1"]
        assert {tuple(answer) for answer in answers} == {(str(follower.entries[0].position),)}


async def test_key_used_with_another_body_is_refused_and_nothing_of_the_call_stored(world: World) -> None:
    async with world.running() as (broker, follower):
        await broker.publish([keyed("k", event("1"))])
        results = await asyncio.gather(
            broker.publish([Publication([event("not this")]), keyed("k", event("2"))]),
            broker.publish([keyed("j", event("3")), keyed("j", event("4"))]),
            broker.publish([Publication([event("but this")])]),
            return_exceptions=True,
        )
        await follower.caught_up(broker)

        assert [type(result) for result in results] == [IdempotencyConflict, IdempotencyConflict, list]
        assert follower.data == ["1", "but this"]


@pytest.mark.parametrize("limit", ["time", "number"])
async def test_keys_over_the_limit_are_forgotten(world: World, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.broker.TIDY_SECONDS", 0.05)
    idempotency = Idempotency(idempotency_seconds=60, idempotency_keys=10)
    async with world.running(idempotency=idempotency) as (broker, _):
        first = await broker.publish([keyed("k", event())])
        world.pass_seconds(59)
        again = await broker.publish([keyed("k", event())])
        if limit == "time":
            world.pass_seconds(2)
        else:
            for number in range(11):
                await broker.publish([keyed(f"{number}", event())])
            await world.tidied()
        later = await broker.publish([keyed("k", event())])

        assert first == again != later


# Revocations


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the table have a few revocations only; return how many."""
    for module in ("ssehub.revocations", "ssehub.brokers.redis.writer", "ssehub.brokers.sqlite.logfile"):
        monkeypatch.setattr(f"{module}.MAX_REVOCATIONS", 3)
    return 3


def user(name: str, issued_before: float = 1_000.0, expires_at: float | None = None) -> Revocation:
    return Revocation(user_id=name, issued_before=issued_before, expires_at=expires_at)


async def test_revocation_is_in_the_copy_when_its_entry_is_delivered_in_log_order(world: World) -> None:
    broker = world.broker()
    seen: list[list[bool]] = []

    class Watching(RecordingFollower):
        async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
            seen.extend(
                [revocation.key in broker.revocations for revocation in entry.event.revocations]
                for entry in entries
                if isinstance(entry.event, Revoke)
            )
            await super().deliver(position, entries)

    follower = Watching()
    async with broker.run(follower):
        assert broker.is_current and len(broker.revocations) == 0
        revocations = (Revocation(jti="t é\u2028"), user("alex", 1.5), Revocation(sid="s", iss="i", expires_at=9e9))

        await broker.publish([Publication([event("before")])])
        position = await broker.revoke(revocations)
        await broker.publish([Publication([event("after")])])
        await follower.caught_up(broker)

        assert [entry.event for entry in follower.entries] == [event("before"), Revoke(revocations), event("after")]
        assert str(follower.entries[1].position) == position
        assert sorted(broker.revocations, key=str) == sorted(revocations, key=str)
        assert seen == [[True, True, True]]


async def test_every_node_gets_revocations_and_those_taken_back(world: World) -> None:
    async with world.running() as (broker, follower):
        await broker.revoke([Revocation(jti="a"), Revocation(jti="b"), user("kim")])
        await broker.take_back(["jti:a", "user:kim", "jti:unknown"])
        await follower.caught_up(broker)

        assert list(broker.revocations) == [Revocation(jti="b")]
        assert follower.commands[1] == TakeBack(("jti:a", "user:kim", "jti:unknown"))
        if world.is_durable and world.is_shared:
            async with world.running() as (other, follower):
                await broker.revoke([Revocation(jti="c")])
                await follower.caught_up(other)

                assert {one.jti for one in other.revocations} == {"b", "c"}


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        (user("a", 5, 9e9), user("a", 4, 8e9), user("a", 5, 9e9)),
        (user("a", 5, 8e9), user("a", 6, 9e9), user("a", 6, 9e9)),
        (user("a", 5, 9e9), user("a", 5), user("a", 5)),
        (user("a", 5), user("a", 5, 9e9), user("a", 5)),
    ],
)
async def test_revoking_again_extends_and_never_shortens(
    world: World, first: Revocation, second: Revocation, result: Revocation
) -> None:
    async with world.running() as (broker, follower):
        await broker.revoke([first])
        await broker.revoke([second])
        await follower.caught_up(broker)

        assert list(broker.revocations) == [result]
    if world.is_durable:
        async with world.running() as (broker, _):
            assert list(broker.revocations) == [result]


async def test_full_table_refuses_all_of_a_call_and_is_extended_all_the_same(world: World, few: int) -> None:
    async with world.running() as (broker, follower):
        await broker.revoke([user(str(number)) for number in range(few - 1)])
        with pytest.raises(Overloaded, match="full"):
            await broker.revoke([user("one"), user("0", 3_000), user("another")])
        with pytest.raises(Overloaded, match="full"):
            await asyncio.gather(*[broker.revoke([user(f"together-{number}")]) for number in range(2)])
        await broker.revoke([user("0", 2_000), user("0", 1_500)])
        await follower.caught_up(broker)

        assert len(broker.revocations) == few and user("0", 2_000) in list(broker.revocations)
        await broker.take_back(["user:0"])
        await broker.revoke([user("one")])
        await follower.caught_up(broker)

        assert "user:one" in broker.revocations and len(broker.revocations) == few


async def test_revoking_is_refused_before_and_after_running(world: World) -> None:
    broker = world.broker()

    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="is not running"):
            await broker.revoke([Revocation(jti="a")])
        with pytest.raises(BrokerUnavailable, match="is not running"):
            await broker.take_back(["jti:a"])
        async with broker.run(RecordingFollower()):
            pass
    assert "jti:a" not in broker.revocations


async def test_revocations_are_there_when_the_same_broker_runs_again(world: World) -> None:
    broker, follower = world.broker(), RecordingFollower()
    async with broker.run(follower):
        await broker.revoke([Revocation(jti="a")])
        await follower.caught_up(broker)
    async with broker.run(RecordingFollower()):
        assert list(broker.revocations) == [Revocation(jti="a")]


async def test_table_is_complete_before_the_log_begins_and_outlives_the_retained_log(durable: World) -> None:
    revocations = [Revocation(jti=f"{number}") for number in range(3_000)]
    async with durable.running() as (broker, _):
        for start in range(0, 3_000, 500):
            await broker.revoke(revocations[start : start + 500])
        await broker.publish([Publication([event(f"{number}") for number in range(5)])])
    broker = durable.broker(retention=Retention(history_events=2))
    complete = []

    class Watching(RecordingFollower):
        async def begin(self, base: Position) -> None:
            complete.append(len(broker.revocations))
            await super().begin(base)

    follower = Watching()
    async with broker.run(follower):
        assert complete == [3_000] and len(follower.entries) == 2


async def test_revocations_that_have_run_out_leave_the_table_and_no_others(
    durable: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.broker.TIDY_SECONDS", 0.05)
    now = durable.broker().now()
    async with durable.running() as (broker, _):
        early = user("early", expires_at=now + 10)
        late = user("late", expires_at=now + 30)
        await broker.revoke([early, late, user("forever")])
        durable.pass_seconds(10 + EXPIRY_MARGIN_SECONDS + 10)
        await durable.tidied()
    async with durable.running() as (broker, _):
        assert {one.user_id for one in broker.revocations} == {"late", "forever"}


# Waiting, giving up, ending


async def test_broker_waits_while_the_follower_has_no_capacity(world: World) -> None:
    async with world.running() as (broker, follower):
        follower.has_capacity.clear()
        publishing = [asyncio.create_task(broker.publish([Publication([event("0")])]))]
        await until(lambda: follower.waiting)
        publishing += [asyncio.create_task(broker.publish([Publication([event(f"{n}")])])) for n in range(1, 300)]
        await asyncio.sleep(0.05)
        assert len(follower.data) == follower.waiting == (300 if world.delivers_in_publish else 1)

        follower.has_capacity.set()
        await asyncio.wait_for(asyncio.gather(*publishing), 5)
        await follower.caught_up(broker)

        assert sorted(map(int, filter(None, follower.data))) == list(range(300))


async def test_publisher_waits_while_the_follower_has_no_capacity(direct: World) -> None:
    async with direct.running() as (broker, follower):
        follower.has_capacity.clear()
        publishing = asyncio.create_task(broker.publish([Publication([event("1")])]))
        await asyncio.sleep(0.05)
        assert not publishing.done()

        follower.has_capacity.set()
        await asyncio.wait_for(publishing, 5)

        assert follower.data == ["1"]


@pytest.mark.parametrize("has_capacity", [True, False], ids=["capacity", "no-capacity"])
async def test_publisher_that_gives_up_affects_no_other(world: World, has_capacity: bool) -> None:
    async with world.running() as (broker, follower):
        if not has_capacity:
            follower.has_capacity.clear()
        publishing = [asyncio.create_task(broker.publish([Publication([event(f"{n}")])])) for n in range(50)]
        await (asyncio.sleep(0) if has_capacity else until(lambda: follower.waiting))
        for task in publishing[::2]:
            task.cancel()
        await asyncio.sleep(0)
        follower.has_capacity.set()
        await asyncio.gather(*publishing, return_exceptions=True)
        await broker.publish([Publication([event("last")])])
        await follower.caught_up(broker)

        assert follower.data[-1] == "last"
        assert len(follower.data) == len(set(follower.data))
        assert {f"{n}" for n in range(1, 50, 2)} <= set(follower.data)


async def test_publishing_is_refused_before_and_after_running(world: World) -> None:
    broker = world.broker()

    with pytest.raises(BrokerUnavailable, match="is not running"):
        await broker.publish([Publication([event()])])
    async with broker.run(RecordingFollower()):
        pass
    with pytest.raises(BrokerUnavailable, match="is not running"):
        await broker.publish([Publication([event()])])


async def test_broker_stops_whatever_it_is_doing(world: World) -> None:
    """redis-py lost a cancellation that coincided with the end of a send, and the hub never stopped."""
    async with asyncio.timeout(10):
        for round in range(30):
            async with world.running() as (broker, _):
                if round % 3:
                    await broker.publish([Publication([event()])])
                for _ in range(round % 10):
                    await asyncio.sleep(0)


# Logs that outlive the broker


async def test_log_continues_after_a_restart(durable: World) -> None:
    async with durable.running() as (broker, follower):
        log = follower.position.log
        ids = await broker.publish([Publication([event("1")]), keyed("k", event("2"))])

    async with durable.running() as (broker, follower):
        assert follower.data == ["1", "2"]
        assert await broker.head() == ids[-1]
        assert await broker.publish([keyed("k", event("2"))]) == [ids[-1]], "keys are remembered, too"
        durable.pass_seconds(-3_600)
        ids += await broker.publish([Publication([event("3")])])
        await follower.caught_up(broker)

        positions = [Position.parse(id) or pytest.fail(id) for id in ids]
        assert follower.data == ["1", "2", "3"]
        assert positions == sorted(positions)
        assert {position.log for position in positions} == {log}


async def test_position_of_an_event_that_was_not_stored_is_in_the_past_after_a_restart(durable: World) -> None:
    async with durable.running() as (broker, _):
        await broker.publish([Publication([event("1")])])
        durable.pass_seconds(1)
        (id,) = await broker.publish([Publication([event("2", store=False)])])

    async with durable.running() as (_, follower):
        unstored = Position.parse(id)
        assert unstored is not None and unstored <= follower.position


@pytest.mark.parametrize(
    "retention", [Retention(history_events=3), Retention(history_bytes=3_500)], ids=["events", "bytes"]
)
async def test_only_the_retained_tail_is_read_at_the_start(durable: World, retention: Retention) -> None:
    async with durable.running() as (broker, _):
        ids = await broker.publish([Publication([event(f"{n}" + "x" * 1_000) for n in range(10)])])
    broker, follower = durable.broker(retention=retention), RecordingFollower()

    async with broker.run(follower):
        assert [str(entry.position) for entry in follower.entries] == ids[-3:]
        assert str(follower.bases[0]) == ids[-4], "the base is the newest entry that was not read"
