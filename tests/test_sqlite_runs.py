"""The runs of the SQLite broker: their file, group commits, failed commits, and processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_worlds import RecordingFollower, SqliteWorld, event
from conftest import report, until
from run_worlds import DONE, NAME, Node, SqliteRunWorld, let_time_pass, numbered, ticket
from small_disk import run_on_small_disk
from ssehub.brokers.sqlite import LogFile, SqliteBroker
from ssehub.brokers.sqlite.tails import Tails
from ssehub.errors import BrokerUnavailable, ConflictReason, RunConflict
from ssehub.publication import Publication
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import EVENT_OVERHEAD_BYTES, RunOptions, RunState
from ssehub.runs.store import Append, CreateMode, RunFilter
from ssehub.settings import LogRetention, RunLimits

pytestmark = pytest.mark.anyio

SOAK = bool(os.environ.get("SOAK"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteRunWorld:
    let_time_pass(monkeypatch, 0.01)
    return SqliteRunWorld(tmp_path, lambda kind: pytest.fail(f"SQLite needs no {kind}"))


def runs_path(world: SqliteRunWorld) -> Path:
    return world.folder / "log.db.runs"


def query(world: SqliteRunWorld, sql: str) -> Any:
    """Return the first value of what is in the file of the runs."""
    with contextlib.closing(sqlite3.connect(runs_path(world))) as database:
        return database.execute(sql).fetchone()[0]


class Commits:
    """What the commits to the file of the runs do."""

    def __init__(self) -> None:
        self.count = 0
        self.error: str | None = None
        """If there is one, a commit raises it."""
        self.takes_effect = False
        """True if a commit that raises an error takes effect nevertheless."""
        self.may_begin = threading.Event()
        """While it is not set, commits wait."""
        self.may_begin.set()
        self.waiting = 0

    def commit(self, database: sqlite3.Connection) -> sqlite3.Cursor:
        self.waiting += 1
        assert self.may_begin.wait(10)
        self.waiting -= 1
        self.count += 1
        if self.error is None:
            return sqlite3.Connection.execute(database, "COMMIT")
        if self.takes_effect:
            sqlite3.Connection.execute(database, "COMMIT")
        raise sqlite3.OperationalError(self.error)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commits]:
    found = Commits()
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return found.commit(self) if sql == "COMMIT" else super().execute(sql, *parameters)

    def connect_with_hook(path: Any, **options: Any) -> sqlite3.Connection:
        if f"{path}".endswith(".runs"):
            options["factory"] = Connection
        opened: sqlite3.Connection = connect(path, **options)
        return opened

    monkeypatch.setattr(sqlite3, "connect", connect_with_hook)
    yield found
    found.may_begin.set()


# What is in the file


async def test_everything_about_a_run_and_its_events_outlives_the_broker(world: SqliteRunWorld) -> None:
    events = [
        RunEvent("plain"),
        RunEvent("a\nb\r\n\u2028 ü\x00 🙂", "token", "an id", 5),
        RunEvent(""),
        RunEvent("x" * 200_000, retry=0),
    ]
    fields: dict[str, Any] = {"keep": 7.5, "idle": 9, "announce": "run", "stoppable": True}
    async with world.running() as node:
        await node.create(users=("alex", "kim"), channels=("chat", "work"), **fields)
        await node.store.append(NAME, Append(ticket(), events, is_first=True))
        before = await node.store.finish(NAME, DONE._replace(state=RunState.FAILED, error="ü\x00\ud800"))
        expected = {name: getattr(before, name) for name in before.__slots__}

    async with world.running() as node:
        run = await node.get()

        assert {name: getattr(run, name) for name in run.__slots__} == expected
        assert run.options == RunOptions(("chat", "work"), ("alex", "kim"), **fields)
        assert await node.store.read(NAME, run.log, 0, 10**9) == events
        assert await node.store.read(NAME, run.log, 2, 1) == events[2:3]


async def test_large_and_small_steps_are_read_in_pages_of_any_size(world: SqliteRunWorld) -> None:
    sizes = (1, 250, 3, 1_000, 1, 99, 100, 101)
    async with world.running() as node:
        await node.create()
        total = 0
        for size in sizes:
            data = [f"{number}".ljust(700 if size == 250 else 1, ".") for number in range(total + 1, total + size + 1)]
            total = (await node.append(*data, offset=total)).events
        run = await node.get()
        for page_bytes in (1, 500, 64_000, 10**9):
            found: list[RunEvent] = []
            while page := await node.store.read(NAME, run.log, len(found), page_bytes):
                assert len(page) == 1 or sum(one.size + EVENT_OVERHEAD_BYTES for one in page) <= page_bytes
                found += page

            assert [int(one.data.rstrip(".")) for one in found] == list(range(1, sum(sizes) + 1))
            assert sum(one.size + EVENT_OVERHEAD_BYTES for one in found) == run.bytes

    async with world.running() as node:
        assert ((await node.get()).events, (await node.get()).bytes) == (run.events, run.bytes)
    assert query(world, "SELECT max(length(events)) FROM events") < 80_000


async def test_log_of_an_older_version_gets_a_file_of_runs_beside_it(world: SqliteRunWorld) -> None:
    file = LogFile.open(world.path)
    file.append([[Publication([event("old")])]])
    file.close()
    assert not runs_path(world).exists()

    broker, follower = world.broker(), RecordingFollower()
    async with broker.run(follower):
        assert follower.data == ["old"]
        assert await broker.runs.list_runs(RunFilter()) == []
        await Node(broker).create()

    with contextlib.closing(sqlite3.connect(world.path)) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 2
        assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone()[0] == 0
    async with world.running() as node:
        assert (await node.get()).generation == 1


def test_runs_do_not_count_against_the_limit_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.broker.TIDY_SECONDS", 0.05)
    logs = SqliteWorld(tmp_path, lambda kind: pytest.fail(f"SQLite needs no {kind}"))

    async def main() -> None:
        broker = logs.broker(log=LogRetention(log_bytes=200_000))
        async with broker.run(RecordingFollower()):
            await broker.publish([Publication([event("kept")])])
            node = Node(broker)
            await node.create()
            await node.append("x" * 1_000_000)
            await logs.tidied()
        async with logs.running() as (_, follower):
            assert follower.data == ["kept"]

    asyncio.run(main())


def other_application(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE other (x)")


def later_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("PRAGMA user_version = 99")


def no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 1_000)


def damaged_record(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("""UPDATE runs SET record = '{"generation": 1}'""")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (other_application, "another application"),
        (later_version, "has format version 99, not 1"),
        (no_database, "is damaged"),
        (damaged_record, "the record of run 'answer' is damaged"),
    ],
)
async def test_file_that_cannot_be_used_is_refused_and_named(world: SqliteRunWorld, damage: Any, expected: str) -> None:
    async with world.running() as node:
        await node.create()
    if damage is other_application:
        runs_path(world).unlink()
    damage(runs_path(world))

    with pytest.raises(BrokerUnavailable, match=expected) as caught:
        async with world.running():
            pass

    assert str(runs_path(world)) in str(caught.value)
    runs_path(world).unlink()
    async with world.running() as node:
        assert await node.store.get(NAME) is None


async def test_event_that_cannot_be_stored_is_refused_without_harm_to_others(
    world: SqliteRunWorld, commits: Commits
) -> None:
    """RunEvent.checked refuses such an event. If it comes here nevertheless, only its own call fails."""
    async with world.running() as node:
        for name in ("bad", "good"):
            await node.create(name)
        bad, good = await asyncio.gather(
            node.append("\ud800", name="bad"), node.append("1", name="good"), return_exceptions=True
        )

        assert isinstance(bad, UnicodeEncodeError) and not isinstance(good, BaseException)
        assert await node.data("bad") == [] and await node.data("good") == ["1"]


async def test_damaged_events_are_reported_and_other_runs_go_on(world: SqliteRunWorld) -> None:
    async with world.running() as node:
        for name in ("bad", "missing", "good"):
            await node.create(name)
            await node.append("1", name=name)
            await node.append("2", name=name)
    with contextlib.closing(sqlite3.connect(runs_path(world))) as database:
        database.execute("UPDATE events SET events = '[5]' WHERE run = 1")
        database.execute("DELETE FROM events WHERE run = 2 AND last = 1")
        database.commit()

    async with world.running() as node:
        for name in ("bad", "missing"):
            with pytest.raises(BrokerUnavailable, match="damaged"):
                await node.data(name)
        assert await node.data("good") == ["1", "2"]
        await node.append("3", name="good")
        assert await node.data("good") == numbered(1, 3)


# Group commits


async def test_calls_that_arrive_during_a_commit_share_the_next_one(world: SqliteRunWorld, commits: Commits) -> None:
    names = [f"run-{number}" for number in range(50)]
    async with world.running() as node:
        await asyncio.gather(*[node.create(name, holder=ticket(name)) for name in names])
        commits.may_begin.clear()
        first = asyncio.create_task(node.append("1", name=names[0], by=ticket(names[0])))
        await until(lambda: commits.waiting)
        before = commits.count
        others = [
            asyncio.create_task(node.append(f"{number}", name=name, by=ticket(name)))
            for number in range(4)
            for name in names[1:]
        ]
        await asyncio.sleep(0.01)
        commits.may_begin.set()
        await asyncio.gather(first, *others)

        assert commits.count - before == 2
        for name in names[1:]:
            assert await node.data(name) == ["0", "1", "2", "3"]


async def test_transaction_is_bounded_in_bytes(world: SqliteRunWorld, commits: Commits) -> None:
    names = [f"run-{number}" for number in range(10)]
    async with world.running() as node:
        await asyncio.gather(*[node.create(name) for name in names])
        before = commits.count
        await asyncio.gather(*[node.append("x" * 2**20, name=name) for name in names])

        assert 3 <= commits.count - before < 10


async def test_nothing_is_known_of_what_is_not_committed_yet(world: SqliteRunWorld, commits: Commits) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        listener = await node.follow()
        run = await node.get()
        commits.may_begin.clear()
        appended = asyncio.create_task(node.append("2", "3", outcome=DONE))
        created = asyncio.create_task(node.create("new"))
        await until(lambda: commits.waiting)
        # Refusals and listings depend on what is being written.
        refused = asyncio.create_task(node.append("9", by=ticket("p", 2), offset=8))
        listed = asyncio.create_task(node.store.list_runs(RunFilter()))
        await asyncio.sleep(0.05)

        assert not any(task.done() for task in (appended, created, refused, listed))
        assert (run.state, run.events, listener.told, node.transitions[1:]) == (RunState.OPEN, 1, [], [])
        assert await node.store.get(NAME) is run and await node.store.get("new") is None
        assert await node.data() == ["1"]
        commits.may_begin.set()
        assert (await appended).events == 3
        with pytest.raises(RunConflict) as conflict:
            await refused
        assert (conflict.value.reason, conflict.value.events) == (ConflictReason.ENDED, 3)
        assert [one.name for one in await listed] == [NAME, "new"]
        assert (run.state, run.events, listener.data) == (RunState.DONE, 3, ["2", "3"])


async def test_events_of_a_generation_are_read_until_its_restart_is_committed(
    world: SqliteRunWorld, commits: Commits
) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1", "2")
        log = (await node.get()).log
        commits.may_begin.clear()
        restarted = asyncio.create_task(node.create(mode=CreateMode.RESTART, holder=ticket()))
        await until(lambda: commits.waiting)

        assert await node.data() == ["1", "2"]
        commits.may_begin.set()
        await restarted
        assert await node.store.read(NAME, log, 0, 1_000) is None
        assert await node.data() == []


# Failures


async def test_calls_of_a_failed_commit_are_refused_and_change_nothing(
    world: SqliteRunWorld, commits: Commits, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running() as node:
        run = (await node.create(holder=ticket())).run
        await node.append("1", offset=0)
        await node.create("deleted")
        listeners = [await node.follow(name) for name in (NAME, "deleted", "new")]
        transitions = list(node.transitions)
        commits.error = "disk I/O error"
        results = await asyncio.gather(
            node.append("2", offset=1, is_first=False, outcome=DONE),
            node.append("9", by=ticket("p", 2), offset=9),
            node.create("new"),
            node.store.delete("deleted"),
            return_exceptions=True,
        )
        problem = node.broker.problem
        with pytest.raises(BrokerUnavailable, match="disk I/O error"):
            await node.append("2", offset=1, is_first=False)

        assert all(isinstance(result, BrokerUnavailable) for result in results)
        assert problem is not None and "disk I/O error" in problem
        assert (run.state, run.events) == (RunState.OPEN, 1)
        assert [listener.told for listener in listeners] == [[], [], []] and node.transitions == transitions
        assert caplog.text.count("disk I/O error") == 1

        commits.error = None
        await until(lambda: node.broker.problem is None)  # a commit that it tries by itself may still be failing
        with pytest.raises(RunConflict, match="another producer"):  # the first one holds it still
            await node.append("x", by=ticket("other"))
        assert (await node.append("2", "3", offset=1, is_first=False)).events == 3
        assert await node.data() == numbered(1, 3) and listeners[0].data == ["2", "3"]
        assert await node.store.get("new") is None and await node.store.get("deleted") is not None
    async with world.running() as node:
        assert await node.data() == numbered(1, 3)
        assert [one.name for one in await node.store.list_runs(RunFilter())] == [NAME, "deleted"]


async def test_commit_that_takes_effect_although_it_reports_an_error_is_told_and_not_doubled(
    world: SqliteRunWorld, commits: Commits
) -> None:
    async with world.running() as node:
        run = (await node.create(holder=ticket())).run
        listener = await node.follow()
        commits.error, commits.takes_effect = "disk I/O error", True
        with pytest.raises(BrokerUnavailable):
            await node.append("1", "2", offset=0, is_first=False)
        commits.error = None
        await until(lambda: node.broker.problem is None)
        again = await node.append("1", "2", offset=0, is_first=False, outcome=DONE)

        assert (again.events, run.events, run.state) == (2, 2, RunState.DONE)
        assert listener.data == ["1", "2"] and await node.data() == ["1", "2"]
        assert node.transitions[-1] == (NAME, 1, RunState.DONE)
    async with world.running() as node:
        assert await node.data() == ["1", "2"]


async def test_file_that_cannot_be_read_after_a_failed_commit_is_read_again_by_itself(
    world: SqliteRunWorld, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running() as node:
        await node.create(holder=ticket())
        commits.error = "disk I/O error"
        with monkeypatch.context() as patch:
            patch.setattr("ssehub.brokers.sqlite.runfile.RunFile.load", unreadable)
            for _ in range(2):
                with pytest.raises(BrokerUnavailable):
                    await node.append("lost", offset=0, is_first=False)
            with pytest.raises(BrokerUnavailable):
                await node.store.list_runs(RunFilter())
            assert (await node.get()).events == 0
        commits.error = None
        await until(lambda: node.broker.problem is None)

        assert (await node.append("1", offset=0, is_first=False)).events == 1
        assert await node.data() == ["1"]


def unreadable(file: object) -> Any:
    raise BrokerUnavailable("cannot read")


async def test_deadlines_wait_for_a_file_that_can_be_written(world: SqliteRunWorld, commits: Commits) -> None:
    async with world.running() as node:
        await node.create(idle=10)
        commits.error = "disk I/O error"
        world.pass_seconds(11)
        await until(lambda: node.broker.problem is not None)
        assert (await node.get()).state is RunState.OPEN

        commits.error = None
        await until(lambda: node.broker.problem is None)
        world.pass_seconds(11)
        assert (await node.ends(RunState.FAILED)).error == "idle"


def test_runs_on_a_full_disk_are_refused_until_there_is_space(tmp_path: Path) -> None:
    found = run_on_small_disk("full_disk_runs.py", tmp_path)

    assert "log.db.runs: the disk is full" in found["why"] and found["not ready"] == [found["why"]]
    assert (found["lost while full"], found["told while full"], found["listed while full"]) == (0, 0, 1)
    assert (found["told at last"], found["lost"]) == (0, 0)


async def test_calls_that_wait_when_the_broker_stops_are_answered(world: SqliteRunWorld, commits: Commits) -> None:
    broker = world.broker()
    node = Node(broker)
    async with broker.run(RecordingFollower()):
        await node.create(holder=ticket())
        commits.may_begin.clear()
        tasks = [asyncio.create_task(node.append("1", offset=0, is_first=False))]
        await until(lambda: commits.waiting)
        tasks.append(asyncio.create_task(node.append("2", offset=1, is_first=False)))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, commits.may_begin.set)
    stored, refused = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)

    assert not isinstance(stored, BaseException) and stored[1] == 1
    assert isinstance(refused, BrokerUnavailable)
    async with world.running() as node:
        assert await node.data() == ["1"]


@pytest.mark.soak
async def test_kill_9_loses_nothing_that_was_answered_and_doubles_nothing(world: SqliteRunWorld) -> None:
    """Each process goes on with the same runs, and sends the last batch again."""
    rounds = 50 if SOAK else 3
    chance = random.Random(1)
    answered: dict[str, int] = {}
    for _ in range(rounds):
        lines = await asyncio.to_thread(run_and_kill, world.path, chance.uniform(0.02, 0.3))
        for line in lines:
            if line.endswith("\n"):
                name, count = line.split()
                answered[name] = int(count)

    async with world.running() as node:
        for name, least in answered.items():
            data = await node.data(name)
            assert len(data) >= least > 0
            assert data == numbered(1, len(data)), name
    report(f"kill -9: {rounds} times, {sum(answered.values())} events of {len(answered)} runs answered, all there once")


def run_and_kill(path: Path, seconds: float) -> list[str]:
    """Let producers work for so long; return the lines that they have printed."""
    command = [sys.executable, str(Path(__file__).parent / "killed_runs.py"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        lines += process.stdout.readlines()
        killer.join()
    return lines


# Space


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_large_run_is_deleted_in_slices_while_others_are_written(
    world: SqliteRunWorld, is_restarted: bool
) -> None:
    async with world.running() as node:
        await node.create("large")
        for _ in range(8):
            await node.append(*["x" * 10_000] * 100, name="large")
        await node.create("small")
        writes = query(world, "SELECT count FROM writes")
        if is_restarted:
            await node.create("large", CreateMode.RESTART)
        else:
            await node.store.delete("large")
        assert query(world, "SELECT count(*) FROM events") > 50
        slowest = 0.0
        while query(world, "SELECT count(*) FROM dropped"):
            began = time.monotonic()
            await node.append("1", name="small")
            slowest = max(slowest, time.monotonic() - began)

        assert query(world, "SELECT count(DISTINCT run) FROM events") == 1
        assert query(world, "SELECT count FROM writes") - writes > 7
        report(f"deleting 8 MB: the slowest append of another run took {1000 * slowest:.1f} ms")


async def test_thousands_of_small_runs_are_deleted_in_few_transactions(world: SqliteRunWorld, commits: Commits) -> None:
    async with world.running() as node:
        names = [f"{number}" for number in range(2_000)]
        await asyncio.gather(*[node.create(name, keep=10) for name in names])
        await asyncio.gather(*[node.append("1", name=name, outcome=DONE) for name in names])
        before = commits.count
        world.pass_seconds(11)
        await until(lambda: not node.store.totals().states[RunState.DONE])
        await until(lambda: not query(world, "SELECT count(*) FROM events"))

        assert commits.count - before < 50


async def test_deletion_goes_on_after_a_restart(world: SqliteRunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.running() as node:
        for name in ("deleted", "restarted"):
            await node.create(name)
            await node.append(*["x" * 1_000] * 300, name=name)
        monkeypatch.setattr("ssehub.brokers.sqlite.runfile.RunFile.has_leftovers", False)
        monkeypatch.setattr("ssehub.brokers.sqlite.runfile.SLICE_ROWS", 1)
        await node.store.delete("deleted")
        await node.create("restarted", CreateMode.RESTART, holder=ticket())
    assert query(world, "SELECT count(*) FROM dropped") == 2
    assert query(world, "SELECT count(DISTINCT run) FROM events") == 2
    monkeypatch.undo()

    async with world.running():
        await until(lambda: not query(world, "SELECT count(*) FROM dropped"))
    assert query(world, "SELECT count(*) FROM events") == 0


async def test_space_of_deleted_runs_is_used_again_and_given_back(
    world: SqliteRunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.runfile.FREE_PAGES", 100)
    async with world.running() as node:
        for _ in range(3):
            await node.create()
            await node.append(*["x" * 100_000] * 50)
            await node.store.delete(NAME)
            await until(lambda: not query(world, "SELECT count(*) FROM dropped"))
        await until(lambda: query(world, "PRAGMA freelist_count") <= 100)
    assert runs_path(world).stat().st_size < 1_000_000


async def test_generations_are_remembered_for_a_day(world: SqliteRunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.brokers.sqlite.run_writer.TIDY_SECONDS", 0.02)
    async with world.running() as node:
        await node.create("old")
        await node.store.delete("old")
        world.pass_seconds(86_000)
        await node.create("new")
        await node.store.delete("new")
        world.pass_seconds(500)
        await until(lambda: query(world, "SELECT count(*) FROM tombstones") == 1)

    async with world.running() as node:
        assert (await node.create("old")).run.generation == 1
        assert (await node.create("new")).run.generation == 2


@pytest.mark.soak
async def test_thousands_of_runs_are_created_at_once_and_loaded(world: SqliteRunWorld) -> None:
    count = 20_000 if SOAK else 3_000
    began = time.monotonic()
    async with world.running() as node:
        await asyncio.gather(*[node.create(f"{n}", holder=ticket(f"{n}")) for n in range(count)])
        created = time.monotonic()
    async with world.running() as node:
        assert node.store.totals().states[RunState.OPEN] == count
        loaded = time.monotonic()
    report(f"{count} runs: created in {created - began:.2f} s, closed and loaded in {loaded - created:.2f} s")


# Watchers that are behind


async def test_watcher_a_little_behind_reads_no_file(world: SqliteRunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.running() as node:
        await node.create()
        await node.append("1")
        await node.follow()
        for number in range(2, 30):
            await node.append(f"{number}")
        monkeypatch.setattr("ssehub.brokers.sqlite.run_rows.RunReader.read", unreadable_page)
        assert await node.data(after=1) == numbered(2, 29)
        assert await node.data(after=20) == numbered(21, 29)
        with pytest.raises(BrokerUnavailable):
            await node.data()


def test_newest_events_in_memory_are_bounded_and_the_oldest_give_way() -> None:
    tails = Tails(40_000)
    for number in range(1, 101):
        tails.add("a", "log", number, [RunEvent(f"{number}")])
    assert tails.read("a", "log", 0, 10**6) == [RunEvent(f"{number}") for number in range(1, 101)]
    tails.add("b", "log", 1, [RunEvent("x" * 30_000), RunEvent("y")])

    assert tails.bytes <= 40_000
    assert tails.read("a", "log", 0, 10**6) is None and tails.read("a", "log", 98, 10**6) == [
        RunEvent("99"),
        RunEvent("100"),
    ]
    assert tails.read("b", "log", 0, 10) == [RunEvent("x" * 30_000)]
    assert tails.read("b", "other", 0, 10) is None and tails.read("b", "log", 2, 10) is None
    tails.add("a", "log", 103, [RunEvent("103")])  # two were missed
    assert tails.read("a", "log", 100, 10) is None and tails.read("a", "log", 102, 10) == [RunEvent("103")]
    tails.add("b", "log", 3, [RunEvent("z" * 50_000)])  # larger than all that may be held
    assert tails.read("b", "log", 2, 10) is None and tails.bytes == 0
    tails.add("a", "log", 104, [RunEvent("104")])
    tails.forget("a")
    tails.forget("b")
    assert tails.bytes == 0 and tails.read("a", "log", 103, 10) is None


def unreadable_page(*arguments: object) -> Any:
    raise BrokerUnavailable("the file is read")


async def test_broker_that_does_not_run_has_no_runs(world: SqliteRunWorld) -> None:
    broker = SqliteBroker(world.path, runs=RunLimits())

    with pytest.raises(BrokerUnavailable, match="is not running"):
        await broker.runs.get(NAME)
    assert broker.problem is None and not broker.runs.totals().bytes
