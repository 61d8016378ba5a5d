"""The client app over real sockets: tokens, cursors, methods, HTTP as it is spoken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.routing import Route

from conftest import RunningHub
from streams import RawStream, get, listen

REFUSED = "a valid token is needed\n"


@pytest.mark.parametrize(
    "how",
    [
        lambda token: {"headers": {"Authorization": f"Bearer {token}"}},
        lambda token: {"headers": {"Authorization": f"bEaReR {token}"}},
        lambda token: {"headers": {"Cookie": f"a=b; sse={token}; c=d"}},
        lambda token: {"headers": {"Cookie": f'prefs={{"a":1}}; sse={token}; b@d="x'}},
        lambda token: {"params": {"token": token}},
        lambda token: {"headers": {"Authorization": f"Bearer {token}"}, "params": {"token": "broken"}},
        lambda token: {"headers": {"Authorization": "Basic eDp5"}, "params": {"token": token}},
    ],
    ids=["header", "any-case", "cookie", "beside-an-odd-cookie", "query", "B15-header-wins", "basic-is-no-token"],
)
@pytest.mark.parametrize("path", ["/events/", "/events", "/events/any/thing"])
def test_token_is_taken_from_header_cookie_or_query(
    hub: RunningHub, how: Callable[[str], dict[str, Any]], path: str
) -> None:
    with httpx.Client() as client, connect_sse(client, "GET", hub.url + path, **how(hub.token())) as source:
        assert source.response.status_code == 200
        assert source.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert source.response.headers["cache-control"] == "no-store"
        assert source.response.headers["x-accel-buffering"] == "no"
        hub.emit(data="hi", event="note")
        event = next(event for event in source.iter_sse() if event.data)  # browsers show none without

    assert (event.event, event.data) == ("note", "hi")


@pytest.mark.parametrize(
    "request_of",
    [
        {},
        {"params": {"token": "x"}},
        {"params": {"token": "%ED%A0%80"}},
        {"headers": {"Authorization": "Bearer"}},
        {"headers": {"Authorization": "Bearer x y"}},
        {"headers": {"Authorization": "Bearer x"}, "params": {"token": "GOOD"}},
        {"headers": {"Cookie": "sse=x"}},
        {"params": {f"p{n}": "1" for n in range(200)}},
    ],
)
def test_missing_or_broken_token_is_always_the_same_401(hub: RunningHub, request_of: dict[str, Any]) -> None:
    params = {name: hub.token() if value == "GOOD" else value for name, value in request_of.get("params", {}).items()}
    response = httpx.get(f"{hub.url}/events/", **{**request_of, "params": params})

    assert (response.status_code, response.text) == (401, REFUSED)
    assert response.headers["www-authenticate"] == "Bearer"


def test_raw_bytes_in_header_and_query_are_401(hub: RunningHub) -> None:
    for request in (
        get("/events/", "Authorization: Bearer \xff\xfe"),
        get("/events/?token=%FF%FE"),
        get("/events/?token=" + "x" * 60_000),
    ):
        stream = RawStream(hub.port, request.encode("latin-1"))

        assert stream.read_until(b"\r\n").startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))
        stream.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 200, id="no-origin"),
        pytest.param({"Sec-Fetch-Site": "same-origin"}, 200, id="same-origin"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, id="cross-site"),
        pytest.param({"Origin": "https://app.example"}, 200, id="listed"),
        pytest.param({"Origin": "https://evil.example"}, 403, id="evil"),
        pytest.param({"Origin": "null"}, 403, id="null"),
        pytest.param({"Origin": "http://["}, 403, id="broken"),
    ],
)
def test_cookie_counts_only_for_our_own_pages(hub: RunningHub, headers: dict[str, str], status: int) -> None:
    with httpx.stream("GET", f"{hub.url}/events/", headers={"Cookie": f"sse={hub.token()}", **headers}) as response:
        assert response.status_code == status


def test_head_answers_headers_only(hub: RunningHub) -> None:
    before = hub.metric("ssehub_streams_total")
    response = httpx.head(f"{hub.url}/events/", params={"token": hub.token()})

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert hub.metric("ssehub_streams_total") == before
    assert httpx.head(f"{hub.url}/events/").status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405(hub: RunningHub, method: str) -> None:
    response = httpx.request(method, f"{hub.url}/events/", params={"token": hub.token()})

    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_options_is_answered_and_cors_only_to_listed_origins(hub: RunningHub) -> None:
    ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,last-event-id"}
    plain = httpx.options(f"{hub.url}/events/")
    listed = httpx.options(f"{hub.url}/events/", headers={"Origin": "https://app.example", **ask})
    evil = httpx.options(f"{hub.url}/events/", headers={"Origin": "https://evil.example", **ask})
    refused = httpx.get(f"{hub.url}/events/", headers={"Origin": "https://app.example"})

    assert plain.status_code == 204
    assert listed.status_code == 200
    assert listed.headers["access-control-allow-origin"] == "https://app.example"
    assert "Last-Event-ID" in listed.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in evil.headers
    assert refused.headers["access-control-allow-origin"] == "https://app.example"  # so that the page sees the 401


@pytest.mark.parametrize("path", ["/events", "/events/", "/events//", "/", "/emit/", "/token/", "/metrics", "/healthz"])
def test_no_path_redirects_and_nothing_of_control_is_here(hub: RunningHub, path: str) -> None:
    stream = RawStream(hub.port, get(f"{path}?token=x", "Host: evil.example"))
    head = stream.read_until(b"\r\n\r\n").lower()
    stream.close()

    assert b"location" not in head and b"evil" not in head
    assert head.startswith(b"http/1.1 401" if path.startswith("/events") else b"http/1.1 404")


def test_first_frame_comes_at_once(hub: RunningHub) -> None:
    stream = listen(hub.port, hub.token())
    stream.close()

    assert stream.body.startswith(b": ok\nid: ")


def test_http_1_0_client_gets_a_body_that_ends_with_the_connection(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    request = f"GET /events/?token={hub.token(exp=2)} HTTP/1.0\r\nHost: x\r\n\r\n"
    stream = RawStream(hub.port, request)
    stream.read_until(b"\n\n")
    hub.emit(data="hi")
    stream.read_to_end()

    head = stream.bytes.partition(b"\r\n\r\n")[0].lower()
    assert b"chunked" not in head and head.count(b"connection: close") == 1 and b"keep-alive" not in head
    assert [event.event for event in stream.events] == ["message", "stream-expiring", "stream-expired"]


def test_connection_close_client_gets_an_unframed_body_too(hub: RunningHub) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}", "Connection: close"))
    stream.read_until(b"\n\n")
    hub.emit(data="hi")
    stream.read_until(b"data: hi\n\n")
    stream.close()

    assert b"chunked" not in stream.bytes


def test_a7_second_request_on_a_stream_aborts_the_connection(hub: RunningHub) -> None:
    token = hub.token()
    later = listen(hub.port, token)
    later.socket.sendall(get("/events/").encode())
    at_once = RawStream(hub.port, get(f"/events/?token={token}") * 2)

    for stream in (later, at_once):
        stream.read_to_end()
        stream.close()
    hub.wait_for("ssehub_subscribers", 0)


@pytest.mark.parametrize("how", ["reset", "close", "shutdown"])
def test_a6_client_that_goes_is_noticed(hub: RunningHub, how: str) -> None:
    hub.wait_for("ssehub_subscribers", 0)
    ended = 'ssehub_endings_total{reason="disconnected"}'
    before = hub.metric(ended)
    stream = listen(hub.port, hub.token())

    if how == "reset":
        stream.reset()
    elif how == "close":
        stream.close()
    else:
        stream.socket.shutdown(socket.SHUT_WR)

    hub.wait_for(ended, before + 1)
    stream.close()


def test_a21_two_streams_of_one_token_are_both_served(hub: RunningHub) -> None:
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(2)]
    hub.emit(data="both")

    for stream in streams:
        stream.read_until(b"data: both\n\n")
        stream.close()


@pytest.mark.parametrize(
    ("headers", "query", "reason"),
    [
        (["Last-Event-ID: 1-0.zzzzzzzz"], "", b"log-lost"),
        ([], "&lastEventId=1-0.zzzzzzzz", b"log-lost"),
        ([], "&last_event_id=garbage", b"unknown-id"),
        ([], "&lastEventID=-1", b"unknown-id"),
        (["Last-Event-ID: garbage"], "&lastEventId=1-0.zzzzzzzz", b"unknown-id"),
        (["Last-Event-ID: " + "x" * 20_000], "", b"unknown-id"),
    ],
    ids=["header", "yaffle", "snake", "capitals", "D9-header-wins", "D2-long"],
)
def test_cursor_is_read_from_header_or_query(hub: RunningHub, headers: list[str], query: str, reason: bytes) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}{query}", *headers))
    stream.read_until(b'data: {"reason":"' + reason + b'"}\n\n')
    hub.emit(data="live")
    stream.read_until(b"data: live\n\n")
    stream.close()


def test_present_position_is_resumed_without_a_reset(hub: RunningHub) -> None:
    head = hub.emit(data="x")
    stream = listen(hub.port, hub.token(), f"Last-Event-ID: {head}")
    hub.emit(data="live")
    stream.read_until(b"data: live\n\n")
    stream.close()

    assert [event.event for event in stream.events] == ["message"]


def test_b17_stream_is_told_and_ends_when_its_token_does(hub: RunningHub) -> None:
    token = hub.token(exp=2)
    stream = RawStream(hub.port, get(f"/events/?token={token}"))
    stream.read_until(b"0\r\n\r\n", seconds=6)
    stream.close()

    assert [event.event for event in stream.events] == ["stream-expiring", "stream-expired"]
    assert httpx.get(f"{hub.url}/events/", params={"token": token}).status_code == 401


def test_a13_over_the_limit_a_stream_is_told_to_come_back(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--max-connections", "5")
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(5)]
    refused = httpx.get(f"{hub.url}/events/", params={"token": token})
    hub.emit(data="still")

    assert refused.status_code == 200
    assert refused.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert refused.text.startswith(": busy\nretry: ") and int(refused.text.split("retry: ")[1]) >= 2_000
    for stream in streams:
        stream.read_until(b"data: still\n\n")
        stream.close()


def test_a22_heartbeats_come_in_their_interval(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--heartbeat-seconds", "0.5")
    stream = listen(hub.port, hub.token())
    stream.read_until(b": ping\n\n" * 1)
    position = hub.emit(channel="elsewhere", data="x")
    stream.read_until(f": ping\nid: {position}\n\n".encode())
    stream.close()

    assert stream.events == []


def test_unmodified_event_source_response_sends_the_same_headers_and_body(start_hub: Callable[..., RunningHub]) -> None:
    """sse-starlette's own response, over the same events and with the same ping, is our oracle."""
    hub = start_hub("--heartbeat-seconds", "0.4")
    stream = listen(hub.port, hub.token())
    first = stream.body.decode().split("id: ")[1].strip()
    # In one batch, so that no heartbeat comes between them.
    fields: list[dict[str, Any]] = [
        {"data": "one\ntwo", "event": "note"},
        {"data": "ü", "id": "own", "retry": 5},
        {"data": ""},
    ]
    ids = hub.emit_batch([{"userId": "*", "channel": "chat", **one} for one in fields])
    stream.read_until(b": ping\n\n")
    stream.close()

    def ping() -> ServerSentEvent:
        return ServerSentEvent(comment="ping", sep="\n")

    async def events() -> Any:
        yield ServerSentEvent(comment="ok", id=first, sep="\n")
        yield {"data": "one\ntwo", "event": "note", "id": ids[0]}
        yield {"data": "ü", "id": "own", "retry": 5}
        yield {"data": "", "id": ids[2]}
        await asyncio.sleep(0.3)

    async def endpoint(request: Any) -> EventSourceResponse:
        return EventSourceResponse(events(), sep="\n", ping=0.2, ping_message_factory=ping)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=[Route("/", endpoint)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/")

    reference = asyncio.run(ask())
    head, _, _ = stream.bytes.decode().partition("\r\n\r\n")
    ours = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert {name: ours[name] for name in reference.headers} == dict(reference.headers)
    assert set(ours) - set(reference.headers) == {"date", "transfer-encoding"}
    assert reference.text == stream.body.decode()


@pytest.mark.parametrize("cursor", ["%FF", "%ED%A0%80", "%00", "%0D", "9" * 30_000])
def test_odd_cursor_in_the_query_is_told_and_never_silence(hub: RunningHub, cursor: str) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}&lastEventId={cursor}"))

    stream.read_until(b"stream-reset")

    assert stream.bytes.startswith(b"HTTP/1.1 200")
    stream.close()


def test_query_of_too_many_fields_is_refused(hub: RunningHub) -> None:
    headers = {"Authorization": f"Bearer {hub.token()}"}
    answer = httpx.get(f"{hub.url}/events/?{'a=1&' * 101}", headers=headers)

    assert (answer.status_code, answer.text) == (400, "the query has more than 100 fields\n")
