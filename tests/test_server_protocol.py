"""Our HTTP protocol: packets, limits, pipelined and broken requests, on the ports of a real hub or in this process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import struct
import time

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from conftest import ERROR_LINES, SECRET, RunningHub, StartHub, until, wait_until
from protocol_server import served
from ssehub.hub import Hub
from ssehub.server.connection import Port
from ssehub.settings import RequestLimits
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from streams import RawStream, get, listen

EMIT = "POST /emit/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
FORM = "userId=*&channel=chat&data=x"


def test_a14_silent_connections_take_no_descriptors_from_publishers(start_hub: StartHub) -> None:
    hub = start_hub(prefix=("prlimit", "--nofile=128:128"))
    token = hub.token()
    stream = listen(hub.port, token)
    silent = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(200)]

    for number in range(5):
        assert httpx.get(f"{hub.control_url}/healthz", timeout=2).text == "ok\n"
        hub.emit(data=str(number))
    stream.read_event("4")
    for connection in silent:
        connection.close()

    wait_until(lambda: opens(hub.port, token), 5)
    stream.close()
    assert not ERROR_LINES.search(hub.log)


def opens(port: int, token: str) -> bool:
    try:
        listen(port, token).close()
    except (OSError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("is_chunked", [False, True], ids=["with-length", "chunked"])
def test_c6_client_that_sends_10_mb_before_it_reads_gets_its_413(is_chunked: bool, hub: RunningHub) -> None:
    body = b"x" * 10_000_000
    for path in ("/emit/", "/token/"):
        connection = http.client.HTTPConnection("127.0.0.1", hub.control_port, timeout=20)
        headers = {"Content-Type": "application/json"}

        connection.request("POST", path, iter([body]) if is_chunked else body, headers, encode_chunked=is_chunked)
        response = connection.getresponse()

        assert response.status == 413
        assert b"8388608" in response.read()
        connection.close()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(["Content-Length: -1"], "FORM", id="negative-length"),
        pytest.param(["Content-Length: 32", "Transfer-Encoding: chunked"], "20\r\nFORM\r\n0\r\n\r\n", id="CL+TE"),
        pytest.param(["Content-Length: 32", "Content-Length: 3"], "FORM", id="two-lengths"),
    ],
)
def test_c6_body_of_unclear_length_is_refused_and_not_published(headers: list[str], body: str, hub: RunningHub) -> None:
    before = hub.metric("ssehub_events_published_total")
    form = "userId=*&channel=chat&data=smug1"
    assert len(form) == 32
    head = ["POST /emit/ HTTP/1.1", "Host: localhost", "Content-Type: application/x-www-form-urlencoded", *headers]

    stream = RawStream(hub.control_port, "\r\n".join([*head, "", body.replace("FORM", form)]))
    answer = stream.read_to_end()

    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    assert hub.metric("ssehub_events_published_total") == before


@pytest.mark.parametrize(
    ("request_text", "end"),
    [
        pytest.param(f"{EMIT}Content-Length: {len(FORM)}\r\n\r\n{FORM}", b"OK", id="answer"),
        pytest.param(
            "GET /nothing/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            b"127.0.0.1:8000)\n",
            id="close",
        ),
        pytest.param("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n\r\n", id="head alone"),
        pytest.param("HEAD /healthz HTTP/1.0\r\n\r\n", b"\r\n\r\n", id="head alone, and the end"),
    ],
)
def test_head_and_body_of_an_answer_come_in_one_packet(request_text: str, end: bytes, hub: RunningHub) -> None:
    client = RawStream(hub.control_port, request_text)

    received = client.read_until(end)
    packets = packets_with_data(client)
    client.close()

    assert received.startswith(b"HTTP/1.1 ") and received.endswith(end)
    assert packets == 1


def test_stream_starts_with_its_head_and_first_frame_in_one_packet(hub: RunningHub) -> None:
    client = RawStream(hub.port, get(f"/events/?token={hub.token()}"))

    received = client.read_until(b"\n\n\r\n")
    packets = packets_with_data(client)
    client.close()

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert packets == 1


def packets_with_data(client: RawStream) -> int:
    """Return how many the client has received: `tcpi_data_segs_in` of `struct tcp_info` in linux/tcp.h."""
    info = client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("I", info, 152)[0])


def test_client_that_expects_100_continue_gets_it(hub: RunningHub) -> None:
    client = RawStream(hub.control_port, f"{EMIT}Expect: 100-continue\r\nContent-Length: {len(FORM)}\r\n\r\n")

    client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.socket.sendall(FORM.encode())

    assert client.read_until(b"OK", 5).count(b"HTTP/1.1 200 OK") == 1
    client.close()


def test_client_of_http_1_0_gets_no_100_continue(hub: RunningHub) -> None:
    request = f"{EMIT}Expect: 100-continue\r\nContent-Length: {len(FORM)}\r\n\r\n{FORM}".replace("HTTP/1.1", "HTTP/1.0")

    answer = RawStream(hub.control_port, request).read_to_end()

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_upgrade_requests_are_answered_like_others_without_a_warning(start_hub: StartHub) -> None:
    hub = start_hub()
    token = hub.token()

    for upgrade in ("websocket", "h2c"):
        listen(hub.port, token, "Connection: Upgrade", f"Upgrade: {upgrade}").close()

    assert "WARNING" not in hub.log and "websockets" not in hub.log


def test_lost_connection_while_the_headers_are_sent_leaves_no_subscriber(hub: RunningHub) -> None:
    token = hub.token()

    for number in range(200):
        RawStream(hub.port, get(f"/events/?token={token}") * (1 + number % 3)).reset()

    hub.wait_for("ssehub_subscribers", 0)
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.anyio
async def test_pipelined_requests_leave_no_task_behind() -> None:
    tokens = Tokens(SECRET)
    async with Hub() as hub, served(create_client_app(hub, tokens=tokens, drains_on_exit=False)) as (address, state):
        tasks = len(asyncio.all_tasks())
        request = get(f"/events/?token={tokens.issue('alex', ['chat'], expires_at=time.time() + 60)}").encode()

        for number in range(30):
            _, writer = await asyncio.open_connection(*address)
            writer.write(request * (1 + number % 3))
            await asyncio.sleep(0.001 * (number % 5))
            writer.transport.abort()

        await until(lambda: not state.connections and len(asyncio.all_tasks()) == tasks)
    assert not state.tasks


@pytest.mark.anyio
async def test_head_of_an_answer_does_not_wait_for_a_late_body() -> None:
    goes_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await goes_on.wait()
        await send({"type": "http.response.body", "body": b"late"})

    async with served(app) as (address, _), asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/").encode())
        head = await reader.readuntil(b"\r\n\r\n")
        goes_on.set()
        body = await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and body == b"4\r\nlate\r\n0\r\n\r\n"


@pytest.mark.anyio
async def test_connection_can_become_a_websocket() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {'A' * 22}==",
    )

    async with served(app, ws="wsproto") as (address, _), asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/", *upgrade).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()

    assert answer.startswith(b"HTTP/1.1 101 ")


@pytest.mark.anyio
async def test_websocket_outlives_the_deadlines_of_requests() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(3)
        await send({"type": "websocket.send", "text": "late"})
        await send({"type": "websocket.close"})

    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {'A' * 22}==",
    )
    limits = RequestLimits(head_seconds=0.5)

    async with served(app, limits, ws="wsproto", timeout_keep_alive=1) as (address, _), asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/", *upgrade).encode())
        await reader.readuntil(b"\r\n\r\n")
        frame = await reader.readexactly(6)
        writer.close()

    assert frame == b"\x81\x04late"


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with more than the buffers of the kernel take, in parts."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(400):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body"})


async def connect_without_reading(address: tuple[str, int], data: bytes) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, address)
    await asyncio.get_running_loop().sock_sendall(client, data)
    return client


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_client_that_does_not_read_its_answer_is_dropped(method: str) -> None:
    request = get("/", "Content-Length: 1000000").replace("GET", method) if method == "POST" else get("/")
    async with served(endless, RequestLimits(body_seconds=0.5)) as (address, state):
        client = await connect_without_reading(address, request.encode())
        await until(lambda: bool(state.connections))

        await until(lambda: not state.connections and not state.tasks, 10)

        client.close()


@pytest.mark.anyio
async def test_client_that_reads_its_answer_slowly_gets_all_of_it() -> None:
    async with served(endless, RequestLimits(body_seconds=1.5)) as (address, _), asyncio.timeout(60):
        client = await connect_without_reading(address, get("/").encode())
        received = 0
        begin = time.monotonic()
        while received < 40_000_000:
            part = await asyncio.get_running_loop().sock_recv(client, 4_000_000)
            assert part
            received += len(part)
            if time.monotonic() < begin + 4:
                await asyncio.sleep(0.2)
        client.close()


@pytest.mark.anyio
async def test_half_closed_connection_is_dropped_if_its_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 40_000_000})

    monkeypatch.setattr("ssehub.server.connection.LINGER_SECONDS", 0.5)
    async with served(app) as (address, state):
        client = await connect_without_reading(address, get("/").encode())
        await until(lambda: bool(state.total_requests))

        client.shutdown(socket.SHUT_WR)

        await until(lambda: not state.connections, 10)
        client.close()


@pytest.mark.anyio
async def test_several_tasks_may_wait_for_the_end_of_a_connection() -> None:
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"

        async def wait() -> None:
            ended.append((await receive())["type"])

        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait([tasks[0], tasks[2]], timeout=5)
        for task in tasks:
            task.cancel()

    async with served(app) as (address, state):
        _, writer = await asyncio.open_connection(*address)
        writer.write(get("/").encode())
        await until(lambda: bool(state.tasks))
        await asyncio.sleep(0.1)
        writer.close()
        await until(lambda: not state.tasks, 10)

    assert ended == ["http.disconnect"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("has_more", [False, True], ids=["end", "more"])
async def test_client_that_reads_one_large_part_slowly_gets_all_of_it(
    has_more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % size), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": has_more})
        if has_more:
            await send({"type": "http.response.body"})

    monkeypatch.setattr("ssehub.server.connection.LINGER_SECONDS", 1.0)
    async with served(app, RequestLimits(body_seconds=1)) as (address, _), asyncio.timeout(60):
        client = await connect_without_reading(address, get("/").encode())
        received = b""
        begin = time.monotonic()
        total = -1
        while total < size:
            received = await asyncio.get_running_loop().sock_recv(client, 2_000_000)
            assert received, f"cut off after {total} bytes"
            if total < 0:
                total, received = 0, received.partition(b"\r\n\r\n")[2]
            total += len(received)
            if time.monotonic() < begin + 5:
                await asyncio.sleep(0.25)
        client.close()


@pytest.mark.anyio
async def test_app_that_looks_for_the_end_of_its_client_reads_no_endless_body_ahead() -> None:
    end = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        while not end.is_set():  # as Starlette's `Request.is_disconnected` does
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(receive(), 0.001)

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write((get("/") + get("/", "Content-Length: 100000000")).encode())
        for _ in range(200):
            writer.write(b"x" * 500_000)
            await writer.drain()

    async with served(app) as (address, state):
        _, writer = await asyncio.open_connection(*address)
        with pytest.raises(TimeoutError):  # the server stops to read
            await asyncio.wait_for(flood(writer), 3)
        end.set()
        writer.transport.abort()
        await until(lambda: not state.connections and not state.tasks, 10)


async def answer(request: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.mark.anyio
async def test_a14_unfinished_heads_take_bounded_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.server.connection.MAX_UNFINISHED_BYTES", 100_000)
    begun = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 30_000
    async with served(answer) as (address, state):
        clients = [await asyncio.open_connection(*address)]
        await until(lambda: bool(state.connections))
        heads = port_of(state).unfinished_heads
        for number in range(1, 4):
            clients[-1][1].write(begun)
            await until(lambda number=number: heads.bytes == number * len(begun))  # type: ignore[misc]  # a lambda with a default
            clients.append(await asyncio.open_connection(*address))
        (oldest, _), (second, to_second), (third, to_third), (_, to_newest) = clients

        to_newest.write(begun)
        assert await end_of(oldest) == b""
        await until(lambda: heads.bytes == 3 * len(begun))

        to_second.write(b"\r\n\r\n")  # complete
        assert (await second.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await until(lambda: heads.bytes == 2 * len(begun))
        to_third.write(b"\r\n: no field\r\n\r\n")  # refused
        assert (await end_of(third)).startswith(b"HTTP/1.1 400 ")
        assert heads.bytes == len(begun)
        to_newest.transport.abort()  # lost
        await until(lambda: heads.bytes == 0)
        to_second.write(begun + b"\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # kept alive
        for _ in range(2):
            assert (await second.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert heads.bytes == 0
        for _, writer in clients:
            writer.close()


@pytest.mark.anyio
async def test_a14_connection_may_drop_itself_in_the_middle_of_what_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.server.connection.MAX_UNFINISHED_BYTES", 20_000)
    async with served(answer) as (address, state):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 60_000)

        assert await end_of(reader) == b""
        await until(lambda: not state.connections)
        assert port_of(state).unfinished_heads.bytes == 0
        writer.close()


def port_of(state: ServerState) -> Port:
    port: Port = vars(state)["ssehub"]
    return port


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """Return everything until the server ends the connection, in whatever way."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.wait_for(reader.read(2**16), 20):
            received += part
    return bytes(received)
