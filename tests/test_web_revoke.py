"""`/revoke/`: what it accepts, refuses and lists, and how a client with a revoked token is answered."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

import conftest
from asgi_requests import head
from conftest import RunningHub, StartHub, wait_until
from fakes import FakeSink
from hubs import join
from ssehub.brokers.memory import MemoryBroker
from ssehub.brokers.redis import RedisBroker
from ssehub.claims import Claims
from ssehub.fanout.resume import Start
from ssehub.hub import Hub
from ssehub.revocations import Revocation
from ssehub.settings import RedisOptions
from ssehub.testing import ManualHub
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from ssehub.web.control import create_control_app
from streams import listen

pytestmark = pytest.mark.anyio

NOW = 1_750_000_000.0
SECRET = "a secret of 32 bytes, or rather more"
OTHER_SECRET = "another secret of 32 bytes, or more"
REFUSED = b"a valid token is required\n"


class App:
    def __init__(self, hub: ManualHub, tokens: Tokens, http: httpx.AsyncClient) -> None:
        self.hub = hub
        self.tokens = tokens
        self.http = http

    async def post(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/revoke/", json=fields)

    async def delete(self, **fields: Any) -> httpx.Response:
        return await self.http.request("DELETE", "/revoke/", json=fields)

    async def listed(self, **query: Any) -> Any:
        return (await self.http.get("/revoke/", params=query)).raise_for_status().json()


@asynccontextmanager
async def control_app(**settings: Any) -> AsyncIterator[App]:
    async with ManualHub() as hub:
        tokens = Tokens(SECRET, now=lambda: hub.clock.wall, **settings)
        app = create_control_app(hub, tokens=tokens, now=lambda: hub.clock.wall)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            yield App(hub, tokens, http)


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        ({"jti": "a"}, Revocation(jti="a")),
        ({"jti": "a", "expiresAt": NOW + 5}, Revocation(jti="a", expires_at=NOW + 5)),
        ({"userId": "alex"}, Revocation(user_id="alex", issued_before=NOW)),
        ({"userId": "alex", "issuedBefore": 5}, Revocation(user_id="alex", issued_before=5)),
        ({"userId": "alex", "issuedBefore": NOW + 600}, Revocation(user_id="alex", issued_before=NOW + 600)),
        ({"sid": "a"}, Revocation(sid="a")),
        ({"sid": "a", "iss": "i"}, Revocation(sid="a", iss="i")),
        ({"sub": "a", "iss": "i"}, Revocation(sub="a", iss="i", issued_before=NOW)),
        (
            {"sub": "a", "iss": "i", "withoutSid": True},
            Revocation(sub="a", iss="i", without_sid=True, issued_before=NOW),
        ),
        ({"everyone": True}, Revocation(everyone=True, issued_before=NOW)),
        ({"everyone": True, "issuedBefore": 7.5}, Revocation(everyone=True, issued_before=7.5)),
        ({"jti": "a", "everyone": False}, Revocation(jti="a")),
    ],
    ids=str,
)
async def test_each_kind_is_stored_listed_and_taken_back_by_form_and_json(
    body: dict[str, Any], stored: Revocation
) -> None:
    form = {name: str(value).lower() if isinstance(value, bool) else value for name, value in body.items()}
    async with control_app() as app:
        for is_json in (True, False):
            answer = await (app.post(**body) if is_json else app.http.post("/revoke", data=form))

            assert answer.status_code == 200, answer.text
            assert list(app.hub.revocations) == [stored]
            if is_json:
                found = answer.json()
                assert found["id"] and found["durable"] is False
                assert (found["issuedBefore"], found["expiresAt"]) == (stored.issued_before, stored.expires_at)
            else:
                assert answer.text == "OK"
            listed = await app.listed()
            (shown,) = listed.pop("revocations")
            assert listed == {"next": None, "total": 1, "max": 200_000, "durable": False}

            again = await (app.delete(**shown) if is_json else app.http.delete("/revoke", params=form))

            assert again.status_code == 200 and len(app.hub.revocations) == 0
            assert (await app.delete(**body)).status_code == 404


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "nothing given: name one of jti, userId, sid, sub, everyone"),
        ({"everyone": False}, "nothing given"),
        ({"issuedBefore": 5}, "nothing given"),
        ({"jti": "a", "userId": "b"}, "jti and userId given"),
        ({"userId": "a", "everyone": True}, "userId and everyone given"),
        ({"jti": ""}, "jti is empty"),
        ({"jti": None}, "jti is null"),
        ({"jti": 0}, "jti must be a string, not int"),
        ({"jti": "x" * 256}, "jti has 256 characters"),
        ({"userId": ["a"]}, "userId must be a string, not list"),
        ({"userId": "*"}, "userId '*' is not supported"),
        ({"userId": "a\nb"}, "userId 'a\\nb' contains a line break"),
        ({"sid": "a", "iss": 5}, "iss must be a string"),
        ({"sub": "a"}, "iss: a sub is that of an issuer"),
        ({"iss": "a"}, "nothing given"),
        ({"jti": "a", "iss": "b"}, "iss: "),
        ({"jti": "a", "withoutSid": True}, "withoutSid limits the revocation of a sub"),
        ({"sub": "a", "iss": "b", "withoutSid": "yes"}, "withoutSid must be true or false"),
        ({"everyone": 1}, "everyone must be true or false"),
        ({"everyone": "true"}, "everyone must be true or false"),
        ({"jti": "a", "issuedBefore": 5}, "issuedBefore: users, subjects and everyone need it"),
        ({"userId": "a", "issuedBefore": "5"}, "issuedBefore must be a Unix time"),
        ({"userId": "a", "issuedBefore": -5}, "issuedBefore must be a Unix time"),
        ({"userId": "a", "issuedBefore": True}, "issuedBefore must be a Unix time"),
        ({"userId": "a", "expiresAt": [5]}, "expiresAt must be a Unix time"),
        ({"userId": "a", "data": "x"}, "unknown field 'data'"),
        ({"token": 5}, "token must be a string"),
        ({"token": "x"}, "token is not valid: "),
        ({"token": "x", "jti": "a"}, "token and jti are both given"),
        ([], "expected a JSON object"),
    ],
    ids=str,
)
async def test_b26_bad_input_is_400_names_the_field_and_changes_nothing(method: str, body: Any, says: str) -> None:
    async with control_app() as app:
        answer = await app.http.request(method, "/revoke/", json=body)

        assert answer.status_code == 400 and says in answer.json()["error"]
        assert len(app.hub.revocations) == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"userId": "a", "issuedBefore": NOW + 601}, "issuedBefore 1750000601.0 is in the future"),
        ({"userId": "a", "issuedBefore": NOW * 1_000}, "is in the future: give a Unix time in seconds, at most now"),
        ({"jti": "a", "expiresAt": NOW}, "expiresAt 1750000000.0 has passed"),
        ({"jti": "a", "expiresAt": 86_400}, "expiresAt 86400 has passed: give the Unix time in seconds"),
    ],
    ids=str,
)
async def test_b26_times_that_were_meant_otherwise_are_400(body: dict[str, Any], says: str) -> None:
    async with control_app() as app:
        answer = await app.post(**body)

        assert answer.status_code == 400 and says in answer.json()["error"]
        assert len(app.hub.revocations) == 0


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("everyone=yes", "everyone must be true or false, not 'yes'"),
        ("userId=a&issuedBefore=1_000", "issuedBefore '1_000' is not a Unix time in seconds"),
        ("userId=a&issuedBefore=", "issuedBefore '' is not a Unix time"),
        ("jti=a&expiresAt=-1", "expiresAt '-1' is not a Unix time"),
        ("jti=a&jti=b", "jti is given twice"),
    ],
)
async def test_bad_form_is_400_and_names_the_field(form: str, says: str) -> None:
    async with control_app() as app:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await app.http.post("/revoke/", content=form, headers=headers)

        assert answer.status_code == 400 and says in answer.text
        assert len(app.hub.revocations) == 0


async def test_token_gives_its_jti_and_its_end() -> None:
    async with control_app() as app:
        token = app.tokens.issue("alex", ["chat"], expires_at=NOW + 100)
        jti = app.tokens.verify(token).jti
        assert jti

        assert (await app.post(token=token)).json()["expiresAt"] == NOW + 100
        assert list(app.hub.revocations) == [Revocation(jti=jti, expires_at=NOW + 100)]
        assert (await app.delete(token=token)).status_code == 200
        assert len(app.hub.revocations) == 0


async def test_token_that_cannot_be_revoked_is_400_and_not_shown() -> None:
    async with control_app() as app:
        expired = app.tokens.issue("alex", ["chat"], expires_at=NOW + 10)
        app.hub.clock.pass_seconds(60)
        foreign = Tokens(OTHER_SECRET, now=lambda: NOW).issue("alex", ["chat"], expires_at=NOW + 1_000)
        for token in (expired, foreign):
            answer = await app.post(token=token)

            assert answer.status_code == 400 and answer.json()["error"].startswith("token is not valid: ")
            assert token not in answer.text and token.rpartition(".")[2] not in answer.text


async def test_token_without_jti_is_400(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutJti(Tokens):
        def verify(self, token: str) -> Claims:
            return Claims("alex", ("chat",), iat=NOW)

    async with ManualHub() as hub:
        app = create_control_app(hub, tokens=WithoutJti(SECRET))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            answer = await http.post("/revoke/", json={"token": "x"})

        assert answer.status_code == 400 and "no jti" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "expires_at"),
    [
        ({"jti": "a"}, NOW + 5 + 3_600),
        ({"sid": "a"}, NOW + 5 + 3_600),
        ({"userId": "a"}, NOW + 5 + 3_600),
        ({"userId": "a", "issuedBefore": NOW - 1_000}, NOW - 1_000 + 5 + 3_600),
        ({"everyone": True, "expiresAt": NOW + 10}, NOW + 10),
        ({"everyone": True, "expiresAt": NOW + 1e6}, NOW + 5 + 3_600),
    ],
    ids=str,
)
async def test_longest_life_of_tokens_says_when_a_revocation_ends(body: dict[str, Any], expires_at: float) -> None:
    async with control_app(max_token_seconds=3_600) as app:
        assert (await app.post(**body)).json()["expiresAt"] == expires_at
        assert [one.expires_at for one in app.hub.revocations] == [expires_at]


async def test_b26_full_table_is_503_and_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.revocations.MAX_REVOCATIONS", 2)
    async with control_app() as app:
        for name in ("a", "b"):
            assert (await app.post(userId=name, issuedBefore=5)).status_code == 200

        full = await app.post(jti="c")
        extended = await app.post(userId="a", issuedBefore=9)

        assert full.status_code == 503 and "full" in full.json()["error"] and full.headers["retry-after"]
        assert extended.status_code == 200
        assert [(one.user_id, one.issued_before) for one in app.hub.revocations] == [("a", 9), ("b", 5)]


async def test_list_is_paged_and_each_is_seen_once_though_others_come_and_go() -> None:
    async with control_app() as app:
        await app.hub.revoke_all([Revocation(jti=f"jti-{number:05}-\u2028é") for number in range(5_000)])
        seen: list[str] = []
        page = await app.listed(limit=700)
        while True:
            assert page["total"] >= 4_990 and page["max"] == 200_000
            seen += [one["jti"] for one in page["revocations"]]
            if page["next"] is None:
                break
            await app.hub.take_back(jti=seen[-1])
            await app.hub.revoke(jti="jti-0 comes too late to be listed")
            page = await app.listed(limit=700, after=page["next"])

        assert seen == [f"jti-{number:05}-\u2028é" for number in range(5_000)]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", "limit '0' is not a number from 1 to 1000"),
        ("limit=1001", "limit '1001'"),
        ("limit=x", "limit 'x'"),
        ("after=%FF", "UTF-8"),
        ("after=a", "after 'a' is not a cursor"),
        ("after=____", "after '____' is not a cursor"),
        ("after=é", "after 'é' is not a cursor"),
        ("jti=a", "unknown field 'jti': expected after, limit"),
    ],
)
async def test_list_refuses_bad_queries(query: str, says: str) -> None:
    async with control_app() as app:
        answer = await app.http.get(f"/revoke/?{query}")

        assert answer.status_code == 400 and says in answer.text


async def test_other_methods_are_405_and_name_those_that_there_are() -> None:
    async with control_app() as app:
        answer = await app.http.put("/revoke/")

        assert answer.status_code == 405 and answer.headers["allow"] == "POST, DELETE, GET"
        assert (await app.http.head("/revoke/")).status_code == 200


async def test_control_key_is_required_for_every_method() -> None:
    async with ManualHub() as hub:
        app = create_control_app(hub, tokens=Tokens(SECRET), control_key="a control key of 32 bytes, or more")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            for method in ("GET", "POST", "DELETE"):
                assert (await http.request(method, "/revoke/", params={"jti": "a"})).status_code == 401
        assert len(hub.revocations) == 0


async def test_metrics_show_how_full_the_table_is() -> None:
    async with control_app() as app:
        await app.post(jti="a")
        metrics = (await app.http.get("/metrics")).text

        assert "ssehub_revocations 1.0\n" in metrics and "ssehub_revocations_max 200000.0\n" in metrics


# Clients


def client_app(hub: Hub, tokens: Tokens) -> Starlette:
    return create_client_app(hub, tokens=tokens, token_cookie="sse", drains_on_exit=False)


@pytest.mark.parametrize(
    "how",
    [
        lambda token: {"authorization": b"Bearer " + token},
        lambda token: {"cookie": b"sse=" + token},
        lambda token: {"query": b"token=" + token},
    ],
    ids=["header", "cookie", "query"],
)
async def test_b24_revoked_token_is_the_same_401_wherever_it_is(how: Any) -> None:
    async with ManualHub() as hub:
        tokens = Tokens(SECRET, now=lambda: hub.clock.wall)
        token = tokens.issue("alex", ["chat"], expires_at=NOW + 1_000)
        app = client_app(hub, tokens)
        assert (await head(app, **how(token.encode()))).status == 200

        await hub.revoke(jti=tokens.verify(token).jti)
        answer = await head(app, **how(token.encode()))

        assert (answer.status, answer.body) == (401, REFUSED)
        assert answer.headers[b"www-authenticate"] == b"Bearer"


async def test_b24_token_that_is_revoked_between_login_and_attaching_is_401() -> None:
    async with ManualHub() as hub:
        tokens = Tokens(SECRET, now=lambda: hub.clock.wall)
        token = tokens.issue("alex", ["chat"], expires_at=NOW + 1_000)
        app = client_app(hub, tokens)
        prepare = hub.prepare

        async def revoke_and_prepare(claims: Claims, start: Start) -> Start:
            await hub.revoke(user_id="alex")
            return await prepare(claims, start)

        hub.prepare = revoke_and_prepare  # type: ignore[method-assign]  # the last await before the stream is attached
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            async with asyncio.timeout(20):
                answer = await http.get("/events/", params={"token": token})

        assert (answer.status_code, answer.content) == (401, REFUSED)
        assert hub.statistics.connected == 0


async def test_b25_hub_that_may_miss_revocations_takes_no_new_streams_and_keeps_those_it_has() -> None:
    class CutOff(MemoryBroker):
        is_current = True

    broker = CutOff()
    async with Hub(broker) as hub:
        tokens = Tokens(SECRET)
        token = tokens.issue("alex", ["chat"], expires_at=4e9)
        sink = FakeSink()
        join(hub, sink=sink)
        broker.is_current = False
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(client_app(hub, tokens)), base_url="http://localhost"
        ) as http:
            async with asyncio.timeout(20):
                answer = await http.get("/events/", params={"token": token, "end": "clean"})

        assert answer.status_code == 200 and "event: stream-busy\n" in answer.text and "retry: " in answer.text
        assert hub.statistics.refused["unavailable"] == 1 and not sink.is_closed


async def test_b25_hub_that_does_not_know_the_revocations_yet_does_not_say_that_there_are_none() -> None:
    broker = RedisBroker(
        f"redis://127.0.0.1:{conftest.free_port()}",
        options=RedisOptions(broker_probe_seconds=0.5, wait_for_broker=True),
    )
    async with Hub(broker) as hub:
        app = create_control_app(hub, tokens=Tokens(SECRET))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            listed = await http.get("/revoke/")
            taken_back = await http.request("DELETE", "/revoke/", json={"jti": "a"})

    assert listed.status_code == taken_back.status_code == 503


# Real processes


def new_tokens(count: int) -> list[str]:
    """Return tokens of as many users, as the hubs of the tests issue them."""
    issuer = Tokens(conftest.SECRET)
    return [issuer.issue(f"user-{number}", ["chat"], expires_at=time.time() + 3_600) for number in range(count)]


def statuses(hub: RunningHub, tokens: Sequence[str]) -> set[int]:
    with httpx.Client() as http:
        return {http.head(f"{hub.url}/events/", params={"token": token}).status_code for token in tokens}


def revoke(hub: RunningHub, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{hub.control_url}/revoke/", json=fields).raise_for_status().json()
    return answer


def test_b24_revocation_ends_a_stream_of_a_real_hub_and_its_token_is_refused(start_hub: StartHub) -> None:
    hub = start_hub()
    token, other = hub.token(), hub.token()
    stream, stays = listen(hub.port, token), listen(hub.port, other)
    hub.emit(data="before")

    answer = revoke(hub, token=token)
    hub.emit(data="after")
    stream.read_to_end()
    stays.read_event("after")

    assert answer["durable"] is False and "revocations end with this process" in hub.log
    assert [(sse.event, sse.data) for sse in stream.events] == [("message", "before"), ("stream-revoked", "{}")]
    assert stream.bytes.endswith(b"0\r\n\r\n"), "a clean end"
    assert 1_000 <= (stream.events[-1].retry or 0) <= 3_100
    stays.close()
    assert statuses(hub, [token]) == {401}
    assert token not in hub.log and token.rpartition(".")[2] not in hub.log


def test_b25_revocations_answered_with_200_are_in_force_after_kill_9(start_hub: StartHub, tmp_path: Path) -> None:
    """Each round kills the hub while revocations are being stored."""
    broker = f"sqlite:///{tmp_path}/log.db"
    revoked: list[str] = []
    for _ in range(2):
        hub = start_hub("--broker", broker)
        tokens = new_tokens(40)
        answered: queue.SimpleQueue[str] = queue.SimpleQueue()
        revoking = threading.Thread(target=revoke_each, args=(hub, tokens, answered))
        revoking.start()
        wait_until(lambda answered=answered: answered.qsize() >= 20)  # type: ignore[misc]  # lambda defaults
        hub.process.kill()
        revoking.join()
        revoked += [answered.get() for _ in range(answered.qsize())]
    hub = start_hub("--broker", broker)

    assert len(revoked) >= 40
    assert statuses(hub, revoked) == {401}
    listen(hub.port, hub.token("user-0")).close()
    listed = httpx.get(f"{hub.control_url}/revoke/").json()
    assert listed["durable"] is True and listed["total"] >= len(revoked)


def revoke_each(hub: RunningHub, tokens: list[str], answered: queue.SimpleQueue[str]) -> None:
    with httpx.Client() as http, contextlib.suppress(httpx.TransportError):
        for token in tokens:
            if http.post(f"{hub.control_url}/revoke/", json={"token": token}).status_code == 200:
                answered.put(token)


def test_b24_everyone_is_revoked_and_those_who_log_in_again_are_served(start_hub: StartHub, tmp_path: Path) -> None:
    hub = start_hub("--broker", f"sqlite:///{tmp_path}/log.db", "--leeway-seconds", "0")
    old = new_tokens(20)
    streams = [listen(hub.port, token) for token in old]

    revoke(hub, everyone=True)
    for stream in streams:
        stream.read_to_end()
    new = hub.token()
    listen(hub.port, new).close()

    assert all(stream.events[-1].event == "stream-revoked" for stream in streams)
    assert statuses(hub, old) == {401}
