"""Publishing to Redis: every publisher is answered in time, and truthfully (part E of the fault matrix)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from conftest import RunningHub, report, until
from redis_nodes import Node, behind_proxy, two_nodes
from redis_requests import fields
from redis_servers import SOAK, RedisServer
from ssehub.brokers.redis import connection
from ssehub.errors import BrokerUnavailable, Overloaded
from ssehub.event import Event
from ssehub.publication import Publication

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio


@pytest.fixture
def appends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of publishers in each call that appends, while the test runs."""
    sizes: list[int] = []
    script = connection.Connection.script

    async def record(self: connection.Connection, verb: str, *arguments: Any) -> Any:
        if verb == "append":
            sizes.append(arguments[3])
        return await script(self, verb, *arguments)

    monkeypatch.setattr(connection.Connection, "script", record)
    return sizes


# E6, E8: the connection


async def test_e6_writing_connection_that_is_killed_makes_no_publisher_fail(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        for number in range(5):
            with redis_server.client() as client:
                before = {one["id"] for one in client.client_list() if one["cmd"] == "evalsha"}
                client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
            await b.publish(f"{number}")
            assert before
        await asyncio.gather(a.has("4"), b.has("4"))

        assert a.received == b.received and a.data == [f"{number}" for number in range(5)]


async def test_e8_event_whose_answer_was_lost_is_stored_once_when_published_again(redis_server: RedisServer) -> None:
    async with behind_proxy(redis_server) as (a, b, proxy):
        proxy.cut_answer_to(b"append")
        with pytest.raises(BrokerUnavailable, match="may or may not be stored"):
            await a.publish("1", idempotency_key="k")
        await b.has("1")
        again = await a.publish("1", idempotency_key="k")
        await b.publish("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))

        assert a.received == b.received and len(a.received) == 2 and a.received[0][0] == again


@pytest.mark.soak
async def test_c9_same_key_at_two_nodes_at_the_same_moment_is_one_event(redis_server: RedisServer) -> None:
    keys = [f"{number}" for number in range(2_000 if SOAK else 100)]
    async with two_nodes(redis_server.url) as nodes:

        async def publish_everywhere(key: str) -> set[str]:
            publishing = [node.publish_until_stored(key, 30) for node in nodes * 10]
            return set(await asyncio.gather(*publishing))

        answers: list[set[str]] = []
        for start in range(0, len(keys), 10):
            answers += await asyncio.gather(*map(publish_everywhere, keys[start : start + 10]))
        end = await nodes[0].publish_until_stored("end", 30)
        await asyncio.gather(*[node.has("end", seconds=30) for node in nodes])

        assert [len(ids) for ids in answers] == [1] * len(keys)
        stored = [(*ids, key) for ids, key in zip(answers, keys, strict=True)]
        assert nodes[0].received == nodes[1].received
        assert sorted(nodes[0].received) == sorted([*stored, (end, "end")])


# E11: Redis runs out of memory


async def test_e11_publishers_are_refused_with_the_reason_while_redis_is_out_of_memory(
    redis_server: RedisServer,
) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        await b.publish("1")
        redis_server.command("CONFIG", "SET", "maxmemory", "1mb")
        redis_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
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
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        await b.is_ready()
        await b.publish("2")
        await asyncio.gather(a.has("2"), b.has("2"))

        assert refusals and "out of memory" in refusals[0] and "nothing was stored" in refusals[0]
        assert "out of memory" in problem
        assert a.received == b.received and "refused" not in a.data and a.resets == []


async def test_e11_log_that_was_evicted_is_noticed(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        redis_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await b.publish("1")
        redis_server.command("CONFIG", "SET", "maxmemory", "1mb")
        for number in range(100):
            with contextlib.suppress(BrokerUnavailable):
                await b.publish(f"filling {number} {'x' * 20_000}")
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        await b.publish_until_stored("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.resets and b.resets


async def test_e11_script_that_fails_midway_is_noticed(redis_server: RedisServer) -> None:
    """Redis does not roll it back: here the key with the receipts of idempotency keys is not a hash."""
    async with two_nodes(redis_server.url) as (a, b):
        await b.publish("1")
        redis_server.command("SET", "{ssehub}:keys", "x")
        with pytest.raises(BrokerUnavailable, match=r"WRONGTYPE.* may or may not be stored"):
            await b.publish("2", idempotency_key="k")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"))
        redis_server.command("DEL", "{ssehub}:keys")
        await b.publish_until_stored("3")
        await asyncio.gather(a.has("3"), b.has("3"))

        assert a.received == b.received and a.data == ["1", "2", "3"]
        assert a.resets and b.resets, "the state of the log did not count it"


# E12, E13: many publishers


async def test_e12_five_hundred_concurrent_publishers_are_all_answered(
    soak_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    hub = start_hub("--broker", soak_server.url)

    async with Node(soak_server.url) as node:
        answers = await asyncio.gather(*[post(hub.control_port, fields(data=f"{n}")) for n in range(500)])
        await until(lambda: len(node.received) == 500)

        expected = {(json.loads(answer)["id"], f"{number}") for number, answer in enumerate(answers)}
        assert set(node.received) == expected


async def post(port: int, body: dict[str, object]) -> bytes:
    """Post to `/emit/` on a new connection and return the answer's body; httpx takes 20 s to open 500 connections."""
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


async def test_e13_publishers_that_give_up_do_not_mix_up_answers(redis_server: RedisServer) -> None:
    seed = random.randrange(2**32)
    report(f"seed {seed}")
    chance = random.Random(seed)
    async with two_nodes(redis_server.url) as (a, b):
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

        assert a.received == b.received and len(set(a.data)) == len(a.data)
        assert len(answered) >= 1_000 and set(answered) <= set(a.received)


# Waiting, and stopping


def publication(data: str) -> list[Publication]:
    return [Publication([Event(("chat",), ("*",), data=data)])]


async def test_number_and_size_of_waiting_events_are_bounded(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch, appends: list[int]
) -> None:
    async with Node(valkey.url) as node:
        publish = node.broker.publish
        await publish(publication("stored"))
        appends.clear()
        valkey.signal(signal.SIGSTOP)
        monkeypatch.setattr("ssehub.brokers.redis.writer.MAX_WAITING_PUBLISHERS", 10)
        monkeypatch.setattr("ssehub.brokers.redis.writer.MAX_WAITING_BYTES", 10_000)
        sent = asyncio.create_task(publish(publication("sent")))
        await until(lambda: appends == [1])
        waiting = [asyncio.create_task(publish(publication(f"{number}"))) for number in range(10)]
        await asyncio.sleep(0)  # each of them runs until it waits
        with pytest.raises(Overloaded, match="nothing was stored"):
            await publish(publication("one too many"))
        answers = await asyncio.gather(sent, *waiting, return_exceptions=True)
        with pytest.raises(Overloaded):
            await publish(publication("x" * 10_000))
        valkey.signal(signal.SIGCONT)

        assert "may or may not be stored" in str(answers[0])
        assert all(str(answer).endswith("nothing was stored") for answer in answers[1:])


@pytest.mark.parametrize(("bound", "value"), [("GROUP_PUBLISHERS", 3), ("GROUP_BYTES", 3 * 33)])
async def test_waiting_publishers_share_calls_up_to_a_bound(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch, appends: list[int], bound: str, value: int
) -> None:
    """Each of them has an event of 32 or 33 bytes."""
    async with Node(valkey.url) as node:
        await asyncio.gather(*[node.publish(f"{number}") for number in range(100)])
        without_bound = appends.copy()
        appends.clear()
        monkeypatch.setattr(f"ssehub.brokers.redis.writer.{bound}", value)
        await asyncio.gather(*[node.publish(f"{number}") for number in range(100)])

        assert sum(without_bound) == sum(appends) == 100
        assert len(without_bound) < 5 and max(appends) == 3


async def test_publishers_that_wait_when_a_hub_stops_are_answered(valkey: RedisServer) -> None:
    async with Node(valkey.url) as node:
        valkey.signal(signal.SIGSTOP)
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(node.publish(f"{number}")) for number in range(3)]
        waiting.append(asyncio.create_task(node.broker.head()))
        await asyncio.sleep(0.05)
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    valkey.signal(signal.SIGCONT)

    assert all(isinstance(answer, BrokerUnavailable) for answer in answers)


async def test_head_is_an_error_if_redis_does_not_answer(valkey: RedisServer) -> None:
    async with Node(valkey.url) as node:
        assert await node.broker.head() is None
        valkey.signal(signal.SIGSTOP)
        with pytest.raises(BrokerUnavailable):
            await node.broker.head()
        valkey.signal(signal.SIGCONT)
        await node.is_ready()

        assert await node.publish_until_stored("1") == await node.broker.head()


async def test_bug_while_writing_is_logged_and_publishing_resumes(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(valkey.url) as node:
        with monkeypatch.context() as patch:
            patch.setattr("ssehub.brokers.redis.connection.new_log_name", None)
            with pytest.raises(BrokerUnavailable):
                await node.publish("1")
        await node.publish_until_stored("2")
        await node.has("2")

        assert "unexpected error while using the log" in caplog.text
