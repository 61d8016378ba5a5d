"""Heads that a port has parsed before: what takes them, what does not, and what is kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from emit_requests import EVENT, chunked, request
from fake_transport import FakeTransport
from fakes import FakeSink
from named_keys import NamedKey, write_keys
from ssehub import Claims, ControlKeys, Hub, Tokens
from ssehub.server import HttpProtocol
from ssehub.server.deadlines import Wait
from ssehub.server.known_heads import MAX_HEAD_BYTES, MAX_HEADS, KnownHeads
from ssehub.server.protocol import MAX_AHEAD
from ssehub.web.control import create_control_app
from ssehub.web.fast_path import Head

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"


class Parser:
    """Counts what the parser is given."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self._parser = protocol._parser
        protocol._parser = self
        self.parts: list[bytes] = []

    def feed_data(self, part: bytes) -> None:
        self.parts.append(bytes(part))
        self._parser.feed_data(part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class Sent:
    """A control app with a fast path, what its streams are sent, and connections to it."""

    def __init__(self, hub: Hub, **settings: Any) -> None:
        self.sink = FakeSink()
        self.hub = hub
        hub.attach(Claims("alex", ("chat",)), self.sink)
        self._app = create_control_app(hub, tokens=Tokens("a secret of 32 bytes, or rather more"), **settings)
        self._config = uvicorn.Config(self._app, ws="none", lifespan="off", log_config=None, access_log=False)
        self._state = ServerState()

    def connect(self) -> tuple[HttpProtocol, FakeTransport, Parser]:
        protocol = HttpProtocol(self._config, self._state, {}, logs_access=False, fast_paths=self._app.fast_paths)
        transport = FakeTransport(protocol, "127.0.0.1")
        protocol.connection_made(transport)
        return protocol, transport, Parser(protocol)

    async def data(self) -> list[str]:
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)
        await self.hub.flush()
        return self.sink.data()


@asynccontextmanager
async def control(**settings: Any) -> AsyncIterator[Sent]:
    async with Hub() as hub:
        yield Sent(hub, **settings)


def event(data: str, *headers: str) -> bytes:
    return request(b"userId=*&channel=chat&data=" + data.encode(), *headers)


async def test_head_is_parsed_once_for_all_connections_and_every_body_is_read() -> None:
    async with control() as app:
        first, _, _ = app.connect()
        protocol, transport, parser = app.connect()

        first.data_received(event("a"))
        for data in "bcd":
            protocol.data_received(event(data))

        assert parser.parts == []
        assert transport.written.count(OK) == 3
        assert await app.data() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "parts",
    [
        [event("bc")],  # a body of another length
        [event("b", "X-Trace: 1")],
        [event("b") + event("c")],
        [event("b")[:-1], event("b")[-1:]],
        [event("b")[:60], event("b")[60:]],
        [event("b"), event("c")[:-1], event("c")[-1:], event("d")],
        [b"\r\n" + event("b")],
        [b"\r\n", event("b")],
    ],
)
async def test_c24_what_is_not_exactly_a_known_head_and_its_body_is_answered_as_if_no_head_was_known(
    parts: list[bytes],
) -> None:
    results = []
    for is_known in (True, False):
        async with control() as app:
            protocol, transport, _ = app.connect()
            protocol.data_received(event("a"))
            for part in parts:
                if not is_known:
                    protocol.port.known_heads = KnownHeads()
                protocol.data_received(part)
            results.append((await app.data(), transport.written.count(OK), transport.is_closed))

    assert results[0] == results[1]
    assert results[0][1] == b"".join(parts).count(b"POST") + 1


@pytest.mark.parametrize(
    "parts, then",
    [
        # The second read is the rest of a chunked body, and looks like a request without a body.
        (
            [request(b"14\r\n", "Transfer-Encoding: chunked"), b"POST /emit/ HTTP/1.1\r\n0\r\n\r\n"],
            b"POST /emit/ HTTP/1.1\r\n0\r\n\r\n",
        ),
        ([request(chunked(EVENT), "Transfer-Encoding: chunked")], request(b"", "Transfer-Encoding: chunked")),
        ([event("a", "Connection: close")], event("a", "Connection: close")),
        ([event("a", "Expect: 100-continue")], event("a", "Expect: 100-continue")),
        ([event("a") + event("b")], event("a") + event("b")),
        ([event("a") + request(b"")], event("a")),
        ([event("a", "Origin: https://evil.example")], event("a", "Origin: https://evil.example")),
        ([b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"], b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ],
    ids=[
        "rest of a body",
        "chunked",
        "closes",
        "expects",
        "two",
        "two, the second without a body",
        "page",
        "other path",
    ],
)
async def test_c24_head_of_an_odd_request_is_not_kept(parts: list[bytes], then: bytes) -> None:
    async with control() as app:
        protocol, _, _ = app.connect()
        for part in parts:
            protocol.data_received(part)
        await app.data()

        assert protocol.port.known_heads.find(then) is None


async def test_c24_trailer_that_ends_the_connection_ends_it_for_known_heads_too() -> None:
    ending = chunked(EVENT).replace(b"X-Trailer: y", b"Connection: close")
    async with control() as app:
        protocol, transport, _ = app.connect()
        protocol.data_received(event("a"))
        protocol.data_received(request(ending, "Transfer-Encoding: chunked"))
        await app.data()
        assert transport.written.endswith(b"connection: close\r\n\r\nOK")

        protocol.data_received(event("b"))

        assert await app.data() == ["a", "hello"]
        assert transport.is_closed


async def test_c24_heads_of_requests_without_a_valid_key_are_not_kept(tmp_path: Path) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", NamedKey("orders", ["publish"])))
    async with control(control_keys=keys) as app:
        protocol, transport, _ = app.connect()
        wrong = event("a", "Authorization: Bearer " + "x" * 32)

        protocol.data_received(wrong)

        assert b"HTTP/1.1 401 " in transport.written
        assert protocol.port.known_heads.find(wrong) is None


async def test_request_with_a_known_head_waits_for_those_before_it() -> None:
    async with control() as app:
        protocol, transport, _ = app.connect()
        protocol.data_received(event("a"))

        protocol.data_received(event("b", "Expect: 100-continue"))  # is one for the app, which needs a task
        protocol.data_received(event("c"))

        assert transport.written.count(OK) == 1
        assert await app.data() == ["a", "b", "c"]
        assert transport.written.count(OK) == 3


async def test_c24_guard_decides_about_each_request_again(tmp_path: Path) -> None:
    key = NamedKey("orders", ["publish"])
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", key))
    async with control(control_keys=keys) as app:
        protocol, transport, parser = app.connect()
        for data in "ab":
            protocol.data_received(event(data, f"Authorization: Bearer {key.key}"))
        write_keys(tmp_path / "keys.toml", NamedKey("other", ["publish"]))
        await keys.reload()

        protocol.data_received(event("c", f"Authorization: Bearer {key.key}"))

        assert len(parser.parts) == 1
        assert transport.written.count(OK) == 2
        assert b"HTTP/1.1 401 " in transport.written
        assert await app.data() == ["a", "b"]


async def test_c24_hub_that_drains_refuses_a_request_with_a_known_head() -> None:
    async with control() as app:
        protocol, transport, _ = app.connect()
        protocol.data_received(event("a"))
        await app.hub.drain(0.01)

        protocol.data_received(event("b"))

        assert b"HTTP/1.1 503 " in transport.written


async def test_deadline_of_the_next_request_begins_anew_behind_one_with_a_known_head() -> None:
    async with control() as app:
        protocol, _, _ = app.connect()
        protocol.data_received(event("a"))
        deadlines = protocol.port.deadlines
        other, _, _ = app.connect()
        other.data_received(event("b"))
        assert deadlines.oldest(Wait.REQUEST) is protocol

        protocol.data_received(event("c"))

        assert deadlines.oldest(Wait.REQUEST) is other
        assert deadlines.oldest(Wait.HEAD) is None


async def test_c24_heads_that_are_kept_are_bounded_in_number_and_size() -> None:
    async with control() as app:
        protocol, transport, parser = app.connect()
        long = event("a", "X-Long: " + "x" * MAX_HEAD_BYTES)
        protocol.data_received(long)
        protocol.data_received(long)
        assert len(parser.parts) == 2

        for number in range(MAX_HEADS + 1):
            protocol.data_received(event("a", f"X-Number: {number}"))
        parser.parts.clear()
        for number in range(MAX_HEADS, -1, -1):
            protocol.data_received(event("a", f"X-Number: {number}"))

        assert parser.parts == [event("a", "X-Number: 0")]  # the oldest one
        assert transport.written.count(OK) == 2 * (MAX_HEADS + 1) + 2


def test_known_head_needs_all_of_its_body_and_nothing_behind_it() -> None:
    heads = KnownHeads()
    sent = event("abc")
    kept: Any = object()
    head = Head(b"", [(b"content-length", b"%d" % len(b"userId=*&channel=chat&data=abc"))])

    assert heads.find(sent) is None
    heads.add(sent, kept, head)

    assert heads.find(sent) == (kept, head, 30)
    assert heads.find(sent[:-1]) is None
    assert heads.find(sent + b"x") is None
    assert heads.find(b"") is None


async def test_pipelined_requests_with_known_heads_are_bounded_as_others() -> None:
    async with control() as app:
        protocol, transport, _ = app.connect()
        protocol.data_received(event("a"))

        protocol.data_received(event("a") * (MAX_AHEAD + 1))

        assert transport.written.count(OK) == 1 + MAX_AHEAD
        assert await app.data() == ["a"] * (MAX_AHEAD + 2)
