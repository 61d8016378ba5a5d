"""Runs that are produced over HTTP: against real hubs, through proxies that cut, stall and buffer."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import multiprocessing
import random
import signal
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypedDict

import httpx
import pytest

from buffering_nginx import buffering_nginx
from conftest import CONTROL_KEY, RunningHub, StartHub, free_port, until, wait_until
from proxy import Mode, Proxy
from redis_servers import SOAK, RedisServer
from ssehub import AsyncPublisher, Publisher
from ssehub.errors import (
    ConfigError,
    ControlKeyError,
    InvalidEvent,
    InvalidRequest,
    RunConflict,
    RunLost,
    RunStopped,
    StaleRun,
    Unavailable,
)
from ssehub.publisher_http import Node
from ssehub.publisher_links import Links
from ssehub.publisher_request import Rhythm
from ssehub.publisher_route import Patience
from ssehub.publisher_run import MAX_WAITING_BYTES, HttpRuns
from ssehub.runs.arguments import make_order
from ssehub.runs.entries import RunEvent
from ssehub.runs.producer import ProducedRun

pytestmark = pytest.mark.anyio
pytest_plugins = ["redis_fixtures"]

QUICK = Patience(answer_seconds=2.0, first_wait_seconds=0.01, longest_wait_seconds=0.05, give_up_seconds=10.0)
RHYTHM = Rhythm(renew_seconds=0.1, life_seconds=0.2, check_seconds=5.0, short_life_seconds=0.2)
SEEDS = 200 if SOAK else 12


class Audience(TypedDict):
    channel: str
    user_id: str


FOR_ALEX: Audience = {"channel": "chat", "user_id": "alex"}


def run_url(hub: RunningHub, name: str, call: str = "") -> str:
    return f"{hub.control_url}/runs/{name}{call}"


def state_of(hub: RunningHub, name: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(run_url(hub, name)).raise_for_status().json()
    return found


def events_of(hub: RunningHub, name: str) -> list[dict[str, Any]]:
    lines = httpx.get(run_url(hub, name, "/events")).raise_for_status().text.splitlines()
    return [json.loads(line) for line in lines]


def data_of(hub: RunningHub, name: str) -> list[str]:
    return [event["data"] for event in events_of(hub, name)]


def runs_at(*ports: int, patience: Patience = QUICK, rhythm: Rhythm = RHYTHM) -> HttpRuns:
    """Return what a publisher uses for its runs, with waits that are shorter."""
    nodes = [
        Node(f"http://127.0.0.1:{port}", "127.0.0.1", port, "", None, {"Host": f"127.0.0.1:{port}"}) for port in ports
    ]
    return HttpRuns(Links(nodes, patience, rhythm))


def new_run(runs: HttpRuns, name: str, **arguments: Any) -> ProducedRun:
    return runs.produce(make_order(name, channel="chat", user_id="alex", **arguments))


def words(count: int, first: int = 0) -> list[str]:
    return [f"word {number}" for number in range(first, first + count)]


def create(hub: RunningHub, name: str) -> None:
    httpx.put(run_url(hub, name), json={"channel": "chat", "userId": "alex"}).raise_for_status()


def stop(hub: RunningHub, name: str) -> None:
    httpx.post(run_url(hub, name, "/stop")).raise_for_status()


async def test_leaving_the_block_ends_the_run_after_its_events(hub: RunningHub) -> None:
    async with (
        AsyncPublisher(hub.control_url) as publisher,
        publisher.run("whole", channel=["chat", "news"], user_id="alex", keep=60, stoppable=True) as run,
    ):
        assert await run.append(data="one") == 1
        assert await run.append(data={"n": 2}, type="note", id="a", retry=5) == 2
        assert await run.append_events([]) == 2

    assert run.state == "done"
    ended = state_of(hub, "whole")
    assert (ended["generation"], ended["state"], ended["events"]) == (run.generation, "done", 2)
    assert (ended["channel"], ended["userId"]) == (["chat", "news"], ["alex"])
    assert (ended["keep"], ended["idle"], ended["stoppable"]) == (60, 60, True)
    assert events_of(hub, "whole") == [
        {"data": "one"},
        {"data": '{"n":2}', "event": "note", "id": "a", "retry": 5},
    ]


async def test_events_arrive_while_the_request_is_open(hub: RunningHub) -> None:
    async with (
        AsyncPublisher(hub.control_url) as publisher,
        publisher.run("live ?ü", channel="chat", user_id="alex") as run,
    ):
        for number, word in enumerate(words(5), 1):
            await run.append(data=word)
            await until(lambda: state_of(hub, "live%20%3F%C3%BC")["events"] == run.events)
            assert run.events == number


async def test_exception_and_cancellation_fail_the_run(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher:
        with pytest.raises(ZeroDivisionError):
            async with publisher.run("broken", **FOR_ALEX) as run:
                await run.append(data="one")
                raise ZeroDivisionError("with a secret")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), publisher.run("cancelled", **FOR_ALEX) as run:
                await run.append(data="one")
                await asyncio.sleep(10)
        async with publisher.run("explained", **FOR_ALEX) as run:
            await run.fail("no credit left")

    failures = [(state_of(hub, name)["state"], state_of(hub, name)["error"]) for name in ("broken", "cancelled")]
    assert failures == [("failed", "ZeroDivisionError"), ("failed", "cancelled")]
    assert state_of(hub, "explained")["error"] == "no credit left"
    assert data_of(hub, "broken") == data_of(hub, "cancelled") == ["one"]


async def test_stop_interrupts_a_silent_producer(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher, httpx.AsyncClient() as client:
        with pytest.raises(RunStopped):
            async with publisher.run("stopped", **FOR_ALEX) as run:
                await run.append(data="one")
                began = time.monotonic()
                await client.post(run_url(hub, "stopped", "/stop"))
                await asyncio.sleep(10)

    assert time.monotonic() - began < 2
    assert run.is_stopped
    await until(lambda: state_of(hub, "stopped")["state"] == "stopped")


async def test_another_producer_interrupts_this_one(hub: RunningHub) -> None:
    async def produce_until_interrupted() -> None:
        with pytest.raises(StaleRun):
            async with first:
                await first.append(data="one")
                await asyncio.sleep(10)

    async with AsyncPublisher(hub.control_url) as publisher:
        first = publisher.run("taken", **FOR_ALEX)
        producing = asyncio.create_task(produce_until_interrupted())
        await until(lambda: first.events and state_of(hub, "taken")["events"] == 1)
        with pytest.raises(RunConflict) as caught:
            async with publisher.run("taken", **FOR_ALEX):
                pass
        async with publisher.run("taken", **FOR_ALEX, takeover=True) as second:
            assert (second.generation, second.events) == (first.generation + 1, 1)
            assert await second.append(data="two") == 2
            await producing

    assert (caught.value.reason, caught.value.generation) == ("open", first.generation)
    assert (state_of(hub, "taken")["state"], data_of(hub, "taken")) == ("done", ["one", "two"])


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"], ids=["restarted", "deleted", "ended"])
async def test_producer_is_interrupted_when_its_run_is_no_longer_its_own(hub: RunningHub, method: str) -> None:
    name = f"foreign-{method}"
    body = {"channel": "chat", "userId": "alex", "restart": True} if method == "PUT" else None
    async with AsyncPublisher(hub.control_url) as publisher, httpx.AsyncClient() as client:
        with pytest.raises(StaleRun):
            async with publisher.run(name, **FOR_ALEX) as run:
                await run.append(data="one")
                url = run_url(hub, name, "/finish" if method == "POST" else "")
                (await client.request(method, url, json=body)).raise_for_status()
                await asyncio.sleep(10)


async def test_refused_calls_raise_and_show_no_secret(hub: RunningHub, start_hub: StartHub) -> None:
    locked = start_hub("--control-key", CONTROL_KEY)
    async with AsyncPublisher(locked.control_url, control_key="mistaken" * 9) as publisher:
        with pytest.raises(ControlKeyError) as caught:
            async with publisher.run("x", **FOR_ALEX):
                pass
    async with AsyncPublisher(locked.control_url, control_key=CONTROL_KEY) as publisher:
        async with publisher.run("x", **FOR_ALEX) as run:
            await run.append(data="one")
        with pytest.raises(InvalidEvent, match="userId is missing"):
            publisher.run("x", channel="chat", user_id=[])
        with pytest.raises(InvalidRequest, match="give one of them"):
            publisher.run("x", **FOR_ALEX, restart=True, takeover=True)
    with pytest.raises(Unavailable, match="the publisher is closed"):
        publisher.run("x", **FOR_ALEX)
    with pytest.raises(ConfigError, match="same user name") as refused:
        AsyncPublisher(["http://a:secret@127.0.0.1", "http://127.0.0.1"])

    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncPublisher(f"http://us%C3%A9r:p%40ss@127.0.0.1:{port}/sse/") as publisher:
        with pytest.raises(ControlKeyError) as unauthorized:
            async with publisher.run("x", **FOR_ALEX):
                pass

    assert heads[0].startswith(b"PUT /sse/runs/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Basic " + base64.b64encode("usér:p@ss".encode()) + b"\r\n" in heads[0]
    assert "p@ss" not in str(unauthorized.value) and "p%40ss" not in str(unauthorized.value)
    assert "mistaken" not in str(caught.value)
    assert "secret" not in str(refused.value)


async def test_event_that_the_hub_refuses_is_raised_and_those_before_it_stand(hub: RunningHub) -> None:
    with pytest.raises(InvalidRequest):
        async with new_run(runs_at(hub.control_port), "refused") as run:
            await run.append(data="one")
            await run.append(data="x" * 1_100_000)
            await asyncio.sleep(10)

    assert data_of(hub, "refused") == ["one"]


async def test_run_that_becomes_too_large_is_raised(hub: RunningHub) -> None:
    with pytest.raises(RunConflict) as caught:
        async with new_run(runs_at(hub.control_port), "large") as run:
            for _ in range(100):
                await run.append(data="x" * 100_000)
            await asyncio.sleep(10)

    assert caught.value.reason == "too-large"
    assert state_of(hub, "large")["error"] == "too-large"


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_cuts_at_random_bytes_lose_and_double_nothing(hub: RunningHub, seed: int) -> None:
    chance = random.Random(seed)
    name = f"cut-{seed}"
    with Proxy(hub.control_port) as proxy:
        proxy.cut_request_after(chance.randrange(400, 4_000))
        async with new_run(runs_at(proxy.port), name) as run:
            for number, word in enumerate(words(300)):
                await run.append(data=word)
                if number % 50 == 49:
                    (proxy.cut_after if chance.random() < 0.5 else proxy.cut_request_after)(chance.randrange(1, 2_500))
                if chance.random() < 0.1:
                    await asyncio.sleep(0.002)

    assert data_of(hub, name) == words(300)
    assert state_of(hub, name)["state"] == "done"


async def test_lost_answers_to_creation_and_end_do_no_harm(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        proxy.cut_answer_to(b"PUT /runs/")
        async with new_run(runs_at(proxy.port), "unanswered") as run:
            assert proxy.has_cut
            await run.append(data="one")
            proxy.cut_answer_to(b"?finish=done")
        assert proxy.has_cut

    assert (run.generation, run.state, data_of(hub, "unanswered")) == (1, "done", ["one"])


async def test_long_error_is_cut(hub: RunningHub) -> None:
    async with new_run(runs_at(hub.control_port), "long-winded") as run:
        await run.fail("x" * 5_000)

    assert state_of(hub, "long-winded")["error"] == "x" * 1_000


async def test_event_behind_the_end_is_refused_while_the_end_is_on_its_way(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        async with new_run(runs_at(proxy.port), "late") as run:
            await run.append(data="one")
            await until(lambda: data_of(hub, "late") == ["one"])
            proxy.mode = Mode.STALL
            ending = asyncio.create_task(run.finish())
            await asyncio.sleep(0.05)
            with pytest.raises(RunConflict, match="has ended"):
                await run.append(data="two")
            proxy.mode = Mode.PASS
            await ending

    assert (state_of(hub, "late")["state"], data_of(hub, "late")) == ("done", ["one"])


async def test_first_end_counts_though_its_caller_was_cancelled(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        async with new_run(runs_at(proxy.port), "first-end") as run:
            proxy.mode = Mode.STALL
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await run.fail("no model")
            proxy.mode = Mode.PASS

    assert state_of(hub, "first-end")["error"] == "no model"


async def test_block_that_raises_is_left_soon_and_the_end_stored_later(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssehub.runs.producer.LEAVE_SECONDS", 0.1)
    with Proxy(hub.control_port) as proxy:
        runs = runs_at(proxy.port)
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            async with new_run(runs, "left") as run:
                await run.append(data="one")
                proxy.mode = Mode.DROP
                raise ZeroDivisionError
        assert time.monotonic() - began < 3
        proxy.mode = Mode.PASS
        await until(lambda: not runs.links.tasks)

    assert (state_of(hub, "left")["error"], data_of(hub, "left")) == ("ZeroDivisionError", ["one"])


async def test_run_whose_creation_is_cancelled_ends_as_soon_as_it_is_known(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        proxy.mode = Mode.SWALLOW
        runs = runs_at(proxy.port, patience=QUICK._replace(answer_seconds=0.5))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), new_run(runs, "unwanted"):
                pass
        await until(lambda: state_of(hub, "unwanted")["state"] == "open")
        proxy.mode = Mode.DROP
        proxy.mode = Mode.PASS
        await until(lambda: not runs.links.tasks)

        nowhere = runs_at(free_port())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), new_run(nowhere, "unsent"):
                pass
        await until(lambda: not nowhere.links.tasks)

    assert (state_of(hub, "unwanted")["state"], state_of(hub, "unwanted")["error"]) == ("failed", "cancelled")


async def test_connection_that_is_silent_is_given_up_for_another(hub: RunningHub) -> None:
    patience = QUICK._replace(answer_seconds=0.3)
    with Proxy(hub.control_port) as proxy:
        async with new_run(runs_at(proxy.port, hub.control_port, patience=patience), "stalled") as run:
            await run.append(data="one")
            await until(lambda: state_of(hub, "stalled")["events"] == 1)
            proxy.mode = Mode.STALL
            await run.append(data="two")
            await until(lambda: data_of(hub, "stalled") == ["one", "two"])
            proxy.mode = Mode.PASS


async def test_append_waits_while_too_much_waits_to_be_stored(hub: RunningHub) -> None:
    event = "x" * 10_000
    count = 0
    with Proxy(hub.control_port) as proxy:
        runs = runs_at(proxy.port, patience=QUICK._replace(answer_seconds=20))
        async with new_run(runs, "slow") as run:
            proxy.mode = Mode.STALL
            with pytest.raises(TimeoutError):
                while True:
                    async with asyncio.timeout(0.5):
                        await run.append(data=event)
                    count += 1
            assert MAX_WAITING_BYTES < count * len(event) < MAX_WAITING_BYTES * 1.1
            proxy.mode = Mode.PASS
            await run.append(data="last")
            count += 1

    assert (state_of(hub, "slow")["events"], data_of(hub, "slow")[-1]) == (count, "last")


async def test_block_is_interrupted_when_no_hub_works_for_too_long(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        runs = runs_at(proxy.port, patience=QUICK._replace(give_up_seconds=0.3))
        with pytest.raises(Unavailable, match=r"could not be used for 0.3 s"):
            async with new_run(runs, "abandoned") as run:
                proxy.mode = Mode.DROP
                await run.append(data="one")
                await asyncio.sleep(10)
        with pytest.raises(Unavailable):
            await run.append(data="two")
        with pytest.raises(Unavailable, match=r"could not be used for 0.3 s"):
            async with new_run(runs, "never"):
                pass


async def test_silent_producer_shows_signs_of_life(hub: RunningHub) -> None:
    async with new_run(runs_at(hub.control_port), "silent", idle=2) as run:
        await asyncio.sleep(3)
        await run.append(data="one")

    assert (state_of(hub, "silent")["state"], data_of(hub, "silent")) == ("done", ["one"])


async def test_closed_publisher_gives_its_runs_up(hub: RunningHub) -> None:
    publisher = AsyncPublisher(hub.control_url)
    with pytest.raises(Unavailable, match="closed"):
        async with publisher.run("given-up", **FOR_ALEX) as run:
            await run.append(data="one")
            await publisher.aclose()
            await run.append(data="two")

    assert state_of(hub, "given-up")["state"] == "open"


async def test_hub_in_memory_that_restarts_has_lost_its_runs_even_if_others_have_their_names(
    start_hub: StartHub,
) -> None:
    port = free_port()
    hub = start_hub("--control-bind", f"127.0.0.1:{port}")
    with Proxy(port) as proxy:
        runs = runs_at(proxy.port)
        async with AsyncExitStack() as stack:
            stack.enter_context(pytest.raises(RunLost, match="keeps runs in memory only"))
            lost = await stack.enter_async_context(new_run(runs, "lost"))
            twin = new_run(runs, "twin")
            with pytest.raises(RunLost, match="another run of that name"):
                async with twin:
                    await lost.append(data="one")
                    await twin.append(data="one")
                    await until(lambda: data_of(hub, "lost") == data_of(hub, "twin") == ["one"])
                    proxy.mode = Mode.DROP
                    hub = await asyncio.to_thread(restart, hub, start_hub, port, signal.SIGKILL)
                    create(hub, "twin")
                    proxy.mode = Mode.PASS
                    await twin.append(data="two")
                    await asyncio.sleep(10)

    assert data_of(hub, "twin") == []


async def test_hub_on_sqlite_that_is_killed_and_then_drained_has_everything_once(
    start_hub: StartHub, tmp_path: Path
) -> None:
    port = free_port()
    arguments = ("--control-bind", f"127.0.0.1:{port}", "--broker", f"sqlite:///{tmp_path / 'log.db'}")
    hub = start_hub(*arguments)
    async with new_run(runs_at(port), "durable") as run:
        for number in (signal.SIGKILL, signal.SIGTERM):
            restarting = asyncio.create_task(asyncio.to_thread(restart, hub, start_hub, port, number, *arguments))
            while not restarting.done():
                await run.append(data=f"word {run.events}")
                await asyncio.sleep(0.002)
            hub = await restarting

    assert data_of(hub, "durable") == words(run.events)
    assert (state_of(hub, "durable")["state"], run.events > 200) == ("done", True)


async def test_run_goes_on_at_the_next_node_when_one_is_killed_or_drained(
    start_hub: StartHub, valkey: RedisServer
) -> None:
    starts = [asyncio.to_thread(start_hub, "--broker", valkey.url) for _ in range(3)]
    nodes = await asyncio.gather(*starts)
    runs = runs_at(*(node.control_port for node in nodes))
    async with new_run(runs, "moving") as run:
        for word in words(400):
            await run.append(data=word)
            if run.events == 100:
                nodes[0].signal(signal.SIGKILL)
            if run.events == 200:
                nodes[1].signal(signal.SIGTERM)
            await asyncio.sleep(0.002)

    assert data_of(nodes[2], "moving") == words(400)
    assert state_of(nodes[2], "moving")["state"] == "done"


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGSTOP, id="silent", marks=pytest.mark.only_soak), pytest.param(signal.SIGKILL, id="killed")],
)
async def test_run_goes_on_when_its_store_is_back(
    start_hub: StartHub, valkey: RedisServer, number: signal.Signals
) -> None:
    hub = start_hub("--broker", valkey.url)
    async with new_run(runs_at(hub.control_port), "patient") as run:
        for word in words(300):
            await run.append(data=word)
            if run.events == 100:
                valkey.signal(number)
            if run.events == 200:
                await asyncio.to_thread(revive, valkey, number)
            await asyncio.sleep(0.002)

    assert data_of(hub, "patient") == words(300)
    assert state_of(hub, "patient")["state"] == "done"


async def test_events_that_a_store_has_stored_and_lost_are_sent_again(start_hub: StartHub, tmp_path: Path) -> None:
    server = RedisServer("valkey", tmp_path)
    try:
        hub = start_hub("--broker", server.url)
        async with new_run(runs_at(hub.control_port), "forgetful") as run:
            for word in words(300):
                await run.append(data=word)
                if run.events == 100:
                    await until(lambda: state_of(hub, "forgetful")["events"] == 100)
                    server.command("SAVE")
                if run.events == 200:
                    await until(lambda: state_of(hub, "forgetful")["events"] == 200)
                    await asyncio.sleep(0.2)  # the producer is told that they are stored
                    server.kill()
                    await asyncio.to_thread(server.start)

        assert data_of(hub, "forgetful") == words(300)
    finally:
        server.kill()


async def test_run_does_not_end_without_events_that_its_store_has_lost(
    start_hub: StartHub, valkey: RedisServer
) -> None:
    hub = start_hub("--broker", valkey.url)
    async with new_run(runs_at(hub.control_port, rhythm=RHYTHM._replace(life_seconds=60.0)), "shortened") as run:
        await run.append_events([RunEvent(word) for word in words(100)])
        await until(lambda: state_of(hub, "shortened")["events"] == 100)
        keys = [key for key in valkey.command("KEYS", "*") if "run:shortened" in key]
        for key in keys:
            valkey.command("COPY", key, f"{key}-before")
        await run.append_events([RunEvent(word) for word in words(100, 100)])
        await until(lambda: state_of(hub, "shortened")["events"] == 200)
        await asyncio.sleep(0.3)  # the producer is told that they are stored, and opens no other request
        for key in keys:
            valkey.command("COPY", f"{key}-before", key, "REPLACE")

    assert data_of(hub, "shortened") == words(200)
    assert state_of(hub, "shortened")["state"] == "done"


def revive(server: RedisServer, number: signal.Signals) -> None:
    if number == signal.SIGSTOP:
        server.signal(signal.SIGCONT)
    else:
        server.kill()
        server.restart()


def restart(hub: RunningHub, start_hub: StartHub, port: int, number: signal.Signals, *arguments: str) -> RunningHub:
    hub.signal(number)
    hub.wait()
    return start_hub(*(arguments or ("--control-bind", f"127.0.0.1:{port}")))


async def test_proxy_that_buffers_is_noticed_and_short_requests_sent(
    hub: RunningHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with buffering_nginx(tmp_path, hub.control_port) as port:
        runs = runs_at(
            port, rhythm=Rhythm(renew_seconds=30, life_seconds=0.2, check_seconds=0.5, short_life_seconds=0.2)
        )
        with pytest.raises(RunStopped):
            async with new_run(runs, "buffered") as run:
                await run.append(data="one")
                await until(lambda: data_of(hub, "buffered") == ["one"])
                await run.append(data="two")
                await until(lambda: data_of(hub, "buffered") == ["one", "two"])
                stop(hub, "buffered")
                await asyncio.sleep(10)
        async with new_run(runs, "buffered-2") as run:
            for word in words(2_000):
                await run.append(data=word)
            await until(lambda: state_of(hub, "buffered-2")["events"] == 2_000)

    assert data_of(hub, "buffered-2") == words(2_000)
    assert state_of(hub, "buffered")["state"] == "stopped"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "proxy_request_buffering off" in warnings[0]


async def test_hub_that_has_the_events_in_time_is_not_taken_for_a_proxy(
    hub: RunningHub, caplog: pytest.LogCaptureFixture
) -> None:
    runs = runs_at(hub.control_port, rhythm=RHYTHM._replace(renew_seconds=1, check_seconds=0.1))
    async with new_run(runs, "unbuffered") as run:
        for word in words(4):
            await run.append(data=word)
            await asyncio.sleep(0.1)

    assert runs.links.buffering.is_known
    assert not runs.links.buffering.is_found
    assert caplog.records == []


def test_threads_produce_runs(hub: RunningHub) -> None:
    def produce(name: str) -> None:
        with publisher.run(name, **FOR_ALEX) as run:
            for word in words(100):
                run.append(data=word)
            assert (run.events, run.is_stopped) == (100, False)

    names = [f"thread-{number}" for number in range(4)]
    with Publisher(hub.control_url) as publisher:
        threads = [threading.Thread(target=produce, args=[name]) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert [data_of(hub, name) for name in names] == [words(100)] * 4
    assert {state_of(hub, name)["state"] for name in names} == {"done"}


def test_stopped_thread_hears_of_it_at_its_next_append(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        with pytest.raises(RunStopped), publisher.run("stopped-thread", **FOR_ALEX) as run:
            run.append(data="one")
            stop(hub, "stopped-thread")
            wait_until(lambda: run.is_stopped, 2)
            run.append(data="two")
        with pytest.raises(ZeroDivisionError), publisher.run("broken-thread", **FOR_ALEX):
            raise ZeroDivisionError
        with pytest.raises(RunStopped), publisher.run("left-thread", **FOR_ALEX) as run:
            stop(hub, "left-thread")
            wait_until(lambda: run.is_stopped, 2)

    assert data_of(hub, "stopped-thread") == ["one"]
    assert state_of(hub, "broken-thread")["error"] == "ZeroDivisionError"
    with pytest.raises(Unavailable, match="closed"):
        publisher.run("late", **FOR_ALEX)


def test_publisher_that_is_closed_gives_up_the_run_of_a_thread(hub: RunningHub) -> None:
    publisher = Publisher(hub.control_url)
    with pytest.raises(Unavailable, match="closed"), publisher.run("closed-thread", **FOR_ALEX) as run:
        publisher.close()
        run.append(data="one")


def test_thread_that_waits_is_woken_when_its_publisher_is_closed(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        publisher = Publisher(f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(Unavailable, match="closed"), publisher.run("woken", **FOR_ALEX) as run:
            proxy.mode = Mode.STALL
            threading.Timer(0.5, publisher.close).start()
            while True:
                run.append(data="x" * 100_000)


def test_publisher_can_be_used_after_a_fork(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        with publisher.run("parent", **FOR_ALEX) as run:
            run.append(data="one")
        process = multiprocessing.get_context("fork").Process(target=_produce_one, args=(publisher,))
        process.start()
        process.join(10)
        with publisher.run("parent-2", **FOR_ALEX) as run:
            run.append(data="one")

    assert (process.exitcode, data_of(hub, "child")) == (0, ["one"])


def _produce_one(publisher: Publisher) -> None:
    with publisher.run("child", **FOR_ALEX) as run:
        run.append(data="one")


def test_threads_of_publishers_end_with_them(hub: RunningHub) -> None:
    publisher = Publisher(hub.control_url)
    with publisher.run("forgotten", **FOR_ALEX):
        pass
    del publisher
    gc.collect()
    wait_until(lambda: "ssehub-publisher" not in {thread.name for thread in threading.enumerate()}, 5)
