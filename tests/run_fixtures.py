"""Fixtures with the stores of runs of every broker, for the tests of their contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker_worlds import StartServer
from run_worlds import RUN_WORLDS, RunWorld, let_time_pass


@pytest.fixture
def make_run_world(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RunWorld]:
    let_time_pass(monkeypatch, 0.01)
    monkeypatch.setattr("ssehub.brokers.redis.runs.SWEEP_SECONDS", 0.1)
    monkeypatch.setattr("ssehub.brokers.redis.runs.REST_SECONDS", 0.1)
    return lambda name: RUN_WORLDS[name](tmp_path, start_server)


@pytest.fixture(params=RUN_WORLDS)
def world(request: pytest.FixtureRequest, make_run_world: Callable[[str], RunWorld]) -> RunWorld:
    """Any broker."""
    return make_run_world(request.param)


@pytest.fixture(params=[name for name, world in RUN_WORLDS.items() if world.is_durable])
def durable(request: pytest.FixtureRequest, make_run_world: Callable[[str], RunWorld]) -> RunWorld:
    """A broker whose runs outlive it."""
    return make_run_world(request.param)


@pytest.fixture(params=[name for name, world in RUN_WORLDS.items() if world.is_shared])
def shared(request: pytest.FixtureRequest, make_run_world: Callable[[str], RunWorld]) -> RunWorld:
    """A broker of which several may run at a time."""
    return make_run_world(request.param)
