"""Several processes that serve the same two addresses: started, watched, replaced and stopped together.

Each worker is a node like any other, with its own hub and its own connections to Redis. The kernel distributes the
connections between the workers (`SO_REUSEPORT`); on a Unix socket all of them accept from one queue. The parent serves
nothing, it only looks after the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

from ..address import Address
from ..brokers import without_password
from ..config import Config
from ..errors import ConfigError, SSEHubError
from ..node import Node
from ..settings import TcpOptions
from ..watched import LastGood
from ..web.board import Answerer
from .announce import SocketName, announce
from .apps import create_apps, node_of
from .board import WorkerBoard
from .credentials import Credentials, create_credentials, random_secret
from .log_settings import LogSettings, read_again
from .logs import logging_to_stderr
from .process import control_address, run
from .signals import Signals
from .sockets import CLIENT_MODE, CONTROL_MODE, listen

logger = logging.getLogger("ssehub.workers")

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0
STABLE_SECONDS = 60.0
"""After a life as long as this, the pause before the next worker starts at `FIRST_PAUSE_SECONDS` again."""
KILL_SECONDS = 5.0
"""Time after the drain window in which a worker has to exit before it is killed."""
STARTUP_FAILURE = 3
START_SECONDS = 60.0
"""A worker that has not reported its start by then hangs, and is killed. Reading a long log takes seconds."""
CHECK_SECONDS = 1.0
MAX_UNANSWERED = 10
"""A worker that has left this many checks in a row unanswered hangs, and is killed."""
CHECK = b"check"


class Endpoint(NamedTuple):
    """An address that all workers serve: each on a socket of its own or, if it is a Unix socket, on the parent's."""

    address: Address
    mode: int
    sock: socket.socket | None

    @property
    def name(self) -> SocketName:
        """The address in the form of `socket.getsockname`."""
        if self.address.path is not None:
            return self.address.path
        return self.address.host or "0.0.0.0", self.address.port


def serve_by_workers(config: Config) -> int:
    """Run `config.workers` hubs until a signal stops them; return the exit code.

    Raises ConfigError, AddressError, or the error with which the first worker failed to start.
    """
    check_shared_log(config)
    control_bind = control_address(config)
    with ExitStack() as stack:
        log = stack.enter_context(logging_to_stderr(config.log_level, config.log_format))
        log_settings = LogSettings(config, log)
        if not config.has_secret and config.jwks is None:
            config = config.with_secret(random_secret())
        credentials = create_credentials(config)
        client = stack.enter_context(_endpoint(config, config.bind, CLIENT_MODE))
        control = stack.enter_context(_endpoint(config, control_bind, CONTROL_MODE))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-")))
        return asyncio.run(_Group(config, credentials, log_settings, (client, control), folder).run())


def check_shared_log(config: Config) -> None:
    """Raise ConfigError if workers can't share the broker's log."""
    if config.has_log_of_one_process:
        raise ConfigError(
            f"{config.workers} workers need a log that they can share, such as --broker redis://127.0.0.1:6379: "
            f"{without_password(config.broker)} lives in one process"
        )


@contextmanager
def _endpoint(config: Config, address: Address, mode: int) -> Iterator[Endpoint]:
    """Make the endpoint at `address`, after making sure that no other process listens there.

    Another group of the same user could otherwise share the port unnoticed.
    """
    with listen(address, options=config.group(TcpOptions), mode=mode) as sock:
        if address.path is not None:
            yield Endpoint(address, mode, sock)
            return
        port = sock.getsockname()[1]
    yield Endpoint(dataclasses.replace(address, port=port), mode, None)


class _Group:
    """The parent's side: starts the first worker, then the others, and replaces workers that die, until a signal."""

    def __init__(
        self,
        config: Config,
        credentials: Credentials,
        log_settings: LogSettings,
        endpoints: tuple[Endpoint, Endpoint],
        folder: Path,
    ) -> None:
        """`credentials` verify nothing here, but keep what workers begin with: see `_run_one`."""
        self._config = config
        self._credentials = credentials
        self._log_settings = log_settings
        self._endpoints = endpoints
        self._folder = folder
        self._node = node_of(config)
        """What other nodes take the group for."""
        self._processes: dict[int, SpawnProcess] = {}
        self._serving: set[SpawnProcess] = set()
        """Those that have started: before that, SIGHUP would end a process."""
        self._reloads: set[asyncio.Task[None]] = set()
        self._exit_codes: list[int] = []
        self._stop = asyncio.Event()
        self._first_has_started = asyncio.Event()
        self._failure: Exception | None = None
        """The error with which the first worker failed to start."""

    async def run(self) -> int:
        signals = Signals(
            "stopping the workers", stop=self._stop.set, stop_at_once=self._terminate, reload=self._reload
        )
        watching = [asyncio.create_task(source.run()) for source in (self._credentials, self._log_settings)]
        tasks = [asyncio.create_task(self._keep_running(number)) for number in range(self._config.workers)]
        await self._stop.wait()
        self._first_has_started.set()  # releases the tasks that still wait for it
        self._terminate()
        _, late = await asyncio.wait(tasks, timeout=self._config.drain_seconds + KILL_SECONDS)
        if late:
            logger.warning("%d workers did not exit in time and are killed", len(late))
            for process in self._processes.values():
                process.kill()
        await asyncio.gather(*tasks)
        for task in (*watching, *self._reloads):
            task.cancel()
        await asyncio.gather(*watching, *self._reloads, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        logger.info("stopped")
        return signals.exit_code or max(map(abs, self._exit_codes), default=0)

    def _reload(self) -> None:
        task = asyncio.create_task(read_again(self._credentials, self._log_settings))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        for process in self._serving:
            if process.pid is not None and process.is_alive():  # the id of a dead one may be that of another process
                os.kill(process.pid, signal.SIGHUP)

    def _terminate(self) -> None:
        for process in self._processes.values():
            process.terminate()

    async def _keep_running(self, number: int) -> None:
        """Run worker `number`, and replace it when it exits, until the group stops. Worker 0 starts first."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        if number:
            await self._first_has_started.wait()
        while not self._stop.is_set():
            began = loop.time()
            code = await self._run_one(number)
            if self._stop.is_set():
                self._exit_codes.append(code)
                return
            pause = FIRST_PAUSE_SECONDS if loop.time() - began > STABLE_SECONDS else pause
            logger.warning("worker %d exited with code %d: it is restarted in %.1f s", number, code, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)

    async def _run_one(self, number: int) -> int:
        """Run one process to its end; return its exit code.

        It begins with what is in use here of the files, as one may be broken at this moment. Then it watches the files
        by itself.
        """
        ours, theirs = multiprocessing.Pipe()
        last_good = {**self._credentials.last_good, **self._log_settings.last_good}
        arguments = (self._config, last_good, self._node, self._endpoints, number, self._folder, theirs)
        process = multiprocessing.get_context("spawn").Process(target=_work, args=arguments, name=f"worker-{number}")
        with ours:
            with theirs:
                process.start()
            self._processes[number] = process
            await self._see_it_start(number, process, ours)
            checking = asyncio.create_task(_kill_if_it_hangs(number, process, ours))
            await _readable(process.sentinel)
            checking.cancel()
        process.join()
        self._serving.discard(process)
        del self._processes[number]
        return process.exitcode or 0

    async def _see_it_start(self, number: int, process: SpawnProcess, worker: Connection) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await _readable(worker.fileno())
        except TimeoutError:
            logger.error(
                "worker %d, process %d, has not started within %g s: killed", number, process.pid, START_SECONDS
            )
            process.kill()
        else:
            self._receive(number, worker)

    def _receive(self, number: int, worker: Connection) -> None:
        """Receive the one message of a new worker: None if it has started, or the error that prevented it."""
        failure: Exception | None
        try:
            failure = worker.recv()
        except EOFError:
            failure = SSEHubError(f"worker {number} died while it started")
        if failure is None:
            self._serving.add(self._processes[number])
            logger.info("worker %d has started, process %d", number, self._processes[number].pid)
            if not self._first_has_started.is_set():
                self._first_has_started.set()
                client, control = self._endpoints
                announce(self._config, self._credentials.certificates, client.name, control.name)
        elif self._first_has_started.is_set():
            logger.warning("worker %d could not start: %s", number, failure)
        else:
            self._failure = failure
            self._stop.set()


async def _kill_if_it_hangs(number: int, process: SpawnProcess, worker: Connection) -> None:
    if await hangs(worker):
        logger.error("worker %d, process %d, has not answered %d checks: killed", number, process.pid, MAX_UNANSWERED)
        process.kill()


async def hangs(worker: Connection, *, interval_seconds: float = CHECK_SECONDS) -> bool:
    """Return True once `worker` has left `MAX_UNANSWERED` checks in a row unanswered, or False when it has gone.

    Checks are counted, not seconds: if parent and workers are stopped together (Ctrl-Z, a suspended machine), only one
    check is missed. At most one check is on its way, so sending never blocks.
    """
    unanswered = 0
    try:
        while unanswered < MAX_UNANSWERED:
            if not unanswered:
                worker.send_bytes(CHECK)
            await asyncio.sleep(interval_seconds)
            if worker.poll():
                worker.recv_bytes()
                unanswered = 0
            else:
                unanswered += 1
    except (EOFError, OSError):
        return False
    return True


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


def _work(
    config: Config,
    last_good: LastGood,
    node: Node,
    endpoints: tuple[Endpoint, Endpoint],
    number: int,
    folder: Path,
    parent: Connection,
) -> None:
    """Be one worker; runs in a process of its own."""
    os.setsid()  # so that Ctrl-C reaches the parent only, which then signals the workers
    board = WorkerBoard(folder, number, config.workers)
    with ExitStack() as stack:
        log = stack.enter_context(logging_to_stderr(config.log_level, config.log_format, worker=number))
        try:
            log_settings = LogSettings(config, log, last_good)
            apps = create_apps(config, drains_on_exit=False, board=board, last_good=last_good, node=node)
            client, control = (
                one.sock
                or stack.enter_context(
                    listen(one.address, options=config.group(TcpOptions), mode=one.mode, is_shared=True)
                )
                for one in endpoints
            )
            beside = _beside(board, apps.answerer, parent)
            on_ready = partial(parent.send, None)
            code = run(apps, config, (client, control), log_settings, on_ready=on_ready, beside=beside)
        except SSEHubError as exc:
            parent.send(exc)
            code = STARTUP_FAILURE
    sys.exit(code)


@asynccontextmanager
async def _beside(board: WorkerBoard, answerer: Answerer, parent: Connection) -> AsyncIterator[None]:
    """Answer the other workers' questions and the parent's checks, and stop if the parent dies."""
    loop = asyncio.get_running_loop()

    def answer() -> None:
        try:
            parent.send_bytes(parent.recv_bytes())
        except (EOFError, OSError):
            loop.remove_reader(parent.fileno())
            logger.warning("the parent process died")
            os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(parent.fileno(), answer)
    try:
        async with board.serving(answerer):
            yield
    finally:
        loop.remove_reader(parent.fileno())
