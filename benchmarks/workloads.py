"""The workloads that compare servers, or two configurations of this hub, run in turn."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

from generators import Load
from measuring import FEW_PAIRS, NUMBERED, PAIRS, Bench, Figures, figures, in_turn, is_late, stalled_subscriber
from peers import (
    BARE,
    CENTRIFUGO,
    GO_SSE,
    NCHAN,
    OURS,
    PEERS,
    README,
    TASKS,
    Running,
    available,
    redis_log,
    ssehub,
    wait_until,
)

OTHERS = (NCHAN, CENTRIFUGO, GO_SSE)
LONGER_W1 = Load(subscribers=1000, events=3000, warmup=20)
"""For differences of a few percent."""
RATES = (10, 20, 50, 80, 100, 200, 400)
GROWTH = {1: 200, 10: 100, 100: 50, 1_000: 20, 10_000: 2}
"""Events a second by number of subscribers: few enough for each event to be delivered by itself."""


@dataclass(frozen=True)
class Workload:
    """A load, the servers it runs on, and the figures that count."""

    load: Load
    figures: tuple[str, ...]
    peers: tuple[str, ...] = (OURS,)
    pairs: int = PAIRS
    fewer: dict[str, Load] = field(default_factory=dict)
    """Other loads for servers that would need minutes with this one."""


WORKLOADS = {
    "W1": Workload(
        Load(subscribers=1000, events=1000, warmup=20),
        ("deliveries", "p50"),
        (OURS, *OTHERS, README, TASKS),
        fewer={README: Load(subscribers=1000, events=100, warmup=20)},
    ),
    "W2": Workload(Load(subscribers=10_000, events=30, rate=2), ("deliveries", "p50", "p99"), (OURS, *OTHERS)),
    "W3": Workload(Load(subscribers=100, events=20_000, warmup=100), ("deliveries", "p50"), (OURS, *OTHERS)),
    "W4": Workload(Load(subscribers=1, events=1000, rate=200, warmup=50), ("p50", "p99", "CPU"), (OURS, *OTHERS)),
    "W5": Workload(Load(subscribers=1000, users=1000, events=20_000, publishers=8, warmup=1000), ("events",)),
    "L2": Workload(Load(subscribers=1000, events=300, rate=20, warmup=10), ("p50", "p99", "core"), (OURS, *OTHERS)),
    "L3": Workload(Load(subscribers=1000, events=750, rate=50, warmup=10), ("p50", "p99", "core"), (OURS, *OTHERS)),
    "M": Workload(Load(subscribers=10_000), ("bytes",), (OURS, *OTHERS, README), FEW_PAIRS),
    "C": Workload(Load(subscribers=5000, users=5000, connect_rate=10_000), ("connections",), (OURS, *OTHERS)),
}


def run_workload(name: str, bench: Bench, pairs: int | None) -> Figures:
    """Return the figures of each server."""
    workload = WORKLOADS[name]

    def one_run(peer: str) -> dict[str, float]:
        with PEERS[peer]() as server:
            load = workload.fewer.get(peer, workload.load)
            return figures(bench.sseload(peer, server, load), workload.figures)

    return in_turn(available(workload.peers), one_run, workload.pairs, pairs)


def run_p1(bench: Bench, pairs: int | None) -> Figures:
    """Return the publishes per CPU second over 8 connections, one event in each request, without subscribers."""

    def one_run(name: str) -> dict[str, float]:
        peer, _, is_numbered = name.partition(", ")
        with PEERS[peer]() as server:
            headers = (*server.headers, "X-Request-Id: {number}") if is_numbered else server.headers
            return figures(bench.wrk(name, server, 8, headers=headers), ["requests"])

    peers = available((OURS, BARE, *OTHERS))
    return in_turn([*peers, *(f"{peer}, {NUMBERED}" for peer in (OURS, BARE))], one_run, PAIRS, pairs)


def run_p100(bench: Bench, pairs: int | None) -> Figures:
    """Return the events published per CPU second in batches of 100, over 4 connections, without subscribers."""
    events = [{"userId": "*", "channel": "bench", "data": f"{number:0100}"} for number in range(100)]

    def one_run(peer: str) -> dict[str, float]:
        with PEERS[peer]() as server:
            report = bench.wrk(peer, server, 4, json.dumps(events), ["Content-Type: application/json"])
            return {"events": 100 * report["requests_per_cpu_second"]}

    return in_turn([OURS], one_run, PAIRS, pairs)


def run_idle(bench: Bench, pairs: int | None) -> Figures:
    """Return how often the idle process wakes up in a second, without streams and with 10,000."""

    def one_run(name: str) -> dict[str, float]:
        with PEERS[OURS]() as server:
            load = Load(subscribers=int(name), hold_seconds=20)
            return figures(bench.sseload(name, server, load), ["wake-ups"])

    return in_turn(("0", "10000"), one_run, FEW_PAIRS, pairs)


def run_stalled(bench: Bench, pairs: int | None) -> Figures:
    """Return W1 without a stalled subscriber, and with one."""

    def one_run(name: str) -> dict[str, float]:
        with PEERS[OURS]() as server, stalled_subscriber(server) if name == "with" else nullcontext():
            return figures(bench.sseload(name, server, LONGER_W1), ["deliveries"])

    return in_turn(("without", "with"), one_run, 10, pairs)


def run_history(bench: Bench, pairs: int | None) -> Figures:
    """Return W1 with the default history, and with a history of one event."""

    def one_run(name: str) -> dict[str, float]:
        with ssehub(*([] if name == "on" else ["--history-events", "1"]))() as server:
            return figures(bench.sseload(name, server, LONGER_W1), ["deliveries"])

    return in_turn(("off", "on"), one_run, PAIRS, pairs)


def run_workers(bench: Bench, pairs: int | None) -> Figures:
    """Return W1 with one and with two workers over Redis, as fast as possible and at 200 events per second.

    Also returns how many percent of 1,000 streams the worker with more of them has.
    """
    at_a_rate = Load(subscribers=1000, events=400, rate=200, warmup=20)
    larger_shares: list[float] = []

    def one_run(name: str) -> dict[str, float]:
        with redis_log() as (_, url), ssehub("--broker", url, "--workers", name)() as server:
            wait_until(lambda: len(streams_by_worker(server)) == int(name))
            if name == "2":
                with ExitStack() as stack:
                    for _ in range(1_000):
                        stack.enter_context(stalled_subscriber(server))
                    wait_until(lambda: sum(streams_by_worker(server)) == 1_000)
                    larger_shares.append(max(streams_by_worker(server)) / 10)
                wait_until(lambda: sum(streams_by_worker(server)) == 0)
            return figures(bench.sseload(name, server, WORKLOADS["W1"].load), ["deliveries"])

    def one_paced_run(name: str) -> dict[str, float]:
        workers = name.partition(",")[0]
        with redis_log() as (_, url), ssehub("--broker", url, "--workers", workers)() as server:
            wait_until(lambda: len(streams_by_worker(server)) == int(workers))
            return figures(bench.sseload(name, server, at_a_rate), ["deliveries"])

    found = in_turn(("1", "2"), one_run, PAIRS, pairs)
    found |= in_turn(("1, 200 a second", "2, 200 a second"), one_paced_run, PAIRS, pairs)
    return found | {"streams: larger share, %": larger_shares}


def streams_by_worker(server: Running) -> list[int]:
    """Return the number of streams of each worker."""
    with urllib.request.urlopen(f"{server.control_url}/metrics", timeout=5) as response:
        text = response.read().decode()
    return [int(float(n)) for n in re.findall(r"^ssehub_subscribers(?:{.*})? (\S+)$", text, re.MULTILINE)]


def run_growth(bench: Bench, pairs: int | None) -> Figures:
    """Return the CPU time per event, in microseconds, for growing numbers of subscribers, at rates with idle time."""

    def one_run(name: str) -> dict[str, float]:
        peer, _, count = name.partition(", ")
        rate = GROWTH[int(count)]
        with PEERS[peer]() as server:
            load = Load(subscribers=int(count), events=max(20, rate * 5), rate=rate, warmup=rate)
            return figures(bench.sseload(name, server, load), ["CPU"])

    names = [f"{peer}, {count}" for count in GROWTH for peer in available((OURS, NCHAN, CENTRIFUGO))]
    return in_turn(names, one_run, FEW_PAIRS, pairs)


def run_latency(bench: Bench, pairs: int | None) -> Figures:
    """Return latency and CPU share with 1,000 subscribers at growing rates of events.

    A server that falls behind is not tried at higher rates, of those above 100.
    """
    limits: dict[str, int] = {}

    def one_run(name: str) -> dict[str, float]:
        peer, _, text = name.partition(", ")
        rate = int(text)
        if rate > max(100, limits.get(peer, rate)):
            return {}
        with PEERS[peer]() as server:
            load = Load(subscribers=1000, events=max(200, rate * 5), rate=rate, publishers=4, warmup=rate)
            report = bench.sseload(name, server, load)
        if is_late(report):
            limits[peer] = min(rate, limits.get(peer, rate))
        return figures(report, ["p50", "p99", "core"])

    names = [f"{peer}, {rate}" for rate in RATES for peer in available((OURS, NCHAN, CENTRIFUGO))]
    return in_turn(names, one_run, PAIRS, pairs)
