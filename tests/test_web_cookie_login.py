"""Login by cookie: what sets it, with which attributes, for which pages, and that the stream then opens with it."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Scope

from conftest import SECRET, RunningHub
from identity_provider import IdentityProvider
from ssehub import Hub, Tokens, create_client_app
from ssehub.errors import ConfigError
from ssehub.web.masking import masked
from streams import RawStream

REFUSED = "a valid token is required\n"
TOKENS = Tokens(SECRET)
FAR = 4_000_000_000


def token(expires_in: float = 3_600, channels: int = 1) -> str:
    return TOKENS.issue("alex", [f"chat-{number}" for number in range(channels)], expires_at=time.time() + expires_in)


@asynccontextmanager
async def client(
    hub: Hub | None = None,
    root: str = "",
    base_url: str = "https://hub.example",
    tokens: Tokens = TOKENS,
    token_cookie: str | None = "sse",
    **settings: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a client app that is mounted at `root`."""
    hub = hub or Hub()
    app = create_client_app(hub, tokens=tokens, token_cookie=token_cookie, **settings)
    transport = httpx.ASGITransport(Starlette(routes=[Mount(root, app)]) if root else app)
    async with hub, httpx.AsyncClient(transport=transport, base_url=base_url) as http:
        yield http


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def attributes(response: httpx.Response) -> list[str]:
    """Return the attributes of the one cookie that `response` sets, without its name and value."""
    (cookie,) = response.headers.get_list("set-cookie")
    return cookie.split("; ")[1:]


@pytest.mark.parametrize("path", ["/events/login", "/events/login/"])
def test_stream_opens_with_the_cookie_of_a_login_until_the_logout(hub: RunningHub, path: str) -> None:
    with httpx.Client(base_url=hub.url) as http:
        login = http.post(path, headers=bearer(hub.token()))
        assert (login.status_code, login.content) == (204, b"")
        assert login.headers["cache-control"] == "no-store"
        assert "sse" in http.cookies

        with connect_sse(http, "GET", "/events/") as source:
            assert source.response.status_code == 200
            hub.emit(data="hi", event="note")
            assert [sse.event for _, sse in zip(range(2), source.iter_sse(), strict=False)] == ["stream-hello", "note"]

        assert http.delete(path).status_code == 204
        assert "sse" not in http.cookies
        assert http.get("/events/").status_code == 401


@pytest.mark.anyio
async def test_cookie_has_the_attributes_that_browsers_need() -> None:
    async with client() as http:
        given = token(3_600)
        login = await http.post("/events/login", headers=bearer(given))
        logout = await http.delete("/events/login")

    assert login.headers["set-cookie"].startswith(f"sse={given}; ")
    path, age, *rest = attributes(login)
    assert path == "Path=/events"
    assert 3_590 < int(age.removeprefix("Max-Age=")) <= 3_600
    assert rest == ["HttpOnly", "Secure", "SameSite=Lax"]
    assert logout.headers["set-cookie"] == "sse=; Path=/events; Max-Age=0; HttpOnly; Secure; SameSite=Lax"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("root", "setting", "path", "expected"),
    [
        ("", None, "/events/login", "/events"),
        ("", None, "/events/login/", "/events"),
        ("/sse", None, "/sse/events/login", "/sse/events"),
        ("/a%3Bb%20c", None, "/a%3Bb%20c/events/login", "/a%3Bb%20c/events"),
        ("", "/api/sse/", "/events/login", "/api/sse/"),
        ("/sse", "/", "/sse/events/login", "/"),
    ],
)
async def test_path_of_the_cookie_covers_the_streams(root: str, setting: str | None, path: str, expected: str) -> None:
    async with client(root=root.replace("%3B", ";").replace("%20", " "), token_cookie_path=setting) as http:
        login = await http.post(path, headers=bearer(token()))
        logout = await http.delete(path)

    assert attributes(login)[0] == attributes(logout)[0] == f"Path={expected}"


@pytest.mark.anyio
async def test_age_of_the_cookie_follows_the_token() -> None:
    unlimited = Tokens(SECRET, require_exp=False)
    provider = IdentityProvider()
    async with client(tokens=unlimited) as http:
        soon = await http.post("/events/login", headers=bearer(token(2)))
        late = await http.post("/events/login", headers=bearer(TOKENS.issue("alex", ["a"], expires_at=FAR)))
    async with client(tokens=provider.tokens(require_exp=False)) as http:
        never = await http.post("/events/login", headers=bearer(provider.access_token(exp=...)))
        within_leeway = await http.post("/events/login", headers=bearer(provider.access_token(exp=time.time() - 2)))

    assert attributes(soon)[1] in ("Max-Age=1", "Max-Age=2")
    assert attributes(late)[1] == f"Max-Age={400 * 86_400}"  # browsers keep no cookie for longer
    assert attributes(never)[1] == "HttpOnly"
    assert attributes(within_leeway)[1] in ("Max-Age=1", "Max-Age=2")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("base_url", "headers", "setting", "is_secure"),
    [
        ("https://hub.example", {}, True, True),
        ("http://hub.example", {}, True, True),
        ("http://127.0.0.1:8000", {}, True, False),
        ("http://localhost:8000", {"Origin": "http://localhost:8000"}, True, False),
        ("http://localhost:8000", {"Origin": "http://127.0.0.1:3000"}, True, False),
        ("http://[::1]:8000", {}, True, False),
        ("http://chat.localhost:8000", {}, True, False),
        ("http://localhost.example:8000", {}, True, True),
        ("https://localhost:8000", {}, True, True),
        # A proxy that ends TLS, and calls the hub by its address.
        ("http://127.0.0.1:8000", {"Origin": "https://app.example"}, True, True),
        ("http://127.0.0.1:8000", {"Origin": "http://app.example"}, True, True),
        ("https://hub.example", {}, False, False),
        ("http://hub.example", {}, False, False),
    ],
)
async def test_cookie_is_secure_except_on_this_machine(
    base_url: str, headers: dict[str, str], setting: bool, is_secure: bool
) -> None:
    origins = ["https://app.example", "http://app.example", "http://127.0.0.1:3000"]
    async with client(base_url=base_url, token_cookie_secure=setting, cors_origins=origins) as http:
        login = await http.post("/events/login", headers={**bearer(token()), **headers})
        logout = await http.delete("/events/login", headers=headers)

    assert login.status_code == logout.status_code == 204
    assert ("Secure" in attributes(login), "Secure" in attributes(logout)) == (is_secure, is_secure)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["__Secure-sse", "__host-sse", "__Host-sse", "__Host-Http-sse", "__Http-sse"])
async def test_cookie_with_a_prefix_has_the_attributes_that_the_prefix_demands(name: str) -> None:
    async with client(base_url="http://127.0.0.1:8000", token_cookie=name) as http:
        login = await http.post("/events/login", headers=bearer(token()))

    path = "/" if name.lower().startswith("__host-") else "/events"
    assert attributes(login)[0] == f"Path={path}"
    assert attributes(login)[2:] == ["HttpOnly", "Secure", "SameSite=Lax"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_cookie": "a b"}, "token_cookie 'a b': the name of a cookie has 1 to 96 letters"),
        ({"token_cookie": "a;b"}, "the name of a cookie"),
        ({"token_cookie": "a=b"}, "the name of a cookie"),
        ({"token_cookie": "ä"}, "the name of a cookie"),
        ({"token_cookie": "a\n"}, "the name of a cookie"),
        ({"token_cookie": ""}, "the name of a cookie"),
        ({"token_cookie": "a" * 97}, "the name of a cookie"),
        ({"token_cookie_path": "events"}, "token_cookie_path 'events': must begin with /"),
        ({"token_cookie_path": ""}, "must begin with /"),
        ({"token_cookie_path": "/a; Domain=example.org"}, "must begin with / and have no spaces, semicolons"),
        ({"token_cookie_path": "/a\n"}, "must begin with /"),
        ({"token_cookie_path": "/ü"}, "must begin with /"),
        ({"token_cookie": None, "token_cookie_path": "/a"}, "set token_cookie, too"),
        ({"token_cookie": "__Secure-a", "token_cookie_secure": False}, "must be secure"),
        ({"token_cookie": "__Host-a", "token_cookie_secure": False}, "must be secure"),
        ({"token_cookie": "__HTTP-a", "token_cookie_secure": False}, "must be secure"),
        ({"token_cookie": "__Host-a", "token_cookie_path": "/events"}, "set token_cookie_path to /"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_cookie_that_browsers_would_drop_is_refused_at_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        create_client_app(Hub(), tokens=TOKENS, **{"token_cookie": "sse", **settings})


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": f"Bearer {Tokens('another secret of more than 32 bytes').issue('a', ['b'], expires_at=FAR)}"},
        {"Cookie": "sse=GOOD"},
    ],
    ids=["none", "basic", "empty", "broken", "forged", "only-a-cookie"],
)
async def test_b28_login_without_a_good_token_in_the_header_is_the_same_401(headers: dict[str, str]) -> None:
    headers = {name: value.replace("GOOD", token()) for name, value in headers.items()}
    async with client() as http:
        response = await http.post("/events/login", params={"token": token()}, headers=headers)

    assert (response.status_code, response.text) == (401, REFUSED)
    assert response.headers["www-authenticate"] == "Bearer"
    assert "set-cookie" not in response.headers


@pytest.mark.anyio
async def test_token_that_is_too_long_for_a_cookie_is_413() -> None:
    tokens = [token(channels=number) for number in range(1, 100, 3)]
    shorter = max((one for one in tokens if len(one) <= 4_000), key=len, default="")
    longer = "x" * 4_001
    async with client() as http:
        good = await http.post("/events/login", headers=bearer(shorter))
        bad = await http.post("/events/login", headers=bearer(longer))

    assert good.status_code == 204
    assert (bad.status_code, "set-cookie" in bad.headers) == (413, False)
    assert "more than 4000 bytes" in bad.text and "header" in bad.text


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 204, id="no-origin"),
        pytest.param({"Sec-Fetch-Site": "same-origin"}, 204, id="same-origin"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, id="cross-site"),
        pytest.param({"Origin": "https://app.example"}, 204, id="listed"),
        pytest.param({"Origin": "https://app.example", "Sec-Fetch-Site": "same-site"}, 204, id="listed-same-site"),
        pytest.param({"Origin": "OWN", "Sec-Fetch-Site": "same-origin"}, 204, id="own"),
        pytest.param({"Origin": "https://hub.example", "Sec-Fetch-Site": "same-origin"}, 204, id="own-behind-a-proxy"),
        pytest.param({"Origin": "https://evil.example"}, 403, id="evil"),
        pytest.param({"Origin": "null"}, 403, id="null"),
        pytest.param({"Origin": "http://["}, 403, id="broken"),
    ],
)
async def test_b28_only_own_and_listed_pages_may_log_in_and_out(
    method: str, headers: dict[str, str], status: int
) -> None:
    async with client(cors_origins=["https://app.example"]) as http:
        response = await http.request(method, "/events/login", headers={**bearer(token()), **headers})

    assert response.status_code == status
    assert ("set-cookie" in response.headers) is (status == 204)
    if headers.get("Origin") == "https://app.example":
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert response.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize("path", ["/events/login", "/events/login/"])
def test_preflight_allows_logins_of_listed_pages_and_nowhere_else(hub: RunningHub, path: str) -> None:
    def ask(path: str, origin: str, method: str) -> httpx.Response:
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
        return httpx.options(hub.url + path, headers={"Origin": origin, **asked})

    for method in ("POST", "DELETE", "GET"):
        allowed = ask(path, "https://app.example", method)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert allowed.headers["access-control-allow-credentials"] == "true"
        assert allowed.headers["access-control-allow-headers"] == "authorization"
        assert method in allowed.headers["access-control-allow-methods"]
        assert "access-control-allow-origin" not in ask(path, "https://evil.example", method).headers
    assert ask("/events/", "https://app.example", "POST").status_code == 400
    assert ask(path, "https://app.example", "PUT").status_code == 400
    refused = httpx.post(hub.url + path, headers={"Origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")


def test_other_methods_are_405_and_get_is_still_a_stream(hub: RunningHub) -> None:
    put = httpx.put(f"{hub.url}/events/login", headers=bearer(hub.token()))
    options = httpx.options(f"{hub.url}/events/login")
    head = httpx.head(f"{hub.url}/events/login", headers=bearer(hub.token()))
    with httpx.stream("GET", f"{hub.url}/events/login", headers=bearer(hub.token())) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
    below = httpx.post(f"{hub.url}/events/login/x", headers=bearer(hub.token()))

    assert (put.status_code, put.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST, DELETE")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST, DELETE")
    assert head.status_code == 200
    assert (below.status_code, below.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_access_log_shows_the_path_of_a_login_and_nothing_below_it() -> None:
    for path, shown in (
        ("/events/login", None),
        ("/events/login/", None),
        ("/events/backchannel-logout", None),
        ("/events/login/x", "/events/..."),
        ("/events/loginx", "/events/..."),
        ("/sse/events/login", None),
    ):
        root = "/sse" if path.startswith("/sse") else ""
        scope: Scope = {"type": "http", "path": path, "root_path": root, "query_string": b"token=x"}
        masked(scope)

        assert (scope["path"], scope["query_string"]) == (shown or path, b"token=...")


@pytest.mark.anyio
async def test_without_a_cookie_there_is_no_login() -> None:
    async with client(token_cookie=None) as http:
        for method in ("POST", "DELETE"):
            response = await http.request(method, "/events/login", headers=bearer(token()))
            assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.anyio
async def test_revoked_token_does_not_log_in() -> None:
    provider, hub = IdentityProvider(), Hub()
    async with client(hub, tokens=provider.tokens()) as http:
        await hub.revoke(jti="stolen")
        refused = await http.post("/events/login", headers=bearer(provider.access_token(jti="stolen")))
        other = await http.post("/events/login", headers=bearer(provider.access_token()))

    assert (refused.status_code, refused.text, other.status_code) == (401, REFUSED, 204)
    assert hub.statistics.refused_tokens["revoked"] == 1


@pytest.mark.anyio
async def test_login_that_cannot_be_checked_yet_is_503(caplog: pytest.LogCaptureFixture) -> None:
    provider = IdentityProvider()
    tokens = Tokens(
        jwks="https://id.example/jwks",
        issuer="https://id.example",
        audience="client-of-the-hub",
        grant_templates=["user.{sub}"],
    )
    given = provider.access_token()
    async with client(tokens=tokens) as http:
        early = await http.post("/events/login", headers=bearer(given))
    hub = Hub()
    async with client(hub) as http:
        await hub.aclose()
        late = await http.post("/events/login", headers=bearer(token()))

    for response in (early, late):
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "set-cookie" not in response.headers
    assert given not in caplog.text


def test_request_with_a_body_is_answered_and_the_connection_goes_on(hub: RunningHub) -> None:
    request = (
        f"POST /events/login HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\nAuthorization: Bearer {hub.token()}\r\n"
        "Content-Length: 5\r\n\r\nhello"
    )
    stream = RawStream(hub.port, request * 2)

    answers = stream.read_until(b"\r\n\r\nHTTP/1.1 204")
    stream.close()

    assert answers.count(b"HTTP/1.1 204") == 2
