"""Whatever is sent, in any pieces: fast paths answer what the app would have answered, and publish the same."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from emit_requests import REQUESTS
from fake_transport import FakeTransport, pieces
from fakes import FakeSink
from ssehub import Claims, Hub, Tokens
from ssehub.server import HttpProtocol
from ssehub.server.protocol import MAX_AHEAD
from ssehub.web.control import create_control_app
from ssehub.web.fast_path import NO_FAST_PATHS

SOAK = "SOAK" in os.environ
EXAMPLES = 300_000 if SOAK else 150
SOAK_SECONDS = 3_600
_began = time.monotonic()
TURNS = 10_000
"""Most turns of the event loop until everything has been answered."""
_VARIES = re.compile(rb'(?m)^date: [^\r]+|\d{13}-\d+\.\w+|eyJ[\w-]+\.[\w-]+\.[\w-]{43}|(?<="expiresAt":)\d+')
_LENGTH = re.compile(rb"(?m)^content-length: \d+\r")
"""Tokens and positions differ in length."""
_OF_PARSER = re.compile(
    rb"HTTP/1.1 400 [^\r]+\r\n([^\r]+\r\n)*\r\nInvalid HTTP request received\.|connection: close\r\n"
)
"""What cannot be parsed is answered only if all before it has been answered already; else the connection ends."""
EARLY = ("compressed",)
"""The app answers these before it has read the body, so that it closes the connection."""
LAST = ("last of its connection", "HTTP/1.0")
"""What is sent behind these drops the connection, unless they have been answered before it arrives."""
NAMES = [name for name in REQUESTS if name not in (*EARLY, "two lengths")]
ODD = (b"", b"\r\n", b"x", b"GET", b"POST /emit/ HTTP/1.1\r\n", b"\0", b"0\r\n\r\n", REQUESTS["two lengths"])


async def answers(
    sent: list[bytes], odd: bytes, seed: int, is_cut: bool, *, is_fast: bool
) -> tuple[bytes, list[str], dict[int, int]]:
    """Send requests to a control app, then `odd`; return answers, what was published, and statuses with counts.

    If they are not cut to pieces, each arrives whole, so that the heads of equal ones are known.

    What is sent behind something that cannot be parsed drops the connection, unless all before it has been answered.
    """
    numbers = random.Random(seed)
    async with Hub() as hub:
        sink = FakeSink()
        hub.attach(Claims("alex", ("chat", "c")), sink)
        app = create_control_app(hub, tokens=Tokens("a secret of 32 bytes, or rather more"))
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        state = ServerState()
        fast_paths = app.fast_paths if is_fast else NO_FAST_PATHS
        protocol = HttpProtocol(config, state, {}, logs_access=False, fast_paths=fast_paths)
        transport = FakeTransport(protocol, "127.0.0.1")
        protocol.connection_made(transport)
        for piece in filter(None, [*(pieces(b"".join(sent), seed) if is_cut else sent), odd]):
            await until(lambda: not transport.is_paused or transport.is_closed)
            if transport.is_closed:
                break
            protocol.data_received(piece)
            if numbers.random() < 0.3:
                await asyncio.sleep(0)
        await until(lambda: not state.tasks)
        transport.close()
        await asyncio.sleep(0)
        await hub.flush()
        answered = _LENGTH.sub(b"content-length: ?\r", _VARIES.sub(b"?", transport.written))
        answered = _OF_PARSER.sub(b"", answered)
        return answered, sink.data(), dict(hub.control_responses)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(TURNS):
        if is_so():
            return
        await asyncio.sleep(0)
    pytest.fail("not everything has been answered")


@pytest.mark.soak
@pytest.mark.timeout(4 * 3_600)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(
    names=st.lists(st.sampled_from(NAMES), max_size=MAX_AHEAD),
    odd=st.sampled_from(ODD),
    seed=st.integers(0, 2**32),
    is_cut=st.booleans(),
)
@example(names=["form"], odd=b"x", seed=0, is_cut=True)
@example(names=["chunked"] * 3, odd=b"GET", seed=5, is_cut=True)
@example(names=["form", "no body", "form", "chunked", "token", "no body", "form"], odd=b"GET", seed=5, is_cut=False)
def test_fast_paths_answer_what_the_app_answers(names: list[str], odd: bytes, seed: int, is_cut: bool) -> None:
    if time.monotonic() > _began + SOAK_SECONDS:
        return
    end = next((at for at, name in enumerate(names) if name in LAST), None)
    sent = [REQUESTS[name] for name in names]
    if end is not None:
        sent, odd = sent[: end + 1], b""

    fast = asyncio.run(answers(sent, odd, seed, is_cut, is_fast=True))
    ordinary = asyncio.run(answers(sent, odd, seed, is_cut, is_fast=False))

    assert fast == ordinary
