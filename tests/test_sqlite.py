"""The SQLite broker: its file, its lock, and what happens when the file cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker_worlds import RecordingFollower, SqliteWorld, event
from conftest import until
from ssehub.brokers import Entry
from ssehub.brokers.sqlite import LogFile, SqliteBroker
from ssehub.errors import BrokerUnavailable
from ssehub.event import Event
from ssehub.position import Position
from ssehub.publication import Publication, Revoke
from ssehub.revocations import Revocation
from ssehub.settings import LogRetention, Retention

pytestmark = pytest.mark.anyio


def world_in(folder: Path) -> SqliteWorld:
    return SqliteWorld(folder, lambda kind: pytest.fail(f"SQLite needs no {kind}"))


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    return world_in(tmp_path)


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections that are opened to databases during the test, in order."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def record(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", record)
    return opened


@pytest.fixture
def tidies_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.broker.TIDY_SECONDS", 0.05)


# What is in the file


async def test_event_that_is_not_to_be_stored_is_not_in_the_file(world: SqliteWorld) -> None:
    async with world.running() as (broker, _):
        await broker.publish([Publication([event("1"), event("live", store=False), event("2")])])

    async with world.running() as (_, follower):
        assert follower.data == ["1", "2"]


@pytest.mark.parametrize("log", [LogRetention(log_seconds=100), LogRetention(log_bytes=1)], ids=["age", "bytes"])
@pytest.mark.usefixtures("tidies_often")
async def test_file_is_bounded_and_records_up_to_where_events_were_deleted(
    world: SqliteWorld, log: LogRetention
) -> None:
    broker = world.broker(log=log)
    async with broker.run(RecordingFollower()):
        ids = await broker.publish([Publication([event()])])
        world.pass_seconds(101)
        await world.tidied()
    async with world.running() as (again, follower):
        assert follower.entries == []
        await again.publish([Publication([event("new")])])
    file = LogFile.open_to_read(world.path)
    base, entries = file.tail(Retention())
    file.close()

    assert str(base) == ids[0] and [entry.event for entry in entries] == [event("new")]


@pytest.mark.usefixtures("tidies_often")
async def test_file_is_bounded_while_publishers_never_pause(world: SqliteWorld) -> None:
    broker = world.broker(log=LogRetention(log_seconds=100))
    answers: list[asyncio.Task[list[str]]] = []

    async def publish_always() -> None:
        while True:
            answers.append(asyncio.create_task(broker.publish([Publication([event()])])))
            await asyncio.sleep(0)

    async with broker.run(RecordingFollower()):
        await broker.publish([Publication([event("old")])])
        world.pass_seconds(101)
        publishing = asyncio.create_task(publish_always())
        with contextlib.closing(sqlite3.connect(world.path)) as database:
            await until(lambda: database.execute("SELECT min(n) FROM events").fetchone() != (1,))
        publishing.cancel()
        await asyncio.gather(*answers)


OLD_EVENTS = [
    {"channels": ["chat"], "users": ["*"], "data": "x", "id": "a\x1bb"},
    {"channels": ["chat"], "users": ["*"], "payload": "id:  a\ndata: x\n"},
    {"channels": ["chat"], "users": ["*"], "payload": "".join(f"id: {n}\n" for n in range(10_001)) + "data: x"},
    {"channels": ["chat"], "users": ["*"], "payload": "retry: 1000000000\n" * 10_001 + "data: x"},
]


@pytest.mark.parametrize("old", OLD_EVENTS, ids=["control", "space", "many-ids", "many-retries"])
async def test_c2_log_of_an_older_version_with_ids_that_are_now_refused_is_read(
    world: SqliteWorld, old: dict[str, object]
) -> None:
    async with world.running() as (broker, _):
        await broker.publish([Publication([event("1"), event("2")])])
    with contextlib.closing(sqlite3.connect(world.path)) as database:
        database.execute("UPDATE events SET event = ? WHERE n = (SELECT MIN(n) FROM events)", [json.dumps(old)])
        database.commit()

    async with world.running() as (_, follower):
        first, second = [entry.event for entry in follower.entries]

        assert isinstance(first, Event) and (first.id, first.ids) == (None, ())
        assert second == event("2")


@pytest.mark.parametrize("is_stored", [True, False])
async def test_clock_set_back_across_a_restart_repeats_no_position_that_a_client_knows(
    world: SqliteWorld, is_stored: bool
) -> None:
    async with world.running() as (broker, follower):
        if not is_stored:
            await broker.publish([Publication([event(store=False)])])
        known = follower.position
    world.clock.wall -= 3_600

    async with world.running() as (broker, follower):
        assert follower.position >= known
        await broker.publish([Publication([event("after")])])
        assert follower.entries[-1].position > known


# The lock


async def test_second_process_is_refused(world: SqliteWorld) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from ssehub.brokers.sqlite import SqliteBroker\n"
        "class Follower:\n"
        "    async def begin(self, base): pass\n"
        "    async def deliver(self, position, entries): pass\n"
        "async def main():\n"
        f"    async with SqliteBroker(Path({str(world.path)!r})).run(Follower()): print('has it', flush=True)\n"
        "asyncio.run(main())"
    )

    async def run_code() -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=20
        )

    async with world.running():
        other = await run_code()
        with pytest.raises(BrokerUnavailable, match="another process is using the log"):
            async with world.broker().run(RecordingFollower()):
                pass
    free = await run_code()

    assert "another process is using the log" in other.stderr
    assert free.stdout == "has it\n", free.stderr


async def test_symbolic_link_to_the_file_is_the_same_log(world: SqliteWorld, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(world.path)

    async with world.running():
        with pytest.raises(BrokerUnavailable, match="another process is using the log"):
            async with SqliteBroker(link).run(RecordingFollower()):
                pass


# Files that cannot be used


def directory(path: Path) -> None:
    path.mkdir()


def not_a_database(path: Path) -> None:
    path.write_text("this is not a database, but it is long enough to be examined as one " * 100)


def database_of_another_application(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")
        database.commit()


def later_version(path: Path) -> None:
    LogFile.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def damaged(path: Path) -> None:
    file = LogFile.open(path)
    file.append([[Publication([event("x" * 3_000) for _ in range(50)])]])
    file.close()
    content = bytearray(path.read_bytes())
    for page in range(4, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = os.urandom(200)
    path.write_bytes(content)


def missing_directory(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (directory, "it is a directory"),
        (not_a_database, "is damaged|another application"),
        (database_of_another_application, "is a database of another application"),
        (later_version, "has format version 99"),
        (damaged, "is damaged"),
        (missing_directory, "cannot open the log .*: No such file"),
    ],
)
async def test_file_that_cannot_be_used_is_refused_and_left_unchanged(
    tmp_path: Path, make: Callable[[Path], None], expected: str
) -> None:
    world = world_in(tmp_path / "here")
    world.path.parent.mkdir()
    make(world.path)
    before = world.path.read_bytes() if world.path.is_file() else None

    with pytest.raises(BrokerUnavailable, match=expected) as caught:
        async with world.broker().run(RecordingFollower()):
            pass

    assert str(world.path) in str(caught.value)
    assert before is None or world.path.read_bytes() == before


# Failures while running


async def test_full_disk_is_reported_and_publishing_resumes_when_there_is_space(
    world: SqliteWorld, databases: list[sqlite3.Connection]
) -> None:
    """The file may not grow beyond a number of pages; F9 uses a disk that is really full."""
    async with world.running() as (broker, follower):
        await broker.publish([Publication([event("1")])])
        databases[0].execute("PRAGMA max_page_count = 20")
        with pytest.raises(BrokerUnavailable, match="the disk is full"):
            for _ in range(20):
                await broker.publish([Publication([event("x" * 10_000)])])
        stored = len(follower.entries)
        results = await asyncio.gather(
            *[broker.publish([Publication([event("y" * 10_000)])]) for _ in range(5)], return_exceptions=True
        )
        problem = broker.problem
        databases[0].execute("PRAGMA max_page_count = 100000")
        await broker.publish([Publication([event("2")])])

        assert all(isinstance(result, BrokerUnavailable) for result in results)
        assert problem is not None and "the disk is full" in problem and broker.problem is None
        assert len(follower.entries) == stored + 1
    async with world.running() as (_, follower):
        assert follower.data[0] == "1" and follower.data[-1] == "2" and len(follower.entries) == stored + 1


@pytest.mark.usefixtures("tidies_often")
async def test_space_on_a_full_disk_is_noticed_without_a_publisher(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running() as (broker, _):
        with monkeypatch.context() as patch:
            patch.setattr(LogFile, "append", failing)
            with pytest.raises(BrokerUnavailable):
                await broker.publish([Publication([event()])])

        await until(lambda: broker.problem is None)


def failing(file: LogFile, requests: Sequence[Sequence[Publication]]) -> Any:
    raise BrokerUnavailable("the disk is full")


async def test_publishers_that_wait_when_the_broker_stops_are_answered(world: SqliteWorld) -> None:
    broker, follower = world.broker(), RecordingFollower()
    async with broker.run(follower):
        follower.has_capacity.clear()
        tasks = [asyncio.create_task(broker.publish([Publication([event(f"{n}")])])) for n in range(3)]
        await until(lambda: follower.waiting)
        tasks.append(asyncio.create_task(broker.publish([Publication([event("late")])])))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, follower.has_capacity.set)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)

    assert isinstance(results[-1], BrokerUnavailable | list)
    assert len(follower.data) == sum(isinstance(result, list) for result in results)


async def test_commit_that_takes_effect_although_it_reports_an_error_leaves_no_silent_gap(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = LogFile.append

    def append_and_fail(file: LogFile, requests: Sequence[Sequence[Publication]]) -> Any:
        append(file, requests)
        raise BrokerUnavailable("disk I/O error")

    async with world.running() as (broker, follower):
        with monkeypatch.context() as patch:
            patch.setattr(LogFile, "append", append_and_fail)
            with pytest.raises(BrokerUnavailable):
                await broker.publish([Publication([event("1")])])
        ids = await broker.publish([Publication([event("2")])])

        assert len(follower.bases) == 2 and follower.data == ["2"] and str(follower.bases[1]) < ids[0]


async def test_revocation_of_a_commit_that_reports_an_error_is_in_force_if_it_took_effect(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    fails = False

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *parameters)
            if fails and sql == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return cursor

    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, factory=Connection, **options))
    async with world.running() as (broker, follower):
        await broker.revoke([Revocation(jti="before")])
        fails = True
        with pytest.raises(BrokerUnavailable, match="disk I/O error"):
            await broker.revoke([Revocation(jti="1")])
        fails = False

        await until(lambda: len(follower.bases) == 2)
        assert follower.revocations == [Revocation(jti="1")]
        assert {one.jti for one in broker.revocations} == {"before", "1"}


async def test_revocation_and_its_entry_are_stored_together_or_not_at_all(
    world: SqliteWorld, databases: list[sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.logfile.MAX_REVOCATIONS", 1)
    async with world.running() as (broker, follower):
        # The position of the entry is recorded after the table has been changed.
        databases[0].execute("CREATE TEMP TRIGGER fails BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'no'); END")
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                await broker.revoke([Revocation(jti="lost")])
        databases[0].execute("DROP TRIGGER fails")
        await broker.revoke([Revocation(jti="kept")])  # the table is not counted as fuller than it is

        assert follower.commands == [Revoke((Revocation(jti="kept"),))]
        assert list(broker.revocations) == [Revocation(jti="kept")]
    async with world.running() as (broker, _):
        assert list(broker.revocations) == [Revocation(jti="kept")]


async def test_revocation_that_cannot_be_read_is_reported_at_the_start(world: SqliteWorld) -> None:
    async with world.running() as (broker, _):
        await broker.revoke([Revocation(jti="a")])
    with contextlib.closing(sqlite3.connect(world.path, isolation_level=None)) as database:
        database.execute("""UPDATE revocations SET revocation = '{"jti": 5}'""")

    with pytest.raises(BrokerUnavailable, match=r"damaged.*jti must be a string"):
        async with world.running():
            pass


@pytest.mark.usefixtures("tidies_often")
async def test_revocations_do_not_count_against_the_limit_of_the_log(world: SqliteWorld) -> None:
    broker, follower = world.broker(log=LogRetention(log_bytes=400_000)), RecordingFollower()
    async with broker.run(follower):
        await broker.publish([Publication([event("kept")])])
        for start in range(0, 6_000, 1_000):
            names = [f"{'x' * 100}{number}" for number in range(start, start + 1_000)]
            await broker.revoke([Revocation(jti=name) for name in names])
        await world.tidied()
    assert world.path.stat().st_size > 1_000_000

    async with world.running() as (_, follower):
        assert follower.data == ["kept"]


async def test_follower_that_fails_is_told_to_begin_again_and_publishing_continues(world: SqliteWorld) -> None:
    class Failing(RecordingFollower):
        async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
            if entries and entries[0].event == event("bad"):
                raise MemoryError
            await super().deliver(position, entries)

    broker, follower = world.broker(), Failing()
    async with broker.run(follower):
        await broker.publish([Publication([event("bad")])])
        await broker.publish([Publication([event("good")])])

        assert len(follower.bases) == 2 and follower.data == ["good"]
