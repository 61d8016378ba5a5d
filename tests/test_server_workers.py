"""Several workers on the same two addresses behave like one hub."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from httpx_sse import ServerSentEvent

from conftest import ERROR_LINES, SECRET, RunningHub, StartHub, wait_until
from redis_servers import SOAK, RedisServer
from ssehub.config import load_config
from ssehub.errors import AddressError, ConfigError
from ssehub.server.workers import MAX_UNANSWERED, hangs, serve_by_workers
from streams import LAST_CHUNK, NATIVE, RawStream, listen

OpenStream = Callable[..., RawStream]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    yield running
    running.kill()


@pytest.fixture
def start_workers(server: RedisServer, start_hub: StartHub, tmp_path: Path) -> StartHub:
    """Start two workers on a log of their own."""

    def start(*arguments: str, **options: Any) -> RunningHub:
        log = ("--broker", server.url, "--redis-prefix", tmp_path.name)
        hub = start_hub(*log, "--workers", "2", *arguments, **options)
        wait_until(lambda: hub.log.count("has started") == 2)
        return hub

    return start


@pytest.fixture
def open_stream() -> Iterator[OpenStream]:
    """Open streams, and close them after the test."""
    with contextlib.ExitStack() as stack:

        def open(hub: RunningHub, token: str, *headers: str) -> RawStream:
            stream = listen(hub.port, token, *headers)
            stack.callback(stream.close)
            return stream

        yield open


def subscribers(hub: RunningHub) -> dict[str, int]:
    """Return the number of streams by worker, as one of the workers reports it."""
    text = httpx.get(f"{hub.control_url}/metrics").text
    return {worker: int(float(n)) for worker, n in re.findall(r'^ssehub_subscribers{worker="(\d)"} (\S+)$', text, re.M)}


def processes(hub: RunningHub) -> list[psutil.Process]:
    return workers_of(hub.process.pid)


def workers_of(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_workers_share_connections_and_events_and_one_scrape_shows_all_workers(
    start_workers: StartHub, open_stream: OpenStream
) -> None:
    hub = start_workers()
    token = hub.token()

    streams = [open_stream(hub, token) for _ in range(200)]
    ids = [hub.emit(data=f"{n}") for n in range(20)]  # each on a connection of its own, so sent by either worker

    for stream in streams:
        assert [event.id for event in decode_until(stream, ids[-1])] == ids
    scrapes = [subscribers(hub) for _ in range(8)]
    assert all(scrape == scrapes[0] for scrape in scrapes)
    assert sum(scrapes[0].values()) == 200
    assert min(scrapes[0].values()) > 50  # five standard deviations below the half of 200


def decode_until(stream: RawStream, id: str) -> list[ServerSentEvent]:
    stream.read_until(f"id: {id}\n\n".encode())
    return [event for event in stream.events if event.data]


def test_dead_worker_is_replaced_and_the_streams_of_the_other_go_on(
    start_workers: StartHub, open_stream: OpenStream
) -> None:
    hub = start_workers()
    token = hub.token()
    streams = [open_stream(hub, token) for _ in range(20)]
    first = hub.emit(data="before")
    for stream in streams:
        stream.read_until(first.encode())

    processes(hub)[0].kill()
    wait_until(lambda: hub.log.count("has started") == 3)
    last = hub.emit(data="after")

    assert "it is restarted in" in hub.log
    ended = 0
    for stream in streams:
        try:
            stream.read_until(last.encode())
        except (AssertionError, ConnectionResetError):
            ended += 1
            resumed = open_stream(hub, token, f"Last-Event-ID: {first}")
            resumed.read_until(last.encode())
            assert b"stream-reset" not in resumed.bytes
    assert 0 < ended < 20
    assert sorted(subscribers(hub)) == ["0", "1"]


def client_of_a_running_worker(clients: list[httpx.Client]) -> httpx.Client:
    """Return one of `clients` whose connection is with a worker that answers."""
    for client in clients:
        with contextlib.suppress(httpx.TimeoutException):
            client.get("/healthz", timeout=0.3).raise_for_status()
            return client
    raise AssertionError("no worker answers")


def test_h3_stopped_worker_is_missing_in_listings_and_what_the_other_says_is_right(
    start_workers: StartHub, open_stream: OpenStream
) -> None:
    hub = start_workers()
    token = hub.token()
    for _ in range(20):
        open_stream(hub, token)
    found = re.search(r"worker 1 has started, process (\d+)", hub.log)
    assert found
    stopped = psutil.Process(int(found[1]))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=hub.control_url, timeout=8)) for _ in range(12)]
        for client in clients:  # the kernel gives each connection to one of the workers
            before = client.get("/streams/?limit=1000").json()
        of_first = [stream for stream in before["streams"] if stream["worker"] == "0"]

        stopped.suspend()
        try:
            http = client_of_a_running_worker(clients)
            listing, channels, statistics, largest = (
                http.get(path).json()
                for path in ("/streams/?limit=1000", "/channels/", "/statistics", "/streams/?sort=backlog")
            )
        finally:
            stopped.resume()  # before the parent takes it for one that hangs
        after = http.get("/streams/?limit=1000").json()

    assert before["missing"] == after["missing"] == []
    assert len(before["streams"]) == len(after["streams"]) == 20 > len(of_first) > 0
    for answer in (listing, channels, statistics, largest):
        assert answer["missing"] == ["1"]
    assert [stream["number"] for stream in listing["streams"]] == [stream["number"] for stream in of_first]
    assert channels["channels"] == [{"channel": "chat", "streams": len(of_first), "patternStreams": 0}]
    assert statistics["total"]["subscribers"] == len(of_first)
    assert before["node"] == after["node"] and before["node"]["pid"] == hub.process.pid
    assert before["nodes"] == []


@pytest.mark.soak
def test_worker_that_hangs_is_killed_and_replaced(start_workers: StartHub, open_stream: OpenStream) -> None:
    hub = start_workers()
    token = hub.token()
    streams = [open_stream(hub, token) for _ in range(20)]
    first = hub.emit(data="before")
    for stream in streams:
        stream.read_until(first.encode())

    processes(hub)[0].suspend()
    wait_until(lambda: hub.log.count("has started") == 3, 60)
    ids = [hub.emit(data=f"{n}") for n in range(20)]

    assert f"has not answered {MAX_UNANSWERED} checks: killed" in hub.log
    assert "exited with code -9: it is restarted in" in hub.log
    ended = 0
    for stream in streams:
        try:
            stream.read_until(ids[-1].encode())
        except (AssertionError, ConnectionResetError):
            ended += 1
            resumed = open_stream(hub, token, f"Last-Event-ID: {first}")
            resumed.read_until(ids[-1].encode())
            assert b"stream-reset" not in resumed.bytes
    assert 0 < ended < 20


@pytest.mark.soak
def test_workers_that_were_stopped_together_with_their_parent_are_not_replaced(start_workers: StartHub) -> None:
    hub = start_workers()
    group = [psutil.Process(hub.process.pid), *processes(hub)]

    for process in group:
        process.suspend()
    time.sleep(15 if SOAK else 2)
    for process in group:
        process.resume()
    time.sleep(3)

    assert hub.log.count("has started") == 2 and "killed" not in hub.log
    assert hub.emit(data="x")


@pytest.mark.anyio
async def test_checks_that_are_missed_are_counted_not_the_time_in_which_nobody_checks() -> None:
    ours, theirs = multiprocessing.Pipe()
    checking = asyncio.create_task(hangs(ours, interval_seconds=0.1))
    await asyncio.sleep(0.05)

    time.sleep(0.1 * (MAX_UNANSWERED + 5))  # noqa: ASYNC251  # both sides are stopped
    worker = threading.Thread(target=answer, args=(theirs, 3))
    worker.start()
    await asyncio.to_thread(worker.join, 10)

    assert not worker.is_alive() and not checking.done()
    assert await asyncio.wait_for(checking, 30)  # it no longer answers
    ours.close()
    theirs.close()


@pytest.mark.anyio
async def test_worker_that_has_gone_does_not_hang() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.close()

    assert not await asyncio.wait_for(hangs(ours, interval_seconds=0.1), 10)
    ours.close()


def answer(parent: Connection, checks: int) -> None:
    for _ in range(checks):
        parent.send_bytes(parent.recv_bytes())


def test_disconnect_reaches_the_streams_of_every_worker(start_workers: StartHub, open_stream: OpenStream) -> None:
    hub = start_workers()
    alex, kim = hub.token("alex"), hub.token("kim")
    disconnected = [open_stream(hub, alex) for _ in range(10)]
    other = open_stream(hub, kim)

    answer = httpx.post(f"{hub.control_url}/disconnect/", data={"userId": "alex"})

    assert (answer.status_code, answer.text) == (200, "OK")
    for stream in disconnected:
        stream.read_to_end()
        assert stream.events[-1].event == "stream-revoked"
    assert hub.emit(data="x").encode() in other.read_until(b"data: x")


def test_sigterm_drains_all_workers(start_workers: StartHub, open_stream: OpenStream) -> None:
    hub = start_workers("--drain-seconds", "2")
    streams = [open_stream(hub, hub.token(), *(NATIVE if number % 2 else ())) for number in range(40)]

    hub.signal()

    for number, stream in enumerate(streams):
        assert stream.read_to_end().endswith(LAST_CHUNK) is bool(number % 2)
        assert stream.events[-1].event == "stream-drain"
    assert hub.wait() == 0
    assert not ERROR_LINES.search(hub.log)


def test_second_signal_stops_all_workers_at_once(start_workers: StartHub, open_stream: OpenStream) -> None:
    hub = start_workers("--drain-seconds", "30")
    for _ in range(40):
        open_stream(hub, hub.token())
    children = processes(hub)

    hub.signal()
    wait_until(lambda: hub.log.count("draining") >= 2)
    hub.signal(signal.SIGINT)

    assert hub.wait(10) == 128 + signal.SIGINT
    assert not any(child.is_running() for child in children)


def test_workers_stop_when_their_parent_is_killed(start_workers: StartHub) -> None:
    hub = start_workers("--drain-seconds", "1")
    children = processes(hub)

    hub.process.kill()

    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 2 and not alive


def test_without_a_secret_all_workers_use_one_random_secret(start_workers: StartHub, open_stream: OpenStream) -> None:
    hub = start_workers(env={"SSEHUB_SECRET": None})

    streams = [open_stream(hub, hub.token()) for _ in range(20)]  # each token issued by either worker

    assert all(stream.bytes.startswith(b"HTTP/1.1 200") for stream in streams)
    assert hub.log.count("no secret is set") == 1


def test_workers_share_a_unix_socket(start_workers: StartHub, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    hub = start_workers("--bind", f"unix:{path}")
    transport = httpx.HTTPTransport(uds=str(path))

    with httpx.Client(transport=transport) as client:
        answer = client.head("http://localhost/events/", headers={"Authorization": f"Bearer {hub.token()}"})

    assert answer.status_code == 200
    hub.signal()
    assert hub.wait() == 0 and not path.exists()


def test_failure_of_the_first_worker_to_start_is_reported_once() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ssehub", "--workers", "2", "--broker", "redis://127.0.0.1:1", "--log-level", "error"],
        env={
            **os.environ,
            "SSEHUB_SECRET": SECRET,
            "SSEHUB_BIND": "127.0.0.1:0",
            "SSEHUB_CONTROL_BIND": "127.0.0.1:0",
        },
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert result.returncode == 3
    assert re.fullmatch(r"ssehub: cannot use the log at redis://127.0.0.1:1: .*refused\.\n", result.stderr)


STARTING_IN_FIVE_SECONDS = """
from ssehub.cli import main
from ssehub.server import workers

if __name__ == "__main__":
    workers.START_SECONDS = 5.0
    main()
"""


def test_worker_that_hangs_before_it_has_started_is_killed_and_replaced(server: RedisServer, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "SSEHUB_SECRET": SECRET,
        "SSEHUB_BROKER": server.url,
        "SSEHUB_REDIS_PREFIX": tmp_path.name,
        "SSEHUB_BIND": "127.0.0.1:0",
        "SSEHUB_CONTROL_BIND": "127.0.0.1:0",
    }
    command = [sys.executable, "-c", STARTING_IN_FIVE_SECONDS, "--workers", "2"]
    with open(tmp_path / "log", "w+") as log, subprocess.Popen(command, env=environment, stderr=log) as parent:

        def log_has(text: str) -> bool:
            return text in (tmp_path / "log").read_text()

        try:
            wait_until(lambda: len(workers_of(parent.pid)) == 1, 30)
            first = workers_of(parent.pid)[0]
            first.suspend()
            wait_until(lambda: log_has("worker 0 has started") and log_has("worker 1 has started"), 90)
        finally:
            parent.terminate()

        assert parent.wait(30) == 0
        assert log_has(f"worker 0, process {first.pid}, has not started within 5 s: killed")
        assert log_has("worker 0 exited with code -9: it is restarted in")


def test_second_group_on_the_same_port_is_refused(start_workers: StartHub, server: RedisServer) -> None:
    hub = start_workers()

    config = load_config({"bind": f"127.0.0.1:{hub.port}", "broker": server.url, "workers": 2, "secret": SECRET})

    with pytest.raises(AddressError, match="the port is in use"):
        serve_by_workers(config)


@pytest.mark.parametrize("broker", ["memory://", "sqlite:///x.db"])
def test_f16_a_log_of_one_process_is_refused(broker: str) -> None:
    with pytest.raises(ConfigError, match=r"2 workers need a log that they can share, such as --broker redis://"):
        serve_by_workers(load_config({"broker": broker, "workers": 2}))
