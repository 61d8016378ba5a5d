"""The two HTTP servers of a process: uvicorn, one app on one socket each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..proxies import TrustedProxies
from ..settings import RequestLimits
from ..web.fast_path import NO_FAST_PATHS, FastPath
from .certificates import ServerCertificate
from .protocol import HttpProtocol
from .proxy_protocol import behind_proxies
from .refusals import ConnectionRefusals
from .tls import over_tls

MIN_CONTROL_SECONDS = 1.0
"""Time that requests to the control app have to finish, even if the drain window is over."""
_CONTROL_KEEP_ALIVE_SECONDS = 60
_SHUTDOWN_LOOK_SECONDS = 0.05
MAX_REFUSALS_PER_SECOND = 200
"""How many requests to the client app are refused a second, so that refusing them does not delay events."""


class HttpServer:
    """A server that has been started, and the task that runs it."""

    def __init__(self, server: _Server, task: asyncio.Task[None]) -> None:
        self.task = task
        self._server = server

    async def stop(self, deadline: float) -> None:
        """Stop accepting, let requests finish, and abort what is still connected at `deadline`, in loop time."""
        self._server.exit()
        loop = asyncio.get_running_loop()
        await asyncio.wait([self.task], timeout=max(0.0, deadline - loop.time()))
        self._server.abort_connections()
        await asyncio.wait([self.task])

    def abort(self) -> None:
        """Stop at once: abort every connection and cancel the task."""
        self._server.force_exit = True
        self._server.abort_connections()
        self.task.cancel()


def serve_client_app(
    app: ASGIApp,
    sock: socket.socket,
    *,
    limits: RequestLimits,
    max_connections: int,
    refusals: ConnectionRefusals,
    fast_paths: Mapping[bytes, FastPath] = NO_FAST_PATHS,
    proxies: TrustedProxies | None = None,
    certificate: ServerCertificate | None = None,
) -> HttpServer:
    """Start to serve the client app in the running event loop, over TLS if there is a certificate.

    `proxies` begin connections with a PROXY preamble, before TLS.
    """
    most = MAX_REFUSALS_PER_SECOND
    protocol = _protocol(limits, max_connections, refusals, fast_paths=fast_paths, max_refusals_per_second=most)
    http = protocol if certificate is None else over_tls(protocol, certificate)
    return _start(app, sock, http if proxies is None else behind_proxies(http, proxies, refusals))


def serve_control_app(
    app: ASGIApp,
    sock: socket.socket,
    *,
    limits: RequestLimits,
    max_connections: int,
    refusals: ConnectionRefusals,
    fast_paths: Mapping[bytes, FastPath] = NO_FAST_PATHS,
    certificate: ServerCertificate | None = None,
) -> HttpServer:
    """Start to serve the control app in the running event loop, over TLS if there is a certificate.

    Publishers keep their connections for a minute.
    """
    protocol = _protocol(limits, max_connections, refusals, fast_paths=fast_paths)
    http = protocol if certificate is None else over_tls(protocol, certificate)
    return _start(app, sock, http, timeout_keep_alive=_CONTROL_KEEP_ALIVE_SECONDS)


def _protocol(
    limits: RequestLimits, max_connections: int, refusals: ConnectionRefusals, **options: Any
) -> Callable[..., HttpProtocol]:
    given: dict[str, Any] = {"limits": limits, "max_connections": max_connections, "refusals": refusals}
    # An access log would contain the queries, and so tokens.
    return partial(HttpProtocol, logs_access=False, **given, **options)


def _start(
    app: ASGIApp,
    sock: socket.socket,
    http: Any,  # uvicorn calls it like a class
    **options: Any,
) -> HttpServer:
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,  # this, the level and the access log would be set for every uvicorn server of the process
        proxy_headers=False,
        server_header=False,
        **options,
    )
    server = _Server(config)
    return HttpServer(server, asyncio.create_task(server.serve(sockets=[sock])))


class _Server(uvicorn.Server):
    """Serves as uvicorn's, but handles no signals and logs nothing: under somebody else's uvicorn, a second "Started
    server process" would seem to be that of the host, whose loggers are not ours to change.

    It sleeps until `exit` is called, where uvicorn's looks ten times a second if it should exit, and renews the date:
    see `DefaultHeaders`. The settings `limit_max_requests` and `callback_notify`, which that loop is also for, are not
    used here.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exiting = asyncio.Event()

    def exit(self) -> None:
        """Stop to serve: `serve` goes on with the shutdown at once."""
        self.should_exit = True
        self._exiting.set()

    async def main_loop(self) -> None:
        await self._exiting.wait()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets)
        await self.main_loop()
        await self.shutdown(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        # uvicorn tells nobody when the last of them has gone.
        while (self.server_state.connections or self.server_state.tasks) and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(_SHUTDOWN_LOOK_SECONDS)
        for server in self.servers:
            await server.wait_closed()

    def abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport  # its type differs between uvicorn's protocols
            transport.abort()
