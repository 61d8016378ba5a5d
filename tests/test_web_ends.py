"""How a response ends whose client is to come back: complete for a native EventSource, cut off for all others."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from conftest import RunningHub, StartHub
from ssehub.errors import ConfigError, InvalidRequest
from ssehub.hub import Hub
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from ssehub.web.ends import is_cut
from streams import BUSY, LAST_CHUNK, NATIVE, RawStream, get, listen

ACCEPT = "Accept: text/event-stream"
NO_CACHE = "Cache-Control: no-cache"
BROWSER = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.mark.parametrize(
    ("headers", "cut"),
    [
        pytest.param(NATIVE, False, id="EventSource"),
        pytest.param((ACCEPT, NO_CACHE, BROWSER), False, id="EventSource-on-plain-http"),
        pytest.param((*NATIVE, BROWSER), False, id="EventSource-with-both"),
        pytest.param((ACCEPT, "Sec-Fetch-Mode: cors", BROWSER), True, id="fetch-in-a-browser"),
        pytest.param(("Accept: */*", NO_CACHE, BROWSER), True, id="any-type-accepted"),
        pytest.param(("Accept: text/event-stream, text/html", NO_CACHE, BROWSER), True, id="further-types"),
        pytest.param((ACCEPT, NO_CACHE, "User-Agent: node"), True, id="library"),
        pytest.param((*NATIVE, BROWSER, "Datastar-Request: true"), True, id="Datastar"),
        pytest.param((), True, id="nothing"),
    ],
)
def test_native_event_source_is_recognised_by_its_headers(headers: tuple[str, ...], cut: bool) -> None:
    given = {name.lower(): value for name, value in (header.split(": ", 1) for header in headers)}

    assert is_cut(None, "auto", given) is cut
    assert [is_cut(None, setting, given) for setting in ("clean", "cut")] == [False, True]
    for setting in ("auto", "clean", "cut"):
        assert [is_cut(end, setting, given) for end in ("clean", "cut")] == [False, True]


def test_unknown_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown end 'soft': use clean or cut, or leave it out"):
        is_cut("soft", "auto", {})
    with pytest.raises(ConfigError, match="comeback_end 'soft': must be auto, clean or cut"):
        create_client_app(Hub(), tokens=Tokens("x" * 32), comeback_end="soft")  # type: ignore[arg-type]


def read_to_end(stream: RawStream) -> float:
    """Read until the server closes the connection, without a reset; return for how long nothing came before that."""
    stream.socket.settimeout(15)
    last = time.monotonic()
    while received := stream.socket.recv(65_536):
        stream.bytes += received
        last = time.monotonic()
    stream.close()
    return time.monotonic() - last


def check_end(stream: RawStream, type: str, *, cut: bool, seconds: float = 0.5) -> None:
    """Check that a chunked response ends with an event of `type`: complete, or cut off `seconds` later or more."""
    pause = read_to_end(stream)
    head = stream.bytes.partition(b"\r\n\r\n")[0].lower()
    last = stream.events[-1]
    assert b"transfer-encoding: chunked" in head
    assert (last.event, last.data) == (type, "{}") and last.retry is not None
    assert stream.bytes.endswith(LAST_CHUNK) is not cut
    if cut:
        assert pause >= seconds


CASES: list[tuple[str, tuple[str, ...], bool]] = [
    ("", NATIVE, False),
    ("", (ACCEPT,), True),
    ("&end=cut", NATIVE, True),
    ("&end=clean", (), False),
    ("", (ACCEPT, "Connection: close"), True),  # as nginx asks
]
"""The query and headers of a request, and True if the response is to be cut off."""


def open_all(hub: RunningHub, token: str) -> list[tuple[RawStream, bool]]:
    """Send a request for each case."""
    return [
        (RawStream(hub.port, get(f"/events/?token={token}{query}", *headers)), cut) for query, headers, cut in CASES
    ]


def test_refused_client(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "1")
    token = hub.token()
    stream = listen(hub.port, token)

    for refused, cut in open_all(hub, token):
        check_end(refused, "stream-busy", cut=cut, seconds=0.0)
        assert b"\r\nconnection: close" in refused.bytes.lower()
    check_end(RawStream(hub.port, get(f"/events/?token={token}")), "stream-busy", cut=True, seconds=0.9)

    stream.close()
    assert "ERROR" not in hub.log


def test_stream_that_has_reached_its_lifetime(start_hub: StartHub) -> None:
    hub = start_hub("--stream-lifetime-seconds", "1")

    check_end(RawStream(hub.port, get(f"/events/?token={hub.token()}")), "stream-lifetime", cut=True, seconds=0.9)
    for stream, cut in open_all(hub, hub.token()):
        check_end(stream, "stream-lifetime", cut=cut, seconds=0.0)

    assert "ERROR" not in hub.log


def test_drained_stream(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "4")
    streams = open_all(hub, hub.token())
    for stream, _ in streams:
        stream.read_until(b"stream-hello")

    hub.signal(signal.SIGTERM)
    for stream, cut in streams:
        check_end(stream, "stream-drain", cut=cut, seconds=0.0)

    assert hub.wait() == 0
    assert "ERROR" not in hub.log


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_response_of_http_1_0_ends_with_the_connection(start_hub: StartHub, connection: str) -> None:
    hub = start_hub("--stream-lifetime-seconds", "1")
    request = get(f"/events/?token={hub.token()}", f"Connection: {connection}", version="1.0")

    stream = RawStream(hub.port, request)
    read_to_end(stream)

    head, _, body = stream.bytes.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"\r\nconnection: close" in head.lower()
    assert re.search(rb"event: stream-lifetime\ndata: {}\nretry: \d+\nid: [^\n]+\n\n$", body)


def disconnect(hub: RunningHub) -> None:
    httpx.post(f"{hub.control_url}/disconnect/", data={"channel": "chat"}).raise_for_status()


@pytest.mark.parametrize(
    ("make", "type"),
    [
        pytest.param(
            lambda hub, token: httpx.post(
                f"{hub.control_url}/disconnect/", data={"channel": "chat"}
            ).raise_for_status(),
            "stream-revoked",
            id="revoked",
        ),
        pytest.param(lambda hub, token: listen(hub.port, token), "stream-replaced", id="replaced"),
    ],
)
def test_stream_whose_client_is_to_stay_away_is_complete(
    start_hub: StartHub, make: Callable[[RunningHub, str], object], type: str
) -> None:
    hub = start_hub("--max-streams-per-user", "1")
    token = hub.token()
    stream = RawStream(hub.port, get(f"/events/?token={token}&end=cut"))
    stream.read_until(b"stream-hello")

    made = make(hub, token)
    read_to_end(stream)

    assert stream.events[-1].event == type and stream.bytes.endswith(LAST_CHUNK)
    if isinstance(made, RawStream):
        made.close()


def test_setting_decides_where_the_request_does_not(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "1", "--comeback-end", "clean")
    token = hub.token()
    stream = listen(hub.port, token)

    for query, cut in (("", False), ("&end=cut", True)):
        check_end(RawStream(hub.port, get(f"/events/?token={token}{query}")), "stream-busy", cut=cut)
    refused = RawStream(hub.port, get(f"/events/?token={token}&end=no"))

    assert b"400 Bad Request" in refused.read_until(b"unknown end 'no'")
    refused.close()
    stream.close()


def test_refused_client_is_told_its_own_cursor_or_the_end_of_the_log(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "1")
    token, cursor, head = hub.token(), hub.emit(data="1"), hub.emit(data="2")
    stream = listen(hub.port, token)

    for query, id in (
        (f"&lastEventId={cursor}", cursor),
        ("&lastEventId=own", "own"),
        ("&lastEventId=a%0Aevent:%20x", ""),
        ("", head),
        ("&since=earliest", ""),
    ):
        refused = RawStream(hub.port, get(f"/events/?token={token}&end=clean{query}"))
        read_to_end(refused)
        (event,) = refused.events
        assert (event.event, event.id) == ("stream-busy", id)

    stream.close()


@pytest.mark.alone
def test_most_refused_clients_that_wait_for_a_cut_are_bounded(start_hub: StartHub) -> None:
    """Beyond that their responses are cut off at once: waiting connections must not keep others out."""
    hub = start_hub("--max-connections", "1")
    token = hub.token()
    stream = listen(hub.port, token)

    refused = [RawStream(hub.port, get(f"/events/?token={token}")) for _ in range(80)]
    read_to_end(refused[-1])
    one_that_need_not_wait = time.monotonic()
    read_to_end(refused[0])
    one_that_waits = time.monotonic()
    for one in refused:
        assert not one.bytes.endswith(LAST_CHUNK)
        one.close()
    check_end(RawStream(hub.port, get(f"/events/?token={token}")), "stream-busy", cut=True)

    assert one_that_waits - one_that_need_not_wait > 0.2
    stream.close()


def test_client_that_leaves_while_it_waits_for_a_cut_frees_its_connection(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "1")
    token = hub.token()
    stream = listen(hub.port, token)

    for _ in range(60):
        refused = RawStream(hub.port, get(f"/events/?token={token}"))
        refused.read_until(BUSY)
        refused.reset()
    time.sleep(1.2)
    check_end(RawStream(hub.port, get(f"/events/?token={token}")), "stream-busy", cut=True)

    stream.close()
    assert "ERROR" not in hub.log and "Traceback" not in hub.log


def test_client_that_closes_its_side_while_it_waits_for_a_cut_is_not_reset(start_hub: StartHub) -> None:
    hub = start_hub("--stream-lifetime-seconds", "1")
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}"))
    stream.read_until(b"stream-lifetime")
    stream.socket.shutdown(socket.SHUT_WR)

    read_to_end(stream)

    assert not stream.bytes.endswith(LAST_CHUNK)
