"""The log in Redis when Redis fails, refuses or comes late (part E of the fault matrix), on servers a test may kill."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable

import pytest

from commands import run
from conftest import SECRET, RunningHub, free_port, until, wait_until
from redis_nodes import Node, resets_of, two_nodes
from redis_requests import data_of, emit, fields, heartbeats, received, status
from redis_servers import ANSWER_SECONDS, SOAK, RedisServer
from ssehub.errors import BrokerUnavailable
from streams import RawStream, get, listen

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio


# E1 to E3: Redis is killed, loses its data, or stops


@pytest.mark.alone
def test_e1_redis_is_killed_and_restarted_with_its_data(
    soak_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    arguments = ("--broker", soak_server.url, "--broker-probe-seconds", "1", "--heartbeat-seconds", "0.2")
    a, b = start_hub(*arguments), start_hub(*arguments)
    streams = [listen(hub.port, hub.token()) for hub in (a, b)]
    b.emit(data="1")

    soak_server.kill()
    wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 503)
    before = [heartbeats(stream) for stream in streams]
    began = time.monotonic()
    answer = emit(b, "not stored")
    took = time.monotonic() - began
    assert answer.status_code == 503 and took < ANSWER_SECONDS, answer.text
    assert status(b, "healthz") == 200
    refused = RawStream(a.port, get(f"/events/?token={a.token()}")).read_to_end()
    assert refused.startswith(b"HTTP/1.1 200") and b"event: stream-busy\n" in refused, "revocations may be missing"
    wait_until(lambda: all(heartbeats(stream) > count for stream, count in zip(streams, before, strict=True)))

    soak_server.start()
    began = time.monotonic()
    wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 200)
    took = time.monotonic() - began
    b.emit(data="2")
    streams[0].read_event("2")
    streams.append(listen(a.port, a.token()))
    a.emit(data="3")
    for stream in streams:
        stream.read_event("3")
        stream.close()

    assert took < ANSWER_SECONDS
    assert [data_of(stream) for stream in streams] == [["1", "2", "3"], ["1", "2", "3"], ["3"]]
    assert received(streams[0]) == received(streams[1]), "the ids are the same"
    assert "ERROR" not in a.log + b.log and "Traceback" not in a.log + b.log


@pytest.mark.soak
async def test_e1_nothing_answered_is_lost_or_repeated_while_redis_is_killed_repeatedly(
    redis_server: RedisServer,
) -> None:
    async with two_nodes(redis_server.url) as nodes:
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
            await asyncio.to_thread(redis_server.restart)
            await asyncio.gather(*[node.is_ready() for node in nodes])
        stop.set()
        await asyncio.gather(*publishing)
        end = await nodes[0].publish_until_stored("end")
        await asyncio.gather(*[node.has("end") for node in nodes])

        assert [node.resets for node in nodes] == [[], []]
        assert nodes[0].received == nodes[1].received
        assert sorted(nodes[0].received) == sorted([*answered, (end, "end")])


@pytest.mark.parametrize("how", ["restart", "FLUSHALL"])
async def test_e2_redis_that_lost_its_data_has_another_log(volatile_server: RedisServer, how: str) -> None:
    async with two_nodes(volatile_server.url) as (a, b):
        first = await b.publish("1")
        await asyncio.gather(a.has("1"), b.has("1"))
        if how == "restart":
            await asyncio.to_thread(volatile_server.restart)
        else:
            volatile_server.command("FLUSHALL")
        await until(lambda: a.resets and b.resets, 10)
        second = await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))

        assert a.resets == b.resets == ["log-lost"]
        assert second.partition(".")[2] != first.partition(".")[2]
        assert resets_of(a.listen(first)) == ["log-lost"]


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.parametrize("seconds", [1, 10, 60] if SOAK else [1, 3])
def test_e3_redis_is_stopped_and_continued(
    soak_server: RedisServer, start_hub: Callable[..., RunningHub], seconds: int
) -> None:
    arguments = ("--broker", soak_server.url, "--broker-probe-seconds", "1", "--heartbeat-seconds", "0.2")
    a, b = start_hub(*arguments), start_hub(*arguments)
    streams = [listen(hub.port, hub.token()) for hub in (a, b)]
    b.emit(data="1")

    soak_server.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    if seconds > 2:
        answer = emit(b, "perhaps")
        assert answer.status_code == 503 and time.monotonic() - stopped < ANSWER_SECONDS
        wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 503)
        assert status(a, "healthz") == 200
    before = [heartbeats(stream) for stream in streams]
    time.sleep(max(0.0, stopped + seconds - time.monotonic()))
    assert all(heartbeats(stream) > count for stream, count in zip(streams, before, strict=True))

    soak_server.signal(signal.SIGCONT)
    wait_until(lambda: status(a, "readyz") == status(b, "readyz") == 200, 3)
    b.emit(data="2")
    for stream in streams:
        stream.read_event("2")
        stream.close()

    assert received(streams[0]) == received(streams[1])
    assert [data for data in data_of(streams[0]) if data != "perhaps"] == ["1", "2"]


# E14: Redis refuses


async def test_e14_password_that_becomes_wrong_is_reported_and_tried_again(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "swordfish")
    async with two_nodes(f"redis://:swordfish@127.0.0.1:{redis_server.port}") as (a, b):
        await b.publish("1")
        with redis_server.client(password="swordfish") as client:
            client.config_set("requirepass", "mackerel")
            client.client_kill_filter(_type="normal", skipme=True)
            await until(lambda: "wrong user name or password" in (a.broker.problem or ""), 10)
            with pytest.raises(BrokerUnavailable) as refused:
                await a.publish("not stored")
            client.config_set("requirepass", "swordfish")
        await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"), a.is_ready())

        assert a.received == b.received and a.resets == []
    assert "swordfish" not in caplog.text + str(refused.value)


async def test_e14_primary_that_becomes_a_replica_is_reported_and_tried_again(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        await b.publish("1")
        redis_server.command("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(BrokerUnavailable, match="read-only replica"):
            await b.publish("not stored")
        await until(lambda: "read-only replica" in (b.broker.problem or ""), 10)
        redis_server.command("REPLICAOF", "NO", "ONE")
        await asyncio.gather(a.is_ready(), b.is_ready())
        await b.publish("2")
        await asyncio.gather(a.has("2"), b.has("2"))

        assert a.data == b.data == ["1", "2"] and a.resets == []


async def test_e14_script_is_sent_again_after_script_flush(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        for number in range(3):
            redis_server.command("SCRIPT", "FLUSH")
            await b.publish(f"{number}")
        await asyncio.gather(a.has("2"), b.has("2"))

        assert a.received == b.received and a.data == ["0", "1", "2"]
        assert a.broker.problem is b.broker.problem is None


async def test_e14_redis_that_is_loading_its_data_is_waited_for(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        await b.publish("1")
        with redis_server.client() as client:
            client.mset({f"other {number}": "x" * 100 for number in range(2_000)})
            client.bgrewriteaof()
            await until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
        slowly = ("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
        redis_server.kill()
        redis_server.start(*slowly, waits=False)
        await until(lambda: "still loading" in (a.broker.problem or ""), 10)
        await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))

        assert a.received == b.received and a.resets == []


# E16: a hub starts before Redis


def test_e16_hub_without_redis_exits_with_one_line() -> None:
    result = run(
        *("--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"),
        *("--broker", f"redis://alex:swordfish@127.0.0.1:{free_port()}"),
        SSEHUB_SECRET=SECRET,
        SSEHUB_LOG_LEVEL="error",
    )

    assert result.returncode == 3
    assert result.stderr.count("\n") == 1 and "cannot use the log" in result.stderr
    assert "swordfish" not in result.stderr + result.stdout


def test_e16_hub_that_may_wait_for_redis_is_ready_when_redis_answers(
    soak_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    soak_server.kill()
    hub = start_hub("--broker", soak_server.url, "--wait-for-broker")
    early = RawStream(hub.port, get(f"/events/?token={hub.token()}")).read_to_end()
    assert status(hub, "readyz") == 503 and status(hub, "healthz") == 200
    assert emit(hub, "too early").status_code == 503

    soak_server.start()
    wait_until(lambda: status(hub, "readyz") == 200)
    stream = listen(hub.port, hub.token())
    wait_until(lambda: emit(hub, "1").status_code == 200)
    stream.read_event("1")
    stream.close()

    assert early.startswith(b"HTTP/1.1 200") and b"retry:" in early, "an EventSource stops for good at any other status"
    assert data_of(stream) == ["1"]


# The command


def test_log_command_prints_the_log_in_redis(valkey: RedisServer, start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--broker", valkey.url, "--redis-prefix", "mine")
    ids = hub.emit_batch([fields(data=f"{number}") for number in range(250)])
    valkey.command("XADD", "{mine}:log", "*", "a", "b")

    shown = run("log", "--broker", valkey.url, "--last", "240", SSEHUB_REDIS_PREFIX="mine")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    valkey.kill()
    gone = run("log", "--broker", valkey.url)

    assert [(line["position"], line["data"]) for line in lines] == [(ids[n], f"{n}") for n in range(10, 250)]
    assert gone.returncode == 3 and gone.stderr.count("\n") == 1
