"""What the tests share: real hubs as private processes, and skips that say what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright

SECRET = "a secret for tests that has 32 bytes or more"
START_SECONDS = 20.0
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def require(present: object, what: str) -> None:
    """Skip a test that needs `what`; where CI=true everything must be there."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and in CI nothing may be")
    pytest.skip(f"{what} is missing")


class RunningHub:
    """`ssehub serve` in a process of its own, on free ports."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str | None] | None = None,
        prefix: tuple[str, ...] = (),
        code: str | None = None,
    ) -> None:
        """`prefix` is a command that runs it, `code` what runs in place of `python -m ssehub`; None in `env` unsets."""
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed by stop()
        addresses = [] if any("--bind" in argument for argument in arguments) else ["--bind", "127.0.0.1:0"]
        run = ["-m", "ssehub"] if code is None else ["-c", code]
        command = [*prefix, sys.executable, *run, *addresses, "--control-bind", "127.0.0.1:0", *arguments]
        given = {"SSEHUB_SECRET": SECRET, **os.environ, **(env or {})}
        environment = {name: value for name, value in given.items() if value is not None}
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)
        self.url = self._address("browsers", "/events/")
        self.control_url = self._address("publishers", "/")

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def control_port(self) -> int:
        return int(self.control_url.rpartition(":")[2])

    def _address(self, whom: str, path: str) -> str:
        pattern = re.compile(rf"listening for {whom} on (\S+?){path}\n")
        wait_until(lambda: pattern.search(self.log) or self.process.poll() is not None, START_SECONDS)
        found = pattern.search(self.log)
        assert found, self.log
        return found[1]

    def token(self, user_id: str = "alex", channel: str = "chat", exp: int = 3600) -> str:
        fields = {"userId": user_id, "channel": channel, "exp": str(exp)}
        return httpx.post(f"{self.control_url}/token/", data=fields).raise_for_status().text

    def emit(self, **fields: Any) -> str:
        body = {"userId": "*", "channel": "chat", **fields}
        response = httpx.post(f"{self.control_url}/emit/", json=body, timeout=30)
        return str(response.raise_for_status().json()["id"])

    def emit_batch(self, events: list[dict[str, Any]]) -> list[str]:
        response = httpx.post(f"{self.control_url}/emit/", json=events, timeout=60)
        ids: list[str] = response.raise_for_status().json()["ids"]
        return ids

    def memory_bytes(self) -> int:
        """What it has in memory, with all of its workers."""
        parent = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.control_url}/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"there is no {name}"
        return float(found[1])

    def wait_for(self, name: str, value: float, seconds: float = 10.0) -> None:
        wait_until(lambda: self.metric(name) == value, seconds)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        return self.process.wait(seconds)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


@pytest.fixture
def start_hub() -> Iterator[Callable[..., RunningHub]]:
    """Starts hubs, with more arguments if need be, and ends them after the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> RunningHub:
            hub = RunningHub(*arguments, **options)
            stack.callback(hub.stop)
            return hub

        yield start


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    """One hub for a module."""
    running = RunningHub("--token-cookie", "sse", "--cors-origins", "https://app.example")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, for a module."""
    require(CHROMIUM.exists(), "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a state, not for a time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """The same inside an event loop."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # the state has no event of its own
            await asyncio.sleep(0)


def report(text: str) -> None:
    """Say a figure; pytest shows it with `-s` and when the test fails."""
    sys.stderr.write(f"{text}\n")
