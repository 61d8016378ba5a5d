"""Fields of requests to the control app: every bad one is refused with its name, and nothing is published."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest

from control_requests import FORM, JSON, MULTIPART, NDJSON, control_app, event_json, form, multipart

pytestmark = pytest.mark.anyio

ADDRESSED = "userId=*&channel=chat"


def batch(n: int, bad: dict[str, Any]) -> str:
    """Return a batch whose event number `n` has the fields `bad`."""
    good = {"userId": "*", "channel": "chat", "data": "x"}
    return json.dumps([good if number != n else {**good, **bad} for number in range(n + 3)])


def event_text(rest: str) -> str:
    """Return an event in JSON, to which `rest` is added as it is."""
    return '{"userId":"*","channel":"chat",' + rest + "}"


def token_with(patterns: object, message: str) -> tuple[str, str, dict[str, str], int, str]:
    """Return a request for a token with these patterns and no channel, and why it is refused."""
    return "/token/", json.dumps({"userId": "a", "patterns": patterns}), JSON, 400, message


BAD: dict[str, tuple[str, bytes | str, dict[str, str], int, str]] = {
    "nothing": ("/emit/", "", FORM, 400, "channel is missing"),
    "C7-user-missing": ("/emit/", "channel=chat&data=x", FORM, 400, "userId is missing"),
    "C7-channel-missing": ("/emit/", "userId=*&data=x", FORM, 400, "channel is missing"),
    "C7-data-missing": ("/emit/", ADDRESSED, FORM, 400, "data is missing"),
    "user-empty": ("/emit/", "userId=&channel=chat&data=x", FORM, 400, "userId is empty"),
    "channel-empty": ("/emit/", "userId=*&channel=&data=x", FORM, 400, "channel is empty"),
    "C5-payload-empty": ("/emit/", f"{ADDRESSED}&payload=", FORM, 400, "payload is empty"),
    "C7-twice": ("/emit/", "userId=*&userId=a&channel=chat&data=x", FORM, 400, "userId is given twice"),
    "channel-twice": ("/emit/", f"{ADDRESSED}&channel=b&data=x", FORM, 400, "or several as a list in JSON"),
    "channel-of-php": ("/emit/", "userId=*&channel%5B0%5D=a&data=x", FORM, 400, "'channel[0]': send several names as"),
    "channel-of-php-token": ("/token/", "userId=a&channel[]=a&channel[]=b", FORM, 400, "a list in JSON"),
    "ampersand-in-value": ("/emit/", f"{ADDRESSED}&data=a & b", FORM, 400, "' b', without a value: in the value of a"),
    "twice-in-query": ("/emit/?data=1&data=2", ADDRESSED, FORM, 400, "data is given twice"),
    "twice-multipart": ("/emit/", multipart(("data", "1"), ("data", "2")), MULTIPART, 400, "data is given twice"),
    "unknown": ("/emit/", f"{ADDRESSED}&data=x&sate=y", FORM, 400, "unknown field 'sate': expected userId"),
    "json-as-form": ("/emit/", event_text('"data":1'), FORM, 400, "looks like JSON: send JSON as application/json"),
    "unknown-in-query": ("/emit/?key=x", f"{ADDRESSED}&data=x", FORM, 400, "unknown field 'key'"),
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
    "id-empty": ("/emit/", f"{ADDRESSED}&data=x&id=", FORM, 400, "id is empty"),
    "event-reserved": ("/emit/", f"{ADDRESSED}&data=x&event=stream-drain", FORM, 400, "event 'stream-drain' begins"),
    "C3-payload-reserved": ("/emit/", f"{ADDRESSED}&payload=event:stream-x", FORM, 400, "payload: event type"),
    "C3-payload-lone-CR": ("/emit/", f"{ADDRESSED}&payload=data:1%0Devent:stream-x", FORM, 400, "payload: event type"),
    "C8-retry-word": ("/emit/", f"{ADDRESSED}&data=x&retry=soon", FORM, 400, "retry 'soon' is not a number"),
    "C8-retry-negative": ("/emit/", f"{ADDRESSED}&data=x&retry=-1", FORM, 400, "retry '-1' is not a number"),
    "C8-retry-exponent": ("/emit/", f"{ADDRESSED}&data=x&retry=1e3", FORM, 400, "retry '1e3' is not a number"),
    "C8-retry-huge": ("/emit/", f"{ADDRESSED}&data=x&retry=9999999999", FORM, 400, "retry 9999999999 is not a"),
    "both": ("/emit/", f"{ADDRESSED}&data=x&payload=data:x", FORM, 400, "data can't be given together"),
    "C4-form-no-utf8": ("/emit/", f"{ADDRESSED}&data=%FF", FORM, 400, "the body is not valid UTF-8"),
    "C4-query-no-utf8": ("/emit/?data=%ED%A0%80", ADDRESSED, FORM, 400, "the query is not valid UTF-8"),
    "C4-raw-no-utf8": ("/emit/", ADDRESSED.encode() + b"&data=\xff", FORM, 400, "the body is not valid UTF-8"),
    "C4-multipart-no-utf8": (
        "/emit/",
        multipart(("data", "x")).replace(b"x", b"\xff"),
        MULTIPART,
        400,
        "not valid UTF-8",
    ),
    "C4-json-no-utf8": ("/emit/", b'{"data":"\xff"}', JSON, 400, "the body is not valid UTF-8"),
    "C4-json-surrogate": ("/emit/", event_text('"data":"\\ud800"'), JSON, 400, "data contains a lone surrogate"),
    "C4-json-user-surrogate": ("/emit/", '{"userId":"\\ud800","channel":"c","data":"x"}', JSON, 400, "userId contains"),
    "C7-1001-fields": ("/emit/", "&".join(f"f{n}=1" for n in range(1_001)), FORM, 400, "more than 1000 fields"),
    "C7-semicolons": ("/emit/", "a;" * 2**19, FORM, 400, "unknown field"),
    "multipart-1001": ("/emit/", multipart(*[(f"f{n}", "1") for n in range(1_001)]), MULTIPART, 400, "more than 1000"),
    "multipart-1001-files": (
        "/emit/",
        multipart(*[(f'f{n}"; filename="f', "1") for n in range(1_001)]),
        MULTIPART,
        400,
        "more than 1000 fields",
    ),
    "multipart-501-fields-500-files": (
        "/emit/",
        multipart(*[(f"f{n}" if n % 2 else f'f{n}"; filename="f', "1") for n in range(1_001)]),
        MULTIPART,
        400,
        "more than 1000 fields",
    ),
    "multipart-file-unknown": (
        "/emit/",
        multipart(('attachment"; filename="f', "x")),
        MULTIPART,
        400,
        "unknown field 'attachment'",
    ),
    "multipart-file-twice": (
        "/emit/",
        multipart(("data", "x"), ('data"; filename="f', "x")),
        MULTIPART,
        400,
        "data is given twice",
    ),
    "multipart-file-large": (
        "/emit/",
        multipart(("userId", "*"), ("channel", "chat"), ('data"; filename="f', "x" * (2**20 + 1))),
        MULTIPART,
        413,
        "data has more than 1048576 bytes",
    ),
    "C4-multipart-file-no-utf8": (
        "/emit/",
        multipart(('data"; filename="f', "x")).replace(b"x", b"\xff"),
        MULTIPART,
        400,
        "not valid UTF-8",
    ),
    "multipart-file-cut": (
        "/emit/",
        multipart(("userId", "*"), ("channel", "chat"), ('data"; filename="f', "x"))[:-8],
        MULTIPART,
        400,
        "closing boundary is missing",
    ),
    "multipart-no-name": (
        "/emit/",
        multipart(("data", "x")).replace(b' name="data"', b""),
        MULTIPART,
        400,
        "a part has no name",
    ),
    "multipart-cut": (
        "/emit/",
        multipart(("data", "x"), ("id", "7"))[:-8],
        MULTIPART,
        400,
        "closing boundary is missing",
    ),
    "multipart-unclosed": ("/emit/", multipart(("data", "x"))[:-6], MULTIPART, 400, "closing boundary is missing"),
    "multipart-broken": ("/emit/", b"--YY\r\nnonsense", MULTIPART, 400, "multipart body can't be parsed"),
    "C7-no-content-type": ("/emit/", f"{ADDRESSED}&data=x", {}, 415, "unsupported content type '': send application"),
    "C7-text-plain": ("/emit/", "x", {"content-type": "text/plain"}, 415, "unsupported content type 'text/plain'"),
    "charset": (
        "/emit/",
        "x",
        {"content-type": "application/json; charset=utf-16"},
        415,
        "unsupported charset 'utf-16'",
    ),
    "C6-gzip": (
        "/emit/",
        gzip.compress(b"x"),
        {**FORM, "content-encoding": "gzip"},
        415,
        "unsupported Content-Encoding 'gzip'",
    ),
    "C6-body-10MB": (
        "/emit/",
        b"x" * 10_000_000,
        FORM,
        413,
        "the body has 10000000 bytes: at most 8388608 are allowed",
    ),
    "C6-data-limit-plus-1": ("/emit/", f"{ADDRESSED}&data=" + "x" * (2**20 + 1), FORM, 413, "data has 1048577 bytes"),
    "payload-large": ("/emit/", f"{ADDRESSED}&payload=:" + "x" * 2**20, FORM, 413, "payload has 1048577 bytes"),
    "json-broken": ("/emit/", "{", JSON, 400, "the body is not valid JSON"),
    "json-empty": ("/emit/", "", JSON, 400, "the body is not valid JSON"),
    "C5-json-null": ("/emit/", "null", JSON, 400, "expected a JSON object, not null"),
    "C5-json-number": ("/emit/", "5", JSON, 400, "expected a JSON object, not a number"),
    "C5-json-deep": ("/emit/", event_text('"data":' + "[" * 10_000 + "]" * 10_000), JSON, 400, "too deeply"),
    "json-NaN": ("/emit/", event_text('"data":NaN'), JSON, 400, "NaN is not a JSON number"),
    "json-huge-number": ("/emit/", event_text('"data":' + "9" * 5000), JSON, 400, "many digits: send it as a string"),
    "json-twice": ("/emit/", event_text('"data":1,"data":2'), JSON, 400, "'data' is given twice"),
    "json-unknown": ("/emit/", event_text('"text":1'), JSON, 400, "unknown field 'text'"),
    "json-user-int": ("/emit/", '{"userId":5,"channel":"c","data":"x"}', JSON, 400, "userId must be a string, not int"),
    "json-users-empty": ("/emit/", '{"userId":[],"channel":"c","data":"x"}', JSON, 400, "userId is an empty list"),
    "json-users-mixed": ("/emit/", '{"userId":["a",null],"channel":"c","data":"x"}', JSON, 400, "userId must be"),
    "json-data-null": ("/emit/", event_text('"data":null'), JSON, 400, "data is null"),
    "json-id-int": ("/emit/", event_text('"data":"x","id":5'), JSON, 400, "id must be a string"),
    "json-id-null": ("/emit/", event_text('"data":"x","id":null'), JSON, 400, "id is null"),
    "json-event-list": ("/emit/", event_text('"data":"x","event":[]'), JSON, 400, "event must be a string"),
    "json-ttl-huge": ("/emit/", event_text('"data":"x","ttl":1' + "0" * 310), JSON, 400, "ttl 1000"),
    "json-users-many": (
        "/emit/",
        json.dumps({"userId": [str(n) for n in range(1_001)], "channel": "c", "data": "x"}),
        JSON,
        400,
        "userId has 1001 names: at most 1000 are allowed",
    ),
    "json-payload-int": ("/emit/", event_text('"payload":5'), JSON, 400, "payload must be a string"),
    "C8-json-retry-text": ("/emit/", event_text('"data":"x","retry":"5"'), JSON, 400, "retry '5'"),
    "C8-json-retry-true": ("/emit/", event_text('"data":"x","retry":true'), JSON, 400, "retry True"),
    "batch-empty": ("/emit/", "[]", JSON, 400, "the batch is empty"),
    "ndjson-empty": ("/emit/", "\n", NDJSON, 400, "the batch is empty"),
    "batch-500th-bad": ("/emit/", batch(499, {"retry": -1}), JSON, 400, "event 499: retry -1"),
    "batch-no-object": ("/emit/", "[5]", JSON, 400, "event 0: expected a JSON object"),
    "batch-large-event": ("/emit/", batch(2, {"data": "x" * 2**20 + "x"}), JSON, 413, "event 2: data has"),
    "ndjson-bad-line": ("/emit/", event_text('"data":1') + "\n{", NDJSON, 400, "line 2 is not valid JSON"),
    "batch-10001": ("/emit/", json.dumps([1] * 10_001), JSON, 413, "the batch has more than 10000 events"),
    "token-array": (
        "/token/",
        "[{}]",
        JSON,
        400,
        "expected a JSON object, not an array: its fields are userId, channel",
    ),
    "token-large-array": (
        "/token/",
        json.dumps(["x" * 100_000] * 2),
        JSON,
        400,
        "expected a JSON object, not an array",
    ),
    "disconnect-large-array": (
        "/disconnect/",
        json.dumps(["x" * 100_000] * 2),
        JSON,
        400,
        "expected a JSON object, not an array: its fields are userId, channel",
    ),
    "token-user-missing": ("/token/", "channel=chat", FORM, 400, "userId is missing"),
    "token-channel-missing": ("/token/", "userId=a", FORM, 400, "channel is missing"),
    "token-exp-null": ("/token/", '{"userId":"a","channel":"c","exp":null}', JSON, 400, "exp is null"),
    "token-channel-none": (
        "/token/",
        '{"userId":"a","channel":[],"patterns":["b*"]}',
        JSON,
        400,
        "channel is an empty",
    ),
    "token-exp-word": ("/token/", "userId=a&channel=c&exp=soon", FORM, 400, "exp 'soon' is not a number"),
    "token-exp-zero": ("/token/", "userId=a&channel=c&exp=0", FORM, 400, "exp '0' is not a number"),
    "token-exp-negative": ("/token/", "userId=a&channel=c&exp=-5", FORM, 400, "exp '-5' is not a number"),
    "token-exp-huge": ("/token/", "userId=a&channel=c&exp=" + "9" * 30, FORM, 400, "is more than ten years"),
    "token-exp-in-milliseconds": ("/token/", "userId=a&channel=c&exp=1800000000000", FORM, 400, "not a Unix time"),
    "token-exp-bool": ("/token/", '{"userId":"a","channel":"c","exp":true}', JSON, 400, "exp True is not a number"),
    "token-exp-list": ("/token/", '{"userId":"a","channel":"c","exp":[]}', JSON, 400, "exp [] is not a number"),
    "token-exp-unix-time": ("/token/", "userId=a&channel=c&exp=1800000000", FORM, 400, "not a Unix time"),
    "token-exp-over-ten-years": ("/token/", "userId=a&channel=c&exp=315576001", FORM, 400, "is more than ten years"),
    "token-expires-in-unix-time": (
        "/token/",
        '{"userId":"a","channel":"c","expiresIn":1800000000}',
        JSON,
        400,
        "expiresIn 1800000000 is more than ten years: give the number of seconds from now",
    ),
    "token-expires-in-word": (
        "/token/",
        '{"userId":"a","channel":"c","expiresIn":"1h"}',
        JSON,
        400,
        "expiresIn '1h' is not a number of seconds",
    ),
    "token-exp-and-expires-in": (
        "/token/",
        '{"userId":"a","channel":"c","exp":5,"expiresIn":5}',
        JSON,
        400,
        "exp and expiresIn are both given: leave one out",
    ),
    "token-expires-in-of-a-form": (
        "/token/",
        "userId=a&channel=c&expiresIn=5",
        FORM,
        400,
        "unknown field 'expiresIn': expected userId, channel, exp",
    ),
    "token-both": ("/token/", '{"userId":"a","channel":"c","channels":["c"]}', JSON, 400, "channel and channels"),
    "token-channels-text": ("/token/", '{"userId":"a","channels":"c"}', JSON, 400, "channels must be a list"),
    "B30-star-inside": token_with(["a*b"], "patterns 'a*b' is not a pattern: write a prefix"),
    "B30-star-first": token_with(["*a"], "patterns '*a' is not a pattern"),
    "B30-two-stars": token_with(["a**"], "patterns 'a**' is not a pattern"),
    "B30-no-star": token_with(["orders"], "patterns 'orders' is not a pattern"),
    "B30-empty": token_with([""], "patterns is empty"),
    "B30-star-alone": token_with(["*"], "patterns: '*' would be every channel"),
    "B30-long": token_with(["x" * 3_999 + "*"], "patterns has 4000 characters"),
    "B30-line-break": token_with(["a\n*"], "patterns 'a\\n*' contains a line break"),
    "B30-many": token_with(["a*"] * 101, "patterns: 101 given: at most 100"),
    "B30-none": token_with([], "channel is missing: send it as a field"),
    "B30-null": token_with(None, "patterns must be a list, such as"),
    "B30-text": token_with("orders.*", "patterns must be a list, such as"),
    "B30-object": token_with({"orders.*": 1}, "patterns must be a list, such as"),
    "B30-number": token_with(5, "patterns must be a list, such as"),
    "B30-numbers": token_with([5], "patterns must be a string, not int"),
    "B30-list-in-a-list": token_with([["a*"]], "patterns must be a string, not list"),
    "B30-form": ("/token/", "userId=a&channel=c&patterns=a*", FORM, 400, "unknown field 'patterns': expected userId"),
    "token-channels-many": (
        "/token/",
        json.dumps({"userId": "a", "channels": [str(n) for n in range(1_001)]}),
        JSON,
        400,
        "channel has 1001 names: at most 1000 are allowed",
    ),
    "token-too-long": (
        "/token/",
        json.dumps({"userId": "a", "channels": [f"{n:0255}" for n in range(1_000)]}),
        JSON,
        400,
        "at most 65536 are allowed, so grant fewer channels, or a pattern",
    ),
    "token-unknown": ("/token/", "userId=a&channel=c&ttl=5", FORM, 400, "unknown field 'ttl'"),
}


@pytest.mark.parametrize(("path", "body", "headers", "status", "message"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_refused_by_name_and_nothing_is_published(
    path: str, body: bytes | str, headers: dict[str, str], status: int, message: str
) -> None:
    async with control_app() as app:
        response = await app.post(path, body, headers)
        after = await app.post("/emit/", f"{ADDRESSED}&data=after", FORM)

        is_json = "json" in headers.get("content-type", "") and status != 415
        error = response.json()["error"] if is_json else response.text
        assert response.status_code == status, response.text
        assert message in error
        assert after.status_code == 200
        assert await app.received() == app.other.data() == ["after"]


@pytest.mark.alone
@pytest.mark.parametrize("body", ["a;" * 2**19, "&".join(f"f{n}=1" for n in range(1_001)), "a=&" * 300_000])
async def test_c7_nonsense_is_refused_quickly(body: str) -> None:
    async with control_app() as app:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            response = await app.post("/emit/", body)
            times.append(time.perf_counter() - began)

            assert response.status_code == 400
        assert min(times) < 0.05


@pytest.mark.parametrize(
    ("fields", "headers", "error"),
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
async def test_bad_key_ttl_or_store_is_400(fields: dict[str, Any], headers: dict[str, str], error: str) -> None:
    async with control_app() as app:
        response = await app.post("/emit/", event_json(**fields), {**JSON, **headers})

        assert response.status_code == 400
        assert error in response.json()["error"]
        assert await app.received() == []


@pytest.mark.parametrize("encoding", ["identity", "Identity", "IDENTITY"])
async def test_body_declared_as_uncompressed_is_accepted(encoding: str) -> None:
    """The names of content codings are case-insensitive (RFC 9110, 8.4.1)."""
    async with control_app() as app:
        response = await app.post("/emit/", event_json(), {**JSON, "content-encoding": encoding})

        assert response.status_code == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("ttl=1.5&store=true", 200),
        ("store=false", 200),
        ("ttl=1e3", 200),
        ("ttl=1e-05", 200),
        ("ttl=e3", 400),
        ("ttl=0", 400),
        ("store=no", 400),
    ],
)
async def test_form_may_have_store_and_ttl(fields: str, status: int) -> None:
    async with control_app() as app:
        response = await app.post("/emit/", f"userId=*&channel=chat&data=x&{fields}")

        assert response.status_code == status
        assert await app.received() == (["x"] if status == 200 else [])
