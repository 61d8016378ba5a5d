"""Refused tokens: always the same answer, a count and a line for each reason, and nothing of the token anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from conftest import SECRET, RunningHub, wait_until
from identity_provider import IdentityProvider
from ssehub import Claims, Hub, Tokens, create_client_app
from ssehub.errors import KeysUnavailable, TokenReason

pytestmark = pytest.mark.anyio

PROVIDER, STRANGER = IdentityProvider(), IdentityProvider()
REFUSED = "a valid token is required\n"
NOW = int(time.time())
MARKED = "grapefruit"
TOKENS_BY_REASON: dict[str, str] = {
    "missing": "",
    "malformed": "x.y.z",
    "algorithm": PROVIDER.sign({}, {"alg": "none"}),
    "unknown-key": PROVIDER.sign({}, {"kid": MARKED}),
    "signature": STRANGER.access_token(),
    "type": PROVIDER.logout_token(),
    "expired": PROVIDER.access_token(iat=NOW - 60, exp=NOW - 30, jti=MARKED),
    "not-yet-valid": PROVIDER.access_token(nbf=NOW + 3_600),
    "lifetime": PROVIDER.access_token(exp=NOW + 90_000),
    "issuer": PROVIDER.access_token(iss=MARKED),
    "audience": PROVIDER.access_token(aud=MARKED),
    "claims": PROVIDER.access_token(sub=f"{MARKED}\n"),
    "revoked": PROVIDER.access_token(jti=f"{MARKED}-revoked"),
}


@asynccontextmanager
async def client(hub: Hub | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    given = settings or {"tokens": PROVIDER.tokens(max_token_seconds=86_400), "token_cookie": "sse"}
    hub = hub or Hub()
    transport = httpx.ASGITransport(create_client_app(hub, **given), client=("203.0.113.9", 4711))
    async with hub, httpx.AsyncClient(transport=transport, base_url="https://hub.example") as http:
        yield http


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


@pytest.mark.parametrize(("method", "path"), [("GET", "/events/"), ("HEAD", "/events/"), ("POST", "/events/login")])
@pytest.mark.parametrize("reason", list(TokenReason))
async def test_b27_refused_token_is_counted_and_logged_by_its_reason_and_the_answer_is_always_the_same(
    reason: str, method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub, token = Hub(), TOKENS_BY_REASON[reason]
    caplog.set_level(logging.DEBUG)
    async with client(hub) as http:
        await hub.revoke(jti=f"{MARKED}-revoked")
        caplog.clear()
        answer = await http.request(method, path, headers=bearer(token))
        counted = {name: count for name, count in hub.statistics.refused_tokens.items() if count}
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("ssehub")]

    assert answer.status_code == 401
    assert answer.text == ("" if method == "HEAD" else REFUSED)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert counted == {reason: 1}
    verified = "user 'alex', channels 'user.alex', " if reason == "revoked" else ""
    agent = f"python-httpx/{httpx.__version__}"
    assert lines == [f"token refused, {reason}: {method} {path}, {verified}from 203.0.113.9, {agent!r}"]
    assert MARKED not in caplog.text
    assert not any(part in caplog.text for part in token.split(".") if len(part) > 1)


async def test_b27_flood_of_refused_tokens_hides_no_other_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ssehub.client")
    async with client() as http:
        for _ in range(400):
            await http.get("/events/", headers=bearer(TOKENS_BY_REASON["malformed"]))
        await http.get("/events/", headers=bearer(TOKENS_BY_REASON["expired"]))
    lines = [record.getMessage() for record in caplog.records if record.name == "ssehub.client"]

    assert len([line for line in lines if "malformed" in line]) < 300
    assert (
        len([line for line in lines if line.startswith("token refused, expired: GET /events/, from 203.0.113.9")]) == 1
    )


async def test_address_in_the_log_is_that_of_the_client_behind_a_trusted_proxy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ssehub.client")
    async with client(tokens=PROVIDER.tokens(), trusted_proxies=["203.0.113.0/24"]) as http:
        await http.get("/events/", headers={"X-Forwarded-For": "198.51.100.7"})

    assert "token refused, missing: GET /events/, from 198.51.100.7" in caplog.text


async def test_stream_is_told_to_come_back_while_its_login_is_unavailable() -> None:
    """A 401 would stop an EventSource for good."""

    async def authenticate(connection: HTTPConnection) -> Claims:
        raise KeysUnavailable("not yet")

    hub = Hub()
    async with client(hub, authenticate=authenticate) as http:
        answer = await http.get("/events/?end=clean")

    assert answer.status_code == 200
    assert answer.text.startswith("event: stream-busy\n") and "retry: " in answer.text
    assert hub.statistics.refused["keys"] == 1
    assert sum(hub.statistics.refused_tokens.values()) == 0


def test_metrics_and_the_log_show_refused_tokens(hub: RunningHub) -> None:
    forged = Tokens("another secret of more than 32 bytes").issue("alex", ["chat"], expires_at=NOW + 60)
    statuses = [httpx.get(f"{hub.url}/events/", params={"token": token}).status_code for token in (forged, forged, "x")]

    assert statuses == [401] * 3
    assert hub.metric('ssehub_tokens_refused_total{reason="signature"}') == 2
    assert hub.metric('ssehub_tokens_refused_total{reason="malformed"}') == 1
    assert hub.metric('ssehub_tokens_refused_total{reason="revoked"}') == 0
    assert hub.metric('ssehub_logouts_total{result="done"}') == 0
    wait_until(lambda: "token refused, signature: GET /events/, from 127.0.0.1" in hub.log)
    assert not any(part in hub.log for part in forged.split("."))
    assert SECRET not in hub.log
