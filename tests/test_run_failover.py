"""Runs on a Redis that is reached over TLS, or that Sentinel replaces by its replica.

A run is produced at one node and watched at another. The producer keeps what it has appended, and says with each
append how many events came before: so it sends again what a failover has lost, and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certificates import CertificateAuthority
from conftest import free_port, report, until
from fakes import FakeSink
from proxy import Mode
from redis_nodes import PROBE_SECONDS
from redis_servers import DURABLE, KINDS, SOAK, RedisServer, Replicated, replicated
from run_stores import ADDRESS, data_of, ending
from ssehub.brokers.redis import RedisBroker
from ssehub.errors import ConflictReason, RunConflict, RunLost, Unavailable
from ssehub.hub import Hub
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Outcome, RunOptions, RunState
from ssehub.runs.store import Append, Creation, Ticket
from ssehub.settings import RedisOptions
from watched_runs import NAME, watch

pytestmark = pytest.mark.anyio

FAILOVER_SECONDS = 30.0
EVENTS = 2_000 if SOAK else 60
LOST = 500 if SOAK else 20
"""Events that the replica does not have when it becomes the primary."""
ROUNDS = 5 if SOAK else 1
KINDS_HERE = KINDS if SOAK else KINDS[:1]
DONE = Outcome(RunState.DONE)
FINISHED = '{"reason":"done"}'
RESET = '{"reason":"log-lost"}'


@asynccontextmanager
async def two_hubs(url: str) -> AsyncIterator[tuple[Hub, Hub]]:
    options = RedisOptions(broker_probe_seconds=PROBE_SECONDS)
    async with Hub(RedisBroker(url, options=options)) as here, Hub(RedisBroker(url, options=options)) as there:
        yield here, there


class Producer:
    """Appends numbers, from 1 on, and sends again whatever the run turns out to lack."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._connection = 0
        self.events = 0
        """How many events the run has, by the last answer."""
        self.corrections: list[tuple[int, int]] = []
        """How many events were answered, and how many the run had, each time that it had fewer."""

    async def create(self) -> None:
        await self._hub.runs.create(NAME, Creation(RunOptions(("chat",), ("alex",)), ticket=self._ticket))

    async def append_up_to(self, last: int, outcome: Outcome | None = None) -> None:
        """Append until the run has `last` events, and has ended if an `outcome` is given."""
        is_first, is_done = True, False
        async with asyncio.timeout(FAILOVER_SECONDS):
            while not is_done:
                batch = [RunEvent(f"{number}") for number in range(self.events + 1, min(self.events + 7, last) + 1)]
                is_last = self.events + len(batch) == last
                step = Append(self._ticket, batch, is_first, offset=self.events, outcome=outcome if is_last else None)
                try:
                    self.events = (await self._hub.runs.append(NAME, step)).events
                    is_first, is_done = False, is_last
                except Unavailable:
                    self._connection += 1
                    is_first = True
                    await asyncio.sleep(0.02)
                except RunConflict as conflict:
                    assert conflict.reason is ConflictReason.OFFSET and conflict.events is not None
                    self.corrections.append((self.events, conflict.events))
                    self.events = conflict.events

    @property
    def _ticket(self) -> Ticket:
        return Ticket("producer", f"{self._connection}")


def shown(sink: FakeSink) -> list[str]:
    """Return the data that a watcher was sent, without what says which run it is."""
    return [text for text in sink.data() if not text.startswith('{"run"')]


def numbers(last: int) -> list[str]:
    return [f"{number}" for number in range(1, last + 1)]


async def replica_has(servers: Replicated, hub: Hub, count: int) -> None:
    """Return when the replica has so many events of the run."""
    run = await hub.runs.get(NAME)
    assert run is not None
    stream = f"{{ssehub}}:run:{NAME}/{run.log}"
    await until(lambda: servers.replica.command("XLEN", stream) == count)


def listening_connections(server: RedisServer) -> int:
    """Return how many connections hear of runs. Sentinel has one, too, which is not counted."""
    with server.client() as client:
        return sum(not found["name"].startswith("sentinel") for found in client.client_list(_type="pubsub"))


@pytest.mark.soak
async def test_run_over_tls_is_whole_although_connections_are_closed_and_redis_is_killed(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    certificate = authority.issue()
    port = free_port()
    files = ("--tls-cert-file", str(certificate.cert_file), "--tls-key-file", str(certificate.key_file))
    trust = ("--tls-ca-cert-file", str(authority.path), "--tls-auth-clients", "no")
    server = RedisServer("redis", tmp_path, "--tls-port", str(port), *files, *trust, *DURABLE)
    try:
        async with two_hubs(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.path}") as (here, there):
            producer = Producer(here)
            await producer.create()
            watcher, sink = await watch(there)
            for _ in range(ROUNDS):
                await producer.append_up_to(producer.events + EVENTS)
                server.command("CLIENT", "KILL", "TYPE", "pubsub")
                await producer.append_up_to(producer.events + EVENTS)
                restarting = asyncio.create_task(asyncio.to_thread(server.restart))
                await producer.append_up_to(producer.events + EVENTS)
                await restarting
            await producer.append_up_to(producer.events + 1, DONE)
            await until(lambda: watcher.reason, FAILOVER_SECONDS)

            assert shown(sink) == [*numbers(producer.events), FINISHED]
            assert producer.corrections == []
    finally:
        server.kill()


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS_HERE)
async def test_run_goes_on_at_a_new_primary_that_has_all_of_it(kind: str, tmp_path: Path) -> None:
    with replicated(kind, tmp_path) as servers:
        async with two_hubs(servers.sentinel.url) as (here, there):
            async with here.run(NAME, **ADDRESS) as run:
                await run.append_events([RunEvent(text) for text in numbers(EVENTS)])
                watcher, sink = await watch(there)
                await until(lambda: len(shown(sink)) == EVENTS)
                await replica_has(servers, here, EVENTS)
                servers.primary.kill()
                began = time.monotonic()
                async with asyncio.timeout(FAILOVER_SECONDS):
                    await run.append(data=EVENTS + 1)
                report(f"{kind}: the producer went on {time.monotonic() - began:.1f} s after the primary was killed")
                await until(lambda: len(shown(sink)) == EVENTS + 1, FAILOVER_SECONDS)
                await until(lambda: listening_connections(servers.replica) == 2)  # one of each node
            await until(lambda: watcher.reason)

            assert shown(sink) == [*numbers(EVENTS + 1), FINISHED]
            assert await ending(there, NAME) == DONE


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS_HERE)
async def test_what_a_failover_has_lost_of_a_run_is_sent_again_and_resets_its_watchers(
    kind: str, tmp_path: Path
) -> None:
    with replicated(kind, tmp_path) as servers:
        async with two_hubs(servers.sentinel.url) as (here, there):
            producer = Producer(here)
            await producer.create()
            watcher, sink = await watch(there)
            await producer.append_up_to(EVENTS)
            await replica_has(servers, here, EVENTS)
            servers.link.mode = Mode.STALL
            await producer.append_up_to(EVENTS + LOST)
            await until(lambda: len(shown(sink)) == EVENTS + LOST)
            servers.primary.kill()
            await producer.append_up_to(EVENTS + LOST + 10)
            await until(lambda: RESET in shown(sink) and shown(sink)[-1] == f"{EVENTS + LOST + 10}", FAILOVER_SECONDS)
            await producer.append_up_to(2 * EVENTS + LOST, DONE)
            await until(lambda: watcher.reason)
            servers.link.mode = Mode.PASS

            assert listening_connections(servers.replica) == 1, "nobody watches at the producer's node"
            assert producer.corrections == [(EVENTS + LOST, EVENTS)]
            whole = numbers(2 * EVENTS + LOST)
            assert shown(sink) == [*numbers(EVENTS + LOST), RESET, *whole, FINISHED]
            assert await data_of(there, NAME) == whole
            assert await ending(here, NAME) == DONE


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS_HERE)
async def test_producer_that_keeps_nothing_is_told_what_a_failover_has_lost(kind: str, tmp_path: Path) -> None:
    with replicated(kind, tmp_path) as servers:
        async with two_hubs(servers.sentinel.url) as (here, there):
            with pytest.raises(RunLost):
                async with asyncio.timeout(FAILOVER_SECONDS), here.run(NAME, **ADDRESS) as run:
                    await run.append(data="1")
                    await replica_has(servers, here, 1)
                    watcher, sink = await watch(there)
                    servers.link.mode = Mode.STALL
                    await run.append_events([RunEvent("2"), RunEvent("3")])
                    await until(lambda: len(shown(sink)) == 3)
                    servers.primary.kill()
                    await run.append(data="4")
            await until(lambda: RESET in shown(sink), FAILOVER_SECONDS)
            await until(lambda: shown(sink)[-1] == "1")
            servers.link.mode = Mode.PASS

            assert shown(sink) == ["1", "2", "3", RESET, "1"]
            assert watcher.reason is None, "the run is open until somebody goes on with it, or it is idle"


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.parametrize("loses", [True, False], ids=["by default", "min-replicas-to-write"])
@pytest.mark.parametrize("kind", KINDS)
async def test_run_is_whole_after_a_failover_that_is_asked_for_while_it_is_written(
    kind: str, loses: bool, tmp_path: Path
) -> None:
    """The old primary goes on for seconds until Sentinel makes it the replica. What it stores meanwhile is lost."""
    with replicated(kind, tmp_path) as servers:
        for server in (servers.primary, servers.replica):
            server.command("CONFIG", "SET", "min-replicas-to-write", int(not loses))
        async with two_hubs(servers.sentinel.url) as (here, there):
            producer = Producer(here)
            await producer.create()
            watcher, sink = await watch(there)
            await producer.append_up_to(EVENTS)
            await replica_has(servers, here, EVENTS)
            failing_over = asyncio.create_task(fail_over(servers))
            while not failing_over.done():
                await producer.append_up_to(producer.events + 1)
                await asyncio.sleep(random.uniform(0, 0.01))
            await failing_over
            await producer.append_up_to(producer.events + EVENTS, DONE)
            await until(lambda: watcher.reason, FAILOVER_SECONDS)

            parts = "\n".join(shown(sink)).split(f"{RESET}\n")
            report(f"{kind}: {producer.events} events, {len(parts) - 1} resets, corrections {producer.corrections}")
            assert parts[-1].split("\n") == [*numbers(producer.events), FINISHED]
            assert all(part.split("\n")[:-1] == numbers(part.count("\n")) for part in parts[:-1])
            assert await data_of(there, NAME) == numbers(producer.events)
            assert loses or (len(parts) == 1 and not producer.corrections)


async def fail_over(servers: Replicated) -> None:
    """Let Sentinel make the replica the primary, and return when the old primary has become the replica."""
    await asyncio.to_thread(servers.sentinel.command, "SENTINEL", "FAILOVER", "main")
    await until(lambda: servers.sentinel.primary_port == servers.replica.port, FAILOVER_SECONDS)
    await until(lambda: servers.primary.command("ROLE")[0] == "slave", FAILOVER_SECONDS)
