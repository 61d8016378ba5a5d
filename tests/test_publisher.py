"""The HTTP client of the control port, against a real hub."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from conftest import RunningHub, free_port
from ssehub import AsyncPublisher, Publisher
from ssehub.errors import ControlKeyError, InvalidRequest, SSEHubError, Unavailable, WrongEventLoop
from streams import listen


def test_publisher_emits_and_asks_for_tokens(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        stream = listen(hub.port, publisher.token("alex", ["chat", "news"], expires_in_seconds=60))
        id = publisher.emit(channel="news", user_id="alex", data={"n": 1}, type="note")
        ids = publisher.emit_many(
            [
                {"channel": "chat", "user_id": "*", "data": "two"},
                {"channel": "chat", "user_id": ["alex", "sam"], "payload": "event: raw\ndata: three\n\n"},
            ]
        )
    stream.read_until(b"data: three\n\n")
    stream.close()

    assert [(event.event, event.data, event.id) for event in stream.events] == [
        ("note", '{"n":1}', id),
        ("message", "two", ids[0]),
        ("raw", "three", ids[1]),
    ]


@pytest.mark.anyio
async def test_async_publisher_does_the_same(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher:
        stream = listen(hub.port, await publisher.token("alex", "chat"))
        await publisher.emit(channel="chat", user_id="alex", data="one")
        await publisher.emit_many([{"channel": "chat", "user_id": "*", "data": "two"}])
        with pytest.raises(InvalidRequest, match="userId is missing"):
            await publisher.emit(channel="chat", user_id=[], data="x")
    stream.read_until(b"data: two\n\n")
    stream.close()


def test_refusals_say_why(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--control-key", "the key")
    with Publisher(hub.control_url) as publisher, pytest.raises(ControlKeyError, match="control key is needed"):
        publisher.emit(channel="chat", user_id="*", data="x")
    with Publisher(hub.control_url, control_key="the key") as publisher:
        with pytest.raises(InvalidRequest, match="'stream-'"):
            publisher.emit(channel="chat", user_id="*", data="x", type="stream-mine")
        with pytest.raises(InvalidRequest, match="JSON"):
            publisher.emit(channel="chat", user_id="*", data=object())
        publisher.emit(channel="chat", user_id="*", data="x")


@pytest.mark.anyio
async def test_closed_publisher_says_so(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        publisher.emit(channel="chat", user_id="*", data="x")
    with pytest.raises(Unavailable, match="closed: make a new one; nothing was sent"):
        publisher.emit(channel="chat", user_id="*", data="x")

    async with AsyncPublisher(hub.control_url) as in_loop:
        await in_loop.emit(channel="chat", user_id="*", data="x")
    with pytest.raises(Unavailable, match="closed: make a new one; nothing was sent"):
        await in_loop.token("alex", "chat")


def test_hub_that_is_not_there_is_said_to_have_got_nothing() -> None:
    with (
        Publisher(f"http://127.0.0.1:{free_port()}") as publisher,
        pytest.raises(Unavailable, match="nothing was sent"),
    ):
        publisher.emit(channel="chat", user_id="*", data="x")


def test_answer_that_does_not_come_leaves_open_whether_it_was_stored() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        accepting = threading.Thread(target=lambda: silent.accept()[0].close())
        accepting.start()
        with Publisher(url, timeout_seconds=0.5) as publisher, pytest.raises(Unavailable, match="may or may not"):
            publisher.emit(channel="chat", user_id="*", data="x")
        accepting.join()


@pytest.mark.parametrize(("status", "is_event", "tries"), [(500, True, 1), (503, True, 3), (503, False, 1)])
def test_only_what_is_safe_to_repeat_is_sent_again(status: int, is_event: bool, tries: int) -> None:
    with (
        AnsweringAlways(status) as server,
        Publisher(server.url) as publisher,
        pytest.raises(Unavailable, match=f"answered {status}: try later"),
    ):
        if is_event:
            publisher.emit(channel="chat", user_id="*", data="x")
        else:
            publisher.token("alex", "chat")

    assert server.requests == tries


@pytest.mark.anyio
async def test_async_publisher_reports_a_dead_port_as_well() -> None:
    async with AsyncPublisher(f"http://127.0.0.1:{free_port()}") as publisher:
        with pytest.raises(Unavailable, match="nothing was sent"):
            await publisher.emit(channel="chat", user_id="*", data="x")


def test_what_was_not_answered_is_sent_again_and_published_once(hub: RunningHub) -> None:
    """C10: the hub has it, and the answer is lost."""
    stream = listen(hub.port, hub.token(channel="lossy"))
    with LossyProxy(hub.control_port, lose=2) as proxy, Publisher(proxy.url, timeout_seconds=5) as publisher:
        id = publisher.emit(channel="lossy", user_id="*", data="once")
    hub.emit(channel="lossy", data="last")
    stream.read_until(b"data: last\n\n")
    stream.close()

    assert proxy.lost == 2
    assert [event.data for event in stream.events] == ["once", "last"]
    assert stream.events[0].id == id


@pytest.mark.anyio
async def test_a_key_of_ones_own_outlives_the_publisher(hub: RunningHub) -> None:
    ids = []
    for _ in range(2):
        async with AsyncPublisher(hub.control_url) as publisher:
            ids.append(await publisher.emit(channel="chat", user_id="*", data="x", idempotency_key="order-1"))
            ids += await publisher.emit_many(
                [{"channel": "chat", "user_id": "*", "data": "y", "ttl": 5}], idempotency_key="order-2"
            )

    assert ids[:2] == ids[2:]


class LossyProxy:
    """Passes requests on to a port of loopback; the first answers are lost, with their connection."""

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


class AnsweringAlways:
    """A server that answers every POST with the same status."""

    def __init__(self, status: int) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.requests += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", "9")
                self.end_headers()
                self.wfile.write(b"try later")

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> AnsweringAlways:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a connection whose loop ended is closed by nobody
def test_async_publisher_goes_on_in_a_new_event_loop_when_the_old_one_has_ended(hub: RunningHub) -> None:
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


@pytest.mark.parametrize("url", ["", None, "127.0.0.1:8001", "ftp://x", "http://[::1", "http://"])
def test_what_is_no_url_is_said_at_once(url: Any) -> None:
    with pytest.raises(SSEHubError, match="is no URL such as"):
        Publisher(url)


@pytest.mark.parametrize("key", ["line\nbreak", "é", 5])
def test_keys_that_no_header_can_hold_are_refused_before_anything_is_sent(key: Any) -> None:
    with pytest.raises(SSEHubError, match="control_key can't stand in a header"):
        Publisher(control_key=key)
    with Publisher() as publisher, pytest.raises(SSEHubError, match="idempotency_key can't stand in a header"):
        publisher.emit(channel="chat", user_id="*", data="x", idempotency_key=key)
