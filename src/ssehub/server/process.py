"""The process: two uvicorn servers in one loop, their sockets, the signals and the end.

uvicorn sends lifespan shutdown only after connections have closed, so that an app can't end its streams from there.
The launcher therefore owns the signals, lets the hub end its streams while the listener still answers, and only then
tells the servers to exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import shlex
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..brokers import without_password
from ..config import Address, Config
from ..errors import AddressError, ConfigError
from ..fanout.sinks import TransportSink
from ..hub import Hub
from ..settings import TcpOptions
from ..web.stream import DROP, EXTENSION
from .apps import (
    Apps,
    create_apps,
    max_connections,
    most_connections,
)
from .logs import logging_to_stderr
from .sockets import hold, listen

logger = logging.getLogger("ssehub.server")

NO_SCOPE: Any = {}
CLIENT_MODE, CONTROL_MODE = 0o666, 0o660
"""Who may connect to a Unix socket: everybody on the machine, and the user and group."""
CONTROL_KEEP_ALIVE_SECONDS = 60
MIN_CONTROL_SECONDS = 1.0


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which lets an app open a stream on its transport: `scope["extensions"]["ssehub.transport"]`.

    While a stream is open, whatever the client sends aborts the connection: a second, pipelined request would
    otherwise be queued behind the stream for ever, and hide that the client has gone.
    """

    __slots__ = ("running", "stream")  # in the instance's dict they would cost 1.4 KB

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stream: TransportSink | None = None
        self.running: RequestResponseCycle | None = None
        """The request that is being answered: `cycle` is the newest, which may be one that is queued behind it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"connection": self}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: Any = self.cycle
        if cycle is not None and cycle.transport is self.transport:
            cycle.transport = _Output(self.transport, cycle, self.loop)
        if not self.pipeline:
            self.running = self.cycle

    def open_stream(self) -> TransportSink | None:
        if self.running is None or self.transport.is_closing():
            return None
        if self.pipeline or self.flow.write_paused:
            # Whoever asks for more, or leaves earlier answers unread, listens to no stream.
            self.running.disconnected = True
            self.transport.abort()
            return None
        is_chunked = self.running.keep_alive
        if not is_chunked:
            # uvicorn would answer an HTTP/1.0 client in chunks, too.
            self.running.chunked_encoding = False
        self.stream = TransportSink(self.transport, is_chunked=is_chunked)
        return self.stream

    @property
    def has_started(self) -> bool:
        return self.running is not None and self.running.response_started

    def hand_over(self) -> bytes:
        assert self.running is not None
        # To uvicorn an app that returns before its response is complete is a mistake, unless the client has gone.
        self.running.disconnected = True
        self.loop.call_soon(self._forget)
        head = self._output.take_head()
        self.running.transport = self.transport
        return head

    @property
    def _output(self) -> _Output:
        """What the request that is being answered writes to."""
        assert self.running is not None
        return cast(_Output, self.running.transport)

    def _forget(self) -> None:
        """Keep nothing of the request while its stream lasts."""
        if self.running is not None:
            self.running.scope = self.scope = NO_SCOPE
            self.headers = []
            self.url = b""

    def close_stream(self) -> None:
        self.stream = None
        if self.running is not None:
            self.running.chunked_encoding = None

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.transport.abort()
        else:
            super().data_received(data)

    def _unsupported_upgrade_warning(self) -> None:
        self.logger.debug("a client would upgrade its connection: it is answered without that")

    def on_response_complete(self) -> None:
        self.stream = None
        if self.running is not None:
            self._output.flush()
        self.running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.stream is not None:
            self.stream.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stream is not None:
            self.stream.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        stream, self.stream = self.stream, None
        running, self.running = self.running, None
        super().connection_lost(exc)
        if running is not None:
            # uvicorn tells this to the newest request alone.
            running.disconnected = True
            running.message_event.set()
        if stream is not None:
            stream.connection_lost()


class _Output:
    """What one response is written to: its head waits for what follows, as each write is a system call and a packet.

    It does not wait for what an app does not write at once.
    """

    __slots__ = ("_cycle", "_head", "_loop", "_transport")

    def __init__(
        self, transport: asyncio.Transport, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport = transport
        self._cycle = cycle
        self._loop = loop
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None and self._cycle.response_started:
            self._head = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(self.take_head() + data)

    def take_head(self) -> bytes:
        """The head, for who writes it now."""
        head = self._head
        if not head:
            return b""
        self._head = b""
        return head

    def flush(self) -> None:
        if head := self.take_head():
            self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def capped(max_connections: int) -> type[HttpProtocol]:
    """The protocol of a server that has at most so many connections: one more is dropped before it can ask anything.

    uvicorn's own limit acts when a request is complete, and its 503 stops an EventSource for good.
    """

    class CappedProtocol(HttpProtocol):
        __slots__ = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()

    return CappedProtocol


def offer_drop(scope: Scope, send: Send) -> None:
    """Offer the app a way to drop the connection under uvicorn, whose `send` belongs to what holds the transport.

    A client that reads nothing would else keep uvicorn waiting for as long as it likes, also at its end.
    """
    drop = getattr(getattr(getattr(send, "__self__", None), "transport", None), "abort", None)
    if drop is not None:
        scope.setdefault("extensions", {})[DROP] = drop


def serve(config: Config) -> int:
    """Run the hub until a signal ends it; returns the exit code. Raises ConfigError or AddressError."""
    control_bind = control_address(config)
    with logging_to_stderr(config.log_level), contextlib.ExitStack() as stack:
        apps = create_apps(config, drains_on_exit=False)
        client = stack.enter_context(listening(config, config.bind, CLIENT_MODE))
        control = stack.enter_context(listening(config, control_bind, CONTROL_MODE))
        on_ready = partial(announce, config, client.getsockname(), control.getsockname())
        return run(apps, config, (client, control), on_ready=on_ready)


def control_address(config: Config) -> Address:
    """Where the control app listens; raises ConfigError if nowhere."""
    if config.control_bind is None:
        raise ConfigError("control_bind is off: then nobody can publish; that is for `uvicorn ssehub.asgi:client_app`")
    return config.control_bind


Sockets = tuple[socket.socket, socket.socket]
"""Where browsers and publishers are listened for."""


def run(
    apps: Apps,
    config: Config,
    sockets: Sockets,
    *,
    on_ready: Callable[[], None],
    beside: AbstractAsyncContextManager[object] | None = None,
) -> int:
    """Serve `apps` until a signal ends it; returns the exit code. Raises BrokerUnavailable.

    `beside` is entered when the hub runs, and left before it ends; `on_ready` is called when the servers run.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Process(apps, config, sockets).run(on_ready, beside or contextlib.nullcontext()))


@contextmanager
def listening(config: Config, address: Address, mode: int, *, is_shared: bool = False) -> Iterator[socket.socket]:
    """A socket that listens on `address`, with a Unix socket's `mode`; `is_shared` leaves the port to others, too.

    Raises AddressError.
    """
    sock = listen(
        address,
        options=config.group(TcpOptions),
        mode=mode,
        is_shared=is_shared,
    )
    try:
        yield sock
    finally:
        sock.close()
        if address.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(address.path)


def announce(config: Config, client_name: Any, control_name: Any) -> None:
    """Say where to listen and publish, by the names of the sockets, and what to try first."""
    client, control = _url(client_name), _url(control_name)
    streams = config.workers * max_connections(config)
    logger.info("listening for browsers on %s/events/", client)
    logger.info("listening for publishers on %s/", control)
    logger.info("broker %s, at most %d streams", without_password(config.broker), streams)
    logger.info("try: curl %s-d 'userId=alex&channel=chat' %s/token/", *_curl(config, control_name))


def _curl(config: Config, name: Any) -> tuple[str, str]:
    """What curl needs to call the control app on a socket of this name: options, and the URL."""
    key = '-H "Authorization: Bearer $KEY" ' if config.control_key is not None else ""
    if isinstance(name, str):
        return f"{key}--unix-socket {shlex.quote(name)} ", "http://localhost"
    return key, _url(name)


@asynccontextmanager
async def at_work(
    hub: Hub, config: Config, *, serves: Starlette | None = None, holds: bool = False
) -> AsyncIterator[None]:
    """Inside, `hub` runs, for apps under somebody else's server, and the control app that it `serves` on its address.

    Or that address is only held, so that a second process of the deployment is refused, where it would be a hub of its
    own. Raises AddressError, or ConfigError where there is no address to hold.
    """
    async with contextlib.AsyncExitStack() as stack:
        if not logging.getLogger("ssehub").hasHandlers():
            stack.enter_context(logging_to_stderr(config.log_level))
        if config.control_bind is not None and serves is not None:
            with _saying_why(config):
                sock = stack.enter_context(listening(config, config.control_bind, CONTROL_MODE))
            await stack.enter_async_context(_serving(serves, sock))
            logger.info("listening for publishers on %s/", _url(sock.getsockname()))
        elif holds and config.has_log_of_one_process:
            if config.control_bind is None or (config.control_bind.path is None and not config.control_bind.port):
                raise ConfigError(
                    f"control_bind has to be an address with a port: holding it refuses a second process, "
                    f"which with {config.broker} would be a hub of its own"
                )
            with _saying_why(config):
                stack.enter_context(hold(config.control_bind))
        await stack.enter_async_context(hub)
        yield


@contextmanager
def _saying_why(config: Config) -> Iterator[None]:
    """Who finds the address taken may be another worker of the same server."""
    try:
        yield
    except AddressError as exc:
        is_taken = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
        if not (is_taken and config.has_log_of_one_process):
            raise
        raise AddressError(f"{exc}; with {config.broker} a hub is one process, so start it without --workers") from exc


@asynccontextmanager
async def _serving(app: Starlette, sock: socket.socket) -> AsyncIterator[None]:
    server = _Server(_uvicorn_config(app, timeout_keep_alive=CONTROL_KEEP_ALIVE_SECONDS))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        await _exit_by(server, task, asyncio.get_running_loop().time() + MIN_CONTROL_SECONDS)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Server(uvicorn.Server):
    """A server whose signals are somebody else's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport
            transport.abort()


class _HealthChecks:
    """The control app, and whether those who check its health know already that it drains.

    A load balancer sends work here until its next check. If the ports closed before that, a publisher's request could
    meet a connection that is being closed, and whether it was stored would be anybody's guess.
    """

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self._app = app
        self._hub = hub
        self._asked_at: deque[float] = deque(maxlen=2)
        self._have_been_told = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/readyz":
            self._asked_at.append(asyncio.get_running_loop().time())
            if self._hub.is_draining:
                self._have_been_told.set()

    async def told(self) -> None:
        """Returns when the next check has been answered, or does not come; at once where nobody checks."""
        if len(self._asked_at) == 2:
            before, last = self._asked_at
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(last + 2 * (last - before)):
                    await self._have_been_told.wait()


class _Process:
    """The two servers and the order in which they begin and end."""

    def __init__(self, apps: Apps, config: Config, sockets: Sockets) -> None:
        self._hub = apps.hub
        self._config = config
        self._client = _Server(_uvicorn_config(apps.client, http=capped(most_connections(config))))
        self._checks = _HealthChecks(apps.control, apps.hub)
        self._control = _Server(_uvicorn_config(self._checks, timeout_keep_alive=CONTROL_KEEP_ALIVE_SECONDS))
        self._sockets = sockets
        self._signals: list[int] = []
        self._stop = asyncio.Event()
        self._end_at_once = asyncio.Event()

    async def run(self, on_ready: Callable[[], None], beside: AbstractAsyncContextManager[object]) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, logger.info, "SIGHUP is ignored: restart to read new settings")
        async with self._hub, beside:
            servers = [
                asyncio.create_task(server.serve(sockets=[sock]))
                for server, sock in zip((self._client, self._control), self._sockets, strict=True)
            ]
            _tune_garbage_collector()
            on_ready()
            await _first(self._stop.wait(), *servers)
            has_failed = not self._stop.is_set()
            if has_failed:
                logger.error("a server has ended by itself, so all end: %s", _why(servers))
            await _first(self._shut_down(servers), self._end_at_once.wait())
            if self._end_at_once.is_set():
                self._client.force_exit = self._control.force_exit = True
                self._client.abort_connections()
                self._control.abort_connections()
                for server in servers:
                    server.cancel()
            await asyncio.gather(*servers, return_exceptions=True)
        logger.info("ended")
        return 128 + self._signals[-1] if self._end_at_once.is_set() else int(has_failed)

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) == 1:
            logger.info("%s: draining, for at most %g s", signal.Signals(number).name, self._config.drain_seconds)
            self._stop.set()
        else:
            logger.warning("%s again: ending at once", signal.Signals(number).name)
            self._end_at_once.set()

    async def _shut_down(self, servers: list[asyncio.Task[None]]) -> None:
        """End the streams while newcomers are still answered, then the client listener, then control."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._config.drain_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._hub.drain(self._config.drain_seconds)
                await self._checks.told()
        await _exit_by(self._client, servers[0], end)
        await _exit_by(self._control, servers[1], max(end, loop.time() + MIN_CONTROL_SECONDS))


def _why(servers: list[asyncio.Task[None]]) -> str:
    """What ended those that have ended."""
    return ", ".join([repr(task.exception() or "it returned") for task in servers if task.done()])


async def _exit_by(server: _Server, task: asyncio.Task[None], deadline: float) -> None:
    """Tell `server` to exit, and abort what is still connected at `deadline`."""
    server.should_exit = True
    loop = asyncio.get_running_loop()
    await asyncio.wait([task], timeout=max(0.0, deadline - loop.time()))
    server.abort_connections()
    await asyncio.wait([task])


async def _first(*awaitables: Any) -> None:
    """Wait until the first is done, and cancel those that this made tasks of."""
    given = [awaitable for awaitable in awaitables if isinstance(awaitable, asyncio.Task)]
    made = [asyncio.ensure_future(awaitable) for awaitable in awaitables if not isinstance(awaitable, asyncio.Task)]
    try:
        await asyncio.wait([*given, *made], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in made:
            task.cancel()
        await asyncio.gather(*made, return_exceptions=True)


def _uvicorn_config(app: ASGIApp, *, http: type[HttpProtocol] = HttpProtocol, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # it prints the query, and so tokens
        proxy_headers=False,
        server_header=False,
        http=http,
        **options,
    )


def _url(name: Any) -> str:
    """The URL of what listens on a socket of this name."""
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    if host in ("::", "0.0.0.0"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _tune_garbage_collector() -> None:
    """What stands now is never garbage; and collecting often cost the connect path 30 % at 10,000 subscribers."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
