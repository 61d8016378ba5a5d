"""The pauses between the reads of a busy log: how load is recognised, and that nothing is lost by them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from broker_worlds import event
from proxy import Mode
from redis_nodes import Node, behind_proxy, two_nodes
from redis_servers import STREAM, RedisServer
from ssehub.brokers.redis import pauses
from ssehub.brokers.redis.pauses import BUSY_RATE, CALM_RATE, PAUSE_SECONDS, Pauses
from ssehub.publication import Publication

pytest_plugins = ("redis_fixtures",)


def read_log(arrivals: Sequence[float], of: Pauses) -> tuple[list[float], int]:
    """Return the latency of each entry of a log that is read with these pauses, and the number of reads."""
    latencies: list[float] = []
    reads = 0
    now = 0.0
    while len(latencies) < len(arrivals):
        now = max(now, arrivals[len(latencies)])
        found = [now - arrival for arrival in arrivals[len(latencies) :] if arrival <= now]
        latencies += found
        reads += 1
        now = of.ends_at(now, len(found))
    return latencies, reads


def evenly(rate: float, seconds: float = 1.0) -> list[float]:
    return [number / rate for number in range(round(rate * seconds))]


@pytest.mark.parametrize("rate", [2, 50, 100, 200, CALM_RATE])
def test_entries_that_come_at_a_moderate_rate_are_read_at_once(rate: float) -> None:
    latencies, reads = read_log(evenly(rate), Pauses())

    assert reads == len(latencies) and max(latencies) == 0


def test_first_entries_after_an_idle_time_are_read_at_once_however_close_they_are() -> None:
    of = Pauses()
    for began in (0.0, 10.0):
        latencies, _ = read_log([began + number / 1_000 for number in range(12)], of)

        assert max(latencies) == 0


@pytest.mark.parametrize("rate", [BUSY_RATE, 1_000, 10_000])
def test_busy_log_is_read_once_in_each_pause_and_no_entry_waits_for_longer(rate: float) -> None:
    latencies, reads = read_log(evenly(rate), Pauses())

    assert reads < 1.3 / PAUSE_SECONDS, "the first ones without a pause"
    assert max(latencies) <= PAUSE_SECONDS


def test_pause_grows_with_the_rate() -> None:
    reads = [read_log(evenly(rate), Pauses())[1] / rate for rate in (250, 350, 400, 500, 1_000)]

    assert reads[0] == 1.0 and reads == sorted(reads, reverse=True) and len(set(reads)) == 5


def test_entry_after_load_is_read_at_once() -> None:
    of = Pauses()
    read_log(evenly(5_000), of)

    assert of.ends_at(2.0, 1) == 2.0


@pytest.mark.anyio
async def test_nodes_read_a_busy_log_at_most_two_hundred_times_a_second(redis_server: RedisServer) -> None:
    def reads() -> int:
        statistics = redis_server.command("INFO", "commandstats")
        return int(statistics["cmdstat_xread"]["calls"])

    async with two_nodes(redis_server.url) as (a, b):
        sent = [f"{number}" for number in range(600)]
        for number in sent[:50]:
            await b.publish(number)
        before, began = reads(), time.monotonic()
        for number in sent[50:]:
            await b.publish(number)
        rate = (reads() - before) / (time.monotonic() - began) / 2
        await asyncio.gather(a.has(sent[-1]), b.has(sent[-1]))

        assert a.data == sent and a.received == b.received
        assert rate < 200, "without pauses a node reads as often as something is published"


async def begin_pause(node: Node, other: Node) -> None:
    """Publish so many events at once that both nodes pause after they have read them."""
    await other.broker.publish([Publication([event(f"{number}") for number in range(20)])])
    await asyncio.gather(node.has("19"), other.has("19"))


def trim(server: RedisServer) -> None:
    server.command("XTRIM", STREAM, "MAXLEN", 0)


def kill_readers(server: RedisServer) -> None:
    with server.client() as client:
        for one in client.client_list():
            if one["cmd"] == "xread":
                client.client_kill_filter(_id=one["id"])


@pytest.mark.anyio
@pytest.mark.parametrize(("happens", "lost"), [(trim, True), (kill_readers, False)], ids=["trimmed", "killed"])
async def test_e19_what_happens_in_a_pause_is_noticed_after_it(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch, happens: Callable[[RedisServer], None], lost: bool
) -> None:
    monkeypatch.setattr(pauses, "PAUSE_SECONDS", 2.0)
    async with two_nodes(valkey.url) as (a, b):
        await begin_pause(a, b)
        await b.publish("in the pause")
        happens(valkey)
        await b.publish("end")
        assert a.data[-1] == b.data[-1] == "19", "they pause"
        await asyncio.gather(a.has("end"), b.has("end"))

        assert a.received == b.received and a.data[20:] == (["end"] if lost else ["in the pause", "end"])
        assert a.resets == b.resets == (["too-old"] if lost else [])


@pytest.mark.anyio
async def test_e19_catching_up_does_not_wait_for_pauses(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "PAUSE_SECONDS", 60.0)
    async with behind_proxy(valkey) as (a, b, proxy):
        proxy.mode = Mode.DROP
        await a.is_not_ready()
        sent = [f"{number}" for number in range(1_000)]
        await b.broker.publish([Publication([event(data) for data in sent])])
        proxy.mode = Mode.PASS
        await a.has(*sent)


@pytest.mark.anyio
async def test_e19_stopping_does_not_wait_for_a_pause(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "PAUSE_SECONDS", 60.0)
    async with two_nodes(valkey.url) as (a, b):
        await begin_pause(a, b)
        await b.publish("in the pause")
        assert a.data[-1] == b.data[-1] == "19", "they pause"
        began = time.monotonic()

    assert time.monotonic() - began < 3


@pytest.mark.anyio
async def test_events_at_rest_are_read_at_once(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "PAUSE_SECONDS", 60.0)
    async with Node(valkey.url) as node:
        for number in range(12):
            await node.publish(f"{number}")
            await node.has(f"{number}")
