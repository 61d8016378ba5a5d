"""`/explain/`: it says what a client meets, for each kind of token and state of a hub, and shows and spends nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import conftest
from asgi_requests import head
from bad_tokens import ALGORITHMS, NOW, OLD_SECRET, PROVIDER, ROWS, SECRET, bad_tokens, make_of, tokens
from conftest import CONTROL_KEY, StartHub
from fakes import FakeSink
from hubs import hub_settings, publish
from signing_keys import HMAC, maker
from ssehub.claims import Claims
from ssehub.errors import KeysUnavailable, TokenError
from ssehub.hub import Hub
from ssehub.report import CHECK_OF_REASON, TOKEN_CHECKS, Findings
from ssehub.testing import ManualHub
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from ssehub.web.control import create_control_app
from ssehub.web.explanation import explain
from ssehub.web.questions import Question

pytestmark = pytest.mark.anyio

CORS = ("https://app.example",)
ADDRESS = "192.0.2.1"


def by_check(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {one["check"]: one for one in answer["checks"]}


def failed(answer: Mapping[str, Any]) -> list[str]:
    return [one["check"] for one in answer["checks"] if one["passed"] is False]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_b37_explanation_begins_with_the_reason_for_which_the_token_is_refused(algorithm: str, row: str) -> None:
    own = tokens()
    async with Hub() as hub:
        for name, (token, reason) in bad_tokens(row, algorithm).items():
            with pytest.raises(TokenError) as caught:
                own.verify(token)
            findings = Findings()
            await own.examine(token, findings)
            first = findings.errors[0]
            found = (await explain(hub, own, Question(token))).to_json()

            assert isinstance(first, TokenError) and first.reason is reason, name
            assert (type(first), str(first)) == (type(caught.value), str(caught.value)), name
            assert (found["would"], found["status"], found["begins"]) == ("refuse", 401, None), name
            check = by_check(found)[CHECK_OF_REASON[reason]]
            assert check["passed"] is False and str(first) in check["message"] and check["remedy"], name
            text = json.dumps(found)
            assert SECRET not in text and OLD_SECRET not in text and len(text) < 10_000, name
            assert len(token) < 20 or token not in text, name
            with pytest.raises(TokenError):  # what was collected has not been remembered as verified
                own.verify(token)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_b37_good_token_passes_every_check(algorithm: str) -> None:
    own, token = tokens(), make_of(algorithm)(sid="session", jti="id")
    async with Hub() as hub:
        for _ in range(2):  # the second time the signature has been verified before
            findings = Findings()
            claims = await own.examine(token, findings)
            found = (await explain(hub, own, Question(token))).to_json()

            assert claims == own.verify(token) and findings.errors == []
            assert (found["would"], found["status"]) == ("open", 200)
            assert found["begins"] == {"at": "live", "events": 0, "reason": None}
            of_token = [by_check(found)[check]["passed"] for check in TOKEN_CHECKS]
            assert of_token.count(True) == (8 if algorithm in HMAC else 10) and False not in of_token
            assert by_check(found)["claims"]["message"] == "user 'alex', channels 'chat'"


async def test_everything_that_is_wrong_with_a_token_is_said_at_once() -> None:
    claims = {"iss": "https://other.example", "aud": "x", "sub": "alex", "listen": ["chat"], "exp": NOW - 60}
    token = maker({**claims, "iat": NOW - 9_000}, "RS256", None)({"kid": "other", "typ": "logout+jwt"})
    async with Hub() as hub:
        await hub.revoke(user_id="alex")
        question = Question(token, channels=("news",), origin="https://evil.example")
        found = (await explain(hub, tokens(), question, CORS)).to_json()

    assert failed(found) == [
        *("signature", "type", "issuer", "audience", "lifetime", "expiry", "revocation", "grant", "cors")
    ]
    checks = by_check(found)
    assert "kid 'other', and no key has it for 'RS256'" in checks["signature"]["message"]
    assert "iss is 'https://other.example'; issuer is 'https://login.example'" in checks["issuer"]["message"]
    assert "exp is 2023-11-14T22:12:20Z, 60 s ago" in checks["expiry"]["message"]
    assert all(checks[name]["remedy"] for name in failed(found))
    assert [checks[name]["passed"] for name in ("format", "algorithm", "claims", "readiness")] == [True] * 4


@pytest.mark.parametrize(
    ("claims", "name", "rest"),
    [
        ({"exp": ...}, "claims", "not reached, because of what failed before it"),
        ({"userId": 5}, "claims", "not reached, because of what failed before it"),
    ],
    ids=str,
)
async def test_checks_behind_what_can_not_be_read_are_not_reached(claims: Any, name: str, rest: str) -> None:
    async with Hub() as hub:
        found = (await explain(hub, tokens(), Question(make_of("HS256")(**claims)))).to_json()

    checks = by_check(found)
    assert failed(found) == [name]
    for later in ("lifetime", "not-before", "expiry", "revocation", "grant", "limits"):
        assert (checks[later]["passed"], checks[later]["message"]) == (None, rest), later
    assert checks["signature"]["passed"] is True and checks["readiness"]["passed"] is True
    assert checks["issuer"]["passed"] is checks["audience"]["passed"] is None  # tokens by secret need neither


# What a client meets


class World:
    """A hub with its client app and its control app, and a good token."""

    def __init__(self, hub: ManualHub, own: Tokens, http: httpx.AsyncClient) -> None:
        self.hub = hub
        self.tokens = own
        self.http = http
        self.client = create_client_app(hub, tokens=own, cors_origins=CORS, drains_on_exit=False)
        self.token = own.issue("alex", ["chat"], expires_at=hub.clock.wall + 3_600)

    async def explain(self, **fields: Any) -> Any:
        answer = await self.http.post("/explain/", json=fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        return answer.json()

    async def meets(self, token: str, query: str = "") -> tuple[int, str]:
        """Return what a client is answered: the status, and the beginning of the body."""
        left = asyncio.Event()
        seen: list[Any] = []

        async def send(message: Any) -> None:
            seen.append(message)
            if len(seen) > 1:
                left.set()

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/events/", "http_version": "1.1", "query_string": b""}
        scope |= {"client": (ADDRESS, 5), "headers": [(b"authorization", f"Bearer {token}".encode())]}
        scope["query_string"] = f"end=clean&{query}".encode()
        async with asyncio.timeout(10):
            await self.client(scope, receive, send)
        return seen[0]["status"], b"".join(message["body"] for message in seen[1:]).decode()


@asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    async with ManualHub(**hub_settings(**settings)) as hub:
        own = Tokens(SECRET, now=lambda: hub.clock.wall)
        app = create_control_app(hub, tokens=own, cors_origins=CORS, now=lambda: hub.clock.wall)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            yield World(hub, own, http)


def another_stream(hub: Hub, user_id: str = "alex", address: str = ADDRESS) -> None:
    hub.attach(Claims(user_id, ("chat",)), FakeSink(), address=address)


async def as_it_is(world: World) -> None:
    """Change nothing."""


async def revoke(world: World) -> None:
    await world.hub.revoke(user_id="alex")


async def drain(world: World) -> None:
    draining = asyncio.create_task(world.hub.drain(0.0))
    await draining


async def open_one(world: World) -> None:
    another_stream(world.hub)


async def open_ten_elsewhere(world: World) -> None:
    for number in range(10):
        another_stream(world.hub, f"{number}", f"198.51.100.{number}")


async def expire(world: World) -> None:
    world.hub.clock.pass_seconds(3_700)


Arrange = Callable[[World], Any]
MEETS: dict[str, tuple[dict[str, Any], Arrange, str, dict[str, Any], list[str]]] = {
    "open": ({}, as_it_is, "", {}, []),
    "narrowed": ({}, as_it_is, "channel=chat", {"channel": "chat"}, []),
    "not granted": ({}, as_it_is, "channel=news", {"channels": ["news"]}, ["grant"]),
    "revoked": ({}, revoke, "", {}, ["revocation"]),
    "expired": ({}, expire, "", {}, ["expiry"]),
    "draining": ({}, drain, "", {}, ["readiness"]),
    "full": ({"max_connections": 1}, open_one, "", {}, ["readiness"]),
    "user": ({"max_streams_per_user": 1, "user_limit_policy": "refuse"}, open_one, "", {}, ["limits"]),
    "user is replaced": ({"max_streams_per_user": 1}, open_one, "", {}, []),
    "address": ({"max_streams_per_address": 1}, open_one, "", {}, ["limits"]),
    "channel": ({"max_streams_per_channel": 1}, open_one, "", {}, ["limits"]),
    "address rate": ({"max_new_streams_per_second_per_address": 0.1}, open_one, "", {}, ["limits"]),
    "rate": ({"max_new_streams_per_second": 1}, open_ten_elsewhere, "", {}, ["limits"]),
}


@pytest.mark.parametrize(("settings", "arrange", "query", "fields", "reasons"), MEETS.values(), ids=list(MEETS))
async def test_explanation_is_what_the_client_meets(
    settings: dict[str, Any], arrange: Arrange, query: str, fields: dict[str, Any], reasons: list[str]
) -> None:
    async with world(**settings) as here:
        await arrange(here)
        before = here.hub.statistics.connected

        found = [await here.explain(token=here.token, address=ADDRESS, **fields) for _ in range(3)]
        status, body = await here.meets(here.token, query)

        assert found[0] == found[1] == found[2]  # an explanation spends nothing
        assert here.hub.statistics.connected == before + ("event: stream-hello" in body)
        assert (failed(found[0]), found[0]["status"]) == (reasons, status)
        outcome = "refuse" if status != 200 else "come-back" if body.startswith("event: stream-busy") else "open"
        assert found[0]["would"] == outcome and ("stream-hello" in body) is (outcome == "open")
        assert (found[0]["begins"] is not None) is (outcome == "open")


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        ({}, ("live", 0, None)),
        ({"since": "earliest"}, ("replay", 5, None)),
        ({"since": "last:2"}, ("replay", 2, None)),
        ({"lastEventId": "first"}, ("replay", 4, None)),
        ({"lastEventId": "last"}, ("live", 0, None)),
        ({"lastEventId": "nobody's"}, ("reset", 0, "unknown-id")),
        ({"lastEventId": "1-1.abcdefgh"}, ("reset", 0, "log-lost")),
        ({"lastEventId": "evicted"}, ("reset", 0, "too-old")),
    ],
    ids=str,
)
async def test_beginning_is_that_of_the_stream(fields: dict[str, str], begins: tuple[str, int, str | None]) -> None:
    async with world(history_events=5) as here:
        (evicted,) = await publish(here.hub, "0", channel="chat")
        await publish(here.hub, "1", channel="chat")
        ids = await publish(here.hub, "2", "3", "4", "5", "6")
        named = {"first": ids[0], "last": ids[-1], "evicted": evicted}
        fields = {name: named.get(value, value) for name, value in fields.items()}
        query = "&".join(f"{name}={quote(value)}" for name, value in fields.items())

        for asked in ({"token": here.token}, {"userId": "alex", "channel": "chat"}):
            found = await here.explain(**asked, **fields)
            assert tuple(found["begins"].values()) == begins
        _, body = await here.meets(here.token, query)
        await asyncio.sleep(0)
        assert ("event: stream-reset" in body) is (begins[0] == "reset")
        assert body.count("data: ") - body.count("event: stream-") == begins[1]


async def test_events_are_counted_in_parts_that_do_not_block_the_loop() -> None:
    async with world(history_events=20_000) as here:
        for _ in range(20):
            await publish(here.hub, *[f"{number}" for number in range(500)])
        passes = 0
        asking = asyncio.create_task(here.explain(userId="alex", patterns=["ch*"], since="earliest"))
        while not asking.done():
            await asyncio.sleep(0)
            passes += 1

        assert (await asking)["begins"] == {"at": "replay", "events": 10_000, "reason": None}
        assert passes >= 10


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [("https://app.example", True), ("https://other.example", False), ("null", False), (None, None)],
)
async def test_origin_is_compared_with_those_of_the_client_app(origin: str | None, is_allowed: bool | None) -> None:
    async with world() as here:
        found = await here.explain(token=here.token, **({} if origin is None else {"origin": origin}))
        check = by_check(found)["cors"]
        answer = await head(here.client, origin=(origin or "").encode(), authorization=f"Bearer {here.token}".encode())

        assert check["passed"] is is_allowed
        assert (b"access-control-allow-origin" in answer.headers) is bool(is_allowed)
        assert (found["would"], found["status"]) == ("refuse" if is_allowed is False else "open", 200)


async def test_origin_is_not_judged_by_an_app_that_does_not_know_the_origins() -> None:
    async with Hub() as hub:
        found = (await explain(hub, tokens(), Question(make_of("HS256")(), origin="https://app.example"))).to_json()

    assert by_check(found)["cors"]["passed"] is None and found["would"] == "open"


async def test_user_with_channels_is_explained_without_a_token() -> None:
    async with world(max_streams_per_user=1, user_limit_policy="refuse") as here:
        good = await here.explain(userId="alex", channels=["chat", "news"], patterns=["orders.*"])
        every = await here.explain(userId="alex", patterns=["*"])
        await here.hub.revoke(user_id="alex")
        revoked = await here.explain(userId="alex", channel="chat")
        here.hub.clock.pass_seconds(6)
        again = await here.explain(userId="alex", channel="chat")
        another_stream(here.hub)
        limited = await here.explain(userId="alex", channel="chat")

    assert good["would"] == "open" and by_check(good)["signature"]["passed"] is None
    assert (failed(every), every["status"]) == (["claims"], 401)
    assert (failed(revoked), revoked["status"]) == (["revocation"], 401)  # as a token that is issued now would be
    assert again["would"] == "open"
    assert (limited["would"], failed(limited)) == ("come-back", ["limits"])
    assert "max_streams_per_user (1)" in by_check(limited)["limits"]["message"]


async def test_keys_that_can_not_be_fetched_let_the_client_come_back() -> None:
    own = Tokens(jwks="http://127.0.0.1:1/keys", **PROVIDER)
    async with Hub() as hub:
        with pytest.raises(KeysUnavailable):
            await own.authenticate(make_of("ES256")())
        found = (await explain(hub, own, Question(make_of("ES256")()))).to_json()

    assert (found["would"], found["status"]) == ("come-back", 200)
    assert by_check(found)["signature"]["passed"] is False
    assert "keys" in by_check(found)["signature"]["message"]


# Requests


BAD: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "token is missing: send the token of a client, or userId and channel"),
    "token and userId": ({"token": "x", "userId": "a"}, "token and userId are both given: leave one out"),
    "token and patterns": ({"token": "x", "patterns": ["a*"]}, "token and patterns are both given"),
    "token of another type": ({"token": 5}, "token must be a string, not int"),
    "token is null": ({"token": None}, "token is null: leave it out, or give a value"),
    "no channel": ({"userId": "a"}, "channels and patterns are both empty"),
    "channel twice": ({"userId": "a", "channel": "a", "channels": ["b"]}, "channel and channels are both given"),
    "channel of another type": ({"userId": "a", "channel": {}}, "channel must be a string, not dict"),
    "channel with a line break": ({"userId": "a", "channel": "a\nb"}, "contains a line break"),
    "patterns that repeat": ({"userId": "a", "patterns": ["*"] * 101}, "patterns has 101 names: at most 100"),
    "pattern that is none": ({"userId": "a", "patterns": ["a"]}, "'a' is not a pattern"),
    "user": ({"userId": "", "channel": "a"}, "userId is empty"),
    "since": ({"token": "x", "since": "yesterday"}, "unknown since 'yesterday'"),
    "cursor": ({"token": "x", "lastEventId": 5}, "lastEventId must be a string, not int"),
    "address": ({"token": "x", "address": "192.0.2.1:80"}, "address '192.0.2.1:80' is not an IP address"),
    "origin with a path": ({"token": "x", "origin": "https://a.example/"}, "without a path"),
    "any origin": ({"token": "x", "origin": "*"}, "origin '*': give that of one page"),
    "unknown field": ({"jwt": "x"}, "unknown field 'jwt': expected token, userId"),
    "list": ([], "expected a JSON object, not an array"),
}


@pytest.mark.parametrize(("fields", "says"), BAD.values(), ids=list(BAD))
async def test_bad_request_is_400_and_says_why(fields: Any, says: str) -> None:
    async with world() as here:
        answer = await here.http.post("/explain/", json=fields)

    assert answer.status_code == 400 and says in answer.json()["error"], answer.text


async def test_form_is_as_good_as_json() -> None:
    async with world() as here:
        json_answer = await here.explain(token=here.token, channel=["chat", "news"], address=ADDRESS)
        form = {"token": here.token, "channel": ["chat", "news"], "address": ADDRESS}
        answer = await here.http.post("/explain", data=form)

        assert answer.json() == json_answer and failed(json_answer) == ["grant"]


@pytest.mark.parametrize("body", [{"data": {"userId": "alex", "channel": "chat"}}, {"json": {}}, {}])
async def test_token_in_the_query_is_refused(body: dict[str, Any]) -> None:
    async with world() as here:
        answer = await here.http.post("/explain/", params={"token": here.token}, **body)

        assert answer.status_code == 400 and "send the fields in the body" in answer.text
        assert here.token.rpartition(".")[2] not in answer.text
        assert (await here.http.get("/explain/")).status_code == 405


def test_token_is_in_no_log_and_only_a_key_with_the_right_may_ask(start_hub: StartHub) -> None:
    hub = start_hub("--log-level", "debug", env={"SSEHUB_CONTROL_KEY": CONTROL_KEY})
    url = f"{hub.control_url}/explain/"
    token = Tokens(conftest.SECRET).issue("alex", ["chat"], expires_at=time.time() + 60)
    signature = token.rpartition(".")[2]
    key = {"Authorization": f"Bearer {CONTROL_KEY}"}

    statuses = [
        httpx.post(url, json={"token": token}, headers=key).status_code,
        httpx.post(url, data={"token": f"{token}x"}, headers=key).status_code,
        httpx.post(url, data={token: ""}, headers=key).status_code,
        httpx.post(url, params={"token": token}, headers=key).status_code,
        httpx.post(f"{url}{token}", headers=key).status_code,
        httpx.post(url, content=token, headers=key).status_code,
        httpx.post(url, json={"token": token}).status_code,
    ]

    assert statuses == [200, 200, 400, 400, 404, 415, 401]
    assert signature not in hub.log
