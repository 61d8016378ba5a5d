"""Bodies that an app exempts from the server's limits, and apps whose work goes on after they have returned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from conftest import until
from protocol_server import served
from ssehub.server.exchange import HIGH_WATER_BYTES
from ssehub.settings import RequestLimits
from ssehub.web.transport import connection_of

pytestmark = pytest.mark.anyio

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = RequestLimits(body_seconds=0.3)
OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
END: dict[str, Any] = {"type": "http.response.body", "body": b""}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Recorder:
    """An app that reads its body while `may_read` is set, and then answers 200."""

    def __init__(self, *, is_unlimited: bool = True, is_adopted: bool = False) -> None:
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.received = b""
        self.largest = 0
        self.has_returned = False
        self.end = ""
        self._is_unlimited = is_unlimited
        self._is_adopted = is_adopted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        assert connection is not None
        if self._is_unlimited:
            connection.unlimit_body()
        work = self._read(receive, send)
        if not self._is_adopted:
            await work
        elif not connection.adopt(work, receive):
            work.close()
            raise AssertionError("the server refused to go on")
        self.has_returned = True

    async def _read(self, receive: Receive, send: Send) -> None:
        while True:
            await self.may_read.wait()
            message = await receive()
            if message["type"] == "http.disconnect":
                self.end = "disconnect"
                return
            self.received += message["body"]
            self.largest = max(self.largest, len(message["body"]))
            if not message["more_body"]:
                break
        self.end = "answer"
        await send(OK)
        await send(END)


async def test_slow_body_is_408_unless_the_app_has_lifted_the_limit() -> None:
    answers = []
    for is_unlimited in (False, True):
        app = Recorder(is_unlimited=is_unlimited)
        async with served(app, QUICK) as (address, _):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEAD + chunk(b"a"))
            with_answer = asyncio.create_task(reader.readline())
            await asyncio.wait([with_answer], timeout=1.5)
            if not with_answer.done():
                writer.write(chunk(b"b") + b"0\r\n\r\n")
            answers.append((await with_answer, app.received))
            writer.close()

    assert answers == [(b"HTTP/1.1 408 Request Timeout\r\n", b"a"), (b"HTTP/1.1 200 OK\r\n", b"ab")]


async def test_app_that_does_not_read_stops_the_client_and_nothing_is_lost() -> None:
    app = Recorder()
    async with served(app) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        app.may_read.clear()
        body = bytes(range(256)) * 64
        writer.write(HEAD)
        for _ in range(2_000):
            writer.write(chunk(body))
        await asyncio.sleep(0.3)
        left = writer.transport.get_write_buffer_size()
        app.may_read.set()
        writer.write(b"0\r\n\r\n")

        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert left > 10 * 2**20  # of 32 MiB; the rest is in the buffers of the kernel
        assert app.received == body * 2_000
        assert app.largest <= HIGH_WATER_BYTES + 256 * 1024  # what is read at once
        writer.close()


@pytest.mark.parametrize("with_end", [False, True])
async def test_what_arrived_before_the_client_left_is_received(with_end: bool) -> None:
    app = Recorder()
    async with served(app) as (address, _):
        _, writer = await asyncio.open_connection(*address)
        writer.write(HEAD + chunk(b"a"))
        await until(lambda: app.received == b"a")
        app.may_read.clear()
        app.may_read, may_read = asyncio.Event(), app.may_read
        writer.write(chunk(b"b") + (b"0\r\n\r\n" if with_end else b""))
        await until(lambda: app.received == b"ab")  # it was waiting in `receive`
        may_read.set()
        app.may_read.set()
        writer.close()
        await until(lambda: app.end)

    assert (app.received, app.end) == (b"ab", "answer" if with_end else "disconnect")


async def test_work_that_the_server_has_adopted_answers_after_the_app_has_returned() -> None:
    app = Recorder(is_adopted=True)
    async with served(app) as (address, state):
        reader, writer = await asyncio.open_connection(*address)
        for n in range(2):
            app.has_returned, app.received = False, b""
            writer.write(HEAD + chunk(b"a"))
            await until(lambda: app.has_returned and app.received == b"a")
            writer.write(chunk(b"b") + b"0\r\n\r\n")

            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"), n
            assert app.received == b"ab"
        app.has_returned = False
        writer.write(HEAD)
        await until(lambda: app.has_returned)
        writer.close()
        await until(lambda: not state.tasks)

    assert app.end == "disconnect"


async def test_adopted_work_that_fails_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("of the work")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        assert connection is not None
        connection.adopt(fail(), receive)

    async with served(app, log_config=None) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert (await reader.readline()).startswith(b"HTTP/1.1 500")
        writer.close()
    assert "of the work" in caplog.text


async def test_app_that_fails_after_all_does_not_leave_its_work_behind(caplog: pytest.LogCaptureFixture) -> None:
    app = Recorder(is_adopted=True)

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        raise ValueError("of the middleware")

    async with served(failing, log_config=None) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert (await reader.readline()).startswith(b"HTTP/1.1 500")
        writer.close()
    assert "of the middleware" in caplog.text


async def test_work_is_not_adopted_if_middleware_has_replaced_receive() -> None:
    app = Recorder(is_adopted=True)
    errors = []

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def own() -> Any:
            return await receive()

        try:
            await app(scope, own, send)
        except AssertionError as exc:
            errors.append(str(exc))
            await send(OK)
            await send(END)

    async with served(middleware) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    assert errors == ["the server refused to go on"]


async def test_of_two_tasks_that_receive_one_may_be_cancelled() -> None:
    parts: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        first, second = asyncio.ensure_future(receive()), asyncio.ensure_future(receive())
        await asyncio.sleep(0.01)
        first.cancel()
        parts.append((await second)["body"])
        await send(OK)
        await send(END)

    async with served(app) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(HEAD)
        await asyncio.sleep(0.05)
        writer.write(chunk(b"a") + b"0\r\n\r\n")

        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    assert parts == [b"a"]
