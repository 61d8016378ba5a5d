"""Tokens for many channels, and streams that ask for many: through Apache's header of 8 KiB, and directly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from apache import running_apache
from conftest import SECRET, RunningHub, StartHub
from ssehub import Tokens
from ssehub.tokens import MAX_TOKEN_LENGTH
from streams import HELLO, RawStream, get

TOKENS = Tokens(SECRET)
MANY = [f"tenant-4711.orders.{number:021}" for number in range(1_000)]
"""Channels with names of 40 characters."""
APACHE_LINE_BYTES = 8_190
"""Apache's LimitRequestLine and LimitRequestFieldSize, if they are not set."""


def issue(channels: list[str], *patterns: str) -> str:
    return TOKENS.issue("alex", channels, patterns=patterns, expires_at=time.time() + 3_600)


@pytest.fixture(scope="module")
def site(hub: RunningHub) -> Iterator[int]:
    """The port of an Apache with its defaults, which passes /api/sse/ on to the hub."""
    with running_apache(hub, {}) as url:
        yield int(url.rpartition(":")[2])


def hears_first_and_last(hub: RunningHub, port: int, path: str, token: str, channels: list[str]) -> None:
    """A stream with `token` receives events on the first and on the last of `channels`, and of no other channel."""
    stream = RawStream(port, get(path, f"Authorization: Bearer {token}"))
    stream.read_until(HELLO)
    hub.emit(channel=channels[0], data="first")
    hub.emit(channel="tenant-4711.orders.others", data="nothing for this stream")
    hub.emit(channel=channels[-1], data="last")
    stream.read_event("last")
    stream.close()
    assert [event.data for event in stream.events] == ["first", "last"]


@pytest.mark.e2e
def test_token_for_100_channels_fits_into_a_header_of_apache(hub: RunningHub, site: int) -> None:
    token = issue(MANY[:100])

    assert all(len(name) == 40 for name in MANY)
    hears_first_and_last(hub, site, "/api/sse/", token, MANY[:100])


@pytest.mark.e2e
def test_stream_asks_for_as_many_channels_as_fit_into_a_request_line_of_apache(hub: RunningHub, site: int) -> None:
    token = issue([], "tenant-4711.*")
    path = "/api/sse/?channel="
    count = (APACHE_LINE_BYTES - len("GET  HTTP/1.1\r\n") - len(path)) // len(f"{MANY[0]}&channel=")
    fitting, too_long = (path + "&channel=".join(MANY[:number]) for number in (count, count + 2))

    hears_first_and_last(hub, site, fitting, token, MANY[:count])
    refused = RawStream(site, get(too_long, f"Authorization: Bearer {token}"))
    assert count > 150
    assert refused.read_until(b"\r\n").startswith(b"HTTP/1.1 414")
    refused.close()


def test_token_for_1000_channels_is_accepted_directly(hub: RunningHub) -> None:
    token = hub.issue(channels=MANY)

    assert 50_000 < len(token) < MAX_TOKEN_LENGTH
    hears_first_and_last(hub, hub.port, "/events/", token, MANY)


def test_token_for_1000_channels_is_accepted_in_the_query_and_narrowed(hub: RunningHub) -> None:
    """The Yaffle polyfill, and a native EventSource without a cookie, have no header to put it into."""
    asked = MANY[500:600]
    narrowed = "".join(f"&channel={name}" for name in asked)
    stream = RawStream(hub.port, get(f"/events/?token={issue(MANY)}{narrowed}"))
    stream.read_until(HELLO)
    for name in (MANY[0], asked[0], MANY[-1], asked[-1]):
        hub.emit(channel=name, data=name)
    stream.read_event(asked[-1])
    stream.close()

    assert [event.data for event in stream.events] == [asked[0], asked[-1]]


def test_stream_asks_for_1000_channels_of_a_pattern(hub: RunningHub) -> None:
    for names in (MANY, [f"заказ-{number:03}" for number in range(1_000)]):
        path = "/events/?channel=" + "&channel=".join(map(quote, names))
        hears_first_and_last(hub, hub.port, path, issue([], "tenant-4711.*", "заказ-*"), names)


def test_token_in_a_cookie_has_the_bound_of_browsers(hub: RunningHub) -> None:
    refused = httpx.post(f"{hub.url}/events/login", headers={"Authorization": f"Bearer {issue(MANY)}"})
    accepted = httpx.post(f"{hub.url}/events/login", headers={"Authorization": f"Bearer {issue(MANY[:50])}"})

    assert (refused.status_code, accepted.status_code) == (413, 204)
    assert "grant fewer channels, or a pattern" in refused.text


@pytest.mark.only_soak
@pytest.mark.soak
def test_memory_of_streams_with_1000_channels_is_bounded(start_hub: StartHub) -> None:
    """Each has channels of its own: nothing is shared."""
    hub = start_hub()
    streams, count = [], 300
    before = 0
    for number in range(count + 20):
        if number == 20:
            before = hub.memory_bytes()
        token = issue([f"user-{number:04}.orders.{channel:024}" for channel in range(1_000)])
        stream = RawStream(hub.port, get("/events/", f"Authorization: Bearer {token}"))
        stream.read_until(HELLO)
        streams.append(stream)
    each = (hub.memory_bytes() - before) / count
    for stream in streams:
        stream.close()

    assert each < 1_000_000, f"{each:.0f} bytes"
