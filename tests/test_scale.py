"""Very many streams, channels and events, and a hub that runs for long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from conftest import ERROR_LINES, RunningHub, StartHub, free_port, report, require, wait_until
from crowd import Crowd, crowds, native_crowds, wait_for_last
from redis_servers import RedisServer
from reverse_proxies import program, running_proxy
from ssehub.fanout.refusals import Refusal
from streams import RawStream, get

pytest_plugins = ("redis_fixtures",)
SOAK = "SOAK" in os.environ
MIB = 2**20


def publish_numbers(hub: RunningHub, first: int, last: int, pause: float = 0.0) -> None:
    with httpx.Client(timeout=60) as http:
        for number in range(first, last + 1):
            event = {"userId": "*", "channel": "chat", "data": str(number)}
            http.post(f"{hub.control_url}/emit/", json=event).raise_for_status()
            time.sleep(pause)


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a12_ten_thousand_streams_receive_every_event_in_order(start_hub: StartHub) -> None:
    counts, events = ((5_000, 5_000), 50) if SOAK else ((700, 700), 20)
    hub = start_hub()
    before = hub.memory_bytes()
    with crowds(hub, *counts) as running:
        wait_until(lambda: hub.metric("ssehub_subscribers") == sum(counts), 30)
        per_stream = (hub.memory_bytes() - before) / sum(counts)
        publish_numbers(hub, 1, events - 1)
        wait_for_last(running, events - 1)
        began = time.monotonic()
        publish_numbers(hub, events, events)
        wait_for_last(running, events)
        took = time.monotonic() - began
        reports = [crowd.report() for crowd in running]
    report(f"{sum(counts)} streams, {per_stream:.0f} bytes each, the last event took {took * 1000:.0f} ms")

    assert all(one.least == one.most == events and not one.faults and not one.resets for one in reports)
    assert [one.connected for one in reports] == list(counts)
    assert per_stream < 20_000
    assert took < 5


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis"])
def test_a16_clients_that_are_cut_off_at_once_are_all_back_in_time(
    broker: str, start_hub: StartHub, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = 2_000 if SOAK else 300
    redis: RedisServer | None = request.getfixturevalue("valkey") if broker == "redis" else None
    url = redis.url if redis else "memory://" if broker == "memory" else f"sqlite:///{tmp_path}/log.db"
    arguments = ("--bind", f"127.0.0.1:{free_port()}", "--broker", url)
    hub = start_hub(*arguments)
    with crowds(hub, count) as (crowd,):
        publish_numbers(hub, 1, 20)
        wait_for_last([crowd], 20)
        hub.process.kill()
        hub.process.wait()
        wait_until(lambda: crowd.report().open == 0)
        hub = start_hub(*arguments)
        began, lag = time.monotonic(), 0.0
        publish_numbers(hub, 21, 30)
        while crowd.report().open < count:
            lag = max(lag, hub.metric("ssehub_loop_lag_seconds"))
            assert time.monotonic() - began < 30
        took = time.monotonic() - began
        publish_numbers(hub, 31, 40)
        wait_for_last([crowd], 40)
        result = crowd.report()
        connections = len(redis.client().client_list()) if redis else 0
    report(f"{broker}: {count} clients back in {took:.1f} s, loop {lag * 1000:.0f} ms late at most")

    assert took < 10
    assert lag < (0.5 if SOAK else 2)
    assert result.faults == 0 and result.connected == 2 * count
    assert result.resets == (count if broker == "memory" else 0)
    assert connections < 20  # of the hub to Redis, however many clients there are
    assert not ERROR_LINES.search(hub.log)


WATCHED = """
import asyncio, signal, sys, time
from ssehub import Hub
from ssehub.cli import main

start, tasks = Hub.start, []

def forget(*_):
    global longest
    longest = 0.0

async def watch():
    global longest
    while True:
        began, cpu = time.monotonic(), time.thread_time()
        await asyncio.sleep(0.001)
        gap = time.monotonic() - began - 0.001
        if gap > longest:
            longest = gap
            sys.stderr.write(f"gap: {gap:.4f} s, {time.thread_time() - cpu:.4f} s of them on the processor\\n")
            sys.stderr.flush()

async def start_watched(self):
    if not tasks:
        tasks.append(asyncio.create_task(watch()))
    await start(self)

forget()
signal.signal(signal.SIGUSR1, forget)
Hub.start = start_watched
main()
"""
"""A hub that reports each pass of its event loop that took longer than all before, or all since SIGUSR1."""


def longest_gap(hub: RunningHub) -> tuple[float, float]:
    """Return the longest pass of the event loop, and how much of it was spent on the processor, in seconds."""
    gap, cpu = re.findall(r"gap: (\S+) s, (\S+) s", hub.log)[-1]
    return float(gap), float(cpu)


def wait_until_all_open(running: Sequence[Crowd], count: int, seconds: float) -> None:
    """Wait until all clients have a stream. A crowd that is asked too often has no time for its clients."""
    end = time.monotonic() + seconds
    while (opened := sum(crowd.report().open for crowd in running)) < count:
        assert time.monotonic() < end, f"{opened} of {count} clients are back after {seconds:g} s"
        time.sleep(0.25)


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_f1_clients_that_are_drained_at_once_behind_haproxy_are_all_back_and_none_is_refused(
    start_hub: StartHub, tmp_path: Path
) -> None:
    counts, drain_seconds = ((5_000, 5_000), 10) if SOAK else ((100, 100), 1)
    require(program("haproxy"), "haproxy")
    broker, drain = ("--broker", f"sqlite:///{tmp_path}/log.db"), ("--drain-seconds", str(drain_seconds))
    addresses = ("--bind", f"127.0.0.1:{free_port()}", "--control-bind", f"127.0.0.1:{free_port()}")
    arguments = (*addresses, *broker, *drain)
    hub = start_hub(*arguments, code=WATCHED)
    with contextlib.ExitStack() as stack:
        # Many machines allow a process 20,000 descriptors, and each stream takes two of a proxy's.
        folders = [tmp_path / str(number) for number in range(len(counts))]
        proxies = [running_proxy("haproxy", hub.port, hub.control_port, folder) for folder in folders]
        ports = [stack.enter_context(proxy).plain_port for proxy in proxies]
        crowd_sizes = dict(zip(ports, counts, strict=True))
        running = stack.enter_context(native_crowds(hub.token(exp=86_400), crowd_sizes))
        publish_numbers(hub, 1, 20)
        wait_for_last(running, 20)
        hub.signal(signal.SIGUSR1)
        began = time.monotonic()
        hub.signal()
        hub.wait(drain_seconds + 20)
        stopped = time.monotonic()
        gaps = [longest_gap(hub)]
        refusals = float(len(re.findall("request refused", hub.log)))
        last_turn = max(crowd.report().retry_seconds for crowd in running)
        hub = start_hub(*arguments, code=WATCHED)
        hub.signal(signal.SIGUSR1)
        started = time.monotonic()
        publish_numbers(hub, 21, 40, 0.1)
        wait_until_all_open(running, sum(counts), 180)
        back = time.monotonic()
        publish_numbers(hub, 41, 50)
        wait_for_last(running, 50, 60)
        reports = [crowd.report() for crowd in running]
        gaps.append(longest_gap(hub))
        refusals += sum(hub.metric(f'ssehub_refused_total{{reason="{reason}"}}') for reason in Refusal)
    times = [f"{at - began:.1f}" for at in (stopped, started, back)]
    shown = ", ".join(f"{gap * 1000:.0f} ({cpu * 1000:.0f}) ms" for gap, cpu in gaps)
    report(
        f"{sum(counts)} clients, told to come back after {last_turn:.1f} s at most: after SIGTERM the hub ended at "
        f"{times[0]} s and was there again at {times[1]} s, all were back at {times[2]} s; HAProxy told "
        f"{sum(one.away for one in reports)} to come back later; the longest pass of the loop before and after, and "
        f"its CPU time: {shown}; load {os.getloadavg()[0]:.1f}"
    )

    assert refusals == 0
    assert all((one.busy, one.faults, one.resets) == (0, 0, 0) for one in reports)
    assert all(one.least == one.most == 50 for one in reports)
    assert [one.connected for one in reports] == [2 * count for count in counts]
    # What is left at the end of the window is aborted in one pass, after which the process ends and serves nobody.
    served = gaps if stopped - began < drain_seconds else gaps[1:]
    assert max(cpu for _, cpu in served) < (0.1 if SOAK else 0.5)
    assert not ERROR_LINES.search(hub.log)


BLOCKING = """
import signal, time
from ssehub.cli import main

signal.signal(signal.SIGUSR1, lambda *_: time.sleep(2))
main()
"""
"""A hub whose event loop is blocked for 2 s on SIGUSR1."""


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_f12_block_of_two_seconds_ends_no_stream(start_hub: StartHub) -> None:
    count = 5_000 if SOAK else 500
    hub = start_hub("--heartbeat-seconds", "1", code=BLOCKING)
    with crowds(hub, count) as (crowd,):
        publish_numbers(hub, 1, 5)
        wait_for_last([crowd], 5)
        hub.signal(signal.SIGUSR1)
        began = time.monotonic()
        publish_numbers(hub, 6, 10)
        blocked = time.monotonic() - began
        wait_for_last([crowd], 10)
        pings = crowd.report().pings
        wait_until(lambda: crowd.report().pings >= pings + 2 * count, 20)
        result = crowd.report()
        ended = sum(hub.metric(f'ssehub_endings_total{{reason="{reason}"}}') for reason in ("slow", "disconnected"))
    report(f"{count} streams, blocked for {blocked:.1f} s")

    assert blocked > 1
    assert ended == 0
    assert (result.open, result.connected, result.least, result.faults) == (count, count, 10, 0)
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_c13_publishing_to_very_many_channels_takes_bounded_memory(start_hub: StartHub) -> None:
    channels = 100_000 if SOAK else 40_000
    hub = start_hub()
    publish_to_channels(hub, 0, 20_000)
    before = hub.memory_bytes()

    publish_to_channels(hub, 20_000, channels)

    grown = hub.memory_bytes() - before
    report(f"{channels} channels, grown by {grown / MIB:.1f} MiB after the first 20,000")
    assert hub.metric("ssehub_history_events") == 10_000
    assert grown < 15 * MIB


def publish_to_channels(hub: RunningHub, first: int, end: int) -> None:
    for start in range(first, end, 5_000):
        numbers = range(start, min(end, start + 5_000))
        hub.emit_batch([{"userId": "*", "channel": f"channel {number}", "data": "x"} for number in numbers])


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_d6_memory_is_flat_over_a_million_events(start_hub: StartHub) -> None:
    total, batch = (1_000_000 if SOAK else 100_000), 5_000
    hub = start_hub()
    sizes = []
    for start in range(0, total, batch):
        numbers = range(start, start + batch)
        hub.emit_batch([{"userId": "*", "channel": f"c{n % 50}", "data": f"{n} {'x' * 200}"} for n in numbers])
        sizes.append(hub.memory_bytes())
    settled, last = max(sizes[len(sizes) // 4 : len(sizes) // 2]), max(sizes[-len(sizes) // 4 :])
    report(f"{total} events, rss {settled / MIB:.1f} -> {last / MIB:.1f} MiB")

    assert hub.metric("ssehub_history_events") == 10_000
    assert last < settled + 10 * MIB


COUNTING_TASKS = """
import asyncio, signal, sys
from ssehub.cli import main

def count(*_):
    sys.stderr.write(f"tasks: {len(asyncio.all_tasks())}\\n")
    sys.stderr.flush()

signal.signal(signal.SIGUSR1, count)
main()
"""
"""A hub that shows its number of tasks on SIGUSR1."""


def task_count(hub: RunningHub) -> int:
    before = len(re.findall(r"tasks: \d+\n", hub.log))
    hub.signal(signal.SIGUSR1)
    wait_until(lambda: len(re.findall(r"tasks: \d+\n", hub.log)) > before)
    return int(re.findall(r"tasks: (\d+)\n", hub.log)[-1])


def test_a23_clients_that_leave_during_a_replay_leave_nothing_behind(start_hub: StartHub) -> None:
    hub = start_hub(code=COUNTING_TASKS)
    process = psutil.Process(hub.process.pid)
    token, events, clients = hub.token(), 1_000, 60
    for _ in range(0, events, 100):
        hub.emit_batch([{"userId": "*", "channel": "chat", "data": "x" * 8_192}] * 100)
    tasks, descriptors = task_count(hub), process.num_fds()
    memory = 0
    for number in range(clients):
        request = get(f"/events/?token={token}&since=earliest")
        stream = RawStream(hub.port, request, receive_buffer=4_096)
        stream.read_until(b"data: x")
        if number % 2:
            stream.reset()
        else:
            stream.close()
        memory = memory or hub.memory_bytes()
    hub.wait_for("ssehub_subscribers", 0)
    replayed = hub.metric("ssehub_events_replayed_total")
    report(f"{replayed / clients:.0f} of {events} events replayed to each client that left")

    wait_until(lambda: task_count(hub) <= tasks and process.num_fds() <= descriptors, 30)
    assert 0 < replayed < clients * events / 2, "the clients left before the end of their replays"
    assert hub.metric("ssehub_events_replayed_total") == replayed, "nothing is replayed to clients that have left"
    assert hub.metric("ssehub_backlog_bytes") == 0
    assert hub.memory_bytes() < memory + 10 * MIB
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.soak
@pytest.mark.timeout(2_700)
def test_f14_memory_and_tasks_stay_constant_under_churn(start_hub: StartHub) -> None:
    seconds, streams = (1_800, 1_000) if SOAK else (8, 100)
    hub = start_hub("--history-events", "1000", "--heartbeat-seconds", "2", code=COUNTING_TASKS)
    process = psutil.Process(hub.process.pid)
    with crowds(hub, streams) as (crowd,):
        tasks = task_count(hub)
        samples = asyncio.run(churn_for(hub, process, seconds))
        result = crowd.report()
        wait_until(lambda: task_count(hub) <= tasks, 30)
    tail = samples[len(samples) // 3 :]
    slope = statistics.linear_regression([at for at, _, _ in tail], [size for _, size, _ in tail]).slope
    share = slope * 600 / statistics.mean([size for _, size, _ in tail])
    opened = hub.metric("ssehub_streams_total")
    report(
        f"{seconds} s, {opened:.0f} streams opened, rss {tail[0][1] / MIB:.1f} -> {tail[-1][1] / MIB:.1f} MiB, "
        f"{100 * share:.2f} % in 10 min, descriptors {tail[0][2]} -> {tail[-1][2]}"
    )

    assert share < 0.01 if SOAK else tail[-1][1] < tail[0][1] + 5 * MIB
    assert (result.open, result.faults, result.resets) == (streams, 0, 0)
    assert not ERROR_LINES.search(hub.log)


async def churn_for(hub: RunningHub, process: psutil.Process, seconds: float) -> Sequence[tuple[float, int, int]]:
    """Open and close streams, and publish, for so long; return times, resident memory and descriptors once a second."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    token = hub.token("sam", "other", exp=86_400)
    samples: list[tuple[float, int, int]] = []

    async def visit() -> None:
        while loop.time() < end:
            with contextlib.suppress(ConnectionError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
                writer.write(get(f"/events/?token={token}").encode())
                async with asyncio.timeout(random.random() * 0.2):
                    while await reader.read(65_536):
                        pass
            writer.transport.abort()

    async def publish() -> None:
        number = 0
        async with httpx.AsyncClient() as http:
            while loop.time() < end:
                number += 1
                for channel in ("chat", "other"):
                    event = {"userId": "*", "channel": channel, "data": str(number)}
                    (await http.post(f"{hub.control_url}/emit/", json=event)).raise_for_status()
                await asyncio.sleep(0.02)

    async def sample() -> None:
        began = loop.time()
        while loop.time() < end:
            samples.append((loop.time() - began, process.memory_info().rss, process.num_fds()))
            await asyncio.sleep(1)

    await asyncio.gather(publish(), sample(), *[visit() for _ in range(30)])
    return samples
