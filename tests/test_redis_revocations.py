"""Revocations in Redis: every node has all of them, and puts back what Redis has lost (part E of the fault matrix)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from broker_worlds import RecordingFollower
from conftest import report, until
from proxy import Mode, Proxy
from redis_nodes import PROBE_SECONDS, behind_proxy, two_nodes
from redis_peers import TABLE, running, stored, two_peers, until_stored
from redis_servers import ANSWER_SECONDS, KINDS, STREAM, RedisServer, replicated
from ssehub.brokers.redis import RedisBroker
from ssehub.brokers.redis.connection import Connection, Server
from ssehub.brokers.redis.state import Knowledge
from ssehub.brokers.redis.table import Table
from ssehub.brokers.redis.wire import field_and_value
from ssehub.errors import BrokerUnavailable, Overloaded
from ssehub.publication import Revoke, TakeBack
from ssehub.revocations import Revocation
from ssehub.settings import LogRetention, RedisOptions

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio


def user(name: str, issued_before: float = 1_000.0, expires_at: float | None = None) -> Revocation:
    return Revocation(user_id=name, issued_before=issued_before, expires_at=expires_at)


# Redis loses what it has


@pytest.mark.parametrize("loss", [("FLUSHALL",), ("DEL", TABLE), ("DEL", "{ssehub}:state")])
async def test_e18_nodes_put_back_what_redis_has_lost(redis_server: RedisServer, loss: tuple[str, ...]) -> None:
    async with two_peers(redis_server) as (a, b, _):
        await a.revoke("1", "2", "3")
        await b.take_back("2")
        await asyncio.gather(a.has("1", "3"), b.has("1", "3"))
        redis_server.command(*loss)
        async with running(redis_server.url) as later:
            await until_stored(redis_server, "1", "3")
            await asyncio.gather(a.has("1", "3"), b.has("1", "3"), later.has("1", "3"))

            await a.revoke("4")
            await asyncio.gather(*[peer.has("1", "3", "4") for peer in (a, b, later)])
            told = {one.key for peer in (a, b) for one in peer.revocations}
            assert not told & {"jti:1", "jti:3"}, "they had them all the time"
    async with running(redis_server.url) as fresh:
        assert fresh.keys == {"jti:1", "jti:3", "jti:4"} and fresh.broker.is_current


async def test_e18_node_that_starts_while_the_table_is_lost_is_told_what_the_others_put_back(
    soak_server: RedisServer,
) -> None:
    async with running(soak_server.url) as peer:
        await peer.revoke("1")
    with Proxy(soak_server.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}") as old:
            proxy.mode = Mode.STALL
            soak_server.command("FLUSHALL")
            async with running(soak_server.url) as later:
                assert later.keys == set()
                proxy.mode = Mode.PASS
                await until(lambda: later.revocations, 10)

                assert later.revocations == [Revocation(jti="1")] and later.keys == {"jti:1"}
                assert old.revocations == []


async def test_e18_putting_back_ends_no_stream_of_another_user(soak_server: RedisServer) -> None:
    async with two_nodes(soak_server.url) as (a, b):
        await a.hub.revoke(user_id="kim")
        await until(lambda: "user:kim" in b.broker.revocations)
        soak_server.command("FLUSHALL")
        await until(lambda: soak_server.command("HLEN", TABLE) == 1, 10)
        await b.publish_until_stored("1")
        await asyncio.gather(a.has("1"), b.has("1"))

        assert not [one for node in (a, b) for one in node.stream.messages if one.type == "stream-revoked"]


@pytest.mark.only_soak
async def test_e18_table_that_was_evicted_is_put_back(soak_server: RedisServer) -> None:
    async with running(soak_server.url) as peer:
        await peer.revoke("1")
        await peer.has("1")
        soak_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        soak_server.command("CONFIG", "SET", "maxmemory", "1mb")
        for number in range(100):
            with contextlib.suppress(BrokerUnavailable):
                await peer.publish(f"filling {number} {'x' * 20_000}")
        soak_server.command("CONFIG", "SET", "maxmemory", "0")
        await until_stored(soak_server, "1")

        assert peer.keys == {"jti:1"}


@pytest.mark.parametrize("has_data", [True, pytest.param(False, marks=pytest.mark.only_soak)])
async def test_e18_revocations_survive_kill_9_of_redis(soak_server: RedisServer, has_data: bool) -> None:
    async with two_peers(soak_server) as (a, b, _):
        await a.revoke("1")
        await asyncio.gather(a.has("1"), b.has("1"))
        soak_server.kill()
        with pytest.raises(BrokerUnavailable):
            await a.revoke("2")
        if not has_data:
            soak_server.forget()
        soak_server.start()
        await until_stored(soak_server, "1")
        await until(lambda: a.broker.is_current and b.broker.is_current, 10)

        assert a.keys == b.keys == {"jti:1"} and a.revocations == b.revocations == []


@pytest.mark.only_soak
@pytest.mark.parametrize("kind", KINDS)
async def test_e18_failover_to_a_replica_that_lags_forgets_no_revocation(kind: str, tmp_path: Path) -> None:
    with replicated(kind, tmp_path) as (primary, link, replica, sentinel):
        async with running(sentinel.url) as a, running(sentinel.url) as b:
            await a.revoke("1")
            await until(lambda: stored(replica) == {"jti:1"})
            link.mode = Mode.STALL
            await b.revoke("2")
            await asyncio.gather(a.has("1", "2"), b.has("1", "2"))
            primary.kill()
            await until(lambda: sentinel.primary_port == replica.port, 20)
            await until_stored(replica, "1", "2")
            await until(lambda: a.broker.is_current and b.broker.is_current, 10)
            link.mode = Mode.PASS

            assert a.keys == b.keys == {"jti:1", "jti:2"}
            assert a.revocations == b.revocations == []


# A node has missed something


async def test_e18_node_that_has_not_read_a_take_back_puts_nothing_back(redis_server: RedisServer) -> None:
    async with running(redis_server.url) as peer:
        await peer.revoke("1", "2")
        await peer.has("1", "2")
        read_to = peer.position
        await peer.take_back("2")
        await peer.has("1")
        async with Server(redis_server.url, "ssehub").connect(5) as connection:
            lost = [Revocation(jti="1"), Revocation(jti="2")]

            assert await connection.restore(lost, read_to, LogRetention()) is None
            assert await connection.restore(lost, read_to._replace(log="another"), LogRetention()) is None
            assert stored(redis_server) == {"jti:1"}
            ended = [Revocation(jti="ended", expires_at=1_000.0), Revocation(jti="3", expires_at=9e9)]
            assert await connection.restore([*lost[:1], *ended], peer.position, LogRetention()) == 1
        await peer.has("1", "3")


@pytest.mark.parametrize("left", [0, 1])
async def test_e18_node_that_missed_entries_which_were_trimmed_reads_the_table(
    soak_server: RedisServer, left: int
) -> None:
    async with two_peers(soak_server) as (a, b, proxy):
        await b.revoke("1", "2")
        await b.broker.revoke([user("extended", 2_000), user("reduced", 3_000)])
        await until(lambda: len(a.keys) == 4)
        proxy.mode = Mode.DROP
        await b.revoke("3")
        await b.broker.take_back(["jti:1", "user:reduced"])
        changed = [user("extended", 2_500), user("reduced", 1_500)]
        await b.broker.revoke(changed)
        await b.publish("end")
        soak_server.command("XTRIM", STREAM, "MAXLEN", left)
        proxy.mode = Mode.PASS
        await until(lambda: a.keys == b.keys)
        await b.publish("after")
        await until(lambda: a.data[-1:] == ["after"])

        assert set(a.broker.revocations) == {Revocation(jti="2"), Revocation(jti="3"), *changed}
        assert {one.key for one in a.revocations} >= {"jti:3", "user:extended"}, "the log does not tell of these"
        assert "jti:2" not in {one.key for one in a.revocations}
        assert stored(soak_server) == b.keys, "what was taken back has not been put back"


async def test_e18_take_back_in_a_new_log_is_not_undone_by_a_node_that_was_away(soak_server: RedisServer) -> None:
    async with two_peers(soak_server) as (a, b, proxy):
        await b.revoke("1", "2")
        await a.has("1", "2")
        proxy.mode = Mode.DROP
        soak_server.command("FLUSHALL")
        await until_stored(soak_server, "1", "2")
        await b.take_back("1")
        proxy.mode = Mode.PASS
        await asyncio.gather(a.has("2"), b.has("2"))
        await b.publish("end")
        await until(lambda: a.data[-1:] == ["end"])

        assert stored(soak_server) == {"jti:2"}


async def test_commands_that_the_copy_is_ahead_of_do_not_change_it(soak_server: RedisServer) -> None:
    """The tail of the log that a node reads at its start is older than the table."""
    async with running(soak_server.url) as peer:
        await peer.revoke("1", "2")
        await peer.take_back("1", "2")
        await peer.revoke("1")
    seen = []

    class Watching(RecordingFollower):
        async def deliver(self, *arguments: Any) -> None:
            seen.append(later.revocations.keys())
            await super().deliver(*arguments)

    later = RedisBroker(soak_server.url)
    follower = Watching()
    async with later.run(follower):
        assert [type(command) for command in follower.commands] == [Revoke, TakeBack, Revoke]
        assert seen == [["jti:1"]] * len(seen) and seen


async def test_e18_what_is_found_in_the_table_is_told_although_reading_it_fails_midway(
    soak_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}" for number in range(600)]
    read_page, pages = Connection.revocations, 0

    async def fail_once(self: Connection, cursor: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise ConnectionError("lost between two pages of the table")
        return await read_page(self, cursor)

    async with two_peers(soak_server) as (a, b, proxy):
        proxy.mode = Mode.DROP
        await b.revoke(*names)
        soak_server.command("XTRIM", STREAM, "MAXLEN", 0)
        monkeypatch.setattr(Connection, "revocations", fail_once)
        proxy.mode = Mode.PASS
        await a.has(*names)
        await until(lambda: a.revocations, 10)

        assert pages > 3 and {one.jti for one in a.revocations} == set(names)


async def test_e18_node_knows_at_once_what_it_has_stored_and_puts_it_back_if_redis_loses_it_unread(
    soak_server: RedisServer,
) -> None:
    async with running(soak_server.url) as peer:
        peer.has_capacity.clear()
        await peer.publish("the reader waits behind this")
        await until(lambda: peer.waiting)
        await peer.revoke("1")
        assert peer.keys == {"jti:1"}, "its token is refused from now on"
        soak_server.command("FLUSHALL")
        peer.has_capacity.set()
        await until_stored(soak_server, "1")

        await until(lambda: peer.revocations == [Revocation(jti="1")], 10)


async def test_e18_what_has_run_out_is_not_new_to_a_node_that_finds_it_in_the_table(soak_server: RedisServer) -> None:
    async with running(soak_server.url) as peer:
        await peer.broker.revoke([user("in force")])
    soak_server.command("HSET", TABLE, *field_and_value(user("ended", expires_at=1_000.0)))
    server = Server(soak_server.url, "ssehub")
    table = Table(server.clock, Knowledge(), LogRetention())
    async with server.connect(5) as connection:
        new = await table.read(connection, await connection.log_state())

    assert new == list(table.revocations) == [user("in force")]


# A node that is cut off


@pytest.mark.alone
async def test_e18_node_that_is_cut_off_is_not_current_until_it_has_caught_up(soak_server: RedisServer) -> None:
    async with two_peers(soak_server) as (a, b, proxy):
        for mode, bound in ((Mode.DROP, 0.5), (Mode.SWALLOW, PROBE_SECONDS + 0.5)):
            await until(lambda: a.broker.is_current)
            proxy.mode = mode
            began = time.monotonic()
            await until(lambda: not a.broker.is_current, 10)
            took = time.monotonic() - began
            assert took < bound
            report(f"cut off by {mode.value}: noticed after {took:.2f} s")
            for number in range(300):
                await b.publish(f"{number}")
            name = f"late {mode.value}"
            await b.revoke(name)
            assert f"jti:{name}" not in a.keys and b.broker.is_current
            proxy.mode = Mode.PASS
            began = time.monotonic()
            await until(lambda: a.broker.is_current, 10)
            assert f"jti:{name}" in a.keys
            assert time.monotonic() - began < PROBE_SECONDS + 1.5


async def test_e18_broker_is_not_current_before_it_has_read_the_table(valkey: RedisServer) -> None:
    async with running(valkey.url) as peer:
        await peer.revoke("1")
    assert not peer.broker.is_current
    valkey.kill()
    options = RedisOptions(broker_probe_seconds=PROBE_SECONDS, wait_for_broker=True)
    broker, follower = RedisBroker(valkey.url, options=options), RecordingFollower()
    async with broker.run(follower):
        await until(lambda: "cannot use" in (broker.problem or ""))
        assert not broker.is_current and not follower.bases
        valkey.start()
        await until(lambda: follower.bases, 10)
        await until(lambda: broker.is_current)

        assert "jti:1" in broker.revocations


@pytest.mark.alone
@pytest.mark.parametrize("is_trimmed", [False, True])
@pytest.mark.parametrize("mode", [Mode.STALL, Mode.DROP])
async def test_e18_stream_that_a_cut_off_node_has_opened_ends_when_it_is_connected_again(
    soak_server: RedisServer, mode: Mode, is_trimmed: bool
) -> None:
    async with behind_proxy(soak_server) as (a, b, proxy):
        proxy.mode = mode
        await b.hub.revoke(user_id="alex")
        stream = a.listen()
        if is_trimmed:
            soak_server.command("XTRIM", STREAM, "MAXLEN", 0)
        proxy.mode = Mode.PASS
        began = time.monotonic()
        await until(lambda: stream.messages and stream.messages[-1].type == "stream-revoked", 10)
        took = time.monotonic() - began

        report(f"{mode.value}, {'trimmed' if is_trimmed else 'in the log'}: ended {took:.2f} s after it was connected")
        # Until the next attempt to connect; in a log that was trimmed, until two reads of it have brought nothing.
        assert took < 2.0 + (2 * PROBE_SECONDS if is_trimmed else 0.0)


# Bad input, and limits


async def test_full_table_is_refused_and_takes_back_all_the_same(
    soak_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.brokers.redis.writer.MAX_REVOCATIONS", 3)
    async with two_peers(soak_server) as (a, b, _):
        await a.revoke("1", "2")
        with pytest.raises(Overloaded, match="table of revocations is full"):
            await b.revoke("3", "4")
        await b.revoke("3", "3", "1")
        await b.publish("goes on")
        soak_server.command("DEL", TABLE)
        await until_stored(soak_server, "1", "2", "3")
        with pytest.raises(Overloaded):
            await a.revoke("4")
        await a.take_back("1")
        await a.revoke("4")
        await asyncio.gather(a.has("2", "3", "4"), b.has("2", "3", "4"))


async def test_e18_change_whose_answer_was_lost_may_be_repeated(soak_server: RedisServer) -> None:
    async with two_peers(soak_server) as (a, b, proxy):
        for verb, change in ((b"revoke", a.revoke), (b"take-back", a.take_back)):
            proxy.cut_answer_to(verb)
            with pytest.raises(BrokerUnavailable, match="may or may not be stored: it is safe to repeat"):
                await change("1")
            await change("1")
        await asyncio.gather(a.has(), b.has())

        assert stored(soak_server) == set()


@pytest.mark.alone
async def test_e18_changes_are_answered_in_time_while_redis_does_not_answer(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.brokers.redis.writer.MAX_WAITING_CHANGES", 2)
    async with running(valkey.url) as peer:
        valkey.signal(signal.SIGSTOP)
        began = time.monotonic()
        answers = await asyncio.gather(*[peer.revoke(f"{number}") for number in range(5)], return_exceptions=True)
        took = time.monotonic() - began
        valkey.signal(signal.SIGCONT)
        await until(lambda: peer.broker.is_current, 10)
        await peer.revoke_until_stored("1")

        assert took < ANSWER_SECONDS
        assert [type(answer) for answer in answers] == [BrokerUnavailable] * 2 + [Overloaded] * 3
        assert all(str(answer).endswith(("nothing was stored", "safe to repeat", "second")) for answer in answers)


FOREIGN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"this is not a revocation",
    "not JSON": b"- - {",
    "no object": b"- - []",
    "not UTF-8": b'- - {"jti":"\xff"}',
    "too deep": b"- - " + b"[" * 100_000,
    "of a later version": b'- - {"device":"d"}',
    "another field": b'- - {"jti":"another"}',
    "times": b'now - {"jti":"times"}',
    "no time": b'- never {"jti":"no time"}',
    "not a number": b'- nan {"jti":"not a number"}',
}


async def test_e10_foreign_fields_in_the_table_are_skipped_counted_and_logged_once(
    soak_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(soak_server.url) as peer:
        await peer.revoke("1")
    for name, value in FOREIGN.items():
        soak_server.command("HSET", TABLE, f"jti:{name}", value)
    async with running(soak_server.url) as peer:
        assert peer.keys == {"jti:1"} and peer.broker.skipped == len(FOREIGN)
        assert len([record for record in caplog.records if "skipping a revocation" in record.message]) == 1
        await peer.revoke(*FOREIGN)
        await peer.has("1", *FOREIGN)
    async with running(soak_server.url) as peer:
        assert peer.broker.skipped == 0, "they have been overwritten"


@pytest.mark.only_soak
async def test_e18_table_of_another_type_is_reported_and_waited_for(soak_server: RedisServer) -> None:
    async with running(soak_server.url) as peer:
        await peer.revoke("1")
        await peer.has("1")
        soak_server.command("DEL", TABLE)
        soak_server.command("SET", TABLE, "x")
        await until(lambda: "WRONGTYPE" in (peer.broker.problem or ""), 10)
        soak_server.command("DEL", TABLE)
        await until_stored(soak_server, "1")
        await until(lambda: peer.broker.problem is None, 10)


async def test_times_are_stored_to_the_last_digit(redis_server: RedisServer) -> None:
    revocations = [
        user("a", 1_795_871_532.123456, 2**53 - 1),
        user("b", 0.1 + 0.2, 9e9 + 0.1),
        user("c", 1e-7),
        user("d", 0),
        Revocation(sid="ü\u2028 s", iss="https://id.example"),
        Revocation(iss="i", sub="s", without_sid=True, issued_before=5),
        Revocation(everyone=True, issued_before=1.0),
    ]
    async with running(redis_server.url) as peer:
        await peer.broker.revoke(revocations)
        await peer.broker.revoke(revocations)
    async with running(redis_server.url) as peer:
        assert set(peer.broker.revocations) == set(revocations)
