"""A thousand runs at once: latency, events per second of the hubs' processors, and memory of an open append."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from appends import create_run
from conftest import SECRET, StartHub, report, until
from open_appends import APPENDS, LIMITS, LINE, Appender, Watcher, chunk, open_appends, processor_seconds, watch_all
from redis_servers import RedisServer
from ssehub import Tokens

pytestmark = [pytest.mark.anyio, pytest.mark.only_soak]

MAX_APPEND_BYTES = 12 * 1024
MIN_EVENTS_PER_CPU_SECOND = 15_000
SECONDS = 6.0
CHUNK = chunk(LINE)


@pytest.mark.parametrize("is_paced", [True, False], ids=["ten-a-second", "saturated"])
async def test_thousand_open_appends_are_small_and_take_little_of_the_processor(
    is_paced: bool, start_hub: StartHub
) -> None:
    hub = await asyncio.to_thread(start_hub, *LIMITS)
    process = psutil.Process(hub.process.pid)
    for number in range(APPENDS):
        await asyncio.to_thread(create_run, hub.control_url, f"r{number}")
    memory = process.memory_full_info().uss
    appenders = await open_appends(hub)
    each = (process.memory_full_info().uss - memory) / APPENDS

    before, sent = processor_seconds(process), 0
    began = time.monotonic()
    while (passed := time.monotonic() - began) < SECONDS:
        if is_paced:
            due = int(passed * 10 * APPENDS)
            for number in range(sent, due):
                appenders[number % APPENDS].transport.write(CHUNK)
            sent = due
        else:
            for appender in appenders:
                if not appender.is_paused:
                    appender.transport.write(CHUNK)
                    sent += 1
        await asyncio.sleep(0.001 if is_paced else 0)
    for appender in appenders:
        appender.transport.write(b"0\r\n\r\n")
    await until(lambda: all(appender.received for appender in appenders), 30)
    rate = sent / (processor_seconds(process) - before)
    stored = await asyncio.to_thread(hub.metric, "ssehub_run_events_total")
    for appender in appenders:
        appender.transport.close()
    report(f"an open append takes {each:.0f} bytes; {rate:.0f} events per second of the processor")

    assert all(appender.received.startswith(b"HTTP/1.1 200") for appender in appenders)
    assert stored == sent
    assert each <= MAX_APPEND_BYTES
    assert rate >= MIN_EVENTS_PER_CPU_SECOND


@pytest.mark.parametrize("broker", ["memory", "sqlite", "valkey"])
async def test_thousand_runs_with_ten_events_a_second_each(broker: str, start_hub: StartHub, tmp_path: Path) -> None:
    """Each has an open append and a watcher; over Valkey these are at different nodes."""
    url, count = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/log.db"}.get(broker, ""), 1
    if broker == "valkey":
        server, count = RedisServer("valkey", tmp_path), 2
        url = server.url
    clients: list[Watcher | Appender] = []
    try:
        hubs = [await asyncio.to_thread(start_hub, "--broker", url, *LIMITS) for _ in range(count)]
        latencies: list[float] = []
        processes = [psutil.Process(hub.process.pid) for hub in hubs]
        for number in range(APPENDS):
            await asyncio.to_thread(create_run, hubs[0].control_url, f"r{number}")
        token = Tokens(SECRET).issue("alex", ["chat"], expires_at=9_999_999_999)
        watchers = await watch_all(hubs[-1], token, latencies)
        appenders = await open_appends(hubs[0])
        clients = [*watchers, *appenders]
        connections = server.command("INFO", "clients")["connected_clients"] if broker == "valkey" else 0

        before = sum(map(processor_seconds, processes))
        sent = await paced(appenders)
        used = sum(map(processor_seconds, processes)) - before
        for appender in appenders:
            appender.transport.write(b"0\r\n\r\n")
        await until(lambda: all(appender.received for appender in appenders) and len(latencies) == sent, 30)
        assert all(appender.received.startswith(b"HTTP/1.1 200") for appender in appenders)
        assert not any(watcher.has_ended for watcher in watchers)
        if broker == "valkey":
            assert server.command("INFO", "clients")["connected_clients"] <= connections
    finally:
        for client in clients:
            client.transport.abort()
        await asyncio.sleep(0.1)
        if broker == "valkey":
            server.kill()
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    report(f"{broker}: {sent / SECONDS:.0f} events/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {sent / used:.0f} per CPU s")


async def paced(appenders: list[Appender]) -> int:
    """Append ten events a second to each run; return how many that were."""
    sent, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < SECONDS:
        due = int(passed * 10 * APPENDS)
        for number in range(sent, due):
            appenders[number % APPENDS].append_time()
        sent = due
        await asyncio.sleep(0.001)
    return sent
