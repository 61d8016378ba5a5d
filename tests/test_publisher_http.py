"""The client connection of runs: answers that come early, in parts, or not at all."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certificates import CertificateAuthority
from conftest import free_port
from ssehub.errors import ControlKeyError, Forbidden, InvalidRequest, Overloaded, Unavailable
from ssehub.publisher_http import Answer, Connection, Node, refusal, run_path
from ssehub.publisher_route import Patience, Route, TryAgain

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
IMPATIENT = Patience(answer_seconds=2.0, first_wait_seconds=0.01, longest_wait_seconds=0.02, give_up_seconds=0.2)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a server on loopback, and yield its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def connection_to(port: int) -> AsyncIterator[Connection]:
    connection = await Route([node(port)], IMPATIENT).connect()
    try:
        yield connection
    finally:
        connection.close()
        await asyncio.sleep(0)


def node(port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Node:
    return Node(f"http://{host}:{port}", host, port, "/hub", tls, {"Host": "hub.example"})


def answering(*parts: bytes) -> Handler:
    """Return a handler that answers each request, as soon as it has its head, with these parts."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    return handle


async def test_body_is_sent_in_chunks_and_the_connection_used_again() -> None:
    received = bytearray()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        received.extend(await reader.readuntil(b"body"))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async with serving(handle) as port, connection_to(port) as connection:
        connection.begin("POST", run_path("a b/ü"), {"Run-Offset": "7"})
        connection.write(b"x" * 20)
        connection.write(b"y")
        connection.end()
        first = await connection.answered(2)
        connection.begin("PUT", run_path("b", "/finish"), {}, b"body")
        second = await connection.answered(2)

    assert first == Answer(200, b"{}")
    assert second.status == 404
    assert bytes(received) == (
        b"POST /hub/runs/a%20b%2F%C3%BC HTTP/1.1\r\nHost: hub.example\r\nRun-Offset: 7\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n14\r\n" + b"x" * 20 + b"\r\n1\r\ny\r\n0\r\n\r\n"
        b"PUT /hub/runs/b/finish HTTP/1.1\r\nHost: hub.example\r\nContent-Length: 4\r\n\r\nbody"
    )


async def test_early_answer_is_heard_while_the_body_is_being_sent() -> None:
    refused = b'HTTP/1.1 409 Conflict\r\nContent-Length: 16\r\nConnection: close\r\n\r\n{"reason": "no"}'
    changed = asyncio.Event()
    async with serving(answering(refused)) as port:
        connection = await Route([node(port)], IMPATIENT).connect(changed.set)
        connection.begin("POST", "/", {})
        connection.write(b"something")
        async with asyncio.timeout(2):
            await changed.wait()

        assert connection.answer == Answer(409, b'{"reason": "no"}')
        assert not connection.is_usable
        connection.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        tuple(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"),
    ],
    ids=["interim", "bytewise", "chunked"],
)
async def test_answer_is_read_whole(parts: tuple[bytes, ...]) -> None:
    async with serving(answering(*parts)) as port, connection_to(port) as connection:
        for _ in range(2):
            connection.begin("GET", "/", {}, b"")
            assert await connection.answered(2) == Answer(200, b"{}")


async def test_answer_without_length_ends_with_the_connection() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 502 Bad Gateway\r\n\r\nno hub")

    async with serving(handle) as port, connection_to(port) as connection:
        connection.begin("GET", "/", {}, b"")
        answer = await connection.answered(2)

        assert answer == Answer(502, b"no hub")
        assert not connection.is_usable


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 2_000_000,
    ],
    ids=["nothing", "short", "half-chunked", "not-http", "huge"],
)
async def test_answer_that_is_not_whole_is_a_lost_connection(part: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(part)
        await writer.drain()

    async with serving(handle) as port, connection_to(port) as connection:
        connection.begin("GET", "/", {}, b"")
        with pytest.raises(ConnectionResetError):
            await connection.answered(2)
        assert connection.is_lost


async def test_server_that_does_not_answer_is_given_up() -> None:
    async with serving(answering()) as port, connection_to(port) as connection:
        connection.begin("GET", "/", {}, b"")
        with pytest.raises(OSError, match=re.escape("no answer within 0.05 s")):
            await connection.answered(0.05)


async def test_route_goes_on_to_the_next_node_at_once_and_stays_there() -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(answering(ok)) as port:
        route = Route([node(1, "nowhere.invalid"), node(free_port()), node(port)], IMPATIENT)
        with pytest.raises(OSError):
            await route.connect()
        await route.failed(OSError("refused"))
        for _ in range(2):
            connection = await route.connect()
            assert connection.node.port == port
            connection.close()
        await asyncio.sleep(0)


async def test_route_gives_up_after_its_patience_unless_something_succeeded() -> None:
    route = Route([node(1)], IMPATIENT)
    loop = asyncio.get_running_loop()

    began = loop.time()
    with pytest.raises(Unavailable, match=r"127.0.0.1:1 could not be used for 0.2 s \(try later\)"):
        while True:
            await route.failed(TryAgain("try later"))
    assert 0.2 <= loop.time() - began < 2

    route.succeeded()
    await route.failed(TryAgain("again"))


async def test_certificate_is_verified(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.path)
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    async with serving(answering(ok), authority.issue(["127.0.0.1"]).context()) as port:
        connection = await Route([node(port, tls=trusting)], IMPATIENT).connect()
        connection.begin("GET", "/", {}, b"")
        assert await connection.answered(2) == Answer(200, b"{}")
        connection.close()

    async with serving(answering(ok), authority.issue(["hub.example"]).context()) as port:
        route = Route([node(port, tls=trusting)], IMPATIENT)
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await route.connect()
        with pytest.raises(Unavailable, match="its certificate can't be verified"):
            await route.failed(caught.value)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (401, ControlKeyError),
        (403, Forbidden),
        (302, InvalidRequest),
        (429, Overloaded),
        (500, Unavailable),
    ],
)
def test_refusal_says_what_the_hub_has_said(status: int, error: type[Exception]) -> None:
    answer = Answer(status, b'{"error": "because"}')

    refused = refusal("http://hub", answer.status, answer.reason)

    assert type(refused) is error
    assert str(refused) == f"http://hub responded with {status}: because"


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b'{"error": 1}'])
def test_answer_that_is_no_object_has_no_fields(body: bytes) -> None:
    answer = Answer(500, body)

    assert answer.fields in ({}, {"error": 1})
    assert isinstance(answer.reason, str)
