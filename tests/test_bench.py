"""The load test: its counting, and that it catches each kind of faulty server, in a sentence and in time."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from conftest import RunningHub, free_port
from ssehub.bench import Group, Latencies, Listener, Plan, _busy_share, content_of, source_of
from test_cli import run

EVENTS = 30


class FaultyServer(ThreadingHTTPServer):
    """Both apps on one port; `fault` makes of an event, and its number, what every stream is sent."""

    daemon_threads = True

    def __init__(
        self, fault: Callable[[int, bytes], list[bytes]], statuses: dict[str, int], is_chunked: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), Faulty)
        self.is_chunked = is_chunked
        self.fault = fault
        self.statuses = statuses
        self.streams: list[Any] = []
        self.count = 0

    def emit(self, data: str) -> None:
        frame = f"data: {data}\n\n".encode()
        for part in self.fault(self.count, frame):
            for stream in self.streams:
                stream.write(part)
        self.count += 1


class Faulty(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def answer(self, text: str) -> None:
        self.send_response(self.server.statuses.get(self.path, 200))
        if self.server.is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in [*[f"1;a=b\r\n{letter}\r\n" for letter in text], "0\r\nTrailer: x\r\n\r\n"]:
                self.wfile.write(part.encode())
            return
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        if self.path in self.server.statuses:
            self.answer("no")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b": ok\n\n")
        self.server.streams.append(self.wfile)
        threading.Event().wait(30)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/emit/" and self.path not in self.server.statuses:
            self.server.emit(body["data"])
        self.answer(json.dumps({"token": "t"}))

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def faulty(
    fault: Callable[[int, bytes], list[bytes]], statuses: dict[str, int] | None = None, *, is_chunked: bool = False
) -> Iterator[str]:
    server = FaultyServer(fault, statuses or {}, is_chunked)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def swapping() -> Callable[[int, bytes], list[bytes]]:
    kept: list[bytes] = []

    def fault(number: int, frame: bytes) -> list[bytes]:
        if number == 10:
            kept.append(frame)
            return []
        return [frame, *kept] if number == 11 else [frame]

    return fault


def bench(url: str, *arguments: str, control_url: str | None = None) -> subprocess.CompletedProcess[str]:
    addresses = ["--url", url, "--control-url", control_url or url]
    plan = ["--subscribers", "3", "--events", str(EVENTS), "--patience", "0.7", "--json"]
    return run("bench", *addresses, *plan, *arguments)


FAULTS: dict[str, tuple[Callable[[], Callable[[int, bytes], list[bytes]]], dict[str, int]]] = {
    "drops": (lambda: lambda n, frame: [] if n == 10 else [frame], {"lost": 3, "gaps": 3}),
    "doubles": (lambda: lambda n, frame: [frame] * (2 if n == 10 else 1), {"duplicates": 3}),
    "swaps": (swapping, {"reordered": 3}),
    "stalls": (lambda: lambda n, frame: [frame] if n < 10 else [], {"lost": 3 * (EVENTS - 10), "gaps": 0}),
    "cuts events in two": (lambda: lambda n, frame: [frame[:20], frame[20:]], {}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_server_is_caught(kind: str) -> None:
    make, wrong = FAULTS[kind]
    with faulty(make()) as url:
        result = bench(url)

    report = json.loads(result.stdout)
    names = ("lost", "gaps", "duplicates", "reordered")
    assert {name: report[name] for name in names} == {**dict.fromkeys(names, 0), **wrong}
    assert result.returncode == (1 if wrong else 0)
    assert "Traceback" not in result.stderr


def test_server_that_cuts_streams_off_is_caught() -> None:
    def fault(number: int, frame: bytes) -> list[bytes]:
        if number == 10:
            raise ConnectionAbortedError
        return [frame]

    with faulty(fault) as url:
        result = bench(url)

    assert result.returncode == 1
    assert json.loads(result.stdout)["problem"] is not None


@pytest.mark.parametrize(
    ("statuses", "says"),
    [
        ({"/events/": 401}, "connecting: 3 of 3 got 401 Unauthorized"),
        ({"/token/": 401}, r"the hub refused /token/: 401 Unauthorized: .*"),
        ({"/token/": 503}, r"the hub refused /token/: 503 .*"),
    ],
)
def test_refusal_is_one_sentence(statuses: dict[str, int], says: str) -> None:
    with faulty(lambda n, frame: [frame], statuses) as url:
        result = bench(url)

    assert result.returncode == 1
    assert re.fullmatch(f"ssehub: {says}\n", result.stderr)


def test_refused_events_are_told_in_the_report() -> None:
    with faulty(lambda n, frame: [frame], {"/emit/": 503}) as url:
        result = bench(url)

    assert result.returncode == 1
    assert "the hub refused /emit/: 503" in json.loads(result.stdout)["problem"]


def test_dead_port_and_bad_url_are_one_sentence() -> None:
    dead = f"http://127.0.0.1:{free_port()}"

    results = [bench(dead), bench(dead, "--token", "t"), bench("https://127.0.0.1"), bench(dead, "--batch", "0")]

    assert [result.returncode for result in results] == [1, 1, 2, 2]
    assert re.fullmatch(r"ssehub: nobody answers at http://\S+: .*\n", results[0].stderr)
    assert re.fullmatch(r"ssehub: connecting: \d of 3 got .*refused.*\n", results[1].stderr)
    assert "is no URL such as" in results[2].stderr
    assert all(result.stderr.count("\n") == 1 for result in results[:3])


def test_answers_in_chunks_are_read() -> None:
    with faulty(lambda n, frame: [frame], is_chunked=True) as url:
        result = bench(url)

    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["delivered"] == 3 * EVENTS


def test_refusal_in_chunks_is_one_sentence() -> None:
    with faulty(lambda n, frame: [frame], {"/token/": 503}, is_chunked=True) as url:
        result = bench(url)

    assert result.returncode == 1
    assert re.fullmatch(r"ssehub: the hub refused /token/: 503 .*\{\"token\": \"t\"\}\n", result.stderr)


@contextmanager
def saying(*parts: bytes, closes: bool = False) -> Iterator[str]:
    """A server that says the same to whoever sends something, and then nothing, or ends the connection."""
    stop = threading.Event()

    def serve() -> None:
        connection = server.accept()[0]
        with connection:
            connection.recv(65_536)
            for part in parts:
                connection.sendall(part)
                time.sleep(0.01)
            if not closes:
                stop.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("parts", "closes", "says"),
    [
        ((OK + b"Content-Le", b"ngth: 2\r\n\r", b"\n{", b"}"), False, "answers /token/ as no hub does: b'{}'"),
        ((OK + b"Content-Length: 20\r\n\r\n{}",), False, r"gives no token in 0\.7 s"),
        ((OK + b"Content-Length: 20\r\n\r\n{}",), True, "ended a publisher's connection without an answer"),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",), False, "answers /token/ with what is no HTTP"),
        (
            (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}",),
            True,
            "ended a publisher's connection without an answer",
        ),
        ((OK + b"\r\n",), False, "answers /token/ as no hub does: b''"),
        ((b"220 mail.example ESMTP\r\n\r\n",), False, "answers /token/ with what is no HTTP"),
        ((b"220 mail.example ESMTP\r\n",), False, r"gives no token in 0\.7 s"),
        ((b"x" * 100_000,), False, "answers /token/ with what is no HTTP"),
        ((), True, "ended a publisher's connection without an answer"),
    ],
    ids=[
        "answer in four reads",
        "body cut off, then silence",
        "body cut off, then the end",
        "chunk without a size",
        "chunks cut off",
        "no body",
        "no HTTP",
        "no HTTP, then silence",
        "no end of the head",
        "nothing",
    ],
)
def test_control_app_that_is_none_is_one_sentence(parts: tuple[bytes, ...], closes: bool, says: str) -> None:
    with saying(*parts, closes=closes) as url:
        result = bench(url)

    assert result.returncode == 1
    assert re.fullmatch(rf"ssehub: [^\n]*{says}\n", result.stderr)


def test_options_that_do_not_fit_are_one_sentence() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    with faulty(lambda n, frame: [frame]) as url:
        no_process = bench(url, "--server-pid", str(ended.pid))
        two_users = bench(url, "--token", "t", "--users", "2")
        two_channels = bench(url, "--token", "t", "--channels", "2")

    assert [result.returncode for result in (no_process, two_users, two_channels)] == [2, 2, 2]
    assert no_process.stderr == f"ssehub: --server-pid {ended.pid}: there is no such process on this machine\n"
    assert "--token is for one user on one channel" in two_users.stderr
    assert "--token is for one user on one channel" in two_channels.stderr


def test_server_that_never_answers_is_given_up() -> None:
    with faulty(lambda n, frame: time.sleep(5) or [frame]) as url:
        began = time.monotonic()
        result = bench(url)

    assert result.returncode == 1
    assert "did not answer a publisher in time" in json.loads(result.stdout)["problem"]
    assert time.monotonic() - began < 8


@pytest.fixture(scope="module")
def running() -> Iterator[RunningHub]:
    hub = RunningHub()
    yield hub
    hub.stop()


def test_hub_with_another_secret_is_one_sentence(running: RunningHub) -> None:
    result = bench(running.url, "--secret", "another secret that has 32 bytes or more", control_url=running.control_url)

    assert result.returncode == 1
    assert result.stderr == "ssehub: connecting: 3 of 3 got 401 Unauthorized\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--users", "4", "--channels", "2", "--subscribers", "20", "--events", "300"),
        ("--publishers", "3", "--batch", "7", "--events", "100", "--processes", "2"),
        ("--rate", "200", "--events", "100", "--size", "2000"),
        ("--body", "form"),
        ("--events", "0"),
    ],
    ids=lambda arguments: " ".join(arguments) or "plain",
)
def test_our_own_hub_loses_nothing(running: RunningHub, arguments: tuple[str, ...]) -> None:
    pid = str(running.process.pid)
    result = bench(running.url, "--server-pid", pid, *arguments, control_url=running.control_url)

    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["delivered"] == report["expected"]
    assert report["bytes_per_subscriber"] is not None
    if report["expected"]:
        assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"] < 10_000


def test_without_subscribers_it_publishes_for_as_long_as_that_takes(running: RunningHub) -> None:
    """Longer than the patience with streams on which nothing comes."""
    arguments = (
        "--subscribers",
        "0",
        "--events",
        "12000",
        "--patience",
        "0.3",
        "--server-pid",
        str(running.process.pid),
    )
    result = bench(running.url, *arguments, control_url=running.control_url)

    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["delivered"] == report["expected"] == 0
    assert report["seconds"] > 0.45 and report["events_per_cpu_second"] > 0


def test_report_for_people(running: RunningHub) -> None:
    addresses = ("--url", running.url, "--control-url", running.control_url)
    result = run("bench", *addresses, "--subscribers", "2", "--events", "10")

    assert result.returncode == 0
    assert re.search(r"^delivered +20 of 20 in ", result.stdout, re.MULTILINE)
    assert re.search(r"^wrong +nothing$", result.stdout, re.MULTILINE)


# What is counted, without a network


def event(number: int, publisher: int = 0) -> bytes:
    return b"id: x\ndata: %010d.%03d.%019d.xxx\n\n" % (number, publisher, time.monotonic_ns())


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_events_are_found_wherever_reads_end(step: int, is_chunked: bool) -> None:
    body = b"".join(event(number) for number in range(50))
    if is_chunked:
        parts = [body[at : at + 100] for at in range(0, len(body), 100)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    encoding = b"Transfer-Encoding: chunked\r\n" if is_chunked else b""
    data = b"HTTP/1.1 200 OK\r\n" + encoding + b"\r\n" + body
    group = Group()
    listener = Listener(b"", group, lambda: None)

    for at in range(0, len(data), step):
        listener.data_received(data[at : at + step])

    assert (group.events, group.gaps, group.duplicates, group.reordered) == (50, 0, 0, 0)


def read_rate(together: int, total: int) -> float:
    """Events per CPU second that a process of subscribers reads, `together` of them in each read."""
    group = Group()
    listeners = [Listener(b"", group, lambda: None) for _ in range(100)]
    bodies = [
        b"".join(map(event, range(first, first + together))) for first in range(0, total // len(listeners), together)
    ]
    reads = [b"%x\r\n%b\r\n" % (len(body), body) for body in bodies]
    for listener in listeners:
        listener.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    began = time.process_time()
    for data in reads:
        for listener in listeners:
            listener.data_received(data)
    assert (group.events, group.gaps, group.duplicates) == (total, 0, 0)
    return total / max(0.001, time.process_time() - began)


def test_reading_is_quick_and_quicker_when_many_events_come_in_one_read() -> None:
    alone, together = read_rate(1, 20_000), read_rate(50, 200_000)

    assert alone > 20_000  # measured: 350,000
    assert together > 2 * alone  # measured: 25 times


def test_load_is_busy_when_all_its_processes_together_fill_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})

    assert _busy_share([0.5, 0.45], 1.0) == pytest.approx(0.95)
    assert _busy_share([0.1, 0.6], 2.0) == pytest.approx(0.35)


def test_reads_that_many_subscribers_share_are_counted_for_each() -> None:
    frames = {number: event(number) for number in range(4)}
    chunks = [b"%x\r\n%b\r\n" % (len(frames[n]), frames[n]) for n in (0, 1, 3, 3, 2)]
    group = Group()
    for _ in range(3):
        listener = Listener(b"", group, lambda: None)
        listener.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n: ok\n\r\n1\r\n\n\r\n")
        for chunk in chunks:
            listener.data_received(chunk)

    assert (group.events, group.gaps, group.duplicates, group.reordered) == (15, 0, 3, 3)
    assert len(group.whole) == 4


def test_content_of_several_publishers_is_told_apart() -> None:
    content = content_of(event(5, 1) + event(0, 2) + event(6, 1))

    assert sorted((run.publisher, run.first, run.last) for run in content.runs) == [(1, 5, 6), (2, 0, 0)]
    assert content_of(event(5) + event(7)).odd == [(0, 5), (0, 7)]


def test_latencies_are_within_two_percent() -> None:
    latencies = Latencies()
    for value in range(1, 100_001):
        latencies.add(value * 1_000)

    assert latencies.milliseconds(0.5) == pytest.approx(50, rel=0.04)
    assert latencies.milliseconds(1.0) == pytest.approx(100, rel=0.04)


def test_each_subscriber_expects_its_share() -> None:
    plan = Plan("", "", subscribers=6, events=10, publishers=3, users=2, channels=2)

    assert sum(plan.expected(audience) for audience in range(plan.audience_count)) == 10
    assert plan.audiences[3] == ("bench-1", "user-1")


def test_many_connections_come_from_several_addresses() -> None:
    assert source_of("127.0.0.1", 24_999) is None
    assert source_of("127.0.0.1", 60_000) == ("127.0.0.3", 0)
    assert source_of("10.0.0.1", 60_000) is None
