"""Tokens that grant patterns, and streams that ask for some of the channels that a token grants, over real sockets."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from asgi_requests import head
from conftest import SECRET, RunningHub, StartHub, until, wait_until
from ssehub import Claims, Hub, Publisher, Tokens, create_client_app
from ssehub.errors import InvalidRequest
from streams import HELLO, RawStream, get

TOKENS = Tokens(SECRET)
DAY = 86_400


def issue(*channels: str, patterns: tuple[str, ...] = (), user_id: str = "alex") -> str:
    return TOKENS.issue(user_id, channels, patterns=patterns, expires_at=time.time() + DAY)


def open_stream(hub: RunningHub, token: str, query: str = "", *headers: str) -> RawStream:
    stream = RawStream(hub.port, get(f"/events/?{query}", f"Authorization: Bearer {token}", *headers))
    stream.read_until(HELLO)
    return stream


def data_of(stream: RawStream) -> list[str]:
    return [event.data for event in stream.events]


def emit(hub: RunningHub, channel: str, data: str) -> str:
    return hub.emit(channel=channel, data=data)


def test_stream_with_a_pattern_receives_its_channels_resumes_and_is_narrowed(hub: RunningHub) -> None:
    token = hub.issue(user_id="alex", channel="news", patterns=["orders.*", "jobs.eu.*"])
    stream = open_stream(hub, token)
    first = emit(hub, "orders.1", "one")
    for channel in ("order", "orders", "jobs.us.1", "xorders.1", "news.1"):
        emit(hub, channel, f"not on {channel}")
    emit(hub, "orders.2", "two")
    emit(hub, "orders.", "three")
    emit(hub, "news", "four")
    emit(hub, "jobs.eu.1", "five")
    stream.read_event("five")
    stream.close()
    emit(hub, "orders.1", "missed on orders.1")
    emit(hub, "orders.2", "missed on orders.2")

    resumed = open_stream(hub, token, "", f"Last-Event-ID: {first}")
    narrowed = open_stream(hub, token, "channel=orders.2&channel=news&channel=orders.2", f"Last-Event-ID: {first}")
    emit(hub, "orders.1", "live on orders.1")
    emit(hub, "orders.2", "live on orders.2")
    for each in (resumed, narrowed):
        each.read_event("live on orders.2")
        each.close()

    assert data_of(stream) == ["one", "two", "three", "four", "five"]
    assert data_of(resumed) == [
        *("two", "three", "four", "five", "missed on orders.1", "missed on orders.2"),
        *("live on orders.1", "live on orders.2"),
    ]
    assert data_of(narrowed) == ["two", "four", "missed on orders.2", "live on orders.2"]


def test_narrowed_stream_begins_where_it_is_told_to(hub: RunningHub) -> None:
    token = issue("since.a", patterns=("since.b*",))
    for number in range(3):
        emit(hub, "since.a", f"a{number}")
        emit(hub, "since.b1", f"b{number}")

    earliest = open_stream(hub, token, "channel=since.b1&since=earliest")
    last = open_stream(hub, token, "channel=since.b1&since=last:1")
    reset = open_stream(hub, token, "channel=since.b1&lastEventId=unknown&on_reset=replay")
    for stream in (earliest, last, reset):
        stream.read_event("b2")
        stream.close()

    assert data_of(earliest) == ["b0", "b1", "b2"]
    assert data_of(last) == ["b2"]
    assert data_of(reset) == ['{"reason":"unknown-id"}', "b0", "b1", "b2"]


def test_star_is_an_ordinary_character_of_a_channel(hub: RunningHub) -> None:
    """Publishing to `orders.*` does not reach `orders.1`, and the channel `orders.*` in a token is no pattern."""
    exact, other, pattern = (
        open_stream(hub, issue("star.*")),
        open_stream(hub, issue("star.1")),
        open_stream(hub, issue(patterns=("star.*",))),
    )
    asked = open_stream(hub, issue(patterns=("star.*",)), "channel=star.*")
    emit(hub, "star.*", "on star.*")
    emit(hub, "star.1", "on star.1")
    emit(hub, "star.*", "the end")
    for stream in (exact, pattern, asked):
        stream.read_event("the end")
        stream.close()
    other.read_event("on star.1")
    other.close()

    assert data_of(exact) == data_of(asked) == ["on star.*", "the end"]
    assert data_of(other) == ["on star.1"]
    assert data_of(pattern) == ["on star.*", "on star.1", "the end"]


GRANTED = {"channels": ("chat", "a b", "star.*"), "patterns": ("orders.*", "заказ-*")}
NARROWING = {
    "exact": ("channel=chat", 200, ""),
    "pattern": ("channel=orders.7", 200, ""),
    "prefix-alone": ("channel=orders.", 200, ""),
    "both": ("channel=orders.7&channel=chat&channel=chat", 200, ""),
    "escaped": ("channel=a+b&channel=%D0%B7%D0%B0%D0%BA%D0%B0%D0%B7-1", 200, ""),
    "star-in-a-granted-name": ("channel=star.*", 200, ""),
    "a-pattern-is-a-name-here": ("channel=orders.*", 200, ""),
    "thousand": ("&".join(f"channel=orders.{number}" for number in range(1_000)), 200, ""),
    "B31-other": ("channel=other", 403, "channel 'other' is not granted"),
    "B31-one-of-several": ("channel=chat&channel=x&channel=y", 403, "channel 'x' is not granted"),
    "B31-shorter-than-the-prefix": ("channel=orders", 403, "channel 'orders' is not granted"),
    "B31-case": ("channel=Chat", 403, "channel 'Chat' is not granted"),
    "B31-wider": ("channel=order*", 403, "channel 'order*' is not granted"),
    "B31-everything": ("channel=*", 403, "channel '*' is not granted"),
    "B31-name-under-a-star": ("channel=star.1", 403, "channel 'star.1' is not granted"),
    "B31-longest": ("channel=" + "x" * 255, 403, f"channel '{'x' * 255}' is not granted"),
    "B31-script": ("channel=%3Cscript%3E", 403, "channel '<script>' is not granted"),
    "B31-empty": ("channel=", 400, "channel is empty"),
    "B31-empty-one": ("channel=chat&channel=", 400, "channel is empty"),
    "B31-long": ("channel=" + "x" * 4_000, 400, "channel has 4000 characters"),
    "B31-line-break": ("channel=a%0Ab", 400, "channel contains a line break"),
    "B31-not-utf8": ("channel=%FF", 400, "channel is not valid UTF-8"),
    "B31-many": ("&".join(["channel=chat"] * 1_001), 400, "channel has 1001 names: at most 1000"),
    "B31-far-too-many": ("&".join(["channel=chat"] * 2_000), 400, "the query has more than 65536 bytes"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("query", "status", "message"), NARROWING.values(), ids=NARROWING.keys())
def test_b31_stream_has_the_channels_that_it_asks_for_or_is_refused(
    hub: RunningHub, method: str, query: str, status: int, message: str
) -> None:
    token = issue(*GRANTED["channels"], patterns=GRANTED["patterns"])
    origin = {"Authorization": f"Bearer {token}", "Origin": "https://app.example"}

    with httpx.stream(method, f"{hub.url}/events/?{query}", headers=origin) as response:
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        if status != 200:
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert response.read().decode().startswith(message if method == "GET" else "")


def test_b31_refused_stream_is_counted_and_logged_at_a_bounded_rate_and_nothing_is_opened(start_hub: StartHub) -> None:
    hub = start_hub()
    token = issue("chat")

    with httpx.Client(base_url=hub.url, headers={"Authorization": f"Bearer {token}"}) as client:
        channels = ["\x1b[31m", token, *["other"] * 300]
        answers = [client.get("/events/", params={"channel": channel}) for channel in channels]

    assert {answer.status_code for answer in answers} == {403}
    assert hub.metric('ssehub_refused_total{reason="not-granted"}') == 302
    assert hub.metric("ssehub_subscribers") == 0
    for shown in ("'\\x1b[31m'", f"'{token[:79]}"):
        wait_until(lambda shown=shown: f"request refused, not-granted: channel {shown}; GET /events/, user" in hub.log)  # type: ignore[misc]  # a lambda with a default
    assert token[:80] not in hub.log
    assert "\x1b" not in hub.log
    assert hub.log.count("request refused, not-granted") < 300


def test_narrowed_stream_counts_only_on_its_channels_and_is_revoked_with_its_token(start_hub: StartHub) -> None:
    hub = start_hub("--max-streams-per-channel=1")
    token = issue("a", "b")
    on_a = open_stream(hub, token, "channel=a")
    on_b = open_stream(hub, token, "channel=b")
    refused = RawStream(hub.port, get("/events/?channel=b", f"Authorization: Bearer {token}"))
    refused.read_until(b"stream-busy")
    refused.close()

    httpx.post(f"{hub.control_url}/revoke/", data={"jti": TOKENS.verify(token).jti or ""}).raise_for_status()
    for stream in (on_a, on_b):
        assert b"stream-revoked" in stream.read_to_end()


@pytest.mark.anyio
async def test_login_of_the_host_is_narrowed_too() -> None:
    async def login(connection: HTTPConnection) -> Claims:
        return Claims("alex", ("chat",), patterns=("orders.*",))

    app = create_client_app(Hub(), authenticate=login)
    answers = [await head(app, query) for query in (b"", b"channel=orders.1&channel=chat", b"channel=x", b"channel=")]

    assert [answer.status for answer in answers] == [200, 200, 403, 400]
    assert answers[2].body.startswith(b"channel 'x' is not granted")


def test_b30_every_channel_is_granted_only_where_that_is_allowed(start_hub: StartHub) -> None:
    closed, open_ = start_hub(), start_hub("--allow-all-channels")
    token = issue("chat", patterns=("*",))
    body = {"userId": "alex", "patterns": ["*"]}

    for query in ("", "?channel=chat"):
        answer = httpx.get(f"{closed.url}/events/{query}", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.text) == (401, "a valid token is required\n")
    assert closed.metric('ssehub_tokens_refused_total{reason="claims"}') == 2
    assert (
        "token refused, claims: GET /events/, user 'alex', channels 'chat', patterns '*', from 127.0.0.1" in closed.log
    )
    refused = httpx.post(f"{closed.control_url}/token/", json=body)
    assert refused.status_code == 400 and "set allow_all_channels" in refused.json()["error"]

    issued = httpx.post(f"{open_.control_url}/token/", json=body).raise_for_status().json()["token"]
    stream = open_stream(open_, issued)
    for channel in ("chat", "other", "*"):
        emit(open_, channel, f"on {channel}")
    stream.read_event("on *")
    stream.close()
    assert data_of(stream) == ["on chat", "on other", "on *"]


def test_publisher_asks_for_tokens_with_patterns(hub: RunningHub) -> None:
    with Publisher(hub.control_url) as publisher:
        only, both, one = (
            publisher.token("alex", patterns=["orders.*"]),
            publisher.token("alex", "chat", patterns=["orders.*"]),
            publisher.token("alex", ["chat", "news"], patterns="orders.*"),
        )
        with pytest.raises(InvalidRequest, match=r"patterns 'a\*b' is not a pattern"):
            publisher.token("alex", patterns=["a*b"])

    granted = [TOKENS.verify(token) for token in (only, both, one)]
    assert [claims.channels for claims in granted] == [(), ("chat",), ("chat", "news")]
    assert {claims.patterns for claims in granted} == {("orders.*",)}


SUBSCRIPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "B30-star-inside": ({"patterns": ["a*b"]}, "patterns 'a*b' is not a pattern"),
    "B30-two-stars": ({"patterns": ["a**"]}, "patterns 'a**' is not a pattern"),
    "B30-star-alone": ({"patterns": ["*"]}, "patterns: '*' would be every channel"),
    "B30-empty": ({"patterns": [""]}, "patterns is empty"),
    "B30-long": ({"patterns": ["x" * 4_000]}, "patterns has 4000 characters"),
    "B30-many": ({"patterns": ["a*"] * 101}, "patterns: 101 given: at most 100"),
    "B30-number": ({"patterns": [5]}, "patterns must be a string, not int"),
    "B30-nothing": ({}, "a stream needs a channel or a pattern"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), SUBSCRIPTIONS.values(), ids=SUBSCRIPTIONS.keys())
async def test_b30_subscription_with_a_bad_pattern_is_refused(fields: dict[str, Any], message: str) -> None:
    async with Hub() as hub:
        with pytest.raises(InvalidRequest) as caught:
            hub.subscribe(user_id="alex", **fields)

        assert str(caught.value).startswith(message)
        await until(lambda: hub.statistics.subscribers == 0)
