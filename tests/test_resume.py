"""Resume, shown on every broker: what clients have received that were cut off at random, by the log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from broker_worlds import MemoryWorld, RedisWorld, SqliteWorld, StartServer, ValkeyWorld, World
from conftest import report
from resuming import CHANNELS, PATTERNS, USERS, Client, Log
from ssehub.hub import Hub
from ssehub.settings import Backpressure, Retention

pytest_plugins = ["redis_fixtures"]
pytestmark = pytest.mark.anyio

SOAK = "SOAK" in os.environ
SEEDS = 200 if SOAK else 4
WORLDS: dict[str, type[World]] = {
    "memory": MemoryWorld,
    "sqlite": SqliteWorld,
    "valkey": ValkeyWorld,
    "redis": RedisWorld,
}


def random_clients(chance: random.Random) -> list[Client]:
    """Return clients with exact channels, with patterns, and with both."""
    clients = []
    for number in range(12):
        channels = chance.sample(CHANNELS, chance.randint(1, 3)) if number % 3 != 1 else []
        patterns = chance.sample(PATTERNS, chance.randint(1, 2)) if number % 3 else []
        clients.append(Client(chance.choice(USERS), channels, patterns, chance))
    return clients


async def cut_and_compare(world: World, seed: int) -> tuple[int, int]:
    """Let clients come and go while events are published; check each. Return the numbers of connections and resets."""
    chance = random.Random(seed)
    history_events = chance.choice([3, 10, 30, 1_000])
    log, clients = Log(chance, history_events), random_clients(chance)
    async with contextlib.AsyncExitStack() as stack:
        hubs = [
            await stack.enter_async_context(
                Hub(
                    world.broker(),
                    retention=Retention(history_events=history_events),
                    backpressure=Backpressure(round_bytes=chance.choice([500, 5_000, 500_000])),
                )
            )
            for _ in range(2 if world.is_shared else 1)
        ]
        for _ in range(30):
            publishing = [log.publish(chance.choice(hubs), chance.randint(1, 4)) for _ in range(chance.randint(0, 2))]
            coming_back = [come_back(client, hubs, chance) for client in clients if chance.random() < 0.3]
            await asyncio.gather(*publishing, *coming_back)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice([0, 0.001]))
        for client in clients:
            if client.connections:
                client.cut()
        await asyncio.gather(*[client.connect(chance.choice(hubs)) for client in clients])
        await log.publish_end(chance.choice(hubs))
        await asyncio.gather(*[client.receive_end() for client in clients])
    resets = sum(client.check(log) for client in clients)
    return sum(len(client.connections) for client in clients), resets


async def come_back(client: Client, hubs: list[Hub], chance: random.Random) -> None:
    if client.connections:
        if chance.random() < 0.3:
            client.connections[-1].sink.read_all()
            return
        client.cut()
    await client.connect(chance.choice(hubs))


@pytest.mark.soak
@pytest.mark.parametrize("kind", WORLDS)
async def test_d12_clients_with_channels_patterns_and_both_receive_exactly_the_log_or_a_reset(
    kind: str, start_server: StartServer, tmp_path: Path
) -> None:
    totals: Counter[str] = Counter()
    for seed in range(SEEDS):
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        try:
            connections, resets = await cut_and_compare(WORLDS[kind](folder, start_server), seed)
        except BaseException:
            report(f"seed {seed}")
            raise
        totals.update(connections=connections, resets=resets)
    report(f"D12 {kind}: {SEEDS} seeds, {dict(totals)}")

    assert totals["resets"] > 0 and totals["connections"] > 50 * SEEDS
