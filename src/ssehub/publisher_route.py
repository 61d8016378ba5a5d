"""The route to a hub: tries the addresses of its nodes in turn, for a limited time."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .errors import Unavailable
from .publisher_http import Connection, Node
from .trust import tls_problem

DEFAULT_RETRIES = 10
"""Further attempts of a call. Together they take at least 10 s, as long as a hub may take to restart."""


class Patience(NamedTuple):
    """In seconds. Each wait before another attempt is twice as long as the one before, and shortened at random."""

    answer_seconds: float = 10.0
    """How long connecting may take, and an answer after the end of its request."""
    first_wait_seconds: float = 0.1
    longest_wait_seconds: float = 2.0
    give_up_seconds: float = 60.0
    """How long after the first failure Unavailable is raised, if nothing has succeeded since."""
    retries: int | None = None
    """How many further attempts there are, if nothing succeeds; None for as many as the time allows."""


class TryAgain(Exception):
    """A hub has answered that it can't serve the request at present."""


class _Address(NamedTuple):
    """`host` is the path of the socket if `family` is AF_UNIX."""

    node: Node
    host: str
    family: int


class Route:
    """Leads to one of `nodes`: always the same one, until it fails. Each address of a node's name counts as one."""

    def __init__(self, nodes: Sequence[Node], patience: Patience) -> None:
        self._nodes = nodes
        self._patience = patience
        self._turn = 0
        """How many attempts have failed: says which address is next."""
        self._count = len(nodes)
        """How many addresses there were at last."""
        self._failing_since: float | None = None
        self._failures = 0
        """Attempts in a row that have failed."""
        self._wait_seconds = patience.first_wait_seconds

    async def connect(self, on_change: Callable[[], None] = lambda: None) -> Connection:
        """Connect, with TLS if the node has it. Raises OSError, also for a problem with TLS, or if it takes long."""
        address = await self._address()
        node = address.node
        try:
            async with asyncio.timeout(self._patience.answer_seconds):
                return await _connection(address, lambda: Connection(node, on_change))
        except TimeoutError:
            raise TimeoutError(f"no connection within {self._patience.answer_seconds:g} s") from None

    async def _address(self) -> _Address:
        """Resolve the names anew, since they may lead elsewhere by now."""
        loop = asyncio.get_running_loop()
        found: list[_Address] = []
        failures: list[OSError] = []
        for node in self._nodes:
            if node.socket_path is not None:
                found.append(_Address(node, node.socket_path, socket.AF_UNIX))
                continue
            try:
                places = await loop.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
            except OSError as exc:
                failures.append(exc)
                continue
            found += [_Address(node, str(place[0]), family) for family, _, _, _, place in places]
        if not found:
            raise failures[0] if failures else OSError("the host name has no address")
        self._count = len(found)
        return found[self._turn % len(found)]

    def succeeded(self) -> None:
        """A request has been answered."""
        self._failing_since = None
        self._failures = 0
        self._wait_seconds = self._patience.first_wait_seconds

    async def failed(self, problem: OSError | TryAgain) -> None:
        """Wait until another attempt is due, at the next address. Raises Unavailable if there should be none."""
        self.note_failure(problem)
        await self.wait()

    def note_failure(self, problem: OSError | TryAgain) -> None:
        """Raise Unavailable if there should be no other attempt; the next one is due after `wait`."""
        url = self._nodes[0].url
        if reason := tls_problem(problem):
            raise Unavailable(f"{url} can't be reached ({reason})") from problem
        self._failures += 1
        if self._patience.retries is not None and self._failures > self._patience.retries:
            raise Unavailable(f"{url} can't be used at present ({problem or type(problem).__name__})") from problem
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= self._patience.give_up_seconds:
            seconds = self._patience.give_up_seconds
            raise Unavailable(f"{url} could not be used for {seconds:g} s ({problem or type(problem).__name__})")
        self._turn += 1

    async def wait(self) -> None:
        """Wait if every address has been tried since the last wait."""
        if self._turn % self._count == 0:
            await asyncio.sleep(self._wait_seconds * random.uniform(0.5, 1.0))
            self._wait_seconds = min(2 * self._wait_seconds, self._patience.longest_wait_seconds)


async def _connection(address: _Address, create: Callable[[], Connection]) -> Connection:
    """Raises OSError."""
    loop, node = asyncio.get_running_loop(), address.node
    if address.family == socket.AF_UNIX:
        return (await loop.create_unix_connection(create, address.host))[1]
    transport_and_connection = await loop.create_connection(
        create,
        address.host,
        node.port,
        family=address.family,
        ssl=node.tls,
        server_hostname=node.host if node.tls else None,
    )
    return transport_and_connection[1]
