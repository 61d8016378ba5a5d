"""The workloads that compare servers, or two configurations of this hub, run in turn."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

from measuring import CPU, PAIRS, Bench, Figures, figure, in_turn, say, stalled_subscriber
from page import NCHAN, OURS, README, TASKS
from peers import PEERS, Running, has_nchan, redis_log, ssehub, wait_until

LONGER_W1 = "--subscribers 1000 --events 1500"
"""For differences of a few percent: CPU time is counted in steps of 10 ms, which are 2 % of that of W1."""


@dataclass(frozen=True)
class Workload:
    """The arguments of `ssehub bench`, the peers it runs on, and the figure of its report that counts."""

    arguments: str
    peers: tuple[str, ...] = (OURS,)
    figure: str = CPU
    pairs: int = PAIRS
    fewer: dict[str, str] = field(default_factory=dict)
    """Other arguments for peers that would need minutes with these."""


WORKLOADS = {
    "W1": Workload(
        "--subscribers 1000 --events 1000",
        (OURS, README, TASKS, NCHAN),
        fewer={README: "--subscribers 1000 --events 100"},
    ),
    "W2": Workload("--subscribers 10000 --events 30 --rate 2 --processes 2", (OURS, NCHAN)),
    "W3": Workload("--subscribers 100 --events 20000", (OURS, NCHAN)),
    "W4": Workload("--subscribers 1 --events 1000 --rate 200", (OURS, NCHAN), "latency_ms"),
    "W5": Workload("--subscribers 1000 --users 1000 --events 20000 --publishers 8", figure="events_per_cpu_second"),
    "M": Workload(
        "--subscribers 10000 --events 0 --processes 2", (OURS, NCHAN, README), "bytes_per_subscriber", pairs=2
    ),
    "C": Workload("--subscribers 5000 --users 5000 --events 0", figure="connections_per_cpu_second"),
    "P1": Workload("--subscribers 0 --events 20000 --publishers 8", figure="events_per_cpu_second"),
    "P100": Workload("--subscribers 0 --events 200000 --publishers 4 --batch 100", figure="events_per_cpu_second"),
}


def available(names: Sequence[str]) -> list[str]:
    """Return those of `names` that can run on this machine."""
    return [name for name in names if name != NCHAN or has_nchan()]


def run_workload(name: str, bench: Bench, pairs: int | None) -> Figures:
    """Return the figures of each peer."""
    workload = WORKLOADS[name]

    def one_run(peer: str) -> float:
        with PEERS[peer]() as server:
            return figure(bench(server, workload.fewer.get(peer, workload.arguments)), workload.figure)

    return in_turn(available(workload.peers), one_run, workload.pairs, pairs)


def run_stalled(bench: Bench, pairs: int | None) -> Figures:
    """Return W1 without a stalled subscriber, and with one."""

    def one_run(name: str) -> float:
        with PEERS[OURS]() as server, stalled_subscriber(server) if name == "with" else nullcontext():
            return figure(bench(server, LONGER_W1), CPU)

    return in_turn(("without", "with"), one_run, 10, pairs)


def run_history(bench: Bench, pairs: int | None) -> Figures:
    """Return W1 with the default history, and with a history of one event."""

    def one_run(name: str) -> float:
        with ssehub(*([] if name == "on" else ["--history-events", "1"]))() as server:
            return figure(bench(server, LONGER_W1), CPU)

    return in_turn(("off", "on"), one_run, PAIRS, pairs)


def run_workers(bench: Bench, pairs: int | None) -> Figures:
    """Return W1 with one and with two workers over Redis, as fast as possible and at 200 events per second.

    Also returns how many percent of 1,000 streams the worker with more of them has.
    """
    shares: list[float] = []
    at_a_rate: Figures = {}

    def one_run(name: str) -> float:
        with redis_log() as (_, url), ssehub("--broker", url, "--workers", name)() as server:
            wait_until(lambda: len(streams_by_worker(server)) == int(name))
            if name == "2":
                with ExitStack() as stack:
                    for _ in range(1_000):
                        stack.enter_context(stalled_subscriber(server))
                    wait_until(lambda: sum(streams_by_worker(server)) == 1_000)
                    shares.append(max(streams_by_worker(server)) / 10)
                wait_until(lambda: sum(streams_by_worker(server)) == 0)
            closed_loop = figure(bench(server, WORKLOADS["W1"].arguments), CPU)
            at_a_rate.setdefault(f"{name}, 200 a second", []).append(
                figure(bench(server, "--subscribers 1000 --events 400 --rate 200"), CPU)
            )
            return closed_loop

    return {**in_turn(("1", "2"), one_run, PAIRS, pairs), **at_a_rate, "larger share, %": shares}


def streams_by_worker(server: Running) -> list[int]:
    """Return the number of streams of each worker."""
    with urllib.request.urlopen(f"{server.control_url}/metrics", timeout=5) as response:
        text = response.read().decode()
    return [int(float(n)) for n in re.findall(r"^ssehub_subscribers(?:{.*})? (\S+)$", text, re.MULTILINE)]


def run_growth(bench: Bench, pairs: int | None) -> dict[str, list[tuple[float, float]]]:
    """Return the CPU time per delivery, in microseconds, for growing numbers of subscribers."""
    found: dict[str, list[tuple[float, float]]] = {}
    for peer in available((OURS, NCHAN)):
        for count in (100, 1_000, 3_000, 10_000, 19_000):
            with PEERS[peer]() as server:
                events = max(30, 300_000 // count)
                cost = 1e6 / figure(bench(server, f"--subscribers {count} --events {events} --processes 2"), CPU)
            found.setdefault(peer, []).append((count, cost))
            say(f"growth    {peer:24} {count:6} subscribers: {cost:.2f} us per delivery")
    return found


def run_latency(bench: Bench, pairs: int | None) -> dict[str, list[tuple[float, float, float]]]:
    """Return the median and 99th percentile, in milliseconds, with 1,000 subscribers at growing rates of events.

    Ends with the first rate at which the median is over 200 ms.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for peer in available((OURS, NCHAN)):
        for rate in (50, 100, 200, 400, 800, 1_200, 1_600, 2_400, 3_200, 4_800):
            with PEERS[peer]() as server:
                report = bench(server, f"--subscribers 1000 --events {rate * 2} --rate {rate} --publishers 4")
            latency = report["latency_ms"]
            found.setdefault(peer, []).append((rate, latency["p50"], latency["p99"]))
            say(f"latency   {peer:24} {rate:6}/s: {latency['p50']:.2f} ms, 99 % {latency['p99']:.2f} ms")
            if latency["p50"] > 200:
                break
    return found
