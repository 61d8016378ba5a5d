"""Nodes whose clocks differ from that of Redis (F13 of the fault matrix), and what a node knows about Redis' clock."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conftest import until
from redis_nodes import Node, events_of
from redis_servers import RedisServer
from ssehub.brokers.redis.state import LogClock

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio

AHEAD, BEHIND = 3_700.0, -3_700.0
"""More than the hour that history is kept."""


@asynccontextmanager
async def nodes_with_clocks(url: str, *ahead_seconds: float) -> AsyncIterator[tuple[Node, Node]]:
    first, second = ahead_seconds
    async with Node(url, first) as a, Node(url, second) as b:
        yield a, b


def replayed(node: Node, cursor: str) -> list[str]:
    return [message.data for message in events_of(node.listen(cursor))]


async def test_f13_event_is_replayed_for_its_ttl_by_a_node_whose_clock_is_ahead(redis_server: RedisServer) -> None:
    async with nodes_with_clocks(redis_server.url, 31, 0) as (ahead, exact):
        first = await exact.publish("1")
        await exact.publish("2", ttl=30)
        await asyncio.gather(ahead.has("1", "2"), exact.has("1", "2"))
        await asyncio.sleep(1)

        assert replayed(ahead, first) == replayed(exact, first) == ["2"]


async def test_f13_history_is_kept_whatever_the_clocks_of_the_nodes_are(redis_server: RedisServer) -> None:
    async with nodes_with_clocks(redis_server.url, AHEAD, BEHIND) as (ahead, behind):
        first = await ahead.publish("1")
        await behind.publish("2")
        await asyncio.gather(ahead.has("1", "2"), behind.has("1", "2"))
        await asyncio.sleep(0.5)  # the nodes expire what is too old several times
        async with nodes_with_clocks(redis_server.url, AHEAD, BEHIND) as later:
            nodes = (ahead, behind, *later)

            assert [replayed(node, first) for node in nodes] == [["2"]] * 4
            assert [node.hub.statistics.history_events for node in nodes] == [2] * 4
            assert not any(node.hub.statistics.resets["too-old"] for node in nodes)


async def test_f13_expired_event_is_not_replayed_by_a_node_whose_clock_is_behind(redis_server: RedisServer) -> None:
    async with Node(redis_server.url) as node:
        first = await node.publish("1")
        await node.publish("2", ttl=0.5)
        await node.publish("3")
        await asyncio.sleep(0.6)
        async with Node(redis_server.url, BEHIND) as behind:
            assert replayed(behind, first) == ["3"]


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND])
async def test_f13_clock_of_a_node_that_is_set_while_it_runs_makes_no_event_older(
    valkey: RedisServer, seconds: float
) -> None:
    async with Node(valkey.url) as node:
        first = await node.publish("1")
        node.ahead_seconds = seconds
        await node.publish("2", ttl=30)
        await node.publish("3")
        await node.has("3")
        await asyncio.sleep(0.3)

        assert replayed(node, first) == ["2", "3"]


async def test_f13_clocks_that_differ_are_reported_once_and_shown_until_they_agree(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ssehub.brokers.redis")

    def lines(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    async with nodes_with_clocks(redis_server.url, 31, -4) as (ahead, slow):
        skews = [node.hub.statistics.clock_skew_seconds for node in (ahead, slow)]
        for _ in range(20):
            await ahead.publish("x")
            await slow.publish("x")
        assert lines("s ahead of that of the log at redis://") == 1

        ahead.ahead_seconds = 0
        await until(lambda: lines("the clocks of this machine and of the log") == 1)
        slow.ahead_seconds = -40
        await until(lambda: lines("s behind that of the log at redis://") == 1)

        assert lines("the clock of this machine is") == 2
        assert skews == [pytest.approx(31, abs=1), pytest.approx(-4, abs=1)]
        assert abs(ahead.hub.statistics.clock_skew_seconds) < 1


async def test_every_reply_to_a_publisher_tells_the_time(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    adjust, times = LogClock.adjust, list[float]()

    def record(self: LogClock, redis_time: float, sent_at: float) -> None:
        times.append(redis_time)
        adjust(self, redis_time, sent_at)

    async with Node(valkey.url) as node:
        monkeypatch.setattr(LogClock, "adjust", record)
        ids = [await node.publish("x") for _ in range(50)]

    assert {int(id.partition("-")[0]) for id in ids} <= {round(seconds * 1000) for seconds in times}


# LogClock


def clock() -> LogClock:
    """Return a clock that knows that Redis' time is Unix time."""
    clock = LogClock("redis://localhost", time.time)
    clock.adjust(time.time(), time.monotonic())
    return clock


def test_clock_is_that_of_the_node_until_redis_replies() -> None:
    clock = LogClock("redis://localhost", lambda: 1_000.0)

    assert clock.now() == 1_000.0 and clock.skew_seconds == 0.0


@pytest.mark.parametrize("read_after", [0.0, 1.0, 5.0])
def test_late_reply_that_agrees_does_not_set_the_clock(read_after: float) -> None:
    log_clock = clock()

    log_clock.adjust(time.time() - 5.0 + read_after, time.monotonic() - 5.0)

    assert log_clock.skew_seconds == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(("seconds", "skew"), [(100.0, -100.0), (-100.0, 95.0)])
def test_reply_that_disagrees_sets_the_clock_no_more_than_it_must(seconds: float, skew: float) -> None:
    log_clock = clock()

    log_clock.adjust(time.time() + seconds, time.monotonic() - 5.0)

    assert log_clock.skew_seconds == pytest.approx(skew, abs=0.1)
