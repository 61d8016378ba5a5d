"""The control app's `/runs/`: the calls that create, look up, list, end, stop, read and delete runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from control_requests import FORM, JSON, MULTIPART, NDJSON, ControlApp, control_app, multipart
from named_keys import NamedKey, write_keys
from ssehub import ControlKeys
from ssehub.runs.model import Outcome, Run, RunOptions, RunState
from ssehub.runs.store import CreateMode, Creation
from ssehub.settings import Limits

pytestmark = pytest.mark.anyio

RUN = {"channel": "chat", "userId": "alex"}


async def create(app: ControlApp, name: str = "r", **fields: Any) -> httpx.Response:
    return await app.http.put(f"/runs/{name}", json={**RUN, **fields})


async def append(app: ControlApp, *data: str, name: str = "r", **query: Any) -> httpx.Response:
    return await app.http.post(f"/runs/{name}", json=[{"data": text} for text in data], params=query)


async def events(app: ControlApp, name: str = "r") -> list[dict[str, Any]]:
    response = await app.http.get(f"/runs/{name}/events")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


# Creating


async def test_run_object_has_everything_that_was_asked_for() -> None:
    async with control_app() as app:
        asked = {
            "channel": ["chat", "news"],
            "userId": "*",
            "keep": 60,
            "idle": 5.5,
            "announce": "a",
            "stoppable": True,
        }
        response = await app.http.put("/runs/r", json=asked)
        run = response.json()

        assert response.status_code == 201
        assert run.pop("createdAt") > 0
        log = run.pop("position").removeprefix("0-0.")
        assert len(log) == 8
        assert run == {
            "run": "r",
            "generation": 1,
            "state": "open",
            "events": 0,
            "bytes": 0,
            "error": None,
            **asked,
            "userId": ["*"],
            "endedAt": None,
        }
        assert (await app.http.get("/runs/r")).json() == response.json()


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        pytest.param("/runs/r", json.dumps({**RUN, "keep": 9, "stoppable": True}), JSON, id="json"),
        pytest.param("/runs/r/", "channel=chat&userId=alex&keep=9&stoppable=true", FORM, id="form"),
        pytest.param("/runs/r?channel=chat&userId=alex&keep=9&stoppable=true", "", {}, id="query"),
        pytest.param("/runs/r?channel=chat&userId=alex&keep=9&stoppable=true", "", JSON, id="empty-json"),
        pytest.param("/runs/r?keep=1&channel=chat&userId=alex", "keep=9&stoppable=true", FORM, id="body-wins"),
        pytest.param(
            "/runs/r",
            multipart(("channel", "chat"), ("userId", "alex"), ("keep", "9"), ("stoppable", "true")),
            MULTIPART,
            id="multipart",
        ),
    ],
)
async def test_run_is_created_from_fields_wherever_they_are(path: str, body: Any, headers: dict[str, str]) -> None:
    async with control_app() as app:
        response = await app.http.request("PUT", path, content=body, headers=headers)

        assert response.status_code == 201
        found = response.json()
        assert (found["channel"], found["userId"], found["keep"], found["stoppable"]) == (["chat"], ["alex"], 9, True)


async def test_channels_and_users_may_be_repeated() -> None:
    async with control_app() as app:
        run = (await app.http.put("/runs/r?channel=a&channel=b&userId=x&userId=y")).json()

        assert (run["channel"], run["userId"]) == (["a", "b"], ["x", "y"])


@pytest.mark.parametrize("name", ["é", "a b", "100%", "?", "a;b", "[1]", "…", "x" * 255, "ü" * 255, "stop", "runs"])
async def test_name_is_what_the_path_says_in_utf8(name: str) -> None:
    async with control_app() as app:
        path = f"/runs/{quote(name, safe='')}"
        for slash in ("", "/"):
            response = await app.http.request("PUT", path + slash + "?takeover=true", json=RUN)

            assert (response.status_code, response.json()["run"]) == (201, name)
        assert (await app.http.get(f"{path}/events/")).status_code == 200


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/runs/a%2Fb", "run 'a/b' contains '/'"),
        ("/runs/a%0Ab", "contains a line break"),
        ("/runs/a%7Fb", "contains a control character"),
        ("/runs/%ff", "is not valid UTF-8"),
        (f"/runs/{'x' * 256}", "has 256 characters: at most 255"),
        (f"/runs/{'%C3%BC' * 3000}", "at most 255"),
        ("/runs/%2E%2E", "would be removed from a URL"),
    ],
)
async def test_other_names_are_refused(path: str, error: str) -> None:
    async with control_app() as app:
        for method, below in (("PUT", ""), ("POST", ""), ("GET", ""), ("POST", "/stop"), ("GET", "/events")):
            response = await app.http.request(method, httpx.URL(f"http://127.0.0.1{path}{below}"), json=RUN)

            assert response.status_code == 400
            assert error in response.json()["error"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"channel": None}, "channel is null"),
        ({"userId": []}, "userId is an empty list"),
        ({"channel": "a\nb"}, "channel 'a\\nb' contains a line break"),
        ({"keep": -1}, "keep -1 is not a number of seconds"),
        ({"idle": 0}, "idle 0 is not a number of seconds"),
        ({"idle": "5"}, "idle '5' is not a number of seconds"),
        ({"announce": "stream-x"}, "announce 'stream-x' begins with 'stream-'"),
        ({"stoppable": 1}, "stoppable must be true or false"),
        ({"restart": "yes"}, "restart must be true or false"),
        ({"restart": True, "takeover": True}, "restart and takeover are both given"),
        ({"generation": 1}, "unknown field 'generation'"),
    ],
)
async def test_bad_field_is_named_and_nothing_is_created(fields: dict[str, Any], error: str) -> None:
    async with control_app() as app:
        response = await create(app, **fields)

        assert response.status_code == 400
        assert error in response.json()["error"]
        assert (await app.http.get("/runs/r")).status_code == 404


async def test_open_run_is_409_and_an_ended_one_gets_its_next_generation() -> None:
    async with control_app() as app:
        await create(app)
        await append(app, "a", "b")
        conflict = await create(app)
        await app.http.post("/runs/r/finish")
        next_one = await create(app)

        assert conflict.status_code == 409
        body = conflict.json()
        assert "run 'r' has not ended" in body.pop("error")
        assert body == {"reason": "open", "generation": 1, "state": "open", "events": 2}
        assert next_one.status_code == 201
        assert (next_one.json()["generation"], next_one.json()["events"]) == (2, 0)


@pytest.mark.parametrize(("field", "left"), [("restart", 0), ("takeover", 2)])
async def test_put_with_restart_drops_the_events_and_with_takeover_keeps_them(field: str, left: int) -> None:
    async with control_app() as app:
        first = (await create(app)).json()
        await append(app, "a", "b")
        second = await app.http.put(f"/runs/r?channel=chat&userId=alex&{field}=true")

        assert second.status_code == 201
        assert (second.json()["generation"], second.json()["events"]) == (2, left)
        same_log = second.json()["position"].partition(".")[2] == first["position"].partition(".")[2]
        assert same_log is (field == "takeover")


async def test_same_idempotency_key_creates_once_and_another_body_is_422() -> None:
    async with control_app() as app:
        headers = {"Idempotency-Key": '"k"'}
        answers = [await app.http.put("/runs/r", json=RUN, headers=headers) for _ in range(3)]
        await append(app, "x")
        after_an_event = await app.http.put("/runs/r", json=RUN, headers={"Idempotency-Key": "k"})
        other_body = await app.http.put("/runs/r", json={**RUN, "keep": 5}, headers=headers)
        other_run = await app.http.put("/runs/s", json=RUN, headers=headers)

        assert [(answer.status_code, answer.json()["generation"]) for answer in answers] == [(201, 1)] * 3
        assert (after_an_event.status_code, after_an_event.json()["events"]) == (201, 1)
        assert other_body.status_code == 422
        assert other_run.status_code == 201


# The end


async def test_finish_ends_as_done_or_as_failed_with_its_error() -> None:
    async with control_app() as app:
        for name, fields, state, error in (("a", {}, "done", None), ("b", {"error": "no model"}, "failed", "no model")):
            await create(app, name)
            response = await app.http.post(f"/runs/{name}/finish", json={"generation": 1, **fields})

            assert response.status_code == 200
            run = response.json()
            assert (run["state"], run["error"], run["position"].partition(".")[0]) == (state, error, "1-0")
            assert run["endedAt"] >= run["createdAt"]


@pytest.mark.parametrize("call", ["finish", "stop"])
async def test_late_call_with_an_old_generation_ends_nothing(call: str) -> None:
    async with control_app() as app:
        await create(app)
        await create(app, restart=True)
        answers = [
            await app.http.post(f"/runs/r/{call}", json={"generation": 1}),
            await app.http.post(f"/runs/r/{call}?generation=1"),
            await app.http.post(f"/runs/r/{call}/", content="generation=1", headers=FORM),
            await app.http.post(f"/runs/r/{call}", headers={"Run-Generation": "1"}),
        ]

        assert [answer.status_code for answer in answers] == [409] * 4
        assert {(a.json()["reason"], a.json()["generation"], a.json()["state"]) for a in answers} == {
            ("stale", 2, "open")
        }
        assert (await app.http.get("/runs/r")).json()["state"] == "open"
        assert (await app.http.post(f"/runs/r/{call}", headers={"Run-Generation": "2"})).status_code == 200


@pytest.mark.parametrize("headers", [{}, JSON, NDJSON, FORM, {"content-type": "text/plain"}])
@pytest.mark.parametrize("call", ["finish", "stop"])
async def test_empty_body_is_fine_whatever_its_type(call: str, headers: dict[str, str]) -> None:
    async with control_app() as app:
        await create(app)
        response = await app.http.post(f"/runs/r/{call}", headers=headers)

        assert (response.status_code, response.json()["state"]) == (200, "done" if call == "finish" else "stopped")


@pytest.mark.parametrize(
    ("call", "headers", "body", "error"),
    [
        ("finish", {"Run-Generation": "x"}, {}, "Run-Generation 'x' is not a whole number"),
        ("stop", {"Run-Generation": "-1"}, {}, "Run-Generation '-1' is not a whole number"),
        ("stop", {}, {"generation": 1.5}, "generation 1.5 is not a whole number"),
        ("stop", {}, {"generation": True}, "generation True is not a whole number"),
        ("stop", {"Run-Generation": "1"}, {"generation": 1}, "Run-Generation and generation are both given"),
        ("stop", {}, {"error": "x"}, "unknown field 'error'"),
        ("finish", {}, {"error": ""}, "error must be a text that is not empty"),
        ("finish", {}, {"error": 5}, "error must be a text that is not empty"),
        ("finish", {}, {"error": "x" * 1_001}, "error has 1001 characters"),
        ("finish", {}, {"state": "done"}, "unknown field 'state'"),
    ],
)
async def test_bad_end_is_refused(call: str, headers: dict[str, str], body: dict[str, object], error: str) -> None:
    async with control_app() as app:
        await create(app)
        response = await app.http.post(f"/runs/r/{call}", json=body, headers=headers)

        assert response.status_code == 400
        assert error in response.json()["error"]
        assert (await app.http.get("/runs/r")).json()["state"] == "open"


async def test_deleted_run_is_gone_and_its_generation_never_repeats() -> None:
    async with control_app() as app:
        await create(app)
        deleted = await app.http.delete("/runs/r")

        assert (deleted.status_code, deleted.json()["state"], deleted.json()["error"]) == (200, "failed", "deleted")
        for method, below in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("POST", "/stop"), ("POST", "/finish")):
            response = await app.http.request(method, f"/runs/r{below}")
            assert response.status_code == 404
            assert "there is no run 'r'" in response.json()["error"]
        assert (await create(app)).json()["generation"] == 2


# Appends of a whole body


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"data": "x"}, [{"data": "x"}]),
        ({"data": {"a": [1]}}, [{"data": '{"a":[1]}'}]),
        ({"data": "x", "event": "t", "id": "i", "retry": 5}, [{"data": "x", "event": "t", "id": "i", "retry": 5}]),
        ({"payload": "event: t\ndata: x\n\n"}, [{"data": "x", "event": "t"}]),
        ([{"data": 1}, {"data": 2}], [{"data": "1"}, {"data": "2"}]),
    ],
)
async def test_json_is_appended_and_read_again_field_for_field(body: Any, kept: list[dict[str, Any]]) -> None:
    async with control_app() as app:
        await create(app)
        response = await app.http.post("/runs/r", json=body)

        assert response.status_code == 200
        assert response.json() == {"generation": 1, "state": "open", "events": len(kept)}
        assert await events(app) == kept


async def test_array_is_appended_as_a_whole_or_not_at_all() -> None:
    async with control_app(limits=Limits(max_batch_events=3)) as app:
        await create(app)
        bad = await app.http.post("/runs/r", json=[{"data": 1}, {"data": 2, "userId": "a"}])
        many = await app.http.post("/runs/r", json=[{"data": 1}] * 4)
        none = await app.http.post("/runs/r", json=[])

        assert (bad.status_code, many.status_code, none.status_code) == (400, 413, 400)
        assert bad.json()["error"].startswith("event 1: userId: ")
        assert bad.json()["reason"] == "invalid"
        assert await events(app) == []


async def test_one_request_creates_appends_and_finishes() -> None:
    async with control_app() as app:
        response = await app.http.post("/runs/r?channel=chat&userId=alex&keep=60&finish=done", json=[{"data": "x"}])

        assert response.json() == {"generation": 1, "state": "done", "events": 1}
        run = (await app.http.get("/runs/r")).json()
        assert (run["keep"], run["state"]) == (60, "done")
        failed = await app.http.post("/runs/r?channel=chat&userId=alex&finish=failed&error=no+model", json={"data": 1})
        assert failed.json() == {"generation": 2, "state": "failed", "events": 1}
        assert (await app.http.get("/runs/r")).json()["error"] == "no model"


async def test_offset_below_the_count_skips_the_overlap_and_one_above_is_409() -> None:
    async with control_app() as app:
        await create(app)
        headers = {"Run-Producer": "p", "Run-Offset": "0"}
        batch = [{"data": n} for n in range(3)]
        for _ in range(2):
            again = await app.http.post("/runs/r", json=batch, headers=headers)
            assert again.json()["events"] == 3
        overlap = await app.http.post("/runs/r", json=batch, headers={**headers, "Run-Offset": "2"})
        gap = await app.http.post("/runs/r", json=batch, headers={**headers, "Run-Offset": "9"})

        assert overlap.json()["events"] == 5
        assert (gap.status_code, gap.json()["reason"], gap.json()["events"]) == (409, "offset", 5)
        assert [event["data"] for event in await events(app)] == ["0", "1", "2", "1", "2"]


async def test_last_body_may_be_sent_again_after_the_end() -> None:
    async with control_app() as app:
        await create(app)
        headers = {"Run-Producer": "p", "Run-Offset": "0", **NDJSON}
        answers = [
            await app.http.post("/runs/r?finish=done", content=b'{"data":1}\n{"data":2}\n', headers=headers)
            for _ in range(2)
        ]

        assert [answer.json() for answer in answers] == [{"generation": 1, "state": "done", "events": 2}] * 2


@pytest.mark.parametrize(
    ("query", "headers", "error"),
    [
        ("", {"Run-Offset": "x"}, "Run-Offset 'x' is not a whole number"),
        ("", {"Run-Generation": "one"}, "Run-Generation 'one' is not a whole number"),
        ("", {"Run-Producer": ""}, "Run-Producer is empty"),
        ("", {"Run-Producer": "x" * 256}, "Run-Producer has 256 characters"),
        ("?generation=1", {"Run-Generation": "1"}, "both given"),
        ("?finish=ended", {}, "finish 'ended' is not one of done, failed"),
        ("?error=x", {}, "error is given without finish=failed"),
        ("?data=x", {}, "unknown field 'data'"),
        ("?channel=chat", {}, "userId is missing"),
    ],
)
@pytest.mark.parametrize("kind", [JSON, NDJSON])
async def test_bad_header_or_field_of_an_append_is_named(
    query: str, headers: dict[str, str], error: str, kind: dict[str, str]
) -> None:
    async with control_app() as app:
        await create(app)
        response = await app.http.post(f"/runs/r{query}", content=b'{"data":1}', headers={**headers, **kind})

        assert (response.status_code, response.json()["reason"]) == (400, "invalid")
        assert error in response.json()["error"]
        assert await events(app) == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_body_of_another_type_is_415(kind: str) -> None:
    async with control_app() as app:
        await create(app)
        headers = {"content-type": kind} if kind else {}
        response = await app.http.post("/runs/r", content=b"data=1", headers=headers)

        assert response.status_code == 415
        assert "text/event-stream or application/json" in response.json()["error"]


async def test_append_without_a_body_only_finishes() -> None:
    async with control_app() as app:
        await create(app)
        await append(app, "x")

        assert (await app.http.post("/runs/r?finish=done")).json() == {"generation": 1, "state": "done", "events": 1}


async def test_append_to_an_ended_run_is_409_with_its_error() -> None:
    async with control_app() as app:
        await create(app)
        await app.http.post("/runs/r/finish", json={"error": "no model"})
        response = await append(app, "x")

        body = response.json()
        assert (response.status_code, body.pop("error")[:17]) == (409, "run 'r' has ended")
        assert body == {"reason": "ended", "generation": 1, "state": "failed", "events": 0, "runError": "no model"}


async def test_rate_of_a_key_is_429_for_a_whole_body() -> None:
    async with control_app(limits=Limits(max_publishes_per_second=1)) as app:
        await create(app)
        statuses = [(await append(app, *"abcdef")).status_code for _ in range(3)]
        refused = await append(app, "x")

        assert statuses == [200, 200, 429]
        assert (refused.status_code, refused.json()["reason"]) == (429, "rate")
        assert int(refused.headers["retry-after"]) >= 1
        assert 'ssehub_appends_refused_total{reason="rate"} 2.0' in await app.metrics()


# Reading and listing


async def test_all_events_are_read_in_order_page_by_page() -> None:
    async with control_app() as app:
        await create(app)
        data = [f"{n} " + "x" * 1_000 for n in range(300)]
        await append(app, *data)
        response = await app.http.get("/runs/r/events")

        assert [json.loads(line)["data"] for line in response.text.splitlines()] == data
        headers = response.headers
        assert [headers[f"run-{name}"] for name in ("generation", "state", "events")] == ["1", "open", "300"]
        assert (await app.http.head("/runs/r/events")).text == ""


async def test_events_are_cut_off_if_the_run_is_restarted_underneath() -> None:
    async with control_app() as app:
        await create(app)
        await append(app, *["x" * 1_000] * 300)
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 2:
                await create(app, restart=True)

        scope = {"type": "http", "method": "GET", "path": "/runs/r/events", "query_string": b""}
        headers = [(b"host", b"127.0.0.1")]
        with pytest.raises(RuntimeError, match="are gone"):  # this server offers no way to close the connection
            await app.app({**scope, "headers": headers}, never, send)

        assert all(message.get("more_body") for message in sent[1:])


async def test_reading_a_long_run_gives_way_to_other_work() -> None:
    async with control_app() as app:
        await create(app)
        await append(app, *["x" * 1_000] * 300)
        turns, sent = 0, 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def send(message: Any) -> None:  # a client that reads everything at once
            nonlocal sent
            sent += 1

        counting = asyncio.create_task(count_turns())
        scope = {"type": "http", "method": "GET", "path": "/runs/r/events", "query_string": b""}
        await app.app({**scope, "headers": [(b"host", b"127.0.0.1")]}, never, send)
        counting.cancel()

        assert turns >= sent - 2 >= 4


async def never() -> Any:
    raise AssertionError("a GET has no body")


async def test_list_is_filtered_and_goes_on_after_a_name() -> None:
    async with control_app() as app:
        runs: dict[str, dict[str, Any]] = {
            "a": {},
            "b": {"userId": "kim"},
            "c": {"userId": "*", "channel": ["news", "chat"]},
            "d": {"channel": "news"},
        }
        for name, fields in runs.items():
            await create(app, name, **fields)
        await app.http.post("/runs/a/finish")

        async def listed(query: str) -> tuple[list[str], str | None]:
            body = (await app.http.get(f"/runs/?{query}")).json()
            return [run["run"] for run in body["runs"]], body["next"]

        assert await listed("") == (["a", "b", "c", "d"], None)
        assert await listed("userId=alex") == (["a", "c", "d"], None)
        assert await listed("channel=chat") == (["a", "b", "c"], None)
        assert await listed("userId=alex&state=open&channel=news") == (["c", "d"], None)
        assert await listed("state=done,failed") == (["a"], None)
        assert await listed("state=done&state=open&limit=3") == (["a", "b", "c"], "c")
        assert await listed("limit=3&after=c") == (["d"], None)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("state=closed", "state 'closed' is not one of open, stopping, done, failed, stopped"),
        ("limit=0", "limit 0 is not between 1 and 1000"),
        ("limit=1001", "limit 1001 is not between 1 and 1000"),
        ("limit=x", "limit 'x' is not a whole number"),
        ("userId=a&userId=b", "userId is given twice"),
        ("user=a", "unknown field 'user'"),
        ("userId=", "userId is empty"),
    ],
)
async def test_bad_filter_is_named(query: str, error: str) -> None:
    async with control_app() as app:
        response = await app.http.get(f"/runs/?{query}")

        assert response.status_code == 400
        assert error in response.json()["error"]


# Paths, methods, keys


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/runs/", 405, "GET"),
        ("PATCH", "/runs/r", 405, "POST, PUT, GET, DELETE"),
        ("GET", "/runs/r/stop", 405, "POST"),
        ("DELETE", "/runs/r/events", 405, "GET"),
        ("GET", "/runs/r/event", 404, None),
        ("GET", "/runs/r/events/x", 404, None),
        ("GET", "/runs//events", 404, None),
    ],
)
async def test_other_paths_and_methods_are_answered_in_json(
    method: str, path: str, status: int, allow: str | None
) -> None:
    async with control_app() as app:
        response = await app.http.request(method, path)

        assert (response.status_code, response.headers.get("allow")) == (status, allow)
        assert "use " in response.json()["error"]


async def test_calls_work_below_a_root_path() -> None:
    async with control_app() as app:
        transport = httpx.ASGITransport(app.app, root_path="/hub")
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/hub/") as http:
            assert (await http.put("runs/a%20b", json=RUN)).status_code == 201
            assert (await http.get("runs/a%20b/events")).status_code == 200
            assert len((await http.get("runs")).json()["runs"]) == 1


CHAT = NamedKey("chat", ["publish"], ["chat", "chat.*"])
ALL = NamedKey("all", ["publish"])
READER = NamedKey("reader", ["read"])


@pytest.mark.parametrize(
    ("method", "below", "body"),
    [
        ("PUT", "?takeover=true", {"channel": "chat", "userId": "alex"}),
        ("POST", "", {"data": "x"}),
        ("POST", "?channel=chat&userId=alex", {"data": "x"}),
        ("POST", "/finish", None),
        ("POST", "/stop", None),
        ("GET", "", None),
        ("GET", "/events", None),
        ("DELETE", "", None),
    ],
)
async def test_key_may_only_use_runs_within_its_channels(method: str, below: str, body: object, tmp_path: Path) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", CHAT, ALL, READER))
    async with control_app(control_keys=keys) as app:
        await app.http.put("/runs/r", json={**RUN, "channel": ["chat", "news"]}, headers=ALL.headers)
        before = await state(app)
        refused = await app.http.request(method, f"/runs/r{below}", json=body, headers=CHAT.headers)
        without_right = await app.http.request(method, f"/runs/r{below}", json=body, headers=READER.headers)
        without_key = await app.http.request(method, f"/runs/r{below}", json=body)

        assert refused.status_code == 403
        assert "channel 'news' is not allowed with control key 'chat'" in refused.json()["error"]
        assert (without_right.status_code, without_key.status_code) == (403, 401)
        assert "lacks the right 'publish'" in without_right.json()["error"]
        assert without_key.json()["error"]
        assert await state(app) == before


CHANGES = [
    pytest.param("PUT", "", {"channel": "chat", "userId": "alex"}, id="create"),
    pytest.param("PUT", "?restart=true", {"channel": "chat", "userId": "alex"}, id="restart"),
    pytest.param("PUT", "?takeover=true", {"channel": "chat", "userId": "alex"}, id="takeover"),
    pytest.param("DELETE", "", None, id="delete"),
    pytest.param("POST", "", [{"data": "x"}], id="json"),
    pytest.param("POST", "", '{"data":"x"}', id="ndjson"),
    pytest.param("POST", "?channel=chat&userId=alex", [{"data": "x"}], id="join"),
    pytest.param("POST", "?channel=chat&userId=alex", '{"data":"x"}', id="join-ndjson"),
    pytest.param("POST", "/finish", {}, id="finish"),
    pytest.param("POST", "/stop", {}, id="stop"),
]
NEXT_GENERATION = {"Run-Generation": "2"}


async def begin(app: ControlApp, channel: str, *, has_ended: bool = False) -> None:
    """Begin the next generation of `r` on a channel."""
    await app.hub.runs.create("r", Creation(RunOptions((channel,), ("alex",)), CreateMode.RESTART))
    if has_ended:
        await app.hub.runs.finish("r", Outcome(RunState.DONE))


@asynccontextmanager
async def beginning_anew(app: ControlApp, channel: str, times: int, *, has_ended: bool = False) -> AsyncIterator[None]:
    """After each of so many looks at the run, let it begin anew on a channel."""
    store = app.hub.broker.runs
    get = store.get

    async def get_slowly(name: str) -> Run | None:
        nonlocal times
        found = await get(name)
        if times:
            times -= 1
            if found is not None:  # the store in memory changes the run that it returned
                found = Run(name, found.options, found.generation, found.log, found.created_at)
            await begin(app, channel, has_ended=has_ended)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "get", get_slowly)
        yield


async def change(app: ControlApp, method: str, below: str, body: Any, **headers: str) -> httpx.Response:
    """Make one of CHANGES with the key that is limited to `chat`."""
    content, json = (body, None) if isinstance(body, str) else (None, body)
    all_headers = {**CHAT.headers, **(NDJSON if content else {}), **headers}
    return await app.http.request(method, f"/runs/r{below}", json=json, content=content, headers=all_headers)


@pytest.mark.parametrize(("method", "below", "body"), CHANGES)
@pytest.mark.parametrize("before", [None, "open", "done"])
@pytest.mark.parametrize("has_ended", [False, True])
async def test_key_does_not_change_a_run_that_began_while_its_channels_were_checked(
    method: str, below: str, body: Any, before: str | None, has_ended: bool, tmp_path: Path
) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", CHAT))
    async with control_app(control_keys=keys) as app:
        if before is not None:
            await begin(app, "chat", has_ended=before == "done")
        async with beginning_anew(app, "news", 1, has_ended=has_ended):
            response = await change(app, method, below, body)

        assert response.status_code in (403, 404, 409)
        generation, end, events, found = await state(app)
        assert (generation, found.channels) == (1 if before is None else 2, ("news",))
        assert (end, events) == ("done" if has_ended else "open", 0)


@pytest.mark.parametrize(("method", "below", "body"), [each for each in CHANGES if each.values[0] == "POST"])
async def test_key_does_not_change_the_next_generation_by_guessing_its_number(
    method: str, below: str, body: Any, tmp_path: Path
) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", CHAT))
    async with control_app(control_keys=keys) as app:
        await begin(app, "chat")
        async with beginning_anew(app, "news", 1):
            response = await change(app, method, below, body, **NEXT_GENERATION)

        assert response.status_code in (403, 409)
        assert (await state(app))[:3] == (2, "open", 0)


@pytest.mark.parametrize(
    ("method", "below", "body"),
    [each for each in CHANGES if each.id in ("restart", "delete", "join", "finish", "stop")],
)
async def test_run_that_begins_anew_on_the_same_channel_is_looked_at_again(
    method: str, below: str, body: Any, tmp_path: Path
) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", CHAT))
    async with control_app(control_keys=keys) as app:
        await begin(app, "chat")
        async with beginning_anew(app, "chat", 2):
            response = await change(app, method, below, body)
        async with beginning_anew(app, "chat", 100):
            refused = await change(app, method, below, body)

        assert response.is_success and response.json()["generation"] == (4 if below == "?restart=true" else 3)
        assert (refused.status_code, refused.json()["reason"]) == (409, "stale")


async def state(app: ControlApp, name: str = "r") -> tuple[Any, ...]:
    run: Run | None = await app.hub.runs.get(name)
    assert run is not None
    return run.generation, run.state, run.events, run.options


async def test_key_creates_and_lists_only_within_its_channels(tmp_path: Path) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", CHAT, ALL))
    async with control_app(control_keys=keys) as app:

        async def put(name: str, channels: Sequence[str], key: NamedKey) -> int:
            body = {**RUN, "channel": channels}
            return (await app.http.put(f"/runs/{name}", json=body, headers=key.headers)).status_code

        assert await put("a", ["news"], ALL) == 201
        assert await put("b", ["chat", "chat.1"], CHAT) == 201
        assert await put("c", ["chat", "news"], CHAT) == 403
        assert await put("d", ["chat"], ALL) == 201
        assert await put("e", ["news"], ALL) == 201
        for query, names, following in (("", ["b", "d"], None), ("limit=1", ["b"], "b"), ("after=b", ["d"], None)):
            body = (await app.http.get(f"/runs?{query}", headers=CHAT.headers)).json()
            assert ([run["run"] for run in body["runs"]], body["next"]) == (names, following)


@pytest.mark.parametrize(
    ("left", "status", "error"),
    [
        pytest.param([], 401, "missing or wrong", id="removed"),
        pytest.param([READER], 401, "missing or wrong", id="replaced"),
        pytest.param([replace(CHAT, rights=["read"])], 403, "lacks the right 'publish'", id="right"),
        pytest.param([replace(CHAT, channels=["news"])], 403, "channel 'chat' is not allowed", id="channel"),
        pytest.param([CHAT, READER], 200, None, id="still-valid"),
    ],
)
async def test_open_append_ends_with_its_key(
    left: Sequence[NamedKey], status: int, error: str | None, tmp_path: Path
) -> None:
    path = write_keys(tmp_path / "keys.toml", CHAT, ALL)
    keys = ControlKeys(file=path)
    async with control_app(control_keys=keys) as app:
        await app.http.put("/runs/r", json=RUN, headers=CHAT.headers)

        async def body() -> AsyncIterator[bytes]:
            yield b'{"data":"1"}\n'
            write_keys(path, *left, ALL)
            await keys.reload()
            yield b'{"data":"2"}\n'
            yield b'{"data":"3"}\n'

        response = await app.http.post("/runs/r", content=body(), headers={**CHAT.headers, **NDJSON})

        assert (response.status_code, response.json().get("reason")) == (status, None if error is None else "forbidden")
        assert (error or "") in response.json().get("error", "")
        assert response.json()["events"] == (1 if error else 3)
        assert (await state(app))[2] == (1 if error else 3)


async def test_store_is_not_asked_for_each_run_that_a_key_may_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", CHAT))
    async with control_app(control_keys=keys) as app:
        for n in range(50):
            await app.hub.runs.create(f"r{n:02}", Creation(RunOptions(("chat" if n == 49 else "news",), ("alex",))))
        store = app.hub.broker.runs
        list_runs, calls = store.list_runs, 0

        async def count_calls(*args: Any) -> list[Run]:
            nonlocal calls
            calls += 1
            return await list_runs(*args)

        monkeypatch.setattr(store, "list_runs", count_calls)
        body = (await app.http.get("/runs/?limit=1", headers=CHAT.headers)).json()

        assert ([run["run"] for run in body["runs"]], calls) == (["r49"], 1)


async def test_draining_hub_refuses_new_runs_and_appends_with_503() -> None:
    async with control_app() as app:
        await create(app)
        await app.hub.drain(0.01)
        appended = await append(app, "x")

        assert (appended.status_code, appended.json()["reason"]) == (503, "draining")
        assert appended.headers["retry-after"]
        assert (await app.http.get("/runs/r")).json()["events"] == 0
