"""Measures the workloads of docs/laboratory.md; writes results.json, the tables of the pages, and the plots.

python benchmarks/run.py                  all workloads, in about an hour and a half
python benchmarks/run.py W1 W3            only these; the results of the others stay, each with its date
python benchmarks/run.py W1 W3 --pairs 2  only these, with fewer pairs; nothing is written
"""

from __future__ import annotations

import argparse
import functools
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
from page import doubt, spread
from peers import BUILD, CENTRIFUGO, GO_SSE, HERE, NCHAN, NEEDED, available, build_go_peers
from tls import run_handshakes, run_tls
from workloads import (
    WORKLOADS,
    run_growth,
    run_history,
    run_idle,
    run_latency,
    run_p1,
    run_p100,
    run_stalled,
    run_workers,
    run_workload,
)

RESULTS = HERE / "results.json"

Measuring = Callable[[Bench, int | None], Any]

MEASURED: dict[str, Measuring] = {
    **{name: partial(run_workload, name) for name in WORKLOADS},
    "P1": run_p1,
    "P100": run_p100,
    "idle": run_idle,
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
    """Return the figures of one workload, how they were made, and on what machine."""
    bench, began = Bench(), time.monotonic()
    say(name)
    figures = MEASURED[name](bench, pairs)
    result = {
        "figures": figures,
        "seconds": time.monotonic() - began,
        "generators": bench.generators,
        "shares": bench.shares,
        "delays": bench.delays,
        "machine": machine(),
    }
    say(f"{name}: {result['seconds']:.0f} s, load busy for at most {max(bench.shares.values(), default=0):.0%}")
    for what, values in figures.items():
        reason = doubt(result, [what])
        say(f"  {what:40} {spread(values)}{f' (no result: {reason})' if reason else ''}")
    return result


def machine() -> dict[str, str]:
    """Return the date, the hardware and the versions."""
    packages = ("uvicorn", "uvloop", "httptools", "starlette", "sse-starlette")
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": f"{len(os.sched_getaffinity(0))} cores, {model[1] if model else platform.machine()}",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "others": ", ".join(other_servers()) or "no other servers",
    }


@functools.cache
def other_servers() -> list[str]:
    """Return the names of the optional servers that are installed, with their versions."""
    found = []
    for name in available(NEEDED):
        if name == NCHAN:
            output = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
            found.append(f"nginx {output.split('/')[-1].strip()} with nchan")
        else:
            found.append(f"{name} {go_version(name)}")
    return found


def go_version(name: str) -> str:
    """Return the version of the module that a server was built from."""
    module = {CENTRIFUGO: "centrifugal/centrifugo", GO_SSE: "tmaxmax/go-sse"}[name]
    command = ["go", "version", "-m", str(BUILD / name.lower())]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(rf"{module}\S*\s+v(\S+)", output)
    return match[1] if match else "of an unknown version"


def build_optional_servers() -> None:
    """Build the servers written in Go, and say which of the optional servers are left out."""
    try:
        build_go_peers()
    except (OSError, subprocess.SubprocessError) as exc:
        say(f"the servers written in Go could not be built: {exc}")
    for name in NEEDED.keys() - set(available(NEEDED)):
        needs = "Debian: nginx-light, libnginx-mod-nchan" if name == NCHAN else "Go"
        say(f"{name} is not installed ({needs}): it is left out")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=", ".join(MEASURED))
    parser.add_argument(
        "--pairs", type=int, help=f"at most this many runs of each server; {PAIRS} for most workloads by default"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MEASURED):
        parser.error(f"unknown workload: {', '.join(unknown)}; expected {', '.join(MEASURED)}")
    build_optional_servers()
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
