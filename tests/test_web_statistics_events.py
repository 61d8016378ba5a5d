"""`GET /statistics/events`: readers that read, leave, or read nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse, connect_sse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from boards import answerer
from conftest import CONTROL_KEY, StartHub, connects, wait_until
from control_requests import control_app
from servers import SERVERS, ServedHub
from serving import requesting, serving
from ssehub.fanout.tracing import MAX_TRACES
from ssehub.server import HttpProtocol
from ssehub.web import following
from ssehub.web import statistics_events as statistics_events_module
from ssehub.web.board import Board, LocalBoard
from ssehub.web.statistics_events import MAX_READERS

pytestmark = pytest.mark.anyio
PATH = "/statistics/events"


class CountingBoard:
    """A board that counts how often it is asked."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.asked = 0

    async def ask(self, question: str, arguments: Any) -> Any:
        self.asked += 1
        return await self._board.ask(question, arguments)

    def follow(self, question: str, arguments: Any) -> Any:
        return self._board.follow(question, arguments)


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(statistics_events_module, "INTERVAL_SECONDS", 0.01)
    yield


async def test_reader_gets_what_get_statistics_answers_once_a_second() -> None:
    async with control_app() as app, serving(app.app) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}{PATH}"
        began = asyncio.get_running_loop().time()
        async with aconnect_sse(http, "GET", url) as source:
            events = aiter(source.aiter_sse())
            found = [await anext(events) for _ in range(3)]
        took = asyncio.get_running_loop().time() - began
        answer = (await app.http.get("/statistics")).json()

    assert {event.event for event in found} == {"statistics"} and {event.id for event in found} == {""}
    assert found[0].json().keys() == answer.keys()
    assert found[0].json()["total"]["subscribers"] == 2
    assert 1.9 < took < 10


async def test_statistics_are_gathered_once_for_all_readers_and_not_without_them(short_interval: None) -> None:
    async with control_app() as app:
        board = CountingBoard(LocalBoard(answerer(app.hub)))
        endpoint = statistics_events_module.FollowStatistics(app.hub, board)
        readers = [aiter(endpoint.events()) for _ in range(20)]
        first = await asyncio.gather(*[anext(reader) for reader in readers])
        second = await asyncio.gather(*[anext(reader) for reader in readers])
        asked = board.asked
        await asyncio.sleep(0.1)

        assert len(set(first)) == len(set(second)) == 1 and first[0] is not second[0]
        assert asked == board.asked == 2


async def test_reader_that_comes_later_gets_nothing_old(short_interval: None) -> None:
    async with control_app() as app:
        endpoint = statistics_events_module.FollowStatistics(app.hub, LocalBoard(answerer(app.hub)))
        await anext(aiter(endpoint.events()))
        await app.hub.publish(channel="chat", user_id="*", data="x")

        newest = await anext(aiter(endpoint.events()))

    assert json.loads(newest.decode().partition("data: ")[2])["total"]["published"] == 1


async def test_others_go_on_when_the_reader_that_gathers_for_all_leaves(short_interval: None) -> None:
    async with control_app() as app:
        endpoint = statistics_events_module.FollowStatistics(app.hub, LocalBoard(answerer(app.hub)))
        first, second = (asyncio.ensure_future(anext(aiter(endpoint.events()))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()

        assert (await asyncio.wait_for(second, 5)).startswith(b"event: statistics\n")


async def status_of(port: int) -> int:
    async with requesting(port, PATH) as reader:
        await reader.read_until("\r\n\r\n")
        return reader.status


async def test_h1_only_so_many_may_read(monkeypatch: pytest.MonkeyPatch, short_interval: None) -> None:
    monkeypatch.setattr(statistics_events_module, "MAX_READERS", 2)
    async with control_app() as app, serving(app.app) as port:
        async with requesting(port, PATH) as first, requesting(port, PATH) as second:
            for reader in (first, second):
                await reader.read_until("event: statistics")
            async with requesting(port, PATH) as third:
                refused = await third.read_until("instead")
        statuses = [await status_of(port)]
        while statuses[-1] == 503 and len(statuses) < 500:  # until it is noticed that the others have left
            statuses.append(await status_of(port))

    assert statuses[-1] == 200
    assert refused.startswith("HTTP/1.1 503 ") and "retry-after: 1" in refused.lower()
    assert "2 readers follow the statistics already: poll GET /statistics instead" in refused


@pytest.mark.parametrize(("path", "most"), [(PATH, MAX_READERS), ("/trace/", MAX_TRACES)])
async def test_h1_readers_beyond_the_most_that_come_at_once_are_refused(path: str, most: int) -> None:
    async def status() -> int:
        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if "status" in message:
                started.append(message["status"])

        started: list[int] = []
        await app.app(http_scope(path), receive, send)
        return started[0]

    gone = asyncio.Event()
    async with control_app() as app:
        requests = [asyncio.create_task(status()) for _ in range(most + 5)]
        await asyncio.wait(requests, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        gone.set()
        statuses = await asyncio.gather(*requests)
        requests = [asyncio.create_task(status()) for _ in range(most)]
        again = await asyncio.gather(*requests)

    assert sorted(statuses) == [200] * most + [503] * 5
    assert again == [200] * most


def http_scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "server": ("127.0.0.1", 8001),
        "client": ("127.0.0.1", 1),
    }


async def test_query_and_other_methods_are_refused_and_head_has_no_body() -> None:
    async with control_app() as app:
        query = await app.http.get(f"{PATH}?interval=5")
        post = await app.http.post(PATH)
        head = await app.http.head(f"{PATH}/")

    assert (query.status_code, query.text) == (400, "the query is not used: leave it out\n")
    assert post.status_code == 405
    assert head.status_code == 200 and head.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("protocol", [HttpProtocol, HttpToolsProtocol], ids=["ours", "uvicorn's"])
async def test_h1_reader_that_reads_nothing_is_cut_off_and_others_are_not_held_up(
    protocol: Any, short_interval: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "READ_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    async with control_app() as app, serving(app.app, protocol) as port:
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            silent.setblocking(False)
            await asyncio.get_running_loop().sock_connect(silent, ("127.0.0.1", port))
            silent.send(f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            async with requesting(port, PATH) as reader:
                async with asyncio.timeout(60):
                    while "cut off: nothing read for 0.5 s" not in caplog.text:
                        await reader.reader.read(2**20)
                assert await reader.reader.read(100)

    assert caplog.text.count("cut off: nothing read") == 1
    assert "Traceback" not in caplog.text


def test_h1_readers_end_at_a_drain_and_new_ones_are_refused(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "5")
    with httpx.Client(timeout=20) as http, connect_sse(http, "GET", f"{hub.control_url}{PATH}") as source:
        events = source.iter_sse()
        next(events)
        hub.signal(signal.SIGTERM)
        rest = list(events)  # raises if the response is not complete

    assert len(rest) < 5
    assert hub.wait(20) == 0
    assert "Traceback" not in hub.log


@pytest.mark.parametrize("app", ["client_app", "app"])
@pytest.mark.parametrize("server", ["uvicorn", "uvicorn-fast"])
def test_h1_response_is_complete_when_another_server_exits(server: str, app: str) -> None:
    hub = ServedHub(SERVERS[server], f"ssehub.asgi:{app}", SSEHUB_CONTROL_KEY=CONTROL_KEY)
    url = hub.control_url if app == "client_app" else f"{hub.url}/control"
    try:
        wait_until(lambda: connects(int(url.split(":")[2].partition("/")[0])), 20)
        headers = {"Authorization": f"Bearer {CONTROL_KEY}"}
        with httpx.Client(timeout=20) as http, connect_sse(http, "GET", f"{url}{PATH}", headers=headers) as source:
            events = source.iter_sse()
            next(events)
            hub.signal(signal.SIGTERM)
            list(events)  # raises if the response is not complete
        hub.wait(20)
        log = hub.log
    finally:
        hub.stop()

    assert "ERROR" not in log and "Traceback" not in log
