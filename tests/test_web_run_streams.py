"""`GET /events/?run=NAME` and `POST /events/stop`, over real sockets: who is answered what, and how responses end."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from conftest import SECRET, report, until
from hubs import hub_settings
from serving import Client, requesting, serving
from ssehub import Claims, Hub, Tokens, create_client_app
from ssehub.runs.model import RunState
from ssehub.runs.store import CreateMode
from ssehub.server import HttpProtocol
from streams import NATIVE, decode
from watched_runs import NAME, producing

pytestmark = pytest.mark.anyio

TOKENS = Tokens(SECRET)
FAR = 9_999_999_999
PROTOCOLS = pytest.mark.parametrize("protocol", [HttpProtocol, H11Protocol], ids=["transport", "task"])
AI_SDK = {"dialect": "ai-sdk"}


def token(user_id: str = "alex", *channels: str, expires_at: float = FAR) -> str:
    return TOKENS.issue(user_id, channels or ("chat",), expires_at=expires_at)


class Site:
    """A hub and its client app, which is served on `port`."""

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.port = port

    @asynccontextmanager
    async def get(
        self, *headers: str, user: str = "alex", method: str = "GET", version: str = "1.1", **query: Any
    ) -> AsyncIterator[Client]:
        """Request the run `answer`, unless `query` says otherwise."""
        path = f"/events/?{urlencode({'run': NAME, 'token': token(user), **query})}"
        async with requesting(self.port, path, *headers, method=method, version=version) as client:
            yield client

    async def answer(self, *headers: str, **options: Any) -> Client:
        """Return a response that has ended."""
        async with self.get("Connection: close", *headers, **options) as client:
            await client.read_to_end()
            return client

    async def stop(self, *headers: str, user: str = "alex", **query: Any) -> Client:
        path = f"/events/stop?{urlencode(query)}"
        authorization = f"Authorization: Bearer {token(user)}"
        every = ["Connection: close", "Content-Length: 0", authorization, *headers]
        async with requesting(self.port, path, *every, method="POST") as client:
            await client.read_to_end()
            return client


@asynccontextmanager
async def site(protocol: Any = HttpProtocol, app: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Site]:
    hub = Hub(**hub_settings(**settings))
    async with hub, serving(create_client_app(hub, tokens=TOKENS, **(app or {})), protocol) as port:
        yield Site(hub, port)


def shown(client: Client) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in decode(client.body.encode())]


# Streams


@PROTOCOLS
async def test_run_is_sent_from_its_first_event_to_its_end(protocol: Any) -> None:
    async with site(protocol) as here:
        producer = await producing(here.hub, "one")
        async with here.get("Connection: close") as client:
            await client.read_until("data: one\n")
            await producer.append("two")
            await client.read_until("data: two\n")
            await producer.finish()
            await client.read_to_end()

        assert client.status == 200
        assert client.body.startswith('event: stream-hello\ndata: {"run":"answer","generation":1}\nid: 0-0.')
        assert shown(client) == [("message", "one"), ("message", "two"), ("stream-finished", '{"reason":"done"}')]
        assert client.is_complete


@PROTOCOLS
async def test_http_1_0_client_gets_the_run_and_the_end_of_the_connection(protocol: Any) -> None:
    async with site(protocol) as here:
        producer = await producing(here.hub, "one")
        async with here.get(version="1.0") as client:
            await client.read_until("data: one\n")
            await producer.finish()
            await client.read_to_end()

        assert "chunked" not in client.text
        assert shown(client) == [("message", "one"), ("stream-finished", '{"reason":"done"}')]


async def test_each_cursor_is_answered_with_the_rest_and_that_of_the_end_with_204() -> None:
    async with site() as here:
        producer = await producing(here.hub, *map(str, range(5)))
        await producer.finish()
        run = await here.hub.runs.get(NAME)
        assert run is not None
        for ordinal in range(6):
            client = await here.answer(f"Last-Event-ID: {run.position(ordinal)}")
            assert shown(client)[:-1] == [("message", str(number)) for number in range(ordinal, 5)]
        for name in ("lastEventId", "last_event_id"):
            client = await here.answer(**{name: run.position(6)})
            assert client.status == 204 and client.body == ""
        client = await here.answer(f"Last-Event-ID: {run.position(6)}", method="HEAD")
        assert client.status == 204


async def test_hub_cursor_is_answered_with_a_reset() -> None:
    async with site() as here:
        await producing(here.hub, "one")
        position = await here.hub.publish(channel="chat", user_id="alex", data="x")
        async with here.get(f"Last-Event-ID: {position}") as client:
            await client.read_until("data: one\n")

        assert shown(client) == [("stream-reset", '{"reason":"log-lost"}'), ("message", "one")]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"channel": "chat"}, "channel can't be given together with run"),
        ({"since": "earliest"}, "since can't be given together with run"),
        ({"run": ""}, "run is empty"),
        ({"run": "a/b"}, "contains '/'"),
        ({"run": "a\x07b"}, "contains a control character"),
        ({"run": "x" * 256}, "run"),
        ({"wait": "0"}, "from 1 to 300"),
        ({"wait": "301"}, "from 1 to 300"),
        ({"wait": "soon"}, "not a whole number of seconds"),
        ({"wait": "-1"}, "not a whole number of seconds"),
        ({"ended": "yes"}, "unknown ended 'yes'"),
        ({"dialect": "htmx"}, "use datastar or ai-sdk"),
        ({"end": "later"}, "unknown end"),
    ],
    ids=lambda value: "&".join(f"{key}={text[:8]}" for key, text in value.items()) if isinstance(value, dict) else "",
)
async def test_bad_parameters_are_400(query: dict[str, str], expected: str) -> None:
    async with site() as here:
        await producing(here.hub)
        client = await here.answer(**query)

        assert client.status == 400
        assert expected in client.body


async def test_ai_sdk_is_a_dialect_of_runs_only() -> None:
    async with site() as here:
        path = f"/events/?token={token()}&dialect=ai-sdk"
        async with requesting(here.port, path, "Connection: close") as client:
            await client.read_to_end()

        assert client.status == 400 and "give run, too" in client.body


# Who may not watch


async def test_unknown_run_and_that_of_others_are_the_same_404() -> None:
    async with site() as here:
        await producing(here.hub, name="theirs", users=("kim",))
        await producing(here.hub, name="elsewhere", channels=("news",))
        answers = [
            await here.answer(run=name, **options)
            for name in ("theirs", "elsewhere", "unknown")
            for options in ({}, {"method": "HEAD"}, {"wait": "1"}, AI_SDK)
        ]

        heads = {tuple(sorted(undated(answer.text.partition("\r\n\r\n")[0].split("\r\n")))) for answer in answers}
        assert len(heads) == 1 and {answer.status for answer in answers} == {404}
        assert {answer.body for answer in answers} == {"there is no run of that name that you may watch\n", ""}
        assert here.hub.statistics.refused_tokens["missing"] == 0
        assert here.hub.statistics.refused["unknown-run"] == len(answers)


def undated(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("date: ")]


async def test_refused_runs_leave_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ssehub.client")
    async with site() as here:
        await here.answer(run="nothing")
        await here.stop(run="nothing", generation=1)

    about = "user 'alex', channels 'chat', from 127.0.0.1"
    for request in ("GET /events/", "POST /events/stop"):
        assert f"request refused, unknown-run: run 'nothing'; {request}, {about}" in caplog.messages
    assert here.hub.statistics.refused["unknown-run"] == 2


async def test_unknown_run_and_that_of_others_take_the_same_time() -> None:
    async with site() as here:
        await producing(here.hub, *["x" * 100] * 1_000, name="theirs", users=("kim",))
        followed = await here.hub.find_run("theirs", Claims("kim", ("chat",)))
        assert followed.events == 1_000
        loop = asyncio.get_running_loop()
        times: dict[str, list[float]] = {"theirs": [], "unknown": []}
        for number in range(12):
            for name in sorted(times, reverse=number % 2 == 0):
                began = loop.time()
                await here.answer(run=name)
                times[name].append(loop.time() - began)

        theirs, unknown = min(times["theirs"]), min(times["unknown"])  # on a busy machine the others say little
        report(f"404 after {theirs * 1000:.2f} ms (theirs) and {unknown * 1000:.2f} ms (unknown)")
        assert min(theirs, unknown) >= 0.049  # uvloop counts in milliseconds
        assert abs(theirs - unknown) < 0.005


async def test_request_without_a_token_is_401_whether_there_is_the_run_or_not() -> None:
    async with site() as here:
        await producing(here.hub)
        for name in (NAME, "unknown"):
            async with requesting(here.port, f"/events/?run={name}", "Connection: close") as client:
                await client.read_to_end()
            assert client.status == 401


async def test_login_of_the_host_works_for_runs() -> None:
    async def by_header(connection: Any) -> Claims | None:
        user = connection.headers.get("x-user")
        return Claims(user, ("chat",)) if user else None

    async with Hub() as hub, serving(create_client_app(hub, authenticate=by_header)) as port:
        producer = await producing(hub, "one")
        await producer.finish()
        for user, status in (("alex", 200), ("kim", 404)):
            async with requesting(port, f"/events/?run={NAME}", f"X-User: {user}", "Connection: close") as client:
                await client.read_to_end()
            assert client.status == status


# Waiting


@PROTOCOLS
async def test_wait_is_answered_as_soon_as_the_run_is_there(protocol: Any) -> None:
    async with site(protocol) as here:
        async with here.get(wait="30") as client:
            await until(lambda: here.hub.statistics.run_waits == 1)
            await producing(here.hub, "one")
            await client.read_until("data: one\n")

        assert client.status == 200


async def test_client_whose_token_expires_while_it_waits_is_401() -> None:
    async with site() as here:
        soon = token(expires_at=math.ceil(time.time()) + 1)
        async with here.get("Connection: close", wait="30", token=soon) as client:
            await until(lambda: here.hub.statistics.run_waits == 1)
            await asyncio.sleep(2.1)
            await producing(here.hub, "one")
            await client.read_to_end()

        assert client.status == 401 and "one" not in client.body
        assert here.hub.statistics.refused_tokens["expired"] == 1


@PROTOCOLS
async def test_client_that_leaves_while_it_waits_makes_room(protocol: Any) -> None:
    async with site(protocol) as here:
        async with here.get(wait="30"):
            await until(lambda: here.hub.statistics.run_waits == 1)
        await until(lambda: here.hub.statistics.run_waits == 0)


async def test_clients_that_wait_are_told_to_come_back_beyond_the_bound_and_in_a_drain() -> None:
    async with (
        site(max_run_waits=2) as here,
        here.get(*NATIVE, wait="30") as first,
        here.get(wait="30", user="kim") as second,
    ):
        await until(lambda: here.hub.statistics.run_waits == 2)
        beyond = await here.answer(*NATIVE, run="another", wait="30")
        assert [type for type, _ in shown(beyond)] == ["stream-busy"]
        assert "\nid: " not in beyond.body  # a position of the hub's log would reset the run
        assert here.hub.statistics.refused["run-waits"] == 1
        await here.hub.drain(0.2)
        for client in (first, second):
            await client.read_to_end()
            assert [type for type, _ in shown(client)] == ["stream-busy"]


# The dialect of the AI SDK


@PROTOCOLS
async def test_ai_sdk_stream_has_data_lines_its_header_and_ends_the_connection(protocol: Any) -> None:
    async with site(protocol) as here:
        producer = await producing(here.hub, '{"type":"start"}')
        async with here.get(**AI_SDK) as client:
            await client.read_until('{"type":"start"}')
            await producer.append('{"type":"text-delta","delta":"hi"}', type="note", id="mine", retry=7)
            await client.read_until("hi")
            await producer.finish()
            loop = asyncio.get_running_loop()
            began = loop.time()
            await client.read_to_end()

        assert loop.time() - began < 3  # uvicorn keeps a connection open for 5 s
        assert client.is_complete
        assert "\r\nx-vercel-ai-ui-message-stream: v1\r\n" in client.text
        assert client.body == ('data: {"type":"start"}\n\ndata: {"type":"text-delta","delta":"hi"}\n\ndata: [DONE]\n\n')


@pytest.mark.parametrize(
    ("state", "error", "events", "expected"),
    [
        (RunState.DONE, None, ("x", "[DONE]"), "data: x\n\ndata: [DONE]\n\n"),
        (
            RunState.FAILED,
            "out of money",
            ("x",),
            'data: {"type":"error","errorText":"out of money"}\n\ndata: [DONE]\n\n',
        ),
        (RunState.FAILED, "idle", ("x", "[DONE]"), 'data: {"type":"error","errorText":"idle"}\n\ndata: [DONE]\n\n'),
        (RunState.STOPPED, None, ("x",), 'data: {"type":"abort"}\n\ndata: [DONE]\n\n'),
    ],
    ids=["done-by-producer", "failed", "failed-after-done", "stopped"],
)
@PROTOCOLS
async def test_end_of_an_ai_sdk_stream(
    protocol: Any, state: RunState, error: str | None, events: tuple[str, ...], expected: str
) -> None:
    async with site(protocol) as here:
        producer = await producing(here.hub, events[0])
        async with here.get(**AI_SDK) as client:
            await client.read_until("data: x\n")
            for event in events[1:]:
                await producer.append(event)
                await here.hub.flush()
            await producer.finish(state, error)
            await client.read_to_end()

        assert client.body.endswith(expected) and client.body.count("[DONE]") == 1
        assert client.is_complete


@PROTOCOLS
async def test_run_that_has_ended_is_204_for_ai_sdk_or_replayed(protocol: Any) -> None:
    async with site(protocol) as here:
        producer = await producing(here.hub, "one", "two")
        await producer.finish()

        assert (await here.answer(**AI_SDK)).status == 204
        replayed = await here.answer(**AI_SDK, ended="replay")
        assert replayed.body == "data: one\n\ndata: two\n\ndata: [DONE]\n\n"
        assert replayed.is_complete


@PROTOCOLS
@pytest.mark.parametrize("how", ["drain", "restart", "revoke", "slow-end"])
async def test_other_ends_cut_an_ai_sdk_stream(protocol: Any, how: str) -> None:
    async with site(protocol) as here:
        producer = await producing(here.hub, "one")
        async with here.get(**AI_SDK, end="clean") as client:
            await client.read_until("data: one\n")
            if how == "drain":
                await here.hub.drain(0.1)
            elif how == "restart":
                await producer.create(CreateMode.RESTART)
            elif how == "revoke":
                await here.hub.disconnect(user_id="alex")
            else:
                await here.hub.revoke(user_id="alex")
            await client.read_to_end()

        assert client.body == "data: one\n\n"
        assert not client.is_complete


async def test_busy_hub_answers_503_to_ai_sdk() -> None:
    async with site(max_connections=1) as here:
        await producing(here.hub, "one")
        async with here.get() as first:
            await first.read_until("data: one\n")
            busy = await here.answer(**AI_SDK)
            other = await here.answer(*NATIVE)

        assert busy.status == 503 and "event:" not in busy.body
        head = busy.text.lower()
        assert 1 <= int(head.partition("retry-after: ")[2].split("\r\n")[0]) <= 10
        assert [type for type, _ in shown(other)] == ["stream-busy"]


async def test_head_has_the_headers_of_the_dialect() -> None:
    async with site() as here:
        await producing(here.hub)
        client = await here.answer(method="HEAD", **AI_SDK)

        assert client.status == 200 and "x-vercel-ai-ui-message-stream: v1" in client.text
        assert here.hub.statistics.connected == 0


# Stopping


async def test_client_stops_a_run_that_may_be_stopped() -> None:
    async with site() as here:
        producer = await producing(here.hub, "one", stoppable=True)
        asked = await here.stop(run=NAME, generation=1)
        assert asked.status == 202
        assert json.loads(asked.body) == {"run": NAME, "generation": 1, "state": "stopping"}
        again = await here.stop(run=NAME, generation=1)
        assert again.status == 202
        await here.hub.runs.release(NAME, producer.ticket)
        ended = await here.stop(run=NAME, generation=1)

        assert ended.status == 200
        assert json.loads(ended.body)["state"] == "stopped"
        assert "cache-control: no-store" in ended.text.lower()


async def test_late_stop_does_not_stop_the_next_run() -> None:
    async with site() as here:
        producer = await producing(here.hub, stoppable=True)
        await producer.create(CreateMode.RESTART, stoppable=True)
        late = await here.stop(run=NAME, generation=1)

        assert late.status == 409
        refused = json.loads(late.body)
        assert (refused["reason"], refused["generation"], refused["state"]) == ("stale", 2, "open")
        run = await here.hub.runs.get(NAME)
        assert run is not None and run.state is RunState.OPEN


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ({"run": NAME}, 400, "generation is missing"),
        ({"run": NAME, "generation": ""}, 400, "generation is missing"),
        ({"run": NAME, "generation": "one"}, 400, "is not a number"),
        ({"run": NAME, "generation": "-1"}, 400, "is not a number"),
        ({"run": NAME, "generation": "9" * 30}, 400, "is not a number"),
        ({"generation": "1"}, 400, "run is missing"),
        ({"run": "a/b", "generation": "1"}, 400, "contains '/'"),
        ({"run": NAME, "generation": "1"}, 403, "can't be stopped by its watchers"),
        ({"run": "theirs", "generation": "1"}, 404, "there is no run"),
        ({"run": "unknown", "generation": "1"}, 404, "there is no run"),
    ],
)
async def test_stop_is_refused(query: dict[str, str], status: int, text: str) -> None:
    async with site() as here:
        await producing(here.hub)
        await producing(here.hub, name="theirs", users=("kim",), stoppable=True)
        refused = await here.stop(**query)

        assert refused.status == status
        assert text in refused.body
        theirs = await here.hub.runs.get("theirs")
        assert theirs is not None and theirs.state is RunState.OPEN


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Origin: https://evil.example",), 403),
        (("Sec-Fetch-Site: cross-site",), 403),
        (("Origin: https://app.example", "Sec-Fetch-Site: cross-site"), 202),
        (("Origin: http://127.0.0.1",), 202),
        (("Sec-Fetch-Site: same-origin",), 202),
        ((), 202),
    ],
    ids=["foreign", "cross-site", "listed", "own", "same-origin", "no-page"],
)
async def test_pages_of_other_origins_stop_nothing(headers: tuple[str, ...], status: int) -> None:
    async with site(app={"cors_origins": ("https://app.example",), "token_cookie": "sse"}) as here:
        await producing(here.hub, stoppable=True)
        answer = await here.stop(*headers, run=NAME, generation=1)

        assert answer.status == status
        if "Origin: https://app.example" in headers:
            assert "access-control-allow-origin: https://app.example" in answer.text


async def test_page_of_any_origin_stops_a_run_with_its_token_but_not_with_a_cookie() -> None:
    async with site(app={"cors_origins": ("*",), "token_cookie": "sse"}) as here:
        await producing(here.hub, stoppable=True)
        path = f"/events/stop?run={NAME}&generation=1"
        foreign = ("Origin: https://app.example", "Sec-Fetch-Site: cross-site")
        every = (*foreign, "Connection: close", "Content-Length: 0", f"Cookie: sse={token()}")
        async with requesting(here.port, path, *every, method="POST") as by_cookie:
            await by_cookie.read_to_end()
        assert by_cookie.status == 403
        by_token = await here.stop(*foreign, run=NAME, generation=1)

        assert by_token.status == 202


async def test_preflight_of_an_allowed_page_allows_post() -> None:
    async with site(app={"cors_origins": ("https://app.example",)}) as here:
        headers = (
            "Origin: https://app.example",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization",
            "Connection: close",
        )
        async with requesting(here.port, "/events/stop", *headers, method="OPTIONS") as client:
            await client.read_to_end()

        assert client.status == 200
        assert "POST" in client.text.lower().partition("access-control-allow-methods: ")[2].split("\r\n")[0].upper()


async def test_stop_needs_a_token_and_accepts_the_cookie() -> None:
    async with site(app={"token_cookie": "sse"}) as here:
        await producing(here.hub, stoppable=True)
        path = f"/events/stop/?run={NAME}&generation=1"
        for headers, status in (((), 401), ((f"Cookie: sse={token()}",), 202)):
            every = ("Connection: close", "Content-Length: 0", *headers)
            async with requesting(here.port, path, *every, method="POST") as client:
                await client.read_to_end()
            assert client.status == status


async def test_other_methods_on_the_path_of_stop() -> None:
    async with site() as here:
        async with requesting(here.port, "/events/stop", "Connection: close", method="DELETE") as client:
            await client.read_to_end()

        assert client.status == 405
