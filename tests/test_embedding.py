"""The hub as a library: started at first use, called from threads, behind middleware, mounted, with a host's login."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from conftest import SECRET, until
from hub_settings import hub_settings
from ssehub import Claims, Hub, Tokens, create_client_app, create_control_app
from ssehub.brokers import create_broker
from ssehub.errors import BrokerUnavailable, ConfigError, HubClosed, InvalidEvent, InvalidRequest, WrongEventLoop
from ssehub.event import Event
from ssehub.fanout.sinks import Chunk, TaskSink, TransportSink
from ssehub.fanout.subscriber import State
from ssehub.server import HttpProtocol
from ssehub.web.stream import EXTENSION

pytestmark = pytest.mark.anyio
TOKENS = Tokens(SECRET)
FAR = 9_999_999_999


@asynccontextmanager
async def serving(app: ASGIApp, protocol: Any = HttpProtocol, **options: Any) -> AsyncIterator[int]:
    """`app` under uvicorn's protocols in this event loop; gives the port."""
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, access_log=False, **options)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await until(lambda: not state.tasks)


class Client:
    """One request over a socket, read as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.text = ""

    async def read_until(self, what: str) -> str:
        async with asyncio.timeout(5):
            while what not in self.text:
                received = await self.reader.read(65_536)
                assert received, self.text
                self.text += received.decode()
        return self.text


@asynccontextmanager
async def asking(port: int, path: str, *headers: str, version: str = "1.1") -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"GET {path} HTTP/{version}", "Host: 127.0.0.1", *headers, "", ""]).encode())
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def listening(port: int, prefix: str = "", *headers: str, version: str = "1.1") -> Any:
    token = TOKENS.issue("alex", ["chat"], expires_at=FAR)
    return asking(port, f"{prefix}/events/?token={token}", *headers, version=version)


class LeavesContextAlone:
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
        Middleware(LeavesContextAlone),
    ],
    ids=["gzip", "cors", "base-http", "contextvar"],
)
async def test_events_come_in_order_through_middleware(
    middleware: Middleware, protocol: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))], middleware=[middleware])
    async with serving(app, protocol) as port, listening(port, "/sse", "Accept-Encoding: gzip") as client:
        await client.read_until(": ok")
        for number in range(100):
            await hub.publish(channel="chat", user_id="alex", data=str(number))
        text = await client.read_until("data: 99\n")
    await until(lambda: hub.statistics.subscribers == 0)
    await hub.aclose()

    assert text.startswith("HTTP/1.1 200")
    assert [line[6:].strip() for line in text.split("\n") if line.startswith("data: ")] == list(map(str, range(100)))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_http_1_0_client_behind_middleware_that_keeps_headers_back() -> None:
    hub = Hub()
    app = Starlette(
        routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    )
    async with serving(app) as port, listening(port, "/sse", version="1.0") as client:
        await client.read_until(": ok")
        await hub.publish(channel="chat", user_id="alex", data="hi")
        await client.read_until("data: hi\n")
    await hub.aclose()


@pytest.mark.parametrize("path", ["/sse/events", "/sse/events/", "/sse/events/more"])
@pytest.mark.parametrize("root_path", ["", "/behind/proxy"])
async def test_mounted_path_works_with_and_without_slash_under_a_root_path(path: str, root_path: str) -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/sse", create_client_app(hub, tokens=TOKENS))])
    token = TOKENS.issue("alex", ["chat"], expires_at=FAR)
    async with serving(app, root_path=root_path) as port, asking(port, f"{path}?token={token}") as client:
        text = await client.read_until(": ok")
    await hub.aclose()

    assert text.startswith("HTTP/1.1 200")


async def test_hubs_in_one_process_know_nothing_of_each_other() -> None:
    async with Hub() as one, Hub() as two:
        app = Starlette(
            routes=[Mount(f"/{n}", create_client_app(hub, tokens=TOKENS)) for n, hub in enumerate((one, two), 1)]
        )
        async with serving(app) as port, listening(port, "/1") as first, listening(port, "/2") as second:
            await first.read_until(": ok")
            await second.read_until(": ok")
            for hub, data in ((one, "for one"), (two, "for two")):
                await hub.publish(channel="chat", user_id="*", data=data)
            await first.read_until("for one")
            await second.read_until("for two")
            await one.aclose()
            await first.read_until("event: stream-drain")
            await two.publish(channel="chat", user_id="*", data="still there")
            await second.read_until("still there")

            assert "two" not in first.text and "one" not in second.text and "drain" not in second.text


async def test_mounted_control_app_answers_its_health_checks_to_anybody() -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/control", create_control_app(hub, tokens=TOKENS, control_key="key"))])
    async with serving(app) as port, asking(port, "/control/healthz") as good, asking(port, "/control/metrics") as bad:
        assert (await good.read_until("\r\n")).startswith("HTTP/1.1 200")
        assert (await bad.read_until("\r\n")).startswith("HTTP/1.1 401")


async def test_control_without_a_key_answers_no_other_machine() -> None:
    app = create_control_app(Hub(), tokens=TOKENS)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "server": ("10.0.0.5", 80)}
    await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    assert sent[0]["status"] == 403


async def test_cors_is_off_by_default() -> None:
    app = create_client_app(Hub(), tokens=TOKENS, drains_on_exit=False)
    origin = {"origin": "https://app.example", "access-control-request-method": "GET"}
    token = {"token": TOKENS.issue("alex", ["chat"], expires_at=FAR)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub") as http:
        answers = [
            await http.options("/events/", headers=origin),
            await http.head("/events/", headers=origin, params=token),
            await http.get("/events/", headers=origin),
        ]

    assert [answer.status_code for answer in answers] == [204, 200, 401]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)


# A host's own login


async def test_login_sees_the_query_as_it_was_sent() -> None:
    async def by_ticket(connection: HTTPConnection) -> Claims | None:
        return Claims("alex", ("chat",)) if connection.query_params.get("token") == "ticket" else None

    async with (
        Hub() as hub,
        serving(create_client_app(hub, authenticate=by_ticket)) as port,
        asking(port, "/events/?token=ticket") as client,
    ):
        await client.read_until(": ok")


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
async def test_login_that_fails_harms_this_client_only(
    cookie: str, status: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Hub() as hub,
        serving(create_client_app(hub, authenticate=by_cookie)) as port,
        asking(port, "/events/", "Cookie: user=alex") as other,
        asking(port, "/events/", cookie) as client,
    ):
        await other.read_until(": ok")
        assert (await client.read_until("\r\n")).startswith(f"HTTP/1.1 {status}")
        await hub.publish(channel="chat", user_id="alex", data="still here")
        await other.read_until("data: still here\n")

    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == bool(logged)
    assert logged in caplog.text


@pytest.mark.parametrize("given", [{}, {"tokens": TOKENS, "authenticate": by_cookie}])
async def test_client_app_needs_one_way_to_know_who_asks(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="either tokens or authenticate"):
        create_client_app(Hub(), **given)


async def test_client_that_leaves_before_its_stream_opens_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(connection: HTTPConnection) -> Claims:
        is_asked.set()
        await may_answer.wait()
        return Claims("alex", ("chat",))

    caplog.set_level(logging.INFO)
    async with Hub() as hub, serving(create_client_app(hub, authenticate=slow)) as port:
        async with asking(port, "/events/") as client:
            await is_asked.wait()
            client.writer.transport.abort()
        await asyncio.sleep(0.01)
        may_answer.set()

    assert hub.statistics.connected == 0
    assert [record for record in caplog.records if record.name.startswith(("ssehub.stream", "uvicorn"))] == []


async def test_connection_that_leaves_its_answers_unread_gets_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    async with Hub() as hub:
        client_app = create_client_app(hub, tokens=TOKENS, drains_on_exit=False)

        async def behind_unread_answers(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"][EXTENSION]["connection"].flow.pause_writing()
            await client_app(scope, receive, send)

        async with serving(behind_unread_answers) as port, listening(port) as client:
            with contextlib.suppress(ConnectionError):
                assert await client.reader.read() == b""

        assert hub.statistics.connected == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Calls from Python


async def test_hub_starts_at_first_use() -> None:
    hub = Hub()

    await hub.publish(channel="chat", user_id="*", data="first")

    assert hub.statistics.published == 1
    await hub.aclose()


async def test_subscription_gives_what_a_browser_would_be_shown() -> None:
    async with Hub() as hub, hub.subscribe(channel=["chat", "news"], user_id="alex") as messages:
        await hub.publish(channel="chat", user_id="alex", data={"n": 1}, type="note")
        await hub.publish(channel="news", user_id="*", data="two\nlines", id="own")
        await hub.publish(channel="chat", user_id="sam", data="not for alex")
        await hub.publish_events([Event(("chat",), ("*",), payload="data:raw\r\rid: 7\rdata: second")])
        shown = [await anext(messages) for _ in range(4)]

    assert [(message.type, message.data) for message in shown] == [
        ("note", '{"n":1}'),
        ("message", "two\nlines"),
        ("message", "raw"),
        ("message", "second"),
    ]
    assert shown[0].json() == {"n": 1}
    assert [message.id for message in shown[1:]] == ["own", "own", "7"]


async def test_subscription_ends_with_the_hub_and_says_why() -> None:
    async with Hub() as hub:
        messages = hub.subscribe(channel="chat", user_id="alex")
        async with messages:
            pass
        late = hub.subscribe(channel="chat", user_id="alex")
        reading = asyncio.create_task(anext(late))
        await until(lambda: hub.statistics.subscribers == 1)

    assert (await reading).type == "stream-drain"
    assert [message async for message in late] == []
    assert (messages.reason, late.reason) == ("disconnected", "drained")


async def test_subscription_that_nobody_reads_ends_as_slow() -> None:
    async with Hub(**hub_settings(max_backlog_bytes=10_000, grace_seconds=0.1)) as hub:
        messages = hub.subscribe(channel="chat", user_id="alex")
        async with messages:
            for _ in range(20):
                await hub.publish(channel="chat", user_id="*", data="x" * 10_000)
            await until(lambda: messages.reason == "slow")


async def test_subscription_that_a_loop_over_it_has_left_ends() -> None:
    async with Hub() as hub:
        await hub.publish(channel="chat", user_id="*", data="first")
        async for message in hub.subscribe(channel="chat", user_id="alex", since="earliest"):
            assert message.data == "first"
            assert hub.statistics.subscribers == 1
            break
        await until(lambda: hub.statistics.subscribers == 0)

        given_up = hub.subscribe(channel="chat", user_id="alex")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(given_up), 0.01)
        assert hub.statistics.subscribers == 1
        del given_up
        await until(lambda: hub.statistics.subscribers == 0)


@pytest.mark.parametrize("given", [{"cursor": 5}, {"since": 5}, {"expires_at": float("nan")}])
async def test_subscription_refuses_what_it_can_not_use(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"{next(iter(given))} must be"):
        Hub().subscribe(channel="chat", user_id="alex", **given)


@pytest.mark.parametrize("broker", ["memory://", "sqlite:///{path}"])
async def test_events_that_are_none_are_refused_and_harm_no_other_publisher(broker: str, tmp_path: Path) -> None:
    good = Event(("chat",), ("*",), data="good")
    async with Hub(create_broker(broker.format(path=tmp_path / "events.db"))) as hub:
        stored, *refused = await asyncio.gather(
            hub.publish_events([good]),
            hub.publish_events([good, {"channel": "chat"}]),
            hub.publish_events(good),
            return_exceptions=True,
        )

    assert isinstance(stored, list)
    assert all(isinstance(exc, InvalidEvent) and "takes a list" in str(exc) for exc in refused)


async def test_publish_sync_works_from_any_other_thread() -> None:
    async with Hub() as hub, hub.subscribe(channel="chat", user_id="alex") as messages:
        position = await asyncio.to_thread(hub.publish_sync, channel="chat", user_id="alex", data="from a thread")
        message = await anext(messages)

    assert (message.data, message.id) == ("from a thread", position)


async def test_publish_sync_says_what_to_do_where_it_cannot_work() -> None:
    hub = Hub()
    with pytest.raises(HubClosed, match=r"hub\.start"):
        hub.publish_sync(channel="chat", user_id="*", data="x")
    async with hub:
        with pytest.raises(WrongEventLoop, match="await hub"):
            hub.publish_sync(channel="chat", user_id="*", data="x")
        with pytest.raises(InvalidEvent, match="channel must be a string"):
            await hub.publish(channel=5, user_id="*", data="x")  # type: ignore[arg-type]
        with pytest.raises(InvalidEvent, match="JSON"):
            await asyncio.to_thread(hub.publish_sync, channel="chat", user_id="*", data=object())


async def test_publish_sync_gives_up_in_time() -> None:
    async with Hub() as hub:

        def publish() -> None:
            hub.publish_sync(channel="chat", user_id="*", data="x", timeout_seconds=0.05)

        thread_result: list[BaseException] = []

        def run() -> None:
            try:
                publish()
            except BrokerUnavailable as exc:
                thread_result.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()  # this holds up the event loop, so that nobody answers

    assert "may or may not be stored" in str(thread_result[0])


async def test_hub_refuses_another_event_loop_while_it_runs() -> None:
    async with Hub() as hub:
        with pytest.raises(WrongEventLoop, match="publish_sync"):
            await asyncio.to_thread(asyncio.run, hub.publish(channel="chat", user_id="*", data="x"))
        with pytest.raises(WrongEventLoop, match="close it there"):
            await asyncio.to_thread(asyncio.run, hub.aclose())

        await hub.publish(channel="chat", user_id="*", data="it goes on")


def test_hub_is_closed_where_its_event_loop_has_ended() -> None:
    hub = Hub()

    async def use() -> None:
        await hub.subscribe(channel="chat", user_id="alex").__aenter__()

    asyncio.run(use())
    asyncio.run(hub.aclose())

    assert hub.statistics.subscribers == 0
    with pytest.raises(HubClosed, match="reopen it"):
        asyncio.run(hub.start())


def test_hub_goes_on_in_a_new_event_loop_when_the_old_one_has_ended() -> None:
    hub = Hub()

    async def use() -> str:
        await hub.start()
        await hub.publish(channel="chat", user_id="*", data="x")
        async with hub.subscribe(channel="chat", user_id="alex") as messages:
            await hub.publish(channel="chat", user_id="*", data="y")
            return (await anext(messages)).data

    assert asyncio.run(use()) == asyncio.run(use()) == "y"
    with pytest.raises(HubClosed, match=r"await hub\.start\(\)"):
        hub.publish_sync(channel="chat", user_id="*", data="x")


async def test_task_sink_takes_all_that_has_gathered_and_counts_what_is_under_way() -> None:
    sink = TaskSink()
    for text in (b"one", b"two"):
        sink.write(Chunk(text))

    assert await sink.read() == b"onetwo"
    assert sink.backlog == 6
    taking = asyncio.create_task(sink.read())
    await asyncio.sleep(0)
    assert sink.backlog == 0
    sink.abort()
    sink.write(Chunk(b"too late"))
    assert await taking == b""


async def test_task_sink_drops_a_connection_that_takes_nothing_in_time_and_none_that_is_done() -> None:
    dropped: list[str] = []
    sinks = {name: TaskSink(partial(dropped.append, name)) for name in ("closed", "aborted", "done", "gone on")}
    sinks["closed"].close(0.1)
    sinks["aborted"].abort()
    assert dropped == ["aborted"]
    sinks["done"].close(0.1)
    for name in ("done", "gone on"):
        sinks[name].finish()
        sinks[name].abort()
    await until(lambda: dropped == ["aborted", "closed"])
    await asyncio.sleep(0.1)

    assert dropped == ["aborted", "closed"]


class FakeTransport(asyncio.WriteTransport):
    """A connection that takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.data += data

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


async def test_what_waits_for_the_headers_is_bounded_as_any_backlog() -> None:
    transport = FakeTransport()
    sink = TransportSink(transport, is_chunked=True)
    async with Hub(**hub_settings(max_backlog_bytes=100_000, grace_seconds=0.2)) as hub:
        subscriber = hub.attach(Claims("alex", ("chat",)), sink)
        for _ in range(20):
            await hub.publish(channel="chat", user_id="*", data="x" * 50_000)
            await hub.flush()
        backlog = sink.backlog
        await until(lambda: subscriber.reason is not None)

    assert backlog < 200_000
    assert subscriber.reason == "slow" and transport.is_aborted and sink.backlog == 0


async def test_what_waited_for_the_headers_comes_in_order_with_what_was_held() -> None:
    transport = FakeTransport()
    sink = TransportSink(transport, is_chunked=False)
    async with Hub(**hub_settings(max_backlog_bytes=100_000)) as hub:
        subscriber = hub.attach(Claims("alex", ("chat",)), sink)
        for number in range(10):
            await hub.publish(channel="chat", user_id="*", data=f"{number}" * 50_000)
            await hub.flush()
        sink.uncork()
        await hub.publish(channel="chat", user_id="*", data="after")
        await hub.flush()
        state = subscriber.state

    lines = [line[:7] for line in transport.data.decode().split("\n") if line.startswith("data: ")]
    assert lines[:11] == [*(f"data: {number}" for number in range(10)), "data: a"]
    assert state is State.LIVE and not sink.is_paused
