"""A hub and its two ports in the event loop of a test, put together as `ssehub serve` does, and requests on sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from conftest import ORDINARY_PATHS, SECRET
from ssehub import Hub, Tokens
from ssehub.config import load_config
from ssehub.proxies import TrustedProxies
from ssehub.server.apps import create_apps, max_client_connections, max_control_connections
from ssehub.server.http_server import HttpServer, serve_client_app, serve_control_app
from ssehub.server.refusals import ConnectionRefusals
from ssehub.settings import RequestLimits
from ssehub.web.direct import DirectApp
from ssehub.web.fast_path import NO_FAST_PATHS

TOKENS = Tokens(SECRET)


class Answer:
    """What was received on one connection, up to its end."""

    def __init__(self, received: bytes) -> None:
        self.text = received.decode(errors="replace")

    @property
    def status(self) -> str:
        """The status as docs/refusals.md writes it."""
        if not self.text:
            return "none"
        return "`stream-busy`" if "event: stream-busy\n" in self.text else self.text.split(" ", 2)[1]


class BothPorts:
    """A running hub, and requests to its ports."""

    def __init__(self, hub: Hub, client: socket.socket, control: socket.socket) -> None:
        self.hub = hub
        self.client: int = client.getsockname()[1]
        self.control: int = control.getsockname()[1]
        self._writers: list[asyncio.StreamWriter] = []
        self.servers: list[HttpServer] = []

    async def connect(
        self, port: int, data: bytes = b"", *, host: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection, on which `data` has been sent."""
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        self._writers.append(writer)
        writer.write(data)
        return reader, writer

    async def stop(self, seconds: float = 0.0) -> None:
        """Stop both servers, which may take so long to answer."""
        deadline = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*[server.stop(deadline) for server in self.servers])

    def disconnect(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()

    async def send(self, port: int, data: bytes, **options: Any) -> Answer:
        """Send `data`; return everything that is received until the other side ends the connection."""
        reader, _ = await self.connect(port, data, **options)
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while part := await reader.read(65_536):
                    received += part
        return Answer(received)

    async def request(
        self,
        path: str,
        *headers: str,
        method: str = "GET",
        form: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> Answer:
        """Make one request, with a form to the control port, on a connection of its own."""
        if form is not None:
            method, port = "POST" if method == "GET" else method, port or self.control
            headers = (*headers, "Content-Type: application/x-www-form-urlencoded")
        body = urlencode(form or {}).encode()
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", f"Content-Length: {len(body)}", *headers]
        if not any(header.startswith("Host:") for header in headers):
            lines.append("Host: localhost")
        return await self.send(port or self.client, "\r\n".join([*lines, "", ""]).encode() + body, host=host)

    async def listen(
        self, query: str = "", *headers: str, **claims: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection of a stream that has begun."""
        head = "\r\n".join([f"GET {events(query, **claims)} HTTP/1.1", "Host: localhost", *headers, "", ""])
        reader, writer = await self.connect(self.client, head.encode())
        async with asyncio.timeout(10):
            await reader.readuntil(b"event: stream-hello\n")
        return reader, writer


def events(query: str = "", user_id: str = "alex", channel: str = "chat", **claims: Any) -> str:
    """Return the path of a stream, with a token."""
    token = TOKENS.issue(user_id, [channel], expires_at=4_000_000_000, **claims)
    return f"/events/?token={token}&end=clean{query}"


@asynccontextmanager
async def both_ports(
    *,
    client: Callable[[Hub], ASGIApp] | None = None,
    max_port_connections: int | None = None,
    control_host: str = "127.0.0.1",
    uses_fast_paths: bool = not ORDINARY_PATHS,
    **settings: object,
) -> AsyncIterator[BothPorts]:
    """Serve a hub with these settings. `client` makes another client app, whose port has `max_port_connections`."""
    config = load_config({"secret": SECRET, **settings})
    apps = create_apps(config, drains_on_exit=False)
    hub, limits, certificates = apps.hub, config.group(RequestLimits), apps.credentials.certificates
    async with hub:
        with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server((control_host, 0)) as private:
            ports = BothPorts(hub, public, private)
            public.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
            ports.servers = [
                serve_client_app(
                    apps.client if client is None else client(hub),
                    public,
                    limits=limits,
                    max_connections=max_port_connections or max_client_connections(config),
                    refusals=ConnectionRefusals("client", hub.count_refused_connection),
                    fast_paths=apps.client.fast_paths if client is None and uses_fast_paths else NO_FAST_PATHS,
                    proxies=TrustedProxies.parse(config.trusted_proxies) if config.proxy_protocol else None,
                    certificate=certificates.client,
                ),
                serve_control_app(
                    apps.control,
                    private,
                    limits=limits,
                    max_connections=max_control_connections(config),
                    refusals=ConnectionRefusals("control", hub.count_refused_connection),
                    fast_paths=apps.control.fast_paths if uses_fast_paths else NO_FAST_PATHS,
                    certificate=certificates.control,
                ),
            ]
            try:
                yield ports
            finally:
                ports.disconnect()
                await ports.stop()


def own_address() -> str | None:
    """Return an address of this machine that others can reach, None if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return None
        address: str = sock.getsockname()[0]
        return None if re.match(r"127\.", address) else address


@contextmanager
def app_calls() -> Iterator[list[Scope]]:
    """Collect the requests that reach an app of either port. Each is answered by way of its router."""
    calls = []

    async def __call__(self: DirectApp, scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope)
        await Starlette.__call__(self, scope, receive, send)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectApp, "__call__", __call__)
        yield calls
