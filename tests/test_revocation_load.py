"""Revocations at full scale: under load while nodes and Redis fail, and a full table."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from conftest import SECRET, RunningHub, free_port, report, until, wait_until
from redis_peers import TABLE, running
from redis_requests import status
from redis_servers import DURABLE, KINDS, RedisServer, replicated
from revoked_crowd import STREAMS, RevokedCrowd
from ssehub.brokers.redis.connection import Server
from ssehub.revocations import MAX_REVOCATIONS, Revocation
from ssehub.settings import LogRetention
from ssehub.tokens import Tokens

pytest_plugins = ("redis_fixtures",)
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(500)]

USERS = 250
REVOKED = 200
LAG = 10
"""How many of them a replica lacks when it is promoted."""
CHANNELS = 20
RATE = 500
SECONDS = 1.0
"""Within this time a revoked stream ends, on every node that can read the log."""


class Outage(NamedTuple):
    """When the nodes on these `ports` could not read the log, in Unix time."""

    ports: tuple[int, ...]
    began: float
    ended: float


class Publisher:
    """Publishes `RATE` events per second, in batches of 50, on all channels and at all nodes in turn."""

    def __init__(self, controls: tuple[int, int]) -> None:
        self._controls = controls
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self.answered = 0
        self.refused = 0

    def _publish(self) -> None:
        began = time.monotonic()
        with httpx.Client(timeout=5) as http:
            for number in itertools.count():
                if self._stop.wait(max(0.0, began + number * 50 / RATE - time.monotonic())):
                    return
                events = [{"userId": "*", "channel": f"c{n % CHANNELS}", "data": f"{number} {n}"} for n in range(50)]
                try:
                    answer = http.post(f"http://127.0.0.1:{self._controls[number % 2]}/emit/", json=events)
                except httpx.TransportError:
                    self.refused += 50
                    continue
                if answer.status_code == 200:
                    self.answered += 50
                else:
                    self.refused += 50

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Deployment:
    """Two nodes on the Redis at `url`, `USERS` users with four streams each, and what was revoked when."""

    def __init__(self, url: str, start_hub: Callable[..., RunningHub]) -> None:
        self.ports = (free_port(), free_port())
        self.controls = (free_port(), free_port())
        self._url = url
        self._start_hub = start_hub
        self.hubs = [self.start(0), self.start(1)]
        tokens = Tokens(SECRET)
        self.tokens = {
            f"u{n}": tokens.issue(f"u{n}", [f"c{n % CHANNELS}"], expires_at=time.time() + 3600) for n in range(USERS)
        }
        self.revoked: dict[str, float] = {}
        """The users, and when it was answered 200 that they are revoked, in Unix time."""
        self.outages: list[Outage] = []
        self._remaining = iter(list(self.tokens)[:REVOKED])

    def start(self, n: int) -> RunningHub:
        return self._start_hub(
            *("--broker", self._url, "--broker-probe-seconds", "1"),
            *("--bind", f"127.0.0.1:{self.ports[n]}", "--control-bind", f"127.0.0.1:{self.controls[n]}"),
        )

    def revoke(self, count: int) -> None:
        """Revoke the tokens of the next `count` users, ten a second, at either node, until it is answered 200."""
        with httpx.Client(timeout=5) as http:
            for user in itertools.islice(self._remaining, count):
                for n in itertools.cycle((len(self.revoked) % 2, 1 - len(self.revoked) % 2)):
                    with contextlib.suppress(httpx.TransportError):
                        answer = http.post(f"http://127.0.0.1:{self.controls[n]}/revoke/", json={"userId": user})
                        if answer.status_code == 200:
                            break
                        assert answer.status_code == 503, answer.text
                    time.sleep(0.05)
                self.revoked[user] = time.time()
                time.sleep(0.1)

    def revoke_during(self, count: int, fault: Callable[[], None]) -> None:
        """Do what `fault` does half a second after the first of `count` revocations."""
        revoking = threading.Thread(target=self.revoke, args=(count,))
        revoking.start()
        time.sleep(0.5)
        fault()
        revoking.join()

    @contextlib.contextmanager
    def outage(self, *nodes: int) -> Any:
        """Record that these nodes cannot read the log inside the context, and until they are ready."""
        began = time.time()
        yield
        while not all(status(hub, "readyz") == 200 for hub in self.hubs):
            time.sleep(0.2)  # the nodes need the processors
        self.outages.append(Outage(tuple(self.ports[n] for n in nodes), began, time.time()))

    def kill_a_node(self) -> None:
        with self.outage(1):
            self.hubs[1].signal(signal.SIGKILL)
            self.hubs[1].wait()
            time.sleep(0.5)
            self.hubs[1] = self.start(1)

    def deadline(self, user: str, port: int) -> float:
        """Return until when the user's streams on this port must have ended."""
        return SECONDS + max(
            self.revoked[user],
            *(one.ended for one in self.outages if port in one.ports and one.began - SECONDS <= self.revoked[user]),
            0.0,
        )

    def check(self, crowd: RevokedCrowd) -> str:
        """Check every stream; return the figures."""
        wait_until(lambda: all(one["is_open"] or one["refused_at"] for one in crowd.report()), 30)
        streams = crowd.report()
        strict, late = [], []
        for one in streams:
            user, port = one["user"], one["port"]
            is_revoked = user in self.revoked
            assert one["is_open"] is not is_revoked and bool(one["refused_at"]) is is_revoked, str(one)
            if not is_revoked:
                assert one["revoked_at"] is None, str(one)
                continue
            deadline = self.deadline(user, port)
            if one["closed_at"] > deadline:
                late.append((one, self.revoked[user], deadline))
            if deadline == self.revoked[user] + SECONDS:
                strict.append(one["closed_at"] - self.revoked[user])
        assert not late, f"{len(late)}: {late[:3]}, {[hub.log[-1_000:] for hub in self.hubs]}"
        strict.sort()
        return (
            f"{len(strict)} of the {len(self.revoked) * STREAMS * 2} streams of {len(self.revoked)} users were on nodes"
            f" that could read the log, and ended within {strict[-1] * 1000:.0f} ms"
            f" (median {strict[len(strict) // 2] * 1000:.0f} ms)"
        )

    def check_refused(self) -> None:
        """Check that every revoked token is answered 401 at both nodes, and another one 200."""
        users = [*self.revoked, f"u{USERS - 1}"]
        with httpx.Client() as http:
            for user, port in itertools.product(users, self.ports):
                with http.stream("GET", f"http://127.0.0.1:{port}/events/?token={self.tokens[user]}") as answer:
                    assert answer.status_code == (401 if user in self.revoked else 200), user

    def restart(self) -> None:
        for n in (0, 1):
            self.hubs[n].signal()
            self.hubs[n].wait()
            self.hubs[n] = self.start(n)


@pytest.mark.only_soak
@pytest.mark.parametrize("kind", KINDS)
def test_streams_end_within_a_second_and_stay_revoked_despite_kill_9_and_flushall(
    kind: str, tmp_path: Path, start_hub: Callable[..., RunningHub]
) -> None:
    server = RedisServer(kind, tmp_path, *DURABLE)
    try:
        deployment = Deployment(server.url, start_hub)

        def kill_redis() -> None:
            with deployment.outage(0, 1):
                server.kill()
                time.sleep(0.5)
                server.start()

        def flush() -> None:
            server.command("FLUSHALL")

        with RevokedCrowd(deployment.ports, deployment.tokens, tmp_path) as crowd:
            crowd.wait_until_open()
            with Publisher(deployment.controls) as publisher:
                deployment.revoke(REVOKED // 4)
                for fault in (deployment.kill_a_node, kill_redis, flush):
                    deployment.revoke_during(REVOKED // 4, fault)
                    time.sleep(SECONDS)
                figures = deployment.check(crowd)
        wait_until(lambda: server.command("HLEN", TABLE) == REVOKED)
        deployment.check_refused()
        deployment.restart()
        deployment.check_refused()
    finally:
        server.kill()

    report(f"{kind}, kill -9 of a node and of Redis, FLUSHALL: {figures}; {publisher.answered} events answered,")
    report(
        f"  {publisher.refused} refused; outages {[round(one.ended - one.began, 1) for one in deployment.outages]} s"
    )


@pytest.mark.only_soak
@pytest.mark.parametrize("kind", KINDS)
def test_streams_stay_revoked_despite_a_failover_to_a_replica_that_lags(
    kind: str, tmp_path: Path, start_hub: Callable[..., RunningHub]
) -> None:
    with replicated(kind, tmp_path) as (primary, _, replica, sentinel):
        deployment = Deployment(sentinel.url, start_hub)

        def fail_over() -> None:
            with deployment.outage(0, 1):
                primary.kill()
                wait_until(lambda: sentinel.primary_port == replica.port, 20)
                wait_until(lambda: status(deployment.hubs[0], "readyz") == 200, 20)

        with RevokedCrowd(deployment.ports, deployment.tokens, tmp_path) as crowd:
            crowd.wait_until_open()
            with Publisher(deployment.controls) as publisher:
                deployment.revoke(REVOKED // 4)
                # It loses the connection, and cannot log in again. Sentinel does not promote it after more than 5 s.
                replica.command("CONFIG", "SET", "masteruser", "nobody", "masterauth", "nothing")
                primary.command("CLIENT", "KILL", "TYPE", "replica")
                deployment.revoke(LAG)
                lacked = REVOKED // 4 + LAG - replica.command("HLEN", TABLE)
                deployment.revoke_during(REVOKED // 4, fail_over)
                deployment.revoke_during(REVOKED // 2 - LAG, deployment.kill_a_node)
                time.sleep(SECONDS)
                figures = deployment.check(crowd)
        wait_until(lambda: replica.command("HLEN", TABLE) == REVOKED)
        deployment.check_refused()
        deployment.restart()
        deployment.check_refused()

    assert lacked >= LAG
    report(f"{kind}, failover to a replica that lacked {lacked} revocations, kill -9 of a node: {figures};")
    report(f"  {publisher.answered} events answered, {publisher.refused} refused;")
    report(f"  outages {[round(one.ended - one.began, 1) for one in deployment.outages]} s")


@asynccontextmanager
async def longest_slice() -> AsyncIterator[list[float]]:
    """Yield a list with the longest time, in seconds of CPU, that the event loop has been kept by others so far."""
    longest = [0.0]

    async def watch() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            longest[0] = max(longest[0], time.thread_time() - began)

    task = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        task.cancel()


async def fill(server: RedisServer) -> None:
    """Fill the table, as nodes do that put it back."""
    async with running(server.url) as peer:
        await peer.publish("the log begins")
        await until(lambda: peer.data)
        async with Server(server.url, "ssehub").connect(5) as connection:
            for start in range(0, MAX_REVOCATIONS, 1_000):
                revocations = [
                    Revocation(user_id=f"{n:08}@id.example", issued_before=1.8e9 + n / 7, expires_at=1.9e9)
                    for n in range(start, start + 1_000)
                ]
                assert await connection.restore(revocations, peer.position, LogRetention()) == 1_000


@pytest.mark.only_soak
async def test_full_table_is_read_and_put_back_in_slices(redis_server: RedisServer) -> None:
    await fill(redis_server)
    async with running(redis_server.url) as peer:
        in_redis = redis_server.command("MEMORY", "USAGE", TABLE, "SAMPLES", 1_000)
        began = time.monotonic()
        gc.disable()  # of a hub that is served, it stops nothing for long: see ssehub.server.collector
        async with longest_slice() as longest, running(redis_server.url) as later:
            report(f"{MAX_REVOCATIONS} revocations: {in_redis / 2**20:.0f} MiB in Redis")
            started = time.monotonic() - began
            report(f"  a node starts in {started:.1f} s; no slice takes more than {longest[0] * 1000:.0f} ms")
            assert len(later.broker.revocations) == MAX_REVOCATIONS and later.broker.is_current
            assert longest[0] < 0.1

            longest[0] = slowest = 0.0
            began = time.monotonic()
            redis_server.command("FLUSHALL")
            while redis_server.command("HLEN", TABLE) < MAX_REVOCATIONS:
                sent = time.monotonic()
                await peer.publish(f"{sent}")
                await until(lambda sent=sent: later.data[-1:] == [f"{sent}"], 10)  # type: ignore[misc]  # lambda defaults
                slowest = max(slowest, time.monotonic() - sent)
            report(f"  put back by two nodes {time.monotonic() - began:.1f} s after FLUSHALL; an event arrives within")
            report(f"  {slowest * 1000:.0f} ms meanwhile; no slice takes more than {longest[0] * 1000:.0f} ms")
            assert len(later.broker.revocations) == len(peer.broker.revocations) == MAX_REVOCATIONS
            assert longest[0] < 0.1 and slowest < SECONDS
    gc.enable()
    tracemalloc.start()
    async with running(redis_server.url):
        report(f"  a node's copy takes {tracemalloc.get_traced_memory()[0] / 2**20:.0f} MiB")
    tracemalloc.stop()
