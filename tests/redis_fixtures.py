"""Fixtures that start a Redis or Valkey for a test or a module, which names this file in `pytest_plugins`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_worlds import StartServer
from redis_servers import DURABLE, KINDS, SOAK, RedisServer


def running(kind: str, folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(kind, folder, *options)
    yield server
    server.kill()


@pytest.fixture(params=KINDS)
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of each kind that keeps its data over a restart."""
    yield from running(request.param, tmp_path, *DURABLE)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisServer]:
    """A Valkey that keeps its data, for behaviour that does not depend on the kind of server."""
    yield from running("valkey", tmp_path, *DURABLE)


@pytest.fixture(params=KINDS if SOAK else KINDS[:1])
def soak_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps its data, for slow tests: of each kind only at full scale."""
    yield from running(request.param, tmp_path, *DURABLE)


@pytest.fixture(params=KINDS)
def volatile_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of each kind that loses its data in a restart."""
    yield from running(request.param, tmp_path)


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """One server of each kind for the module, started when it is first needed."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(kind: str) -> RedisServer:
            server = RedisServer(kind, tmp_path_factory.mktemp(kind))
            stack.callback(server.kill)
            return server

        yield start
