"""The house: which room may import which, and that each says truly what it offers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ssehub

SOURCE = Path(ssehub.__file__).parent

# What each room may import of ours; docs/architecture.md draws it.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "event": {"errors"},
    "sinks": set(),
    "brokers.base": {"event"},
    "brokers.appending": {"errors", "event", "brokers.base"},
    "brokers.memory": {"errors", "event", "brokers.appending", "brokers.base"},
    "brokers.sqlite": {"errors", "event", "brokers.appending", "brokers.base"},
    "brokers.redis": {"errors", "event", "brokers.appending", "brokers.base"},
    "brokers": {"errors", "brokers.base", "brokers.memory", "brokers.redis", "brokers.sqlite"},
    "rounds": {"event", "sinks"},
    "history": {"event", "rounds"},
    "subscribers": {"event", "sinks", "rounds"},
    "clock": {"event", "sinks", "subscribers"},
    "running": {"brokers.base"},
    "subscription": {"errors", "event", "sinks", "subscribers"},
    "hub": {
        "brokers.base",
        "brokers.memory",
        "clock",
        "errors",
        "event",
        "history",
        "rounds",
        "running",
        "sinks",
        "subscribers",
        "subscription",
    },
    "tokens": {"errors", "event"},
    "config": {"errors"},
    "stream": {"event", "hub", "sinks", "subscribers", "subscription"},
    "origins": set(),
    "client": {"errors", "event", "hub", "origins", "stream", "subscription", "tokens"},
    "forms": {"errors"},
    "control": {"errors", "event", "forms", "hub", "origins", "tokens"},
    "logs": set(),
    "sockets": {"errors"},
    "apps": {"brokers", "client", "config", "control", "errors", "hub", "tokens"},
    "server": {"apps", "brokers", "config", "errors", "hub", "logs", "sinks", "sockets", "stream"},
    "workers": {"apps", "brokers", "config", "errors", "hub", "logs", "server"},
    "publisher": {"errors"},
    "testing": {"event", "hub", "sinks", "subscribers", "subscription"},
    "pytest_plugin": {"testing"},
    "asgi": {"apps", "config", "errors", "server"},
    "platform": set(),
    "bench.addresses": {"errors"},
    "bench.stamps": set(),
    "bench.body": {"bench.stamps"},
    "bench.latencies": set(),
    "bench.sequences": {"bench.stamps"},
    "bench.messages": set(),
    "bench.listener": {
        "bench.body",
        "bench.latencies",
        "bench.messages",
        "bench.sequences",
        "bench.stamps",
    },
    "bench.worker": {"bench.addresses", "bench.listener", "bench.messages", "platform"},
    "bench.__main__": {"bench.worker"},
    "bench.plan": {"errors"},
    "bench.poster": {"bench.addresses", "bench.plan"},
    "bench.publishing": {"bench.plan", "bench.poster", "bench.stamps"},
    "bench.processes": {"bench.messages", "bench.plan"},
    "bench.resources": {"errors"},
    "bench.report": set(),
    "bench.run": {
        "bench.addresses",
        "bench.latencies",
        "bench.messages",
        "bench.plan",
        "bench.processes",
        "bench.publishing",
        "bench.report",
        "bench.resources",
    },
    "bench": {"bench.plan", "bench.poster", "bench.report", "bench.run"},
    "cli": {"bench", "brokers", "config", "errors", "server", "tokens", "workers"},
    "__main__": {"cli"},
    "__init__": {"client", "control", "errors", "event", "hub", "publisher", "subscription", "tokens"},
}
# Each foreign library lives in one room, or in the few named here.
FOREIGN: dict[str, set[str]] = {
    "jose": {"tokens"},
    "uvicorn": {"server"},
    "uvloop": {"platform", "server"},
    "rich": {"cli"},
    "click": {"cli"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "prometheus_client": {"control"},
    "sse_starlette": {"event", "stream"},
    "starlette": {"apps", "asgi", "client", "control", "forms", "server", "stream"},
    "httpx": {"publisher"},
    "redis": {"brokers.redis"},
}


def room_of(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """The rooms and the foreign packages that a file imports, wherever in it."""
    ours, foreign = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            foreign |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            foreign.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(SOURCE).parent.parts)
            base = package[: len(package) - node.level + 1]
            ours.add(".".join([*base, *((node.module or "").split("."))]))
    return ours, foreign


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=room_of)
def test_room_imports_only_what_it_may(path: Path) -> None:
    ours, foreign = imports_of(path)
    room = room_of(path)

    assert room in ROOMS, "a new room: say in ROOMS and in docs/architecture.md what it may import"
    assert ours <= ROOMS[room]
    assert {name for name in foreign if room not in FOREIGN.get(name, {room})} == set()


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=room_of)
def test_every_room_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))

    assert (docstring and docstring[0].isupper()) or (docstring and docstring[0] == "`")


def test_all_is_true() -> None:
    for name in ("ssehub", "ssehub.brokers"):
        module = importlib.import_module(name)
        assert sorted(module.__all__) == module.__all__
        assert all(hasattr(module, attribute) for attribute in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'hubs'"):
        _ = ssehub.hubs  # type: ignore[attr-defined]


def test_package_is_imported_without_what_only_some_need() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); from ssehub import Hub, create_client_app, create_control_app;"
        "print(time.perf_counter() - began, *(name for name in ('redis', 'rich', 'httpx') if name in sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)

    seconds, *loaded = result.stdout.split()
    assert loaded == []
    assert float(seconds) < 3  # 0.3 on an idle machine
