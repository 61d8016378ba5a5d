"""The apps inside other applications: mounted, behind middleware, several in one process, with a host's own login."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from conftest import CONTROL_KEY, SECRET, until
from serving import Client, requesting, serving
from ssehub import Claims, Hub, Tokens, create_client_app, create_control_app
from ssehub.server import HttpProtocol
from ssehub.settings import Streams
from streams import get

pytestmark = pytest.mark.anyio

TOKENS = Tokens(SECRET)
FAR = 9_999_999_999


def listening(port: int, prefix: str = "", *headers: str, version: str = "1.1") -> AbstractAsyncContextManager[Client]:
    """Request a stream."""
    token = TOKENS.issue("alex", ["chat"], expires_at=FAR)
    return requesting(port, f"{prefix}/events/?token={token}", *headers, version=version)


class ContextMiddleware:
    """Sets a context variable around the app and resets it, as many libraries do."""

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("request")

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = self.variable.set("now")
        try:
            await self.app(scope, receive, send)
        finally:
            self.variable.reset(token)


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


@pytest.mark.parametrize("protocol", [HttpProtocol, H11Protocol], ids=["fast", "plain"])
@pytest.mark.parametrize(
    "middleware",
    [
        Middleware(GZipMiddleware, minimum_size=1),
        Middleware(CORSMiddleware, allow_origins=["https://app.example"]),
        Middleware(BaseHTTPMiddleware, dispatch=pass_on),
        Middleware(ContextMiddleware),
    ],
    ids=["gzip", "cors", "base-http", "contextvar"],
)
async def test_events_arrive_in_order_through_middleware(
    middleware: Middleware, protocol: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))], middleware=[middleware])
    async with serving(app, protocol) as port, listening(port, "/sse", "Accept-Encoding: gzip") as client:
        await client.read_until("stream-hello")
        for number in range(100):
            await hub.publish(channel="chat", user_id="alex", data=str(number))
        text = await client.read_until("data: 99\n")
    await until(lambda: hub.statistics.subscribers == 0)
    await hub.aclose()

    assert text.startswith("HTTP/1.1 200")
    data = [line[6:].strip() for line in text.split("\n") if line.startswith("data: ")]
    assert data == ["{}", *map(str, range(100))]  # the first one is of stream-hello
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_http_1_0_client_behind_middleware_that_withholds_headers() -> None:
    hub = Hub()
    app = Starlette(
        routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    )
    async with serving(app) as port, listening(port, "/sse", version="1.0") as client:
        await client.read_until("stream-hello")
        await hub.publish(channel="chat", user_id="alex", data="hi")
        await client.read_until("data: hi\n")
    await hub.aclose()


@pytest.mark.parametrize(("end", "is_complete"), [("cut", False), ("clean", True)])
@pytest.mark.parametrize(
    ("protocol", "middleware"),
    [
        pytest.param(HttpProtocol, [Middleware(BaseHTTPMiddleware, dispatch=pass_on)], id="behind-middleware"),
        pytest.param(H11Protocol, [], id="under-plain-uvicorn"),
    ],
)
async def test_response_of_a_mounted_app_is_cut_off_without_an_error(
    protocol: Any, middleware: list[Middleware], end: str, is_complete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(streams=Streams(stream_lifetime_seconds=0.5, max_connections=1))
    app = Starlette(routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))], middleware=middleware)
    path = f"/sse/events/?token={TOKENS.issue('alex', ['chat'], expires_at=FAR)}&end={end}"
    async with serving(app, protocol) as port, requesting(port, path) as client:
        await client.read_until("stream-hello")
        async with requesting(port, path) as refused:
            await refused.read_until("stream-busy")
            busy = (await refused.reader.read()).decode()
        text = client.text + (await client.reader.read()).decode()
    await hub.aclose()

    assert "event: stream-lifetime\n" in text
    assert [one.endswith("0\r\n\r\n") for one in (refused.text + busy, text)] == [is_complete, is_complete]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("path", ["/sse/events", "/sse/events/", "/sse/events/more"])
@pytest.mark.parametrize("root_path", ["", "/behind/proxy"])
async def test_mounted_path_works_with_and_without_slash_under_a_root_path(path: str, root_path: str) -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))])
    token = TOKENS.issue("alex", ["chat"], expires_at=FAR)
    async with serving(app, root_path=root_path) as port, requesting(port, f"{path}?token={token}") as client:
        text = await client.read_until("stream-hello")
    await hub.aclose()

    assert text.startswith("HTTP/1.1 200")


async def test_two_hubs_in_one_process_are_independent() -> None:
    async with Hub() as one, Hub() as two:
        app = Starlette(
            routes=[Mount(f"/{n}", create_client_app(hub, tokens=TOKENS)) for n, hub in enumerate((one, two), 1)]
        )
        async with serving(app) as port, listening(port, "/1") as first, listening(port, "/2") as second:
            await first.read_until("stream-hello")
            await second.read_until("stream-hello")
            for hub, data in ((one, "for one"), (two, "for two")):
                await hub.publish(channel="chat", user_id="*", data=data)
            await first.read_until("for one")
            await second.read_until("for two")
            await one.aclose()
            await first.read_until("event: stream-drain")
            await two.publish(channel="chat", user_id="*", data="still there")
            await second.read_until("still there")

            assert "two" not in first.text and "one" not in second.text and "drain" not in second.text


async def test_mounted_control_app_answers_health_checks_without_a_key() -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/control", create_control_app(hub, tokens=TOKENS, control_key=CONTROL_KEY))])
    async with (
        serving(app) as port,
        requesting(port, "/control/healthz") as good,
        requesting(port, "/control/metrics") as bad,
    ):
        assert (await good.read_until("\r\n")).startswith("HTTP/1.1 200")
        assert (await bad.read_until("\r\n")).startswith("HTTP/1.1 401")


async def test_control_app_without_a_key_refuses_other_machines() -> None:
    app = create_control_app(Hub(), tokens=TOKENS)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "server": ("10.0.0.5", 80)}
    await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    assert sent[0]["status"] == 403


# A host's own login


async def test_login_sees_the_query_as_it_was_sent() -> None:
    async def by_ticket(connection: HTTPConnection) -> Claims | None:
        return Claims("alex", ("chat",)) if connection.query_params.get("token") == "ticket" else None

    async with (
        Hub() as hub,
        serving(create_client_app(hub, authenticate=by_ticket)) as port,
        requesting(port, "/events/?token=ticket") as client,
    ):
        await client.read_until("stream-hello")


async def by_cookie(connection: HTTPConnection) -> Claims | None:
    user = connection.cookies.get("user")
    if user == "broken":
        raise ZeroDivisionError("the login is broken")
    if user == "strange":
        return "strange"  # type: ignore[return-value]
    return Claims(user, ("chat",)) if user else None


@pytest.mark.parametrize(
    ("cookie", "status", "logged"),
    [
        ("", "401", ""),
        ("Cookie: user=broken", "500", "the login is broken"),
        ("Cookie: user=strange", "500", "return ssehub.Claims"),
    ],
)
async def test_login_that_fails_affects_its_own_client_only(
    cookie: str, status: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Hub() as hub,
        serving(create_client_app(hub, authenticate=by_cookie)) as port,
        requesting(port, "/events/", "Cookie: user=alex") as other,
        requesting(port, "/events/", cookie) as client,
    ):
        await other.read_until("stream-hello")
        assert (await client.read_until("\r\n")).startswith(f"HTTP/1.1 {status}")
        await hub.publish(channel="chat", user_id="alex", data="still here")
        await other.read_until("data: still here\n")

    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == bool(logged)
    assert logged in caplog.text


async def test_client_that_leaves_before_its_stream_opens_causes_no_error(caplog: pytest.LogCaptureFixture) -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(connection: HTTPConnection) -> Claims:
        is_asked.set()
        await may_answer.wait()
        return Claims("alex", ("chat",))

    caplog.set_level(logging.INFO)
    async with Hub() as hub, serving(create_client_app(hub, authenticate=slow)) as port:
        async with requesting(port, "/events/") as client:
            await is_asked.wait()
            client.writer.transport.abort()
        await asyncio.sleep(0.01)
        may_answer.set()

    assert hub.statistics.connected == 0
    assert [record for record in caplog.records if record.name.startswith(("ssehub.stream", "uvicorn"))] == []


async def test_connection_with_unread_responses_gets_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    async with Hub() as hub:
        client_app = create_client_app(hub, tokens=TOKENS, drains_on_exit=False)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            is_large = scope["path"] == "/large"
            await (PlainTextResponse("x" * 20_000_000) if is_large else client_app)(scope, receive, send)

        async with serving(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stream = get(f"/events/?token={TOKENS.issue('alex', ['chat'], expires_at=FAR)}")
            writer.write((get("/large") + stream).encode())
            await asyncio.sleep(0.2)
            received = b""
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(2**20):
                    received += part
            writer.close()

        assert b"text/event-stream" not in received
        assert hub.statistics.connected == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
