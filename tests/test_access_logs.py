"""The access logs of other servers: no token gets into them, whichever parameter or path it stands in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import CONTROL_KEY, SECRET, connects, wait_until
from servers import HYPERCORN, SERVERS, UVICORN, ServedHub, Server
from ssehub import Tokens
from ssehub.web.masking import mask_query, masked
from streams import RawStream, get

TOKEN = Tokens(SECRET).issue("alex", ["chat"], expires_at=time.time() + 3_600)
KEY = CONTROL_KEY.replace(" ", "%20")
REFUSED = "eyJhbGciOiJIUzI1NiJ9.eyJwYXJzbmlwIjoxfQ.cGFyc25pcHBhcnNuaXA"
TARGETS = [
    f"/events/?token={TOKEN}",
    f"/events/?a=1&token={TOKEN}&b=2",
    f"/events?token={TOKEN}",
    f"/events/?%74oken={TOKEN}",
    f"/events/{TOKEN}?token={TOKEN}",
    f"/events/?token={REFUSED}",
    f"/events/?access_token={REFUSED}",
    f"/events/?TOKEN={REFUSED}",
    f"/events/?{REFUSED}",
    f"/events/?{REFUSED}=",
    f"/events/?a;token={REFUSED}",
    f"/events/{REFUSED}",
    f"/events/{REFUSED}/?x=y",
    f"/event/?token={REFUSED}",
    f"/{REFUSED}",
]
_WITH_ACCESS_LOG = tuple(part for part in UVICORN.command if part != "--no-access-log")
LOGGING_SERVERS = {
    "uvicorn": replace(UVICORN, command=_WITH_ACCESS_LOG),
    "uvicorn-h11": replace(UVICORN, command=(*_WITH_ACCESS_LOG, "--http", "h11")),
    "uvicorn-fast": replace(UVICORN, command=(*_WITH_ACCESS_LOG, "--http", "ssehub.server:HttpProtocol")),
    "granian": replace(SERVERS["granian"], command=(*SERVERS["granian"].command, "--access-log")),
    "hypercorn": replace(HYPERCORN, command=(*HYPERCORN.command, "--access-logfile", "-")),
}


@contextmanager
def served(server: Server, app: str, **env: Any) -> Iterator[ServedHub]:
    hub = ServedHub(server, app, **env)
    try:
        wait_until(lambda: connects(hub.port) or hub.process.poll() is not None, 20)
        yield hub
    finally:
        hub.stop()


def request(port: int, target: str, *headers: str, method: str = "GET") -> str:
    """Send a request; return the status line of the response."""
    stream = RawStream(port, get(target, *headers).replace("GET", method, 1))
    head = stream.read_until(b"\r\n\r\n").decode("latin-1")
    stream.close()
    return head.partition("\r\n")[0]


@pytest.mark.parametrize("name", LOGGING_SERVERS)
def test_c17_no_token_is_in_the_access_log_of_another_server(name: str) -> None:
    origin = "https://app.example"
    preflight = (f"Origin: {origin}", "Access-Control-Request-Method: GET")
    with served(LOGGING_SERVERS[name], "ssehub.asgi:client_app", SSEHUB_CORS_ORIGINS=origin) as hub:
        statuses = [request(hub.port, target) for target in TARGETS]
        request(hub.port, f"/events/?token={REFUSED}", *preflight, method="OPTIONS")
        request(hub.port, f"/events/?token={REFUSED}", method="POST")
        wait_until(lambda: hub.log.count("/events") >= len(TARGETS) - 2)
        wait_until(lambda: "OPTIONS /events" in hub.log and "POST /events" in hub.log)
        log = hub.log

    assert [status.split(" ")[1] for status in statuses] == ["200"] * 5 + ["401"] * 8 + ["404"] * 2
    for token in (TOKEN, REFUSED):
        for part in token.split(".")[1:]:
            assert part not in log
    assert "/events/..." in log
    assert not name.startswith("uvicorn") or "/events/?token=..." in log  # the others log no query by default


WEBSOCKET = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.mark.parametrize("name", LOGGING_SERVERS)
@pytest.mark.parametrize(
    ("app", "paths"), [("client_app", ("/events/{}", "/events/?token={}")), ("control_app", ("/emit/?key={}",))]
)
def test_c17_no_token_of_a_refused_websocket_is_in_the_access_log_of_another_server(
    name: str, app: str, paths: tuple[str, ...]
) -> None:
    server = LOGGING_SERVERS[name]
    if name.startswith("uvicorn"):
        server = replace(server, command=(*server.command, "--ws", "wsproto"))
    if name == "granian":
        paths = paths[-1:]  # it logs the path of a WebSocket as it received it, whatever the app does
    with served(server, f"ssehub.asgi:{app}") as hub:
        statuses = [request(hub.port, path.format(TOKEN), *WEBSOCKET) for path in paths]
        request(hub.port, "/nothing")
        wait_until(lambda: "/nothing" in hub.log)
        log = hub.log

    assert {status.split(" ")[1] for status in statuses} == {"403"}
    for part in TOKEN.split(".")[1:]:
        assert part not in log


def test_c17_no_control_key_is_in_the_access_log_of_another_server() -> None:
    with served(LOGGING_SERVERS["uvicorn"], "ssehub.asgi:control_app", SSEHUB_CONTROL_KEY=CONTROL_KEY) as hub:
        answer = httpx.post(f"{hub.url}/emit/?key={KEY}")
        authorized = {"Authorization": f"Bearer {CONTROL_KEY}"}
        refused = httpx.post(f"{hub.url}/explain/?token={TOKEN}", headers=authorized)
        wait_until(lambda: "POST /explain" in hub.log)
        log = hub.log

    assert (answer.status_code, refused.status_code) == (401, 400)
    assert "/emit/?key=..." in log and "/explain/?token=..." in log
    assert KEY not in log and CONTROL_KEY not in log and TOKEN not in log


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"", b""),
        (b"token=x", b"token=..."),
        (b"token", b"..."),
        (b"a=&b=1&&c", b"a=...&b=...&&..."),
        (b"x" * 33 + b"=1", b"..."),
        (b"a=1&" * 30, b"&".join([b"a=..."] * 20)),
    ],
)
def test_query_is_shown_without_its_values(query: bytes, shown: bytes) -> None:
    assert mask_query(query) == shown


PIECES = [b"token=", b"Access_Token=", b"&", b";", b"%74oken=", b"=", b"a", b"\n", b"\xff", REFUSED.encode()]


@pytest.mark.soak
@settings(max_examples=20_000 if "SOAK" in os.environ else 100, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=10).map(b"".join))
@example(b";" + REFUSED.encode() + b"=")
def test_no_query_shows_a_token(query: bytes) -> None:
    assert REFUSED.encode() not in mask_query(query)


@pytest.mark.parametrize(
    ("root", "path", "shown"),
    [
        ("", "/events", "/events"),
        ("", "/events/", "/events/"),
        ("", "/events/a/b", "/events/..."),
        ("/sse", "/sse/events/a", "/sse/events/..."),
        ("/events", "/events/events/a", "/events/events/..."),
        ("", "/" + "x" * 31, "/" + "x" * 31),
        ("", "/" + "x" * 40, "/" + "x" * 31 + "..."),
    ],
)
def test_path_is_shown_without_what_may_be_a_token(root: str, path: str, shown: str) -> None:
    scope = {"type": "http", "path": path, "root_path": root, "query_string": b"", "raw_path": path.encode()}

    seen_by_app = masked(scope)

    assert (scope["path"], scope["raw_path"]) == (shown, shown.encode())
    assert (seen_by_app["path"], seen_by_app["raw_path"]) == (path, path.encode())
