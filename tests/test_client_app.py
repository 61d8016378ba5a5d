"""The client app, called as an ASGI app: tokens, what the access log shows, and CORS."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import httpx
import pytest
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

import token_samples
from conftest import SECRET
from ssehub import Claims, Hub, Tokens, create_client_app
from ssehub.errors import ConfigError

pytestmark = pytest.mark.anyio

TOKENS = Tokens(SECRET)
FAR = 9_999_999_999


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    logged_query: bytes
    """The query as an access log would show it."""


async def head(app: ASGIApp, query: bytes = b"", **headers: bytes) -> Answer:
    """Return the answer to a HEAD, which opens no stream."""
    scope = {"type": "http", "method": "HEAD", "path": "/events/", "query_string": query}
    scope["headers"] = [(name.encode(), value) for name, value in headers.items()]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append({**message, "logged_query": scope["query_string"]})

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await app(scope, receive, send)
    body = b"".join(message["body"] for message in sent[1:])
    return Answer(sent[0]["status"], dict(sent[0]["headers"]), body, sent[0]["logged_query"])


async def by_cookie(connection: HTTPConnection) -> Claims | None:
    return None


@pytest.mark.parametrize("given", [{}, {"tokens": TOKENS, "authenticate": by_cookie}], ids=["neither", "both"])
async def test_client_app_needs_either_tokens_or_authenticate(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="either tokens or authenticate"):
        create_client_app(Hub(), **given)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("token=TOKEN&a=1", 200),
        ("%74oken=TOKEN", 200),
        ("a=1&to%6ben=TOKEN&token=TOKEN", 200),
        ("token=TOKEN&a=%FF", 200),
    ],
)
async def test_c17_query_in_the_access_log_contains_no_token(query: str, status: int) -> None:
    token = TOKENS.issue("alex", ["chat"], expires_at=FAR)
    answer = await head(create_client_app(Hub(), tokens=TOKENS), query.replace("TOKEN", token).encode())

    assert answer.status == status
    assert token.encode() not in answer.logged_query and b"token=..." in answer.logged_query


@pytest.mark.parametrize("name", token_samples.BROKEN)
async def test_every_broken_token_is_the_same_401_over_http(name: str) -> None:
    token = token_samples.BROKEN[name].encode(errors="surrogatepass")
    app = create_client_app(Hub(), tokens=token_samples.tokens)

    in_header = await head(app, authorization=b"Bearer " + token)
    in_query = await head(app, b"token=" + quote_from_bytes(token).encode())

    for answer in (in_header, in_query):
        assert (answer.status, answer.body) == (401, b"a valid token is needed\n")
        assert answer.headers[b"www-authenticate"] == b"Bearer"


async def test_cors_is_off_by_default() -> None:
    app = create_client_app(Hub(), tokens=TOKENS, drains_on_exit=False)
    origin = {"origin": "https://app.example", "access-control-request-method": "GET"}
    token = {"token": TOKENS.issue("alex", ["chat"], expires_at=FAR)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub") as http:
        answers = [
            await http.options("/events/", headers=origin),
            await http.head("/events/", headers=origin, params=token),
            await http.get("/events/", headers=origin),
        ]

    assert [answer.status_code for answer in answers] == [204, 200, 401]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)
