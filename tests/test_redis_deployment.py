"""Several nodes on Redis: restarts, failures and a failover under load (part E of the fault matrix)."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import RunningHub, free_port, report, until
from proxy import Mode, Proxy
from redis_load import Followers, Publishers, checked_result
from redis_nodes import resets_of, two_nodes
from redis_requests import wait_until_ready
from redis_servers import KINDS, SOAK, STREAM, RedisServer, replicated

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio


@pytest.mark.soak
def test_e15_rolling_restart_under_load_leaves_no_gap(
    soak_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    arguments = ("--broker", soak_server.url, "--drain-seconds", "1", "--control-bind")
    ports, controls = (free_port(), free_port()), (free_port(), free_port())
    binds = [("--bind", f"127.0.0.1:{ports[n]}", *arguments, f"127.0.0.1:{controls[n]}") for n in (0, 1)]
    hubs = [start_hub(*bind) for bind in binds]
    count, rate, rounds = (200, 500, 5) if SOAK else (40, 100, 1)

    with Followers(ports, hubs[0].token(), count) as followers:
        with Publishers(controls, rate) as publishers:
            for _ in range(rounds):
                for n in (0, 1):
                    hubs[n].signal()
                    assert hubs[n].wait() == 0
                    hubs[n] = start_hub(*binds[n])
        hubs[0].emit(data="end")
        result = checked_result(followers, publishers)

    report(f"E15: {publishers}; {len(result['events']) * count} deliveries, {result['connections']} connections")
    assert result["resets"] == 0 and result["connections"] > count


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_everything_answered_arrives_everywhere_once_and_in_the_same_order_despite_all_failures(
    soak_server: RedisServer, start_hub: Callable[..., RunningHub]
) -> None:
    """Redis is killed and restarted, one node is killed and restarted, and the other is disconnected."""
    count, rate, away, rounds = (200, 500, 5.0, 3) if SOAK else (20, 100, 2.0, 1)
    ports, controls = (free_port(), free_port()), (free_port(), free_port())

    def start(n: int, port: int) -> RunningHub:
        broker = ("--broker", f"redis://127.0.0.1:{port}", "--broker-probe-seconds", "1")
        return start_hub(*broker, "--bind", f"127.0.0.1:{ports[n]}", "--control-bind", f"127.0.0.1:{controls[n]}")

    with Proxy(soak_server.port) as proxy:
        a, b = start(0, proxy.port), start(1, soak_server.port)
        with Followers(ports, a.token(), count) as followers:
            with Publishers(controls, rate) as publishers:
                for _ in range(rounds):
                    time.sleep(0.5)
                    soak_server.kill()
                    time.sleep(0.5)
                    soak_server.start()
                    wait_until_ready(a, b)
                    time.sleep(0.5)
                    b.signal(signal.SIGKILL)
                    b.wait()
                    time.sleep(0.5)
                    b = start(1, soak_server.port)
                    time.sleep(0.5)
                    proxy.mode = Mode.STALL
                    time.sleep(away)
                    proxy.mode = Mode.DROP
                    proxy.mode = Mode.PASS
                    wait_until_ready(a, b)
                time.sleep(0.5)
            b.emit(data="end")
            result = checked_result(followers, publishers)

    report(
        f"all failures: {publishers}; {len(result['events']) * count} deliveries, {result['connections']} connections"
    )
    assert result["resets"] == 0 and result["connections"] > count
    assert publishers.refused and len(publishers.answered) > rate


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS if SOAK else KINDS[:1])
async def test_e17_failover_to_a_replica_that_lags_is_noticed_by_every_node(kind: str, tmp_path: Path) -> None:
    with replicated(kind, tmp_path) as (primary, link, replica, sentinel):
        async with two_nodes(sentinel.url) as (a, b):
            first = await b.publish("1")
            await until(lambda: replica.command("XLEN", STREAM) == 1)
            link.mode = Mode.STALL
            await b.publish("2")
            third = await a.publish("3")
            await asyncio.gather(a.has("3"), b.has("3"))
            primary.kill()
            await until(lambda: sentinel.primary_port == replica.port, 20)
            fourth = await b.publish_until_stored("4", 20)
            await asyncio.gather(a.has("4"), b.has("4"))
            link.mode = Mode.PASS

            assert a.received == b.received and a.data == ["1", "2", "3", "4"]
            assert a.resets == b.resets == ["log-lost"]
            assert fourth.partition(".")[2] != first.partition(".")[2]
            assert resets_of(a.listen(third)) == ["log-lost"]
