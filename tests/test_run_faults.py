"""Runs from end to end, while connections are cut at random bytes, and hubs and stores are killed.

A publisher in this process appends over HTTP, and clients watch; every hub and every store is a process of its own.
Whatever is done to them, each client is shown each event once, in order, and then the end.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from conftest import SECRET, RunningHub, StartHub, free_port, report
from proxy import Proxy
from redis_servers import KINDS, SOAK, RedisServer
from run_viewers import Viewer
from ssehub import AsyncPublisher, Tokens

pytest_plugins = ["redis_fixtures"]
pytestmark = pytest.mark.anyio

TOKEN = Tokens(SECRET).issue("alex", ["chat"], expires_at=9_999_999_999)
SEEDS = 200 if SOAK else 2
KILLS = 200 if SOAK else 1
VIEWERS = 3
END = '{"reason":"done"}'

Fault = Callable[[], object]


class Cuts:
    """Proxies before the hubs, which cut connections of producers and of watchers off."""

    def __init__(self, stack: ExitStack, hubs: Sequence[RunningHub], chance: random.Random) -> None:
        self._chance = chance
        self.control = [stack.enter_context(Proxy(hub.control_port)) for hub in hubs]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{proxy.port}" for proxy in self.control]

    def cut(self) -> None:
        """Cut off the next connection that has carried so many bytes, in either direction."""
        proxy = self._chance.choice(self.control)
        (proxy.cut_after if self._chance.random() < 0.3 else proxy.cut_request_after)(self._chance.randrange(1, 3_000))


def lines_of(chance: random.Random, most: int) -> list[str]:
    return [f"{number} " + "x" * chance.choice([0, 5, 50, 2_000]) for number in range(chance.randint(2, most))]


async def produce(
    urls: Sequence[str], name: str, lines: Sequence[str], chance: random.Random, faults: dict[int, Fault]
) -> None:
    """Append `lines`, and let each of `faults` happen once so many are appended; the slow ones do so meanwhile."""
    async with (
        AsyncPublisher(urls) as publisher,
        asyncio.TaskGroup() as group,
        publisher.run(name, channel="chat", user_id="alex") as run,
    ):
        for number, line in enumerate(lines):
            if number in faults:
                group.create_task(asyncio.to_thread(faults[number]))
            await run.append(data=line)
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005, 0.02]))


async def play(
    urls: Sequence[str],
    name: str,
    lines: Sequence[str],
    chance: random.Random,
    port: Callable[[], int],
    faults: dict[int, Fault],
) -> int:
    """Produce the run and watch it; check what the clients were shown, and return how often they connected."""
    viewers = [Viewer(chance, name, TOKEN) for _ in range(VIEWERS)]
    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        for viewer in viewers:
            group.create_task(viewer.watch_to_the_end(port, 2_000))
        group.create_task(produce(urls, name, lines, chance, faults))
    for viewer in viewers:
        assert viewer.data == lines
        assert viewer.ends == [END]
    return sum(viewer.connections for viewer in viewers)


@pytest.mark.soak
@pytest.mark.parametrize("broker", ["memory", "sqlite", *(KINDS if SOAK else ["valkey"])])
async def test_cut_connections_lose_and_double_nothing(broker: str, start_hub: StartHub, tmp_path: Path) -> None:
    connections = 0
    with ExitStack() as stack:
        if broker in KINDS:
            server = RedisServer(broker, tmp_path)
            stack.callback(server.kill)
            hubs = [start_hub("--broker", server.url) for _ in range(2)]
        else:
            hubs = [start_hub("--broker", "memory://" if broker == "memory" else f"sqlite:///{tmp_path}/log.db")]
        for seed in range(SEEDS):
            chance = random.Random(seed)
            lines = lines_of(chance, 80)
            with ExitStack() as proxies:
                # The producer uses the first node, and the clients the last one.
                cuts = Cuts(proxies, hubs[:1], chance)
                at = range(chance.randrange(10), len(lines), 15)
                faults: dict[int, Fault] = dict.fromkeys(at, cuts.cut)
                connections += await play(cuts.urls, f"run-{seed}", lines, chance, lambda: hubs[-1].port, faults)
    report(f"{broker}: {SEEDS} runs, {connections} connections of clients")


@pytest.mark.soak
async def test_killed_hub_on_sqlite_loses_and_doubles_nothing(start_hub: StartHub, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    binds = ("--bind", f"127.0.0.1:{ports[0]}", "--control-bind", f"127.0.0.1:{ports[1]}")
    arguments = (*binds, "--broker", f"sqlite:///{tmp_path}/log.db")
    hub = start_hub(*arguments)

    def restart() -> None:
        nonlocal hub
        hub.signal(signal.SIGKILL)
        hub.wait()
        hub = start_hub(*arguments)

    for seed in range(KILLS):
        chance = random.Random(seed)
        lines = lines_of(chance, 120)
        faults: dict[int, Fault] = {chance.randrange(len(lines)): restart}
        await play([hub.control_url], f"run-{seed}", lines, chance, lambda: ports[0], faults)
    report(f"sqlite: {KILLS} hubs killed")


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["producer's node", "clients' node", "store"])
async def test_killed_node_or_store_loses_and_doubles_nothing(
    soak_server: RedisServer, start_hub: StartHub, victim: str
) -> None:
    hubs = [start_hub("--broker", soak_server.url) for _ in range(3)]

    for seed in range(KILLS):
        chance = random.Random(seed)
        lines = lines_of(chance, 120)
        doomed = 0 if victim == "producer's node" else 1

        kill: Fault = soak_server.restart if victim == "store" else partial(hubs[doomed].signal, signal.SIGKILL)
        urls = [hubs[0].control_url, hubs[2].control_url]
        ports = hubs[1].port, hubs[2].port
        await play(
            urls, f"run-{seed}", lines, chance, partial(chance.choice, ports), {chance.randrange(len(lines)): kill}
        )
        if victim != "store":
            await asyncio.to_thread(hubs[doomed].wait)
            hubs[doomed] = await asyncio.to_thread(start_hub, "--broker", soak_server.url)
    report(f"{soak_server.kind}: {KILLS} times {victim} killed")
