"""Other ASGI servers that run `ssehub.asgi`: uvicorn plain and with our protocol, hypercorn, granian."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from conftest import SECRET, HubProcess, connects, free_port, wait_until


@dataclass(frozen=True)
class Server:
    """How a server is started, and how it stops."""

    command: tuple[str, ...]
    stops_in_seconds: float = 5.0
    sends_drain: bool = True
    """True if streams end with `stream-drain` when it stops."""
    waits_for_streams: bool = False
    """True if it does not stop before its clients have closed their connections."""


_UVICORN = ("-m", "uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
UVICORN = Server(_UVICORN)
UVICORN_WORKERS = Server((*_UVICORN, "--workers", "2"))
_HYPERCORN = ("-m", "hypercorn", "{app}", "--bind", "127.0.0.1:{port}")
HYPERCORN = Server((*_HYPERCORN, "--worker-class", "uvloop"), sends_drain=False)
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn-h11": Server((*_UVICORN, "--http", "h11")),
    "uvicorn-fast": Server((*_UVICORN, "--http", "ssehub.server:HttpProtocol")),
    "uvicorn-fast-asyncio": Server((*_UVICORN, "--http", "ssehub.server:HttpProtocol", "--loop", "asyncio")),
    "hypercorn": HYPERCORN,
    # Since Python 3.12.1, hypercorn 0.18 waits for open connections without a limit (pgjones/hypercorn#308).
    "hypercorn-asyncio": Server(_HYPERCORN, sends_drain=False, waits_for_streams=sys.version_info >= (3, 12, 1)),
    "granian": Server(
        (
            *("-m", "granian", "{app}", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"),
            *("--workers-kill-timeout", "3"),
        ),
        sends_drain=False,
    ),
}


def reloading_uvicorn(protocol: str, folder: Path) -> Server:
    """Return uvicorn with `--reload`, for a module in `folder`."""
    return Server((*_UVICORN, "--http", protocol, "--reload", "--reload-dir", str(folder), "--app-dir", str(folder)))


class ServedHub(HubProcess):
    """An app of `ssehub.asgi` under another server, on free ports."""

    def __init__(
        self,
        server: Server,
        app: str = "ssehub.asgi:client_app",
        *,
        python: str = sys.executable,
        cwd: Path | None = None,
        **env: str,
    ) -> None:
        port, control_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.control_address = f"127.0.0.1:{control_port}"
        self.control_url = f"http://{self.control_address}"
        command = [python, *(part.format(app=app, port=port) for part in server.command)]
        settings = {"SSEHUB_SECRET": SECRET, "SSEHUB_CONTROL_BIND": self.control_address, **env}
        super().__init__(command, {**os.environ, **settings}, cwd)

    def wait_until_ready(self) -> None:
        wait_until(lambda: (connects(self.port) and connects(self.control_port)) or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.log
