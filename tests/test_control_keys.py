"""Named control keys: how they are recognised, what they may do, how they are counted, and how they are replaced."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from conftest import CONTROL_KEY, SECRET, report
from control_requests import FORM, JSON, NDJSON, control_app, event_json, form
from named_keys import NamedKey, entry, hash_of, new_key, write_keys, write_text
from ssehub import ControlKeys, Hub, Tokens, create_control_app
from ssehub.errors import ConfigError
from ssehub.fanout.statistics import Statistics
from ssehub.settings import Limits, RequestLimits
from ssehub.web.emit import Emit
from ssehub.web.ingress import Ingress
from ssehub.web.refusals import Refusals

pytestmark = pytest.mark.anyio

ORDERS = NamedKey("orders", ["publish", "token"], ["orders.*", "chat"])
OPS = NamedKey("ops", ["disconnect", "revoke", "read"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys.toml", ORDERS, OPS)


def name_of(keys: ControlKeys, given: str) -> str | None:
    found = keys.find(given.encode())
    return None if found is None else found.name


def test_key_is_recognised_by_its_hash_and_nothing_else_is(path: Path) -> None:
    keys = ControlKeys(CONTROL_KEY, file=path)

    assert [name_of(keys, key) for key in (ORDERS.key, OPS.key, CONTROL_KEY)] == ["orders", "ops", "control_key"]
    for wrong in ("", ORDERS.key[:-1], f"{ORDERS.key}x", ORDERS.key.swapcase(), hash_of(ORDERS.key), "orders"):
        assert name_of(keys, wrong) is None


def test_control_key_has_all_rights_on_all_channels() -> None:
    key = ControlKeys(CONTROL_KEY).find(CONTROL_KEY.encode())

    assert key is not None and key.grant is None
    assert sorted(key.rights) == ["admin", "disconnect", "publish", "read", "revoke", "token"]


async def test_b34_key_with_two_hashes_is_replaced_without_a_moment_in_which_neither_is_valid(path: Path) -> None:
    keys = ControlKeys(file=path)
    old, new = ORDERS.key, new_key()

    write_text(path, ORDERS.entry(new))
    await keys.reload()
    both = [name_of(keys, key) for key in (old, new, OPS.key)]
    write_text(path, entry("orders", sha256=hash_of(new), rights=["publish"]))
    await keys.reload()

    assert both == ["orders", "orders", None]
    assert [name_of(keys, key) for key in (old, new)] == [None, "orders"]


@pytest.mark.parametrize("content", ["", "{", entry("a", key="plain"), entry("control_key", rights=["admin"])])
async def test_b33_broken_file_replaces_nothing_and_is_logged_and_counted_once(
    path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, statistics = ControlKeys(file=path), Statistics()

    write_text(path, content)
    await keys.reload()
    keys.measure(statistics)

    assert name_of(keys, ORDERS.key) == "orders"
    assert statistics.reload_failures["control_keys_file"] == 1
    assert statistics.reload_failed["control_keys_file"]
    (line,) = caplog.messages
    assert line.startswith(f"control_keys_file {path}: ") and line.endswith("; what was read before stays in use")
    assert keys.problem is None

    write_keys(path, ORDERS, OPS)
    await keys.reload()
    keys.measure(statistics)

    assert not statistics.reload_failed["control_keys_file"]


async def test_hash_of_control_key_in_the_file_is_refused(path: Path) -> None:
    write_text(path, entry("orders", sha256=hash_of(CONTROL_KEY), rights=["publish"]))

    with pytest.raises(ConfigError, match=r"keys\.orders has the same key as control_key: give each a key of its own"):
        ControlKeys(CONTROL_KEY, file=path)


def test_process_that_begins_while_the_file_is_broken_uses_the_last_good_content(path: Path) -> None:
    parent = ControlKeys(file=path)
    path.unlink()

    worker = ControlKeys(file=path, last_good=parent.last_good)

    assert name_of(worker, ORDERS.key) == "orders"
    with pytest.raises(ConfigError, match=r"control_keys_file .* can't be read: No such file"):
        ControlKeys(file=path)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("fifteen bytes 1", "keys.weak has 15 bytes: at least 16 are required"),
        ("change-me-please-2024", "keys.weak is a publicly known default"),
        ("abababababababababab", "keys.weak is easy to guess"),
    ],
)
def test_b33_weak_key_is_refused_although_its_hash_is_valid(
    tmp_path: Path, key: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_keys(tmp_path / "keys.toml", NamedKey("weak", ["publish"], key=key))
    keys = ControlKeys(file=path)

    assert [name_of(keys, key), name_of(keys, key)] == [None, None]
    assert problem in caplog.text and key not in caplog.text


@pytest.mark.alone
def test_time_to_recognise_a_key_says_nothing_about_the_keys(tmp_path: Path) -> None:
    named = [NamedKey(f"k{number}", ["publish"]) for number in range(1_000)]
    one = ControlKeys(file=write_keys(tmp_path / "one.toml", named[0]))
    many = ControlKeys(file=write_keys(tmp_path / "many.toml", *named))
    right = named[0].key
    cases = {
        "wrong": (one, "A" * len(right)),
        "wrong, nearly right": (one, right[:-1] + ("A" if right[-1] != "A" else "B")),
        "right": (one, right),
        "wrong, of 1,000": (many, "A" * len(right)),
        "right, first of 1,000": (many, right),
        "right, last of 1,000": (many, named[-1].key),
    }
    for keys, given in cases.values():
        keys.find(given.encode())

    best = dict.fromkeys(cases, float("inf"))
    for _ in range(60):  # in turn, so that whatever else the machine does befalls all of them
        for name, (keys, given) in cases.items():
            best[name] = min(best[name], _seconds(keys, given.encode()))

    report(", ".join(f"{name}: {seconds * 1e6:.2f} µs" for name, seconds in best.items()))
    for kind in ("wrong", "right"):  # which of both it is, the answer says anyway
        seconds = [best[name] for name in best if name.startswith(kind)]
        assert len(seconds) == 3 and max(seconds) < 2 * min(seconds)


def _seconds(keys: ControlKeys, given: bytes, times: int = 300) -> float:
    began = time.perf_counter()
    for _ in range(times):
        keys.find(given)
    return (time.perf_counter() - began) / times


def test_control_key_and_control_keys_are_not_both_accepted(path: Path) -> None:
    with pytest.raises(ConfigError, match="control_key and control_keys are both given"):
        create_control_app(Hub(), tokens=Tokens(SECRET), control_key=CONTROL_KEY, control_keys=ControlKeys(file=path))


BATCHES: dict[str, tuple[dict[str, str], str, str]] = {
    "json": (JSON, f"[{event_json()}, {event_json(channel=['chat', 'news'])}]", "event 1: channel 'news'"),
    "ndjson": (NDJSON, f"{event_json()}\n{event_json(channel='news')}\n", "line 2: channel 'news'"),
}


@pytest.mark.parametrize(("kind", "body", "named"), BATCHES.values(), ids=BATCHES.keys())
async def test_b32_batch_with_one_event_outside_the_channels_is_refused_whole(
    path: Path, kind: dict[str, str], body: str, named: str
) -> None:
    async with control_app(control_keys=ControlKeys(file=path)) as app:
        refused = await app.post("/emit/", body, {**kind, **ORDERS.headers})
        received = await app.received()

    assert refused.status_code == 403
    message = f"{named} is not allowed with control key 'orders': add it to the channels of keys.orders"
    assert refused.json()["error"].startswith(message)
    assert received == []


async def test_b32_large_batch_outside_the_channels_is_refused_in_slices(path: Path) -> None:
    events = [event_json(channel="orders.1", data="x" * 100)] * 2_000 + [event_json(channel="news")]
    async with control_app(control_keys=ControlKeys(file=path)) as app:
        refused = await app.post("/emit/", f"[{','.join(events)}]", {**JSON, **ORDERS.headers})
        accepted = await app.post("/emit/", f"[{','.join(events[:-1])}]", {**JSON, **ORDERS.headers})

    assert refused.json()["error"].startswith("event 2000: channel 'news' is not allowed")
    assert (refused.status_code, accepted.status_code) == (403, 200)


async def test_b32_missing_right_is_answered_before_the_body_is_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def parts() -> Any:
        for _ in range(3):
            yield b"x" * 2**16

    async with control_app(control_keys=ControlKeys(file=path)) as app:
        text = await app.post("/emit/", "not even a form", {**FORM, **OPS.headers})
        as_json = await app.post("/token/", "{", {**JSON, **OPS.headers})
        large = await app.http.post("/emit/", content=parts(), headers={**FORM, **OPS.headers})
        metrics = await app.http.get("/metrics", headers=ORDERS.headers)

    message = "control key 'ops' lacks the right 'publish': add it to keys.ops in control_keys_file, or use another key"
    assert [response.status_code for response in (text, as_json, large, metrics)] == [403] * 4
    assert text.text == large.text == f"{message}\n"
    assert as_json.json() == {"error": message.replace("publish", "token")}
    assert any(
        line.startswith(f"request refused, key-forbidden: {message}; POST /emit/, control key 'ops', from ")
        for line in caplog.messages
    )


@pytest.mark.parametrize("root_path", ["", "/front", "/control", "/healthz"])
async def test_mounted_app_requires_a_key_on_every_path_but_the_health_checks(path: Path, root_path: str) -> None:
    around = (("", ""), ("", "/"), ("/", "/"), ("/healthz", "/"), ("/healthz/..", "/"), ("/control", "/"))
    calls = [
        (method, f"{root_path}/control{before}/{name}{after}")
        for method in ("GET", "HEAD", "POST", "DELETE")
        for name in ("emit", "token", "disconnect", "revoke", "metrics")
        for before, after in around
    ]
    async with control_app(control_keys=ControlKeys(file=path)) as app:
        host = Starlette(routes=[Mount("/control", app.app)])
        transport = httpx.ASGITransport(host, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            health = await http.get(f"{root_path}/control/healthz")
            answers = {call: (await http.request(*call)).status_code for call in calls}
            with_a_key = await http.get(f"{root_path}/control/metrics", headers=OPS.headers)

    assert (health.status_code, with_a_key.status_code) == (200, 200)
    assert {call: status for call, status in answers.items() if status != 401} == {}


async def test_endpoint_without_its_guard_admits_nobody() -> None:
    async with Hub() as hub:
        refusals = Refusals(hub)
        emit = Emit(Ingress.of(hub, refusals, ControlKeys(), Limits(), RequestLimits()))
        app = Starlette(routes=[Route("/emit/", emit)])
        app.state.refusals = refusals
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            answer = await http.post("/emit/", content=form(), headers=FORM)

        assert (answer.status_code, hub.statistics.published) == (403, 0)


async def test_request_has_one_key_however_it_is_sent(path: Path) -> None:
    wrong, right = (f"Bearer {key}" for key in (new_key(), ORDERS.key))
    sent = {
        "twice": [right, right],
        "the right one first": [right, wrong],
        "the wrong one first": [wrong, right],
        "Bearer twice": [f"Bearer {right}"],
        "two in one": [f"{right}, {right}"],
        "not ASCII": [f"{right}\xe9"],
        "another scheme": [right.replace("Bearer", "Basic")],
    }
    async with control_app(control_keys=ControlKeys(file=path)) as app:
        answers = {}
        for label, values in sent.items():
            headers = [*FORM.items(), *[("Authorization", value) for value in values]]
            encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
            answers[label] = (await app.http.post("/emit/", content=form(), headers=encoded)).status_code

    accepted = {label for label, status in answers.items() if status == 200}
    assert accepted == {"twice", "the right one first"} and {*answers.values()} == {200, 401}


async def test_admin_has_every_right_but_only_on_its_channels(tmp_path: Path) -> None:
    admin = NamedKey("admin", ["admin"], ["chat"])
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", admin))
    async with control_app(control_keys=keys) as app:

        async def status(path: str, **fields: str) -> int:
            return (await app.post(path, form(**fields), {**FORM, **admin.headers})).status_code

        assert [await status("/emit/"), await status("/emit/", channel="news")] == [200, 403]
        assert (await app.http.get("/metrics", headers=admin.headers)).status_code == 200


async def test_token_may_name_any_user_and_only_what_the_key_has(path: Path) -> None:
    async with control_app(control_keys=ControlKeys(file=path)) as app:

        async def ask(**fields: object) -> tuple[int, str]:
            body = json.dumps({"userId": "*", **fields})
            response = await app.post("/token/", body, {**JSON, **ORDERS.headers})
            return response.status_code, response.json().get("error", "").partition(" with control key ")[0]

        assert await ask(channel="chat") == (200, "")
        assert await ask(channel=["chat", "orders.1"], patterns=["orders.eu.*", "orders.*"]) == (200, "")
        assert await ask(channel=["chat", "news"]) == (403, "channel 'news' is not allowed")
        assert await ask(channel="chat", patterns=["order*"]) == (403, "pattern 'order*' is not allowed")
        assert (await ask(patterns=["orders.1"]))[0] == 400
        assert await ask(patterns=["chat*"]) == (403, "pattern 'chat*' is not allowed")


async def test_b32_channel_is_refused_before_the_idempotency_key_is_looked_at(path: Path, tmp_path: Path) -> None:
    other = NamedKey("other", ["publish"])
    write_keys(path, ORDERS, other)
    async with control_app(control_keys=ControlKeys(file=path)) as app:
        body = event_json(channel="news", idempotencyKey="k")
        first = await app.post("/emit/", body, {**JSON, **other.headers})
        refused = await app.post("/emit/", body, {**JSON, **ORDERS.headers})

    assert (first.status_code, refused.status_code) == (200, 403)


async def test_idempotency_keys_and_rates_belong_to_the_name_and_outlive_a_rotation(path: Path) -> None:
    keys, limits = ControlKeys(file=path), Limits(max_publishes_per_second=0.2)  # two at once
    other = NamedKey("other", ["publish"])
    replaced = NamedKey("orders", ["publish"], key=new_key())
    body = event_json(idempotencyKey="k")
    async with control_app(control_keys=keys, limits=limits) as app:

        async def post(key: NamedKey) -> Any:
            return await app.post("/emit/", body, {**JSON, **key.headers})

        first = await post(ORDERS)
        write_keys(path, replaced, other)
        await keys.reload()
        again, removed, over = await post(replaced), await post(ORDERS), await post(replaced)
        elsewhere = await post(other)

    assert (first.status_code, again.status_code, removed.status_code) == (200, 200, 401)
    assert again.json() == first.json() != elsewhere.json()
    assert (over.status_code, elsewhere.status_code) == (429, 200)


def samples(text: str, name: str) -> dict[str, float]:
    """Return the samples of a metric: the part in braces, and the value."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return {line.split("{")[1].split("}")[0]: float(line.split()[-1]) for line in lines}


async def test_requests_are_counted_by_the_name_of_the_key_and_forgotten_with_it(path: Path) -> None:
    keys = ControlKeys(file=path)
    async with control_app(control_keys=keys) as app:

        async def metrics() -> Sequence[dict[str, float]]:
            text = (await app.http.get("/metrics", headers=OPS.headers)).text
            return [samples(text, f"ssehub_control_{name}_total") for name in ("requests", "keys_refused")]

        await app.post("/emit/", form(), {**FORM, **ORDERS.headers})
        await app.post("/emit/", form(channel="news"), {**FORM, **ORDERS.headers})
        await app.post("/emit/", form(), {**FORM, **OPS.headers})
        await app.post("/emit/", form(), {**FORM, "authorization": "Bearer wrong"})
        await app.post("/emit/", form())
        counted = await metrics()
        write_keys(path, OPS)
        await keys.reload()
        left = await metrics()

    assert counted == [
        {'key="orders",right="publish"': 2.0, 'key="ops",right="read"': 1.0},
        {
            'key="orders",reason="channel"': 1.0,
            'key="ops",reason="right"': 1.0,
            'key="",reason="key"': 2.0,
        },
    ]
    assert left == [{'key="ops",right="read"': 2.0}, {'key="ops",reason="right"': 1.0, 'key="",reason="key"': 2.0}]


async def test_requests_without_keys_are_counted_under_an_empty_name() -> None:
    async with control_app() as app:
        await app.post("/emit/", form())
        text = await app.metrics()

    assert samples(text, "ssehub_control_requests_total") == {'key="",right="publish"': 1.0, 'key="",right="read"': 1.0}


async def test_disconnect_and_revoke_are_logged_with_the_name_of_the_key(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with control_app(control_keys=ControlKeys(file=path)) as app:
        ids = [
            (await app.http.request(method, url, json={"userId": "sam"}, headers=OPS.headers)).json()["id"]
            for method, url in (("POST", "/disconnect/"), ("POST", "/revoke/"), ("DELETE", "/revoke/"))
        ]

    wanted = ["disconnect", "revocation", "revocation taken back"]
    for what, position in zip(wanted, ids, strict=True):
        assert f"{what} at {position} by control key 'ops'" in caplog.messages
