"""The tables that `make bench` writes: no figure of a load that was too busy or too late is shown as a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MACHINE = {"date": "2026-01-01", "cpu": "2 cores", "system": "Linux", "packages": "uvicorn 1", "others": "nginx 1"}


def table_row(function: str, label: str, **changes: Any) -> str:
    """Return the row with this label of the table that a function of page.py makes from results of W1."""
    w1 = {
        "figures": {"ssehub: deliveries": [1000.0, 1200.0, 1100.0], "nchan: deliveries": [100.0, 100.0, 110.0]},
        "seconds": 1.0,
        "generators": {"ssehub": "sseload", "nchan": "sseload"},
        "shares": {"ssehub": 0.2, "nchan": 0.5},
        "delays": {},
        "machine": MACHINE,
        **changes,
    }
    code = f"import json, sys, page; print(page.{function}(json.load(sys.stdin)))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, input=json.dumps({"W1": w1}), capture_output=True, text=True, env=env, timeout=60)
    assert run.returncode == 0, run.stderr
    return next(line for line in run.stdout.splitlines() if line.startswith(f"| {label} "))


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        pytest.param({}, "10.0x (10.0 to 12.0) | sseload, 50%", id="good"),
        pytest.param(
            {"figures": {"ssehub: deliveries": [300.0], "nchan: deliveries": [100.0]}},
            "3.00x, **missed** | sseload, 50%",
            id="missed",
        ),
        pytest.param(
            {"shares": {"ssehub": 0.2, "nchan": 0.71}},
            "**no result**: the load was 71% busy | sseload, 71%",
            id="busy",
        ),
        pytest.param(
            {"delays": {"ssehub": 1.06}},
            "**no result**: it took 1.06 times as long as planned | sseload, 50%",
            id="late",
        ),
        pytest.param(
            {"figures": {"ssehub: deliveries": [300.0]}},
            "**not measured**: no nchan: deliveries | sseload, 50%",
            id="without the other server",
        ),
    ],
)
def test_row_says_whether_there_is_a_result(changes: dict[str, Any], reached: str) -> None:
    row = table_row("table", "W1 against nchan", **changes)

    assert row == f'| W1 against nchan | 4x | 10x | {reached} | `make bench ARGS="W1"` |'


def test_only_the_figure_of_the_busy_load_is_no_result() -> None:
    row = table_row("comparison", "W1, deliveries", shares={"ssehub": 0.2, "nchan": 0.71})

    cells = "1,100 (1,000 to 1,200) | no result: the load was 71% busy | sseload, 71%"
    assert row == f"| W1, deliveries per CPU second | {cells} |"


def test_expectation_is_rounded_to_two_digits() -> None:
    label = "deliveries to 1,000 streams, events as fast as one publisher sends them"

    row = table_row("expectations", label, figures={"ssehub: deliveries": [1_234_567.0]})

    assert row == f"| {label} | 1,200,000 per CPU second | `W1` |"
