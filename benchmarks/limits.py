"""The workloads that show the limits of this hub, of its brokers, and of `ssehub bench` itself."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, cast

from generators import Load
from measuring import FEW_PAIRS, Bench, Figures, figure, figures, first_frame_milliseconds, in_turn
from peers import HERE, OURS, PEERS, Running, pinned, redis_log, ssehub, started, wait_until

from ssehub.bench.messages import Order, Tally
from ssehub.bench.resources import ServerProcesses

READS = {"alone": (1, 250, 50_000), "64 together": (64, 100, 2_000_000)}
"""The events in each write, the writes to each connection, and the events per second to all connections together."""


def run_sqlite(bench: Bench, pairs: int | None) -> Figures:
    """Return the events published per second, one per POST, by 1 and by 50 publishers, in memory and on disk."""
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        databases = itertools.count()

        def one_run(name: str) -> dict[str, float]:
            broker, _, publishers = name.partition(", ")
            url = "memory://" if broker == "memory" else f"sqlite:///{folder}/{next(databases)}.db"
            events = 2_000 if publishers == "1" else 10_000
            with ssehub("--broker", url)() as server:
                report = bench.sseload(name, server, Load(subscribers=1, events=events, publishers=int(publishers)))
            return {"events a second": figure(report, "published")}

        return in_turn(("memory, 1", "sqlite, 1", "memory, 50", "sqlite, 50"), one_run, FEW_PAIRS, pairs)


def run_redis(bench: Bench, pairs: int | None) -> Figures:
    """Return the latency, and the rate and CPU time of 100,000 events in batches of 100, over Redis and in memory."""
    prefixes = itertools.count()
    with redis_log() as (pid, url):
        redis = ServerProcesses(pid)

        def hub(log: str) -> AbstractContextManager[Running]:
            options = ("--broker", url, "--redis-prefix", f"bench-{next(prefixes)}")
            return ssehub(*(options if log == "redis" else ()))()

        def paced(name: str) -> dict[str, float]:
            with hub(name) as server:
                report = bench.sseload(name, server, Load(subscribers=1, events=500, rate=200, warmup=50))
            return figures(report, ["p50"])

        def batches(name: str) -> dict[str, float]:
            with hub(name.partition(",")[0]) as server:
                before = redis.usage().cpu_seconds
                arguments = "--subscribers 1 --events 100000 --publishers 4 --batch 100"
                report = bench.ssehub_bench(name, server, arguments)
                spent = redis.usage().cpu_seconds - before
            node = {"events a second": figure(report, "published"), "seconds of the node": report["server_cpu_seconds"]}
            return node | {"seconds of Redis": spent}

        found = in_turn(("memory", "redis"), paced, FEW_PAIRS, pairs)
        return found | in_turn(("memory, batches", "redis, batches"), batches, FEW_PAIRS, pairs)


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
                bench.sseload("lag", server, Load(subscribers=19_000, events=60, rate=4))
        lines = [line.split() for line in file.read().splitlines()]
        gaps = [float(gap) for at, gap in lines if began[0] + 1 < float(at) < began[-1]]
    return {"lag: longest gap, ms": [max(gaps)], "lag: slowest newcomer, ms": [max(milliseconds)]}


def open_descriptors(server: Running) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def run_pressure(bench: Bench, pairs: int | None) -> Figures:
    """Return the server's memory during a minute in which publishers are faster than 100 connections.

    No event may be lost: `bench` raises then.
    """
    arguments = "--subscribers 100 --size 20000 --publishers 16 --batch 10 --patience 30"
    with PEERS[OURS]() as server:
        rate = bench.ssehub_bench("pressure", server, f"{arguments} --events 5000")["published_per_second"]
        memory: list[float] = []
        began = time.monotonic()
        with repeated(lambda: memory.append(server.usage().memory_bytes / 2**20), every_seconds=1):
            report = bench.ssehub_bench("pressure", server, f"{arguments} --events {int(60 * rate)}")
            seconds = time.monotonic() - began
    return {
        "pressure: seconds": [seconds],
        "pressure: MB a second": [report["deliveries_per_second"] * 20_000 / 1e6],
        "pressure: MiB after 10 s": [memory[min(10, len(memory) - 1)]],
        "pressure: MiB at most": [max(memory)],
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
            found.setdefault(f"{name}: events", []).append(per_cpu_second)
            found.setdefault(f"{name}: events in a read", []).append(per_read)
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
