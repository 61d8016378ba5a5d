"""The list of origins whose pages may listen: entries that never match, and those that let every page in."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from conftest import SECRET
from ssehub import Claims, Hub, Tokens, create_client_app
from ssehub.errors import ConfigError

TOKENS = Tokens(SECRET)


async def log_in(connection: HTTPConnection) -> Claims:
    return Claims("alex", ("chat",))


@pytest.mark.parametrize(
    "origins",
    [
        [],
        ["*"],
        ["null"],
        ["https://app.example"],
        ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:5173"],
        ["https://app.example:8443", "http://xn--bcher-kva.example", "https://app.example:65535"],
        ["http://app.example:443", "chrome-extension://abcdefghijklmnop", "capacitor://localhost"],
    ],
)
def test_origin_that_browsers_send_is_accepted(origins: list[str]) -> None:
    create_client_app(Hub(), tokens=TOKENS, cors_origins=origins)


NEVER = "no browser sends this as its origin"
BAD_ORIGINS: dict[str, tuple[list[Any], str, str]] = {
    "path": (["https://app.example/"], NEVER, "without a path"),
    "longer path": (["https://app.example/chat"], NEVER, "without a path"),
    "no scheme": (["app.example"], NEVER, "with its scheme"),
    "port without scheme": (["localhost:3000"], NEVER, "with its scheme"),
    "pattern": (["https://*.example.org"], NEVER, "there are no patterns"),
    "second of two": (["https://good.example", "https://bad.example/"], NEVER, "'https://bad.example/'"),
    "capitals": (["https://App.example"], NEVER, "in small letters"),
    "not ASCII": (["https://bücher.example"], NEVER, "xn--"),
    "default port": (["https://app.example:443"], NEVER, "without the default port"),
    "default port of http": (["http://app.example:80"], NEVER, "without the default port"),
    "port out of range": (["https://app.example:65536"], NEVER, "one such as"),
    "port with a zero": (["https://app.example:08443"], NEVER, "one such as"),
    "path behind a port": (["http://localhost:3000/"], NEVER, "without a path"),
    "query": (["https://app.example?a=1"], NEVER, "without a path"),
    "pattern as a host": (["http://*"], NEVER, "there are no patterns"),
    "pattern as a port": (["http://localhost:*"], NEVER, "there are no patterns"),
    "long IPv6": (["http://[0:0:0:0:0:0:0:1]:3000"], NEVER, "one such as"),
    "not IPv6": (["http://[::1::2]"], NEVER, "one such as"),
    "IPv6 without brackets": (["http://::1"], NEVER, "one such as"),
    "WebSocket": (["wss://app.example"], NEVER, "with the scheme of the page"),
    "user": (["https://user@app.example"], NEVER, "one such as https://app.example"),
    "space": (["https://app.example https://b.example"], NEVER, "without a path"),
    "empty": ([""], NEVER, "with its scheme"),
    "file": (["file://"], NEVER, "null for local files"),
    "file on a host": (["file://server"], NEVER, "null for local files"),
    "number": ([5], NEVER, "one such as"),
    "star and others": (["*", "https://app.example"], "* allows every origin", "remove"),
}


@pytest.mark.parametrize("kind", BAD_ORIGINS)
def test_origin_that_never_matches_is_refused_by_name(kind: str) -> None:
    origins, problem, hint = BAD_ORIGINS[kind]

    with pytest.raises(ConfigError) as caught:
        create_client_app(Hub(), tokens=TOKENS, cors_origins=origins)

    text = str(caught.value)
    assert text.startswith("cors_origins") and problem in text and hint in text
    assert "star" in kind or repr(origins[-1]) in text
    assert "\n" not in text


def test_string_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a list of origins"):
        create_client_app(Hub(), tokens=TOKENS, cors_origins="https://app.example")


def test_null_is_refused_where_cookies_count() -> None:
    """Sandboxed frames of every page have the origin `null`, and browsers send cookies with their requests."""
    with pytest.raises(ConfigError, match=r"cors_origins 'null': every page can send it"):
        create_client_app(Hub(), tokens=TOKENS, token_cookie="sse", cors_origins=["null"])
    with pytest.raises(ConfigError, match=r"cors_origins 'null': every page can send it"):
        create_client_app(Hub(), authenticate=log_in, cors_origins=["https://app.example", "null"])
