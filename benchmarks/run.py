"""The workloads of docs/performance.md against this hub and its peers, in turn; writes results.json, table and plots.

python benchmarks/run.py                 all of it, under 20 minutes
python benchmarks/run.py W1 W3 --pairs 2 only these, with fewer pairs; nothing is written
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    wait_until,
)

from ssehub import Tokens

RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "performance.md"
PAIRS = 5
OURS, NCHAN, README, TASKS = "ssehub", "nchan", "sse-starlette", "ssehub, plain uvicorn"
CPU = "deliveries_per_cpu_second"

Report = dict[str, Any]
Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Workload:
    """What is asked of `ssehub bench`, of whom, and which of its figures count."""

    what: str
    arguments: str
    peers: tuple[str, ...] = (OURS,)
    figure: str = CPU
    pairs: int = PAIRS


WORKLOADS = {
    "W1": Workload("deliveries per CPU second", "--subscribers 1000 --events 1000", (OURS, NCHAN, TASKS)),
    # A tenth of the events: at this pace the rest would take minutes, and change nothing.
    "W1 README": Workload("deliveries per CPU second", "--subscribers 1000 --events 100", (README,)),
    "W2": Workload(
        "deliveries per CPU second", "--subscribers 10000 --events 30 --rate 2 --processes 2", (OURS, NCHAN)
    ),
    "W3": Workload("deliveries per CPU second", "--subscribers 100 --events 20000", (OURS, NCHAN)),
    "W4": Workload("ms, median latency", "--subscribers 1 --events 1000 --rate 200", (OURS, NCHAN), "latency_ms"),
    "W5": Workload(
        "events per CPU second",
        "--subscribers 1000 --users 1000 --events 20000 --publishers 8",
        figure="events_per_cpu_second",
    ),
    "M": Workload(
        "bytes per subscriber",
        "--subscribers 10000 --events 0 --processes 2",
        (OURS, NCHAN, README),
        "bytes_per_subscriber",
        3,
    ),
    "C": Workload(
        "connections per CPU second",
        "--subscribers 5000 --users 5000 --events 0",
        figure="connections_per_cpu_second",
    ),
    "P1": Workload(
        "events per CPU second", "--subscribers 1 --events 20000 --publishers 8", figure="events_per_cpu_second"
    ),
    "P100": Workload(
        "events per CPU second",
        "--subscribers 1 --events 200000 --publishers 4 --batch 100",
        figure="events_per_cpu_second",
    ),
}


def bench(server: Running, arguments: str) -> Report:
    """One run of `ssehub bench`, which has to be a good one."""
    addresses = ["--url", server.url, "--control-url", server.control_url, "--server-pid", str(server.pid)]
    command = [sys.executable, "-m", "ssehub", "bench", "--json", *addresses, *server.arguments, *arguments.split()]
    result = subprocess.run([*pinned(1), *command], capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}{result.stdout}")
    report: Report = json.loads(result.stdout)
    return report


def figure(report: Report, name: str) -> float:
    return float(report["latency_ms"]["p50"] if name == "latency_ms" else report[name])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def available(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != NCHAN or has_nchan()]


def run_workload(name: str, pairs: int | None) -> Figures:
    """The figures of each peer, one a pair; the peers take turns."""
    workload = WORKLOADS[name]
    found: Figures = {peer: [] for peer in available(workload.peers)}
    for _ in range(min(pairs or workload.pairs, workload.pairs)):
        for peer in found:
            with PEERS[peer]() as server:
                found[peer].append(figure(bench(server, workload.arguments), workload.figure))
    for peer, figures in found.items():
        say(f"{name:9} {peer:24} {spread(figures)} {workload.what}")
    return found


def spread(figures: Sequence[float]) -> str:
    return f"{number(statistics.median(figures))} ({number(min(figures))} to {number(max(figures))})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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


def run_stalled(pairs: int | None) -> Figures:
    """W1 with one stalled subscriber, and without."""

    def one_run(name: str) -> float:
        with PEERS[OURS]() as server, stalled_subscriber(server) if name == "with" else nullcontext():
            return figure(bench(server, WORKLOADS["W1"].arguments), CPU)

    return in_turn("stalled", ("without", "with"), one_run, pairs)


def run_history(pairs: int | None) -> Figures:
    """W1 with what is kept for those who come back, and with next to nothing kept."""

    def one_run(name: str) -> float:
        with ssehub(*([] if name == "on" else ["--history-events", "1"]))() as server:
            return figure(bench(server, WORKLOADS["W1"].arguments), CPU)

    return in_turn("history", ("off", "on"), one_run, pairs)


def in_turn(title: str, names: Sequence[str], one_run: Callable[[str], float], pairs: int | None) -> Figures:
    found: Figures = {name: [] for name in names}
    for _ in range(min(pairs or 10, 10)):
        for name in names:
            found[name].append(one_run(name))
    say(f"{title:9} {', '.join(f'{name} {spread(figures)}' for name, figures in found.items())}")
    return found


def run_sqlite() -> dict[str, list[float]]:
    """Events published per second, one POST each, by 1 and by 50 publishers: in memory, and on a disk."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        for pair in range(3):
            for publishers, events in ((1, 2_000), (50, 20_000)):
                for name, broker in (("memory", "memory://"), ("sqlite", f"sqlite:///{folder}/{pair}-{publishers}.db")):
                    with ssehub("--broker", broker)() as server:
                        report = bench(server, f"--subscribers 1 --events {events} --publishers {publishers}")
                    found.setdefault(f"{name}, {publishers}", []).append(report["published_per_second"])
    for name, figures in found.items():
        say(f"sqlite    {name:12} {spread(figures)} events a second")
    return found


def run_redis() -> Figures:
    """Over Redis and in memory: latency; 100,000 events in batches of 100, and what node and Redis spend on them."""
    found: Figures = {}
    with redis_log() as (pid, url):
        for pair in range(PAIRS):
            for name, log in (("memory", ()), ("redis", ("--broker", url, "--redis-prefix", f"bench-{pair}"))):
                with ssehub(*log)() as server:
                    latency = figure(bench(server, WORKLOADS["W4"].arguments), "latency_ms")
                    began = cpu_seconds(pid)
                    report = bench(server, "--subscribers 1 --events 100000 --publishers 4 --batch 100")
                    spent = cpu_seconds(pid) - began
                found.setdefault(f"{name}, latency in ms", []).append(latency)
                found.setdefault(f"{name}, events a second", []).append(report["published_per_second"])
                found.setdefault(f"{name}, seconds of the node", []).append(report["server_cpu_seconds"])
                found.setdefault(f"{name}, seconds of Redis", []).append(spent)
    for name, figures in found.items():
        say(f"redis     {name:30} {spread(figures)}")
    return found


def run_workers(pairs: int | None) -> Figures:
    """W1 by one and by two workers over Redis, which share its subscribers; and the larger share of 1,000 streams."""
    shares: list[float] = []

    def one_run(name: str) -> float:
        with redis_log() as (_, url), ssehub("--broker", url, "--workers", name)() as server:
            wait_until(lambda: len(streams_by_worker(server)) == int(name))
            if name == "2":
                with ExitStack() as stack:
                    for _ in range(1_000):
                        stack.enter_context(stalled_subscriber(server))
                    wait_until(lambda: sum(streams_by_worker(server)) == 1_000)
                    shares.append(max(streams_by_worker(server)) / 1_000)
                wait_until(lambda: sum(streams_by_worker(server)) == 0)
            return figure(bench(server, WORKLOADS["W1"].arguments), CPU)

    found = in_turn("workers", ("1", "2"), one_run, min(pairs or PAIRS, PAIRS))
    return {**found, "larger share": shares}


def streams_by_worker(server: Running) -> list[int]:
    with urllib.request.urlopen(f"{server.control_url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return [int(float(n)) for n in re.findall(r"^ssehub_subscribers(?:{.*})? (\S+)$", text, re.MULTILINE)]


def run_growth() -> dict[str, list[tuple[float, float]]]:
    """CPU time of a delivery, in microseconds, as subscribers grow."""
    found: dict[str, list[tuple[float, float]]] = {}
    for peer in available((OURS, NCHAN)):
        for count in (100, 300, 1_000, 3_000, 10_000, 19_000):
            with PEERS[peer]() as server:
                events = max(30, 600_000 // count)
                cost = 1e6 / figure(bench(server, f"--subscribers {count} --events {events} --processes 2"), CPU)
            found.setdefault(peer, []).append((count, cost))
            say(f"growth    {peer:24} {count:6} subscribers: {cost:.2f} us a delivery")
    return found


def run_latency() -> dict[str, list[tuple[float, float, float]]]:
    """Median and 99th percentile, in milliseconds, as 1,000 subscribers are published to faster."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for peer in available((OURS, NCHAN)):
        for rate in (50, 100, 200, 300, 400, 600, 800, 1_200):
            with PEERS[peer]() as server:
                latency = bench(server, f"--subscribers 1000 --events {rate * 3} --rate {rate} --publishers 4")[
                    "latency_ms"
                ]
            found.setdefault(peer, []).append((rate, latency["p50"], latency["p99"]))
            say(f"latency   {peer:24} {rate:6}/s: {latency['p50']:.2f} ms, 99 % {latency['p99']:.2f} ms")
            if latency["p50"] > 200:
                break
    return found


def run_lag() -> dict[str, float]:
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
    found = {"longest gap in the loop": max(gaps), "slowest newcomer": max(answers)}
    say(f"lag       {found}, {len(answers)} newcomers")
    return found


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


def run_backpressure() -> dict[str, float]:
    """A minute of publishers that outrun 100 connections: nothing is lost (or `bench` fails), memory is bounded."""
    with PEERS[OURS]() as server:
        memory: list[float] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(1):
                memory.append(server.memory_bytes() / 2**20)

        thread = threading.Thread(target=watch)
        thread.start()
        began = time.monotonic()
        report = bench(server, "--subscribers 100 --size 20000 --publishers 16 --batch 10 --events 70000 --patience 30")
        seconds = time.monotonic() - began
        stop.set()
        thread.join()
    found = {
        "seconds": seconds,
        "MB/s": report["deliveries_per_second"] * 20_000 / 1e6,
        "MiB after 10 s": memory[min(10, len(memory) - 1)],
        "MiB at most": max(memory),
    }
    say(f"pressure  {found}")
    return found


PAIRED: dict[str, Callable[[int | None], Figures]] = {
    "stalled": run_stalled,
    "history": run_history,
    "workers": run_workers,
}
EXTRAS: dict[str, Callable[[], Any]] = {
    "sqlite": run_sqlite,
    "redis": run_redis,
    "growth": run_growth,
    "latency": run_latency,
    "lag": run_lag,
    "pressure": run_backpressure,
}


def machine() -> dict[str, str]:
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


# The table


def ratio(results: dict[str, Figures], above: tuple[str, str], below: tuple[str, str]) -> str:
    """The median of the pairs' ratios, and their spread."""
    try:
        pairs = zip(results[above[0]][above[1]], results[below[0]][below[1]], strict=False)
        ratios = [a / b for a, b in pairs]
    except KeyError:
        return "not measured: no nchan here"
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What was to be reached, and what was."""
    for name, required, aim in (("W1", "2.5x", "4x"), ("W2", "0.9x", "1.1x"), ("W3", "0.7x", "1x")):
        yield f"{name} against nchan", required, aim, ratio(results, (name, OURS), (name, NCHAN))
    yield "W1 against the README server", "15x", "40x", ratio(results, ("W1", OURS), ("W1 README", README))
    yield "W4, median latency against nchan", "at most 2.5x", "1.5x", ratio(results, ("W4", OURS), ("W4", NCHAN))
    yield "W5, events per CPU second", "8,000", "15,000", spread(results["W5"][OURS])
    yield "M, bytes per idle subscriber", "at most 16,000", "11,000", spread(results["M"][OURS])
    yield "C, connections per CPU second", "3,000", "6,000", spread(results["C"][OURS])
    yield "P1, single POSTs, events per CPU second", "6,000", "10,000", spread(results["P1"][OURS])
    yield "P100, batches of 100, events per CPU second", "100,000", "250,000", spread(results["P100"][OURS])
    stalled = ratio(results, ("stalled", "with"), ("stalled", "without"))
    yield "W1 with one stalled subscriber against without", "0.97x", "1x", stalled
    yield "W1 with history against without", "0.95x", "", ratio(results, ("history", "on"), ("history", "off"))
    tasks = ratio(results, ("W1", TASKS), ("W1 README", README))
    yield "W1 through `TaskSink` (plain uvicorn) against the README server", "5x", "10x", tasks
    for count in (1, 50):
        memory, sqlite = (spread(results["sqlite"][f"{broker}, {count}"]) for broker in ("memory", "sqlite"))
        yield f"events a second from {count} publishers, on SQLite", "", "", f"{sqlite}; in memory {memory}"
    redis = results["redis"]
    over = [b - a for a, b in zip(redis["memory, latency in ms"], redis["redis, latency in ms"], strict=True)]
    yield "latency through Redis, over that in memory, median", "1 ms", "", f"{spread(over)} ms"
    spent = f"node {spread(redis['redis, seconds of the node'])} s, Redis {spread(redis['redis, seconds of Redis'])} s"
    text = f"{spread(redis['redis, events a second'])} a second; CPU of {spent}"
    yield "100,000 events in batches of 100 through Redis", "", "", text
    workers = ratio(results, ("workers", "2"), ("workers", "1"))
    yield "W1 by two workers against one, deliveries per CPU second", "0.8x", "", workers
    yield (
        "larger share of 1,000 streams, of two workers",
        "60 %",
        "",
        f"{100 * max(results['workers']['larger share']):.0f} %",
    )
    lag = results["lag"]
    yield "19,000 subscribers, longest gap in the loop", "20 ms", "", f"{lag['longest gap in the loop']:.1f} ms"
    yield "19,000 subscribers, slowest newcomer", "100 ms", "", f"{lag['slowest newcomer']:.0f} ms"
    pressure = results["pressure"]
    text = f"{pressure['seconds']:.0f} s, nothing lost; {pressure['MiB after 10 s']:.0f} MiB after 10 s"
    yield "publishers outrun sockets for a minute", "memory flat", "", f"{text}, {pressure['MiB at most']:.0f} at most"


def table(results: dict[str, Any]) -> str:
    lines = ["| | required | aim | reached |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    lines += ["", "| workload | " + " | ".join(PEERS) + " |", "|---|" + "---|" * len(PEERS)]
    for name in ("W1", "W2", "W3", "W4", "M"):
        figures = results[name] | results.get(f"{name} README", {})
        cells = [spread(figures[peer]) if peer in figures else "" for peer in PEERS]
        lines.append(f"| {name}, {WORKLOADS[name].what} | {' | '.join(cells)} |")
    there = results["machine"]
    lines += ["", f"{there['date']}, {there['cpu']}, {there['system']}, {there['packages']}, nginx {there['nginx']}."]
    return "\n".join(lines)


def write(results: dict[str, Any]) -> None:
    """The table into the page, and the plots beside it."""
    from plots import draw

    page = re.sub(
        r"(<!-- make bench -->\n).*(\n<!-- end -->)",
        lambda match: f"{match[1]}{table(results)}{match[2]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    PAGE.write_text(page)
    draw(results, PAGE.parent / "plots")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=", ".join([*WORKLOADS, *PAIRED, *EXTRAS]))
    parser.add_argument("--pairs", type=int, help=f"{PAIRS} if nothing is said")
    arguments = parser.parse_args()
    if not has_nchan():
        say("nginx with nchan is missing (Debian: nginx-light, libnginx-mod-nchan): compared without it")
    began = time.monotonic()
    results = json.loads(RESULTS.read_text()) if arguments.names and RESULTS.exists() else {}
    results["machine"] = machine()
    for name in arguments.names or [*WORKLOADS, *PAIRED, *EXTRAS]:
        if name in WORKLOADS:
            results[name] = run_workload(name, arguments.pairs)
        else:
            results[name] = PAIRED[name](arguments.pairs) if name in PAIRED else EXTRAS[name]()
        if arguments.pairs is None:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    say(f"{time.monotonic() - began:.0f} s in all")
    if arguments.pairs is None and set(results) > {*WORKLOADS, *PAIRED, *EXTRAS}:
        write(results)
        say(table(results))


if __name__ == "__main__":
    main()
