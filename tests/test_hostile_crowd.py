"""A crowd of attackers of ten kinds beside a crowd of honest clients: the honest ones must not notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ERROR_LINES, SECRET, RunningHub, StartHub, report

pytestmark = pytest.mark.alone

SOAK = "SOAK" in os.environ
EACH, SECONDS = (50, 300) if SOAK else (5, 3)
"""Attackers of each of ten kinds, and for how long. There are as many honest clients as attackers."""
RATE = 20
MIB = 2**20


def honest_clients(hub: RunningHub, seconds: float) -> dict[str, Any]:
    """Let clients on two channels listen while events are published; return the report of the load test."""
    command = [
        *(sys.executable, "-m", "ssehub", "bench", "--json", "--secret", SECRET),
        *("--url", hub.url, "--control-url", hub.control_url),
        *(
            "--subscribers",
            str(10 * EACH),
            "--channels",
            "2",
            "--rate",
            str(RATE),
            "--events",
            str(int(seconds * RATE)),
        ),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    assert result.stdout, result.stderr
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


@pytest.mark.soak
def test_honest_clients_do_not_notice_attackers_of_ten_kinds(start_hub: StartHub) -> None:
    hub = start_hub()
    token = hub.token("mallory", "attacked", exp=86_400)
    alone = honest_clients(hub, SECONDS / 5)
    before = hub.memory_bytes()

    arguments = [str(hub.port), str(hub.control_port), token, str(EACH), str(SECONDS + 5)]
    program = [sys.executable, str(Path(__file__).parent / "attackers.py"), *arguments]
    attackers = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        attacked = honest_clients(hub, SECONDS)
        counts, _ = attackers.communicate(timeout=60)
    finally:
        attackers.kill()
        attackers.wait()
    grown, log_bytes = (hub.memory_bytes() - before) / MIB, len(hub.log)
    p99 = alone["latency_ms"]["p99"], attacked["latency_ms"]["p99"]
    report(
        f"{10 * EACH} attackers for {SECONDS} s: p99 {p99[0]:.1f} ms without, {p99[1]:.1f} ms with them, "
        f"memory +{grown:.0f} MiB, log {log_bytes} bytes, connections {counts.strip()}"
    )

    assert [attacked[fault] for fault in ("lost", "gaps", "duplicates", "reordered")] == [0, 0, 0, 0]
    assert p99[1] < max(2 * p99[0], 100 if not SOAK else 0)
    assert grown < 100
    assert log_bytes < 10 * MIB
    assert not ERROR_LINES.search(hub.log)
