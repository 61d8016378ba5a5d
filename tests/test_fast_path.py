"""Requests to the control app that our server answers on a fast path, and the same requests as the app answers them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from both_ports import BothPorts, app_calls, both_ports
from control_requests import FORM, JSON
from emit_requests import EVENT, KEY, KEYED, REQUESTS, request
from ssehub import Hub, Tokens
from ssehub.server import http_server
from ssehub.server.protocol import MAX_AHEAD, PART_BYTES
from ssehub.web.control import create_control_app

SOAK = "SOAK" in os.environ
SETTINGS: Mapping[str, Any] = {"max_event_bytes": 4_096, "max_body_bytes": 100_000, "max_batch_events": 10}
_VARIES = re.compile(rb'(?m)^date: [^\r]+|\d{13}-\d+\.\w+|eyJ[\w-]+\.[\w-]+\.[\w-]{43}|(?<="expiresAt":)\d+')
_TOKEN_LENGTH = re.compile(rb"(?m)^content-length: 2\d\d\r")
_FINAL = re.compile(rb"HTTP/1\.1 (?!100)\d+ .*?\r\n\r\n", re.DOTALL)
END = "the end of what was published"


async def answer(ports: BothPorts, data: bytes) -> bytes:
    """Send `data`; return the answer, without what differs each time, and `closed` if the connection then ends."""
    reader, writer = await ports.connect(ports.control, data)
    received = await read_answer(reader)
    if b"connection: close" in received:
        assert not await asyncio.wait_for(reader.read(), 5)
        received += b" closed"
    writer.close()
    return _TOKEN_LENGTH.sub(b"content-length: 2xx\r", _VARIES.sub(b"?", received))


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    received = b""
    async with asyncio.timeout(5):
        while True:
            head = _FINAL.search(received)
            if head and len(received) >= head.end() + length(head[0]):
                return received
            part = await reader.read(65_536)
            assert part, received
            received += part


def length(head: bytes) -> int:
    found = re.search(rb"content-length: (\d+)", head)
    assert found, head
    return int(found[1])


def counted(hub: Hub) -> dict[str, int]:
    statistics = hub.statistics
    counts = {"published": statistics.published}
    for name in ("control_responses", "refused_control"):
        counts |= {f"{name} {label}": count for label, count in getattr(statistics, name).items()}
    for name in ("control_requests", "refused_keys"):
        for key, by_label in getattr(statistics, name).items():
            counts |= {f"{name} {key!r} {label}": count for label, count in by_label.items()}
    return counts


class Result(NamedTuple):
    answer: bytes
    counts: dict[str, int]
    """How the statistics have changed."""
    sent: bytes
    """What a stream was sent."""
    calls: int
    """How often the app was called."""


async def run(requests: dict[str, bytes], *, uses_fast_paths: bool, **settings: Any) -> dict[str, Result]:
    results = {}
    with app_calls() as calls:
        async with both_ports(uses_fast_paths=uses_fast_paths, **SETTINGS, **settings) as ports:
            stream, _ = await ports.listen()
            for name, data in requests.items():
                calls.clear()
                before = counted(ports.hub)
                received = await answer(ports, data)
                after = counted(ports.hub)
                await ports.hub.publish(channel="chat", user_id="*", data=END)
                sent = await stream.readuntil(END.encode() + b"\n")
                changes = {label: count - before.get(label, 0) for label, count in after.items()}
                changes = {label: change for label, change in changes.items() if change}
                results[name] = Result(received, changes, _VARIES.sub(b"?", sent), len(calls))
    return results


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[Result, Result]]:
    """Return what came of each request on its fast path, and what by the app."""

    async def both() -> dict[str, tuple[Result, Result]]:
        found: dict[str, tuple[Result, Result]] = {}
        for requests, settings in ((REQUESTS, {}), (KEYED, {"control_key": KEY})):
            fast, ordinary = [await run(requests, uses_fast_paths=fast, **settings) for fast in (True, False)]
            found |= {name: (fast[name], ordinary[name]) for name in requests}
        return found

    return asyncio.run(both())


ORDINARY = {"HTTP/1.0", "expects", "large", "method", "GET", "two lengths"}
"""Those that no fast path answers."""
EARLY = {"compressed"}
"""Those that the app answers before it has read the body, so that it closes the connection."""


@pytest.mark.parametrize("name", [*REQUESTS, *KEYED])
def test_answer_is_that_of_the_app(name: str, results: dict[str, tuple[Result, Result]]) -> None:
    fast, ordinary = results[name]
    if name in EARLY:
        ordinary = ordinary._replace(answer=ordinary.answer.replace(b"connection: close\r\n", b"")[: -len(b" closed")])

    assert fast.answer == ordinary.answer
    assert fast.counts == ordinary.counts
    assert fast.sent == ordinary.sent


@pytest.mark.parametrize("name", [*REQUESTS, *KEYED])
def test_fast_path_is_taken_for_whole_small_requests(name: str, results: dict[str, tuple[Result, Result]]) -> None:
    fast, ordinary = results[name]

    assert ordinary.calls == (name != "two lengths")
    assert fast.calls == (ordinary.calls if name in ORDINARY else 0)


@pytest.mark.parametrize(
    "name", ["form", "json", "chunked", "unknown field", "page", "token", "last of its connection"]
)
@pytest.mark.anyio
async def test_request_in_two_pieces_is_answered_as_whole(name: str, results: dict[str, tuple[Result, Result]]) -> None:
    data, expected = REQUESTS[name], results[name][0].answer
    async with both_ports(uses_fast_paths=True, **SETTINGS) as ports:
        for at in [*range(1, len(data), 1 if SOAK else 11), len(data) - 1, data.index(b"\r\n\r\n") + 4]:
            reader, writer = await ports.connect(ports.control, data[:at])
            await writer.drain()
            await asyncio.sleep(0.001)
            writer.write(data[at:])

            answered = _TOKEN_LENGTH.sub(b"content-length: 2xx\r", _VARIES.sub(b"?", await read_answer(reader)))

            assert answered == expected.removesuffix(b" closed")
            writer.close()


@pytest.mark.anyio
async def test_pipelined_requests_are_answered_in_order_by_both_paths() -> None:
    bodies = [b'{"userId":"*","channel":"chat","data":"%d"}' % number for number in range(MAX_AHEAD)]
    data = b"".join([request(body, kind=JSON) for body in bodies])
    data = data.replace(b"1.1\r\n", b"1.1\r\nExpect: 100-continue\r\n", 1)  # the first is one for the app
    async with both_ports(uses_fast_paths=True) as ports:
        for _ in range(3):
            stream, _ = await ports.listen()
            reader, _ = await ports.connect(ports.control, data + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

            received = b""
            async with asyncio.timeout(5):
                while not received.endswith(b"\r\n\r\nok\n"):
                    received += await reader.read(65_536)

            assert received.count(b"HTTP/1.1 200 OK") == len(bodies) + 1
            ids = re.findall(rb'"id":"(\d+)-(\d+)', received)
            assert [(int(ms), int(n)) for ms, n in ids] == sorted((int(ms), int(n)) for ms, n in ids)
            sent = await asyncio.wait_for(stream.readuntil(b"data: %d\n" % (MAX_AHEAD - 1)), 5)
            assert [int(number) for number in re.findall(rb"data: (\d+)\n", sent)] == list(range(MAX_AHEAD))


@pytest.mark.anyio
async def test_a7_one_read_gets_a_bounded_number_of_answers_at_once() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    data = request(b"userId=*&channel=chat&data=x")
    many = PART_BYTES // len(data)
    async with both_ports(uses_fast_paths=True) as ports:
        reader, writer = await ports.connect(ports.control)
        taking = asyncio.create_task(take_turns())
        turns = 0
        writer.write(data * many)

        received = await asyncio.wait_for(reader.read(), 5)

        taking.cancel()
        assert many > 2 * MAX_AHEAD
        assert MAX_AHEAD <= received.count(b"HTTP/1.1 200 OK") <= 2 * MAX_AHEAD + 1  # then it has sent too much ahead
        assert ports.hub.statistics.published == received.count(b"HTTP/1.1 200 OK")


@pytest.mark.anyio
async def test_a7_client_that_reads_no_answers_is_not_read_from() -> None:
    async with both_ports(uses_fast_paths=True, body_seconds=1) as ports:
        reader, writer = await ports.connect(ports.control)
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # the client of this test
        data = request(b'{"userId":"*","channel":"chat","dat":1}', kind=JSON) * 5
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(20):
                while True:
                    writer.write(data)
                    await writer.drain()
                    await asyncio.sleep(0.0005)
        refused = ports.hub.statistics.refused_connections["control"]

    assert refused["unread"] == 1


@pytest.mark.anyio
async def test_held_request_is_answered_408_or_forgotten_with_its_connection() -> None:
    data = request()
    async with both_ports(uses_fast_paths=True, body_seconds=1) as ports:
        reader, _ = await ports.connect(ports.control, data[:-1])
        gone, writer = await ports.connect(ports.control, data[:-1])
        await asyncio.sleep(0.1)
        writer.close()

        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408 ")

        assert not ports.hub.statistics.published
        assert ports.hub.statistics.refused_connections["control"] == {"timeout": 1} | {
            reason: 0 for reason, count in ports.hub.statistics.refused_connections["control"].items() if not count
        }
        del gone


@pytest.mark.anyio
async def test_body_that_is_declared_to_be_too_large_is_refused_before_it_is_sent() -> None:
    head = (
        "POST /emit/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
    )
    async with both_ports(uses_fast_paths=True) as ports:
        reader, _ = await ports.connect(ports.control, head.encode())

        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.anyio
async def test_hub_that_stops_answers_what_it_holds(caplog: pytest.LogCaptureFixture) -> None:
    data = request()
    async with both_ports(uses_fast_paths=True) as ports:
        reader, writer = await ports.connect(ports.control, data[:-1])
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(ports.stop(2.0))
        await asyncio.sleep(0.2)
        writer.write(data[-1:])

        received = await asyncio.wait_for(reader.read(), 5)

        await stopping
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in received


@pytest.mark.parametrize("broker", ["memory://", "sqlite:///{}/events.db"])
@pytest.mark.anyio
async def test_failure_in_the_hub_is_answered_500_and_logged(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Hub, publications: object) -> None:
        raise RuntimeError("as a bug would")

    async with both_ports(uses_fast_paths=True, broker=broker.format(tmp_path)) as ports:
        monkeypatch.setattr(Hub, "publish_at_once", fail)

        received = await answer(ports, request())

        assert received.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert received.endswith(b" closed")
        assert ports.hub.statistics.control_responses == {"500": 1}
    assert "as a bug would" in caplog.text


@pytest.mark.anyio
async def test_publishers_that_wait_are_answered_by_the_fast_path_too(tmp_path: Path) -> None:
    """Whatever makes them wait: a file that is written, or a hub at its capacity."""
    for settings in ({"broker": f"sqlite:///{tmp_path}/events.db"}, {"max_waiting_bytes": 1}):
        async with both_ports(uses_fast_paths=True, **settings) as ports:
            stream, _ = await ports.listen()
            readers = [(await ports.connect(ports.control, request()))[0] for _ in range(20)]

            answered = [await read_answer(reader) for reader in readers]

            assert all(received.endswith(b"\r\n\r\nOK") for received in answered)
            async with asyncio.timeout(5):
                for _ in readers:
                    await stream.readuntil(b"data: hello\n")


@pytest.mark.anyio
async def test_added_middleware_sees_every_request() -> None:
    seen: list[str] = []

    class Seeing:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                seen.append(scope["path"])
            await self._app(scope, receive, send)

    async with Hub() as hub:
        app = create_control_app(hub, tokens=Tokens("a secret of 32 bytes, or rather more"))
        assert set(app.fast_paths) == {b"/emit/", b"/emit", b"/token/", b"/token"}
        app.add_middleware(Seeing)
        assert not app.fast_paths
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
            await http.post("/emit/", content=EVENT, headers=FORM)
            await http.post("/token/", content=b"userId=alex&channel=chat", headers=FORM)

    assert seen == ["/emit/", "/token/"]


@pytest.mark.anyio
async def test_connection_is_kept_as_long_as_requests_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_CONTROL_KEEP_ALIVE_SECONDS", 1)
    async with both_ports(uses_fast_paths=True) as ports:
        reader, writer = await ports.connect(ports.control)
        for _ in range(6):
            writer.write(request())
            assert (await read_answer(reader)).endswith(b"OK")
            await asyncio.sleep(0.5)

        assert await asyncio.wait_for(reader.read(), 5) == b""
