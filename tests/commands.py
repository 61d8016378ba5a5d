"""The `ssehub` command, run to its end."""

from __future__ import annotations

import os
import subprocess
import sys


def run(*arguments: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `ssehub` with `arguments` and only the variables in `env` of its own; return when it has ended."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSEHUB_")}
    return subprocess.run(
        [sys.executable, "-m", "ssehub", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**environment, **env},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
    )


def run_bench(
    url: str, *arguments: str, control_url: str | None = None, events: int = 30, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a small load test, of three subscribers, which reports in JSON."""
    addresses = ["--url", url, "--control-url", control_url or url]
    plan = ["--subscribers", "3", "--events", str(events), "--patience", "0.7", "--json"]
    return run("bench", *addresses, *plan, *arguments, **env)
