"""The workloads of docs/performance.md against this hub and its peers, in turn; writes results.json, table and plots.

python benchmarks/run.py                 all of it, under 20 minutes
python benchmarks/run.py W1 W3           only these; the figures of the others stay, with their own date
python benchmarks/run.py W1 W3 --pairs 2 only these, with fewer pairs; nothing is written
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import page
from page import NCHAN, OURS, README, TASKS, spread
from peers import (
    HERE,
    PEERS,
    SECRET,
    Running,
    cpu_seconds,
    has_nchan,
    pinned,
    redis_log,
    ssehub,
    started,
    wait_until,
)

from ssehub import Tokens

RESULTS = HERE / "results.json"
PAIRS = 5
FEW_PAIRS = 2
"""For SQLite, Redis and the reader, so that all of it takes under 20 minutes."""
CPU = "deliveries_per_cpu_second"
LONGER_W1 = "--subscribers 1000 --events 1500"
"""Where some per cent matter: CPU time is counted in steps of 10 ms, which are 2 % of W1's."""

Report = dict[str, Any]
Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Workload:
    """What is asked of `ssehub bench`, of whom, and which of its figures count."""

    arguments: str
    peers: tuple[str, ...] = (OURS,)
    figure: str = CPU
    pairs: int = PAIRS
    fewer: dict[str, str] = field(default_factory=dict)
    """What else is asked of a peer that would take minutes."""


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


class Bench:
    """Runs `ssehub bench`, and notes how busy the load was at most."""

    def __init__(self) -> None:
        self.load_share = 0.0

    def __call__(self, server: Running, arguments: str) -> Report:
        """One run, which has to be a good one."""
        addresses = ["--url", server.url, "--control-url", server.control_url, "--server-pid", str(server.pid)]
        command = [sys.executable, "-m", "ssehub", "bench", "--json", *addresses, *server.arguments, *arguments.split()]
        result = subprocess.run([*pinned(1), *command], capture_output=True, text=True, timeout=300)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}{result.stdout}")
        report: Report = json.loads(result.stdout)
        self.load_share = max(self.load_share, report["own_cpu_share"])
        return report


def figure(report: Report, name: str) -> float:
    return float(report["latency_ms"]["p50"] if name == "latency_ms" else report[name])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def available(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != NCHAN or has_nchan()]


def run_workload(name: str, bench: Bench, pairs: int | None) -> Figures:
    """The figures of each peer, one a pair; the peers take turns."""
    workload = WORKLOADS[name]

    def one_run(peer: str) -> float:
        with PEERS[peer]() as server:
            return figure(bench(server, workload.fewer.get(peer, workload.arguments)), workload.figure)

    return in_turn(available(workload.peers), one_run, workload.pairs, pairs)


@contextmanager
def stalled_subscriber(server: Running) -> Iterator[None]:
    """Somebody who listens, and never reads."""
    host, port = server.url.removeprefix("http://").split(":")
    token = Tokens(SECRET).issue("user-0", ["bench-0"], expires_at=time.time() + 3600)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.sendall(f"GET /events/?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        yield


def run_stalled(bench: Bench, pairs: int | None) -> Figures:
    """W1 with one stalled subscriber, and without."""

    def one_run(name: str) -> float:
        with PEERS[OURS]() as server, stalled_subscriber(server) if name == "with" else nullcontext():
            return figure(bench(server, LONGER_W1), CPU)

    return in_turn(("without", "with"), one_run, 10, pairs)


def run_history(bench: Bench, pairs: int | None) -> Figures:
    """W1 with what is kept for those who come back, and with next to nothing kept."""

    def one_run(name: str) -> float:
        with ssehub(*([] if name == "on" else ["--history-events", "1"]))() as server:
            return figure(bench(server, LONGER_W1), CPU)

    return in_turn(("off", "on"), one_run, PAIRS, pairs)


def in_turn(names: Sequence[str], one_run: Callable[[str], float], most: int, pairs: int | None) -> Figures:
    """`most` figures of each name, or as many as `pairs` says, if that is less; A B A B …"""
    found: Figures = {name: [] for name in names}
    for _ in range(min(pairs or most, most)):
        for name in names:
            found[name].append(one_run(name))
    return found


def run_sqlite(bench: Bench, pairs: int | None) -> Figures:
    """Events published per second, one POST each, by 1 and by 50 publishers: in memory, and on a disk."""
    found: Figures = {}
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        for pair in range(min(pairs or FEW_PAIRS, FEW_PAIRS)):
            for publishers, events in ((1, 2_000), (50, 10_000)):
                for name, broker in (("memory", "memory://"), ("sqlite", f"sqlite:///{folder}/{pair}-{publishers}.db")):
                    with ssehub("--broker", broker)() as server:
                        report = bench(server, f"--subscribers 1 --events {events} --publishers {publishers}")
                    found.setdefault(f"{name}, {publishers}", []).append(report["published_per_second"])
    return found


def run_redis(bench: Bench, pairs: int | None) -> Figures:
    """Over Redis and in memory: latency; 100,000 events in batches of 100, and what node and Redis spend on them."""
    found: Figures = {}
    with redis_log() as (pid, url):
        for pair in range(min(pairs or FEW_PAIRS, FEW_PAIRS)):
            for name, log in (("memory", ()), ("redis", ("--broker", url, "--redis-prefix", f"bench-{pair}"))):
                with ssehub(*log)() as server:
                    latency = figure(bench(server, "--subscribers 1 --events 500 --rate 200"), "latency_ms")
                    began = cpu_seconds(pid)
                    report = bench(server, "--subscribers 1 --events 100000 --publishers 4 --batch 100")
                    spent = cpu_seconds(pid) - began
                found.setdefault(f"{name}, latency in ms", []).append(latency)
                found.setdefault(f"{name}, events a second", []).append(report["published_per_second"])
                found.setdefault(f"{name}, seconds of the node", []).append(report["server_cpu_seconds"])
                found.setdefault(f"{name}, seconds of Redis", []).append(spent)
    return found


def run_workers(bench: Bench, pairs: int | None) -> Figures:
    """W1 by one and by two workers over Redis, which share its subscribers; the same at 200 events a second; and the
    larger share of 1,000 streams.
    """
    shares: list[float] = []
    at_a_pace: Figures = {}

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
            at_a_pace.setdefault(f"{name}, 200 a second", []).append(
                figure(bench(server, "--subscribers 1000 --events 400 --rate 200"), CPU)
            )
            return closed_loop

    return {**in_turn(("1", "2"), one_run, PAIRS, pairs), **at_a_pace, "larger share, %": shares}


def streams_by_worker(server: Running) -> list[int]:
    with urllib.request.urlopen(f"{server.control_url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return [int(float(n)) for n in re.findall(r"^ssehub_subscribers(?:{.*})? (\S+)$", text, re.MULTILINE)]


def run_growth(bench: Bench, pairs: int | None) -> dict[str, list[tuple[float, float]]]:
    """CPU time of a delivery, in microseconds, as subscribers grow."""
    found: dict[str, list[tuple[float, float]]] = {}
    for peer in available((OURS, NCHAN)):
        for count in (100, 1_000, 3_000, 10_000, 19_000):
            with PEERS[peer]() as server:
                events = max(30, 300_000 // count)
                cost = 1e6 / figure(bench(server, f"--subscribers {count} --events {events} --processes 2"), CPU)
            found.setdefault(peer, []).append((count, cost))
            say(f"growth    {peer:24} {count:6} subscribers: {cost:.2f} us a delivery")
    return found


def run_latency(bench: Bench, pairs: int | None) -> dict[str, list[tuple[float, float, float]]]:
    """Median and 99th percentile, in milliseconds, as 1,000 subscribers are published to faster, up to saturation."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for peer in available((OURS, NCHAN)):
        for rate in (50, 100, 200, 400, 800, 1_200, 1_600, 2_400, 3_200, 4_800):
            with PEERS[peer]() as server:
                latency = bench(server, f"--subscribers 1000 --events {rate * 2} --rate {rate} --publishers 4")[
                    "latency_ms"
                ]
            found.setdefault(peer, []).append((rate, latency["p50"], latency["p99"]))
            say(f"latency   {peer:24} {rate:6}/s: {latency['p50']:.2f} ms, 99 % {latency['p99']:.2f} ms")
            if latency["p50"] > 200:
                break
    return found


def run_lag(bench: Bench, pairs: int | None) -> Figures:
    """With 19,000 subscribers and 4 events a second: the longest gap in the loop, and the slowest newcomer, in ms."""
    with tempfile.NamedTemporaryFile("r") as file:
        peer = ssehub("--heartbeat-seconds", "15", module=(str(HERE / "lag.py"),), env={"LAG_FILE": file.name})
        with peer() as server:
            answers: list[float] = []
            began: list[float] = []
            stop = threading.Event()

            def watch() -> None:
                """Connect ten times a second, once the load is there."""
                while not stop.wait(0.1):
                    if server_has(server, 19_000):
                        began.append(time.monotonic())
                        answers.append(newcomer(server))

            thread = threading.Thread(target=watch)
            thread.start()
            bench(server, "--subscribers 19000 --events 60 --rate 4 --processes 2")
            stop.set()
            thread.join()
        lines = [line.split() for line in file.read().splitlines()]
        gaps = [float(gap) for at, gap in lines if began[0] + 1 < float(at) < began[-1]]
    return {"longest gap in the loop, ms": [max(gaps)], "slowest newcomer, ms": [max(answers)]}


def server_has(server: Running, count: int) -> bool:
    """Whether nearly all of `count` connections are open, by the descriptors of the process."""
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir())) >= count


def newcomer(server: Running) -> float:
    """Milliseconds from connecting to the first frame."""
    host, port = server.url.removeprefix("http://").split(":")
    token = Tokens(SECRET).issue("newcomer", ["elsewhere"], expires_at=time.time() + 3600)
    began = time.monotonic()
    with socket.create_connection((host, int(port)), 5) as sock:
        sock.sendall(f"GET /events/?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        received = b""
        while b": ok" not in received:
            received += sock.recv(4096)
    return (time.monotonic() - began) * 1000


def run_pressure(bench: Bench, pairs: int | None) -> Figures:
    """A minute of publishers that outrun 100 connections: nothing is lost (or `bench` fails), memory is bounded."""
    outrun = "--subscribers 100 --size 20000 --publishers 16 --batch 10 --patience 30"
    with PEERS[OURS]() as server:
        pace = bench(server, f"{outrun} --events 5000")["published_per_second"]
        memory: list[float] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(1):
                memory.append(server.memory_bytes() / 2**20)

        thread = threading.Thread(target=watch)
        thread.start()
        began = time.monotonic()
        report = bench(server, f"{outrun} --events {int(60 * pace)}")
        seconds = time.monotonic() - began
        stop.set()
        thread.join()
    return {
        "seconds": [seconds],
        "MB a second": [report["deliveries_per_second"] * 20_000 / 1e6],
        "MiB after 10 s": [memory[min(10, len(memory) - 1)]],
        "MiB at most": [max(memory)],
    }


READS = {"alone": (1, 250, 50_000), "64 together": (64, 100, 2_000_000)}
"""How many events each write carries, how many writes each connection gets, and events a second to all of them."""


def run_reader(bench: Bench, pairs: int | None) -> Figures:
    """What a listening process of `ssehub bench` takes: events per CPU second of its own, from a server without a hub.

    At these rates a connection has 20 ms or more between two writes, so that what is written alone is read alone.
    """
    found: Figures = {}
    for _ in range(min(pairs or FEW_PAIRS, FEW_PAIRS)):
        for name, (together, writes, rate) in READS.items():
            events, by_read = read_events(together, writes, rate)
            found.setdefault(name, []).append(events)
            found.setdefault(f"{name}, events in a read", []).append(by_read)
    return found


def read_events(together: int, writes: int, rate: int) -> tuple[float, float]:
    """Events per CPU second of the reader, and how many came in one read."""
    count = 1_000
    feeder = [sys.executable, str(HERE / "feeder.py"), *map(str, (count, together, writes, rate))]
    reader = [*pinned(1), sys.executable, "-m", "ssehub.bench"]
    with started(feeder, stdin=subprocess.PIPE) as (feeding, log):
        wait_until(log.read_text)
        order = {"url": f"http://127.0.0.1:{log.read_text()}", "tokens": ["none"] * count, "first": 0}
        with subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reading:
            tell(reading.stdin, json.dumps(order))
            before = reported(reading, "opened", count)
            tell(feeding.stdin, "go")
            after = reported(reading, "events", count * together * writes)
            tell(reading.stdin, "stop")
    return after["events"] / (after["cpu_seconds"] - before["cpu_seconds"]), after["events"] / after["reads"]


def tell(pipe: IO[bytes] | None, line: str) -> None:
    assert pipe is not None
    pipe.write(f"{line}\n".encode())
    pipe.flush()


def reported(process: subprocess.Popen[bytes], name: str, least: int) -> Report:
    """The first report of a listening process in which `name` has come to `least`."""
    assert process.stdout is not None
    for line in process.stdout:
        report: Report = json.loads(line)
        if report[name] >= least:
            return report
    raise RuntimeError(f"the reader ended before {name} came to {least}")


Measuring = Callable[[Bench, int | None], Any]

MEASURED: dict[str, Measuring] = {
    **{name: partial(run_workload, name) for name in WORKLOADS},
    "stalled": run_stalled,
    "history": run_history,
    "workers": run_workers,
    "redis": run_redis,
    "sqlite": run_sqlite,
    "reader": run_reader,
    "growth": run_growth,
    "latency": run_latency,
    "lag": run_lag,
    "pressure": run_pressure,
}


def measured(name: str, pairs: int | None) -> dict[str, Any]:
    """The figures of one workload, when, where and in which time they were taken, and how busy the load was."""
    bench, began = Bench(), time.monotonic()
    found = MEASURED[name](bench, pairs)
    seconds = time.monotonic() - began
    say(f"{name}, {seconds:.0f} s, load at most {bench.load_share:.0%} busy")
    for what, figures in found.items():
        say(f"  {what:30} {spread(figures) if isinstance(figures[0], float) else figures}")
    return {"figures": found, "seconds": seconds, "load_share": bench.load_share, "there": machine()}


def machine() -> dict[str, str]:
    """When, where and with what."""
    packages = ("uvicorn", "uvloop", "httptools", "starlette", "sse-starlette")
    nginx = "not installed"
    if has_nchan():
        nginx = (
            subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.split("/")[-1].strip()
        )
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": f"{len(os.sched_getaffinity(0))} cores, {model[1] if model else platform.machine()}",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "nginx": nginx,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=", ".join(MEASURED))
    parser.add_argument("--pairs", type=int, help=f"{PAIRS} for most, if nothing is said")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MEASURED):
        parser.error(f"no workload: {', '.join(unknown)}; there are {', '.join(MEASURED)}")
    if not has_nchan():
        say("nginx with nchan is missing (Debian: nginx-light, libnginx-mod-nchan): compared without it")
    began = time.monotonic()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for name in arguments.names or MEASURED:
        try:
            results[name] = measured(name, arguments.pairs)
        except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
            say(f"{name} failed: {exc}")
            results.pop(name, None)  # the table says so
            failed.append(name)
        if arguments.pairs is None:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    say(f"{time.monotonic() - began:.0f} s in all")
    if arguments.pairs is None:
        page.write(results)
        say(page.table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
