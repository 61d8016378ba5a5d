"""A hub under another server: the lifespan of its app, and the control app on an address of its own beside it."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import Config
from ..errors import AddressError, ConfigError, SSEHubError
from ..hub import Hub
from ..settings import RequestLimits, TcpOptions
from .announce import announce_control
from .apps import Apps, max_control_connections
from .http_server import MIN_CONTROL_SECONDS, serve_control_app
from .log_settings import LogSettings
from .logs import logging_to_stderr
from .refusals import ConnectionRefusals
from .sockets import CONTROL_MODE, listen, reserve


class EmbeddedApp:
    """`app` with a lifespan. If that fails to start, the server gets one line that says why."""

    def __init__(self, app: ASGIApp, lifespan: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._app = app
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncExitStack() as stack:
            failure = ""
            try:
                await stack.enter_async_context(self._lifespan())
            except SSEHubError as exc:
                failure = f"ssehub: {exc}"
            if failure:  # sent outside `except`: hypercorn raises here, and would also show our exception
                await send({"type": "lifespan.startup.failed", "message": failure})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def check_certificates(config: Config, *names: str) -> None:
    """Raise ConfigError if one of the settings `names` is given, as the other server can't use its certificate."""
    for name in names:
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name} is for the port of `ssehub serve`: give the certificate to the server of this one, such as "
                "`uvicorn --ssl-certfile`, and remove the setting"
            )


@asynccontextmanager
async def running(hub: Hub, config: Config, beside: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
    """Run `hub` inside the context, and enter `beside` before it. Raises BrokerUnavailable, or what `beside` raises.

    Log lines go to stderr unless the server or its environment has configured logging, whose lines and levels stay as
    they are.
    """
    async with AsyncExitStack() as stack:
        if not logging.getLogger("ssehub").hasHandlers():
            log = stack.enter_context(logging_to_stderr(config.log_level, config.log_format, name="ssehub"))
            hub.accompany(LogSettings(config, log))
        await stack.enter_async_context(beside)
        await stack.enter_async_context(hub)
        yield


@asynccontextmanager
async def serving_control(apps: Apps, config: Config) -> AsyncIterator[None]:
    """Serve the control app on `control_bind` inside the context, unless that is off. Raises AddressError."""
    if config.control_bind is None:
        yield
        return
    options = config.group(TcpOptions)
    with _single_process_hint(config), listen(config.control_bind, options=options, mode=CONTROL_MODE) as sock:
        limits = config.group(RequestLimits)
        certificate = apps.credentials.certificates.control
        server = serve_control_app(
            apps.control,
            sock,
            limits=limits,
            max_connections=max_control_connections(config),
            refusals=ConnectionRefusals("control", apps.hub.count_refused_connection),
            fast_paths=apps.control.fast_paths,
            certificate=certificate,
        )
        announce_control(config, certificate, sock.getsockname())
        try:
            yield
        finally:
            await server.stop(asyncio.get_running_loop().time() + MIN_CONTROL_SECONDS)


@asynccontextmanager
async def reserving_control_address(config: Config) -> AsyncIterator[None]:
    """Refuse a second process of this deployment inside the context, if that would be a separate hub.

    The address of the control app is reserved for that, as only one process can have it. Raises AddressError, or
    ConfigError if there is no such address.
    """
    if not config.has_log_of_one_process:
        yield
        return
    address = config.control_bind
    if address is None or (address.path is None and not address.port):
        raise ConfigError(
            f"control_bind {'off' if address is None else address}: asgi:app needs an address with a fixed port, which "
            f"it reserves to refuse a second process: with {config.broker} that would be a separate hub"
        )
    with _single_process_hint(config), reserve(address):
        yield


@contextmanager
def _single_process_hint(config: Config) -> Iterator[None]:
    """Add to the error for an address in use that the other process may be a worker of the same server."""
    try:
        yield
    except AddressError as exc:
        is_in_use = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
        if not (is_in_use and config.has_log_of_one_process):
            raise
        raise AddressError(f"{exc}; with {config.broker} a hub is one process, so start it without --workers") from exc
