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
    "address": set(),
    "errors": set(),
    "platform": set(),
    "settings": {"errors"},
    "position": set(),
    "fields": {"errors", "position"},
    "claims": {"errors", "fields"},
    "payload": {"errors", "fields"},
    "event": {"errors", "fields", "payload", "position"},
    "publication": {"errors", "event", "fields"},
    "brokers.base": {"event", "position", "publication"},
    "brokers.numbering": {"errors", "position", "publication", "brokers.base"},
    "brokers.memory": {"errors", "position", "publication", "brokers.base", "brokers.numbering"},
    "brokers.sqlite": {"errors", "event", "position", "publication", "brokers.base", "brokers.numbering"},
    "brokers.redis": {"errors", "position", "publication", "brokers.base", "brokers.numbering"},
    "brokers.session": {"brokers.base"},
    "brokers": {"errors", "brokers.base", "brokers.memory", "brokers.redis", "brokers.sqlite"},
    "fanout": set(),
    "fanout.sinks": set(),
    "fanout.frames": {"event", "position", "publication", "fanout.sinks"},
    "fanout.history": {"fields", "position", "fanout.frames"},
    "fanout.subscriber": {"claims", "position", "fanout.frames", "fanout.sinks"},
    "fanout.index": {"position", "fanout.frames", "fanout.subscriber"},
    "fanout.clock": {"position", "fanout.sinks", "fanout.subscriber"},
    "subscription": {"errors", "claims", "position", "fanout.sinks", "fanout.subscriber"},
    "hub": {
        "brokers.base",
        "brokers.memory",
        "brokers.session",
        "claims",
        "errors",
        "event",
        "fanout.clock",
        "fanout.frames",
        "fanout.history",
        "fanout.index",
        "fanout.sinks",
        "fanout.subscriber",
        "fields",
        "position",
        "publication",
        "settings",
        "subscription",
    },
    "tokens": {"claims", "errors", "fields"},
    "config": {"address", "errors", "settings"},
    "web": set(),
    "web.origins": set(),
    "web.stream": {"claims", "event", "fanout.sinks", "fanout.subscriber", "hub", "subscription"},
    "web.client": {"claims", "errors", "event", "hub", "subscription", "tokens", "web.origins", "web.stream"},
    "web.forms": {"errors"},
    "web.control": {
        "errors",
        "event",
        "fields",
        "hub",
        "publication",
        "settings",
        "tokens",
        "web.forms",
        "web.origins",
    },
    "server": {"server.protocol"},
    "server.announce": {"brokers", "config", "server.apps"},
    "server.apps": {
        "brokers",
        "config",
        "errors",
        "hub",
        "platform",
        "settings",
        "tokens",
        "web.client",
        "web.control",
    },
    "server.embedded": {
        "config",
        "errors",
        "hub",
        "server.announce",
        "server.http_server",
        "server.logs",
        "server.sockets",
        "settings",
        "web.stream",
    },
    "server.health": {"hub"},
    "server.http_server": {"server.protocol"},
    "server.logs": set(),
    "server.process": {
        "address",
        "config",
        "errors",
        "hub",
        "platform",
        "server.announce",
        "server.apps",
        "server.health",
        "server.http_server",
        "server.logs",
        "server.signals",
        "server.sockets",
        "settings",
    },
    "server.protocol": {"fanout.sinks", "web.stream"},
    "server.signals": set(),
    "server.sockets": {"address", "errors", "settings"},
    "server.statistics": {"hub"},
    "server.workers": {
        "address",
        "brokers",
        "config",
        "errors",
        "hub",
        "server.announce",
        "server.apps",
        "server.logs",
        "server.process",
        "server.signals",
        "server.sockets",
        "server.statistics",
        "settings",
    },
    "publisher": {"errors"},
    "testing": {"claims", "fanout.sinks", "fanout.subscriber", "fields", "hub", "subscription"},
    "pytest_plugin": {"testing"},
    "asgi": {"config", "errors", "server.apps", "server.embedded"},
    "bench": {"errors"},
    "cli": {"bench", "brokers", "config", "errors", "server.process", "server.workers", "settings", "tokens"},
    "__main__": {"cli"},
    "__init__": {
        "claims",
        "errors",
        "event",
        "hub",
        "publisher",
        "subscription",
        "tokens",
        "web.client",
        "web.control",
    },
}
# Each foreign library lives in one room, or in the few named here.
FOREIGN: dict[str, set[str]] = {
    "jose": {"tokens"},
    "uvicorn": {"server.http_server", "server.protocol"},
    "uvloop": {"bench", "platform"},
    "rich": {"cli"},
    "click": {"cli"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "prometheus_client": {"web.control"},
    "sse_starlette": {"event", "web.stream"},
    "starlette": {
        "server.apps",
        "server.embedded",
        "server.health",
        "server.http_server",
        "web.client",
        "web.control",
        "web.forms",
        "web.stream",
    },
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
            package = list(path.relative_to(SOURCE).parts[:-1])
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
