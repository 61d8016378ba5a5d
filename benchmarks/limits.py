"""The workloads that show the limits of this hub, of its brokers, and of `ssehub bench` itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from measuring import FEW_PAIRS, Bench, Figures, figure, first_frame_milliseconds
from page import OURS
from peers import HERE, PEERS, Running, pinned, redis_log, ssehub, started, wait_until

from ssehub.bench.messages import Order, Tally
from ssehub.bench.resources import ServerProcesses

READS = {"alone": (1, 250, 50_000), "64 together": (64, 100, 2_000_000)}
"""The events in each write, the writes to each connection, and the events per second to all connections together."""


def run_sqlite(bench: Bench, pairs: int | None) -> Figures:
    """Return the events published per second, one per POST, by 1 and by 50 publishers, in memory and on disk."""
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
    """Return the latency, and the rate and CPU time of 100,000 events in batches of 100, over Redis and in memory."""
    found: Figures = {}
    with redis_log() as (pid, url):
        redis = ServerProcesses(pid)
        for pair in range(min(pairs or FEW_PAIRS, FEW_PAIRS)):
            for name, log in (("memory", ()), ("redis", ("--broker", url, "--redis-prefix", f"bench-{pair}"))):
                with ssehub(*log)() as server:
                    latency = figure(bench(server, "--subscribers 1 --events 500 --rate 200"), "latency_ms")
                    before = redis.usage().cpu_seconds
                    report = bench(server, "--subscribers 1 --events 100000 --publishers 4 --batch 100")
                    spent = redis.usage().cpu_seconds - before
                found.setdefault(f"{name}, latency in ms", []).append(latency)
                found.setdefault(f"{name}, events a second", []).append(report["published_per_second"])
                found.setdefault(f"{name}, seconds of the node", []).append(report["server_cpu_seconds"])
                found.setdefault(f"{name}, seconds of Redis", []).append(spent)
    return found


def run_lag(bench: Bench, pairs: int | None) -> Figures:
    """Return the longest gap in the loop and the slowest new stream, with 19,000 subscribers and 4 events per second.

    Once the subscribers are connected, a new stream is opened ten times per second.
    """
    with tempfile.NamedTemporaryFile("r") as file:
        peer = ssehub("--heartbeat-seconds", "15", module=(str(HERE / "lag.py"),), env={"LAG_FILE": file.name})
        with peer() as server:
            began: list[float] = []
            milliseconds: list[float] = []

            def open_stream() -> None:
                if open_descriptors(server) >= 19_000:
                    began.append(time.monotonic())
                    milliseconds.append(first_frame_milliseconds(server))

            with repeated(open_stream, every_seconds=0.1):
                bench(server, "--subscribers 19000 --events 60 --rate 4 --processes 2")
        lines = [line.split() for line in file.read().splitlines()]
        gaps = [float(gap) for at, gap in lines if began[0] + 1 < float(at) < began[-1]]
    return {"longest gap in the loop, ms": [max(gaps)], "slowest newcomer, ms": [max(milliseconds)]}


def open_descriptors(server: Running) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def run_pressure(bench: Bench, pairs: int | None) -> Figures:
    """Return the server's memory during a minute in which publishers are faster than 100 connections.

    No event may be lost: `bench` raises then.
    """
    arguments = "--subscribers 100 --size 20000 --publishers 16 --batch 10 --patience 30"
    with PEERS[OURS]() as server:
        rate = bench(server, f"{arguments} --events 5000")["published_per_second"]
        memory: list[float] = []
        began = time.monotonic()
        with repeated(lambda: memory.append(server.usage().memory_bytes / 2**20), every_seconds=1):
            report = bench(server, f"{arguments} --events {int(60 * rate)}")
            seconds = time.monotonic() - began
    return {
        "seconds": [seconds],
        "MB a second": [report["deliveries_per_second"] * 20_000 / 1e6],
        "MiB after 10 s": [memory[min(10, len(memory) - 1)]],
        "MiB at most": [max(memory)],
    }


@contextmanager
def repeated(action: Callable[[], None], every_seconds: float) -> Iterator[None]:
    """Call `action` from a thread, with a pause before each call; an exception ends the thread, and is raised here."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_seconds):
            action()

    with ThreadPoolExecutor(1) as executor:
        repeating = executor.submit(repeat)
        try:
            yield
        finally:
            stop.set()
        repeating.result()


def run_reader(bench: Bench, pairs: int | None) -> Figures:
    """Return the events per CPU second that a worker of `ssehub bench` reads from a server without a hub.

    At these rates a connection has 20 ms or more between two writes, so that each write is read alone.
    """
    found: Figures = {}
    for _ in range(min(pairs or FEW_PAIRS, FEW_PAIRS)):
        for name, (together, writes, rate) in READS.items():
            per_cpu_second, per_read = read_events(together, writes, rate)
            found.setdefault(name, []).append(per_cpu_second)
            found.setdefault(f"{name}, events in a read", []).append(per_read)
    return found


def read_events(together: int, writes: int, rate: int) -> tuple[float, float]:
    """Return the events per CPU second of the reader, and per read."""
    count = 1_000
    feeder = [sys.executable, str(HERE / "feeder.py"), *map(str, (count, together, writes, rate))]
    reader = [*pinned(1), sys.executable, "-m", "ssehub.bench"]
    with started(feeder, stdin=subprocess.PIPE) as (feeding, log):
        wait_until(log.read_text)
        order = Order(f"http://127.0.0.1:{log.read_text()}", ["none"] * count)
        with subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reading:
            write_line(reading, order.to_line())
            before = reported(reading, lambda tally: tally.opened == count)
            write_line(feeding, b"begin\n")
            after = reported(reading, lambda tally: tally.events == count * together * writes)
            write_line(reading, b"stop\n")
    return after.events / (after.cpu_seconds - before.cpu_seconds), after.events / after.reads


def write_line(process: subprocess.Popen[bytes], line: bytes) -> None:
    stdin = cast(IO[bytes], process.stdin)  # None only for a process started without a pipe
    stdin.write(line)
    stdin.flush()


def reported(process: subprocess.Popen[bytes], is_reached: Callable[[Tally], bool]) -> Tally:
    """Return the first report of a worker for which `is_reached` is true."""
    for line in cast(IO[bytes], process.stdout):  # None only for a process started without a pipe
        tally = Tally.from_line(line)
        if is_reached(tally):
            return tally
    raise RuntimeError("the reader ended before it had read all events")
