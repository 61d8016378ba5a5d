"""Watching runs over real sockets, on every broker: clients that are cut off anywhere or read slowly, and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker_worlds import StartServer
from conftest import SECRET, report, until
from run_viewers import Viewer
from run_worlds import RUN_WORLDS, RunWorld
from serving import Client, requesting, serving
from ssehub import Hub, Tokens, create_client_app
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Outcome, RunState
from ssehub.runs.store import Append, CreateMode
from ssehub.server import HttpProtocol
from streams import decode, unchunked
from watched_runs import NAME, Producer

pytest_plugins = ["redis_fixtures", "run_fixtures"]
pytestmark = pytest.mark.anyio

SOAK = "SOAK" in os.environ
SEEDS = 200 if SOAK else 12
TOKENS = Tokens(SECRET)
TOKEN = TOKENS.issue("alex", ["chat"], expires_at=9_999_999_999)


class Node:
    """A hub and the port of its client app."""

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.port = port


@contextlib.asynccontextmanager
async def nodes(world: RunWorld, protocol: Any = HttpProtocol) -> AsyncIterator[list[Node]]:
    """Run a hub, or two if the broker can be shared."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(2 if world.is_shared else 1):
            hub = await stack.enter_async_context(Hub(world.broker()))
            app = create_client_app(hub, tokens=TOKENS)
            found.append(Node(hub, await stack.enter_async_context(serving(app, protocol))))
        yield found


def any_port(nodes: Sequence[Node], chance: random.Random) -> int:
    return chance.choice(nodes).port


async def produce(nodes: Sequence[Node], lines: Sequence[str], chance: random.Random) -> None:
    """Append `lines` in steps of random sizes, each on any node, and end the run, sometimes with the last step."""
    producer = Producer(nodes[0].hub)
    await producer.create()
    sent = 0
    has_ended = False
    while sent < len(lines):
        step = [RunEvent(line) for line in lines[sent : sent + chance.choice([1, 1, 2, 5, 30])]]
        is_last = sent + len(step) == len(lines) and chance.random() < 0.5
        outcome = Outcome(RunState.DONE) if is_last else None
        append = Append(producer.ticket, step, is_first=True, offset=sent, outcome=outcome)
        await chance.choice(nodes).hub.runs.append(NAME, append)
        sent, has_ended = sent + len(step), is_last
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
    if not has_ended:
        await chance.choice(nodes).hub.runs.finish(NAME, Outcome(RunState.DONE))


@pytest.mark.parametrize("name", RUN_WORLDS)
async def test_client_that_is_cut_at_any_byte_sees_everything_once_and_the_end(
    name: str, make_run_world: Callable[[str], RunWorld]
) -> None:
    connections = 0
    async with nodes(make_run_world(name)) as both:
        for seed in range(SEEDS):
            chance = random.Random(seed)
            lines = [f"{number} " + "x" * chance.choice([0, 5, 50, 2_000]) for number in range(chance.randint(1, 80))]
            viewers = [Viewer(chance, NAME, TOKEN) for _ in range(4)]
            async with asyncio.TaskGroup() as group:
                for viewer in viewers:
                    group.create_task(viewer.watch_to_the_end(partial(any_port, both, chance)))
                group.create_task(produce(both, lines, chance))
            for viewer in viewers:
                assert viewer.data == lines, f"seed {seed}"
                assert viewer.ends == ['{"reason":"done"}'], f"seed {seed}"
                connections += viewer.connections
            await both[0].hub.runs.delete(NAME)
            await asyncio.sleep(0.01)
    report(f"{name}: {SEEDS} runs, {connections} connections")


@pytest.mark.parametrize("protocol", [HttpProtocol, H11Protocol], ids=["transport", "task"])
async def test_slow_client_beside_fast_ones_takes_no_memory_and_gets_everything(
    protocol: Any, make_run_world: Callable[[str], RunWorld]
) -> None:
    async with nodes(make_run_world("memory"), protocol) as (node,):
        producer = Producer(node.hub)
        await producer.create()
        path = f"/events/?{urlencode({'run': NAME, 'token': TOKEN})}"
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", node.port))
        await loop.sock_sendall(slow, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        lines = [f"{number} " + "x" * 60_000 for number in range(100)]
        async with requesting(node.port, path) as fast, requesting(node.port, path) as second:
            await until(lambda: node.hub.statistics.watchers == 3)
            reading = [asyncio.create_task(client.read_until(f"data: {lines[-1]}\n")) for client in (fast, second)]
            for line in lines:
                await producer.append(line)
                await asyncio.sleep(0)
            await asyncio.gather(*reading)
            backlog = node.hub.statistics.backlog_bytes
            await producer.finish()
            ended = [asyncio.create_task(client.read_until("\r\n0\r\n\r\n")) for client in (fast, second)]
            await asyncio.gather(*ended)
        reader, writer = await asyncio.open_connection(sock=slow)
        async with asyncio.timeout(20):
            received = await read_to_last_chunk(reader)
        writer.close()

        assert backlog < 400_000
        for text in (fast.text.encode(), second.text.encode(), received):
            shown = decode(unchunked(text.partition(b"\r\n\r\n")[2]))
            assert [event.data for event in shown] == [*lines, '{"reason":"done"}']


async def read_to_last_chunk(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        part = await reader.read(65_536)
        assert part
        received += part
    return bytes(received)


@pytest.mark.parametrize("name", RUN_WORLDS)
async def test_restart_takeover_and_deletion_reach_watchers_of_every_node(
    name: str, make_run_world: Callable[[str], RunWorld]
) -> None:
    async with nodes(make_run_world(name)) as both, contextlib.AsyncExitStack() as stack:
        first, last = both[0], both[-1]
        producer = Producer(first.hub)
        await producer.create()
        await producer.append("old")
        path = f"/events/?{urlencode({'run': NAME, 'token': TOKEN})}"
        clients: list[Client] = []
        for node in both:
            client = await stack.enter_async_context(requesting(node.port, path, "Connection: close"))
            clients.append(client)
            await client.read_until("data: old\n")

        restarting = Producer(last.hub)
        await restarting.create(CreateMode.RESTART)
        await restarting.append("new")
        for client in clients:
            await client.read_until("data: new\n")
        taking_over = Producer(first.hub)
        await taking_over.create(CreateMode.TAKEOVER)
        await taking_over.append("more")
        for client in clients:
            await client.read_until("data: more\n")
        await last.hub.runs.delete(NAME)

        for client in clients:
            await client.read_to_end()
            assert [(event.event, event.data) for event in decode(client.body.encode())] == [
                ("message", "old"),
                ("stream-reset", '{"reason":"restarted"}'),
                ("message", "new"),
                ("message", "more"),
                ("stream-finished", '{"reason":"failed","error":"deleted"}'),
            ]
            generations = [line for line in client.body.split("\n") if line.startswith('data: {"run"')]
            assert generations == [f'data: {{"run":"answer","generation":{number}}}' for number in (1, 2, 3)]


@pytest.mark.parametrize("name", [name for name, world in RUN_WORLDS.items() if world.is_durable])
async def test_client_goes_on_where_it_was_after_the_hub_has_restarted(
    name: str, make_run_world: Callable[[str], RunWorld]
) -> None:
    world = make_run_world(name)
    viewer = Viewer(random.Random(1), NAME, TOKEN)
    path = f"/events/?{urlencode({'run': NAME, 'token': TOKEN})}"
    async with nodes(world) as both:
        producer = Producer(both[0].hub)
        await producer.create()
        await producer.append("one", "two")
        async with requesting(both[-1].port, path, "Connection: close") as client:
            await client.read_until("data: two\n")
            for node in both:
                await node.hub.drain(0.1)
            await client.read_to_end()
        shown = decode(client.body.encode())
        assert shown[-1].event == "stream-drain"
        viewer.last_id = shown[-1].id
    async with nodes(world) as both:
        again = Producer(both[0].hub)
        again.ticket = producer.ticket
        await again.append("three", is_first=True)
        await again.finish()
        await viewer.watch(both[0].port, lets_through=True)

        assert viewer.data == ["three"]
        assert viewer.ends == ['{"reason":"done"}']


@pytest.mark.parametrize("name", [name for name, world in RUN_WORLDS.items() if world.is_shared])
async def test_wait_on_one_node_is_answered_by_the_creation_on_another(
    name: str, make_run_world: Callable[[str], RunWorld]
) -> None:
    async with nodes(make_run_world(name)) as (one, other):
        path = f"/events/?{urlencode({'run': NAME, 'token': TOKEN, 'wait': 30})}"
        async with requesting(one.port, path) as client:
            await until(lambda: one.hub.statistics.run_waits == 1)
            producer = Producer(other.hub)
            await producer.create()
            await producer.append("one")
            await client.read_until("data: one\n")


@pytest.mark.parametrize("name", [name for name, world in RUN_WORLDS.items() if world.is_shared])
async def test_watcher_misses_nothing_when_the_connection_that_tells_of_events_is_lost(
    name: str, make_run_world: Callable[[str], RunWorld], start_server: StartServer
) -> None:
    async with nodes(make_run_world(name)) as (one, other):
        producer = Producer(other.hub)
        await producer.create()
        path = f"/events/?{urlencode({'run': NAME, 'token': TOKEN})}"
        async with requesting(one.port, path, "Connection: close") as client:
            await until(lambda: one.hub.statistics.watchers == 1)
            lines = [str(number) for number in range(30)]
            for number, line in enumerate(lines):
                if number % 10 == 5:
                    start_server(name).command("CLIENT", "KILL", "TYPE", "pubsub")
                await producer.append(line)
            await producer.finish()
            await client.read_to_end()

        assert [event.data for event in decode(client.body.encode())] == [*lines, '{"reason":"done"}']
