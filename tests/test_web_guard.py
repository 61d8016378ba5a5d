"""The guard of the control app: which requests it lets through, and which it refuses."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from conftest import CONTROL_KEY, SECRET
from control_requests import FORM, control_app, form
from ssehub import Hub, Tokens, create_control_app
from ssehub.errors import ConfigError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 200, id="plain"),
        pytest.param({"host": "localhost:8001"}, 200, id="localhost"),
        pytest.param({"host": "LOCALHOST"}, 200, id="capitals"),
        pytest.param({"host": "[::1]:8001"}, 200, id="ipv6"),
        pytest.param({"host": "hub.internal:8001"}, 200, id="own-name"),
        pytest.param({"host": "evil.example"}, 403, id="C14-rebinding"),
        pytest.param({"host": "evil.example:8001"}, 403, id="rebinding-port"),
        pytest.param({"host": "127.0.0.1.evil.example"}, 403, id="suffix"),
        pytest.param({"host": ""}, 403, id="no-host"),
        pytest.param({"origin": "http://127.0.0.1:8001"}, 200, id="same-origin"),
        pytest.param({"origin": "http://evil.example"}, 403, id="C14-origin"),
        pytest.param({"origin": "null"}, 403, id="origin-null"),
        pytest.param({"origin": "http://["}, 403, id="origin-broken"),
        pytest.param({"origin": "http://127.0.0.1:9999"}, 403, id="other-port"),
        pytest.param({"sec-fetch-site": "none"}, 200, id="typed"),
        pytest.param({"sec-fetch-site": "same-origin"}, 200, id="fetch-same-origin"),
        pytest.param({"sec-fetch-site": "cross-site"}, 403, id="fetch-cross-site"),
        pytest.param({"sec-fetch-site": "same-site"}, 403, id="fetch-same-site"),
    ],
)
async def test_web_pages_and_foreign_hosts_are_refused(headers: dict[str, str], status: int) -> None:
    async with control_app(allowed_hosts=["localhost", "127.0.0.1", "::1", "hub.internal"]) as app:
        response = await app.post("/emit/", form(), {**FORM, **headers})

        assert response.status_code == status
        assert await app.received() == (["x"] if status == 200 else [])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/emit/", {"authorization": f"Bearer {CONTROL_KEY}"}, 200, id="key"),
        pytest.param("/emit/", {"authorization": "Bearer wrong"}, 401, id="C14-wrong"),
        pytest.param("/emit/", {"authorization": "Basic wrong"}, 401, id="C14-basic"),
        pytest.param("/emit/", {}, 401, id="C14-none"),
        pytest.param(f"/emit/?key={quote(CONTROL_KEY)}", {}, 401, id="C14-query"),
    ],
)
async def test_control_key_is_required_if_one_is_set(path: str, headers: dict[str, str], status: int) -> None:
    async with control_app(control_key=CONTROL_KEY) as app:
        response = await app.post(path, form(), {**FORM, "host": "any.name", **headers})

        assert response.status_code == status
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.text == "the control key is missing or wrong: send it as 'Authorization: Bearer KEY'\n"


async def test_health_needs_neither_key_nor_host_and_metrics_need_the_key() -> None:
    async with control_app(control_key=CONTROL_KEY) as app:
        host = {"host": "balancer"}
        ready = await app.http.get("/readyz", headers=host)
        health = await app.http.get("/healthz/", headers=host)
        closed = await app.http.get("/metrics", headers=host)
        opened = await app.http.get("/metrics", headers={**host, "authorization": f"Bearer {CONTROL_KEY}"})
        await app.hub.drain(0.01)
        draining = await app.http.get("/readyz", headers=host)

        assert (ready.status_code, ready.text, health.text) == (200, "ready\n", "ok\n")
        assert (closed.status_code, opened.status_code) == (401, 200)
        assert (draining.status_code, draining.text) == (503, "the hub is draining and about to stop\n")


@pytest.mark.parametrize("key", ["", " "])
def test_empty_control_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="control_key is empty"):
        create_control_app(Hub(), tokens=Tokens(SECRET), control_key=key)
