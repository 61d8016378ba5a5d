"""The load generators, which run on a core of their own.

- `sseload`, written in C, opens streams and publishes: it takes a fraction of the CPU time of what it measures.
- wrk sends requests without streams.
- `ssehub bench` is the one that users have. It speaks TLS and sends batches, and is often the bottleneck itself.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import BUILD, HERE, SECRET, Running, pinned

from ssehub import Tokens

SSELOAD, WRK, SSEHUB_BENCH = "sseload", "wrk", "ssehub bench"
LONGEST_SECONDS = 300
DIGITS = {"{TS}": "1000000000000", "{SEQ}": "10000"}
"""What stands for the placeholders of `sseload` where each request is the same."""

Report = dict[str, Any]


class MissingGeneratorError(RuntimeError):
    """A load generator is not installed."""


@dataclass(frozen=True)
class Load:
    """What `sseload` does. Events are for everyone, or with `users`, which have a token each, for each in turn."""

    subscribers: int = 0
    events: int = 0
    rate: float = 0
    """Events per second; 0 is one after the other, as fast as the server answers."""
    publishers: int = 1
    users: int = 1
    warmup: int = 0
    connect_rate: float = 0
    """Streams opened in a second at most; 0 is as fast as the server accepts."""
    hold_seconds: float = 0

    def options(self) -> list[str]:
        named = {
            "subscribers": self.subscribers,
            "events": self.events,
            "rate": self.rate,
            "publishers": self.publishers,
            "audiences": self.users,
            "warmup": self.warmup,
            "connect-rate": self.connect_rate,
            "hold": self.hold_seconds,
        }
        return [text for name, value in named.items() for text in (f"--{name}", str(value))]


def sseload(server: Running, load: Load) -> Report:
    """Return the report of one run; raises RuntimeError if an event was lost, duplicated or reordered."""
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as tokens:
        command = [*pinned(1), str(compiled()), "--server-pid", str(server.pid), *load.options()]
        if load.subscribers:
            command += ["--url", server.url + server.stream_path]
        if load.subscribers and server.takes_tokens:
            expires_at, signer = time.time() + 3600, Tokens(SECRET)
            for user in range(load.users):
                tokens.write(signer.issue(f"user-{user}", ["bench"], expires_at=expires_at) + "\n")
            tokens.flush()
            command += ["--tokens", tokens.name]
        if load.events:
            target = "*" if load.users == 1 else "user-{AUDIENCE}"
            command += ["--publish-url", server.control_url + server.publish_path]
            command += ["--body", server.body.replace("{USER}", target)]
            command += [text for header in server.headers for text in ("--header", header)]
        return _report_of(command)


def compiled() -> Path:
    """Return the program `sseload`, compiled from its sources if one of them is newer."""
    sources, program = sorted((HERE / "sseload").glob("*.[ch]")), BUILD / "sseload"
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        compiler = shutil.which("cc")
        if compiler is None:
            raise MissingGeneratorError("sseload needs a C compiler (Debian: gcc, libc6-dev)")
        BUILD.mkdir(exist_ok=True)
        files = [str(source) for source in sources if source.suffix == ".c"]
        subprocess.run([compiler, "-O2", "-o", str(program), *files], check=True)
    return program


def wrk(
    server: Running, connections: int, seconds: float, body: str | None = None, headers: Sequence[str] = ()
) -> Report:
    """Return how many requests were answered; each publishes an event as the server takes it, or `body`.

    They have the server's headers, or `headers`, in which the value `{number}` differs in each request.
    """
    if shutil.which("wrk") is None:
        raise MissingGeneratorError("wrk is missing (Debian: wrk)")
    with tempfile.NamedTemporaryFile("w", suffix=".body") as file:
        file.write(fixed(server.body) if body is None else body)
        file.flush()
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds:g}s", "-s", str(HERE / "post.lua")]
        command += [server.control_url + server.publish_path, "--", file.name, *(headers or server.headers)]
        before, own = server.usage(), _children_cpu_seconds()
        output = _run([*pinned(1), *command]).stdout
        spent, own_spent = server.usage().cpu_seconds - before.cpu_seconds, _children_cpu_seconds() - own
    done: Report = json.loads(output.splitlines()[-1])
    if done["failed"] or not done["requests"]:
        raise RuntimeError(f"wrk: {done['failed']} of {done['requests']} requests failed")
    return {
        "requests_per_cpu_second": done["requests"] / spent,
        "own_cpu_share": own_spent / done["seconds"],
        "seconds": done["seconds"],
    }


def fixed(body: str) -> str:
    """Return an event's body with values in place of the placeholders of `sseload`."""
    for placeholder, value in {**DIGITS, "{USER}": "*"}.items():
        body = body.replace(placeholder, value)
    return re.sub(r"\{PAD:(\d+)\}", lambda match: "x" * int(match[1]), body)


def ssehub_bench(server: Running, arguments: str) -> Report:
    """Return the report of one run; raises RuntimeError if an event was lost, duplicated or reordered."""
    addresses = ["--url", server.url, "--control-url", server.control_url, "--server-pid", str(server.pid)]
    command = [sys.executable, "-m", "ssehub", "bench", "--json", *addresses, "--secret", SECRET, *arguments.split()]
    return _report_of([*pinned(1), *command], {"SSL_CERT_FILE": str(server.ca)} if server.ca else {})


def _report_of(command: Sequence[str], env: dict[str, str] | None = None) -> Report:
    report: Report = json.loads(_run(command, env).stdout)
    return report


def _run(command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    result = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS, env=environment)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}{result.stdout}")
    return result


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
