"""`POST /emit/?stream=1` on the port of a real hub: lines that are published and answered as they arrive."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from pipes import OpenPipe, lines_of

import httpx
import pytest

from conftest import ERROR_LINES, RunningHub, StartHub, wait_until
from named_keys import NamedKey, write_keys
from redis_servers import RedisServer
from servers import SERVERS, ServedHub
from streams import LAST_CHUNK, RawStream, listen

pytest_plugins = ["redis_fixtures"]

BODY_SECONDS = 1.0
EVENT = lines_of("x")


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    running = RunningHub("--body-seconds", str(BODY_SECONDS), "--max-event-bytes", "100000")
    yield running
    assert not ERROR_LINES.search(running.log)
    running.stop()


@pytest.fixture(autouse=True)
def close_pipes() -> Iterator[None]:
    yield
    OpenPipe.close_opened()


def heard(stream: RawStream, *data: str) -> list[tuple[str, str]]:
    """Return the data and ids of what a stream has received, once the last of `data` is there."""
    stream.read_event(data[-1])
    stream.close()
    return [(event.data, event.id) for event in stream.events]


# Lines and answers


def test_lines_are_published_and_answered_as_they_come(hub: RunningHub) -> None:
    stream = listen(hub.port, hub.token(channel="come"))
    pipe = OpenPipe(hub.control_port)
    ids = []
    for number in range(1, 4):
        pipe.send_event(str(number), channel="come")
        ids.append(pipe.answers(number)[-1]["id"])
    assert [{"id": id} for id in ids] == pipe.finish()

    assert heard(stream, "1", "2", "3") == [("1", ids[0]), ("2", ids[1]), ("3", ids[2])]


def test_response_begins_before_the_first_line(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)

    head = pipe.read_until(b"\r\n\r\n", 2).lower()

    assert head.startswith(b"http/1.1 200")
    assert b"content-type: application/x-ndjson\r\n" in head
    assert b"x-accel-buffering: no\r\n" in head and b"cache-control: no-store\r\n" in head


def test_client_that_expects_100_is_told_to_continue_before_anything_else(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port, "Expect: 100-continue")
    pipe.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert pipe.bytes == b"HTTP/1.1 100 Continue\r\n\r\n"
    pipe.bytes = b""
    pipe.send_event("x")

    assert len(pipe.finish()) == 1


def test_what_has_arrived_together_is_answered_in_one_write(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)
    pipe.read_until(b"\r\n\r\n")
    pipe.bytes = b"\r\n\r\n"
    pipe.send_event(*["x"] * 100)
    answers = pipe.answers(100)

    assert len(answers) == 100
    assert pipe.bytes.count(b"\r\n") == 4  # one chunk, behind what stands for the head


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_parts_of_any_size_make_the_same_lines(hub: RunningHub, size: int) -> None:
    text = (lines_of("é\u2028", channel="parts") + "\r\n" + lines_of("2", channel="parts")).encode().removesuffix(b"\n")
    stream = listen(hub.port, hub.token(channel="parts"))
    pipe = OpenPipe(hub.control_port)
    for at in range(0, len(text), size):
        pipe.send(text[at : at + size])

    ids = [answer["id"] for answer in pipe.finish()]

    assert heard(stream, "2") == [("é\u2028", ids[0]), ("2", ids[1])]


def test_body_of_known_length_is_answered_as_it_comes(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port, f"Content-Length: {2 * len(EVENT)}")
    pipe.socket.sendall(EVENT.encode())
    assert len(pipe.answers(1)) == 1
    pipe.socket.sendall(EVENT.encode())

    assert len(pipe.ended()) == 2


def test_empty_line_is_a_sign_of_life_and_answered_by_one(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)
    pipe.send("\n")
    pipe.read_until(b"\r\n1\r\n\n\r\n")
    pipe.send(f"{EVENT}\n{EVENT}")
    pipe.answers(2)

    assert [line[:5] for line in pipe.text.splitlines()] == [b"", b'{"id"', b"", b'{"id"']


def test_connection_is_used_again_after_a_pipe(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)
    pipe.send_event("x")
    pipe.finish()
    pipe.bytes = b""
    pipe.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert pipe.read_until(b"ok\n").startswith(b"HTTP/1.1 200")


def test_pipe_carries_more_than_any_body_may_have(hub: RunningHub) -> None:
    before = hub.metric("ssehub_events_published_total")
    pipe = OpenPipe(hub.control_port)
    sent = 0
    for _ in range(40):
        pipe.send_event(*["x" * 200] * 1_000, channel="many")
        sent += 1_000
        pipe.answers(sent)

    assert sent * 200 > 2**22
    assert hub.metric("ssehub_events_published_total") == before + sent
    pipe.close()


# Lines that are refused


def test_bad_lines_are_answered_in_their_place_and_end_nothing(hub: RunningHub) -> None:
    stream = listen(hub.port, hub.token(channel="bad"))
    before = hub.metric('ssehub_control_refused_total{reason="invalid"}')
    too_large = hub.metric('ssehub_control_refused_total{reason="too-large"}')
    pipe = OpenPipe(hub.control_port)
    lines = [
        lines_of("1", channel="bad"),
        "no json\n",
        "[1]\n",
        "[" * 5_000 + "\n",
        '{"userId": "*", "channel": "bad"}\n',
        lines_of("x", channel="bad", unknown=1),
        lines_of("x", channel="bad", event="stream-x"),
        lines_of("x" * 100_001, channel="bad"),
        lines_of("x" * 300_000, channel="bad"),
        b"\xff\n".decode("latin-1"),
        lines_of("2", channel="bad"),
    ]
    pipe.send("".join(lines).encode("latin-1"))

    answers = pipe.finish()

    assert [answer.get("status") for answer in answers] == [*(None, 400, 400, 400, 400, 400, 400, 413, 413, 400, None)]
    assert [data for data, _ in heard(stream, "2")] == ["1", "2"]
    assert "not valid JSON" in answers[1]["error"] and "not an array" in answers[2]["error"]
    assert "data is missing" in answers[4]["error"] and "unknown field 'unknown'" in answers[5]["error"]
    assert answers[7]["error"] == "data has 100001 bytes: at most 100000 are allowed"
    assert answers[8]["error"] == "the line has more than 265536 bytes"
    assert hub.metric('ssehub_control_refused_total{reason="invalid"}') == before + 7
    assert hub.metric('ssehub_control_refused_total{reason="too-large"}') == too_large + 2
    wait_until(lambda: "request refused, too-large: POST /emit/, from 127.0.0.1" in hub.log)


def test_line_that_is_far_too_long_takes_no_memory(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)
    pipe.send_event("1")
    pipe.answers(1)
    before = hub.memory_bytes()
    for _ in range(64):
        pipe.send(b"x" * 2**20)
    pipe.send("\n" + lines_of("2"))
    answers = pipe.finish()

    assert [answer.get("status") for answer in answers] == [None, 413, None]
    assert hub.memory_bytes() < before + 8 * 2**20


@pytest.mark.parametrize(
    ("kind", "query", "headers", "status", "why"),
    [
        ("application/json", "stream=1", [], 415, "with stream=1: send application/x-ndjson"),
        ("application/x-www-form-urlencoded", "stream=1", [], 415, "send application/x-ndjson"),
        ("application/x-ndjson", "stream=yes", [], 400, "stream must be 1, not 'yes'"),
        ("application/x-ndjson", "stream=1&stream=1", [], 400, "stream is given twice"),
        ("application/x-ndjson", "channel=chat&stream=1", [], 400, "unknown field 'channel': expected stream"),
        ("application/x-ndjson", "stream=1", ["Content-Encoding: gzip"], 415, "send the body uncompressed"),
        ("application/x-ndjson", "stream=1", ["Idempotency-Key: k"], 400, "give each line an idempotencyKey"),
    ],
)
def test_request_that_is_not_for_a_pipe_is_refused(
    hub: RunningHub, kind: str, query: str, headers: list[str], status: int, why: str
) -> None:
    pipe = OpenPipe(hub.control_port, *headers, query=query, kind=kind)

    assert pipe.status == status
    assert why in pipe.read_to_end().decode()


def test_field_that_only_looks_like_it_asks_for_no_pipe(hub: RunningHub) -> None:
    response = httpx.post(f"{hub.control_url}/emit/?channel=a&userId=stream=1", data={"data": "x"})

    assert response.text == "OK"


# The same event once


def test_line_with_a_key_that_was_used_is_published_once(hub: RunningHub) -> None:
    event = {"userId": "*", "channel": "keyed", "data": "1"}
    id = httpx.post(f"{hub.control_url}/emit/", json=event, headers={"Idempotency-Key": "by-post"}).json()["id"]
    stream = listen(hub.port, hub.token(channel="keyed"))
    pipe = OpenPipe(hub.control_port)
    again = lines_of("1", channel="keyed", idempotencyKey="by-post")
    twice = lines_of("2", channel="keyed", idempotencyKey="by-line")
    pipe.send(again + twice + twice + lines_of("3", channel="keyed"))

    ids = [answer["id"] for answer in pipe.finish()]

    assert ids[0] == id and ids[1] == ids[2] and len(set(ids)) == 3
    assert [data for data, _ in heard(stream, "3")] == ["2", "3"]


def test_key_that_was_used_for_something_else_is_refused_in_its_place(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)
    pipe.send(lines_of("1", channel="used", idempotencyKey="k"))
    (first,) = pipe.answers(1)
    pipe.send(
        lines_of("0", channel="used")
        + lines_of("2", channel="used", idempotencyKey="k")
        + "no json\n"
        + lines_of("1", channel="used", idempotencyKey="k")
        + lines_of("3", channel="used", idempotencyKey="l")
    )

    answers = pipe.finish()

    assert [answer.get("status") for answer in answers] == [None, None, 422, 400, None, None]
    assert answers[4] == first
    assert answers[1]["id"] < answers[5]["id"]


# What ends a pipe


def test_line_that_does_not_arrive_in_time_ends_the_pipe(hub: RunningHub) -> None:
    pipe = OpenPipe(hub.control_port)
    pipe.send_event("1")
    pipe.answers(1)
    time.sleep(1.5 * BODY_SECONDS)  # between lines it may be silent
    pipe.send(EVENT + EVENT[:10])
    pipe.answers(2)
    began = time.monotonic()

    *_, last = pipe.ended()

    assert last["end"] == "timeout" and last["status"] == 408
    assert last["error"] == "line 3 did not arrive in time: send each line as a whole"
    assert time.monotonic() - began < 3 * BODY_SECONDS


def test_drain_ends_pipes_with_a_line_that_says_so(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "2")
    pipes = [OpenPipe(hub.control_port) for _ in range(40)]
    for pipe in pipes:
        pipe.send_event("1", "2")
        pipe.answers(2)
    hub.wait_for("ssehub_pipes", 40)
    hub.signal()
    wait_until(lambda: httpx.get(f"{hub.control_url}/readyz").status_code == 503)
    late = OpenPipe(hub.control_port)

    assert late.status == 503
    for pipe in pipes:
        *answers, last = pipe.ended()
        assert [list(answer) for answer in answers] == [["id"], ["id"]]
        assert (last["end"], last["status"]) == ("draining", 503)
    assert hub.wait() == 0
    assert not ERROR_LINES.search(hub.log)


def test_rights_count_for_each_line_and_end_with_the_key(start_hub: StartHub, tmp_path: Path) -> None:
    key, other = NamedKey("shop", ["publish"], ["orders.*"]), NamedKey("other", ["publish"])
    file = write_keys(tmp_path / "keys.toml", key, other)
    hub = start_hub("--control-keys-file", str(file))
    pipe = OpenPipe(hub.control_port, f"Authorization: Bearer {key.key}")
    pipe.send(lines_of("1", channel="orders.1") + lines_of("2", channel="chat") + lines_of("3", channel="orders.2"))
    answers = pipe.answers(3)
    assert [answer.get("status") for answer in answers] == [None, 403, None]
    assert "channel 'chat' is not allowed with control key 'shop'" in answers[1]["error"]

    write_keys(file, NamedKey("shop", ["publish"], ["chat"], key.key), other)
    hub.signal(signal.SIGHUP)
    wait_until(lambda: hub.log.count("has been read again") == 1)
    pipe.send(lines_of("4", channel="orders.1") + lines_of("5", channel="chat"))
    assert [answer.get("status") for answer in pipe.answers(5)[3:]] == [403, None]

    write_keys(file, other)
    hub.signal(signal.SIGHUP)
    wait_until(lambda: hub.log.count("has been read again") == 2)
    pipe.send(lines_of("6", channel="chat"))
    *_, last = pipe.ended()

    assert (last["end"], last["status"]) == ("key", 401)
    assert OpenPipe(hub.control_port, f"Authorization: Bearer {key.key}").status == 401


def test_key_without_the_right_opens_no_pipe(start_hub: StartHub, tmp_path: Path) -> None:
    key = NamedKey("reader", ["read"])
    hub = start_hub("--control-keys-file", str(write_keys(tmp_path / "keys.toml", key)))

    assert OpenPipe(hub.control_port, f"Authorization: Bearer {key.key}").status == 403


def test_rate_of_a_key_slows_a_pipe_down_by_not_reading_it(start_hub: StartHub) -> None:
    hub = start_hub("--max-publishes-per-second", "100")
    pipe = OpenPipe(hub.control_port)
    began = time.monotonic()
    pipe.send_event(*["x"] * 1_000)  # a burst of ten seconds
    pipe.send_event(*["x"] * 50)
    pipe.send_event("x")
    answers = pipe.finish()

    assert len(answers) == 1_051 and not any("error" in answer for answer in answers)
    assert time.monotonic() - began < 5


def test_log_that_fails_ends_the_pipe_and_leaves_the_rest_unanswered(valkey: RedisServer, start_hub: StartHub) -> None:
    hub = start_hub("--broker", valkey.url)
    pipe = OpenPipe(hub.control_port)
    pipe.send_event("1")
    pipe.answers(1)
    valkey.kill()
    pipe.send("no json\n" + lines_of("2", "3"))

    *answers, last = pipe.ended(30)

    assert [answer.get("status") for answer in answers] == [None, 400]
    assert (last["end"], last["status"]) == ("unavailable", 503)


# Clients that leave, or do not read


def test_lines_that_have_arrived_are_published_when_the_client_disappears(hub: RunningHub) -> None:
    stream = listen(hub.port, hub.token(channel="gone"))
    pipe = OpenPipe(hub.control_port)
    pipe.send(lines_of("1", "2", channel="gone") + lines_of("3", channel="gone")[:-10])
    pipe.close()
    hub.wait_for("ssehub_pipes", 0)
    hub.emit(channel="gone", data="after")

    assert [data for data, _ in heard(stream, "after")] == ["1", "2", "after"]


def test_client_that_reads_no_answers_is_not_read_and_then_dropped(hub: RunningHub) -> None:
    refused = hub.metric('ssehub_connections_refused_total{port="control",reason="unread"}')
    before = hub.memory_bytes()
    pipe = OpenPipe(hub.control_port, receive_buffer=4_096)
    pipe.socket.settimeout(1)
    chunk = lines_of(*["x"] * 1_000).encode()
    sent = 0
    with pytest.raises((TimeoutError, ConnectionError)):
        for _ in range(2_000):
            pipe.send(chunk)
            sent += len(chunk)

    assert sent < 32 * 2**20
    assert hub.memory_bytes() < before + 16 * 2**20
    hub.wait_for('ssehub_connections_refused_total{port="control",reason="unread"}', refused + 1, 20)
    hub.wait_for("ssehub_pipes", 0)


# Other servers


@pytest.mark.parametrize(
    "server", ["uvicorn", *[pytest.param(server, marks=pytest.mark.only_soak) for server in ("hypercorn", "granian")]]
)
def test_other_servers_have_pipes_too(server: str) -> None:
    hub = ServedHub(SERVERS[server], "ssehub.asgi:control_app", SSEHUB_CONTROL_BIND="off")
    try:
        wait_until(lambda: hub.process.poll() is not None or _answers(hub.url), 20)
        pipe = OpenPipe(hub.port)
        pipe.send_event("1")
        pipe.answers(1)
        pipe.send("no json\n" + EVENT)

        answers = pipe.finish()

        assert [answer.get("status") for answer in answers] == [None, 400, None]
        assert pipe.bytes.endswith(LAST_CHUNK)
    finally:
        hub.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False
