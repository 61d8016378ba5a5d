"""Measures the workloads of docs/laboratory.md; writes results.json, the tables of the pages, and the plots.

python benchmarks/run.py                  all workloads, in less than half an hour
python benchmarks/run.py W1 W3            only these; the results of the others stay, each with its date
python benchmarks/run.py W1 W3 --pairs 2  only these, with fewer pairs; nothing is written
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import page
from limits import run_lag, run_pressure, run_reader, run_redis, run_sqlite
from measuring import PAIRS, Bench, say
from page import spread
from peers import HERE, has_nchan
from tls import run_handshakes, run_tls
from workloads import WORKLOADS, run_growth, run_history, run_latency, run_stalled, run_workers, run_workload

RESULTS = HERE / "results.json"

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
    "tls": run_tls,
    "handshakes": run_handshakes,
}


def measured(name: str, pairs: int | None) -> dict[str, Any]:
    """Return the figures of one workload, the time they took, the load's CPU share, and the machine."""
    bench, began = Bench(), time.monotonic()
    found = MEASURED[name](bench, pairs)
    seconds = time.monotonic() - began
    say(f"{name}: {seconds:.0f} s, load busy for at most {bench.load_share:.0%}")
    for what, figures in found.items():
        say(f"  {what:30} {spread(figures) if isinstance(figures[0], float) else figures}")
    return {"figures": found, "seconds": seconds, "load_share": bench.load_share, "machine": machine()}


def machine() -> dict[str, str]:
    """Return the date, the hardware and the versions."""
    packages = ("uvicorn", "uvloop", "httptools", "starlette", "sse-starlette")
    nginx = "not installed"
    if has_nchan():
        output = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        nginx = output.split("/")[-1].strip()
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
    parser.add_argument(
        "--pairs", type=int, help=f"at most this many runs of each server; {PAIRS} for most workloads by default"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MEASURED):
        parser.error(f"unknown workload: {', '.join(unknown)}; expected {', '.join(MEASURED)}")
    if not has_nchan():
        say("nginx with nchan is not installed (Debian: nginx-light, libnginx-mod-nchan): it is left out")
    began = time.monotonic()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for name in arguments.names or MEASURED:
        try:
            results[name] = measured(name, arguments.pairs)
        except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
            say(f"{name} failed: {exc}")
            results.pop(name, None)  # the table shows it as not measured
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
