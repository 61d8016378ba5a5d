"""`POST /runs/NAME` on the port of a real hub: bodies that arrive bit by bit, and refusals in the middle of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appends import EVENT_STREAM, OpenAppend, create_run, data_of, run_of
from both_ports import both_ports
from clients.catalogue import Python
from conftest import ERROR_LINES, HubProcess, RunningHub, StartHub, require, wait_until
from node import NODE
from servers import SERVERS, ServedHub
from streams import RawStream

BODY_SECONDS = 1.0
PROGRAMS = Path(__file__).parent / "appenders"
_NAMES = itertools.count()


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    running = RunningHub("--body-seconds", str(BODY_SECONDS), "--run-stop-seconds", "30")
    yield running
    assert not ERROR_LINES.search(running.log)
    running.stop()


@pytest.fixture(autouse=True)
def close_appends() -> Iterator[None]:
    yield
    OpenAppend.close_begun()


@pytest.fixture
def name(hub: RunningHub) -> str:
    """An open run."""
    name = f"run-{next(_NAMES)}"
    create_run(hub.control_url, name)
    return name


def wait_for_events(hub: HubProcess, name: str, count: int, seconds: float = 5.0) -> None:
    wait_until(lambda: run_of(hub.control_url, name)["events"] == count, seconds)


# Bodies


def test_events_are_stored_as_they_arrive(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name)
    for n in range(1, 4):
        append.send_event(f"word {n}")
        wait_for_events(hub, name, n)

    assert append.finish() == {"generation": 1, "state": "open", "events": 3}
    assert data_of(hub.control_url, name) == ["word 1", "word 2", "word 3"]


def test_connection_is_used_again_after_an_append(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name)
    append.send_event("x")
    append.finish()
    append.bytes = b""
    append.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert append.read_until(b"ok\n").startswith(b"HTTP/1.1 200")


def test_event_stream_of_a_provider_is_piped_through(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name, kind=f"{EVENT_STREAM}; charset=utf-8", query="?finish=done")
    text = 'id: 1\r\nevent: delta\r\ndata: {"text":"é"}\r\n\r\n: ping\r\n\r\ndata: [DONE]\r\n\r\n'.encode()
    for at in range(len(text)):
        append.send(text[at : at + 1])

    assert append.finish() == {"generation": 1, "state": "done", "events": 2}
    lines = httpx.get(f"{hub.control_url}/runs/{name}/events").text.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"data": '{"text":"é"}', "event": "delta", "id": "1"},
        {"data": "[DONE]"},
    ]


def test_body_with_a_content_length_is_stored_as_it_arrives(hub: RunningHub, name: str) -> None:
    line = b'{"data":"x"}\n'
    append = OpenAppend(hub.control_port, name, f"Content-Length: {3 * len(line)}", query="?finish=done")
    for n in range(2):
        append.socket.sendall(line)
        wait_for_events(hub, name, n + 1)
    append.socket.sendall(line)

    assert append.answer() == (200, {"generation": 1, "state": "done", "events": 3})


def test_client_that_expects_100_is_told_to_continue_or_refused_at_once(hub: RunningHub, name: str) -> None:
    accepted = OpenAppend(hub.control_port, name, "Expect: 100-continue")
    accepted.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
    accepted.bytes = b""
    accepted.send_event("x")
    refused = OpenAppend(hub.control_port, name, "Expect: 100-continue", "Run-Generation: 9")
    status, body = refused.answer()

    assert (status, body["reason"]) == (409, "stale")
    assert accepted.finish()["events"] == 1


def test_http_1_0_client_appends_a_body_of_known_length(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name, "Content-Length: 13", version="1.0")
    append.socket.sendall(b'{"data":"x"}\n')

    assert append.answer() == (200, {"generation": 1, "state": "open", "events": 1})
    assert append.closes_within(5)


def test_last_chunk_ends_the_run_in_the_step_of_its_events(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name, query="?finish=failed&error=no+model")
    append.socket.sendall(b'e\r\n{"data": "x"}\n\r\n0\r\n\r\n')

    assert append.answer() == (200, {"generation": 1, "state": "failed", "events": 1})
    assert run_of(hub.control_url, name)["error"] == "no model"


def test_body_of_any_size_is_taken_and_grouped_into_steps(hub: RunningHub) -> None:
    name = f"large-{next(_NAMES)}"
    append = OpenAppend(hub.control_port, name, query="?channel=chat&userId=alex")
    for first in range(0, 30_000, 10_000):
        append.send_event(*[str(n) for n in range(first, first + 10_000)])

    assert append.finish()["events"] == 30_000
    assert data_of(hub.control_url, name) == [str(n) for n in range(30_000)]


# Bodies that break off


@pytest.mark.parametrize(
    ("kind", "text", "kept"),
    [
        ("application/x-ndjson", '{"data":"a"}\n{"data":"b"}\n{"data":"c"', ["a", "b"]),
        ("application/x-ndjson", '{"data":"a"}\n{"data":"c"}', ["a"]),
        ("text/event-stream", "data: a\n\ndata: b\n\ndata: c\n", ["a", "b"]),
        ("text/event-stream", "data: a\n\ndata: \u00e9", ["a"]),
    ],
)
def test_body_that_breaks_off_leaves_the_run_open_without_the_half_line(
    hub: RunningHub, name: str, kind: str, text: str, kept: list[str]
) -> None:
    for end in (OpenAppend.close, OpenAppend.reset):
        run = f"{name}-{end.__name__}"
        create_run(hub.control_url, run)
        append = OpenAppend(hub.control_port, run, kind=kind)
        append.send(text.encode()[:-1] if "\u00e9" in text else text)
        if end is OpenAppend.reset:
            wait_for_events(hub, run, len(kept))
        end(append)
        wait_for_events(hub, run, len(kept))

        other = OpenAppend(hub.control_port, run)  # another producer, as soon as the first one is gone
        other.send_event("next")
        assert other.finish() == {"generation": 1, "state": "open", "events": len(kept) + 1}
        assert data_of(hub.control_url, run) == [*kept, "next"]


def test_what_has_arrived_before_the_connection_was_closed_is_stored(hub: RunningHub, name: str) -> None:
    for n in range(20):
        append = OpenAppend(hub.control_port, name)
        append.send_event(*["x"] * 100)
        append.close()
        wait_for_events(hub, name, 100 * (n + 1))


# Bad lines, and slow ones


def test_bad_500th_line_is_named_and_those_before_it_stand(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name)
    append.send_event(*["x"] * 499)
    append.send('{"data": "x", "userId": "alex"}\n')
    append.send_event("after")
    status, body = append.answer()

    assert (status, body["reason"], body["events"], body["state"]) == (400, "invalid", 499, "open")
    assert body["error"].startswith("line 500: userId: ")
    assert body["error"].endswith("; 499 events are stored")
    assert b"connection: close" in append.head and b"content-length: " in append.head
    assert append.closes_within(2)
    assert run_of(hub.control_url, name)["events"] == 499


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        (b'{"data":"\xff"}\n', 400, "line 1: the line is not valid UTF-8"),
        (b'{"data":1,"event":"stream-hello"}\n', 400, "line 1: event 'stream-hello' begins with 'stream-'"),
        (b'{"data":"%b"}\n' % (b"x" * (2**20 + 1)), 413, "line 1: the event has 1048577 bytes"),
        (b"x" * (2**21 + 2**17), 413, "line 1 has more than 2162688 bytes"),
        (b"\0" * 100 + b"\n", 400, "line 1: the line is not valid JSON"),
        (b"[" * 100_000 + b"\n", 400, "line 1: expected a JSON object, not an array"),
        (b'{"data":' + b"[" * 40_000 + b"]" * 40_000 + b"}\n", 400, "line 1: the line is nested too deeply"),
        (b'{"data":[' + b"1," * 99_999 + b"1]}\n", 413, "line 1: the line has more than 50000 JSON values"),
    ],
    ids=["utf-8", "reserved", "event-size", "line-size", "binary", "array", "nested", "values"],
)
def test_garbage_is_refused(hub: RunningHub, name: str, text: bytes, status: int, error: str) -> None:
    append = OpenAppend(hub.control_port, name)
    append.send(text)

    found, body = append.answer()

    assert found == status
    assert body["error"].startswith(error)


def test_broken_chunks_are_refused_by_the_server_and_the_run_goes_on(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name)
    append.send_event("x")
    append.socket.sendall(b"zz\r\n")

    assert append.read_to_end().startswith(b"HTTP/1.1 400")
    wait_for_events(hub, name, 1)
    assert run_of(hub.control_url, name)["state"] == "open"


def test_byte_a_moment_is_408_after_the_deadline_of_a_line_and_a_silent_body_is_not(hub: RunningHub) -> None:
    slow, silent, life = (f"{kind}-{next(_NAMES)}" for kind in ("slow", "silent", "life"))
    for name in (slow, silent, life):
        create_run(hub.control_url, name)
    appends = {name: OpenAppend(hub.control_port, name) for name in (slow, silent, life)}
    appends[silent].send_event("x")
    began = time.monotonic()
    appends[slow].send('{"data":"one"}\n')
    appends[slow].socket.settimeout(0.2)
    answer = b""
    while not answer and time.monotonic() - began < 10:
        appends[slow].send("{")
        appends[life].send("\n")
        with contextlib.suppress(TimeoutError):
            answer = appends[slow].socket.recv(65_536)
    took = time.monotonic() - began

    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"reason":"timeout"' in answer and b'"events":1' in answer
    assert BODY_SECONDS <= took < BODY_SECONDS + 1.5
    appends[silent].send_event("y")
    assert appends[silent].finish()["events"] == 2
    assert appends[life].finish()["events"] == 0


def test_line_that_takes_longer_may_go_on_while_its_bytes_come_fast_enough(hub: RunningHub, name: str) -> None:
    append = OpenAppend(hub.control_port, name)
    append.send('{"data":"')
    end = time.monotonic() + 2 * BODY_SECONDS
    while time.monotonic() < end:
        append.send("x" * 10_000)
        time.sleep(0.1)
    append.send('"}\n')

    assert append.finish()["events"] == 1


def test_signs_of_life_keep_a_run_and_silence_fails_it(hub: RunningHub) -> None:
    quiet, lively = f"quiet-{next(_NAMES)}", f"lively-{next(_NAMES)}"
    for name in (quiet, lively):
        create_run(hub.control_url, name, idle=2)
    silent, talking = OpenAppend(hub.control_port, quiet), OpenAppend(hub.control_port, lively, kind=EVENT_STREAM)
    end = time.monotonic() + 3.5
    while time.monotonic() < end:
        talking.send(": still there\n")
        time.sleep(0.1)
    status, body = silent.answer()

    assert (status, body["reason"], body["state"], body["runError"]) == (409, "ended", "failed", "idle")
    assert talking.finish() == {"generation": 1, "state": "open", "events": 0}


# Refusals in the middle


def refusals() -> dict[str, Any]:
    """Return what makes the hub refuse an append, and the reason, state and error that it then gives."""

    def call(method: str, below: str = "", **body: object) -> Any:
        return lambda url: httpx.request(method, url + below, json=body).raise_for_status()

    run = {"channel": "chat", "userId": "alex"}
    return {
        "restart": (call("PUT", "?restart=true", **run), "stale", "open", None),
        "takeover": (call("PUT", "?takeover=true", **run), "stale", "open", None),
        "stop": (call("POST", "/stop"), "stopped", "stopping", None),
        "finish": (call("POST", "/finish", error="enough"), "ended", "failed", "enough"),
        "delete": (call("DELETE"), "ended", "failed", "deleted"),
    }


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "sending"])
@pytest.mark.parametrize("how", refusals())
def test_producer_is_told_at_once_in_the_middle(hub: RunningHub, name: str, how: str, is_silent: bool) -> None:
    act, reason, state, error = refusals()[how]
    append = OpenAppend(hub.control_port, name, "Run-Generation: 1", "Run-Offset: 0")
    append.send_event("a", "b")
    wait_for_events(hub, name, 2)
    act(f"{hub.control_url}/runs/{name}")
    acted = time.monotonic()
    if not is_silent:
        append.send_event("too late")
    status, body = append.answer()
    answered = time.monotonic()

    assert (status, body["reason"], body["state"], body.get("runError")) == (409, reason, state, error)
    assert body["generation"] == (2 if reason == "stale" else 1)
    assert answered - acted < 1
    assert b"connection: close" in append.head
    append.send_event("still sending")  # is read and discarded
    assert append.closes_within(2)
    assert 0.2 < time.monotonic() - answered < 1.5
    if how != "delete":
        kept = [] if how == "restart" else ["a", "b"]
        assert data_of(hub.control_url, name) == kept
    if how == "stop":  # it has ended with the connection of its producer
        assert run_of(hub.control_url, name)["state"] == "stopped"


def test_same_producer_takes_over_from_its_half_open_connection(hub: RunningHub, name: str) -> None:
    producer = ("Run-Producer: p", "Run-Generation: 1")
    old = OpenAppend(hub.control_port, name, *producer, "Run-Offset: 0")
    old.send_event("a", "b")
    wait_for_events(hub, name, 2)
    stranger = OpenAppend(hub.control_port, name, "Run-Producer: q")
    new = OpenAppend(hub.control_port, name, *producer, "Run-Offset: 1")
    status, body = old.answer()

    assert (status, body["reason"], body["events"]) == (409, "superseded", 2)
    assert (stranger.answer()[0], stranger.answer()[1]["reason"]) == (409, "producer")
    new.send_event("b", "c")
    assert new.finish()["events"] == 3
    assert data_of(hub.control_url, name) == ["a", "b", "c"]
    by_json = httpx.post(f"{hub.control_url}/runs/{name}", json={"data": "d"}, headers={"Run-Producer": "q"})
    assert by_json.json()["events"] == 4


def test_json_of_the_same_producer_supersedes_its_open_append(hub: RunningHub, name: str) -> None:
    old = OpenAppend(hub.control_port, name, "Run-Producer: p")
    old.send_event("a")
    wait_for_events(hub, name, 1)
    httpx.post(f"{hub.control_url}/runs/{name}", json={"data": "b"}, headers={"Run-Producer": "p"}).raise_for_status()

    assert old.answer()[1]["reason"] == "superseded"


def test_run_that_becomes_too_large_fails_and_its_producer_is_told(start_hub: StartHub) -> None:
    hub = start_hub("--run-bytes", "10000")
    create_run(hub.control_url, "r")
    append = OpenAppend(hub.control_port, "r")
    append.send_event("x" * 5_000)
    wait_for_events(hub, "r", 1)
    append.send_event("x" * 5_000)
    status, body = append.answer()

    assert (status, body["reason"], body["runError"], body["events"]) == (409, "too-large", "too-large", 1)


@pytest.mark.parametrize(
    ("headers", "query", "status", "reason"),
    [
        (["Run-Offset: 5"], "", 409, "offset"),
        (["Run-Generation: 7"], "", 409, "stale"),
        (["Run-Offset: many"], "", 400, "invalid"),
        (["Content-Encoding: gzip"], "", 415, "invalid"),
        ([], "?finish=now", 400, "invalid"),
        (["Origin: https://example.com"], "", 403, "forbidden"),
    ],
)
def test_append_that_can_not_begin_is_answered_before_its_body(
    hub: RunningHub, name: str, headers: list[str], query: str, status: int, reason: str
) -> None:
    append = OpenAppend(hub.control_port, name, *headers, query=query)
    found, body = append.answer()

    assert (found, body["reason"]) == (status, reason)
    assert append.closes_within(2)


def test_append_to_an_unknown_run_is_404_in_the_middle_of_its_body(hub: RunningHub) -> None:
    append = OpenAppend(hub.control_port, "unknown")
    append.send_event("x")

    assert append.answer()[0] == 404


def test_rate_of_a_key_slows_a_body_down_by_not_reading_it(start_hub: StartHub) -> None:
    hub = start_hub("--max-publishes-per-second", "100")
    create_run(hub.control_url, "r")
    append = OpenAppend(hub.control_port, "r")
    began = time.monotonic()
    append.send_event(*["x"] * 1_000)  # a burst of ten seconds
    append.send_event(*["x"] * 50)
    append.send_event("x")
    events = append.finish()["events"]

    assert events == 1_051
    assert time.monotonic() - began < 5
    slow = OpenAppend(hub.control_port, "r")
    slow.send_event(*["x"] * 10_000)
    slow.send_event("x")
    time.sleep(0.5)
    httpx.post(f"{hub.control_url}/runs/r/stop").raise_for_status()  # it is told all the same while it waits
    assert slow.answer(3)[1]["reason"] == "stopped"


# Many, and the end of the hub


def test_open_appends_are_counted_and_refusals_by_reason(hub: RunningHub, name: str) -> None:
    before = hub.metric('ssehub_appends_refused_total{reason="stopped"}')
    events = hub.metric("ssehub_run_events_total")
    append = OpenAppend(hub.control_port, name)
    append.send_event("a", "b")
    wait_for_events(hub, name, 2)
    hub.wait_for("ssehub_run_producers", 1)
    httpx.post(f"{hub.control_url}/runs/{name}/stop").raise_for_status()
    append.answer()

    hub.wait_for("ssehub_run_producers", 0)
    assert hub.metric('ssehub_appends_refused_total{reason="stopped"}') == before + 1
    assert hub.metric("ssehub_run_events_total") == events + 2


def test_drain_answers_open_appends_with_503_over_half_of_its_window(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "4")
    appends = []
    for n in range(40):
        append = OpenAppend(hub.control_port, f"r{n}", query="?channel=chat&userId=alex")
        append.send_event("a", "b")
        appends.append(append)
    wait_until(lambda: hub.metric("ssehub_run_events_total") == 80)
    began = time.monotonic()
    hub.signal()
    times = []
    for append in appends:
        status, body = append.answer()
        times.append(time.monotonic() - began)
        assert (status, body["reason"], body["state"], body["events"]) == (503, "draining", "open", 2)
        assert b"retry-after: " in append.head and b"connection: close" in append.head
    late = httpx.post(f"{hub.control_url}/runs/late?channel=chat&userId=alex", json={"data": 1}, timeout=2)

    assert (late.status_code, late.json()["reason"]) == (503, "draining")
    assert max(times) < 2.6
    assert hub.wait() == 0
    assert not ERROR_LINES.search(hub.log)


def test_control_port_takes_a_thousand_appends_at_a_limit_of_20_000_descriptors(start_hub: StartHub) -> None:
    hub = start_hub(prefix=("prlimit", "--nofile=20000:20000"))
    create_run(hub.control_url, "r")
    begun = []
    for n in range(1_000):
        begun.append(OpenAppend(hub.control_port, f"r{n}", query="?channel=chat&userId=alex"))
    others = [socket.create_connection(("127.0.0.1", hub.control_port)) for _ in range(100)]
    hub.wait_for("ssehub_run_producers", 1_000)
    begun[0].send_event("x")

    assert begun[0].finish()["events"] == 1
    OpenAppend.close_begun()
    for other in others:
        other.close()
    hub.wait_for("ssehub_run_producers", 0)


# Reading


def test_events_that_are_gone_while_they_are_read_cut_the_response_off(hub: RunningHub) -> None:
    name = f"read-{next(_NAMES)}"
    url = f"{hub.control_url}/runs/{name}"
    append = OpenAppend(hub.control_port, name, query="?channel=chat&userId=alex")
    append.send_event(*["x" * 10_000] * 600)
    append.finish()
    whole = httpx.get(f"{url}/events").content
    reader = RawStream(
        hub.control_port, f"GET /runs/{name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n", receive_buffer=65_536
    )
    reader.read_until(b'{"data":"x')
    httpx.put(f"{url}?channel=chat&userId=alex&restart=true").raise_for_status()
    reader.read_to_end()

    assert len(whole.splitlines()) == 600
    assert len(reader.bytes) < len(whole) and not reader.bytes.endswith(b"0\r\n\r\n")


# Other servers


@pytest.mark.parametrize(
    "server",
    ["uvicorn", *[pytest.param(server, marks=pytest.mark.only_soak) for server in ("uvicorn-fast", "hypercorn")]],
)
def test_other_servers_append_refuse_and_tell_silent_producers(server: str) -> None:
    hub = ServedHub(SERVERS[server], "ssehub.asgi:control_app", SSEHUB_CONTROL_BIND="off")
    try:
        wait_until(lambda: hub.process.poll() is not None or answers(hub.url), 20)
        hub.control_url = hub.url
        create_run(hub.url, "a b")
        append = OpenAppend(hub.port, "a%20b")
        append.send_event("a")
        wait_for_events(hub, "a b", 1)
        create_run(hub.url, "broken")
        broken = OpenAppend(hub.port, "broken")
        broken.send_event("a")
        wait_for_events(hub, "broken", 1)
        broken.close()
        httpx.put(f"{hub.url}/runs/a%20b?channel=c&userId=u&restart=true").raise_for_status()
        status, body = append.answer()
        again = OpenAppend(hub.port, "a%20b", query="?finish=done")
        again.send_event("b")

        assert (status, body["reason"]) == (409, "stale")
        assert again.finish() == {"generation": 2, "state": "done", "events": 1}
        wait_until(lambda: httpx.post(f"{hub.url}/runs/broken", json={"data": "b"}).status_code == 200)
        if SERVERS[server].sends_drain:
            last = OpenAppend(hub.port, "broken", "Run-Producer: p")
            last.send_event("c")
            wait_for_events(hub, "broken", 3)
            hub.signal()
            status, body = last.answer()
            assert (status, body["reason"], body["events"]) == (503, "draining", 3)
            last.close()
            hub.wait()
    finally:
        hub.stop()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


# Seven HTTP clients

CLIENTS = ["httpx", "requests", "aiohttp", "curl", "fetch", "http", "go"]
FAST_TO_START = ("httpx", "curl", "fetch", "http")


def command_of(client: str, tmp_path: Path) -> list[str]:
    """Return the command that appends with `client`, without its last arguments."""
    if client in ("fetch", "http"):
        require(NODE.exists(), "node")
        return [str(NODE), str(PROGRAMS / "append.mjs"), client]
    if client == "go":
        program = tmp_path / "append"
        subprocess.run(["go", "build", "-o", program, PROGRAMS / "go" / "append.go"], check=True, timeout=120)
        return [str(program)]
    if client in ("requests", "aiohttp"):
        python = Python()
        python.install()
        return [*python.command(str(PROGRAMS / "append.py")), client]
    return [sys.executable, str(PROGRAMS / "append.py"), client]


def check_client(hub: RunningHub, command: list[str], client: str, pace: str, how: str) -> None:
    """Start a client that appends without end, refuse it in the middle, and look at what it prints."""
    act, reason, _, _ = refusals()[how]
    name = f"{client}-{next(_NAMES)}"
    create_run(hub.control_url, name)
    url = f"{hub.control_url}/runs/{name}"
    with subprocess.Popen([*command, pace, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: run_of(hub.control_url, name)["events"] >= 10 or process.poll() is not None, 10)
            act(url)
            printed = process.communicate(timeout=10)[0].decode()
        finally:
            process.kill()
    httpx.delete(url)

    assert printed.startswith("409 {"), printed
    assert json.loads(printed.removeprefix("409 "))["reason"] == reason


@pytest.mark.parametrize("client", FAST_TO_START)
def test_client_that_sends_sees_its_409(client: str, hub: RunningHub, tmp_path: Path) -> None:
    check_client(hub, command_of(client, tmp_path), client, "slow", "restart")


@pytest.mark.only_soak
@pytest.mark.parametrize("client", CLIENTS)
def test_each_of_seven_clients_sees_its_409_each_time(client: str, start_hub: StartHub, tmp_path: Path) -> None:
    hub = start_hub("--run-bytes", str(2**33), "--max-runs-bytes", str(2**33))
    command = command_of(client, tmp_path)
    for _ in range(2):
        for pace in ("slow", "fast"):
            for how in ("restart", "stop", "finish", "delete"):
                check_client(hub, command, client, pace, how)


@pytest.mark.parametrize("body", [b'9\r\n{"data":1\r\n2\r\n}\n\r\n0\r\n\r\n', b""], ids=["whole-body", "half-body"])
@pytest.mark.anyio
async def test_append_that_fails_is_answered_and_counted_as_500(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /runs/answer?userId=*&channel=chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    async with both_ports() as ports:

        async def fail(*arguments: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(ports.hub.runs, "append", fail)
        answer = await ports.send(ports.control, head + b"Content-Type: application/x-ndjson\r\n\r\n" + body)

        assert answer.status == "500"
        assert ports.hub.statistics.control_responses == {"500": 1}
