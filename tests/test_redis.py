"""The log in Redis, and what can happen to it: part E of the faults, on real servers that a test may kill."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conftest import SECRET, RunningHub, free_port, report, until, wait_until
from proxy import Mode, Proxy
from redis_nodes import Node, events_of, resets_of
from redis_servers import KINDS, RedisServer, Sentinel
from ssehub.brokers import Limits, create_broker
from ssehub.brokers import redis as brokers_redis
from ssehub.brokers.redis import RedisBroker
from ssehub.errors import BrokerUnavailable, ConfigError, Overloaded
from ssehub.hub import Hub
from ssehub.position import Position
from streams import RawStream, get, listen
from test_brokers import Reader
from test_cli import run

SOAK = "SOAK" in os.environ
AOF = ("--appendonly", "yes", "--appendfsync", "always")
ANSWER_SECONDS = 2.0 if SOAK else 3.0
"""In which a publisher is answered without Redis: 2 s, and on a busy machine some more."""
FOLLOWERS = str(Path(__file__).parent / "followers.py")
STREAM = "{ssehub}:log"
COMMANDS = (
    "evalsha eval xadd xread xrevrange xrange xtrim xinfo hmget hset hget hdel "
    "zadd zscore zcard zrange zrangebyscore zrem del exists type time"
)
DOCUMENTED = ["allkeys", *(f"+{command}" for command in COMMANDS.split())]
"""What docs/configuration.md says that a user needs."""

pytestmark = pytest.mark.anyio


def running(kind: str, folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(kind, folder, *options)
    yield server
    server.kill()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps its data."""
    yield from running(request.param, tmp_path, *AOF)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisServer]:
    """For what is ours alone, and does not depend on the server."""
    yield from running("valkey", tmp_path, *AOF)


@pytest.fixture(params=KINDS if SOAK else KINDS[:1])
def one_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """The same for tests that take their time: at full scale of either kind."""
    yield from running(request.param, tmp_path, *AOF)


@pytest.fixture(params=KINDS)
def forgetful(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps nothing over a restart."""
    yield from running(request.param, tmp_path)


@asynccontextmanager
async def two_nodes(url: str, other: str | None = None, **options: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes, the first one perhaps by another way."""
    async with Node(other or url, **options) as a, Node(url, **options) as b:
        yield a, b


@asynccontextmanager
async def behind_proxy(server: RedisServer) -> AsyncIterator[tuple[Node, Node, Proxy]]:
    """Two nodes, the first one behind a proxy."""
    with Proxy(server.port) as proxy:
        try:
            async with two_nodes(server.url, f"redis://127.0.0.1:{proxy.port}") as (a, b):
                yield a, b, proxy
        finally:
            proxy.mode = Mode.PASS


def fields(**values: object) -> dict[str, object]:
    return {"userId": "*", "channel": "chat", **values}


HTTP = httpx.Client(timeout=10)


def emit(hub: RunningHub, data: str) -> httpx.Response:
    return HTTP.post(f"{hub.control_url}/emit/", json=fields(data=data))


def status(hub: RunningHub, path: str) -> int:
    return HTTP.get(f"{hub.control_url}/{path}").status_code


def wait_for_nodes(*hubs: RunningHub) -> None:
    wait_until(lambda: all(status(hub, "readyz") == 200 for hub in hubs))


def read_on(stream: RawStream) -> bytes:
    """All that has come so far."""
    stream.socket.settimeout(0.01)
    with contextlib.suppress(TimeoutError):
        while received := stream.socket.recv(65_536):
            stream.bytes += received
    return stream.bytes


def beats(stream: RawStream) -> int:
    return read_on(stream).count(b": ping")


def had(stream: RawStream) -> list[tuple[str, str]]:
    return [(event.id, event.data) for event in stream.events if not event.event.startswith("stream-")]


def data_of(stream: RawStream) -> list[str]:
    return [data for _, data in had(stream)]


# E1 to E3: Redis itself


def test_e1_redis_is_killed_and_comes_back_with_its_data(
    one_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    arguments = ("--broker", one_server.url, "--broker-probe-seconds", "1", "--heartbeat-seconds", "0.2")
    a, b = start_hub(*arguments), start_hub(*arguments)
    streams = [listen(hub.port, hub.token()) for hub in (a, b)]
    b.emit(data="1")

    one_server.kill()
    wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 503)
    beaten = [beats(stream) for stream in streams]
    began = time.monotonic()
    answer = emit(b, "not stored")
    took = time.monotonic() - began
    assert answer.status_code == 503 and took < ANSWER_SECONDS, answer.text
    assert status(b, "healthz") == 200
    streams.append(listen(a.port, a.token()))
    wait_until(lambda: all(beats(stream) > count for stream, count in zip(streams, beaten, strict=False)))

    one_server.start()
    began = time.monotonic()
    wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 200)
    took = time.monotonic() - began
    b.emit(data="2")
    a.emit(data="3")
    for stream in streams:
        stream.read_until(b"data: 3\n\n")
        stream.close()

    assert took < ANSWER_SECONDS
    assert [data_of(stream) for stream in streams] == [["1", "2", "3"], ["1", "2", "3"], ["2", "3"]]
    assert had(streams[0]) == had(streams[1]), "the ids are the same"
    assert "ERROR" not in a.log + b.log and "Traceback" not in a.log + b.log


async def test_e1_nothing_answered_is_lost_or_doubled_while_redis_is_killed_again_and_again(
    server: RedisServer,
) -> None:
    async with two_nodes(server.url) as nodes:
        stop, answered = asyncio.Event(), list[tuple[str, str]]()

        async def publish(name: int, node: Node) -> None:
            for number in range(10**6):
                if stop.is_set():
                    return
                data = f"{name}-{number}"
                answered.append((await node.publish_until_stored(data, 20), data))

        publishing = [asyncio.create_task(publish(name, nodes[name % 2])) for name in range(8)]
        for _ in range(20 if SOAK else 3):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.restart)
            await asyncio.gather(*[node.is_ready() for node in nodes])
        stop.set()
        await asyncio.gather(*publishing)
        end = await nodes[0].publish_until_stored("end")
        await asyncio.gather(*[node.has("end") for node in nodes])

        assert [node.resets for node in nodes] == [[], []]
        assert nodes[0].had == nodes[1].had
        assert sorted(nodes[0].had) == sorted([*answered, (end, "end")])


@pytest.mark.parametrize("how", ["restart", "FLUSHALL"])
async def test_e2_a_redis_that_lost_its_data_has_another_log(forgetful: RedisServer, how: str) -> None:
    async with two_nodes(forgetful.url) as (a, b):
        first = await b.publish("1")
        await asyncio.gather(a.has("1"), b.has("1"))
        if how == "restart":
            await asyncio.to_thread(forgetful.restart)
        else:
            forgetful.command("FLUSHALL")
        await until(lambda: a.resets and b.resets, 10)
        second = await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))

        assert a.resets == b.resets == ["log-lost"]
        assert second.partition(".")[2] != first.partition(".")[2]
        assert resets_of(a.listen(first)) == ["log-lost"]


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [1, 10, 60] if SOAK else [1, 3])
def test_e3_redis_is_stopped_and_goes_on(
    one_server: RedisServer, start_hub: Callable[..., RunningHub], seconds: int
) -> None:
    arguments = ("--broker", one_server.url, "--broker-probe-seconds", "1", "--heartbeat-seconds", "0.2")
    a, b = start_hub(*arguments), start_hub(*arguments)
    streams = [listen(hub.port, hub.token()) for hub in (a, b)]
    wanted = ["1"]
    b.emit(data="1")
    one_server.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    if seconds > 2:
        answer = emit(b, "perhaps")
        assert answer.status_code == 503 and time.monotonic() - stopped < ANSWER_SECONDS
        wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 503)
        assert status(a, "healthz") == 200
    beaten = [beats(stream) for stream in streams]
    time.sleep(max(0.0, stopped + seconds - time.monotonic()))
    assert all(beats(stream) > count for stream, count in zip(streams, beaten, strict=True))
    one_server.signal(signal.SIGCONT)
    wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 200, 3)
    b.emit(data="2")
    for stream in streams:
        stream.read_until(b"data: 2\n\n")
        stream.close()

    assert had(streams[0]) == had(streams[1])
    assert [data for data in data_of(streams[0]) if data != "perhaps"] == [*wanted, "2"]


# E4 to E8: the way there


async def test_e4_a_node_that_is_cut_off_catches_up_and_the_other_one_never_notices(server: RedisServer) -> None:
    async with behind_proxy(server) as (a, b, proxy):
        for mode in (Mode.STALL, Mode.DROP):
            proxy.mode = mode
            for number in range(50):
                await b.publish(f"{mode.value} {number}")
            await b.has(f"{mode.value} 49")
            await a.is_not_ready()
            assert not any(data.startswith(mode.value) for data in a.data)
            with pytest.raises(BrokerUnavailable):
                await a.publish("not from here")
        assert b.broker.problem is None
        proxy.mode = Mode.PASS
        began = time.monotonic()
        await a.has("drop 49")
        assert time.monotonic() - began < ANSWER_SECONDS
        await a.publish_until_stored("from here again")
        await asyncio.gather(a.has("from here again"), b.has("from here again"))

        assert a.had == b.had and len(a.had) >= 101
        assert a.resets == b.resets == []


async def test_e5_a_connection_that_only_sends_is_given_up_by_the_probe(server: RedisServer) -> None:
    async with behind_proxy(server) as (a, b, proxy):
        proxy.mode = Mode.SWALLOW
        began = time.monotonic()
        problem = await a.is_not_ready()
        took = time.monotonic() - began
        await b.publish("1")
        proxy.mode = Mode.PASS
        await a.has("1")

        assert took < 2 * a.broker._probe_seconds + 0.5 and "gives no answer" in problem
        assert a.had == b.had and a.resets == []


async def test_e5_an_answer_that_ends_in_the_middle_is_asked_for_again(server: RedisServer) -> None:
    async with behind_proxy(server) as (a, b, proxy):
        for number in range(8):
            proxy.cut_after(random.Random(number).randrange(1, 400))
            await b.publish(f"{number} {'x' * 300}")
            await until(lambda: proxy.has_cut)
        await b.publish("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.had == b.had and len(a.had) == 9
        assert a.resets == b.resets == []


async def test_e5_a_connection_that_is_slow_brings_everything_though_no_answer_as_large_as_usual_comes_in_time(
    valkey: RedisServer,
) -> None:
    async with behind_proxy(valkey) as (a, b, proxy):
        proxy.mode = Mode.DROP
        await a.is_not_ready()
        for number in range(20):
            await b.publish(f"{number} {'x' * 100_000}")
        proxy.bytes_per_second = 10**6
        proxy.mode = Mode.PASS
        await until(lambda: len(a.had) == 20, 20)

        assert a.had == b.had and a.resets == []


async def test_e6_a_reading_connection_that_is_killed_is_replaced(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        for number in range(200):
            if number % 20 == 0:
                with server.client() as client:
                    for one in client.client_list():
                        if one["cmd"] == "xread":
                            client.client_kill_filter(_id=one["id"])
            await b.publish(f"{number}")
        await asyncio.gather(a.has("199"), b.has("199"))

        assert a.had == b.had and a.data == [f"{number}" for number in range(200)]
        assert a.resets == b.resets == []


async def test_e6_a_writing_connection_that_is_killed_costs_no_publisher_anything(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        for number in range(5):
            with server.client() as client:
                before = {one["id"] for one in client.client_list() if one["cmd"] == "evalsha"}
                client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
            await b.publish(f"{number}")
            assert before
        await asyncio.gather(a.has("4"), b.has("4"))

        assert a.had == b.had and a.data == [f"{number}" for number in range(5)]


@pytest.mark.parametrize("left", [0, 3])
async def test_e7_a_log_that_was_trimmed_past_a_node_is_noticed(server: RedisServer, left: int) -> None:
    async with behind_proxy(server) as (a, b, proxy):
        await b.publish("0")
        await a.has("0")
        proxy.mode = Mode.DROP
        for number in range(1, 10):
            await b.publish(f"{number}")
        server.command("XTRIM", STREAM, "MAXLEN", left)
        proxy.mode = Mode.PASS
        await until(lambda: a.resets, 10)
        await b.publish("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.resets == ["too-old"] and b.resets == []
        assert a.data == ["0", *[f"{number}" for number in range(10 - left, 10)], "end"]
        assert b.data == [f"{number}" for number in range(10)] + ["end"]


async def test_e8_an_event_whose_answer_was_lost_is_published_again_and_there_once(server: RedisServer) -> None:
    async with behind_proxy(server) as (a, b, proxy):
        proxy.cut_answer_to(b"append")
        with pytest.raises(BrokerUnavailable, match="may or may not be stored"):
            await a.publish("1", idempotency_key="k")
        await b.has("1")
        again = await a.publish("1", idempotency_key="k")
        await b.publish("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))

        assert a.had == b.had and len(a.had) == 2 and a.had[0][0] == again


# E9 to E11: the log itself


async def test_e9_a_log_that_is_deleted_is_another_one(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        for round in range(3):
            await b.publish(f"{round}")
            await asyncio.gather(a.has(f"{round}"), b.has(f"{round}"))
            server.command("DEL", STREAM)
            if round:
                await b.publish(f"after {round}")
                await asyncio.gather(a.has(f"after {round}"), b.has(f"after {round}"))
            await until(lambda count=round + 1: len(a.resets) == len(b.resets) == count, 10)  # type: ignore[misc]

        assert a.had == b.had
        assert set(a.resets) == set(b.resets) == {"log-lost"}


FOREIGN = {
    "no field of ours": ["a", "b"],
    "two fields": ["n", "1", "log", "x"],
    "other names": ["N", "1", "log", "x", "event", "{}"],
    "n is no number": ["n", "one", "log", "{log}", "event", '{"channels":["chat"],"users":["*"],"data":"x"}'],
    "another log": ["n", "2", "log", "foreign0", "event", '{"channels":["chat"],"users":["*"],"data":"x"}'],
    "the log is no text": ["n", "2", "log", b"\xff\xfe", "event", '{"channels":["chat"],"users":["*"],"data":"x"}'],
    "no JSON": ["n", "2", "log", "{log}", "event", "this is none"],
    "no UTF-8": ["n", "2", "log", "{log}", "event", b"\xff\xfe"],
    "no event": ["n", "2", "log", "{log}", "event", "[]"],
    "null": ["n", "2", "log", "{log}", "event", "null"],
    "data is a number": ["n", "2", "log", "{log}", "event", '{"channels":["chat"],"users":["*"],"data":5}'],
    "channels are a number": ["n", "2", "log", "{log}", "event", '{"channels":5,"users":["*"],"data":"x"}'],
    "channels are numbers": ["n", "2", "log", "{log}", "event", '{"channels":[5],"users":["*"],"data":"x"}'],
    "id is a list": ["n", "2", "log", "{log}", "event", '{"channels":["c"],"users":["*"],"data":"x","id":[1]}'],
    "ttl is text": ["n", "2", "log", "{log}", "event", '{"channels":["c"],"users":["*"],"data":"x","ttl":"x"}'],
    "payload is a number": ["n", "2", "log", "{log}", "event", '{"channels":["c"],"users":["*"],"payload":5}'],
    "too deep": ["n", "2", "log", "{log}", "event", "[" * 100_000],
    "a command of a later version": ["n", "2", "log", "{log}", "event", '{"command":"revoke"}'],
    "a command that is none": ["n", "2", "log", "{log}", "event", '{"command":7,"users":8}'],
}


async def test_e10_foreign_and_broken_entries_are_skipped_counted_and_logged_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes(server.url) as (a, b):
        first = await b.publish("0")
        log = first.partition(".")[2]
        for number, entry in enumerate(FOREIGN.values(), 1):
            server.command("XADD", STREAM, "*", *[log if part == "{log}" else part for part in entry])
            await b.publish(f"{number}")
        await asyncio.gather(a.has(f"{len(FOREIGN)}"), b.has(f"{len(FOREIGN)}"))
        warnings = [record for record in caplog.records if "none of ours" in record.message]

        assert a.had == b.had and a.data == [f"{number}" for number in range(len(FOREIGN) + 1)]
        assert a.resets == b.resets == []
        assert a.hub.statistics.log_skipped_entries == len(FOREIGN)
        assert len(warnings) == 2, "one of each node"
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
    async with Node(server.url) as later:
        assert later.broker.skipped == len(FOREIGN), "they are no hindrance at a start, either"
        stream = later.listen(first)
        assert [message.data for message in events_of(stream)] == [f"{n}" for n in range(1, len(FOREIGN) + 1)]


@pytest.mark.parametrize("id", ["4102444800000-5", "4102444800000-18446744073709551615"])
async def test_e10_an_entry_of_the_future_is_gone_behind(server: RedisServer, id: str) -> None:
    async with two_nodes(server.url) as (a, b):
        await b.publish("1")
        server.command("XADD", STREAM, id, "a", "b")
        ids = [await node.publish(data) for node, data in ((b, "2"), (a, "3"), (b, "4"))]
        await asyncio.gather(a.has("4"), b.has("4"))

        assert a.had == b.had and a.data == ["1", "2", "3", "4"]
        assert [position for position, _ in a.had[1:]] == ids
        assert a.resets == b.resets == []


async def test_e11_without_memory_publishers_are_refused_in_clear_words_until_there_is_some(
    server: RedisServer,
) -> None:
    async with two_nodes(server.url) as (a, b):
        await b.publish("1")
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        refusals = []
        for number in range(100):
            with contextlib.suppress(BrokerUnavailable):
                await b.publish(f"filling {number} {'x' * 20_000}")
                continue
            with pytest.raises(BrokerUnavailable) as refused:
                await b.publish("refused")
            refusals.append(str(refused.value))
            break
        problem = await b.is_not_ready()
        server.command("CONFIG", "SET", "maxmemory", "0")
        await b.is_ready()
        await b.publish("2")
        await asyncio.gather(a.has("2"), b.has("2"))

        assert refusals and "out of memory" in refusals[0] and "nothing was stored" in refusals[0]
        assert "out of memory" in problem
        assert a.had == b.had and "refused" not in a.data and a.resets == []


async def test_e11_a_log_that_was_evicted_is_noticed(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await b.publish("1")
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        for number in range(100):
            with contextlib.suppress(BrokerUnavailable):
                await b.publish(f"filling {number} {'x' * 20_000}")
        server.command("CONFIG", "SET", "maxmemory", "0")
        await b.publish_until_stored("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.resets and b.resets


async def test_e11_what_is_stored_in_part_is_no_secret(server: RedisServer) -> None:
    """A script that fails in its middle is not undone: here what was published with its keys is no hash."""
    async with two_nodes(server.url) as (a, b):
        await b.publish("1")
        server.command("SET", "{ssehub}:keys", "x")
        with pytest.raises(BrokerUnavailable, match=r"WRONGTYPE.* may or may not be stored"):
            await b.publish("2", idempotency_key="k")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))
        server.command("DEL", "{ssehub}:keys")
        await b.publish_until_stored("3")
        await asyncio.gather(a.has("3"), b.has("3"))

        assert a.had == b.had and a.data == ["1", "2", "3"]
        assert a.resets and b.resets, "the log's state did not know of it"


# E12, E13: publishers


async def test_e12_five_hundred_publishers_at_once_are_all_answered(
    one_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    hub = start_hub("--broker", one_server.url)
    async with Node(one_server.url) as node:
        answers = await asyncio.gather(*[post(hub.control_port, fields(data=f"{n}")) for n in range(500)])
        await until(lambda: len(node.had) == 500)

        assert set(node.had) == {(json.loads(answer)["id"], f"{number}") for number, answer in enumerate(answers)}


async def post(port: int, body: dict[str, object]) -> bytes:
    """What `/emit/` answers, on a connection of its own; httpx takes 20 s to open 500."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body)
    head = (
        f"POST /emit/ HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    writer.write(f"{head}\r\n\r\n{content}".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer.partition(b"\r\n\r\n")[2]


async def test_e13_publishers_that_give_up_mix_up_no_answers(server: RedisServer) -> None:
    seed = random.randrange(2**32)
    report(f"seed {seed}")
    chance = random.Random(seed)
    async with two_nodes(server.url) as (a, b):
        answered: list[tuple[str, str]] = []

        async def publish(data: str) -> None:
            answered.append((await a.publish(data), data))

        for round in range(100):
            tasks = [asyncio.create_task(publish(f"{round}-{number}")) for number in range(20)]
            await asyncio.sleep(chance.choice([0, 0, 0.0005, 0.001]))
            for task in chance.sample(tasks, 10):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await a.publish("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.had == b.had and len(set(a.data)) == len(a.data)
        assert len(answered) >= 1_000 and set(answered) <= set(a.had)


# E14: what Redis says when it won't


async def test_e14_a_password_that_no_longer_fits_is_said_and_tried_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("CONFIG", "SET", "requirepass", "swordfish")
    async with two_nodes(f"redis://:swordfish@127.0.0.1:{server.port}") as (a, b):
        await b.publish("1")
        with server.client(password="swordfish") as client:
            client.config_set("requirepass", "mackerel")
            client.client_kill_filter(_type="normal", skipme=True)
            await until(lambda: "refuses the user or the password" in (a.broker.problem or ""), 10)
            with pytest.raises(BrokerUnavailable) as refused:
                await a.publish("not stored")
            client.config_set("requirepass", "swordfish")
        await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"), a.is_ready())

        assert a.had == b.had and a.resets == []
    assert "swordfish" not in caplog.text + str(refused.value)


async def test_e14_a_primary_that_becomes_a_replica_is_said_and_tried_again(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        await b.publish("1")
        server.command("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(BrokerUnavailable, match="it is a replica"):
            await b.publish("not stored")
        await until(lambda: "it is a replica" in (b.broker.problem or ""), 10)
        server.command("REPLICAOF", "NO", "ONE")
        await asyncio.gather(a.is_ready(), b.is_ready())
        await b.publish("2")
        await asyncio.gather(a.has("2"), b.has("2"))

        assert a.data == b.data == ["1", "2"] and a.resets == []


async def test_e14_scripts_that_were_flushed_are_sent_again(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        for number in range(3):
            server.command("SCRIPT", "FLUSH")
            await b.publish(f"{number}")
        await asyncio.gather(a.has("2"), b.has("2"))

        assert a.had == b.had and a.data == ["0", "1", "2"]
        assert a.broker.problem is b.broker.problem is None


async def test_e14_a_redis_that_loads_its_data_is_waited_for(server: RedisServer) -> None:
    async with two_nodes(server.url) as (a, b):
        await b.publish("1")
        with server.client() as client:
            client.mset({f"other {number}": "x" * 100 for number in range(2_000)})
            client.bgrewriteaof()
            await until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
        slowly = ("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
        server.kill()
        server.start(*slowly, waits=False)
        await until(lambda: "still loading" in (a.broker.problem or ""), 10)
        await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))

        assert a.had == b.had and a.resets == []


# E15 to E17: nodes that come and go, and a primary that does


class Group:
    """Clients that follow two hubs, in a process of their own."""

    def __init__(self, ports: tuple[int, int], token: str, count: int) -> None:
        command = [sys.executable, FOLLOWERS, *map(str, ports), token, str(count)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def result(self) -> dict[str, Any]:
        out, _ = self._process.communicate(timeout=120 if SOAK else 30)
        found: dict[str, Any] = json.loads(out)
        return found

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Publishers:
    """Publish to control ports, `rate` events a second altogether, and remember what was answered 200.

    Every second event is tried again until it is, with its idempotency key, at the one node and the other.
    """

    def __init__(self, ports: tuple[int, int], rate: float) -> None:
        self._stop = threading.Event()
        self._rate = rate / 8
        arguments = [(name, ports[:: -1 if name % 2 else 1]) for name in range(8)]
        self._threads = [threading.Thread(target=self._publish, args=these) for these in arguments]
        self.answered: list[tuple[str, str]] = []
        self.refused = 0
        self.seconds = 0.0

    def _publish(self, name: int, ports: tuple[int, int]) -> None:
        began, sent = time.monotonic(), 0
        with httpx.Client(timeout=10) as http:
            while not self._stop.is_set():
                for port in itertools.cycle(ports) if sent % 2 else ports[:1]:
                    if self._is_answered(http, port, f"{name} {sent}") or self._stop.wait(0.02):
                        break
                sent += 1
                self._stop.wait(max(0.0, began + sent / self._rate - time.monotonic()))

    def _is_answered(self, http: httpx.Client, port: int, data: str) -> bool:
        try:
            answer = http.post(f"http://127.0.0.1:{port}/emit/", json=fields(data=data, idempotencyKey=data))
        except httpx.TransportError:
            answer = None
        if answer is None or answer.status_code != 200:
            self.refused += 1
            assert answer is None or answer.status_code == 503, answer.text
            return False
        self.answered.append((answer.json()["id"], data))
        return True

    def __enter__(self) -> Publishers:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - self._began

    def __str__(self) -> str:
        return f"{len(self.answered)} events answered and {self.refused} refused in {self.seconds:.1f} s"


def given(group: Group, publishers: Publishers) -> dict[str, Any]:
    """What the clients were given, once it is sure that it was the same for all, and all that was answered, once."""
    found = group.result()
    events = [(id, data) for id, data in found["events"]]
    assert found["different"] == 0
    assert len({data for _, data in events}) == len(events)
    assert set(publishers.answered) <= set(events)
    return found


@pytest.mark.soak
def test_e15_a_rolling_restart_under_load_leaves_no_gap(
    one_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    arguments = ("--broker", one_server.url, "--drain-seconds", "1", "--control-bind")
    ports, controls = (free_port(), free_port()), (free_port(), free_port())
    binds = [("--bind", f"127.0.0.1:{ports[n]}", *arguments, f"127.0.0.1:{controls[n]}") for n in (0, 1)]
    hubs = [start_hub(*bind) for bind in binds]
    count, rate, rounds = (200, 500, 5) if SOAK else (40, 100, 1)
    with Group(ports, hubs[0].token(), count) as group:
        with Publishers(controls, rate) as publishers:
            for _ in range(rounds):
                for n in (0, 1):
                    hubs[n].signal()
                    assert hubs[n].wait() == 0
                    hubs[n] = start_hub(*binds[n])
        hubs[0].emit(data="end")
        found = given(group, publishers)

    report(f"E15: {publishers}; {len(found['events']) * count} deliveries, {found['connections']} connections")
    assert found["resets"] == 0 and found["connections"] > count


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_everything_answered_arrives_everywhere_once_in_the_same_order_whatever_fails(
    one_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    """Redis is killed and restarted, a node is killed and restarted, and the other is cut off."""
    count, rate, away, rounds = (200, 500, 5.0, 3) if SOAK else (20, 100, 2.0, 1)
    ports, controls = (free_port(), free_port()), (free_port(), free_port())

    def start(n: int, port: int) -> RunningHub:
        broker = ("--broker", f"redis://127.0.0.1:{port}", "--broker-probe-seconds", "1")
        return start_hub(*broker, "--bind", f"127.0.0.1:{ports[n]}", "--control-bind", f"127.0.0.1:{controls[n]}")

    with Proxy(one_server.port) as proxy:
        a, b = start(0, proxy.port), start(1, one_server.port)
        with Group(ports, a.token(), count) as group:
            with Publishers(controls, rate) as publishers:
                for _ in range(rounds):
                    time.sleep(0.5)
                    one_server.kill()
                    time.sleep(0.5)
                    one_server.start()
                    wait_for_nodes(a, b)
                    time.sleep(0.5)
                    b.signal(signal.SIGKILL)
                    b.wait()
                    time.sleep(0.5)
                    b = start(1, one_server.port)
                    time.sleep(0.5)
                    proxy.mode = Mode.STALL
                    time.sleep(away)
                    proxy.mode = Mode.DROP
                    proxy.mode = Mode.PASS
                    wait_for_nodes(a, b)
                time.sleep(0.5)
            b.emit(data="end")
            found = given(group, publishers)

    report(
        f"whatever fails: {publishers}; {len(found['events']) * count} deliveries, {found['connections']} connections"
    )
    assert found["resets"] == 0 and found["connections"] > count
    assert publishers.refused and len(publishers.answered) > rate


def test_e16_a_hub_without_redis_ends_in_one_line() -> None:
    result = run(*SERVE, "--broker", f"redis://alex:swordfish@127.0.0.1:{free_port()}", **QUIET)

    assert result.returncode == 3
    assert result.stderr.count("\n") == 1 and "can't be used" in result.stderr
    assert "swordfish" not in result.stderr + result.stdout


def test_e16_a_hub_that_may_wait_for_redis_is_ready_when_it_is_there(
    one_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    one_server.kill()
    hub = start_hub("--broker", one_server.url, "--wait-for-broker")
    early = RawStream(hub.port, get(f"/events/?token={hub.token()}")).read_to_end()
    assert status(hub, "readyz") == 503 and status(hub, "healthz") == 200
    assert emit(hub, "too early").status_code == 503
    one_server.start()
    wait_until(lambda: status(hub, "readyz") == 200)
    stream = listen(hub.port, hub.token())
    wait_until(lambda: emit(hub, "1").status_code == 200)
    stream.read_until(b"data: 1\n\n")
    stream.close()

    assert early.startswith(b"HTTP/1.1 200") and b"retry:" in early, "an EventSource that is refused never comes back"
    assert data_of(stream) == ["1"]


@pytest.mark.parametrize("kind", KINDS if SOAK else KINDS[:1])
async def test_e17_a_failover_to_a_replica_that_lags_is_noticed_by_every_node(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        primary = RedisServer(kind, tmp_path / "primary")
        stack.callback(primary.kill)
        proxy = stack.enter_context(Proxy(primary.port))
        replica = RedisServer(kind, tmp_path / "replica", "--replicaof", f"127.0.0.1 {proxy.port}")
        stack.callback(replica.kill)
        await until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up", 15)
        sentinel = Sentinel(kind, tmp_path / "sentinel", primary.port)
        stack.callback(sentinel.kill)
        await until(sentinel.knows_a_replica, 15)
        async with two_nodes(sentinel.url) as (a, b):
            first = await b.publish("1")
            await until(lambda: replica.command("XLEN", STREAM) == 1)
            proxy.mode = Mode.STALL
            await b.publish("2")
            third = await a.publish("3")
            await asyncio.gather(a.has("3"), b.has("3"))
            primary.kill()
            await until(lambda: sentinel.primary == replica.port, 20)
            fourth = await b.publish_until_stored("4", 20)
            await asyncio.gather(a.has("4"), b.has("4"))
            proxy.mode = Mode.PASS

            assert a.had == b.had and a.data == ["1", "2", "3", "4"]
            assert a.resets == b.resets == ["log-lost"]
            assert fourth.partition(".")[2] != first.partition(".")[2]
            assert resets_of(a.listen(third)) == ["log-lost"]


# What can be wrong at the start


SERVE = ("--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0")
QUIET = {"SSEHUB_SECRET": SECRET, "SSEHUB_LOG_LEVEL": "error"}
BAD_URLS = {
    "slash in the password": ("redis://alex:mack/erel@127.0.0.1", "write / as %2F"),
    "question mark in the password": ("redis://alex:mack?erel@127.0.0.1", "write / as %2F"),
    "hash in the password": ("rediss://alex:mack#erel@127.0.0.1", "write / as %2F"),
    "the same with a socket": ("redis+unix://alex:mack/erel@/run/redis.sock", "write / as %2F"),
    "the same with Sentinel": ("redis+sentinel://alex:mack/erel@127.0.0.1/main", "write / as %2F"),
    "bracket": ("redis://alex:mackerel@[::1", "Invalid IPv6 URL"),
    "character that is another one": ("redis://alex:mackerel@127.0.0.1\u2100", "it is no URL"),
    "port": ("redis://alex:mackerel@127.0.0.1:port", "Port could not be cast"),
    "port too large": ("redis://alex:mackerel@127.0.0.1:99999", "Port out of range"),
    "database": ("redis://alex:mackerel@127.0.0.1/one", "'one' is no number of a database"),
    "option": ("redis://alex:mackerel@127.0.0.1?nonsense=1", "unexpected keyword argument 'nonsense'"),
    "Sentinel without a name": ("redis+sentinel://alex:mackerel@127.0.0.1", "the name of the primary is missing"),
    "Sentinel without an address": ("redis+sentinel:///main", "the address of a Sentinel is missing"),
    "Sentinel's option": ("redis+sentinel://127.0.0.1/main?x=y", "'x' is no option"),
    "Sentinel's database": ("redis+sentinel://127.0.0.1/main?db=one", "invalid literal"),
}


@pytest.mark.parametrize("kind", BAD_URLS)
def test_a_url_that_is_none_is_said_without_its_password(kind: str) -> None:
    url, says = BAD_URLS[kind]
    with pytest.raises(ConfigError) as refused:
        create_broker(url)

    text = str(refused.value)
    assert says in text and "\n" not in text
    assert "mack" not in text and "erel" not in text


def test_a_url_that_is_none_ends_the_command_in_one_line() -> None:
    for url in ("redis://alex:mack/erel@127.0.0.1", "reddis://alex:mack/erel@127.0.0.1"):
        result = run(*SERVE, "--broker", url, **QUIET)

        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert "mack" not in result.stderr and "erel" not in result.stderr


async def refusal(url: str, **options: Any) -> str:
    """What is said when it is tried."""
    with pytest.raises(BrokerUnavailable) as refused:
        async with Node(url, **options):
            pass
    text = str(refused.value)
    assert "\n" not in text and "swordfish" not in text
    return text


async def why_it_does_not_start(url: str) -> str:
    """The same; also, that a hub which may wait says it, too, and goes on trying."""
    text = await refusal(url)
    broker = RedisBroker(url, waits=True)
    async with Hub(broker) as hub:
        await until(lambda: broker.problem == text, 10)
        assert hub.not_ready() == [text]
    return text


@pytest.fixture
def says() -> Iterator[Callable[[Callable[[bytes], bytes]], int]]:
    """Starts servers that answer what they are made to; returns their ports."""
    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[bytes], bytes]) -> int:
            class Handler(socketserver.BaseRequestHandler):
                def handle(self) -> None:
                    with contextlib.suppress(OSError):
                        while data := self.request.recv(65_536):
                            self.request.sendall(answer(data))

            server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            stack.enter_context(server)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return int(server.server_address[1])

        yield start


OLD = b"# Server\r\nredis_version:5.0.7\r\n"
TALK = {
    "silence": (lambda data: b"", "it gives no answer"),
    "HTTP": (lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol"),
    "OK": (lambda data: b"+OK\r\n", "it is no Redis"),
    "a number": (lambda data: b":1\r\n", "it is no Redis"),
    "an old version": (lambda data: b"$%d\r\n%s\r\n" % (len(OLD), OLD), "it is Redis 5.0.7: 6.2 or newer is needed"),
}


@pytest.mark.parametrize("kind", TALK)
async def test_who_is_no_redis_of_ours_is_said(kind: str, says: Callable[[Callable[[bytes], bytes]], int]) -> None:
    answer, words = TALK[kind]
    port = says(answer)

    assert words in await why_it_does_not_start(f"redis://127.0.0.1:{port}")


async def test_a_host_that_does_not_take_connections_is_said() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        why = await why_it_does_not_start(f"redis://127.0.0.1:{full.getsockname()[1]}")
        for other in others:
            other.close()

    assert "it gives no answer" in why


async def test_addresses_that_nobody_has_are_said(tmp_path: Path) -> None:
    assert "nowhere.invalid" in await refusal("redis://nowhere.invalid")
    for url in (f"redis+unix://{tmp_path}/none.sock", f"redis://127.0.0.1:{free_port()}"):
        assert "can't be used" in await why_it_does_not_start(url)
    why = await why_it_does_not_start(f"redis+sentinel://127.0.0.1:{free_port()}/main")
    assert why.endswith("no Sentinel answers that knows a primary of that name")


async def test_tls_to_a_plain_port_is_said(server: RedisServer) -> None:
    assert "can't be used" in await why_it_does_not_start(f"rediss://127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (["+@all", "allkeys", "nopass"], None),
        (DOCUMENTED, None),
        (["+@read", "allkeys"], "evalsha"),
        ([*DOCUMENTED, "-xadd"], "xadd"),
        ([*DOCUMENTED, "-zadd"], "zadd"),
        ([*DOCUMENTED, "-xread"], "xread"),
        ([*DOCUMENTED, "resetkeys", "~other*"], "key"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_user_without_what_is_needed_is_told_at_the_start(
    server: RedisServer, rules: list[str], says: str | None
) -> None:
    async with Node(server.url) as node:
        await node.publish("there is a log already")
    server.command("ACL", "SETUSER", "alex", "on", ">swordfish", *rules)
    url = f"redis://alex:swordfish@127.0.0.1:{server.port}"
    if says is None:
        async with Node(url) as node:
            await node.publish("1", idempotency_key="k")
            await node.has("1")
    else:
        why = await why_it_does_not_start(url)
        assert says in why.lower() or "can't run this command" in why, "in a script Redis 7.0 does not say which"


async def test_wrong_passwords_are_refused(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "requirepass", "mackerel")
    for credentials in ("", ":swordfish@", "alex:swordfish@"):
        why = await why_it_does_not_start(f"redis://{credentials}127.0.0.1:{server.port}")
        assert "refuses the user or the password" in why or "Authentication required" in why


# Other ways to get there


async def works(url: str, **options: Any) -> None:
    async with two_nodes(url, **options) as (a, b):
        await b.publish("1")
        await asyncio.gather(a.has("1"), b.has("1"))


async def test_a_unix_socket_and_a_database(tmp_path: Path) -> None:
    server = RedisServer("valkey", tmp_path, "--unixsocket", str(tmp_path / "redis.sock"))
    try:
        await works(f"redis+unix://{tmp_path}/redis.sock?db=3")
        await works(f"{server.url}/4")
        with server.client(db=3) as third, server.client(db=4) as fourth:
            assert third.xlen(STREAM) == fourth.xlen(STREAM) == 1
    finally:
        server.kill()


async def test_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate))
    server = RedisServer("redis", tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *files)
    try:
        await works(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        assert "certificate verify failed" in await why_it_does_not_start(f"rediss://127.0.0.1:{port}")
        assert "can't be used" in await why_it_does_not_start(f"redis://127.0.0.1:{port}")
    finally:
        server.kill()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


# What a node makes of a log


async def test_a_log_is_read_from_its_birth_from_where_it_was_trimmed_or_from_where_it_got_another_name(
    valkey: RedisServer,
) -> None:
    async def base_and_tail(limits: Limits | None = None) -> tuple[Position, list[str | None]]:
        reader = Reader()
        async with RedisBroker(valkey.url, limits).run(reader):
            return reader.bases[0], reader.data

    async with Node(valkey.url) as node:
        ids = [Position.parse(await node.publish(f"{number}")) for number in range(5)]
        birth, all_of_it = await base_and_tail()
        assert birth < ids[0] and all_of_it == ["0", "1", "2", "3", "4"]
        assert await base_and_tail(Limits(tail_events=2)) == (ids[2], ["3", "4"])
        assert await base_and_tail(Limits(tail_bytes=1)) == (ids[3], ["4"])
        valkey.command("XTRIM", STREAM, "MAXLEN", 3)
        assert ids[2] is not None and await base_and_tail() == (ids[2].before, ["2", "3", "4"])
        valkey.command("XDEL", STREAM, str(ids[3]).partition(".")[0])
        assert ids[4] is not None and await base_and_tail() == (ids[4].before, ["4"]), "what is behind a gap is unsure"
        valkey.command("XTRIM", STREAM, "MAXLEN", 0)
        assert await base_and_tail() == (ids[4], [])
        await node.publish("5")
        await node.has("5")
        valkey.command("HSET", "{ssehub}:state", "ms", 1)
        await until(lambda: node.resets, 10)
        base, tail = await base_and_tail()
        assert base.log != ids[0].log and tail == []
        last = await node.publish("6")
        assert await base_and_tail() == (base, ["6"])
        assert last.endswith(base.log)


async def test_a_log_that_has_less_than_a_node_knows_gets_another_name(valkey: RedisServer) -> None:
    async with two_nodes(valkey.url) as (a, b):
        ids = [await b.publish(f"{number}") for number in range(3)]
        await asyncio.gather(a.has("2"), b.has("2"))
        valkey.command("XDEL", STREAM, ids[-1].partition(".")[0])
        await until(lambda: a.resets and b.resets, 10)
        await b.publish("3")
        await asyncio.gather(a.has("3"), b.has("3"))

        assert a.resets == b.resets == ["log-lost"]
        assert a.had == b.had


async def test_an_entry_that_is_missing_in_the_middle_is_noticed(valkey: RedisServer) -> None:
    async with behind_proxy(valkey) as (a, b, proxy):
        await b.publish("0")
        await a.has("0")
        proxy.mode = Mode.DROP
        ids = [await b.publish(f"{number}") for number in range(1, 5)]
        valkey.command("XDEL", STREAM, ids[1].partition(".")[0])
        proxy.mode = Mode.PASS
        await a.has("4")

        assert a.data == ["0", "1", "3", "4"] and a.resets == ["too-old"]
        order = [message.data for message in a.stream.messages]
        assert order == ["0", "1", '{"reason":"too-old"}', "3", "4"]


async def test_a_failure_of_ours_while_reading_is_logged_and_told_and_nothing_comes_twice(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(valkey.url) as (a, b):
        await b.publish("1")
        await a.has("1")
        dispatch, failures = a.hub.dispatch, [RuntimeError("a mistake")]

        def failing(*arguments: Any) -> None:
            if failures:
                raise failures.pop()
            dispatch(*arguments)

        monkeypatch.setattr(a.hub, "dispatch", failing)
        await b.publish("2")
        await a.has("1", "2")
        await b.publish("3")
        await a.has("1", "2", "3")

        assert a.data == ["1", "2", "3"] and a.resets == ["too-old"]
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
            "reading the log failed; it is read from its tail again"
        ]


async def test_a_failure_of_ours_while_writing_is_logged_and_outlived(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(valkey.url) as node:
        monkeypatch.setattr(brokers_redis, "new_log_name", None)
        with pytest.raises(BrokerUnavailable):
            await node.publish("1")
        monkeypatch.undo()
        await node.publish_until_stored("2")
        await node.has("2")

        assert "appending to the log failed" in caplog.text


async def test_what_waits_for_redis_is_bounded(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Node(valkey.url) as node:
        await node.publish("stored")
        valkey.signal(signal.SIGSTOP)
        monkeypatch.setattr(brokers_redis, "MAX_WAITING_PUBLISHERS", 10)
        monkeypatch.setattr(brokers_redis, "MAX_WAITING_BYTES", 10_000)
        sent = asyncio.create_task(node.publish("sent"))
        await until(lambda: node.broker._waiting)
        await until(lambda: not node.broker._waiting)
        waiting = [asyncio.create_task(node.publish(f"{number}")) for number in range(10)]
        await until(lambda: len(node.broker._waiting) == 10)
        with pytest.raises(Overloaded, match="nothing was stored"):
            await node.publish("one too many")
        answers = await asyncio.gather(sent, *waiting, return_exceptions=True)
        with pytest.raises(Overloaded):
            await node.publish("x" * 10_000)
        valkey.signal(signal.SIGCONT)

        assert "may or may not be stored" in str(answers[0])
        assert all(str(answer).endswith("nothing was stored") for answer in answers[1:])


@pytest.mark.parametrize(("bound", "value"), [("GROUP_PUBLISHERS", 3), ("GROUP_BYTES", 3 * 50)])
async def test_publishers_that_wait_share_calls_up_to_a_bound(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    """Each of them brings an event of 45 to 50 bytes."""
    async with Node(valkey.url) as node:
        calls: list[int] = []
        append = node.broker._append

        async def counting(link: Any, group: list[Any]) -> None:
            calls.append(len(group))
            await append(link, group)

        monkeypatch.setattr(node.broker, "_append", counting)
        await asyncio.gather(*[node.publish(f"{number}") for number in range(100)])
        together = calls.copy()
        calls.clear()
        monkeypatch.setattr(brokers_redis, bound, value)
        await asyncio.gather(*[node.publish(f"{number}") for number in range(100)])

        assert sum(together) == sum(calls) == 100
        assert len(together) < 5 and max(calls) == 3


async def test_who_waits_when_a_hub_ends_is_answered(valkey: RedisServer) -> None:
    async with Node(valkey.url) as node:
        valkey.signal(signal.SIGSTOP)
        waiting = [asyncio.create_task(node.publish(f"{number}")) for number in range(3)]
        waiting.append(asyncio.create_task(node.broker.head()))
        await asyncio.sleep(0.05)
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    valkey.signal(signal.SIGCONT)

    assert all(isinstance(answer, BrokerUnavailable) for answer in answers)


async def test_the_head_of_a_log_that_does_not_answer_is_not_waited_for(valkey: RedisServer) -> None:
    async with Node(valkey.url) as node:
        assert await node.broker.head() is None
        valkey.signal(signal.SIGSTOP)
        with pytest.raises(BrokerUnavailable):
            await node.broker.head()
        valkey.signal(signal.SIGCONT)
        await node.is_ready()
        assert await node.publish_until_stored("1") == await node.broker.head()


def test_log_shows_what_is_in_redis(valkey: RedisServer, start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--broker", valkey.url, "--redis-prefix", "mine")
    ids = hub.emit_batch([fields(data=f"{number}") for number in range(250)])
    valkey.command("XADD", "{mine}:log", "*", "a", "b")
    shown = run("log", "--broker", valkey.url, "--last", "240", SSEHUB_REDIS_PREFIX="mine")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    valkey.kill()
    gone = run("log", "--broker", valkey.url)

    assert [(line["position"], line["data"]) for line in lines] == [(ids[n], f"{n}") for n in range(10, 250)]
    assert gone.returncode == 3 and gone.stderr.count("\n") == 1
