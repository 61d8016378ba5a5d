"""The response of a stream, over real sockets: its head and framing, how it ends, and what else it sends."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from jose import jwt
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.routing import Route

from conftest import SECRET, RunningHub
from ssehub import Tokens
from streams import RawStream, get, listen


def test_a18_head_answers_headers_only(hub: RunningHub) -> None:
    before = hub.metric("ssehub_streams_total")
    response = httpx.head(f"{hub.url}/events/", params={"token": hub.token()})

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert hub.metric("ssehub_streams_total") == before
    assert httpx.head(f"{hub.url}/events/").status_code == 401


def test_first_frame_is_sent_at_once(hub: RunningHub) -> None:
    stream = listen(hub.port, hub.token())
    stream.close()

    assert re.fullmatch(rb"event: stream-hello\ndata: {}\nid: \d+-\d+\.[0-9a-z]+\n\n", stream.body)


def test_a20_http_1_0_client_gets_a_body_that_ends_with_the_connection(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    request = f"GET /events/?token={hub.token(exp=2)} HTTP/1.0\r\nHost: x\r\n\r\n"
    stream = RawStream(hub.port, request)
    stream.read_until(b"\n\n")
    hub.emit(data="hi")
    stream.read_to_end()

    head = stream.bytes.partition(b"\r\n\r\n")[0].lower()
    assert b"chunked" not in head and head.count(b"connection: close") == 1 and b"keep-alive" not in head
    assert [event.event for event in stream.events] == ["message", "stream-expiring", "stream-expired"]


def test_connection_close_client_gets_chunks_too(hub: RunningHub) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}", "Connection: close"))
    stream.read_until(b"\n\n")
    hub.emit(data="hi")
    stream.read_event("hi")
    stream.close()

    head = stream.bytes.partition(b"\r\n\r\n")[0].lower()
    assert head.count(b"transfer-encoding: chunked") == 1 and head.count(b"connection: close") == 1
    assert [event.data for event in stream.events] == ["hi"]


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
def test_a6_client_that_leaves_is_noticed(hub: RunningHub, how: str) -> None:
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
        stream.read_event("both")
        stream.close()


def test_b17_stream_is_warned_and_ends_with_its_token(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--leeway-seconds", "0")
    token = hub.token(exp=2)
    stream = RawStream(hub.port, get(f"/events/?token={token}"))
    stream.read_until(b"0\r\n\r\n", seconds=6)
    stream.close()

    assert [event.event for event in stream.events] == ["stream-expiring", "stream-expired"]
    assert httpx.get(f"{hub.url}/events/", params={"token": token}).status_code == 401


def test_b18_stream_that_begins_after_its_token_has_expired_ends_with_the_leeway(
    start_hub: Callable[..., RunningHub],
) -> None:
    hub = start_hub("--leeway-seconds", "3")
    exp = int(time.time()) - 1
    token = Tokens(SECRET).issue("alex", ["chat"], expires_at=exp)
    streams = 0

    while httpx.head(f"{hub.url}/events/", params={"token": token}).status_code == 200:
        stream = RawStream(hub.port, get(f"/events/?token={token}"))
        stream.read_until(b"0\r\n\r\n", seconds=10)
        stream.close()
        streams += 1

    assert streams <= 1  # more would be a client that is sent round in a loop
    assert time.time() >= exp + 3
    if streams:
        assert [event.event for event in stream.events] == ["stream-expiring", "stream-expired"]
        assert stream.events[-1].json() == {"expiresAt": exp + 3}


def test_b18_token_from_a_clock_that_is_ahead_opens_a_stream(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--leeway-seconds", "60")
    statuses = {}

    for skew in (-90, -30, 30, 90):
        signed_at = int(time.time()) + skew
        claims = {"userId": "a", "channel": "chat", "iat": signed_at, "nbf": signed_at, "exp": signed_at + 1}
        token = jwt.encode(claims, SECRET)
        statuses[skew] = httpx.head(f"{hub.url}/events/", params={"token": token}).status_code

    assert statuses == {-90: 401, -30: 200, 30: 200, 90: 401}


def test_a22_heartbeats_are_sent_at_their_interval(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--heartbeat-seconds", "0.5")
    stream = listen(hub.port, hub.token())
    stream.read_until(b": ping\n")
    position = hub.emit(channel="elsewhere", data="x")
    stream.read_until(f"id: {position}\n\n".encode())
    stream.close()

    frames = rb"event: stream-hello\ndata: {}\nid: .*\n\n(: ping\n)+event: stream-position\ndata: {}\nid: .*\n\n"
    assert re.fullmatch(frames, stream.body)


def test_unmodified_event_source_response_sends_the_same_headers_and_body(start_hub: Callable[..., RunningHub]) -> None:
    """The reference is sse-starlette's own response with the same events and ping, but with the ids last."""
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
    stream.read_until(b": ping\n")
    stream.close()

    def ping() -> ServerSentEvent:
        return ServerSentEvent(comment="ping", sep="\n")

    async def events() -> AsyncIterator[ServerSentEvent | dict[str, Any]]:
        yield ServerSentEvent("{}", event="stream-hello", id=first, sep="\n")
        yield {"data": "one\ntwo", "event": "note", "id": ids[0]}
        yield {"data": "ü", "id": "own", "retry": 5}
        yield {"data": "", "id": ids[2]}
        await asyncio.sleep(0.3)

    async def endpoint(request: Any) -> EventSourceResponse:
        return EventSourceResponse(events(), sep="\n", ping=0.2, ping_message_factory=ping)

    async def reference_response() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=[Route("/", endpoint)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/")

    reference = asyncio.run(reference_response())
    head, _, _ = stream.bytes.decode().partition("\r\n\r\n")
    ours = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert {name: ours[name] for name in reference.headers} == dict(reference.headers)
    assert set(ours) - set(reference.headers) == {"date", "transfer-encoding"}
    # The hub sends a heartbeat without the blank line.
    assert with_ids_last(reference.text).removesuffix("\n") == stream.body.decode()


def with_ids_last(text: str) -> str:
    """Return stream text with the `id:` of each frame as its last line."""
    frames = [sorted(frame.split("\n"), key=lambda line: line.startswith("id: ")) for frame in text.split("\n\n")]
    return "\n\n".join(["\n".join(lines) for lines in frames])
