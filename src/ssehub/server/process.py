"""One process that serves a hub: how it starts, and in which order it stops.

uvicorn tells an app about the shutdown (lifespan) only after all connections have closed, so an app can't end its
streams from there. This process therefore handles the signals itself. It lets the hub end its streams while the
listener still answers new clients, and only then tells the servers to exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from typing import Any

from ..address import Address
from ..config import Config
from ..errors import ConfigError, HubClosed
from ..hub import Hub
from ..platform import loop_factory
from ..proxies import TrustedProxies
from ..settings import RequestLimits, TcpOptions
from .announce import SocketName, announce
from .apps import Apps, create_apps, max_client_connections, max_control_connections
from .collector import collecting
from .health import HealthChecks
from .http_server import MIN_CONTROL_SECONDS, HttpServer, serve_client_app, serve_control_app
from .log_settings import LogSettings, read_again
from .logs import logging_to_stderr
from .refusals import ConnectionRefusals
from .signals import Signals
from .sockets import CLIENT_MODE, CONTROL_MODE, listen

logger = logging.getLogger("ssehub.server")

Sockets = tuple[socket.socket, socket.socket]
"""The sockets on which the client app and the control app are served."""


def serve(config: Config, *, add_pages: Callable[[Apps, SocketName, SocketName], None] | None = None) -> int:
    """Run the hub until a signal stops it; return the exit code.

    `add_pages` is called with the apps and the names of the client and control sockets, before anything is served.
    Raises ConfigError, AddressError, or BrokerUnavailable if the broker can't be opened.
    """
    control_bind = control_address(config)
    options = config.group(TcpOptions)
    with logging_to_stderr(config.log_level, config.log_format) as log, ExitStack() as stack:
        apps = create_apps(config, drains_on_exit=False)
        log_settings = LogSettings(config, log)
        client = stack.enter_context(listen(config.bind, options=options, mode=CLIENT_MODE))
        control = stack.enter_context(listen(control_bind, options=options, mode=CONTROL_MODE))
        if add_pages is not None:
            add_pages(apps, client.getsockname(), control.getsockname())
        certificates = apps.credentials.certificates
        on_ready = partial(announce, config, certificates, client.getsockname(), control.getsockname())
        return run(apps, config, (client, control), log_settings, on_ready=on_ready)


def control_address(config: Config) -> Address:
    """Return the address of the control app. Raises ConfigError if it is off."""
    if config.control_bind is None:
        raise ConfigError(
            "control_bind is off, so nobody could publish: give it an address "
            "(off is for `uvicorn ssehub.asgi:client_app`)"
        )
    return config.control_bind


def run(
    apps: Apps,
    config: Config,
    sockets: Sockets,
    log_settings: LogSettings,
    *,
    on_ready: Callable[[], None],
    beside: AbstractAsyncContextManager[object] | None = None,
) -> int:
    """Serve `apps` until a signal stops them; return the exit code. Raises BrokerUnavailable.

    `beside` is entered once the hub has started and left before it stops. `on_ready` is called when both servers have
    been started.
    """
    apps.hub.accompany(log_settings)
    reload = partial(_reload, apps, log_settings)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_main(apps, config, sockets, reload, on_ready, beside or contextlib.nullcontext()))


async def _main(
    apps: Apps,
    config: Config,
    sockets: Sockets,
    reload: Callable[[], None],
    on_ready: Callable[[], None],
    beside: AbstractAsyncContextManager[object],
) -> int:
    stop, stop_at_once = asyncio.Event(), asyncio.Event()
    action = f"draining for at most {config.drain_seconds:g} s"
    signals = Signals(action, stop=stop.set, stop_at_once=stop_at_once.set, reload=reload)
    checks = HealthChecks(apps.control, apps.hub)
    async with apps.hub, beside:
        limits = config.group(RequestLimits)
        certificates = apps.credentials.certificates
        client = serve_client_app(
            apps.client,
            sockets[0],
            limits=limits,
            max_connections=max_client_connections(config),
            refusals=ConnectionRefusals("client", apps.hub.count_refused_connection),
            fast_paths=apps.client.fast_paths,
            proxies=TrustedProxies.parse(config.trusted_proxies) if config.proxy_protocol else None,
            certificate=certificates.client,
        )
        control = serve_control_app(
            checks,
            sockets[1],
            limits=limits,
            max_connections=max_control_connections(config),
            refusals=ConnectionRefusals("control", apps.hub.count_refused_connection),
            fast_paths=apps.control.fast_paths,
            certificate=certificates.control,
        )
        with collecting(apps.hub):
            on_ready()
            await _first(stop.wait(), client.task, control.task)
            has_failed = not stop.is_set()
            if has_failed:
                logger.error("a server ended by itself, so the process stops: %s", _reasons(client.task, control.task))
            await _first(_shut_down(apps.hub, checks, client, control, config.drain_seconds), stop_at_once.wait())
        if stop_at_once.is_set():
            client.abort()
            control.abort()
        await asyncio.gather(client.task, control.task, return_exceptions=True)
    logger.info("stopped")
    return signals.exit_code or int(has_failed)


def _reload(apps: Apps, log_settings: LogSettings) -> None:
    reload = read_again(apps.credentials, log_settings)
    try:
        apps.hub.spawn(reload)
    except HubClosed:  # it starts, and has just read everything, or it has stopped
        reload.close()
        logger.info("nothing is read while the hub starts or stops")


async def _shut_down(
    hub: Hub, checks: HealthChecks, client: HttpServer, control: HttpServer, drain_seconds: float
) -> None:
    """End the streams while new clients are still answered, then stop the client server, then the control server."""
    loop = asyncio.get_running_loop()
    end = loop.time() + drain_seconds
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(end):
            await hub.drain(drain_seconds)
            await checks.wait_until_seen()
    await client.stop(end)
    await control.stop(max(end, loop.time() + MIN_CONTROL_SECONDS))


def _reasons(*tasks: asyncio.Task[None]) -> str:
    return ", ".join([repr(task.exception() or "it returned") for task in tasks if task.done()])


async def _first(*awaitables: asyncio.Task[None] | Coroutine[Any, Any, object]) -> None:
    """Wait until the first is done. Of the others, coroutines are cancelled and tasks are left running."""
    given = [awaitable for awaitable in awaitables if isinstance(awaitable, asyncio.Task)]
    made = [asyncio.create_task(awaitable) for awaitable in awaitables if not isinstance(awaitable, asyncio.Task)]
    try:
        await asyncio.wait([*given, *made], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in made:
            task.cancel()
        await asyncio.gather(*made, return_exceptions=True)
