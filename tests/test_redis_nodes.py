"""The nodes of a deployment, as they know of each other in Redis."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from conftest import until
from redis_nodes import Node
from redis_servers import RedisServer
from ssehub.brokers.redis import nodes as nodes_module
from ssehub.node import Nodes

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nodes_module, "BEAT_SECONDS", 0.1)
    yield


def nodes_of(node: Node) -> Nodes:
    return node.broker.nodes


def others_of(node: Node) -> list[str] | None:
    others = nodes_of(node).others
    return None if others is None else [other.id for other in others]


async def test_nodes_name_each_other_until_they_leave(redis_server: RedisServer) -> None:
    async with Node(redis_server.url) as first:
        await until(lambda: others_of(first) == [])
        async with Node(redis_server.url) as second:
            await until(lambda: others_of(first) == [nodes_of(second).this.id])
            await until(lambda: others_of(second) == [nodes_of(first).this.id])
            key = "{ssehub}:node:" + nodes_of(second).this.id
            stored, expires_in = json.loads(redis_server.command("GET", key)), redis_server.command("TTL", key)
        await until(lambda: others_of(first) == [])

    assert stored | {"startedAt": "", "version": ""} == {
        "id": nodes_of(second).this.id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "control": None,
        "startedAt": "",
        "version": "",
    }
    assert 0 < expires_in <= 15
    assert redis_server.command("KEYS", "*:node*") == []


async def test_h5_node_that_was_killed_is_forgotten_when_its_key_expires(valkey: RedisServer) -> None:
    valkey.command("SET", "{ssehub}:node:dead", json.dumps(_described("dead")), "PX", "4000")
    valkey.command("ZADD", "{ssehub}:nodes", "0", "dead")
    async with Node(valkey.url) as node:
        await until(lambda: others_of(node) == ["dead"])
        await until(lambda: others_of(node) == [], 15)

        await until(lambda: valkey.command("ZRANGE", "{ssehub}:nodes", "0", "-1") == [nodes_of(node).this.id])


def _described(id: str, **fields: object) -> dict[str, object]:
    node = {"id": id, "host": "a", "pid": 1, "control": "127.0.0.1:1", "startedAt": "2026", "version": "9"}
    return {**node, **fields}


async def test_h5_node_of_another_version_counts_and_what_is_not_a_node_is_left_out(valkey: RedisServer) -> None:
    values = {
        "newer": json.dumps(_described("newer", region="north")),
        "list": "[]",
        "text": "hello",
        "number": json.dumps(_described("number", host=7)),
        "deep": "[" * 100_000,
    }
    for id, text in values.items():
        valkey.command("SET", f"{{ssehub}}:node:{id}", text)
        valkey.command("ZADD", "{ssehub}:nodes", "0", id)

    async with Node(valkey.url) as node:
        await until(lambda: others_of(node) is not None)

        assert others_of(node) == ["newer"]


async def test_h5_redis_that_is_away_makes_the_others_unknown_until_it_is_back(valkey: RedisServer) -> None:
    async with Node(valkey.url) as node:
        await until(lambda: others_of(node) == [])
        valkey.kill()
        await until(lambda: others_of(node) is None)
        problem = nodes_of(node).problem
        valkey.start()
        await until(lambda: others_of(node) == [])

    assert problem is not None and "cannot use the log at redis://127.0.0.1" in problem


@pytest.mark.parametrize("missing", ["set", "mget"])
async def test_h5_user_who_may_not_announce_nodes_can_do_everything_else(missing: str, valkey: RedisServer) -> None:
    valkey.command("ACL", "SETUSER", "alex", "on", ">swordfish", "+@all", f"-{missing}", "allkeys", "allchannels")
    async with Node(f"redis://alex:swordfish@127.0.0.1:{valkey.port}") as node:
        await until(lambda: missing in (nodes_of(node).problem or ""))
        await node.publish("1")
        await node.has("1")

        assert node.hub.not_ready() == [] and others_of(node) is None
