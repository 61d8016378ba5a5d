"""Our protocol with anything that a client may send, in any pieces: it answers, closes, or waits, and keeps nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from fake_transport import FakeTransport, pieces
from ssehub.server import HttpProtocol
from ssehub.server.protocol import MAX_AHEAD

SOAK = "SOAK" in os.environ
EXAMPLES = 200_000 if SOAK else 600


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, or not, or only wait for the end, as the path says; then answer."""
    body = b""
    if scope["path"] != "/unread":
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
    if scope["path"] == "/wait":
        assert (await receive())["type"] == "http.disconnect"
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


CONFIG = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
TOKENS = (
    *(b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"PRI ", b"/", b"/wait", b"/unread", b"*", b"/%zz?\xff"),
    *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/0.9\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\r"),
    *(b"Host: x\r\n", b"Host:\r\n", b"a:b\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: Upgrade\r\n", b"Upgrade: h2c\r\n", b"Upgrade: websocket\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: -1\r\n"),
    *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"5;x=y\r\nhello\r\n", b"hello", b"ffffffffffffffff\r\n"),
    *(b"\0", b"\xff", b"x" * 20_000, b"X: " + b"y" * 20_000 + b"\r\n", b"a:b\r\n" * 101),
)
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
WHOLE = [
    HEAD + b"\r\n",
    HEAD + b"Connection: close\r\n\r\n",
    POST + b"Content-Length: 5\r\n\r\nhello",
    POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
    POST.replace(b"/ ", b"/unread ") + b"Content-Length: 50000\r\n\r\n" + b"x" * 50_000,
    HEAD.replace(b"/ ", b"/wait ") + b"\r\n",
    POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
]
STREAMS = st.lists(st.sampled_from(TOKENS) | st.sampled_from(WHOLE) | st.binary(max_size=20), max_size=14).map(b"".join)


async def send(data: bytes, seed: int, state: ServerState) -> FakeTransport:
    """Send `data` in pieces, with turns of the event loop between some of them, then disconnect."""
    protocol = HttpProtocol(config=CONFIG, server_state=state, app_state={})
    transport = FakeTransport(protocol)
    protocol.connection_made(transport)
    numbers = random.Random(seed)
    for piece in pieces(data, seed):
        for _ in range(50):
            if not transport.is_paused or transport.is_closed:
                break
            await asyncio.sleep(0)  # asyncio's transports read nothing while they are paused
        if transport.is_closed or transport.is_paused:
            break
        protocol.data_received(piece)
        assert len(protocol._ahead) <= MAX_AHEAD
        if numbers.random() < 0.3:
            await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    transport.close()
    while state.tasks:  # noqa: ASYNC110  # the server's own set
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not state.connections
    return transport


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=STREAMS, seed=st.integers(0, 2**32))
@example(data=HEAD + b"\r\nx", seed=0)
@example(data=HEAD.replace(b"/ ", b"/wait ") + b"\r\nX\xa1\xe9", seed=0)
@example(data=b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", seed=0)
@example(data=(HEAD + b"\r\n") * 1_500, seed=4)
@example(
    data=POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    seed=1,
)
@example(data=(HEAD + b"\r\n") * 11, seed=0)
@example(data=POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 3, seed=2)
@example(data=POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000, seed=3)
def test_protocol_survives_whatever_a_client_sends(data: bytes, seed: int) -> None:
    failures: list[Any] = []

    async def run() -> FakeTransport:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        return await send(data, seed, ServerState())

    transport = asyncio.run(run())

    assert not failures
    answers = re.findall(rb"HTTP/1\.1 (\d+) ", transport.written)
    assert len(answers) - answers.count(b"100") <= len(re.findall(rb"[\r\n]", data)) + 1


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]


@pytest.mark.soak
def test_requests_leave_no_reference_cycles() -> None:
    """Memory has to return without the collector's oldest generation, which rarely runs."""

    async def run() -> int:
        state = ServerState()
        for data in WHOLE:
            await send(data, 0, state)
        gc.collect()
        gc.disable()
        try:
            for number in range(20_000 if SOAK else 300):
                await send(WHOLE[number % len(WHOLE)] * 3, number, state)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(run()) == 0
