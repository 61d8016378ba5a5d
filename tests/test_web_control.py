"""The control app's endpoints: `/emit/` and `/token/`, in all their forms, and idempotency keys."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from control_requests import FORM, JSON, MULTIPART, NDJSON, NOW, control_app, event_json, multipart

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "body", "headers", "received"),
    [
        pytest.param("/emit/", "userId=alex&channel=chat&payload=data:+x%0A", FORM, ["x"], id="payload"),
        pytest.param("/emit", "userId=*&channel=chat&data=x&event=e&id=i&retry=5", FORM, ["x"], id="fields"),
        pytest.param("/emit/?userId=alex&channel=chat&data=x", "", {}, ["x"], id="query-only"),
        pytest.param("/emit/?userId=alex&channel=other&data=q", "channel=chat&data=b", FORM, ["b"], id="body-wins"),
        pytest.param(
            "/emit/",
            multipart(("userId", "*"), ("channel", "chat"), ("payload", "event: message\ndata: {}\n")),
            MULTIPART,
            ["{}"],
            id="multipart",
        ),
        pytest.param("/emit/?userId=*", multipart(("channel", "chat"), ("data", "é")), MULTIPART, ["é"], id="both"),
        pytest.param(
            "/emit/?userId=*&channel=chat",
            multipart(("data", "é")),
            {"content-type": "multipart/form-data; charset=us-ascii; boundary=XX"},
            ["é"],
            id="utf-8-declared-as-ascii",
        ),
        pytest.param(
            "/emit/?userId=*&channel=chat",
            multipart(('data"; filename="notes.txt"\r\nContent-Type: text/plain; x="', "é & 100 %")),
            MULTIPART,
            ["é & 100 %"],
            id="file",
        ),
        pytest.param(
            "/emit/?userId=*&channel=chat",
            multipart(('data"; filename="large', "x" * 2**20)),
            MULTIPART,
            ["x" * 2**20],
            id="large-file",
        ),
    ],
)
async def test_form_is_published_and_answered_ok(
    path: str, body: bytes | str, headers: dict[str, str], received: list[str]
) -> None:
    async with control_app() as app:
        response = await app.post(path, body, headers)

        assert (response.status_code, response.text) == (200, "OK")
        assert response.headers["content-type"].startswith("text/plain")
        assert await app.received() == received


@pytest.mark.parametrize(
    ("body", "received"),
    [
        pytest.param({"userId": "alex", "channel": "chat", "data": "x"}, ["x"], id="string"),
        pytest.param(
            {"userId": ["kim", "alex"], "channel": ["b", "chat"], "data": {"a": [1]}}, ['{"a":[1]}'], id="lists"
        ),
        pytest.param({"userId": "*", "channel": "chat", "data": 5, "retry": 10}, ["5"], id="number"),
        pytest.param({"userId": "*", "channel": "chat", "data": False}, ["false"], id="false"),
        pytest.param({"userId": "*", "channel": "chat", "payload": "data: x"}, ["x"], id="payload"),
    ],
)
async def test_json_is_published_and_answered_with_its_id(body: dict[str, Any], received: list[str]) -> None:
    async with control_app() as app:
        response = await app.post("/emit/", json.dumps(body), JSON)

        assert response.status_code == 200
        assert await app.received() == received
        assert app.sink.ids()[-1] == response.json()["id"]


@pytest.mark.parametrize("as_lines", [False, True], ids=["array", "ndjson"])
async def test_batch_is_published_in_order_and_answered_with_its_ids(as_lines: bool) -> None:
    events = [{"userId": "*", "channel": "chat", "data": str(n)} for n in range(500)]
    async with control_app() as app:
        body = "\n".join(map(json.dumps, events)) + "\n" if as_lines else json.dumps(events)
        response = await app.post("/emit/", body, NDJSON if as_lines else JSON)

        assert response.status_code == 200
        assert await app.received() == [str(n) for n in range(500)]
        assert app.sink.ids()[1:] == response.json()["ids"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "user_id", "channels", "lifetime"),
    [
        pytest.param("/token/", "userId=alex&channel=chat&exp=60", FORM, "alex", ("chat",), 60, id="form"),
        pytest.param("/token", "userId=*&channel=chat", FORM, "*", ("chat",), 86_400, id="default-exp"),
        pytest.param("/token/?userId=a&channel=b&exp=5", "", {}, "a", ("b",), 5, id="query"),
        pytest.param(
            "/token/", multipart(("userId", "a"), ("channel", "b")), MULTIPART, "a", ("b",), 86_400, id="multi"
        ),
    ],
)
async def test_form_is_answered_with_the_bare_token(
    path: str, body: bytes | str, headers: dict[str, str], user_id: str, channels: tuple[str, ...], lifetime: int
) -> None:
    async with control_app() as app:
        response = await app.post(path, body, headers)

        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        claims = app.tokens.verify(response.text)
        assert (claims.user_id, claims.channels, claims.expires_at) == (user_id, channels, NOW + lifetime)
        assert claims.iat == NOW


@pytest.mark.parametrize("name", ["exp", "expiresIn"])
async def test_json_may_name_several_channels_and_is_answered_with_the_expiry(name: str) -> None:
    async with control_app() as app:
        response = await app.post("/token/", f'{{"userId":"a","channels":["x","y"],"{name}":60}}', JSON)

        assert response.json()["expiresAt"] == NOW + 60
        claims = app.tokens.verify(response.json()["token"])
        assert (claims.user_id, claims.channels, claims.expires_at) == ("a", ("x", "y"), NOW + 60)


async def test_token_may_be_valid_for_ten_years() -> None:
    async with control_app() as app:
        response = await app.post("/token/", "userId=a&channel=c&exp=315576000", FORM)

        assert app.tokens.verify(response.text).expires_at == NOW + 315_576_000


# Idempotency keys

ONE = event_json()
BATCH = json.dumps([{"userId": "*", "channel": channel, "data": "x"} for channel in ("chat", "news")])


@pytest.mark.parametrize("body", [ONE, BATCH], ids=["one", "batch"])
async def test_c9_same_key_gets_the_same_response_and_is_published_once(body: str) -> None:
    async with control_app() as app:
        headers = {**JSON, "Idempotency-Key": "a key"}
        answers = await asyncio.gather(*[app.post("/emit/", body, headers) for _ in range(20)])

        assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
        assert await app.received() == ["x"]


async def test_key_is_the_same_in_a_header_in_a_field_and_in_a_form() -> None:
    async with control_app() as app:
        field = event_json(idempotencyKey="k")
        answers = [
            await app.post("/emit/", field, JSON),
            await app.post("/emit/", ONE, {**JSON, "Idempotency-Key": "k"}),
            await app.post("/emit/", ONE, {**JSON, "Idempotency-Key": '"k"'}),
            await app.post("/emit/", f"[{field}]", JSON),
            await app.post("/emit/", "userId=*&channel=chat&data=x&idempotencyKey=k"),
        ]

        assert [answer.status_code for answer in answers] == [200] * 5
        assert await app.received() == ["x"]


async def test_each_event_of_a_batch_may_have_its_own_key() -> None:
    async with control_app() as app:
        first = [{"userId": "*", "channel": "chat", "data": n, "idempotencyKey": f"{n}"} for n in (1, 2)]
        second = [*first, {"userId": "*", "channel": "chat", "data": 3}]
        ids = [(await app.post("/emit/", json.dumps(body), JSON)).json()["ids"] for body in (first, second)]

        assert ids[1][:2] == ids[0]
        assert await app.received() == ["1", "2", "3"]


async def test_the_scope_of_a_key_is_its_channels() -> None:
    async with control_app() as app:
        headers = {**JSON, "Idempotency-Key": "k"}
        for channels in (["chat"], ["chat", "news"], ["news", "chat"]):
            body = event_json(channel=channels, data=f"{sorted(channels)}")
            assert (await app.post("/emit/", body, headers)).status_code in (200, 422)

        assert await app.received() == ["['chat']", "['chat', 'news']"]


async def test_key_used_again_for_another_event_is_422() -> None:
    async with control_app() as app:
        headers = {**JSON, "Idempotency-Key": "k"}
        await app.post("/emit/", ONE, headers)
        other = await app.post("/emit/", event_json(data="y"), headers)

        assert other.status_code == 422
        assert "this idempotency key was already used with a different body" in other.json()["error"]
        assert await app.received() == ["x"]
