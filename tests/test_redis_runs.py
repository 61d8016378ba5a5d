"""Runs on Redis: several nodes, lost connections and lost data. The contract is tested in `test_run_contract*.py`."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker_worlds import RecordingFollower
from conftest import free_port, report, until
from proxy import Mode, Proxy
from redis_nodes import PROBE_SECONDS
from redis_servers import ANSWER_SECONDS, RedisServer
from run_worlds import DONE, NAME, OPTIONS_BYTES, Node, events, numbered, options, ticket
from ssehub.brokers.redis import RedisBroker
from ssehub.brokers.redis.runs import RedisRuns
from ssehub.errors import BrokerUnavailable, ConflictReason, Overloaded, RunConflict, UnknownRun
from ssehub.fanout.subscriber import CloseReason
from ssehub.hub import Hub
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Run, RunError, RunState
from ssehub.runs.store import Append, Creation, RunFilter
from ssehub.settings import RedisOptions, RunLimits
from watched_runs import watch

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio

READ_BYTES = 2**16


class Watcher:
    """Has the events of a run, as a stream would: it reads those that it was not told of."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._run: Run | None = None
        self._log = ""
        self._task: asyncio.Task[None] | None = None
        self.data: list[str] = []
        self.resets = 0
        self.is_gone = False

    async def watch(self) -> None:
        run = await self._node.store.follow(NAME, self)
        if run is not None:
            self.advanced(run, run.events + 1, ())

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        self._run, self.is_gone = run, False
        if run.log != self._log:
            self.resets += bool(self._log)
            self._log, self.data = run.log, []
        if self._task is None and first <= len(self.data) + 1 and events:
            self.data += [event.data for event in events[len(self.data) + 1 - first :]]
        if self._task is None and len(self.data) < run.events:
            self._task = asyncio.create_task(self._read())

    def vanished(self, run: Run) -> None:
        self._run, self.is_gone = None, True

    def claimed(self, connection: str) -> None:
        pass

    @property
    def state(self) -> RunState | None:
        return None if self._run is None else self._run.state

    async def _read(self) -> None:
        while (run := self._run) is not None and len(self.data) < run.events:
            log, after = self._log, len(self.data)
            with contextlib.suppress(BrokerUnavailable):
                found = await self._node.store.read(NAME, log, after, READ_BYTES)
                if found and log == self._log:
                    self.data += [event.data for event in found]
                    continue
            await asyncio.sleep(0.01)
        self._task = None


class Producer:
    """Appends as one connection after the other, and repeats what may not have been stored."""

    def __init__(self, node: Node, sent: int = 0) -> None:
        self.node = node
        self._connection = 1
        self._sent = sent

    async def append(self, *data: str, **step: Any) -> None:
        async with asyncio.timeout(15):
            while True:
                by = ticket("p", self._connection)
                try:
                    await self.node.append(*data, by=by, offset=self._sent, **step)
                except BrokerUnavailable:
                    self._connection += 1
                    await asyncio.sleep(0.02)
                else:
                    self._sent += len(data)
                    return


def broker(url: str, **limits: int) -> RedisBroker:
    return RedisBroker(url, runs=RunLimits(**limits), options=RedisOptions(broker_probe_seconds=PROBE_SECONDS))


@asynccontextmanager
async def running(url: str, **limits: int) -> AsyncIterator[Node]:
    node = Node(broker(url, **limits))
    async with node.broker.run(RecordingFollower()):
        yield node


async def test_watcher_misses_nothing_when_its_pubsub_connection_is_killed(redis_server: RedisServer) -> None:
    async with running(redis_server.url) as a, running(redis_server.url) as b:
        await a.create()
        watcher = Watcher(b)
        await watcher.watch()
        for number in range(1, 301):
            await a.append(str(number))
            if number % 60 == 0:
                redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await a.append(outcome=DONE)
        await until(lambda: watcher.state is RunState.DONE and len(watcher.data) == 300)

        assert watcher.data == numbered(1, 300) and watcher.resets == 0


async def test_nothing_is_lost_or_doubled_when_redis_is_killed(redis_server: RedisServer) -> None:
    async with running(redis_server.url) as a, running(redis_server.url) as b:
        await a.create(holder=ticket())
        watcher, producer = Watcher(b), Producer(a)
        await watcher.watch()

        async def kill() -> None:
            for _ in range(2):
                await asyncio.sleep(0.2)
                await asyncio.to_thread(redis_server.restart)

        killing = asyncio.create_task(kill())
        count = 0
        while not killing.done():
            count += 1
            await producer.append(str(count))
        await killing
        await producer.append("end", outcome=DONE)
        await until(lambda: watcher.state is RunState.DONE and len(watcher.data) == count + 1)

        assert watcher.data == [*numbered(1, count), "end"] and watcher.resets == 0
        assert await b.data() == watcher.data


async def test_run_that_lost_its_tail_goes_on_in_another_log(valkey: RedisServer) -> None:
    valkey.kill()
    valkey.start("--appendonly", "no")
    async with running(valkey.url) as a, running(valkey.url) as b:
        await a.create(holder=ticket())
        log = (await a.get()).log
        watcher = Watcher(b)
        await watcher.watch()
        await a.append(*numbered(1, 50))
        valkey.command("SAVE")
        await a.append(*numbered(51, 100))
        await until(lambda: len(watcher.data) == 100)
        valkey.kill()
        valkey.start("--appendonly", "no")
        await until(lambda: watcher.resets == 1, 10)
        with pytest.raises(RunConflict) as refused:
            await a.append("101", by=ticket("p", 2), offset=100)
        await a.append("51", by=ticket("p", 2), offset=50)
        await until(lambda: watcher.data[-1:] == ["51"])

        assert refused.value.reason is ConflictReason.OFFSET and refused.value.events == 50
        assert watcher.data == numbered(1, 51) and watcher.resets == 1
        assert (await a.get()).log != log


async def test_run_that_lost_its_tail_while_its_server_was_a_replica_goes_on_in_another_log(
    valkey: RedisServer,
) -> None:
    async with running(valkey.url) as node:
        await node.create(holder=ticket())
        await node.append("1")
        log = (await node.get()).log
    valkey.command("REPLICAOF", "127.0.0.1", free_port())
    valkey.command("REPLICAOF", "NO", "ONE")
    async with running(valkey.url) as node:
        with pytest.raises(RunConflict) as refused:
            await node.append("4", by=ticket("p", 2), offset=3)

        assert refused.value.reason is ConflictReason.OFFSET and refused.value.events == 1
        assert (await node.get()).log != log and await node.data() == ["1"]


async def test_ordinals_that_are_used_again_reset_a_watcher(valkey: RedisServer) -> None:
    valkey.kill()
    valkey.start("--appendonly", "no")
    with Proxy(valkey.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}") as a, running(valkey.url) as b:
            await b.create(holder=ticket())
            watcher = Watcher(a)
            await watcher.watch()
            await b.append("1")
            valkey.command("SAVE")
            await b.append("2", "3")
            await until(lambda: len(watcher.data) == 3)
            proxy.mode = Mode.DROP
            valkey.kill()
            valkey.start("--appendonly", "no")
            await until(lambda: b.broker.problem is None, 10)
            producer = Producer(b, sent=1)
            await producer.append("two", "three", "four")
            proxy.mode = Mode.PASS
            await until(lambda: watcher.resets == 1 and len(watcher.data) == 4, 10)

        assert watcher.data == ["1", "two", "three", "four"]


async def test_stream_of_a_run_that_goes_on_in_another_log_is_reset_and_has_all_of_it(valkey: RedisServer) -> None:
    valkey.kill()
    valkey.start("--appendonly", "no")
    with Proxy(valkey.port) as proxy:
        async with Hub(broker(f"redis://127.0.0.1:{proxy.port}")) as hub, running(valkey.url) as b:
            await b.create(holder=ticket())
            await b.append("1")
            watcher, sink = await watch(hub)
            await until(lambda: sink.data()[-1] == "1")
            valkey.command("SAVE")
            await b.append("2", "3")
            await until(lambda: sink.data()[-1] == "3")
            proxy.mode = Mode.DROP
            valkey.kill()
            valkey.start("--appendonly", "no")
            await until(lambda: b.broker.problem is None, 10)
            producer = Producer(b, sent=1)
            await producer.append("two", "three", "four")
            proxy.mode = Mode.PASS
            await until(lambda: sink.data()[-1] == "four", 10)
            await producer.append(outcome=DONE)
            await until(lambda: watcher.reason, 10)

    shown = [text for text in sink.data() if not text.startswith('{"run"')]
    assert shown == ["1", "2", "3", '{"reason":"log-lost"}', "1", "two", "three", "four", '{"reason":"done"}']
    assert watcher.reason is CloseReason.FINISHED


async def test_deletion_of_everything_is_noticed(redis_server: RedisServer) -> None:
    async with running(redis_server.url) as a, running(redis_server.url) as b:
        await a.create(holder=ticket())
        await a.append("1")
        watcher = Watcher(b)
        await watcher.watch()
        await asyncio.sleep(0.7)  # a sweep has seen the epoch
        redis_server.command("FLUSHALL")
        with pytest.raises(UnknownRun):
            await a.append("2", is_first=False)
        await until(lambda: watcher.is_gone)
        await a.create()
        await a.append("new")
        await until(lambda: watcher.data == ["new"])

        assert a.store.totals().bytes == 35 + OPTIONS_BYTES


async def test_run_whose_events_are_missing_is_forgotten(valkey: RedisServer) -> None:
    async with running(valkey.url) as a, running(valkey.url) as b:
        run = (await a.create(holder=ticket())).run
        await a.append("1", "2")
        watcher = Watcher(b)
        await watcher.watch()
        valkey.command("DEL", f"{{ssehub}}:run:{NAME}/{run.log}")
        with pytest.raises(UnknownRun):
            await a.append("3", is_first=False)
        await until(lambda: watcher.is_gone)

        assert a.transitions[-1] == (NAME, 1, RunState.FAILED)
        assert (await a.create()).run.generation == 2


async def test_totals_are_counted_anew_when_keys_were_deleted(valkey: RedisServer) -> None:
    async with running(valkey.url) as node:
        for name in ("1", "2"):
            await node.create(name)
            await node.append("x", name=name)
        valkey.command("DEL", "{ssehub}:run:1")
        valkey.command("ZADD", "{ssehub}:run-deadlines", 0, "1")
        await until(lambda: node.store.totals().bytes == 33 + OPTIONS_BYTES)

        assert node.store.totals().states[RunState.OPEN] == 1
        assert [run.name for run in await node.store.list_runs(RunFilter("alex"))] == ["2"]


async def test_run_that_can_not_be_ended_keeps_no_other_from_its_end(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(valkey.url) as node:
        for name in ("broken", "idle"):
            await node.create(name, idle=1)
        valkey.command("SET", "{ssehub}:run:broken", "not a hash")
        await node.ends(RunState.FAILED, "idle")
        await asyncio.sleep(1)

    assert caplog.text.count("cannot do what is due for a run: WRONGTYPE") == 1


async def test_sweeps_that_fail_are_logged_once_and_go_on(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(valkey.url) as node:
        valkey.command("SET", "{ssehub}:run-tombstone-ages", "not a sorted set")
        await asyncio.sleep(2)
        valkey.command("DEL", "{ssehub}:run-tombstone-ages")
        await node.create(idle=1)
        await node.ends(RunState.FAILED)

    assert caplog.text.count("cannot do what is due for runs") == 1


async def test_server_that_became_a_replica_is_left(redis_server: RedisServer) -> None:
    async with running(redis_server.url) as node:
        await node.create(holder=ticket())
        redis_server.command("REPLICAOF", "127.0.0.1", "1")
        runs = node.store
        assert isinstance(runs, RedisRuns)
        await until(lambda: "read-only replica" in (runs.problem or ""))
        redis_server.command("REPLICAOF", "NO", "ONE")
        await until(lambda: runs.problem is None)

        assert (await node.append("1")).events == 1


async def test_claims_outlive_an_absence_of_all_nodes(valkey: RedisServer) -> None:
    async with running(valkey.url) as node, running(valkey.url) as other:
        await node.create(holder=ticket())
        await until(lambda: valkey.command("ZCARD", "{ssehub}:run-leases") == 2)
        for _ in range(20):  # whether a sweep or the other producer comes first
            valkey.command("EVAL", BE_AWAY, 0, "{ssehub}:", 60_000)
            with pytest.raises(RunConflict) as refused:
                await other.append("1", by=ticket("q"))
            assert refused.value.reason is ConflictReason.PRODUCER
        valkey.command("EVAL", BE_AWAY, 0, "{ssehub}:", 60_000)

        assert (await other.store.stop(NAME)).state is RunState.STOPPING


async def test_lease_that_had_lapsed_before_an_absence_is_not_alive_after_it(valkey: RedisServer) -> None:
    async with running(valkey.url) as node:
        async with running(valkey.url) as other:
            await other.create(holder=ticket())
        valkey.command("EVAL", BE_AWAY, 0, "{ssehub}:", 60_000)

        assert (await node.append("1", by=ticket("q"))).events == 1


BE_AWAY = """
local prefix, milliseconds = ARGV[1], tonumber(ARGV[2])
redis.call('HINCRBY', prefix .. 'run-totals', 'swept', -milliseconds)
for _, node in ipairs(redis.call('ZRANGE', prefix .. 'run-leases', 0, -1)) do
  redis.call('ZINCRBY', prefix .. 'run-leases', -milliseconds, node)
end
"""
"""As if no node had been heard of for some time."""


async def test_watcher_goes_on_after_redis_was_out_of_reach(valkey: RedisServer) -> None:
    with Proxy(valkey.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}") as a, running(valkey.url) as b:
            await b.create()
            watcher = Watcher(a)
            await watcher.watch()
            for mode in (Mode.DROP, Mode.STALL):
                proxy.mode = mode
                for number in range(len(watcher.data) + 1, len(watcher.data) + 101):
                    await b.append(str(number))
                proxy.mode = Mode.PASS
                await until(lambda: len(watcher.data) % 100 == 0 and len(watcher.data) > 0, 10)
            await b.append(outcome=DONE)
            await until(lambda: watcher.state is RunState.DONE and len(watcher.data) == 200, 10)

        assert watcher.data == numbered(1, 200) and watcher.resets == 0


async def test_every_call_is_answered_in_time_when_redis_is_silent(valkey: RedisServer) -> None:
    with Proxy(valkey.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}") as node:
            run = (await node.create()).run
            proxy.mode = Mode.STALL
            store = node.store
            calls = (
                node.create("other"),
                node.append("1"),
                store.release(NAME, ticket()),
                store.finish(NAME, DONE),
                store.stop(NAME),
                store.delete(NAME),
                store.get(NAME),
                store.read(NAME, run.log, 0, 100),
                store.list_runs(RunFilter()),
                node.follow(),
            )
            async with asyncio.timeout(ANSWER_SECONDS):
                answers = await asyncio.gather(*calls, return_exceptions=True)
            proxy.mode = Mode.PASS

            assert [type(answer) for answer in answers] == [BrokerUnavailable] * len(calls)


async def test_read_whose_answer_is_lost_is_repeated(valkey: RedisServer) -> None:
    with Proxy(valkey.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}") as node:
            await node.create("read me")
            proxy.cut_answer_to(b"read me")

            assert (await node.get("read me")).name == "read me"
            assert proxy.has_cut


async def test_queue_is_bounded(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.brokers.redis.run_calls.MAX_WAITING_OPERATIONS", 10)
    with Proxy(valkey.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}") as node:
            await node.create()
            proxy.mode = Mode.STALL
            answers = await asyncio.gather(*[node.store.get(NAME) for _ in range(300)], return_exceptions=True)
            proxy.mode = Mode.PASS

            assert {type(answer) for answer in answers} == {Overloaded, BrokerUnavailable}


async def test_large_batches_are_stored_in_order(valkey: RedisServer) -> None:
    async with running(valkey.url, run_bytes=2**26) as a, running(valkey.url) as b:
        await a.create(holder=ticket())
        watcher = Watcher(b)
        await watcher.watch()
        small, large = numbered(1, 25_000), ["x" * 2**20] * 10
        await a.append(*small, offset=0, is_first=False)
        appended = await a.append(*large, offset=25_000, is_first=False, outcome=DONE)
        await until(lambda: watcher.state is RunState.DONE and len(watcher.data) == 25_010, 10)

        assert appended == (1, 25_010, RunState.DONE)
        assert watcher.data == small + large


async def test_another_producer_goes_on_when_a_node_has_left(valkey: RedisServer) -> None:
    async with running(valkey.url) as a:
        async with running(valkey.url) as b:
            await b.create(holder=ticket("p"))
            with pytest.raises(RunConflict):
                await a.append("1", by=ticket("q"))

        assert (await a.append("1", by=ticket("q"))).events == 1


async def test_databases_of_one_server_have_runs_of_their_own(valkey: RedisServer) -> None:
    async with running(f"{valkey.url}/1") as a, running(f"{valkey.url}/2") as b:
        await a.create()
        listener = await b.follow()
        await a.append("1")
        await b.create()
        await b.append("2")
        await until(lambda: listener.data == ["2"])


async def test_number_of_connections_does_not_depend_on_the_runs(valkey: RedisServer) -> None:
    async with running(valkey.url) as node:
        await until(lambda: len(connections(valkey)) == 5)
        for number in range(50):
            await node.create(f"{number}", holder=ticket())
            await node.follow(f"{number}")

        assert len(connections(valkey)) == 5


def connections(server: RedisServer) -> list[object]:
    with server.client() as client:
        return [each for each in client.client_list() if each["id"] != str(client.client_id())]


async def test_keys_share_a_slot_and_those_of_runs_expire(valkey: RedisServer) -> None:
    async with running(valkey.url) as node:
        run = (await node.store.create(NAME, Creation(options(keep=10, idle=20)))).run
        await node.append("1")
        keys = valkey.command("KEYS", "*")

        assert all(key.startswith("{ssehub}:") for key in keys)
        for key in (f"{{ssehub}}:run:{NAME}", f"{{ssehub}}:run:{NAME}/{run.log}"):
            assert 86_400 < valkey.command("TTL", key) <= 86_400 + 40


async def test_deleted_run_is_told_to_another_node_with_its_error(valkey: RedisServer) -> None:
    async with running(valkey.url) as a, running(valkey.url) as b:
        await a.create()
        listener = await b.follow()
        await a.store.append(NAME, Append(ticket(), events("1"), is_first=True))
        await a.store.delete(NAME)
        await until(lambda: bool(listener.told) and listener.told[-1].is_gone)

        assert (listener.told[-1].state, listener.told[-1].error) == (RunState.FAILED, RunError.DELETED)


async def test_append_takes_the_server_microseconds(redis_server: RedisServer) -> None:
    async with running(redis_server.url) as node:
        names = [f"answer-{number}" for number in range(100)]
        for name in names:
            await node.create(name, holder=ticket())
            await node.append("1", name=name)
        least = math.inf
        for offset in range(1, 51):
            redis_server.command("CONFIG", "RESETSTAT")
            step: dict[str, Any] = {"is_first": False, "offset": offset, "generation": 1}
            await asyncio.gather(*(node.append("a token of some 30 characters", name=name, **step) for name in names))
            least = min(least, redis_server.command("INFO", "commandstats")["cmdstat_evalsha"]["usec"] / len(names))

    report(f"{redis_server.kind}: append of one event, a hundred in a call: {least:.1f} µs")
    assert least < 30
