"""The publishers, against a real hub, and against servers that fail."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import CONTROL_KEY, RunningHub, free_port
from ssehub import AsyncPublisher, Publisher
from ssehub.errors import (
    ConfigError,
    ControlKeyError,
    InvalidRequest,
    Overloaded,
    SSEHubError,
    Unavailable,
    WrongEventLoop,
)
from streams import listen


class LossyProxy:
    """Forwards requests to a port on loopback, and drops the first `lose` responses with their connections."""

    def __init__(self, port: int, lose: int) -> None:
        self._port = port
        self._lose = lose
        self.lost = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._port)) as server:
                request = client.recv(65_536)
                while not request.endswith(b"}"):
                    request += client.recv(65_536)
                server.sendall(request)
                answer = server.recv(65_536)
                while not answer.endswith(b"}"):
                    answer += server.recv(65_536)
                if self.lost < self._lose:
                    self.lost += 1
                else:
                    client.sendall(answer)
                    client.recv(1)

    def __enter__(self) -> LossyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


class FailingServer:
    """Responds to the first `count` POST requests with the same status, then as a hub does, and counts the requests."""

    def __init__(self, status: int, *, retry_after: str | None = None, count: int = 1_000) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.requests += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                has_recovered = outer.requests > count
                body = b'{"id": "1-0.x", "token": "x"}' if has_recovered else b"try later"
                self.send_response(200 if has_recovered else status)
                if retry_after is not None and not has_recovered:
                    self.send_header("Retry-After", retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FailingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def dead_url() -> Iterator[str]:
    """A port that is bound, so that nobody else uses it, and refuses connections because nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_publisher_emits_events_and_gets_tokens(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        stream = listen(hub.port, publisher.token("alex", ["chat", "news"], expires_in_seconds=60))
        id = publisher.emit(channel="news", user_id="alex", data={"n": 1}, type="note")
        ids = publisher.emit_many(
            [
                {"channel": "chat", "user_id": "*", "data": "two"},
                {"channel": "chat", "user_id": ["alex", "sam"], "payload": "event: raw\ndata: three\n\n"},
            ]
        )
    stream.read_event("three")
    stream.close()

    assert [(event.event, event.data, event.id) for event in stream.events] == [
        ("note", '{"n":1}', id),
        ("message", "two", ids[0]),
        ("raw", "three", ids[1]),
    ]


@pytest.mark.anyio
async def test_async_publisher_emits_events_and_gets_tokens(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher:
        stream = listen(hub.port, await publisher.token("alex", "chat"))
        await publisher.emit(channel="chat", user_id="alex", data="one")
        await publisher.emit_many([{"channel": "chat", "user_id": "*", "data": "two"}])
        with pytest.raises(InvalidRequest, match="userId is an empty list"):
            await publisher.emit(channel="chat", user_id=[], data="x")
    stream.read_event("two")
    stream.close()


@pytest.mark.anyio
async def test_next_of_several_urls_is_used_if_one_fails(hub: RunningHub, dead_url: str) -> None:
    urls = [dead_url, hub.control_url]
    with Publisher(urls) as publisher:
        assert publisher.emit(channel="chat", user_id="alex", data="one")
    async with AsyncPublisher(urls) as asynchronous:
        assert await asynchronous.emit(channel="chat", user_id="alex", data="one")
        assert await asynchronous.token("alex", "chat")
    with (
        Publisher([dead_url, dead_url], retries=2) as publisher,
        pytest.raises(Unavailable, match=f"{dead_url}, {dead_url} can't"),
    ):
        publisher.emit(channel="chat", user_id="alex", data="one")
    with pytest.raises(ConfigError, match="no URL is given"):
        Publisher([])


def test_refused_calls_raise_with_the_reason(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--control-key", CONTROL_KEY)
    with (
        Publisher(hub.control_url) as publisher,
        pytest.raises(ControlKeyError, match="control key is missing or wrong"),
    ):
        publisher.emit(channel="chat", user_id="*", data="x")
    with Publisher(hub.control_url, control_key=CONTROL_KEY) as publisher:
        with pytest.raises(InvalidRequest, match="'stream-'"):
            publisher.emit(channel="chat", user_id="*", data="x", type="stream-mine")
        with pytest.raises(InvalidRequest, match="JSON"):
            publisher.emit(channel="chat", user_id="*", data=object())
        publisher.emit(channel="chat", user_id="*", data="x")


@pytest.mark.anyio
async def test_closed_publisher_sends_nothing(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        publisher.emit(channel="chat", user_id="*", data="x")
    with pytest.raises(Unavailable, match="is closed: make a new one; nothing was sent"):
        publisher.emit(channel="chat", user_id="*", data="x")

    async with AsyncPublisher(hub.control_url) as in_loop:
        await in_loop.emit(channel="chat", user_id="*", data="x")
    with pytest.raises(Unavailable, match="is closed: make a new one; nothing was sent"):
        await in_loop.token("alex", "chat")


def test_error_says_that_nothing_was_sent_if_the_hub_is_not_there(dead_url: str) -> None:
    with (
        Publisher(dead_url, retries=1) as publisher,
        pytest.raises(Unavailable, match="nothing was sent"),
    ):
        publisher.emit(channel="chat", user_id="*", data="x")


def test_error_leaves_open_if_the_event_was_stored_when_there_is_no_response() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        accepting = threading.Thread(target=lambda: silent.accept()[0].close())
        accepting.start()
        with (
            Publisher(url, timeout_seconds=0.5, retries=1) as publisher,
            pytest.raises(Unavailable, match="may or may not"),
        ):
            publisher.emit(channel="chat", user_id="*", data="x")
        accepting.join()


@pytest.mark.parametrize(
    ("status", "is_event", "tries"), [(500, True, 1), (503, True, 3), (429, True, 3), (503, False, 3)]
)
def test_call_is_sent_again_if_the_hub_can_not_serve_it_at_present(status: int, is_event: bool, tries: int) -> None:
    with (
        FailingServer(status) as server,
        Publisher(server.url, retries=2) as publisher,
        pytest.raises(Unavailable, match=f"responded with {status}: try later"),
    ):
        if is_event:
            publisher.emit(channel="chat", user_id="*", data="x")
        else:
            publisher.token("alex", "chat")

    assert server.requests == tries


@pytest.mark.anyio
async def test_call_that_waits_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with FailingServer(503, count=3) as server:
        async with AsyncPublisher(f"{server.url}/") as publisher:
            await publisher.emit(channel="chat", user_id="*", data="x")

    assert server.requests == 4
    lines = [record.getMessage() for record in caplog.records if record.name == "ssehub.publisher"]
    assert lines == [f"{server.url} can't be used at present (it responded with 503): trying again"]


def test_publisher_over_its_rate_waits_as_long_as_the_hub_asks() -> None:
    began = time.monotonic()
    with FailingServer(429, retry_after="1", count=1) as server, Publisher(server.url) as publisher:
        publisher.emit(channel="chat", user_id="*", data="x")
    waited = time.monotonic() - began

    assert server.requests == 2
    assert waited >= 1


def test_publisher_that_stays_over_its_rate_is_overloaded() -> None:
    with (
        FailingServer(429, retry_after="61") as server,
        Publisher(server.url) as publisher,
        pytest.raises(Overloaded, match="responded with 429: try later"),
    ):
        publisher.emit(channel="chat", user_id="*", data="x")

    assert server.requests == 1


def test_refused_date_in_retry_after_is_waited_for() -> None:
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    with FailingServer(503, retry_after=soon, count=1) as server, Publisher(server.url) as publisher:
        began = time.monotonic()
        publisher.token("alex", "chat")

    assert time.monotonic() - began > 0.9


@pytest.mark.anyio
async def test_error_of_async_publisher_says_that_nothing_was_sent(dead_url: str) -> None:
    async with AsyncPublisher(dead_url, retries=1) as publisher:
        with pytest.raises(Unavailable, match="nothing was sent"):
            await publisher.emit(channel="chat", user_id="*", data="x")


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.only_soak])])
def test_call_survives_the_restart_of_a_hub(start_hub: Callable[..., RunningHub], seconds: float) -> None:
    """Its supervisor restarts the hub, which takes some seconds."""
    before = start_hub()
    address = f"127.0.0.1:{before.control_port}"
    ids: list[str] = []
    with Publisher(before.control_url) as publisher:
        publisher.emit(channel="chat", user_id="*", data="before")
        before.stop()
        calling = threading.Thread(
            target=lambda: ids.append(publisher.emit(channel="chat", user_id="*", data="meanwhile"))
        )
        calling.start()
        time.sleep(seconds)
        start_hub("--control-bind", address)
        calling.join()

    assert len(ids) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves it open
@pytest.mark.anyio
async def test_publishers_use_a_unix_socket(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    start_hub("--control-bind", f"unix:{path}", "--control-key", CONTROL_KEY)
    urls = [f"unix:{tmp_path}/none.sock", f"unix:{path}"]

    with Publisher(urls, control_key=CONTROL_KEY) as publisher:
        assert publisher.emit(channel="chat", user_id="*", data="x")
        with publisher.run("answer", channel="chat", user_id="*") as run:
            run.append(data="x")
    async with AsyncPublisher(urls, control_key=CONTROL_KEY) as in_loop:
        assert await in_loop.emit(channel="chat", user_id="*", data="x")
        async with in_loop.run("other", channel="chat", user_id="*") as other:
            await other.append(data="x")
    with Publisher(urls[0], retries=0) as nowhere, pytest.raises(Unavailable, match=r"none\.sock can't be reached"):
        nowhere.token("alex", "chat")
    gc.collect()


def test_c10_event_without_a_response_is_sent_again_and_published_once(hub: RunningHub) -> None:
    """C10: the hub stores the event, but its response is lost."""
    stream = listen(hub.port, hub.token(channel="lossy"))
    with LossyProxy(hub.control_port, lose=2) as proxy, Publisher(proxy.url, timeout_seconds=5) as publisher:
        id = publisher.emit(channel="lossy", user_id="*", data="once")
    hub.emit(channel="lossy", data="last")
    stream.read_event("last")
    stream.close()

    assert proxy.lost == 2
    assert [event.data for event in stream.events] == ["once", "last"]
    assert stream.events[0].id == id


@pytest.mark.anyio
async def test_own_idempotency_key_works_across_publishers(hub: RunningHub) -> None:
    ids = []
    for _ in range(2):
        async with AsyncPublisher(hub.control_url) as publisher:
            ids.append(await publisher.emit(channel="chat", user_id="*", data="x", idempotency_key="order-1"))
            ids += await publisher.emit_many(
                [{"channel": "chat", "user_id": "*", "data": "y", "ttl": 5}], idempotency_key="order-2"
            )

    assert ids[:2] == ids[2:]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # nothing closes the connections of a loop that has ended
def test_async_publisher_continues_in_a_new_event_loop_once_the_old_one_is_closed(hub: RunningHub) -> None:
    publisher = AsyncPublisher(hub.control_url)

    async def emit() -> str:
        return await publisher.emit(channel="chat", user_id="*", data="x")

    async def emit_here_and_elsewhere() -> str:
        position = await emit()
        with pytest.raises(WrongEventLoop, match="make one for each"):
            await asyncio.to_thread(asyncio.run, emit())
        await publisher.aclose()
        return position

    assert asyncio.run(emit()) < asyncio.run(emit_here_and_elsewhere())
    gc.collect()


@pytest.mark.parametrize(
    "url", ["", None, "127.0.0.1:8001", "ftp://x", "http://[::1", "http://", "http://h:99999", "unix:"]
)
def test_invalid_url_is_refused_at_once(url: Any) -> None:
    with pytest.raises(SSEHubError, match="is not a URL such as"):
        Publisher(url)


@pytest.mark.anyio
async def test_password_in_the_url_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    """httpx logs the URL of every request, and its exceptions refer to it."""
    caplog.set_level(logging.DEBUG)
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    shown = []
    async with server:
        for address in (f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"):
            publisher = AsyncPublisher(f"http://alex:mackerel@{address}/hub")
            with pytest.raises(SSEHubError) as caught:
                await publisher.token("alex", "chat")
            cause = caught.value.__cause__
            shown += [str(caught.value), *map(repr, (caught.value, cause, getattr(cause, "request", None), publisher))]
            await publisher.aclose()

    assert b"POST /hub/token/" in requests[0]
    assert f"authorization: basic {base64.b64encode(b'alex:mackerel').decode()}".lower() in requests[0].decode().lower()
    assert all("127.0.0.1" in text for text in shown[::5])
    assert "mackerel" not in "".join(shown) + caplog.text
    assert "HTTP Request: POST http://127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http//alex:mackerel@h",
        "ftp://alex:mackerel@h",
        "http://alex:mackerel@[::1",
        "http://alex:mack/erel@h:x",
        "http://h?key=mackerel",
    ],
)
def test_invalid_url_of_a_publisher_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a URL such as") as caught:
        Publisher(url)

    assert "mack" not in str(caught.value) and "erel" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_password_in_the_url_and_control_key_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r"http://h: a user name in the URL and control_key can't both be sent"):
        Publisher("http://alex:mackerel@h", control_key="x")


@pytest.mark.parametrize("key", ["line\nbreak", "é", 5])
def test_keys_that_a_header_can_not_carry_are_refused_before_anything_is_sent(key: Any) -> None:
    with pytest.raises(SSEHubError, match="control_key can't be sent in a header"):
        Publisher(control_key=key)
    with Publisher() as publisher, pytest.raises(SSEHubError, match="idempotency_key can't be sent in a header"):
        publisher.emit(channel="chat", user_id="*", data="x", idempotency_key=key)
