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
    "__main__": {"cli"},
    "address": set(),
    "asgi": {"config", "errors", "server.apps", "server.embedded"},
    "bench": {"bench.plan", "bench.poster", "bench.report", "bench.run"},
    "bench.__main__": {"bench.worker"},
    "bench.addresses": {"errors", "urls"},
    "bench.body": {"bench.stamps"},
    "bench.latencies": set(),
    "bench.listener": {"bench.body", "bench.latencies", "bench.messages", "bench.sequences", "bench.stamps"},
    "bench.messages": set(),
    "bench.plan": {"errors"},
    "bench.poster": {"bench.addresses", "bench.plan"},
    "bench.processes": {"bench.messages", "bench.plan"},
    "bench.publishing": {"bench.plan", "bench.poster", "bench.stamps"},
    "bench.report": set(),
    "bench.resources": {"errors"},
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
    "bench.sequences": {"bench.stamps"},
    "bench.stamps": set(),
    "bench.worker": {"bench.addresses", "bench.listener", "bench.messages", "platform"},
    "brokers": {"brokers.base", "brokers.memory", "brokers.redis", "brokers.sqlite", "errors", "settings"},
    "brokers.base": {"event", "position", "publication", "revocations", "urls"},
    "brokers.memory": {
        "brokers.base",
        "brokers.numbering",
        "errors",
        "position",
        "publication",
        "revocations",
        "settings",
    },
    "brokers.numbering": {"brokers.base", "errors", "position", "publication", "settings"},
    "brokers.redis": {"brokers.redis.broker", "brokers.redis.reader"},
    "brokers.redis.broker": {
        "brokers.base",
        "brokers.redis.connection",
        "brokers.redis.reader",
        "brokers.redis.state",
        "brokers.redis.table",
        "brokers.redis.writer",
        "errors",
        "publication",
        "revocations",
        "settings",
    },
    "brokers.redis.connection": {
        "brokers.base",
        "brokers.numbering",
        "brokers.redis.state",
        "brokers.redis.wire",
        "errors",
        "position",
        "publication",
        "revocations",
        "settings",
    },
    "brokers.redis.reader": {
        "brokers.base",
        "brokers.redis.connection",
        "brokers.redis.state",
        "brokers.redis.table",
        "brokers.redis.wire",
        "errors",
        "position",
        "revocations",
        "settings",
    },
    "brokers.redis.state": {"position"},
    "brokers.redis.table": {
        "brokers.base",
        "brokers.redis.connection",
        "brokers.redis.state",
        "brokers.redis.wire",
        "errors",
        "position",
        "publication",
        "revocations",
        "settings",
    },
    "brokers.redis.wire": {"brokers.base", "errors", "position", "publication", "revocations"},
    "brokers.redis.writer": {
        "brokers.numbering",
        "brokers.redis.connection",
        "brokers.redis.state",
        "brokers.redis.table",
        "brokers.redis.wire",
        "errors",
        "position",
        "publication",
        "revocations",
        "settings",
    },
    "brokers.session": {"brokers.base"},
    "brokers.sqlite": {"brokers.sqlite.broker", "brokers.sqlite.logfile"},
    "brokers.sqlite.broker": {
        "brokers.base",
        "brokers.numbering",
        "brokers.sqlite.logfile",
        "errors",
        "publication",
        "revocations",
        "settings",
    },
    "brokers.sqlite.logfile": {
        "brokers.base",
        "brokers.numbering",
        "errors",
        "event",
        "position",
        "publication",
        "revocations",
        "settings",
    },
    "buckets": set(),
    "claims": {"errors", "fields", "grant"},
    "cli": {"cli.bench", "cli.emit", "cli.flags", "cli.log", "cli.revoke", "cli.serve", "cli.token", "errors"},
    "cli.bench": {"bench", "cli.options", "tokens"},
    "cli.control": {"config", "urls"},
    "cli.emit": {"cli.control", "cli.options"},
    "cli.flags": set(),
    "cli.log": {"brokers", "cli.options", "config", "event", "publication", "settings"},
    "cli.options": {"config", "tokens"},
    "cli.revoke": {"cli.control", "cli.options"},
    "cli.serve": {"cli.options", "server.process", "server.workers"},
    "cli.token": {"cli.options", "errors", "grant", "settings", "tokens"},
    "companions": {"fanout.statistics"},
    "config": {"address", "errors", "settings", "urls"},
    "credentials": {"errors"},
    "errors": set(),
    "event": {"errors", "fields", "payload", "position"},
    "fanout": set(),
    "fanout.backlogs": {"fanout.frames", "fanout.index", "fanout.subscriber", "fanout.waits", "settings"},
    "fanout.clock": {"fanout.subscriber", "settings"},
    "fanout.comebacks": {"position"},
    "fanout.endings": {
        "fanout.frames",
        "fanout.index",
        "fanout.registry",
        "fanout.slices",
        "fanout.subscriber",
        "publication",
        "revocations",
    },
    "fanout.engine": {
        "brokers.base",
        "claims",
        "event",
        "fanout.backlogs",
        "fanout.clock",
        "fanout.comebacks",
        "fanout.endings",
        "fanout.frames",
        "fanout.gate",
        "fanout.history",
        "fanout.index",
        "fanout.intake",
        "fanout.limits",
        "fanout.pressure",
        "fanout.registry",
        "fanout.replays",
        "fanout.resume",
        "fanout.rounds",
        "fanout.sinks",
        "fanout.slices",
        "fanout.statistics",
        "fanout.subscriber",
        "fanout.upkeep",
        "position",
        "publication",
        "revocations",
        "settings",
    },
    "fanout.frames": {"event", "fanout.sinks", "fields", "position", "publication"},
    "fanout.gate": {"errors"},
    "fanout.floors": {"position"},
    "fanout.history": {"fanout.floors", "fanout.frames", "fanout.ids", "fields", "position", "settings"},
    "fanout.ids": {"fanout.frames", "position"},
    "fanout.index": {"fanout.frames", "fanout.subscriber", "position"},
    "fanout.intake": {"brokers.base", "position"},
    "fanout.limits": {
        "buckets",
        "claims",
        "errors",
        "fanout.index",
        "fanout.subscriber",
        "grant",
        "settings",
    },
    "fanout.pressure": {"memory"},
    "fanout.registry": {
        "claims",
        "fanout.backlogs",
        "fanout.clock",
        "fanout.comebacks",
        "fanout.frames",
        "fanout.history",
        "fanout.index",
        "fanout.limits",
        "fanout.sinks",
        "fanout.statistics",
        "fanout.subscriber",
        "grant",
        "loglimit",
        "position",
    },
    "fanout.replays": {
        "claims",
        "fanout.history",
        "fanout.registry",
        "fanout.resume",
        "fanout.statistics",
        "fanout.subscriber",
        "position",
    },
    "fanout.resume": {"claims", "errors", "fanout.frames", "fanout.history", "fanout.subscriber", "grant", "position"},
    "fanout.rounds": {"fanout.frames", "position"},
    "fanout.sinks": set(),
    "fanout.slices": set(),
    "fanout.statistics": {"errors", "fanout.history", "fanout.limits", "fanout.subscriber"},
    "fanout.subscriber": {"claims", "fanout.frames", "fanout.sinks", "grant", "loglimit", "position"},
    "fanout.upkeep": {
        "fanout.backlogs",
        "fanout.clock",
        "fanout.comebacks",
        "fanout.history",
        "fanout.pressure",
        "fanout.registry",
        "fanout.replays",
        "fanout.sinks",
        "fanout.slices",
        "fanout.statistics",
        "fanout.subscriber",
        "position",
        "revocations",
    },
    "fanout.waits": {"fanout.index", "fanout.subscriber"},
    "fields": {"errors", "position"},
    "grant": {"errors", "fields"},
    "hub": {
        "brokers.base",
        "brokers.memory",
        "claims",
        "companions",
        "errors",
        "fanout.comebacks",
        "fanout.engine",
        "fanout.limits",
        "fanout.registry",
        "fanout.resume",
        "fanout.sinks",
        "fanout.statistics",
        "fanout.subscriber",
        "fields",
        "grant",
        "memory",
        "position",
        "publishing",
        "run",
        "settings",
        "subscription",
    },
    "loglimit": set(),
    "memory": set(),
    "payload": {"errors", "fields"},
    "platform": set(),
    "position": set(),
    "proxies": {"errors"},
    "publication": {"errors", "event", "fields", "revocations"},
    "publisher": {"errors", "urls"},
    "publishing": {
        "brokers.base",
        "errors",
        "event",
        "fanout.statistics",
        "fields",
        "loglimit",
        "publication",
        "revocations",
        "run",
    },
    "pytest_plugin": {"testing"},
    "revocations": {"claims", "errors", "fields"},
    "run": {
        "brokers.base",
        "brokers.session",
        "errors",
        "event",
        "fanout.engine",
        "position",
        "publication",
        "revocations",
    },
    "server": {"server.protocol"},
    "server.announce": {"brokers", "config", "server.apps"},
    "server.apps": {
        "address",
        "brokers",
        "config",
        "fanout.statistics",
        "hub",
        "memory",
        "platform",
        "server.credentials",
        "settings",
        "tokens",
        "watched",
        "web.client",
        "web.control",
    },
    "server.collector": {"hub"},
    "server.connection": {"buckets", "fanout.sinks", "loglimit", "server.deadlines", "settings"},
    "server.credentials": {"config", "credentials", "errors", "tokens", "watched"},
    "server.deadlines": set(),
    "server.embedded": {
        "config",
        "errors",
        "hub",
        "server.announce",
        "server.apps",
        "server.http_server",
        "server.logs",
        "server.sockets",
        "settings",
    },
    "server.exchange": {"fanout.sinks", "server.connection"},
    "server.heads": set(),
    "server.health": {"hub"},
    "server.http_server": {"proxies", "server.protocol", "server.proxy_protocol", "settings"},
    "server.logs": {"loglimit"},
    "server.process": {
        "address",
        "config",
        "errors",
        "hub",
        "platform",
        "proxies",
        "server.announce",
        "server.apps",
        "server.collector",
        "server.health",
        "server.http_server",
        "server.logs",
        "server.signals",
        "server.sockets",
        "settings",
    },
    "server.protocol": {
        "server.connection",
        "server.deadlines",
        "server.exchange",
        "server.heads",
        "settings",
        "web.stream",
    },
    "server.proxy_protocol": {"loglimit", "proxies"},
    "server.signals": set(),
    "server.sockets": {"address", "errors", "settings"},
    "server.statistics": {"fanout.statistics", "hub"},
    "server.workers": {
        "address",
        "brokers",
        "config",
        "errors",
        "hub",
        "server.announce",
        "server.apps",
        "server.credentials",
        "server.logs",
        "server.process",
        "server.signals",
        "server.sockets",
        "server.statistics",
        "settings",
        "watched",
    },
    "settings": {"errors"},
    "subscription": {"fanout.resume", "fanout.sinks", "fanout.subscriber"},
    "testing": {
        "claims",
        "fanout.engine",
        "fanout.resume",
        "fanout.sinks",
        "fanout.subscriber",
        "fields",
        "hub",
        "position",
        "subscription",
    },
    "tokens": {"tokens.access", "tokens.compact", "tokens.keyset", "tokens.sources", "tokens.tokens"},
    "tokens.access": {"claims", "errors", "tokens.compact", "tokens.grants"},
    "tokens.cache": {"tokens.access"},
    "tokens.compact": {"errors"},
    "tokens.fetching": {"address", "errors", "urls"},
    "tokens.grants": {"errors", "fields"},
    "tokens.keys": {"tokens.compact"},
    "tokens.keyset": {"errors", "tokens.keys"},
    "tokens.logout": {"errors", "fields", "tokens.access", "tokens.tokens"},
    "tokens.sources": {"errors", "fanout.statistics", "tokens.fetching", "watched"},
    "tokens.tokens": {
        "claims",
        "credentials",
        "errors",
        "fanout.statistics",
        "fields",
        "grant",
        "settings",
        "tokens.access",
        "tokens.cache",
        "tokens.compact",
        "tokens.grants",
        "tokens.keys",
        "tokens.keyset",
        "tokens.sources",
        "watched",
    },
    "urls": set(),
    "watched": {"errors"},
    "web": set(),
    "web.addresses": {"proxies"},
    "web.backchannel": {
        "errors",
        "fanout.statistics",
        "hub",
        "loglimit",
        "revocations",
        "tokens",
        "tokens.logout",
        "web.addresses",
        "web.endpoint",
        "web.forms",
        "web.logins",
        "web.requests",
    },
    "web.client": {
        "claims",
        "errors",
        "fanout.frames",
        "fanout.limits",
        "fanout.resume",
        "fields",
        "grant",
        "hub",
        "loglimit",
        "position",
        "proxies",
        "settings",
        "tokens",
        "web.addresses",
        "web.backchannel",
        "web.cookie_login",
        "web.denials",
        "web.ends",
        "web.logins",
        "web.masking",
        "web.methods",
        "web.origins",
        "web.query",
        "web.stream",
    },
    "web.control": {
        "address",
        "buckets",
        "claims",
        "credentials",
        "errors",
        "event",
        "fanout.limits",
        "fields",
        "hub",
        "publication",
        "settings",
        "tokens",
        "web.endpoint",
        "web.forms",
        "web.guard",
        "web.metrics",
        "web.pace",
        "web.requests",
        "web.revoke",
        "web.strict_json",
    },
    "web.cookie_login": {
        "address",
        "errors",
        "hub",
        "loglimit",
        "web.addresses",
        "web.denials",
        "web.endpoint",
        "web.logins",
        "web.origins",
    },
    "web.denials": {"errors", "hub", "loglimit", "web.addresses"},
    "web.endpoint": {"errors", "loglimit", "web.forms", "web.requests"},
    "web.escapes": set(),
    "web.ends": {"errors", "settings"},
    "web.forms": {"errors", "tokens", "web.escapes", "web.pace", "web.requests", "web.strict_json"},
    "web.guard": {"errors", "web.endpoint", "web.masking", "web.origins", "web.requests"},
    "web.logins": {"claims", "errors", "tokens", "web.origins", "web.query"},
    "web.masking": set(),
    "web.methods": set(),
    "web.metrics": {"fanout.statistics", "hub", "revocations", "web.endpoint", "web.requests"},
    "web.origins": {"errors", "loglimit"},
    "web.pace": set(),
    "web.query": {"errors", "fields", "web.escapes"},
    "web.requests": {"buckets", "errors"},
    "web.revoke": {
        "errors",
        "fields",
        "hub",
        "revocations",
        "settings",
        "tokens",
        "web.endpoint",
        "web.forms",
        "web.pace",
        "web.requests",
    },
    "web.stream": {
        "claims",
        "event",
        "fanout.resume",
        "fanout.sinks",
        "fanout.statistics",
        "fanout.subscriber",
        "hub",
        "loglimit",
    },
    "web.strict_json": {"errors", "web.pace"},
}
# Each foreign library lives in one room, or in the few named here.
FOREIGN: dict[str, set[str]] = {
    "click": {
        "cli",
        "cli.bench",
        "cli.control",
        "cli.emit",
        "cli.flags",
        "cli.log",
        "cli.options",
        "cli.revoke",
        "cli.serve",
        "cli.token",
    },
    "httpx": {"publisher", "tokens.fetching"},
    "jose": {"tokens.keys", "tokens.tokens"},
    "prometheus_client": {"web.metrics"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "redis": {"brokers.redis.connection"},
    "rich": {"cli.bench"},
    "sse_starlette": {"event", "web.stream"},
    "starlette": {
        "server.apps",
        "server.connection",
        "server.embedded",
        "server.exchange",
        "server.health",
        "server.http_server",
        "server.protocol",
        "web.addresses",
        "web.backchannel",
        "web.client",
        "web.control",
        "web.cookie_login",
        "web.denials",
        "web.endpoint",
        "web.forms",
        "web.guard",
        "web.logins",
        "web.masking",
        "web.methods",
        "web.metrics",
        "web.origins",
        "web.requests",
        "web.revoke",
        "web.stream",
    },
    "uvicorn": {
        "server.connection",
        "server.exchange",
        "server.http_server",
        "server.protocol",
        "server.proxy_protocol",
    },
    "uvloop": {"platform"},
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

    assert room in ROOMS, "a new module: add it to ROOMS, with what it may import"
    assert ours <= ROOMS[room]
    assert {name for name in foreign if room not in FOREIGN.get(name, {room})} == set()


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=room_of)
def test_every_room_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))

    assert (docstring and docstring[0].isupper()) or (docstring and docstring[0] == "`")


def test_imports_form_no_circle() -> None:
    above: list[str] = []
    done: set[str] = set()

    def visit(room: str) -> None:
        assert room not in above, " imports ".join([*above[above.index(room) :], room])
        if room in done:
            return
        above.append(room)
        for below in ROOMS[room]:
            visit(below)
        above.pop()
        done.add(room)

    for room in ROOMS:
        visit(room)


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_no_file_of_the_tests_imports_a_test_file(path: Path) -> None:
    imported = [
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]

    assert [name for name in imported if name.startswith("test_")] == []


def test_all_is_true() -> None:
    for name in ("ssehub", "ssehub.brokers"):
        module = importlib.import_module(name)
        assert sorted(module.__all__) == module.__all__
        assert all(hasattr(module, attribute) for attribute in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'hubs'"):
        _ = ssehub.hubs


def test_package_is_imported_without_what_only_some_need() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); from ssehub import Hub, create_client_app, create_control_app;"
        "print(time.perf_counter() - began, *(name for name in ('redis', 'rich', 'httpx') if name in sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)

    seconds, *loaded = result.stdout.split()
    assert loaded == []
    assert float(seconds) < 3  # 0.3 on an idle machine
