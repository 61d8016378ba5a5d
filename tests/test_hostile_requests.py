"""What clients without a token can do to a hub: floods of requests, endless heads, silence, too many connections."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from conftest import ERROR_LINES, RunningHub, StartHub, wait_until
from streams import RawStream, get, listen

SOAK = "SOAK" in os.environ
MIB = 2**20
FLOOD_BYTES = (25 if SOAK else 2) * MIB
"""Of pipelined requests and of endless heads on one connection."""
MEMORY_BYTES = 10 * MIB
SHORT = ("--head-seconds", "1", "--body-seconds", "1.5")
FORM = "Content-Type: application/x-www-form-urlencoded"
POST = f"POST /emit/ HTTP/1.1\r\nHost: localhost\r\n{FORM}\r\n"
CHUNKED = f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode()


def ports(hub: RunningHub) -> tuple[int, int]:
    return hub.port, hub.control_port


def send_all(port: int, parts: Iterator[bytes]) -> tuple[int, bytes]:
    """Send until the server closes the connection; return how many bytes were sent, and what it answered."""
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(10)
    sent, answer = 0, b""
    with client, contextlib.suppress(OSError):
        with contextlib.suppress(OSError):
            for part in parts:
                client.sendall(part)
                sent += len(part)
        while received := client.recv(65_536):
            answer += received
    return sent, answer


def repeated(part: bytes, size: int) -> Iterator[bytes]:
    part *= max(1, 65_536 // len(part))
    for _ in range(size // len(part)):
        yield part


@pytest.mark.soak
@pytest.mark.parametrize("path", ["/x", "/events/", "/healthz", "/emit/"])
def test_a7_flood_of_pipelined_requests_is_cut_off_and_takes_no_memory(start_hub: StartHub, path: str) -> None:
    hub = start_hub()
    request = get(path, "Host: localhost").encode()
    before = hub.memory_bytes()

    for _ in range(3):
        for port in ports(hub):
            _, answer = send_all(port, repeated(request, FLOOD_BYTES))
            assert answer.count(b"HTTP/1.1 ") <= 10

    assert hub.memory_bytes() - before < MEMORY_BYTES
    assert httpx.get(f"{hub.control_url}/healthz").status_code == 200
    assert not ERROR_LINES.search(hub.log)


def test_a_few_pipelined_requests_are_all_answered(hub: RunningHub) -> None:
    last = get("/healthz", "Host: localhost", "Connection: close")

    answers = RawStream(hub.control_port, get("/healthz", "Host: localhost") * 8 + last).read_to_end()

    assert answers.count(b"HTTP/1.1 200 OK") == 9


def test_requests_past_the_bound_are_not_answered_and_the_ones_before_are(hub: RunningHub) -> None:
    answers = RawStream(hub.control_port, get("/healthz", "Host: localhost") * 20).read_to_end()

    assert answers.count(b"HTTP/1.1 200 OK") == 9
    assert answers.count(b"connection: close") == 1


@pytest.mark.alone
def test_a_flood_of_refused_requests_is_answered_in_turns_and_delays_nobody_else(start_hub: StartHub) -> None:
    hub = start_hub()
    token = hub.token()
    begin = time.monotonic()

    requests = get("/events/?token=x", "Host: localhost") * 8 + get("/x", "Host: localhost", "Connection: close")
    floods = [RawStream(hub.port, requests) for _ in range(30)]
    listen(hub.port, token).close()
    opened_after = time.monotonic() - begin
    answers = [flood.read_to_end() for flood in floods]

    assert opened_after < 0.5 < 1.2 < time.monotonic() - begin  # 200 a second of 270
    assert {(answer.count(b"HTTP/1.1 401 "), answer.count(b"HTTP/1.1 404 ")) for answer in answers} == {(8, 1)}


@pytest.mark.alone
@pytest.mark.parametrize("path", ["/events/", "/emit/"])
def test_bodies_that_nobody_wants_are_read_in_turns(start_hub: StartHub, path: str) -> None:
    hub = start_hub()
    port = hub.port if path == "/events/" else hub.control_port
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n".encode()
    sent = [0] * 8
    end = time.monotonic() + 1

    def flood(index: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=0.2) as client, contextlib.suppress(OSError):
            client.sendall(head)
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    sent[index] += client.send(b"x" * MIB)

    clients = [threading.Thread(target=flood, args=(index,)) for index in range(len(sent))]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()

    assert 8 * MIB < sum(sent) < 150 * MIB  # 16 MiB a second, and what is in the buffers of the kernel
    assert not ERROR_LINES.search(hub.log)


def endless_header() -> Iterator[bytes]:
    yield b"GET /events/ HTTP/1.1\r\nHost: localhost\r\nX: "
    yield from repeated(b"x", FLOOD_BYTES)


def endless_url() -> Iterator[bytes]:
    yield b"GET /events/?"
    yield from repeated(b"x", FLOOD_BYTES)


def endless_fields() -> Iterator[bytes]:
    yield b"GET /events/ HTTP/1.1\r\nHost: localhost\r\n"
    yield from repeated(b"a: b\r\n", FLOOD_BYTES)


def endless_trailers() -> Iterator[bytes]:
    yield CHUNKED + b"1\r\na\r\n0\r\n"
    yield from repeated(b"a: b\r\n", FLOOD_BYTES)


def endless_trailer() -> Iterator[bytes]:
    yield CHUNKED + b"0\r\nX: "
    yield from repeated(b"x", FLOOD_BYTES)


def endless_chunk_extension() -> Iterator[bytes]:
    yield CHUNKED + b"5;"
    yield from repeated(b"x", FLOOD_BYTES)


@pytest.mark.soak
@pytest.mark.parametrize(
    "attack",
    [endless_header, endless_url, endless_fields, endless_trailers, endless_trailer, endless_chunk_extension],
)
def test_a11_endless_head_is_cut_off_before_it_takes_memory(
    start_hub: StartHub, attack: Callable[[], Iterator[bytes]]
) -> None:
    hub = start_hub()
    before = hub.memory_bytes()
    clients = [threading.Thread(target=send_all, args=(port, attack())) for port in ports(hub) for _ in range(6)]

    for client in clients:
        client.start()
    for client in clients:
        client.join(20)

    assert hub.memory_bytes() - before < MEMORY_BYTES
    assert httpx.get(f"{hub.control_url}/healthz").status_code == 200
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        pytest.param(get("/" + "x" * 65_534), "404", id="url-just-within"),
        pytest.param(get("/" + "x" * 65_535), "414", id="url-too-long"),
        pytest.param(get("/", "X: " + "x" * 80_000), "404", id="header-just-within"),
        pytest.param(get("/", "X: " + "x" * 82_000), "431", id="header-too-large"),
        pytest.param(get("/", *["X: y"] * 99), "404", id="fields-just-within"),
        pytest.param(get("/", *["X: y"] * 100), "431", id="too-many-fields"),
        pytest.param(get("/" + "%41" * 2_000), "404", id="escapes-just-within"),
        pytest.param(get("/" + "%" * 2_001), "414", id="too-many-escapes"),
        pytest.param(get("/", "Transfer-Encoding: gzip, chunked"), "501", id="unknown-coding"),
        pytest.param(get("/", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"), "501", id="two-codings"),
        pytest.param("GET / HTTP/1.1\r\n\r\n", "400", id="no-host"),
        pytest.param(get("/", "Host: one", "Host: two"), "400", id="two-hosts"),
        pytest.param("GET / HTTP/1.0\r\n\r\n", "404", id="http-1.0-needs-no-host"),
        pytest.param("GET /\r\n\r\n", "505", id="http-0.9"),
        pytest.param("GET / HTTP/2.0\r\nHost: x\r\n\r\n", "505", id="http-2.0"),
        pytest.param("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400", id="http-2-preface"),
        pytest.param(get("http://localhost", "Host: x"), "404", id="absolute-url-without-a-path"),
        pytest.param("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", "501", id="connect"),
        pytest.param("\x16\x03\x01\x02\x00", "400", id="tls"),
        pytest.param("GET / HTTP/1.1\r\nHost : x\r\n\r\n", "400", id="space-before-colon"),
        pytest.param("GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", "400", id="nul"),
    ],
)
def test_a11_request_is_answered_or_refused_with_its_status(hub: RunningHub, request_text: str, status: str) -> None:
    for port in ports(hub) if status != "404" else [hub.port]:
        client = RawStream(port, request_text.encode("latin-1"))
        assert client.read_until(b"\r\n").startswith(f"HTTP/1.1 {status} ".encode())
        client.close()
    assert not ERROR_LINES.search(hub.log)


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningHub]:
    hub = RunningHub(*SHORT)
    try:
        yield hub
    finally:
        hub.stop()


def seconds_until_closed(client: socket.socket, send: bytes = b"", every: float = 0.1, limit: float = 8) -> float:
    """Send `send` again and again until the server closes the connection; return how long that took."""
    begin = time.monotonic()
    client.settimeout(every)
    while time.monotonic() < begin + limit:
        try:
            if send:
                client.sendall(send)
            if not client.recv(65_536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("begin", "trickle", "seconds"),
    [
        pytest.param("", "", 1.0, id="A8-silent"),
        pytest.param("GET / HTTP/1.1\r\nX: ", "x", 1.0, id="A9-slowloris"),
        pytest.param("GET / HTTP/1.1\r\n", "X: y\r\n", 1.0, id="A9-slow-fields"),
        pytest.param(f"{POST}Content-Length: 99999\r\n\r\n", "x", 1.5, id="A10-body"),
        pytest.param(CHUNKED.decode(), "1\r\nx\r\n", 1.5, id="A10-chunks"),
        pytest.param(f"{POST}Content-Length: 99999\r\n\r\n".replace("emit", "x"), "x", 1.5, id="A10-nobody-reads"),
    ],
)
def test_slow_client_is_disconnected_at_its_deadline(
    impatient: RunningHub, begin: str, trickle: str, seconds: float
) -> None:
    for port in ports(impatient):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(begin.encode())
            assert seconds - 0.3 < seconds_until_closed(client, trickle.encode()) < seconds + 4


@pytest.mark.alone
def test_a9_slowloris_of_200_clients_lets_others_in(impatient: RunningHub) -> None:
    token = impatient.token()
    slow = [RawStream(impatient.port, "GET /events/ HTTP/1.1\r\nX: ") for _ in range(200)]

    begin = time.monotonic()
    listen(impatient.port, token).close()

    assert time.monotonic() - begin < 1
    for client in slow:
        assert client.read_to_end().startswith(b"HTTP/1.1 408 ")


def test_a10_slow_body_is_answered_408(impatient: RunningHub) -> None:
    answer = RawStream(impatient.control_port, f"{POST}Content-Length: 99\r\n\r\nuserId=*").read_to_end()

    assert answer.startswith(b"HTTP/1.1 408 ") and b"too long" in answer


def test_body_that_does_not_end_after_its_answer_is_not_answered_again(impatient: RunningHub) -> None:
    head = f"{POST}Content-Length: 99\r\n\r\n".replace("/emit/", "/nothing/")

    answer = RawStream(impatient.control_port, head).read_to_end()

    assert answer.startswith(b"HTTP/1.1 404 ") and answer.count(b"HTTP/1.1 ") == 1


def test_long_body_that_goes_on_at_the_least_rate_is_read(impatient: RunningHub) -> None:
    def body() -> Iterator[bytes]:
        yield b"userId=*&channel=chat&data="
        for _ in range(30):
            time.sleep(0.1)
            yield b"x" * 8_192

    response = httpx.post(
        f"{impatient.control_url}/emit/",
        content=body(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        timeout=20,
    )

    assert response.text == "OK"


def test_stream_stays_open_although_its_client_sends_nothing(impatient: RunningHub) -> None:
    stream = listen(impatient.port, impatient.token())
    time.sleep(3)

    impatient.emit(data="still here")

    stream.read_event("still here")
    stream.close()


@pytest.mark.parametrize("kind", ["silent", "half-a-head", "idle", "unwanted-body"])
def test_a14_newcomers_get_in_although_other_connections_fill_a_port(start_hub: StartHub, kind: str) -> None:
    hub = start_hub(prefix=("prlimit", "--nofile=160:160"))
    token = hub.token()
    stream = listen(hub.port, token)
    begin = {
        "silent": "",
        "half-a-head": "GET / HTTP/1.1\r\n",
        "idle": get("/nothing", "Host: localhost"),
        "unwanted-body": get("/nothing", "Host: localhost", "Content-Length: 1000000"),
    }[kind]
    others = [RawStream(port, begin) for _ in range(150) for port in ports(hub)]
    time.sleep(1)  # until the requests among them have been answered

    for number in range(20):
        hub.emit(data=str(number))
        listen(hub.port, token).close()

    stream.read_event("19")
    for other in others:
        other.close()
    wait_until(lambda: hub.metric("ssehub_subscribers") == 1)
    stream.close()
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.parametrize("text", [get("/nothing"), "nonsense\r\n\r\n"], ids=["by-the-app", "by-the-server"])
def test_a14_newcomers_get_in_although_refused_requests_wait_for_their_answers(start_hub: StartHub, text: str) -> None:
    hub = start_hub("--max-connections", "50")  # and 50 more
    token = hub.token()
    waiting: list[RawStream] = []

    for _ in range(20):
        for _ in range(150):
            with contextlib.suppress(ConnectionError):
                waiting.append(RawStream(hub.port, text))
        listen(hub.port, token).close()

    for other in waiting:
        other.close()
    assert not ERROR_LINES.search(hub.log)


def test_a14_silent_connections_fill_no_cap_for_good(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "40", "--max-control-connections", "40")
    token = hub.token()
    silent = [RawStream(port, "") for port in ports(hub) for _ in range(290)]

    streams = [listen(hub.port, token) for _ in range(40)]
    hub.emit(data="hello")

    for stream in streams:
        stream.read_event("hello")
        stream.close()
    for connection in silent:
        connection.close()


def test_byte_behind_a_stream_request_is_no_error(start_hub: StartHub) -> None:
    hub = start_hub("--log-level", "debug")
    request = get(f"/events/?token={hub.token()}")

    for extra in ("x", "\0", "GET / HTTP/1.1\r\n\r\n"):
        RawStream(hub.port, request + extra).read_to_end()

    hub.wait_for("ssehub_subscribers", 0)
    assert not ERROR_LINES.search(hub.log)


H2C = (
    "Host: localhost",
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAAP__",
    FORM,
)
BODY = "userId=*&channel=chat&data=x"


@pytest.mark.parametrize("times", [1, 3], ids=["one", "pipelined"])
@pytest.mark.parametrize("part_bytes", [1, 7, 64, 10**6])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_upgrade_to_h2c_is_ignored_and_the_body_read(
    hub: RunningHub, is_chunked: bool, part_bytes: int, times: int
) -> None:
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(BODY)}"
    body = f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n" if is_chunked else BODY
    text = "\r\n".join(["POST /emit/ HTTP/1.1", *H2C, length, "", body]) * times
    before = hub.metric("ssehub_events_published_total")

    client = RawStream(hub.control_port, "")
    for start in range(0, len(text), part_bytes):
        client.socket.sendall(text[start : start + part_bytes].encode())
    assert client.read_until(b"\r\n\r\nOK").startswith(b"HTTP/1.1 200 OK")
    wait_until(lambda: hub.metric("ssehub_events_published_total") == before + times)
    client.close()


def test_java_client_publishes_twice_on_one_connection(hub: RunningHub) -> None:
    """What Java's HttpClient sends in its default setting, byte for byte except for the port."""
    request = (
        "POST /emit/ HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        f"Content-Length: {len(BODY)}\r\nHost: 127.0.0.1:8001\r\n"
        "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nUpgrade: h2c\r\n"
        f"User-Agent: Java-http-client/17.0.15\r\n{FORM}\r\n\r\n{BODY}"
    )

    client = RawStream(hub.control_port, request)
    first = client.read_until(b"\r\n\r\nOK")
    client.socket.sendall(request.encode())
    client.bytes = b""
    second = client.read_until(b"\r\n\r\nOK")
    client.close()

    assert first.startswith(b"HTTP/1.1 200 OK") and second.startswith(b"HTTP/1.1 200 OK")


def test_request_is_read_wherever_it_is_split(hub: RunningHub) -> None:
    text = f"{POST}Content-Length: {len(BODY)}\r\n\r\n{BODY}"

    for index in range(1, len(text), 3):
        client = RawStream(hub.control_port, text[:index])
        time.sleep(0.002)
        client.socket.sendall(text[index:].encode())
        assert client.read_until(b"OK").startswith(b"HTTP/1.1 200 OK")
        client.close()
