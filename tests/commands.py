"""The `ssehub` command, run to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from conftest import wait_until


def run(*arguments: str, stdin: str | TextIO | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `ssehub` with `arguments` and only the variables in `env` of its own; return when it has ended.

    Its standard input is the text or the file `stdin`.
    """
    return subprocess.run(
        [sys.executable, "-m", "ssehub", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=_environment(env),
        input=stdin if isinstance(stdin, str) else None,
        stdin=None if isinstance(stdin, str) else stdin or subprocess.DEVNULL,
    )


def _environment(env: dict[str, str]) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("SSEHUB_")}, **env}


class RunningCommand:
    """`ssehub` with `arguments`, which runs until it ends by itself or is interrupted."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ssehub", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(env),
        )
        self.lines: list[str] = []
        """Of standard output."""
        self.notes: list[str] = []
        """Of standard error."""
        pipes = [(self.process.stdout, self.lines), (self.process.stderr, self.notes)]
        self._threads = [threading.Thread(target=_read, args=each, daemon=True) for each in pipes]
        for thread in self._threads:
            thread.start()

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait_for(self, *lines: str) -> None:
        """Wait until these lines are at the end of the output."""
        wait_until(lambda: self.lines[-len(lines) :] == [*lines] or self.process.poll() is not None)
        assert self.lines[-len(lines) :] == [*lines], (self.lines, self.notes)

    def wait(self, seconds: float = 20.0) -> int:
        """Return the exit code."""
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join()
        return code

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def end_input(self) -> int:
        """Close standard input; return the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait()

    def close(self) -> None:
        self.process.kill()
        self.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _read(pipe: Iterator[str], lines: list[str]) -> None:
    for line in pipe:
        lines.append(line.rstrip("\n"))


@contextlib.contextmanager
def running(*arguments: str, **env: str) -> Iterator[RunningCommand]:
    """Run `ssehub` inside the context."""
    command = RunningCommand(*arguments, **env)
    try:
        yield command
    finally:
        command.close()


def run_bench(
    url: str, *arguments: str, control_url: str | None = None, events: int = 30, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a small load test, of three subscribers, which reports in JSON."""
    addresses = ["--url", url, "--control-url", control_url or url]
    plan = ["--subscribers", "3", "--events", str(events), "--patience", "0.7", "--json"]
    return run("bench", *addresses, *plan, *arguments, **env)
