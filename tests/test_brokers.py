"""What every broker keeps to, and what each has of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conftest import until
from redis_servers import KINDS, RedisServer
from ssehub.brokers import Broker, Entry, Limits, create_broker
from ssehub.brokers.memory import MemoryBroker
from ssehub.brokers.redis import RedisBroker
from ssehub.brokers.sqlite import LogFile, SqliteBroker
from ssehub.errors import BrokerUnavailable, ConfigError, IdempotencyConflict
from ssehub.event import Event
from ssehub.position import Position
from ssehub.publication import IdempotencyKey, Publication
from ssehub.testing import ManualClock

pytestmark = pytest.mark.anyio


def event(data: str = "x", **fields: object) -> Event:
    return Event(("chat",), ("*",), data=data, **fields)  # type: ignore[arg-type]


def keyed(key: str, *events: Event) -> Publication:
    return Publication(events, IdempotencyKey.make(key, ("", "chat"), events))


class Reader:
    """What a hub would be given."""

    def __init__(self) -> None:
        self.stands_at: Position | None = None
        self.bases: list[Position] = []
        self.entries: list[Entry] = []
        self.calls = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def begin(self, base: Position) -> None:
        self.bases.append(base)
        self.stands_at = base

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        await self.may_go_on.wait()
        assert all(a.position < b.position for a, b in pairwise(entries))
        assert self.stands_at is not None and (not entries or self.stands_at < entries[0].position)
        assert not entries or entries[-1].position <= position
        self.calls += 1
        self.stands_at = position
        self.entries.extend(entries)

    @property
    def events(self) -> list[Event]:
        return [entry.event for entry in self.entries if isinstance(entry.event, Event)]

    @property
    def data(self) -> list[str | None]:
        return [event.data for event in self.events]


class World:
    """Makes brokers of one kind that share a log and a clock."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.path = folder / "log.db"
        self.clock = ManualClock()

    def broker(self, limits: Limits | None = None) -> Broker:
        if self.kind == "memory":
            return MemoryBroker(limits, now=lambda: self.clock.wall)
        return SqliteBroker(self.path, limits, now=lambda: self.clock.wall)

    def pass_seconds(self, seconds: float) -> None:
        """Let the clock go on, or set it back."""
        self.clock.pass_seconds(seconds)

    @asynccontextmanager
    async def running(self, limits: Limits | None = None) -> AsyncIterator[tuple[Broker, Reader]]:
        broker, reader = self.broker(limits), Reader()
        async with broker.run(reader):
            yield broker, reader


class RedisWorld(World):
    """The same in Redis, whose clock is its own: what is stored there moves instead."""

    numbers = itertools.count()

    def __init__(self, server: RedisServer) -> None:
        self.kind = server.kind
        self.server = server
        self.prefix = f"test-{next(self.numbers)}"

    def broker(self, limits: Limits | None = None) -> Broker:
        return RedisBroker(self.server.url, limits, prefix=self.prefix)

    def pass_seconds(self, seconds: float) -> None:
        milliseconds = round(seconds * 1000)
        with self.server.client() as client:
            ages = f"{{{self.prefix}}}:key-ages"
            for key, age in client.zrange(ages, 0, -1, withscores=True):
                client.zadd(ages, {key: age - milliseconds})
            if milliseconds < 0:
                client.hincrby(f"{{{self.prefix}}}:state", "ms", -milliseconds)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """One server of each kind for the module."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(kind: str) -> RedisServer:
            server = RedisServer(kind, tmp_path_factory.mktemp(kind))
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def make_world(servers: Callable[[str], RedisServer], tmp_path: Path) -> Callable[[str], World]:
    return lambda kind: RedisWorld(servers(kind)) if kind in KINDS else World(kind, tmp_path)


@pytest.fixture(params=["memory", "sqlite", *KINDS])
def world(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    return make_world(request.param)


@pytest.fixture(params=["memory", "sqlite"])
def direct(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    """A broker that delivers within the call that publishes."""
    return make_world(request.param)


@pytest.fixture(params=["sqlite", *KINDS])
def durable(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    """A broker whose log outlives it."""
    return make_world(request.param)


@pytest.fixture
def sqlite(tmp_path: Path) -> World:
    return World("sqlite", tmp_path)


async def has_all(broker: Broker, reader: Reader) -> None:
    """Returns when `reader` has been given all that is in the log."""
    head = await broker.head()
    await until(lambda: head is None or str(reader.stands_at) == head)


# The contract


async def test_a_hub_is_told_where_the_log_stands_then_gets_everything_in_order(world: World) -> None:
    async with world.running() as (broker, reader):
        assert reader.stands_at is not None and reader.entries == []
        assert await broker.head() is None
        start = reader.stands_at

        ids = await broker.publish([Publication([event("1"), event("2")]), Publication([event("3")])])
        ids += await broker.publish([Publication([event("4")])])
        await has_all(broker, reader)

        assert reader.data == ["1", "2", "3", "4"]
        assert [str(entry.position) for entry in reader.entries] == ids
        assert await broker.head() == ids[-1] == str(reader.stands_at)
        assert start < reader.entries[0].position and start.log == reader.stands_at.log


async def test_an_event_is_delivered_as_it_was_published(world: World) -> None:
    events = [
        event("line\u2028\r\n\0é", type="t", id="my id", retry=5, ttl=1.5),
        event("", store=False),
        Event(("a", "b"), ("u", "v"), payload="data: x\nid: 7"),
    ]
    async with world.running() as (broker, reader):
        await broker.publish([Publication(events)])
        await has_all(broker, reader)

        assert [entry.event for entry in reader.entries] == events


async def test_concurrent_publishers_get_places_of_their_own(world: World) -> None:
    async with world.running() as (broker, reader):
        answers = await asyncio.gather(*[broker.publish([Publication([event(f"{n}")])]) for n in range(200)])
        await has_all(broker, reader)

        ids = [id for answer in answers for id in answer]
        assert len(set(ids)) == 200
        positions = [str(entry.position) for entry in reader.entries]
        assert dict(zip(reader.data, positions, strict=True)) == {f"{n}": ids[n] for n in range(200)}


@pytest.mark.parametrize("step", [-3_600.0, -0.001, 0.0, 3_600.0])
async def test_places_go_on_whatever_the_clock_does(world: World, step: float) -> None:
    async with world.running() as (broker, reader):
        for _ in range(3):
            world.pass_seconds(step)
            await broker.publish([Publication([event()])])
        await has_all(broker, reader)

        positions = [entry.position for entry in reader.entries]
        assert len(positions) == 3 and positions == sorted(set(positions))
        assert len(reader.bases) == 1


async def test_a_key_makes_publishing_again_safe(world: World) -> None:
    async with world.running() as (broker, reader):
        first = await broker.publish([keyed("k", event("1"), event("2"))])
        answers = await asyncio.gather(*[broker.publish([keyed("k", event("1"), event("2"))]) for _ in range(20)])
        mixed = await broker.publish(
            [keyed("new", event("3")), keyed("k", event("1"), event("2")), keyed("new", event("3"))]
        )
        await has_all(broker, reader)

        assert all(answer == first for answer in answers)
        assert mixed == [str(reader.entries[-1].position), *first, str(reader.entries[-1].position)]
        assert reader.data == ["1", "2", "3"]


async def test_twenty_at_once_with_a_new_key_are_one(world: World) -> None:
    async with world.running() as (broker, reader):
        answers = await asyncio.gather(*[broker.publish([keyed("k", event("1"))]) for _ in range(20)])
        await has_all(broker, reader)

        assert reader.data == ["1"]
        assert {tuple(answer) for answer in answers} == {(str(reader.entries[0].position),)}


async def test_a_key_for_something_else_is_refused_and_nothing_published(world: World) -> None:
    async with world.running() as (broker, reader):
        await broker.publish([keyed("k", event("1"))])
        results = await asyncio.gather(
            broker.publish([Publication([event("not this")]), keyed("k", event("2"))]),
            broker.publish([keyed("j", event("3")), keyed("j", event("4"))]),
            broker.publish([Publication([event("but this")])]),
            return_exceptions=True,
        )
        await has_all(broker, reader)

        assert [type(result) for result in results] == [IdempotencyConflict, IdempotencyConflict, list]
        assert reader.data == ["1", "but this"]


@pytest.mark.parametrize("forgotten", ["by time", "by number"])
async def test_keys_are_forgotten(world: World, forgotten: str) -> None:
    async with world.running(Limits(idempotency_seconds=60, idempotency_keys=10)) as (broker, _):
        first = await broker.publish([keyed("k", event())])
        world.pass_seconds(59)
        again = await broker.publish([keyed("k", event())])
        if forgotten == "by time":
            world.pass_seconds(2)
        else:
            for number in range(11):
                await broker.publish([keyed(f"{number}", event())])
            if isinstance(broker, SqliteBroker):
                assert broker._file is not None
                broker._file.tidy()
        later = await broker.publish([keyed("k", event())])

        assert first == again != later


async def test_nothing_more_is_delivered_until_the_hub_has_room(world: World) -> None:
    async with world.running() as (broker, reader):
        reader.may_go_on.clear()
        publishing = [asyncio.create_task(broker.publish([Publication([event(f"{n}")])])) for n in range(300)]
        await asyncio.sleep(0.05)
        assert reader.entries == []
        reader.may_go_on.set()
        await asyncio.wait_for(asyncio.gather(*publishing), 5)
        await has_all(broker, reader)

        assert sorted(map(int, filter(None, reader.data))) == list(range(300))


async def test_a_publisher_waits_until_the_hub_has_room(direct: World) -> None:
    async with direct.running() as (broker, reader):
        reader.may_go_on.clear()
        publishing = asyncio.create_task(broker.publish([Publication([event("1")])]))
        await asyncio.sleep(0.05)
        assert not publishing.done()
        reader.may_go_on.set()
        await asyncio.wait_for(publishing, 5)

        assert reader.data == ["1"]


async def test_a_publisher_that_gives_up_harms_nobody(world: World) -> None:
    async with world.running() as (broker, reader):
        given_up = [asyncio.create_task(broker.publish([Publication([event(f"{n}")])])) for n in range(50)]
        await asyncio.sleep(0)
        for task in given_up[::2]:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        await broker.publish([Publication([event("last")])])
        await has_all(broker, reader)

        assert reader.data[-1] == "last"
        assert len(reader.data) == len(set(reader.data))
        assert {f"{n}" for n in range(1, 50, 2)} <= set(reader.data)


async def test_not_running_is_said(world: World) -> None:
    broker = world.broker()
    with pytest.raises(BrokerUnavailable, match="is not running"):
        await broker.publish([Publication([event()])])
    async with broker.run(Reader()):
        pass
    with pytest.raises(BrokerUnavailable, match="is not running"):
        await broker.publish([Publication([event()])])


async def test_it_ends_whatever_it_is_doing(world: World) -> None:
    """A cancellation that came together with the end of a send was lost in redis-py, and the hub never ended."""
    async with asyncio.timeout(10):
        for round in range(30):
            async with world.running() as (broker, _):
                if round % 3:
                    await broker.publish([Publication([event()])])
                for _ in range(round % 10):
                    await asyncio.sleep(0)


@pytest.mark.parametrize("url", ["", "redis", "foo://", "memory://x", "sqlite://", "sqlite:///", "sqlite://x"])
def test_unknown_brokers_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"use memory|names no file"):
        create_broker(url)


# Brokers whose log outlives them


async def test_the_log_goes_on_after_a_restart(durable: World) -> None:
    async with durable.running() as (broker, reader):
        start = reader.stands_at
        ids = await broker.publish([Publication([event("1")]), keyed("k", event("2"))])
    async with durable.running() as (broker, reader):
        assert reader.data == ["1", "2"]
        assert await broker.head() == ids[-1]
        assert await broker.publish([keyed("k", event("2"))]) == [ids[-1]], "keys are remembered, too"
        durable.pass_seconds(-3_600)
        ids += await broker.publish([Publication([event("3")])])
        await has_all(broker, reader)

        assert reader.data == ["1", "2", "3"]
        positions = [Position.parse(id) for id in ids]
        assert positions == sorted(positions)  # type: ignore[type-var]
        assert start is not None and {position.log for position in positions if position} == {start.log}


async def test_a_position_of_an_event_that_was_not_stored_is_no_future_one(durable: World) -> None:
    async with durable.running() as (broker, _):
        await broker.publish([Publication([event("1")])])
        durable.pass_seconds(1)
        unstored = Position.parse((await broker.publish([Publication([event("2", store=False)])]))[0])
    async with durable.running() as (_, reader):
        assert unstored is not None and reader.stands_at is not None and unstored <= reader.stands_at


@pytest.mark.parametrize("limits", [Limits(tail_events=3), Limits(tail_bytes=3_500)], ids=["events", "bytes"])
async def test_only_the_tail_is_read(durable: World, limits: Limits) -> None:
    async with durable.running() as (broker, _):
        ids = await broker.publish([Publication([event(f"{n}" + "x" * 1_000) for n in range(10)])])
    broker, reader = durable.broker(limits), Reader()

    async with broker.run(reader):
        assert [str(entry.position) for entry in reader.entries] == ids[-3:]
        assert str(reader.bases[0]) == ids[-4], "the floor is the newest one that was not read"


# SQLite


async def test_what_is_not_stored_is_not_in_the_file(sqlite: World) -> None:
    async with sqlite.running() as (broker, _):
        await broker.publish([Publication([event("1"), event("live", store=False), event("2")])])
    async with sqlite.running() as (_, reader):
        assert reader.data == ["1", "2"]


@pytest.mark.parametrize("limit", ["age", "bytes"])
async def test_the_file_is_bounded_and_remembers_up_to_where_it_was_emptied(sqlite: World, limit: str) -> None:
    limits = Limits(log_seconds=100) if limit == "age" else Limits(log_bytes=1)
    async with sqlite.running(limits) as (broker, _):
        ids = await broker.publish([Publication([event()])])
        sqlite.clock.pass_seconds(101)
        assert isinstance(broker, SqliteBroker) and broker._file is not None
        broker._file.tidy()
    async with sqlite.running() as (broker, reader):
        assert reader.entries == []
        await broker.publish([Publication([event("new")])])
    file = LogFile.open_to_read(sqlite.path)
    base, entries = file.tail()
    file.close()

    assert str(base) == ids[0] and [entry.event for entry in entries] == [event("new")]


async def test_another_process_is_refused(sqlite: World) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from ssehub.brokers.sqlite import SqliteBroker\n"
        "class Follower:\n"
        "    async def begin(self, base): pass\n"
        "    async def deliver(self, position, entries): pass\n"
        "async def main():\n"
        f"    async with SqliteBroker(Path({str(sqlite.path)!r})).run(Follower()): print('has it', flush=True)\n"
        "asyncio.run(main())"
    )
    async with sqlite.running():
        other = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=20
        )
        with pytest.raises(BrokerUnavailable, match="another process has the log"):
            async with sqlite.broker().run(Reader()):
                pass
    free = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=20
    )

    assert "another process has the log" in other.stderr
    assert free.stdout == "has it\n", free.stderr


def folder(path: Path) -> None:
    path.mkdir()


def no_database(path: Path) -> None:
    path.write_text("this is no database, but it is long enough to be looked at as one " * 100)


def somebody_elses(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.commit()


def later_version(path: Path) -> None:
    LogFile.open(path, Limits()).close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def damaged(path: Path) -> None:
    file = LogFile.open(path, Limits())
    file.append([[Publication([event("x" * 3_000) for _ in range(50)])]])
    file.close()
    content = bytearray(path.read_bytes())
    for page in range(4, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = os.urandom(200)
    path.write_bytes(content)


def in_no_folder(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (folder, "it is a folder"),
        (no_database, "is damaged|something else"),
        (somebody_elses, "is a database of something else"),
        (later_version, "is of version 99"),
        (damaged, "is damaged"),
        (in_no_folder, "can't be opened: No such file"),
    ],
)
async def test_a_file_that_is_no_good_log_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    world = World("sqlite", tmp_path / "here")
    world.path.parent.mkdir()
    make(world.path)
    before = world.path.read_bytes() if world.path.is_file() else None

    with pytest.raises(BrokerUnavailable, match=says) as caught:
        async with world.broker().run(Reader()):
            pass

    assert str(world.path) in str(caught.value)
    assert before is None or world.path.read_bytes() == before


async def test_a_full_disk_is_said_and_outlived(sqlite: World) -> None:
    """Here the file may not grow; F9 has a disk that is really full."""
    async with sqlite.running() as (broker, reader):
        await broker.publish([Publication([event("1")])])
        assert isinstance(broker, SqliteBroker) and broker._file is not None
        broker._file._database.execute("PRAGMA max_page_count = 20")
        with pytest.raises(BrokerUnavailable, match="the disk is full"):
            for _ in range(20):
                await broker.publish([Publication([event("x" * 10_000)])])
        stored = len(reader.entries)
        results = await asyncio.gather(
            *[broker.publish([Publication([event("y" * 10_000)])]) for _ in range(5)], return_exceptions=True
        )
        problem = broker.problem
        broker._file._database.execute("PRAGMA max_page_count = 100000")
        await broker.publish([Publication([event("2")])])

        assert all(isinstance(result, BrokerUnavailable) for result in results)
        assert problem is not None and broker.problem is None
        assert len(reader.entries) == stored + 1
    async with sqlite.running() as (_, reader):
        assert reader.data[0] == "1" and reader.data[-1] == "2" and len(reader.entries) == stored + 1


async def test_what_waits_when_it_ends_is_answered(sqlite: World) -> None:
    broker, reader = sqlite.broker(), Reader()
    async with broker.run(reader):
        reader.may_go_on.clear()
        tasks = [asyncio.create_task(broker.publish([Publication([event(f"{n}")])])) for n in range(3)]
        await until(lambda: isinstance(broker, SqliteBroker) and not broker._waiting)
        tasks.append(asyncio.create_task(broker.publish([Publication([event("late")])])))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, reader.may_go_on.set)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)

    assert isinstance(results[-1], BrokerUnavailable | list)
    assert len(reader.data) == sum(isinstance(result, list) for result in results)


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_clock_set_back_makes_no_place_that_a_client_has_had(sqlite: World, is_stored: bool) -> None:
    async with sqlite.running() as (broker, reader):
        if not is_stored:
            await broker.publish([Publication([event(store=False)])])
        told = reader.stands_at
        assert told is not None
    sqlite.clock.wall -= 3_600

    async with sqlite.running() as (broker, reader):
        assert reader.stands_at is not None and reader.stands_at >= told
        await broker.publish([Publication([event("after")])])
        assert reader.entries[-1].position > told


async def test_a_commit_that_failed_and_was_one_all_the_same_is_no_silent_gap(sqlite: World) -> None:
    async with sqlite.running() as (broker, reader):
        assert isinstance(broker, SqliteBroker) and broker._file is not None
        append = broker._file.append

        def stored_without_a_word(requests: Sequence[Sequence[Publication]]) -> Any:
            append(requests)
            raise BrokerUnavailable("disk I/O error")

        broker._file.append = stored_without_a_word  # type: ignore[method-assign]
        with pytest.raises(BrokerUnavailable):
            await broker.publish([Publication([event("1")])])
        del broker._file.append  # type: ignore[method-assign]
        ids = await broker.publish([Publication([event("2")])])

        assert len(reader.bases) == 2 and reader.data == ["2"] and str(reader.bases[1]) < ids[0]


async def test_who_fails_to_take_what_was_stored_is_told_and_publishing_goes_on(sqlite: World) -> None:
    class Failing(Reader):
        async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
            if entries and entries[0].event == event("bad"):
                raise MemoryError
            await super().deliver(position, entries)

    broker, reader = sqlite.broker(), Failing()
    async with broker.run(reader):
        await broker.publish([Publication([event("bad")])])
        await broker.publish([Publication([event("good")])])

        assert len(reader.bases) == 2 and reader.data == ["good"]


async def test_another_name_of_the_file_is_the_same_log(sqlite: World, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(sqlite.path)

    async with sqlite.running():
        with pytest.raises(BrokerUnavailable, match="another process has the log"):
            async with SqliteBroker(link).run(Reader()):
                pass


async def test_space_after_a_full_disk_is_noticed_without_a_publisher(
    sqlite: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.TIDY_SECONDS", 0.05)
    async with sqlite.running() as (broker, _):
        assert isinstance(broker, SqliteBroker)
        broker.problem = "the disk is full"

        await until(lambda: broker.problem is None)
