"""Producers that connect to two hubs over one Redis or Valkey, each of which is a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from appends import OpenAppend, create_run, data_of, run_of
from conftest import RunningHub, StartHub, wait_until
from redis_servers import RedisServer
from ssehub import AsyncPublisher

pytest_plugins = ["redis_fixtures"]

PRODUCER = ("Run-Producer: p", "Run-Generation: 1")


@pytest.fixture(autouse=True)
def close_appends() -> Iterator[None]:
    yield
    OpenAppend.close_begun()


@pytest.fixture
def hubs(redis_server: RedisServer, start_hub: StartHub) -> tuple[RunningHub, RunningHub]:
    return start_hub("--broker", redis_server.url), start_hub("--broker", redis_server.url)


def silent_append(hub: RunningHub, name: str) -> OpenAppend:
    """Return an append that has sent two events, which are stored, and sends nothing more."""
    create_run(hub.control_url, name)
    append = OpenAppend(hub.control_port, name, *PRODUCER, "Run-Offset: 0")
    append.send_event("a", "b")
    wait_until(lambda: run_of(hub.control_url, name)["events"] == 2)
    return append


def test_silent_producer_is_told_of_its_own_connection_to_another_node(hubs: tuple[RunningHub, RunningHub]) -> None:
    here, there = hubs
    for name, new in (("stream", OpenAppend), ("json", None)):
        old = silent_append(here, name)
        began = time.monotonic()
        if new is not None:
            append = new(there.control_port, name, *PRODUCER, "Run-Offset: 1")
        else:
            headers = {"Run-Producer": "p"}
            httpx.post(f"{there.control_url}/runs/{name}", json={"data": "c"}, headers=headers).raise_for_status()
        status, body = old.answer()

        assert (status, body["reason"], body["generation"]) == (409, "superseded", 1)
        assert time.monotonic() - began < 1
        if new is not None:
            append.send_event("b", "c")
            append.finish()
        assert data_of(here.control_url, name) == ["a", "b", "c"]


def test_silent_producer_is_told_although_its_node_heard_nothing_at_the_time(
    hubs: tuple[RunningHub, RunningHub], redis_server: RedisServer
) -> None:
    here, there = hubs
    old = silent_append(here, "answer")
    for _ in range(5):
        redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    OpenAppend(there.control_port, "answer", *PRODUCER, "Run-Offset: 2")

    assert old.answer()[1]["reason"] == "superseded"


@pytest.mark.anyio
async def test_silent_producer_over_http_outlives_an_outage(valkey: RedisServer, start_hub: StartHub) -> None:
    hub = start_hub("--broker", valkey.url)
    async with (
        AsyncPublisher(hub.control_url) as publisher,
        publisher.run("answer", channel="chat", user_id="alex", idle=2) as run,
    ):
        await run.append(data="1")
        await asyncio.to_thread(valkey.kill)
        await asyncio.sleep(6)
        await asyncio.to_thread(valkey.start)
        await asyncio.sleep(8)
        await run.append(data="2")

    assert data_of(hub.control_url, "answer") == ["1", "2"]
    assert run_of(hub.control_url, "answer")["state"] == "done"
