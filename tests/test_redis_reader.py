"""Reading the log in Redis: interrupted connections, gaps, foreign entries (part E of the fault matrix)."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence

import pytest

from broker_worlds import RecordingFollower, event
from commands import run
from conftest import until
from proxy import Mode
from redis_nodes import PROBE_SECONDS, Node, behind_proxy, events_of, two_nodes
from redis_servers import ANSWER_SECONDS, STREAM, RedisServer
from ssehub.brokers import Entry
from ssehub.brokers.redis import RedisBroker
from ssehub.errors import BrokerUnavailable
from ssehub.fanout.engine import Engine
from ssehub.position import Position
from ssehub.publication import Publication
from ssehub.settings import Retention

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio


# E4 to E7: the connection


@pytest.mark.alone
async def test_e4_node_that_is_disconnected_catches_up_and_the_other_is_not_affected(
    redis_server: RedisServer,
) -> None:
    async with behind_proxy(redis_server) as (a, b, proxy):
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

        assert a.received == b.received and len(a.received) >= 101
        assert a.resets == b.resets == []


@pytest.mark.alone
async def test_e5_connection_that_receives_nothing_is_given_up_by_the_probe(redis_server: RedisServer) -> None:
    async with behind_proxy(redis_server) as (a, b, proxy):
        proxy.mode = Mode.SWALLOW
        began = time.monotonic()
        problem = await a.is_not_ready()
        took = time.monotonic() - began
        await b.publish("1")
        proxy.mode = Mode.PASS
        await a.has("1")

        assert took < 2 * PROBE_SECONDS + 0.5 and "no reply" in problem
        assert a.received == b.received and a.resets == []


async def test_e5_reply_that_is_cut_off_is_requested_again(redis_server: RedisServer) -> None:
    async with behind_proxy(redis_server) as (a, b, proxy):
        for number in range(8):
            proxy.cut_after(random.Random(number).randrange(1, 400))
            await b.publish(f"{number} {'x' * 300}")
            await until(lambda: proxy.has_cut)
        await b.publish("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.received == b.received and len(a.received) == 9
        assert a.resets == b.resets == []


async def test_e5_slow_connection_catches_up_although_no_reply_of_the_usual_size_arrives_in_time(
    valkey: RedisServer,
) -> None:
    async with behind_proxy(valkey) as (a, b, proxy):
        proxy.mode = Mode.DROP
        await a.is_not_ready()
        for number in range(20):
            await b.publish(f"{number} {'x' * 100_000}")
        proxy.bytes_per_second = 10**6
        proxy.mode = Mode.PASS
        await until(lambda: len(a.received) == 20, 20)

        assert a.received == b.received and a.resets == []


async def test_e6_reading_connection_that_is_killed_is_replaced(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        for number in range(200):
            if number % 20 == 0:
                with redis_server.client() as client:
                    for one in client.client_list():
                        if one["cmd"] == "xread":
                            client.client_kill_filter(_id=one["id"])
            await b.publish(f"{number}")
        await asyncio.gather(a.has("199"), b.has("199"))

        assert a.received == b.received and a.data == [f"{number}" for number in range(200)]
        assert a.resets == b.resets == []


@pytest.mark.parametrize("left", [0, 3])
async def test_e7_log_that_was_trimmed_past_a_node_is_noticed(redis_server: RedisServer, left: int) -> None:
    async with behind_proxy(redis_server) as (a, b, proxy):
        await b.publish("0")
        await a.has("0")
        proxy.mode = Mode.DROP
        for number in range(1, 10):
            await b.publish(f"{number}")
        redis_server.command("XTRIM", STREAM, "MAXLEN", left)
        proxy.mode = Mode.PASS
        await until(lambda: a.resets, 10)
        await b.publish("end")
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.resets == ["too-old"] and b.resets == []
        assert a.data == ["0", *[f"{number}" for number in range(10 - left, 10)], "end"]
        assert b.data == [f"{number}" for number in range(10)] + ["end"]


# E9, E10: the log itself


async def test_e9_log_that_is_deleted_is_replaced_by_another(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        for round in range(3):
            await b.publish(f"{round}")
            await asyncio.gather(a.has(f"{round}"), b.has(f"{round}"))
            redis_server.command("DEL", STREAM)
            if round:
                await b.publish(f"after {round}")
                await asyncio.gather(a.has(f"after {round}"), b.has(f"after {round}"))
            await until(lambda count=round + 1: len(a.resets) == len(b.resets) == count, 10)  # type: ignore[misc]  # a lambda with a default

        assert a.received == b.received
        assert set(a.resets) == set(b.resets) == {"log-lost"}


FOREIGN: dict[str, list[str | bytes]] = {
    "other fields": ["a", "b"],
    "two fields": ["n", "1", "log", "x"],
    "other names": ["N", "1", "log", "x", "event", "{}"],
    "n not a number": ["n", "one", "log", "{log}", "event", '{"channels":["chat"],"users":["*"],"data":"x"}'],
    "another log": ["n", "2", "log", "foreign0", "event", '{"channels":["chat"],"users":["*"],"data":"x"}'],
    "log not text": ["n", "2", "log", b"\xff\xfe", "event", '{"channels":["chat"],"users":["*"],"data":"x"}'],
    "not JSON": ["n", "2", "log", "{log}", "event", "this is not JSON"],
    "not UTF-8": ["n", "2", "log", "{log}", "event", b"\xff\xfe"],
    "not an event": ["n", "2", "log", "{log}", "event", "[]"],
    "null": ["n", "2", "log", "{log}", "event", "null"],
    "data is a number": ["n", "2", "log", "{log}", "event", '{"channels":["chat"],"users":["*"],"data":5}'],
    "channels are a number": ["n", "2", "log", "{log}", "event", '{"channels":5,"users":["*"],"data":"x"}'],
    "channels are numbers": ["n", "2", "log", "{log}", "event", '{"channels":[5],"users":["*"],"data":"x"}'],
    "id is a list": ["n", "2", "log", "{log}", "event", '{"channels":["c"],"users":["*"],"data":"x","id":[1]}'],
    "ttl is text": ["n", "2", "log", "{log}", "event", '{"channels":["c"],"users":["*"],"data":"x","ttl":"x"}'],
    "payload is a number": ["n", "2", "log", "{log}", "event", '{"channels":["c"],"users":["*"],"payload":5}'],
    "too deep": ["n", "2", "log", "{log}", "event", "[" * 100_000],
    "later format": ["n", "2", "log", "{log}", "event", '2["x",null,true,null]\nchat\n*\n\nx'],
    "too few lines": ["n", "2", "log", "{log}", "event", '1["x",null,true,null]\nchat\n*\n'],
    "options not JSON": ["n", "2", "log", "{log}", "event", "1\nchat\n*\n\nx"],
    "options not a list": ["n", "2", "log", "{log}", "event", '1"four"\nchat\n*\n\nx'],
    "options too deep": ["n", "2", "log", "{log}", "event", "1" + "[" * 1_900 + "\nchat\n*\n\nx"],
    "options too long": ["n", "2", "log", "{log}", "event", f'1["{"x" * 2_000}",null,true,null]\nchat\n*\n\nx'],
    "options with a list": ["n", "2", "log", "{log}", "event", '1[["x"],null,true,null]\nchat\n*\n\nx'],
    "type that is reserved": ["n", "2", "log", "{log}", "event", '1["stream-x",null,true,null]\nchat\n*\n\nx'],
    "empty channel": ["n", "2", "log", "{log}", "event", '1["x",null,true,null]\n\n*\n\nx'],
    "id with a control": ["n", "2", "log", "{log}", "event", '1["x",null,true,null]\nchat\n*\na\tb\nx'],
    "data not UTF-8": ["n", "2", "log", "{log}", "event", b'1["x",null,true,null]\nchat\n*\n\n\xff'],
    "command of a later version": ["n", "2", "log", "{log}", "event", '{"command":"revoke"}'],
    "invalid command": ["n", "2", "log", "{log}", "event", '{"command":7,"users":8}'],
}


async def test_e10_foreign_and_broken_entries_are_skipped_counted_and_logged_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        first = await b.publish("0")
        log = first.partition(".")[2]
        for number, entry in enumerate(FOREIGN.values(), 1):
            redis_server.command("XADD", STREAM, "*", *[log if part == "{log}" else part for part in entry])
            await b.publish(f"{number}")
        await asyncio.gather(a.has(f"{len(FOREIGN)}"), b.has(f"{len(FOREIGN)}"))
        warnings = [record for record in caplog.records if "skipping entry" in record.message]

        assert a.received == b.received and a.data == [f"{number}" for number in range(len(FOREIGN) + 1)]
        assert a.resets == b.resets == []
        assert a.hub.statistics.log_skipped_entries == len(FOREIGN)
        assert len(warnings) == 2, "one for each node"
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
    async with Node(redis_server.url) as later:
        assert later.broker.skipped == len(FOREIGN), "they are skipped at the start, too"
        stream = later.listen(first)
        assert [message.data for message in events_of(stream)] == [f"{n}" for n in range(1, len(FOREIGN) + 1)]


@pytest.mark.parametrize("id", ["4102444800000-5", "4102444800000-18446744073709551615"])
async def test_e10_log_continues_after_a_foreign_entry_with_a_future_id(redis_server: RedisServer, id: str) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        await b.publish("1")
        redis_server.command("XADD", STREAM, id, "a", "b")
        ids = [await node.publish(data) for node, data in ((b, "2"), (a, "3"), (b, "4"))]
        await asyncio.gather(a.has("4"), b.has("4"))

        assert a.received == b.received and a.data == ["1", "2", "3", "4"]
        assert [position for position, _ in a.received[1:]] == ids
        assert a.resets == b.resets == []


HUGE_IDS = [(2**53 + 1, 0), (10**16 - 1, 10**15 - 1), (2**63, 2**53), (2**64 - 2, 2**64 - 2), (2**64 - 1, 2**63)]
"""Ids of foreign entries whose numbers Lua cannot represent. After the fourth, three events have no room."""


@pytest.mark.parametrize("id", HUGE_IDS, ids="{0[0]}-{0[1]}".format)
async def test_e10_publishing_and_resuming_go_on_after_a_foreign_entry_with_an_id_over_2_to_the_53(
    redis_server: RedisServer, id: tuple[int, int]
) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        first = await b.publish("1")
        redis_server.command("XADD", STREAM, f"{id[0]}-{id[1]}", "a", "b")
        ids = await b.hub.publish_all([Publication([event(data)]) for data in "234"])
        ids += [await a.publish_until_stored("5"), await b.publish_until_stored("6")]
        again = await a.publish("6", idempotency_key="6")
        await asyncio.gather(a.has("6"), b.has("6"))
        replayed = events_of(b.listen(ids[0]))
        async with Node(redis_server.url) as later:
            replayed_later = events_of(later.listen(first))

    positions = [parsed(each) for each in ids]
    assert a.received == b.received and a.data == list("123456")
    assert [position for position, _ in a.received[1:]] == ids and again == ids[-1]
    assert positions == sorted(set(positions)) and (positions[0].milliseconds, positions[0].sequence) > id
    assert [message.data for message in replayed] == list("3456")
    assert [(message.id, message.data) for message in replayed_later] == a.received[1:]
    assert a.resets == b.resets == later.resets == []


async def test_e10_log_that_is_full_is_reported_with_what_to_do(redis_server: RedisServer) -> None:
    async with two_nodes(redis_server.url) as (a, b):
        await b.publish("1")
        await asyncio.gather(a.has("1"), b.has("1"))
        redis_server.command("XADD", STREAM, f"{2**64 - 1}-{2**64 - 1}", "a", "b")
        with pytest.raises(BrokerUnavailable, match="the log is full, as /readyz explains; nothing was stored"):
            await b.publish("not stored")
        problem = await b.is_not_ready()
        redis_server.command("DEL", STREAM)
        second = await b.publish_until_stored("2")
        await asyncio.gather(a.has("1", "2"), b.has("1", "2"), a.is_ready(), b.is_ready())

        assert f"highest possible id to the stream {STREAM}. Delete that key" in problem
        assert a.received == b.received and a.received[-1] == (second, "2")
        assert a.resets == b.resets == ["log-lost"]


async def test_log_command_prints_events_after_the_year_9999_without_a_time(valkey: RedisServer) -> None:
    async with Node(valkey.url) as node:
        valkey.command("XADD", STREAM, f"{2**63}-0", "a", "b")
        id = await node.publish("1")
        printed = await asyncio.to_thread(run, "log", "--broker", valkey.url)

    line = json.loads(printed.stdout)
    assert (line["position"], line["time"], line["data"]) == (id, None, "1")


# Where reading begins, and gaps


def parsed(id: str) -> Position:
    position = Position.parse(id)
    assert position is not None
    return position


async def test_log_is_read_from_its_birth_or_from_where_it_was_trimmed_or_renamed(valkey: RedisServer) -> None:
    async def base_and_tail(retention: Retention = Retention()) -> tuple[Position, list[str | None]]:
        follower = RecordingFollower()
        async with RedisBroker(valkey.url, retention=retention).run(follower):
            return follower.bases[0], follower.data

    async with Node(valkey.url) as node:
        ids = [parsed(await node.publish(f"{number}")) for number in range(5)]
        birth, everything = await base_and_tail()
        assert birth < ids[0] and everything == ["0", "1", "2", "3", "4"]
        assert await base_and_tail(Retention(history_events=2)) == (ids[2], ["3", "4"])
        assert await base_and_tail(Retention(history_bytes=1)) == (ids[3], ["4"])
        valkey.command("XTRIM", STREAM, "MAXLEN", 3)
        assert await base_and_tail() == (ids[2].before, ["2", "3", "4"])
        valkey.command("XDEL", STREAM, str(ids[3]).partition(".")[0])
        assert await base_and_tail() == (ids[4].before, ["4"]), "entries before a gap are not read"
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


async def test_log_that_has_less_than_a_node_knows_gets_another_name(valkey: RedisServer) -> None:
    async with two_nodes(valkey.url) as (a, b):
        ids = [await b.publish(f"{number}") for number in range(3)]
        await asyncio.gather(a.has("2"), b.has("2"))
        valkey.command("XDEL", STREAM, ids[-1].partition(".")[0])
        await until(lambda: a.resets and b.resets, 10)
        await b.publish("3")
        await asyncio.gather(a.has("3"), b.has("3"))

        assert a.resets == b.resets == ["log-lost"]
        assert a.received == b.received


async def test_entry_that_is_missing_in_the_middle_is_noticed(valkey: RedisServer) -> None:
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


async def test_bug_while_reading_is_logged_and_streams_are_reset_and_nothing_is_repeated(
    valkey: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, failures = Engine.deliver, [RuntimeError("a mistake")]

    async def fail_once(engine: Engine, position: Position, entries: Sequence[Entry]) -> None:
        if failures:
            raise failures.pop()
        await deliver(engine, position, entries)

    async with Node(valkey.url) as node:
        await node.publish("1")
        await node.has("1")
        monkeypatch.setattr(Engine, "deliver", fail_once)
        await node.publish("2")
        await node.has("1", "2")
        await node.publish("3")
        await node.has("1", "2", "3")

        assert node.data == ["1", "2", "3"] and node.resets == ["too-old"]
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
            f"unexpected error while using the log at {valkey.url}: connecting again"
        ]
