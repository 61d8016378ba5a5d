"""Several processes on the same two addresses: together they are one hub."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from httpx_sse import ServerSentEvent

from conftest import SECRET, RunningHub, wait_until
from redis_servers import RedisServer
from ssehub.brokers import create_broker
from ssehub.config import load_config
from ssehub.errors import AddressError, ConfigError
from ssehub.hub import Hub
from ssehub.server.workers import Board, serve_by_workers
from streams import RawStream, listen

Start = Callable[..., RunningHub]
Open = Callable[..., RawStream]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    yield running
    running.kill()


@pytest.fixture
def start_workers(server: RedisServer, start_hub: Start, tmp_path: Path) -> Start:
    """Starts two workers on a log of their own."""

    def start(*arguments: str, **options: Any) -> RunningHub:
        log = ("--broker", server.url, "--redis-prefix", tmp_path.name)
        hub = start_hub(*log, "--workers", "2", *arguments, **options)
        wait_until(lambda: hub.log.count("has begun") == 2)
        return hub

    return start


@pytest.fixture
def opened() -> Iterator[Callable[..., RawStream]]:
    """Opens streams, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open(hub: RunningHub, token: str, *headers: str) -> RawStream:
            stream = listen(hub.port, token, *headers)
            stack.callback(stream.close)
            return stream

        yield open


def subscribers(hub: RunningHub) -> dict[str, int]:
    """Streams by worker, as any of them tells."""
    text = httpx.get(f"{hub.control_url}/metrics").text
    return {worker: int(float(n)) for worker, n in re.findall(r'^ssehub_subscribers{worker="(\d)"} (\S+)$', text, re.M)}


def processes(hub: RunningHub) -> list[psutil.Process]:
    children = psutil.Process(hub.process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_workers_share_connections_and_events_and_one_scrape_shows_them_all(start_workers: Start, opened: Open) -> None:
    hub = start_workers()
    token = hub.token()

    streams = [opened(hub, token) for _ in range(200)]
    ids = [hub.emit(data=f"{n}") for n in range(20)]  # each on a connection of its own, so by either worker

    for stream in streams:
        assert [event.id for event in decode_until(stream, ids[-1])] == ids
    scrapes = [subscribers(hub) for _ in range(8)]
    assert all(scrape == scrapes[0] for scrape in scrapes)
    assert sum(scrapes[0].values()) == 200
    assert min(scrapes[0].values()) > 50  # of 200: five sigma from the half


def decode_until(stream: RawStream, id: str) -> list[ServerSentEvent]:
    stream.read_until(f"id: {id}\n".encode())
    stream.read_until(b"\n\n\r\n")
    return [event for event in stream.events if event.data]


def test_dead_worker_is_replaced_and_streams_of_the_others_go_on(start_workers: Start, opened: Open) -> None:
    hub = start_workers()
    token = hub.token()
    streams = [opened(hub, token) for _ in range(20)]
    first = hub.emit(data="before")
    for stream in streams:
        stream.read_until(first.encode())

    processes(hub)[0].kill()
    wait_until(lambda: hub.log.count("has begun") == 3)
    last = hub.emit(data="after")

    assert "another takes its place" in hub.log
    ended = 0
    for stream in streams:
        try:
            stream.read_until(last.encode())
        except (AssertionError, ConnectionResetError):
            ended += 1
            again = opened(hub, token, f"Last-Event-ID: {first}")
            again.read_until(last.encode())
            assert b"stream-reset" not in again.bytes
    assert 0 < ended < 20
    assert sorted(subscribers(hub)) == ["0", "1"]


def test_disconnect_reaches_the_streams_of_every_worker(start_workers: Start, opened: Open) -> None:
    hub = start_workers()
    alex, kim = hub.token("alex"), hub.token("kim")
    meant = [opened(hub, alex) for _ in range(10)]
    other = opened(hub, kim)

    answer = httpx.post(f"{hub.control_url}/disconnect/", data={"userId": "alex"})

    assert (answer.status_code, answer.text) == (200, "OK")
    for stream in meant:
        stream.read_to_end()
        assert stream.events[-1].event == "stream-revoked"
    assert hub.emit(data="x").encode() in other.read_until(b"data: x")


def test_sigterm_drains_all_workers(start_workers: Start, opened: Open) -> None:
    hub = start_workers("--drain-seconds", "2")
    streams = [opened(hub, hub.token()) for _ in range(40)]

    hub.signal()

    for stream in streams:
        assert stream.read_to_end().endswith(b"0\r\n\r\n")
        assert stream.events[-1].event == "stream-drain"
    assert hub.wait() == 0
    assert not re.search(r"ERROR|Traceback", hub.log)


def test_a_second_signal_ends_all_workers_at_once(start_workers: Start, opened: Open) -> None:
    hub = start_workers("--drain-seconds", "30")
    for _ in range(40):
        opened(hub, hub.token())
    children = processes(hub)

    hub.signal()
    wait_until(lambda: hub.log.count("draining") >= 2)
    hub.signal(signal.SIGINT)

    assert hub.wait(10) == 128 + signal.SIGINT
    assert not any(child.is_running() for child in children)


def test_workers_end_when_their_parent_is_killed(start_workers: Start) -> None:
    hub = start_workers("--drain-seconds", "1")
    children = processes(hub)

    hub.process.kill()

    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 2 and not alive


def test_without_a_secret_the_parent_makes_one_for_all(start_workers: Start, opened: Open) -> None:
    hub = start_workers(env={"SSEHUB_SECRET": None})

    streams = [opened(hub, hub.token()) for _ in range(20)]  # each token by either worker

    assert all(stream.bytes.startswith(b"HTTP/1.1 200") for stream in streams)
    assert hub.log.count("no secret is set") == 1


def test_workers_share_a_unix_socket(start_workers: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    hub = start_workers("--bind", f"unix:{path}")
    transport = httpx.HTTPTransport(uds=str(path))

    with httpx.Client(transport=transport) as client:
        answer = client.head("http://localhost/events/", headers={"Authorization": f"Bearer {hub.token()}"})

    assert answer.status_code == 200
    hub.signal()
    assert hub.wait() == 0 and not path.exists()


def test_what_keeps_the_first_worker_from_its_start_is_said_once(server: RedisServer) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ssehub", "--workers", "2", "--broker", "redis://127.0.0.1:1", "--log-level", "error"],
        env={"SSEHUB_SECRET": SECRET, "SSEHUB_BIND": "127.0.0.1:0", "SSEHUB_CONTROL_BIND": "127.0.0.1:0"},
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert result.returncode == 3
    assert re.fullmatch(r"ssehub: cannot use the log at redis://127.0.0.1:1: .*refused\.\n", result.stderr)


def test_another_group_on_the_same_port_is_refused(start_workers: Start, server: RedisServer) -> None:
    hub = start_workers()

    config = load_config({"bind": f"127.0.0.1:{hub.port}", "broker": server.url, "workers": 2, "secret": SECRET})

    with pytest.raises(AddressError, match="the port is in use"):
        serve_by_workers(config)


@pytest.mark.parametrize("broker", ["memory://", "sqlite:///x.db"])
def test_f16_a_log_of_one_process_is_refused(broker: str) -> None:
    with pytest.raises(ConfigError, match=r"2 workers need a log that they share, such as --broker redis://"):
        serve_by_workers(load_config({"broker": broker, "workers": 2}))


@pytest.mark.anyio
async def test_worker_that_does_not_answer_is_left_out_of_the_numbers(tmp_path: Path) -> None:
    board = Board(tmp_path, 1, 3)
    async with Hub(create_broker("memory://")) as hub, board.shown(hub), Board(tmp_path, 2, 3).shown(hub):
        assert list(await board.gather(hub)) == ["1", "2"]
