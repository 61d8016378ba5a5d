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


FORWARDED = {
    "forwarded": "for=203.0.113.9",
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-host": "hub.example",
    "x-forwarded-port": "443",
    "x-forwarded-proto": "https",
    "x-forwarded-server": "proxy.example",
    "x-real-ip": "203.0.113.9",
    "via": "1.1 proxy",
}


@pytest.mark.parametrize("name", FORWARDED)
async def test_c14_request_through_a_proxy_is_refused_without_a_key_and_accepted_with_one(name: str) -> None:
    headers = {**FORM, name: FORWARDED[name]}
    async with control_app() as app:
        host = {"host": "127.0.0.1:8001"}  # as a proxy on this machine rewrites it
        refused = await app.post("/emit/", form(), {**headers, **host})
        health = await app.http.get("/healthz", headers={name: FORWARDED[name]})
        assert await app.received() == []
    async with control_app(control_key=CONTROL_KEY) as app:
        accepted = await app.post("/emit/", form(), {**headers, "authorization": f"Bearer {CONTROL_KEY}"})
        without = await app.post("/emit/", form(), headers)

    assert refused.status_code == 403
    assert refused.text == "a proxy forwarded this request: set a control key, or call the control app directly\n"
    assert (health.status_code, accepted.status_code, without.status_code) == (200, 200, 401)


async def test_c14_answer_to_a_wrong_key_is_the_same_for_every_wrong_key() -> None:
    wrong = ["", "Bearer", "Bearer ", CONTROL_KEY, f"Basic {CONTROL_KEY}", f"Bearer {CONTROL_KEY}x"]
    wrong += [f"Bearer  {CONTROL_KEY}", f"Bearer {CONTROL_KEY[:-1]}", f"Bearer {CONTROL_KEY.upper()}"]
    wrong += ["Bearer \xff\xfe", "Bearer " + "x" * 100_000]
    in_query = f"/emit/?control_key={quote(CONTROL_KEY)}"
    answers = set()
    async with control_app(control_key=CONTROL_KEY) as app:
        for path in ("/emit/", "/token/", "/disconnect/", "/metrics", "/nothing", in_query):
            for authorization in wrong:
                headers = [(b"content-type", FORM["content-type"].encode())]
                headers += [(b"authorization", authorization.encode("latin-1"))]
                response = await app.http.post(path, content=form(), headers=headers)
                answers.add((response.status_code, response.text, tuple(sorted(response.headers.items()))))
        assert await app.received() == []

    assert len(answers) == 1
    assert answers.pop()[0] == 401


WEAK_KEYS = {
    "": "is empty",
    " ": "is empty",
    "a": "is a publicly known default",
    "key": "is a publicly known default",
    "secret": "is a publicly known default",
    "changeme": "is a publicly known default",
    "ChangeMe": "is a publicly known default",
    "!ChangeMe!": "is a publicly known default",
    "admin123": "is a publicly known default",
    "your-super-secret-key": "is a publicly known default",
    "ThisTokenIsNotSoSecretChangeIt": "is a publicly known default",
    "fifteen bytes 1": "has 15 bytes: at least 16 are required",
    "x7Q": "has 3 bytes: at least 16 are required",
    "ababababababababab": "is easy to guess",
    "20240101202401012024": "is easy to guess",
    f" {CONTROL_KEY}": "begins or ends with a space",
    f"{CONTROL_KEY} ": "begins or ends with a space",
    f"{CONTROL_KEY}\n": "contains a control character",
    f"{CONTROL_KEY}\x7f": "contains a control character",
    f"{CONTROL_KEY}\udcff": "a lone surrogate",
}


@pytest.mark.parametrize(("key", "problem"), WEAK_KEYS.items())
def test_weak_control_key_is_refused(key: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_control_app(Hub(), tokens=Tokens(SECRET), control_key=key)

    assert problem in str(caught.value)
    assert len(key.strip()) < 4 or key not in str(caught.value)


@pytest.mark.parametrize("key", [CONTROL_KEY, "correct horse battery staple", "b7f1c9e2-4d3a", "ü" * 3 + "äöß€é"])
def test_control_key_is_accepted_if_it_is_long_enough_and_not_known(key: str) -> None:
    long_enough = key.ljust(16, "7")

    create_control_app(Hub(), tokens=Tokens(SECRET), control_key=long_enough)
