"""`GET /trace/`: what operators see of streams, on one hub and on several workers, and readers that do not read."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from httpx_sse import connect_sse

from commands import run
from conftest import CONTROL_KEY, RunningHub, StartHub, report, wait_until
from redis_servers import RedisServer
from streams import listen

PAIRS = 24


class Following:
    """The events of a stream of the control app, as they come."""

    def __init__(self, hub: RunningHub, path: str, **headers: str) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.status = 0
        self._socket: socket.socket
        self._client = httpx.Client(timeout=30, headers=headers)
        self._thread = threading.Thread(target=self._read, args=(f"{hub.control_url}{path}",), daemon=True)
        self._thread.start()
        wait_until(lambda: self.status)

    def _read(self, url: str) -> None:
        with contextlib.suppress(httpx.TransportError), connect_sse(self._client, "GET", url) as source:
            self._socket = source.response.extensions["network_stream"].get_extra_info("socket")
            self.status = source.response.status_code
            for event in source.iter_sse():
                self.events.append((event.event, json.loads(event.data)))

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.events]

    def of(self, step: str) -> list[dict[str, Any]]:
        return [fields for each, fields in self.events if each == step]

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._client.close()


@contextlib.contextmanager
def following_trace(hub: RunningHub, query: str = "", **headers: str) -> Iterator[Following]:
    found = Following(hub, f"/trace/{query}", **headers)
    try:
        yield found
    finally:
        found.close()


def test_trace_of_a_user_shows_what_happens_to_its_streams_and_nothing_of_events(start_hub: StartHub) -> None:
    hub = start_hub()
    with following_trace(hub, "?userId=alex") as trace:
        stream = listen(hub.port, hub.token(user_id="alex"), "User-Agent: browser/1")
        other = listen(hub.port, hub.token(user_id="kim"))
        hub.emit(data="a secret", id="publisher-7")
        wait_until(lambda: "delivered" in trace.steps)
        stream.close()
        other.close()
        wait_until(lambda: "ended" in trace.steps)

    assert trace.steps == ["opened", "delivered", "ended"]
    opened, delivered, ended = (fields for _, fields in trace.events)
    common = {"worker": "0", "number": 1, "userId": "alex", "channels": ["chat"], "address": "127.0.0.1"}
    for fields in (opened, delivered, ended):
        assert fields.items() >= {**common, "client": "browser/1"}.items()
        assert "secret" not in json.dumps(fields) and "publisher-7" not in json.dumps(fields)
    assert delivered["events"] == ended["events"] == 1
    assert (ended["reason"], ended["bytes"]) == ("disconnected", delivered["bytes"])


def test_trace_by_address_shows_who_is_refused(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "1")
    with following_trace(hub, "?address=127.0.0.0/8") as trace:
        stream = listen(hub.port, hub.token(user_id="alex"))
        assert httpx.get(f"{hub.url}/events/?token=none").status_code == 401
        assert "stream-busy" in httpx.get(f"{hub.url}/events/?end=clean&token={hub.token(user_id='kim')}").text
        wait_until(lambda: len(trace.of("refused")) == 2)
        stream.close()

    assert [(fields.get("userId"), fields["reason"]) for fields in trace.of("refused")] == [
        (None, "malformed"),
        ("kim", "full"),
    ]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?user=alex", "unknown field 'user': expected userId, channel, address"),
        ("?userId=", "userId is empty: it needs 1 to 255 characters"),
        ("?address=nowhere", "address 'nowhere': 'nowhere' does not appear to be an IPv4 or IPv6 network"),
    ],
)
def test_query_that_can_not_be_used_is_refused(hub: RunningHub, query: str, message: str) -> None:
    response = httpx.get(f"{hub.control_url}/trace/{query}")

    assert response.status_code == 400
    assert message in response.text


def test_trace_needs_the_right_to_read(start_hub: StartHub) -> None:
    hub = start_hub("--control-key", CONTROL_KEY)

    assert httpx.get(f"{hub.control_url}/trace/").status_code == 401


def test_drain_ends_a_trace_after_it_has_shown_it(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "2")
    stream = listen(hub.port, hub.token())
    with following_trace(hub) as trace:
        hub.process.send_signal(signal.SIGTERM)
        wait_until(trace.has_ended)
        assert hub.process.wait(10) == 0
    stream.close()

    assert [fields["reason"] for fields in trace.of("ended")] == ["drained"]


def test_reader_that_reads_nothing_is_cut_off_and_holds_nothing_up(start_hub: StartHub) -> None:
    code = "from ssehub.web import following; following.READ_SECONDS = 1; from ssehub.cli import main; main()"
    hub = start_hub(code=code)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect(("127.0.0.1", hub.control_port))
        sock.sendall(b"GET /trace/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        token = hub.token(user_id="x" * 250)

        def has_been_cut() -> bool:
            for _ in range(20):
                listen(hub.port, token).close()
            return "/trace/ cut off: nothing read for 1 s" in hub.log

        wait_until(has_been_cut, 60)
    assert httpx.get(f"{hub.control_url}/readyz").status_code == 200
    with following_trace(hub) as trace:  # there is room for others
        listen(hub.port, token).close()
        wait_until(lambda: "ended" in trace.steps)


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(900)
def test_h6_trace_of_everything_costs_little_under_full_load(start_hub: StartHub) -> None:
    """W1 of the benchmarks, with and without a trace of all streams, in turn."""
    hub = start_hub()
    deliveries_per_cpu_second(hub)
    ratios = []
    for number in range(PAIRS):  # what is measured second has a start, if any: so each is second in half of the pairs
        alone = deliveries_per_cpu_second(hub) if number % 2 else 0.0
        with following_trace(hub) as trace:
            traced = deliveries_per_cpu_second(hub)
        assert trace.of("delivered")
        ratios.append(traced / (alone or deliveries_per_cpu_second(hub)))
    median = statistics.median(ratios)
    report(f"W1 with a trace of everything, {PAIRS} pairs: {median:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")

    assert median >= 0.95


def deliveries_per_cpu_second(hub: RunningHub) -> float:
    """Deliver 2,000 events to 1,000 subscribers."""
    addresses = ["--url", hub.url, "--control-url", hub.control_url, "--server-pid", str(hub.process.pid)]
    result = run("bench", *addresses, "--subscribers", "1000", "--events", "2000", "--json")
    assert not result.returncode, result.stderr
    return float(json.loads(result.stdout)["deliveries_per_cpu_second"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    yield running
    running.kill()


def test_trace_shows_all_workers_also_one_that_dies(start_hub: StartHub, server: RedisServer, tmp_path: Path) -> None:
    hub = start_hub("--broker", server.url, "--redis-prefix", tmp_path.name, "--workers", "2")
    wait_until(lambda: hub.log.count("has started") == 2)
    with following_trace(hub, "?channel=chat") as trace:
        streams = [listen(hub.port, hub.token()) for _ in range(20)]
        wait_until(lambda: len(trace.of("opened")) == 20)
        hub.emit(data="hello")
        wait_until(lambda: sum(fields["events"] for fields in trace.of("delivered")) == 20)
        assert {fields["worker"] for fields in trace.of("opened")} == {"0", "1"}

        other = the_other_worker(hub)
        other.kill()
        wait_until(lambda: "worker-away" in trace.steps and "worker-back" in trace.steps, 20)
        before = len(trace.of("opened"))
        streams += [listen(hub.port, hub.token()) for _ in range(20)]
        wait_until(lambda: len(trace.of("opened")) == before + 20)
    for stream in streams:
        stream.close()

    assert {fields["worker"] for fields in trace.of("opened")[before:]} == {"0", "1"}
    assert trace.of("worker-away")[0]["worker"] == trace.of("worker-back")[0]["worker"]


def test_worker_that_hangs_is_away_until_it_goes_on(start_hub: StartHub, server: RedisServer, tmp_path: Path) -> None:
    hub = start_hub("--broker", server.url, "--redis-prefix", tmp_path.name, "--workers", "2")
    wait_until(lambda: hub.log.count("has started") == 2)
    with following_trace(hub) as trace:
        other = the_other_worker(hub)
        other.suspend()
        try:
            wait_until(lambda: "worker-away" in trace.steps, 20)
        finally:
            other.resume()
        wait_until(lambda: "worker-back" in trace.steps, 20)

    assert "TimeoutError" in trace.of("worker-away")[0]["reason"]


def the_other_worker(hub: RunningHub) -> psutil.Process:
    """Return the worker that does not serve the trace."""
    workers = [child for child in psutil.Process(hub.process.pid).children() if "spawn_main" in str(child.cmdline())]
    others = [worker for worker in workers if hub.control_port not in _connected_ports(worker)]
    assert (len(workers), len(others)) == (2, 1)
    return others[0]


def _connected_ports(process: psutil.Process) -> set[int]:
    return {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED}
