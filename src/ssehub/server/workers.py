"""Several processes that serve the same two addresses: started, watched, replaced and ended together.

Each is a node like any other, with a hub and connections to Redis of its own. The kernel gives each a part of the
connections (`SO_REUSEPORT`); on a Unix socket all take from one queue. The parent only looks after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
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

from ..brokers import without_password
from ..config import Address, Config
from ..errors import ConfigError, SSEHubError
from ..fanout.statistics import Statistics
from ..hub import Hub
from .apps import create_apps, make_secret
from .logs import logging_to_stderr
from .process import (
    CLIENT_MODE,
    CONTROL_MODE,
    announce,
    control_address,
    listening,
    run,
)

logger = logging.getLogger("ssehub.workers")

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0
SOUND_SECONDS = 60.0
"""After such a life a death counts as the first one."""
KILL_SECONDS = 5.0
"""How long after the drain window a worker is waited for."""
ASK_SECONDS = 1.0


class Place(NamedTuple):
    """Where all workers listen: each by a socket of its own, or, on a Unix socket, by the one that the parent made."""

    address: Address
    mode: int
    sock: socket.socket | None


def serve_by_workers(config: Config) -> int:
    """Run `config.workers` hubs until a signal ends them; returns the exit code.

    Raises ConfigError, AddressError, or what keeps the first of them from its start.
    """
    if config.has_log_of_one_process:
        raise ConfigError(
            f"{config.workers} workers need a log that they share, such as --broker redis://127.0.0.1:6379: "
            f"{without_password(config.broker)} lives in one process"
        )
    control_bind = control_address(config)
    with ExitStack() as stack:
        stack.enter_context(logging_to_stderr(config.log_level))
        if config.secret is None:
            config = config.with_secret(make_secret())
        client = stack.enter_context(_place(config, config.bind, CLIENT_MODE))
        control = stack.enter_context(_place(config, control_bind, CONTROL_MODE))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-")))
        return asyncio.run(_Group(config, (client, control), folder).run())


@contextmanager
def _place(config: Config, address: Address, mode: int) -> Iterator[Place]:
    """The place at `address`, if nobody else has it: another group of the same user would share it without a word."""
    with listening(config, address, mode) as sock:
        if address.path is not None:
            yield Place(address, mode, sock)
            return
        port = sock.getsockname()[1]
    yield Place(dataclasses.replace(address, port=port), mode, None)


class _Group:
    """The parent's part: it starts the first worker, then the others, and replaces who dies, until a signal."""

    def __init__(self, config: Config, places: tuple[Place, Place], folder: Path) -> None:
        self._config = config
        self._places = places
        self._folder = folder
        self._processes: dict[int, SpawnProcess] = {}
        self._signals: list[int] = []
        self._stop = asyncio.Event()
        self._begun = asyncio.Event()
        self._failure: Exception | None = None
        self._codes: list[int] = []

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, logger.info, "SIGHUP is ignored: restart to read new settings")
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._config.workers)]
        await self._stop.wait()
        self._begun.set()
        self._terminate()
        _, late = await asyncio.wait(keepers, timeout=self._config.drain_seconds + KILL_SECONDS)
        if late:
            logger.warning("%d workers did not end in time: they are killed", len(late))
            for process in self._processes.values():
                process.kill()
        await asyncio.gather(*keepers)
        if self._failure is not None:
            raise self._failure
        logger.info("ended")
        return 128 + self._signals[-1] if len(self._signals) > 1 else max(map(abs, self._codes), default=0)

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            logger.warning("%s again: ending at once", signal.Signals(number).name)
            self._terminate()
        self._stop.set()

    def _terminate(self) -> None:
        for process in self._processes.values():
            process.terminate()

    async def _keep(self, number: int) -> None:
        """Have worker `number` at work until the group ends: the first from now on, the others once that has begun."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        if number:
            await self._begun.wait()
        while not self._stop.is_set():
            began = loop.time()
            code = await self._run_one(number)
            if self._stop.is_set():
                self._codes.append(code)
                return
            pause = FIRST_PAUSE_SECONDS if loop.time() - began > SOUND_SECONDS else pause
            logger.warning("worker %d has ended with %d: another takes its place in %.1f s", number, code, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)

    async def _run_one(self, number: int) -> int:
        ours, theirs = multiprocessing.Pipe()
        arguments = (self._config, self._places, number, self._folder, theirs)
        process = multiprocessing.get_context("spawn").Process(target=_work, args=arguments, name=f"worker-{number}")
        with ours:
            with theirs:
                process.start()
            self._processes[number] = process
            await _readable(ours.fileno())
            self._hear(number, ours)
            await _readable(process.sentinel)
        process.join()
        del self._processes[number]
        return process.exitcode or 0

    def _hear(self, number: int, worker: Connection) -> None:
        """What a new worker says: that it has begun, or what keeps it from that; nothing if it has died."""
        try:
            failure = worker.recv()
        except EOFError:
            failure = SSEHubError("the first worker has died at its start")
        if failure is None:
            logger.info("worker %d has begun, process %d", number, self._processes[number].pid)
            if not self._begun.is_set():
                self._begun.set()
                announce(self._config, *(_name(place) for place in self._places))
        elif self._begun.is_set():
            logger.warning("worker %d can't begin: %s", number, failure)
        else:
            self._failure = failure
            self._stop.set()


def _name(place: Place) -> str | tuple[str, int]:
    """The place as a socket's name has it."""
    if place.address.path is not None:
        return place.address.path
    return place.address.host or "0.0.0.0", place.address.port


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


def _work(config: Config, places: tuple[Place, Place], number: int, folder: Path, parent: Connection) -> None:
    """One worker's life, in a process of its own."""
    os.setsid()  # Ctrl-C is for the parent, which tells us
    board = Board(folder, number, config.workers)
    with ExitStack() as stack:
        stack.enter_context(logging_to_stderr(config.log_level, f"[worker {number}] "))
        try:
            apps = create_apps(config, drains_on_exit=False, gather=board.gather)
            client, control = (
                place.sock or stack.enter_context(listening(config, place.address, place.mode, is_shared=True))
                for place in places
            )
            beside = _beside(board, apps.hub, parent)
            code = run(apps, config, (client, control), on_ready=partial(parent.send, None), beside=beside)
        except SSEHubError as exc:
            parent.send(exc)
            code = 3
    sys.exit(code)


@asynccontextmanager
async def _beside(board: Board, hub: Hub, parent: Connection) -> AsyncIterator[None]:
    """Inside, the others can read this worker's numbers, and it ends if the parent does."""
    loop = asyncio.get_running_loop()

    def parent_has_gone() -> None:
        loop.remove_reader(parent.fileno())
        logger.warning("the parent has gone")
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(parent.fileno(), parent_has_gone)
    try:
        async with board.shown(hub):
            yield
    finally:
        loop.remove_reader(parent.fileno())


class Board:
    """Where workers read each other's numbers: a Unix socket for each, in a folder that is the group's own."""

    def __init__(self, folder: Path, number: int, workers: int) -> None:
        self._folder = folder
        self._number = number
        self._workers = workers

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.sock"

    @asynccontextmanager
    async def shown(self, hub: Hub) -> AsyncIterator[None]:
        """Inside, this worker tells its numbers to whoever connects."""

        async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(json.dumps(dataclasses.asdict(hub.statistics)).encode())
            writer.close()

        self._path(self._number).unlink(missing_ok=True)  # of the one whose place this took
        async with await asyncio.start_unix_server(tell, self._path(self._number)):
            yield

    async def gather(self, hub: Hub) -> dict[str, Statistics]:
        """The numbers of all workers that answer, and of this one, which is `hub`'s."""
        others = [number for number in range(self._workers) if number != self._number]
        answers = await asyncio.gather(*map(self._ask, others))
        found = {number: answer for number, answer in zip(others, answers, strict=True) if answer is not None}
        found[self._number] = hub.statistics
        return {str(number): found[number] for number in sorted(found)}

    async def _ask(self, number: int) -> Statistics | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    return Statistics(**json.loads(await reader.read()))
                finally:
                    writer.close()
        except (OSError, ValueError):
            return None
