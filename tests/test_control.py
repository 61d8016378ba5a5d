"""The control app: what it takes, what it refuses and how it says so."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from conftest import SECRET
from fakes import FakeSink
from ssehub.claims import Claims
from ssehub.errors import BrokerUnavailable, ConfigError, Overloaded
from ssehub.hub import Hub
from ssehub.tokens import Tokens
from ssehub.web.control import create_control_app

pytestmark = pytest.mark.anyio

NOW = 1_700_000_000.0
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
MULTIPART = {"content-type": "multipart/form-data; boundary=XX"}


class Control:
    """A control app in this loop, over a real hub with two listeners on `chat`, `sink` and `other`."""

    def __init__(self, hub: Hub, http: httpx.AsyncClient, tokens: Tokens) -> None:
        self.hub = hub
        self.http = http
        self.tokens = tokens
        self.sink = FakeSink()
        hub.attach(Claims("alex", ("chat",)), self.sink)
        self.other = FakeSink()
        hub.attach(Claims("kim", ("chat", "news")), self.other)

    async def post(self, path: str, body: bytes | str = b"", headers: dict[str, str] = FORM) -> httpx.Response:
        return await self.http.post(path, content=body, headers=headers)

    async def heard(self) -> list[str]:
        await asyncio.sleep(0.005)
        return self.sink.data()


@asynccontextmanager
async def control(**settings: Any) -> AsyncIterator[Control]:
    tokens = Tokens("a secret of 32 bytes, or rather more", now=lambda: NOW)
    async with Hub() as hub:
        app = create_control_app(hub, tokens=tokens, now=lambda: NOW, **settings)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
            yield Control(hub, http, tokens)


def multipart(*fields: tuple[str, str]) -> bytes:
    """What PHP's curl sends for an array."""
    parts = [f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    return ("".join(parts) + "--XX--\r\n").encode()


@pytest.mark.parametrize(
    ("path", "body", "headers", "heard"),
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
    ],
)
async def test_form_is_published_and_answered_ok(
    path: str, body: bytes | str, headers: dict[str, str], heard: list[str]
) -> None:
    async with control() as app:
        response = await app.post(path, body, headers)

        assert (response.status_code, response.text) == (200, "OK")
        assert response.headers["content-type"].startswith("text/plain")
        assert await app.heard() == heard


@pytest.mark.parametrize(
    ("body", "heard"),
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
async def test_json_is_published_and_answered_with_its_id(body: dict[str, Any], heard: list[str]) -> None:
    async with control() as app:
        response = await app.post("/emit/", json.dumps(body), JSON)

        assert response.status_code == 200
        assert await app.heard() == heard
        assert app.sink.ids()[-1] == response.json()["id"]


@pytest.mark.parametrize("as_lines", [False, True], ids=["array", "ndjson"])
async def test_batch_is_published_in_order_and_answered_with_its_ids(as_lines: bool) -> None:
    events = [{"userId": "*", "channel": "chat", "data": str(n)} for n in range(500)]
    async with control() as app:
        body = "\n".join(map(json.dumps, events)) + "\n" if as_lines else json.dumps(events)
        response = await app.post("/emit/", body, NDJSON if as_lines else JSON)

        assert response.status_code == 200
        assert await app.heard() == [str(n) for n in range(500)]
        assert app.sink.ids()[1:] == response.json()["ids"]


def doubled(n: int, bad: dict[str, Any]) -> str:
    good = {"userId": "*", "channel": "chat", "data": "x"}
    return json.dumps([good if number != n else {**good, **bad} for number in range(n + 3)])


def an_object(rest: str) -> str:
    return '{"userId":"*","channel":"chat",' + rest + "}"


deep = '{"userId":"*","channel":"chat","data":' + "[" * 10_000 + "]" * 10_000 + "}"
good_form = "userId=*&channel=chat"


def form(**fields: str) -> str:
    return urlencode({"userId": "alex", "channel": "chat", "data": "x", **fields})


BAD: dict[str, tuple[str, bytes | str, dict[str, str], int, str]] = {
    "nothing": ("/emit/", "", FORM, 400, "channel is missing"),
    "C7-user-missing": ("/emit/", "channel=chat&data=x", FORM, 400, "userId is missing"),
    "C7-channel-missing": ("/emit/", "userId=*&data=x", FORM, 400, "channel is missing"),
    "C7-data-missing": ("/emit/", good_form, FORM, 400, "data is missing"),
    "user-empty": ("/emit/", "userId=&channel=chat&data=x", FORM, 400, "userId is empty"),
    "channel-empty": ("/emit/", "userId=*&channel=&data=x", FORM, 400, "channel is empty"),
    "C5-payload-empty": ("/emit/", f"{good_form}&payload=", FORM, 400, "payload is empty"),
    "C7-doubled": ("/emit/", "userId=*&userId=a&channel=chat&data=x", FORM, 400, "userId is given twice"),
    "doubled-in-query": ("/emit/?data=1&data=2", good_form, FORM, 400, "data is given twice"),
    "doubled-multipart": ("/emit/", multipart(("data", "1"), ("data", "2")), MULTIPART, 400, "data is given twice"),
    "unknown": ("/emit/", f"{good_form}&data=x&sate=y", FORM, 400, "'sate' is no field: there are userId"),
    "unknown-in-query": ("/emit/?key=x", f"{good_form}&data=x", FORM, 400, "'key' is no field"),
    **{
        f"C2-{field}-{name}": (
            "/emit/",
            form(**{field: f"a{character}b"}),
            FORM,
            400,
            f"{field} {shown} contains {what}",
        )
        for field in ("id", "event", "userId", "channel")
        for name, character, shown, what in (
            ("CR", "\r", "'a\\rb'", "a line break"),
            ("LF", "\n", "'a\\nb'", "a line break"),
            ("NUL", "\0", "'a\\x00b'", "a NUL"),
        )
    },
    "id-empty": ("/emit/", f"{good_form}&data=x&id=", FORM, 400, "id is empty"),
    "event-reserved": ("/emit/", f"{good_form}&data=x&event=stream-drain", FORM, 400, "event 'stream-drain' begins"),
    "C3-payload-reserved": ("/emit/", f"{good_form}&payload=event:stream-x", FORM, 400, "payload: event type"),
    "C3-payload-lone-CR": ("/emit/", f"{good_form}&payload=data:1%0Devent:stream-x", FORM, 400, "payload: event type"),
    "C8-retry-word": ("/emit/", f"{good_form}&data=x&retry=soon", FORM, 400, "retry 'soon' is no number"),
    "C8-retry-negative": ("/emit/", f"{good_form}&data=x&retry=-1", FORM, 400, "retry '-1' is no number"),
    "C8-retry-exponent": ("/emit/", f"{good_form}&data=x&retry=1e3", FORM, 400, "retry '1e3' is no number"),
    "C8-retry-huge": ("/emit/", f"{good_form}&data=x&retry=9999999999", FORM, 400, "retry 9999999999 is not a"),
    "both": ("/emit/", f"{good_form}&data=x&payload=data:x", FORM, 400, "data can't be given together"),
    "C4-form-no-utf8": ("/emit/", f"{good_form}&data=%FF", FORM, 400, "the body is no UTF-8"),
    "C4-query-no-utf8": ("/emit/?data=%ED%A0%80", good_form, FORM, 400, "the query is no UTF-8"),
    "C4-raw-no-utf8": ("/emit/", good_form.encode() + b"&data=\xff", FORM, 400, "the body is no UTF-8"),
    "C4-multipart-no-utf8": ("/emit/", multipart(("data", "x")).replace(b"x", b"\xff"), MULTIPART, 400, "no UTF-8"),
    "C4-json-no-utf8": ("/emit/", b'{"data":"\xff"}', JSON, 400, "the body is no UTF-8"),
    "C4-json-surrogate": ("/emit/", an_object('"data":"\\ud800"'), JSON, 400, "data contains a lone surrogate"),
    "C4-json-user-surrogate": ("/emit/", '{"userId":"\\ud800","channel":"c","data":"x"}', JSON, 400, "userId contains"),
    "C7-1001-fields": ("/emit/", "&".join(f"f{n}=1" for n in range(1_001)), FORM, 400, "more than 1000 fields"),
    "C7-semicolons": ("/emit/", "a;" * 2**19, FORM, 400, "is no field"),
    "multipart-1001": ("/emit/", multipart(*[(f"f{n}", "1") for n in range(1_001)]), MULTIPART, 400, "multipart"),
    "multipart-file": (
        "/emit/",
        multipart(("data", "x")).replace(b'name="data"', b'name="data"; filename="f"'),
        MULTIPART,
        400,
        "files are not taken",
    ),
    "multipart-cut": (
        "/emit/",
        multipart(("data", "x"), ("id", "7"))[:-8],
        MULTIPART,
        400,
        "closing boundary is missing",
    ),
    "multipart-unclosed": ("/emit/", multipart(("data", "x"))[:-6], MULTIPART, 400, "closing boundary is missing"),
    "multipart-broken": ("/emit/", b"--YY\r\nnonsense", MULTIPART, 400, "multipart body can't be read"),
    "C7-no-content-type": ("/emit/", f"{good_form}&data=x", {}, 415, "content type '' is not read: send application"),
    "C7-text-plain": ("/emit/", "x", {"content-type": "text/plain"}, 415, "content type 'text/plain' is not read"),
    "charset": ("/emit/", "x", {"content-type": "application/json; charset=utf-16"}, 415, "charset 'utf-16'"),
    "C6-gzip": ("/emit/", gzip.compress(b"x"), {**FORM, "content-encoding": "gzip"}, 415, "compressed body"),
    "C6-body-10MB": ("/emit/", b"x" * 10_000_000, FORM, 413, "the body has 10000000 bytes: 8388608 are the most"),
    "C6-data-limit-plus-1": ("/emit/", f"{good_form}&data=" + "x" * (2**20 + 1), FORM, 413, "data has 1048577 bytes"),
    "payload-large": ("/emit/", f"{good_form}&payload=:" + "x" * 2**20, FORM, 413, "payload has 1048577 bytes"),
    "json-broken": ("/emit/", "{", JSON, 400, "the body is no JSON"),
    "json-empty": ("/emit/", "", JSON, 400, "the body is no JSON"),
    "C5-json-null": ("/emit/", "null", JSON, 400, "an object is needed, not NoneType"),
    "C5-json-number": ("/emit/", "5", JSON, 400, "an object is needed, not int"),
    "C5-json-deep": ("/emit/", deep, JSON, 400, "deep"),
    "json-NaN": ("/emit/", an_object('"data":NaN'), JSON, 400, "NaN is no JSON number"),
    "json-huge-number": ("/emit/", an_object('"data":' + "9" * 5000), JSON, 400, "the body"),
    "json-duplicate": ("/emit/", an_object('"data":1,"data":2'), JSON, 400, "'data' is given twice"),
    "json-unknown": ("/emit/", an_object('"text":1'), JSON, 400, "'text' is no field"),
    "json-user-int": ("/emit/", '{"userId":5,"channel":"c","data":"x"}', JSON, 400, "userId must be a string, not int"),
    "json-users-empty": ("/emit/", '{"userId":[],"channel":"c","data":"x"}', JSON, 400, "userId is missing"),
    "json-users-mixed": ("/emit/", '{"userId":["a",null],"channel":"c","data":"x"}', JSON, 400, "userId must be"),
    "json-data-null": ("/emit/", an_object('"data":null'), JSON, 400, "data is null"),
    "json-id-int": ("/emit/", an_object('"data":"x","id":5'), JSON, 400, "id must be a string"),
    "json-id-null": ("/emit/", an_object('"data":"x","id":null'), JSON, 400, "id is null"),
    "json-event-list": ("/emit/", an_object('"data":"x","event":[]'), JSON, 400, "event must be a string"),
    "json-ttl-huge": ("/emit/", an_object('"data":"x","ttl":1' + "0" * 310), JSON, 400, "ttl 1000"),
    "json-users-many": (
        "/emit/",
        json.dumps({"userId": [str(n) for n in range(1_001)], "channel": "c", "data": "x"}),
        JSON,
        400,
        "userId has 1001 names: at most 1000 are allowed",
    ),
    "json-payload-int": ("/emit/", an_object('"payload":5'), JSON, 400, "payload must be a string"),
    "C8-json-retry-text": ("/emit/", an_object('"data":"x","retry":"5"'), JSON, 400, "retry '5'"),
    "C8-json-retry-true": ("/emit/", an_object('"data":"x","retry":true'), JSON, 400, "retry True"),
    "batch-empty": ("/emit/", "[]", JSON, 400, "the batch is empty"),
    "ndjson-empty": ("/emit/", "\n", NDJSON, 400, "the batch is empty"),
    "batch-500th-bad": ("/emit/", doubled(499, {"retry": -1}), JSON, 400, "event 499: retry -1"),
    "batch-no-object": ("/emit/", "[5]", JSON, 400, "event 0: an object is needed"),
    "batch-large-event": ("/emit/", doubled(2, {"data": "x" * 2**20 + "x"}), JSON, 413, "event 2: data has"),
    "ndjson-bad-line": ("/emit/", an_object('"data":1') + "\n{", NDJSON, 400, "line 2 is no JSON"),
    "batch-10001": ("/emit/", json.dumps([1] * 10_001), JSON, 413, "the batch has 10001 events"),
    "token-user-missing": ("/token/", "channel=chat", FORM, 400, "userId is missing"),
    "token-channel-missing": ("/token/", "userId=a", FORM, 400, "channel is missing"),
    "token-exp-word": ("/token/", "userId=a&channel=c&exp=soon", FORM, 400, "exp 'soon' is no number"),
    "token-exp-zero": ("/token/", "userId=a&channel=c&exp=0", FORM, 400, "exp 0 is no number"),
    "token-exp-negative": ("/token/", "userId=a&channel=c&exp=-5", FORM, 400, "exp '-5' is no number"),
    "token-exp-huge": ("/token/", "userId=a&channel=c&exp=" + "9" * 30, FORM, 400, "is no number of seconds"),
    "token-exp-bool": ("/token/", '{"userId":"a","channel":"c","exp":true}', JSON, 400, "exp True is no number"),
    "token-exp-list": ("/token/", '{"userId":"a","channel":"c","exp":[]}', JSON, 400, "exp [] is no number"),
    "token-both": ("/token/", '{"userId":"a","channel":"c","channels":["c"]}', JSON, 400, "channel and channels"),
    "token-channels-text": ("/token/", '{"userId":"a","channels":"c"}', JSON, 400, "channels must be a list"),
    "token-unknown": ("/token/", "userId=a&channel=c&ttl=5", FORM, 400, "'ttl' is no field"),
}


@pytest.mark.parametrize(("path", "body", "headers", "status", "message"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_refused_with_its_name_and_nothing_is_published(
    path: str, body: bytes | str, headers: dict[str, str], status: int, message: str
) -> None:
    async with control() as app:
        response = await app.post(path, body, headers)
        after = await app.post("/emit/", f"{good_form}&data=after", FORM)

        answer = (
            response.json()["error"] if "json" in headers.get("content-type", "") and status != 415 else response.text
        )
        assert response.status_code == status, response.text
        assert message in answer
        assert after.status_code == 200
        assert await app.heard() == app.other.data() == ["after"]


@pytest.mark.parametrize("body", ["a;" * 2**19, "&".join(f"f{n}=1" for n in range(1_001)), "a=&" * 300_000])
async def test_c7_nonsense_is_refused_quickly(body: str) -> None:
    async with control() as app:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            response = await app.post("/emit/", body)
            times.append(time.perf_counter() - began)

            assert response.status_code == 400
        assert min(times) < 0.05


async def test_body_that_grows_over_its_bound_is_refused_before_it_is_whole() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 2**20

    async with control() as app:
        response = await asyncio.wait_for(app.http.post("/emit/", content=endless(), headers=FORM), 10)

        assert response.status_code == 413
        assert response.headers["connection"] == "close"


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
async def test_token_is_answered_bare(
    path: str, body: bytes | str, headers: dict[str, str], user_id: str, channels: tuple[str, ...], lifetime: int
) -> None:
    async with control() as app:
        response = await app.post(path, body, headers)

        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        assert app.tokens.verify(response.text) == Claims(user_id, channels, NOW + lifetime)


async def test_token_for_several_channels_is_asked_and_answered_in_json() -> None:
    async with control() as app:
        response = await app.post("/token/", '{"userId":"a","channels":["x","y"],"exp":60}', JSON)

        assert response.json()["expiresAt"] == NOW + 60
        assert app.tokens.verify(response.json()["token"]) == Claims("a", ("x", "y"), NOW + 60)


@pytest.mark.parametrize("path", ["/emit/", "/emit", "/token/", "/token"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_control_answers_other_methods_with_405(method: str, path: str) -> None:
    async with control() as app:
        response = await app.http.request(method, path)

        assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/events/", "/", "/emit/x", "/emit//", "/metric"])
async def test_other_paths_are_404(path: str) -> None:
    async with control() as app:
        assert (await app.http.get(path)).status_code == 404


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
async def test_web_pages_and_foreign_hosts_are_kept_out(headers: dict[str, str], status: int) -> None:
    async with control(allowed_hosts=["localhost", "127.0.0.1", "::1", "hub.internal"]) as app:
        response = await app.post("/emit/", f"{good_form}&data=x", {**FORM, **headers})

        assert response.status_code == status
        assert await app.heard() == (["x"] if status == 200 else [])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/emit/", {"authorization": "Bearer key"}, 200, id="key"),
        pytest.param("/emit/", {"authorization": "Bearer wrong"}, 401, id="C14-wrong"),
        pytest.param("/emit/", {"authorization": "Basic wrong"}, 401, id="C14-basic"),
        pytest.param("/emit/", {}, 401, id="C14-none"),
        pytest.param("/emit/?key=key", {}, 401, id="C14-query"),
    ],
)
async def test_control_key_is_required_where_there_is_one(path: str, headers: dict[str, str], status: int) -> None:
    async with control(control_key="key") as app:
        response = await app.post(path, f"{good_form}&data=x", {**FORM, "host": "any.name", **headers})

        assert response.status_code == status
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.text == "the control key is needed: send it as 'Authorization: Bearer KEY'\n"


async def test_health_needs_neither_key_nor_host_and_metrics_need_the_key() -> None:
    async with control(control_key="key") as app:
        host = {"host": "balancer"}
        ready = await app.http.get("/readyz", headers=host)
        health = await app.http.get("/healthz/", headers=host)
        closed = await app.http.get("/metrics", headers=host)
        opened = await app.http.get("/metrics", headers={**host, "authorization": "Bearer key"})
        await app.hub.drain(0.01)
        draining = await app.http.get("/readyz", headers=host)

        assert (ready.status_code, ready.text, health.text) == (200, "ready\n", "ok\n")
        assert (closed.status_code, opened.status_code) == (401, 200)
        assert (draining.status_code, draining.text) == (503, "the hub is draining and about to stop\n")


async def test_metrics_tell_what_the_hub_has_done() -> None:
    async with control() as app:
        stopped = FakeSink(reads=False)
        app.hub.attach(Claims("sam", ("chat",)), stopped)
        await app.post("/emit/", f"{good_form}&data=x")
        await app.hub.flush()
        await app.post("/emit/", form(userId="sam", data="y" * 70_000))
        await app.hub.flush()
        app.sink.lose()
        text = (await app.http.get("/metrics")).text
        written = 3 * len(app.sink.chunks[-1]) + len(stopped.chunks[-1])

        for line in (
            "ssehub_subscribers 2.0",
            "ssehub_streams_total 3.0",
            "ssehub_events_published_total 2.0",
            "ssehub_events_delivered_total 4.0",
            f"ssehub_delivered_bytes_total {float(written)}",
            f"ssehub_backlog_bytes {float(stopped.backlog)}",
            "ssehub_lagging 0.0",
            'ssehub_endings_total{reason="disconnected"} 1.0',
            "ssehub_round_seconds_count 2.0",
        ):
            assert f"\n{line}\n" in text, line


async def test_metrics_tell_how_late_the_loop_runs() -> None:
    async with control() as app:
        time.sleep(0.6)  # noqa: ASYNC251  # this is what is to be seen
        await asyncio.sleep(0)
        text = (await app.http.get("/metrics")).text
        lag = re.search(r"^ssehub_loop_lag_seconds (\S+)$", text, re.MULTILINE)

        assert lag and 0.2 < float(lag[1]) < 5


@pytest.mark.parametrize("error", [Overloaded("5 publishers wait already"), BrokerUnavailable("the log is away")])
async def test_503_says_when_to_try_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async with control() as app:

        async def fail(events: object) -> list[str]:
            raise error

        monkeypatch.setattr(app.hub, "publish_events", fail)
        form = await app.post("/emit/", f"{good_form}&data=x")
        in_json = await app.post("/emit/", an_object('"data":1'), JSON)

        assert (form.status_code, form.headers["retry-after"], form.text) == (503, "1", f"{error}\n")
        assert in_json.json() == {"error": str(error)}


async def test_client_that_leaves_in_the_middle_of_its_body_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    messages = iter([{"type": "http.request", "body": b"userId", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    async with control() as app:
        transport = app.http._transport
        assert isinstance(transport, httpx.ASGITransport)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/emit/",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", FORM["content-type"].encode())],
        }
        await transport.app(scope, receive, send)

    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Idempotency keys, `store` and `ttl`

ONE = json.dumps({"userId": "*", "channel": "chat", "data": "x"})
BATCH = json.dumps([{"userId": "*", "channel": channel, "data": "x"} for channel in ("chat", "news")])


@pytest.mark.parametrize("body", [ONE, BATCH], ids=["one", "batch"])
async def test_c9_the_same_key_is_answered_the_same_and_published_once(body: str) -> None:
    async with control() as app:
        headers = {**JSON, "Idempotency-Key": "a key"}
        answers = await asyncio.gather(*[app.post("/emit/", body, headers) for _ in range(20)])

        assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
        assert await app.heard() == ["x"]


async def test_a_key_is_known_however_it_is_brought() -> None:
    async with control() as app:
        field = json.dumps({**json.loads(ONE), "idempotencyKey": "k"})
        answers = [
            await app.post("/emit/", field, JSON),
            await app.post("/emit/", ONE, {**JSON, "Idempotency-Key": "k"}),
            await app.post("/emit/", ONE, {**JSON, "Idempotency-Key": '"k"'}),
            await app.post("/emit/", f"[{field}]", JSON),
            await app.post("/emit/", "userId=*&channel=chat&data=x&idempotencyKey=k"),
        ]

        assert [answer.status_code for answer in answers] == [200] * 5
        assert await app.heard() == ["x"]


async def test_each_event_of_a_batch_may_have_a_key() -> None:
    async with control() as app:
        first = [{"userId": "*", "channel": "chat", "data": n, "idempotencyKey": f"{n}"} for n in (1, 2)]
        second = [*first, {"userId": "*", "channel": "chat", "data": 3}]
        ids = [(await app.post("/emit/", json.dumps(body), JSON)).json()["ids"] for body in (first, second)]

        assert ids[1][:2] == ids[0]
        assert await app.heard() == ["1", "2", "3"]


async def test_the_scope_of_a_key_is_its_channels() -> None:
    async with control() as app:
        headers = {**JSON, "Idempotency-Key": "k"}
        for channels in (["chat"], ["chat", "news"], ["news", "chat"]):
            body = json.dumps({"userId": "*", "channel": channels, "data": f"{sorted(channels)}"})
            assert (await app.post("/emit/", body, headers)).status_code in (200, 422)

        assert await app.heard() == ["['chat']", "['chat', 'news']"]


async def test_a_key_used_for_something_else_is_422() -> None:
    async with control() as app:
        headers = {**JSON, "Idempotency-Key": "k"}
        await app.post("/emit/", ONE, headers)
        other = await app.post("/emit/", ONE.replace('"x"', '"y"'), headers)

        assert other.status_code == 422
        assert "this idempotency key was already used with a different body" in other.json()["error"]
        assert await app.heard() == ["x"]


@pytest.mark.parametrize(
    ("fields", "headers", "says"),
    [
        ({"idempotencyKey": ""}, {}, "idempotencyKey is empty"),
        ({"idempotencyKey": 5}, {}, "idempotencyKey must be a string"),
        ({"idempotencyKey": None}, {}, "idempotencyKey is null"),
        ({"idempotencyKey": "k" * 256}, {}, "idempotencyKey has 256 characters"),
        ({}, {"Idempotency-Key": "k" * 256}, "Idempotency-Key has 256 characters"),
        ({}, {"Idempotency-Key": ""}, "Idempotency-Key is empty"),
        ({"idempotencyKey": "k"}, {"Idempotency-Key": "k"}, "are both given"),
        ({"ttl": 0}, {}, "ttl 0 is not a positive number"),
        ({"ttl": -1}, {}, "ttl -1 is not a positive number"),
        ({"ttl": True}, {}, "ttl True is not a positive number"),
        ({"ttl": "5"}, {}, "ttl '5' is not a positive number"),
        ({"store": "false"}, {}, "store must be true or false"),
        ({"store": 0}, {}, "store must be true or false"),
        ({"store": False, "id": "mine"}, {}, "id can't be given with store false"),
    ],
)
async def test_bad_keys_and_bad_ttl_are_400(fields: dict[str, Any], headers: dict[str, str], says: str) -> None:
    async with control() as app:
        response = await app.post("/emit/", json.dumps({**json.loads(ONE), **fields}), {**JSON, **headers})

        assert response.status_code == 400
        assert says in response.json()["error"]
        assert await app.heard() == []


@pytest.mark.parametrize(
    ("fields", "status"),
    [("ttl=1.5&store=true", 200), ("store=false", 200), ("ttl=1e3", 400), ("ttl=0", 400), ("store=no", 400)],
)
async def test_store_and_ttl_in_forms(fields: str, status: int) -> None:
    async with control() as app:
        response = await app.post("/emit/", f"userId=*&channel=chat&data=x&{fields}")

        assert response.status_code == status
        assert await app.heard() == (["x"] if status == 200 else [])


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_control_key_is_no_key_and_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="control_key is empty"):
        create_control_app(Hub(), tokens=Tokens(SECRET), control_key=key)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        pytest.param(["Bearer right", "Bearer wrong"], 200, id="right first"),
        pytest.param(["Bearer wrong", "Bearer right"], 401, id="wrong first"),
    ],
)
async def test_of_a_header_given_twice_the_first_counts(authorization: list[str], status: int) -> None:
    async with control(control_key="right") as app:
        headers = [("content-type", FORM["content-type"])]
        headers += [("authorization", value) for value in authorization]
        response = await app.http.post("/emit/", content="userId=*&channel=chat&data=x", headers=headers)

        assert response.status_code == status
