"""The client app: tokens, cursors, methods and paths, over real sockets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse

from asgi_requests import head
from conftest import SECRET, RunningHub
from ssehub import Hub, Tokens, create_client_app
from streams import RawStream, get, listen

REFUSED = "a valid token is required\n"


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
def test_token_is_read_from_header_cookie_or_query(
    hub: RunningHub, how: Callable[[str], dict[str, Any]], path: str
) -> None:
    with httpx.Client() as client, connect_sse(client, "GET", hub.url + path, **how(hub.token())) as source:
        assert source.response.status_code == 200
        assert source.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert source.response.headers["cache-control"] == "no-store"
        assert source.response.headers["x-accel-buffering"] == "no"
        hub.emit(data="hi", event="note")
        frames = source.iter_sse()
        hello, event = next(frames), next(frames)

    assert (hello.event, hello.data) == ("stream-hello", "{}")
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

        assert stream.read_until(b"\r\n").startswith((b"HTTP/1.1 401", b"HTTP/1.1 400", b"HTTP/1.1 414"))
        stream.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("token=TOKEN&a=1", 200),
        ("%74oken=TOKEN", 200),
        ("a=1&to%6ben=TOKEN&token=TOKEN", 200),
        ("token=TOKEN&a=%FF", 200),
    ],
)
async def test_c17_no_token_is_left_to_the_access_log(query: str, status: int) -> None:
    tokens = Tokens(SECRET)
    token = tokens.issue("alex", ["chat"], expires_at=4_000_000_000)
    answer = await head(create_client_app(Hub(), tokens=tokens), query.replace("TOKEN", token).encode())

    assert answer.status == status
    names = answer.query_left.replace(b"=...", b"").split(b"&")
    assert set(names) <= {b"token", b"%74oken", b"to%6ben", b"a"}


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
def test_cookie_counts_only_for_own_and_listed_origins(hub: RunningHub, headers: dict[str, str], status: int) -> None:
    with httpx.stream("GET", f"{hub.url}/events/", headers={"Cookie": f"sse={hub.token()}", **headers}) as response:
        assert response.status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405(hub: RunningHub, method: str) -> None:
    response = httpx.request(method, f"{hub.url}/events/", params={"token": hub.token()})

    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_options_is_answered_and_cors_allows_listed_origins_only(hub: RunningHub) -> None:
    ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,last-event-id"}
    plain = httpx.options(f"{hub.url}/events/")
    listed = httpx.options(f"{hub.url}/events/", headers={"Origin": "https://app.example", **ask})
    evil = httpx.options(f"{hub.url}/events/", headers={"Origin": "https://evil.example", **ask})
    refused = httpx.get(f"{hub.url}/events/", headers={"Origin": "https://app.example"})

    assert plain.status_code == 204
    assert listed.status_code == 200
    assert listed.headers["access-control-allow-origin"] == "https://app.example"
    assert listed.headers["access-control-allow-headers"] == ask["Access-Control-Request-Headers"]
    assert "access-control-allow-origin" not in evil.headers
    assert refused.headers["access-control-allow-origin"] == "https://app.example"  # lets the page see the 401


@pytest.mark.parametrize("headers", ["datastar-request", "hx-request,hx-target,hx-current-url", "x-requested-with"])
def test_listed_origin_may_send_headers_of_its_libraries(hub: RunningHub, headers: str) -> None:
    """Datastar, htmx and older libraries add headers; a browser asks for each, and sends nothing if one is refused."""
    ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": headers}

    response = httpx.options(f"{hub.url}/events/", headers={"Origin": "https://app.example", **ask})

    assert response.status_code == 200
    assert response.headers["access-control-allow-headers"] == headers
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert response.headers["access-control-allow-credentials"] == "true"


PREFLIGHT = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
HUB = "http://hub"


@pytest.mark.parametrize(
    ("origins", "headers", "refused"),
    [
        pytest.param([], {}, 0, id="no-origin"),
        pytest.param([], {"Origin": HUB}, 0, id="same-origin"),
        pytest.param([], {"Origin": HUB, **PREFLIGHT}, 0, id="same-origin-preflight"),
        pytest.param([], {"Origin": "https://app.example", "Sec-Fetch-Site": "same-origin"}, 0, id="host-rewritten"),
        pytest.param([], {"Sec-Fetch-Site": "cross-site"}, 0, id="link-or-image"),
        pytest.param([], {"Origin": "https://app.example"}, 1, id="none-allowed"),
        pytest.param([], {"Origin": "https://app.example", **PREFLIGHT}, 1, id="none-allowed-preflight"),
        pytest.param([], {"Origin": "null"}, 1, id="null"),
        pytest.param(["https://app.example"], {"Origin": "https://app.example"}, 0, id="listed"),
        pytest.param(["https://app.example"], {"Origin": "https://app.example", **PREFLIGHT}, 0, id="listed-preflight"),
        pytest.param(["https://app.example"], {"Origin": "http://app.example"}, 1, id="other-scheme"),
        pytest.param(["https://app.example"], {"Origin": "https://evil.example", **PREFLIGHT}, 1, id="other-preflight"),
        pytest.param(["*"], {"Origin": "https://evil.example"}, 0, id="any"),
        pytest.param(["*"], {"Origin": "null", **PREFLIGHT}, 0, id="any-preflight"),
    ],
)
@pytest.mark.anyio
async def test_request_from_an_origin_that_is_not_allowed_is_counted_and_logged(
    origins: list[str], headers: dict[str, str], refused: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub, tokens = Hub(), Tokens(SECRET)
    app = create_client_app(hub, tokens=tokens, cors_origins=origins, drains_on_exit=False)
    method = "OPTIONS" if "Access-Control-Request-Method" in headers else "HEAD"
    params = {"token": tokens.issue("alex", ["chat"], expires_at=4_000_000_000)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HUB) as http:
        with caplog.at_level("INFO", "ssehub.client"):
            response = await http.request(method, "/events/", headers=headers, params=params)

    lines = [record.getMessage() for record in caplog.records if record.name == "ssehub.client"]
    assert hub.statistics.refused["origin"] == len(lines) == refused
    assert all(f"request refused, origin: {headers['Origin']!r} is not in cors_origins" in line for line in lines)
    assert not any(params["token"] in line for line in lines)
    if "Origin" in headers and headers["Origin"] != HUB and "Sec-Fetch-Site" not in headers:
        assert ("access-control-allow-origin" not in response.headers) == bool(refused)


@pytest.mark.parametrize(
    ("origin", "method", "counted"),
    [
        pytest.param("https://app.example", "GET", {}, id="of-the-path"),
        pytest.param("https://app.example", "POST", {"method": 1}, id="not-of-the-path"),
        pytest.param("https://evil.example", "POST", {"origin": 1}, id="of-another-origin"),
    ],
)
@pytest.mark.anyio
async def test_preflight_for_a_method_that_the_path_does_not_have_is_counted_and_logged(
    origin: str, method: str, counted: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    app = create_client_app(hub, tokens=Tokens(SECRET), cors_origins=["https://app.example"], drains_on_exit=False)
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HUB) as http:
        with caplog.at_level("INFO", "ssehub.client"):
            response = await http.options("/events/", headers=headers)

    assert response.status_code == (400 if counted else 200)
    assert {reason: count for reason, count in hub.statistics.refused.items() if count} == counted
    assert len([record for record in caplog.records if record.name == "ssehub.client"]) == len(counted)


@pytest.mark.anyio
async def test_flood_from_one_origin_is_counted_in_full_and_logged_at_a_limited_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    app = create_client_app(hub, tokens=Tokens(SECRET), drains_on_exit=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HUB) as http:
        with caplog.at_level("INFO", "ssehub.client"):
            for number in range(600):
                await http.options("/events/", headers={"Origin": f"https://{number}.{'a' * 1_000}.example"})

    assert hub.statistics.refused["origin"] == 600
    lines = [record for record in caplog.records if "cors_origins" in record.getMessage()]
    assert 0 < len(lines) < 500
    assert max(len(record.getMessage()) for record in lines) < 400


@pytest.mark.parametrize("path", ["/events", "/events/", "/events//", "/", "/emit/", "/token/", "/metrics", "/healthz"])
def test_a19_c15_no_path_redirects_and_control_paths_are_404(hub: RunningHub, path: str) -> None:
    stream = RawStream(hub.port, get(f"{path}?token=x", "Host: evil.example"))
    head = stream.read_until(b"\r\n\r\n").lower()
    stream.close()

    assert b"location" not in head and b"evil" not in head
    assert head.startswith(b"http/1.1 401" if path.startswith("/events") else b"http/1.1 404")


@pytest.mark.parametrize(
    ("headers", "query", "reason"),
    [
        (["Last-Event-ID: 1-0.zzzzzzzz"], "", "log-lost"),
        ([], "&lastEventId=1-0.zzzzzzzz", "log-lost"),
        ([], "&last_event_id=garbage", "unknown-id"),
        ([], "&lastEventID=-1", "unknown-id"),
        (["Last-Event-ID: garbage"], "&lastEventId=1-0.zzzzzzzz", "unknown-id"),
        (["Last-Event-ID: " + "x" * 20_000], "", "unknown-id"),
    ],
    ids=["header", "yaffle", "snake", "capitals", "D9-header-wins", "D2-long"],
)
def test_cursor_is_read_from_header_or_query(hub: RunningHub, headers: list[str], query: str, reason: str) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}{query}", *headers))
    stream.read_event(f'{{"reason":"{reason}"}}')
    hub.emit(data="live")
    stream.read_event("live")
    stream.close()


def test_present_position_is_resumed_without_a_reset(hub: RunningHub) -> None:
    head = hub.emit(data="x")
    stream = listen(hub.port, hub.token(), f"Last-Event-ID: {head}")
    hub.emit(data="live")
    stream.read_event("live")
    stream.close()

    assert [event.event for event in stream.events] == ["message"]


def test_a13_client_over_the_limit_is_told_to_reconnect_later(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--max-connections", "5")
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(5)]
    refused = httpx.get(f"{hub.url}/events/", params={"token": token, "end": "clean"})
    hub.emit(data="still")

    assert refused.status_code == 200
    assert refused.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = re.fullmatch(r"event: stream-busy\ndata: {}\nretry: (\d+)\nid: \S+\n\n", refused.text)
    assert found and 2_000 <= int(found[1]) <= 7_100
    for stream in streams:
        stream.read_event("still")
        stream.close()


@pytest.mark.parametrize("cursor", ["%FF", "%ED%A0%80", "%00", "%0D", "9" * 30_000])
def test_odd_cursor_in_the_query_is_answered_with_a_reset(hub: RunningHub, cursor: str) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}&lastEventId={cursor}"))

    stream.read_until(b"stream-reset")

    assert stream.bytes.startswith(b"HTTP/1.1 200")
    stream.close()


def test_query_with_too_many_fields_is_refused(hub: RunningHub) -> None:
    headers = {"Authorization": f"Bearer {hub.token()}"}
    answer = httpx.get(f"{hub.url}/events/?{'a=1&' * 101}", headers=headers)

    assert (answer.status_code, answer.text) == (
        400,
        "the query has more than 65536 bytes, 1000 channels, 100 other fields, or 2000 percent-escapes in those\n",
    )


@pytest.mark.parametrize(
    ("query", "headers"),
    [("&dialect=datastar", ()), ("", ("Datastar-Request: true",))],
    ids=["asked-for", "recognised"],
)
def test_page_of_datastar_is_sent_a_reset_as_a_patch_of_its_signals(
    hub: RunningHub, query: str, headers: tuple[str, ...]
) -> None:
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}&lastEventId=unknown{query}", *headers))
    stream.read_until(b"stream-reset")
    stream.read_until(b"\nid: ")
    hub.emit(data="1")
    stream.read_until(b"data: 1\n")
    stream.read_until(b"\n\n\r\n")
    stream.close()

    patch, reset, event = stream.events
    assert (patch.event, patch.data) == ("datastar-patch-signals", 'signals {"stream":{"reset":"unknown-id"}}')
    assert (reset.event, reset.data, event.data) == ("stream-reset", '{"reason":"unknown-id"}', "1")


def test_unknown_dialect_is_refused(hub: RunningHub) -> None:
    refused = httpx.get(f"{hub.url}/events/", params={"token": hub.token(), "dialect": "htmx"})

    assert refused.status_code == 400
    assert refused.text == "unknown dialect 'htmx': use datastar, or leave it out\n"
