"""Shared by the tests: hubs that run in processes of their own, waiting for states, and skips for missing programs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvloop
from httpx._transports import default as transports
from playwright.sync_api import Browser, Page, sync_playwright

from named_keys import MADE
from ssehub.loglimit import LIMIT
from streams import RawStream

SECRET = "a secret for tests that has 32 bytes or more"
CONTROL_KEY = "a control key for tests that has 32 bytes or more"
START_SECONDS = 20.0
ERROR_LINES = re.compile(r"ERROR|Traceback|Exception")
"""What the log of a hub must not contain after a test."""
ORDINARY_PATHS = "ORDINARY_PATHS" in os.environ
"""True if the hubs of the tests are to answer every request by their apps, so that the suite runs over both paths."""
WITHOUT_FAST_PATHS = "from ssehub.web.direct import DirectApp; DirectApp.fast_paths = property(lambda app: {})"
RUN = "import runpy; runpy.run_module('ssehub', run_name='__main__', alter_sys=True)"
MEASURED_PROCESSES = (
    "test_asgi",
    "test_bench",
    "test_cli",
    "test_key_rotation",
    "test_log_settings",
    "test_memory",
    "test_platform",
    "test_publisher",
    "test_server_certificates",
    "test_server_collector",
    "test_server_logs",
    "test_server_process",
    "test_server_protocol",
    "test_server_proxy_protocol",
    "test_server_sockets",
    "test_server_tls",
    "test_server_workers",
    "test_testing",
)
"""How the names of those modules begin whose processes are measured, if coverage is."""
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
# A shell starts jobs in the background with SIGINT ignored, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# httpx reads the machine's certificates for every client, and so for every `httpx.get`: 40 ms of a processor. The tests
# make thousands of clients.
vars(transports)["create_ssl_context"] = functools.cache(vars(transports)["create_ssl_context"])


class CheckedLoop(uvloop.Loop):
    """uvloop, with its warnings of unclosed transports issued after `close`.

    pytest raises warnings as errors. An error raised within libuv would keep the transport open, and `close` would wait
    for it without end.
    """

    def close(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().close()
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, type[CheckedLoop]]]:
    return "asyncio", {"loop_factory": CheckedLoop}


@pytest.fixture(scope="module", autouse=True)
def unmeasured_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure coverage in the processes of those modules only that test the process itself.

    It takes half a second of a processor for each process that starts, and makes a hub half as fast. The other modules
    start hubs to see them from outside; what runs in these hubs is measured elsewhere.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not request.path.stem.startswith(MEASURED_PROCESSES):
            for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
                patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def close_streams() -> Iterator[None]:
    yield
    RawStream.close_all()


@pytest.fixture(autouse=True)
def begin_with_all_log_lines() -> Iterator[None]:
    """Let no test find lines left out, or a summary of them, because of the ones before: the limit is the process's."""
    yield
    LIMIT.start_over()


@pytest.fixture
def unhurried_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let history evict as much as it is told to in one call, even if the machine is so busy that this takes long."""
    monkeypatch.setattr("ssehub.fanout.history.SLICE_SECONDS", 60.0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that run in `make soak` only."""
    if "SOAK" in os.environ:
        return
    left_out = [item for item in items if item.get_closest_marker("only_soak") is not None]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def require(present: object, what: str) -> None:
    """Skip the test if `what`, which it needs, is not present. With CI=true, fail it instead."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must run every test")
    pytest.skip(f"{what} is missing")


def works(*command: str) -> bool:
    """Return True if the command can be run here."""
    return subprocess.run(command, capture_output=True).returncode == 0


class HubProcess:
    """A hub in a process of its own, and the calls that tests make to it."""

    url: str
    control_url: str

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed by stop()
        self._signatures: list[str] = []
        """Of the tokens that it has issued."""
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=env, cwd=cwd)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def control_port(self) -> int:
        return int(self.control_url.rpartition(":")[2])

    def token(self, user_id: str = "alex", channel: str = "chat", exp: int = 3600) -> str:
        fields = {"userId": user_id, "channel": channel, "exp": str(exp)}
        token = httpx.post(f"{self.control_url}/token/", data=fields).raise_for_status().text
        self._signatures.append(token.rpartition(".")[2])
        return token

    def issue(self, user_id: str = "alex", **fields: Any) -> str:
        """Ask for a token with JSON, as for patterns."""
        response = httpx.post(f"{self.control_url}/token/", json={"userId": user_id, **fields})
        token: str = response.raise_for_status().json()["token"]
        self._signatures.append(token.rpartition(".")[2])
        return token

    def emit(self, **fields: Any) -> str:
        """Publish one event; return its id."""
        body = {"userId": "*", "channel": "chat", **fields}
        response = httpx.post(f"{self.control_url}/emit/", json=body, timeout=30)
        return str(response.raise_for_status().json()["id"])

    def emit_batch(self, events: list[dict[str, Any]]) -> list[str]:
        """Publish a batch; return the ids."""
        response = httpx.post(f"{self.control_url}/emit/", json=events, timeout=60)
        ids: list[str] = response.raise_for_status().json()["ids"]
        return ids

    def memory_bytes(self) -> int:
        """Return the resident memory of the process and its workers."""
        parent = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.control_url}/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"/metrics does not have {name}"
        return float(found[1])

    def wait_for(self, name: str, value: float, seconds: float = 10.0) -> None:
        """Wait until the metric `name` has this value."""
        wait_until(lambda: self.metric(name) == value, seconds)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for the process to exit; return its exit code."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """Stop the process. Its log must show none of its secrets, nor a token that it has issued."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if not self._log.closed:
            log = self.log
            self._log.close()
            assert not any(secret in log for secret in (SECRET, CONTROL_KEY, *MADE, *self._signatures)), log


class RunningHub(HubProcess):
    """`ssehub serve` on free ports."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str | None] | None = None,
        prefix: tuple[str, ...] = (),
        code: str | None = None,
    ) -> None:
        """Start it and wait until it listens.

        A variable that is None in `env` is unset. `prefix` is a command that runs the hub, such as `prlimit`. `code` is
        Python code to run instead of `python -m ssehub`.
        """
        addresses = [] if any("--bind" in argument for argument in arguments) else ["--bind", "127.0.0.1:0"]
        if ORDINARY_PATHS:
            code = f"{WITHOUT_FAST_PATHS}; {code or RUN}"
        program = ["-m", "ssehub"] if code is None else ["-c", code]
        command = [*prefix, sys.executable, *program, *addresses, "--control-bind", "127.0.0.1:0", *arguments]
        variables = {"SSEHUB_SECRET": SECRET, **os.environ, **(env or {})}
        super().__init__(command, {name: value for name, value in variables.items() if value is not None})
        try:
            self.url = self._logged_address("browsers", "/events/")
            self.control_url = self._logged_address("publishers", "/")
        except BaseException:
            self.stop()
            raise

    def _logged_address(self, clients: str, path: str) -> str:
        pattern = re.compile(rf"listening for {clients} on (\S+?){path}(?:\n|\",)")
        wait_until(lambda: pattern.search(self.log) or self.process.poll() is not None, START_SECONDS)
        found = pattern.search(self.log)
        assert found, self.log
        return found[1]


StartHub = Callable[..., RunningHub]
"""The type of the fixture `start_hub`."""


@pytest.fixture
def start_hub() -> Iterator[StartHub]:
    """Start hubs, with the arguments of `RunningHub`, and stop them after the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> RunningHub:
            hub = RunningHub(*arguments, **options)
            stack.callback(hub.stop)
            return hub

        yield start


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    """One hub for all tests of a module."""
    running = RunningHub("--token-cookie", "sse", "--cors-origins", "https://app.example")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, one process for all tests of a module."""
    require(CHROMIUM.exists(), "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with cookies of its own."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def _ports_of_this_process() -> Iterator[int]:
    """Return the ports that this process of pytest may give away, in turn, without end.

    They are below the ports of outgoing connections, so that nobody else is given one of them before it is used. With
    `-n`, each process has a range of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(20_000 + worker % 8 * 1_500, 21_500 + worker % 8 * 1_500)
    offset = random.randrange(len(ports))  # another run on the same machine begins elsewhere
    return itertools.cycle([*ports[offset:], *ports[:offset]])


_PORTS = _ports_of_this_process()


def free_port() -> int:
    """Return a port on which nothing listens, and which no other call returns for a long time."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("unreachable: the ports go on without end")


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `condition()` is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not become true within {seconds:g} s"
        time.sleep(0.01)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Like `wait_until`, inside an event loop."""
    async with asyncio.timeout(seconds):
        for number in itertools.count():
            if condition():
                return
            await asyncio.sleep(0 if number < 1_000 else 0.001)  # a long wait leaves the processor to others


def report(text: str) -> None:
    """Print a figure. pytest shows it with `-s`, and when the test fails."""
    sys.stderr.write(f"{text}\n")
