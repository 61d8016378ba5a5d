"""Large and hostile request bodies: decided soon, in slices, within memory, and never with a 500."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
import tracemalloc
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_plus, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from control_requests import FORM, JSON, MULTIPART, NDJSON, control_app, event_json, multipart
from ssehub.errors import InvalidEvent, InvalidRequest
from ssehub.pace import Pace
from ssehub.web.forms import form_fields
from ssehub.web.requests import ControlRequest

SOAK = "SOAK" in os.environ
SIZE = 8 * 2**20 - 300
ADDRESSED = '"userId":"*","channel":"chat"'
FORM_START = "userId=*&channel=chat&data="
CPU_SECONDS, STRETCH_SECONDS = (0.5, 0.05) if SOAK else (3.0, 0.25)


def filled(piece: str, start: str = "", end: str = "", size: int = SIZE) -> str:
    return start + piece * ((size - len(start) - len(end)) // len(piece)) + end


def event_with(data: str, more: str = "") -> str:
    return f'{{{ADDRESSED},"data":{data}{more}}}'


def doubled(count: int) -> str:
    """Return an object with `count` names, the last of which is the first one again."""
    return "{" + ",".join(f'"{n}":1' for n in range(count - 1)) + ',"0":1}'


BODIES: dict[str, tuple[dict[str, str], Callable[[], str | bytes], int]] = {
    "C7-doubled-names": (JSON, lambda: doubled(17_000), 400),
    "C7-doubled-names-in-data": (JSON, lambda: event_with(doubled(17_000)), 400),
    "C7-doubled-names-8-MiB": (JSON, lambda: doubled(600_000), 413),
    "C7-numbers": (JSON, lambda: filled("1,", event_with("[")[:-1], "1]}"), 413),
    "C7-objects": (JSON, lambda: filled('{"a":1},', event_with("[")[:-1], "1]}"), 413),
    "C7-long-numbers": (JSON, lambda: event_with("[" + ",".join(["9" * 4_000] * 2_000) + "]"), 413),
    "C7-brackets": (JSON, lambda: filled("["), 413),
    "C7-quotes": (JSON, lambda: filled('"'), 400),
    "C7-spaces": (JSON, lambda: filled(" "), 400),
    "C7-string": (JSON, lambda: event_with('"' + filled("x", size=SIZE - 100) + '"'), 413),
    "C7-escapes": (JSON, lambda: event_with('"' + filled("\\n", size=SIZE - 100) + '"'), 413),
    "C7-array": (JSON, lambda: filled("1,", "[", "1]"), 413),
    "C7-batch-of-large-events": (JSON, lambda: "[" + ",".join([event_with(f'"{"x" * 2**20}"')] * 7 + ["1"]) + "]", 400),
    "C7-batch-with-a-bad-last-event": (
        JSON,
        lambda: "[" + ",".join([event_with(f'"{"x" * 700}"')] * 9_999 + ["{}"]) + "]",
        400,
    ),
    "C7-lines": (NDJSON, lambda: filled("1\n"), 413),
    "C7-line-of-events": (NDJSON, lambda: filled(event_with('"x"') + "\n"), 413),
    "C7-empty-lines": (NDJSON, lambda: filled("\n"), 400),
    "C7-lines-of-spaces": (NDJSON, lambda: filled(" \n"), 400),
    "C7-percent": (FORM, lambda: filled("%41", FORM_START), 413),
    "C7-percent-3-MiB": (FORM, lambda: filled("%41", FORM_START, size=3 * 2**20), 200),
    "C7-percent-no-escape": (FORM, lambda: filled("%4z", FORM_START, size=3 * 2**20), 413),
    "C7-percent-signs": (FORM, lambda: filled("%", FORM_START, size=3 * 2**20), 413),
    "C7-small-form-of-percent-signs": (FORM, lambda: filled("%", FORM_START, size=2**16), 200),
    "C7-long-value": (FORM, lambda: filled("x", FORM_START), 413),
    "C7-long-name": (FORM, lambda: filled("x"), 400),
    "C7-ampersands": (FORM, lambda: filled("&"), 400),
    "C7-multipart": (MULTIPART, lambda: multipart(("data", filled("x"))), 413),
    "C7-multipart-line-ends": (MULTIPART, lambda: multipart(("data", filled("\r\n"))), 413),
    "C7-multipart-boundaries": (MULTIPART, lambda: multipart(("data", filled("\r\n--X"))), 413),
    "C7-multipart-parts": (MULTIPART, lambda: multipart(*[("data", "x")] * 120_000), 400),
    "C7-multipart-file": (MULTIPART, lambda: multipart(('data"; filename="f', filled("x"))), 413),
    "C7-multipart-files": (MULTIPART, lambda: multipart(*[('data"; filename="f', "x")] * 90_000), 400),
    "C7-multipart-headers": (MULTIPART, lambda: filled("a:b\r\n", "--XX\r\n", "\r\nx\r\n--XX--\r\n"), 400),
    "C7-multipart-long-header": (MULTIPART, lambda: filled("a", "--XX\r\na:", "\r\n\r\nx\r\n--XX--\r\n"), 400),
    "C7-multipart-long-name": (
        MULTIPART,
        lambda: filled(";", '--XX\r\nContent-Disposition: form-data; name="', '"\r\n\r\nx\r\n--XX--\r\n'),
        400,
    ),
    "C7-multipart-preamble": (MULTIPART, lambda: filled("\r\n"), 400),
    "C7-payload-of-ids": (
        JSON,
        lambda: f'{{{ADDRESSED},"payload":"{filled("id:1" + chr(92) + "n", size=2**20)}"}}',
        400,
    ),
}


class Watch:
    """Measures the CPU time that the event loop's thread spends, in all and in the longest stretch.

    Other processes do not count, but slow it down: the best of up to three watches has to be within the bounds.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.total = 0.0

    @property
    def is_within_bounds(self) -> bool:
        return self.total < CPU_SECONDS and self.longest < STRETCH_SECONDS

    async def over(self, work: Any) -> Any:
        gc.collect()
        gc.freeze()  # the objects of the test process would make collections longer than they are in a hub
        task = asyncio.ensure_future(work)
        began = last = time.thread_time()
        while not task.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - last)
            last = now
        self.total = last - began
        gc.unfreeze()
        return task.result()


@pytest.mark.soak
@pytest.mark.anyio
@pytest.mark.parametrize(("headers", "body", "status"), BODIES.values(), ids=BODIES.keys())
async def test_c7_any_body_is_decided_soon_and_in_slices(
    headers: dict[str, str], body: Callable[[], str | bytes], status: int
) -> None:
    content = body()
    watches = []
    async with control_app() as app:
        for _ in range(3):
            watch = Watch()
            response = await watch.over(app.post("/emit/", content, headers))
            watches.append(watch)

            assert response.status_code == status, response.text[:300]
            if watch.is_within_bounds:
                break

    assert min(watch.total for watch in watches) < CPU_SECONDS
    assert min(watch.longest for watch in watches) < STRETCH_SECONDS


def lines(count: int, event: str) -> str:
    return "\n".join([event] * count)


ACCEPTED: dict[str, Callable[[], str]] = {
    "C7-10000-small-events": lambda: lines(10_000, event_with('"x"')),
    "C7-10000-events-of-8-MiB": lambda: lines(10_000, event_with(f'"{"x" * 790}"')),
    "C7-8-MiB-of-lines": lambda: lines(220, event_with('"' + "x\\n" * 12_500 + '"')),
    "C7-8-events-of-lines": lambda: lines(8, event_with('"' + "\\n" * 490_000 + '"')),
}


@pytest.mark.soak
@pytest.mark.anyio
@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_c7_accepted_batches_are_delivered_in_slices(body: Callable[[], str]) -> None:
    content = body()
    count = content.count("\n") + 1
    watches = []
    async with control_app() as app:
        for times in range(1, 4):
            watch = Watch()
            response = await watch.over(app.post("/emit/", content, NDJSON))
            watches.append(watch)

            assert response.status_code == 200, response.text[:300]
            assert app.hub.statistics.published == times * count
            if watch.is_within_bounds:
                break

    assert min(watch.total for watch in watches) < CPU_SECONDS
    assert min(watch.longest for watch in watches) < STRETCH_SECONDS


@pytest.mark.soak
@pytest.mark.anyio
async def test_c7_large_bodies_take_their_turns() -> None:
    """Ten large bodies at once: the slices of one do not add up with those of the others."""
    watches = []
    body = "[" + ",".join([event_with(f'"{"x" * 300}"')] * 2_000 + ["{}"]) + "]"
    async with control_app() as app:
        for _ in range(3):
            watch = Watch()
            responses = await watch.over(asyncio.gather(*[app.post("/emit/", body, JSON) for _ in range(10)]))
            watches.append(watch)

            assert {response.status_code for response in responses} == {400}
            if watch.longest < STRETCH_SECONDS:
                break

    assert min(watch.longest for watch in watches) < STRETCH_SECONDS


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/token/", "/disconnect/"])
async def test_c7_large_bodies_of_other_calls_are_decided_in_slices(path: str) -> None:
    watch = Watch()
    async with control_app() as app:
        for headers, body in ((JSON, doubled(600_000)), (FORM, filled("%41", "userId=")), (FORM, filled("&"))):
            response = await watch.over(app.post(path, body, headers))

            assert response.status_code in (400, 413)
    assert watch.longest < 0.3


CHUNK_BYTES = 64 * 1024


class EndlessBody:
    """A POST request whose body does not end. After `bytes_sent` it waits until `goes_on` is set, then it ends."""

    def __init__(self, headers: dict[str, str], bytes_sent: int) -> None:
        self.goes_on = asyncio.Event()
        self.is_answered = asyncio.Event()
        self.status: int | None = None
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._left = bytes_sent

    async def post(self, app: ASGIApp) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/emit/",
            "raw_path": b"/emit/",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1:8001"), *self._headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8001),
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, object]:
        if self._left <= 0:
            await self.goes_on.wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        self._left -= CHUNK_BYTES
        return {"type": "http.request", "body": bytes(CHUNK_BYTES), "more_body": True}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.is_answered.set()


@pytest.mark.soak
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "status", "most"),
    [
        pytest.param(FORM, 413, 9 * 2**20, id="C6-chunked"),
        pytest.param({**FORM, "content-length": "99999999"}, 413, 2**20, id="C6-declared"),
        pytest.param({**FORM, "content-encoding": "gzip"}, 415, 2**20, id="C6-gzip"),
    ],
)
async def test_c6_refused_bodies_are_not_kept(headers: dict[str, str], status: int, most: int) -> None:
    """While clients go on sending, the hub holds a chunk or two for each, and never more than one body besides."""
    count = 40 if SOAK else 6
    async with control_app() as app:
        bodies = [EndlessBody(headers, 12 * 2**20) for _ in range(count)]
        tracemalloc.start()
        try:
            posts = [asyncio.ensure_future(body.post(app.app)) for body in bodies]
            await asyncio.gather(*[body.is_answered.wait() for body in bodies])
            await asyncio.sleep(0.1)  # until each has sent what it will
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for body in bodies:
            body.goes_on.set()
        await asyncio.gather(*posts)

    assert [body.status for body in bodies] == [status] * count
    assert held < count * 3 * CHUNK_BYTES
    assert peak < most + count * 3 * CHUNK_BYTES


LONG = b"=" + b"a" * 70_000
"""Replaces `@` in the bodies that hypothesis makes up."""
KINDS = {"form": FORM, "multipart": MULTIPART, "json": JSON, "ndjson": NDJSON}
PIECES = [
    *(
        b"%",
        b"%4",
        b"%41",
        b"%C3%A9",
        b"%ff",
        b"&",
        b"=",
        b"+",
        b"\\",
        b"x41",
        b"\n",
        b"\r\n",
        b"\xff",
        b"\xc3",
        b"\xa9",
    ),
    *("é".encode(), b"data", b"data=", b"userId=*&channel=chat&", b"id", b"retry=5", b"payload=", b"@"),
    *(
        b"--XX",
        b"--XX--\r\n",
        b'--XX\r\nContent-Disposition: form-data; name="data"\r\n\r\n',
        b"\r\n--XX",
        b'"; filename="f',
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b'"',
        b":",
        b"null",
        b"1",
        b"1e999",
        b'{"userId":"*","channel":"chat","data":1}',
        b"[[" * 999,
    ),
]


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 150, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)), st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join)
)
@example("form", b"userId=*&channel=chat&data=%ED%A0%80")
@example("json", b'{"userId":"*","channel":"chat","data":"\\ud800"}')
@example("multipart", b'--XX\r\nContent-Disposition: form-data; name="data"; filename="f"\r\n\r\nx\r\n--XX--\r\n')
@example("ndjson", b"\n\n[]\n")
@example("json", b"[[" * 40_000)
def test_c5_no_body_gets_a_500(kind: str, body: bytes) -> None:
    async def status() -> int:
        async with control_app() as app:
            return (await app.post("/emit/", body.replace(b"@", LONG), KINDS[kind])).status_code

    assert asyncio.run(status()) in (200, 400, 413, 415)


DEEP = st.builds(
    lambda depth, pair: pair[0] * depth + "0" + pair[1] * depth,
    st.integers(0, 3_000),
    st.sampled_from([("[", "]"), ('{"a":', "}")]),
)
NUMBERS = ["1e999", "-0", "-0.0", "1E+2", "9" * 4_300, "9" * 4_301, "1." + "1" * 3_000, "NaN", "01", "1."]
TEXTS = [
    '"\\ud800"',
    '"a\\u0000"',
    '"*"',
    '"chat"',
    '""',
    '" x"',
    '"\\u007f"',
    "null",
    "true",
    "[]",
    "{}",
    "[null]",
    "[[]]",
]
VALUES = DEEP | st.sampled_from(NUMBERS + TEXTS) | st.text(max_size=20).map(json.dumps)
NAMES = [
    "userId",
    "channel",
    "channels",
    "data",
    "event",
    "id",
    "retry",
    "payload",
    "store",
    "ttl",
    "idempotencyKey",
    "exp",
    "x",
]


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 50, deadline=None)
@given(
    st.sampled_from(["/emit/", "/token/", "/disconnect/"]),
    st.sampled_from([JSON, NDJSON]),
    st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4),
    st.booleans(),
)
@example("/emit/", JSON, [("ttl", "[" * 900 + "]" * 900)], True)
@example("/token/", JSON, [("exp", "[" * 900 + "]" * 900)], True)
@example("/emit/", JSON, [("retry", "9" * 4_300)], True)
@example("/emit/", NDJSON, [("data", '{"a":' * 900 + "0" + "}" * 900)], True)
def test_c5_no_value_of_any_field_gets_a_500(
    path: str, headers: dict[str, str], fields: list[tuple[str, str]], is_addressed: bool
) -> None:
    addressed = [("userId", '"*"'), ("channel", '"chat"')] if is_addressed else []
    body = "{" + ",".join(f'"{name}":{value}' for name, value in fields + addressed) + "}"

    async def status() -> int:
        async with control_app() as app:
            return (await app.post(path, body, headers)).status_code

    assert asyncio.run(status()) in (200, 400, 413)


TYPES = ["application/json", 'APPLICATION/JSON ; Charset="UTF-8"', "application/x-ndjson;", "multipart/form-data"]
TYPES += ["multipart/form-data; boundary=", 'multipart/form-data; boundary="X', "multipart/form-data; boundary=\xe9"]
TYPES += ["multipart/form-data; boundary=" + "x" * 300, "application/x-www-form-urlencoded; charset=latin1"]


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 100, deadline=None)
@given(
    st.sampled_from(["/emit/", "/token/", "/disconnect/", "/emit/?userId=*&channel=c", "/token/?%", "/emit/?a;b=c"]),
    st.sampled_from(TYPES) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join),
)
@example("/emit/", "multipart/form-data; boundary=\xe9", b"--\xe9\r\n\r\n")
def test_c5_no_content_type_gets_a_500(path: str, content_type: str, body: bytes) -> None:
    async def status() -> int:
        async with control_app() as app:
            headers = [(b"content-type", content_type.encode("latin-1"))]
            return (await app.http.post(path, content=body.replace(b"@", LONG), headers=headers)).status_code

    assert asyncio.run(status()) in (200, 400, 413, 415)


class AnyName(tuple[str, ...]):
    """The names of a form that may have any field."""

    def __contains__(self, name: object) -> bool:
        return True


def fields_of(body: bytes, headers: dict[str, str], kind: str, pace: Pace | None) -> dict[str, Any] | None:
    """Return the fields of a form, or None if it is refused."""
    try:
        return asyncio.run(
            form_fields(ControlRequest(b"", headers, body.replace(b"@", LONG)), kind, AnyName(), pace, 2**20)
        )
    except InvalidRequest:
        return None


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["query", "small body", "large body"])
@pytest.mark.parametrize(
    "text", ["%" * 40_000, "%4" * 20_000, "%41" * 13_000, "x%" * 20_000, "+%20" * 10_000, "%%25" * 10_000]
)
async def test_form_of_many_escapes_is_read_as_the_standard_library_reads_it(text: str, kind: str) -> None:
    query, body = (f"a={text}".encode(), b"") if kind == "query" else (b"", f"a={text}".encode())
    request = ControlRequest(query, FORM, body)

    fields = await form_fields(request, FORM["content-type"], AnyName(), Pace() if kind == "large body" else None)

    assert fields == {"a": unquote_plus(text)}


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join))
@example(b"a=" + b"x" * 65_534 + b"%41")
@example(b"a=" + b"x" * 16_383 + b"%41" + b"x" * 16_380 + b"%%%41")
@example(b"a=" + b"x" * 65_535 + b"%41")
@example(b"a=" + b"x" * 65_535 + b"%%41%4")
@example(b"a=%5Cx41\\x41\\\n")
@example(b"a=\xc3%A9")
@example(b"&&a&=b&c=")
def test_large_forms_are_read_as_small_ones(body: bytes) -> None:
    kind = FORM["content-type"]

    assert fields_of(body, FORM, kind, Pace()) == fields_of(body, FORM, kind, None)


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join))
@example(b'--XX\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + b"a" * 65_475 + b"\r\n--XX--\r\n")
@example(multipart(("a", "\r\n" * 40_000), ("b", "\r\n--X" * 20_000)))
def test_large_multipart_forms_are_read_as_small_ones(body: bytes) -> None:
    kind = "multipart/form-data"

    assert fields_of(body, MULTIPART, kind, Pace()) == fields_of(body, MULTIPART, kind, None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "retry", [-1, 1.5, "5", True, 10**12, 2**31, [], {}, 1e3, "1e3", " 5", "٣"], ids=lambda value: f"C8-{value!r}"
)
async def test_c8_retry_that_is_no_number_of_milliseconds_is_refused(retry: object) -> None:
    async with control_app() as app:
        as_json = await app.post("/emit/", event_json(retry=retry), JSON)
        as_form = await app.post("/emit/", urlencode({"userId": "*", "channel": "chat", "data": "x", "retry": "1e3"}))
        raw = await app.post("/emit/", event_payload(f"retry: {retry if retry != '5' else '5x'}\ndata: x"), JSON)

        assert (as_json.status_code, as_form.status_code) == (400, 400)
        assert "retry" in as_json.json()["error"]
        assert raw.status_code == 400 and "retry" in raw.json()["error"]
        assert await app.received() == []


def event_payload(payload: str) -> str:
    return json.dumps({"userId": "*", "channel": "chat", "payload": payload})


@pytest.mark.anyio
async def test_c2_id_that_http_changes_is_refused_wherever_it_is_given() -> None:
    async with control_app() as app:
        for id in ("a\x1bb", "\x7f", " a", "a ", " 1795633044736-0.loh23qqu"):
            for body, headers in (
                (event_json(id=id), JSON),
                (urlencode({"userId": "*", "channel": "chat", "data": "x", "id": id}), FORM),
                (event_payload(f"id:  {id}\ndata: x"), JSON),
                (f"[{event_json()},{event_json(id=id)}]", JSON),
            ):
                response = await app.post("/emit/", body, headers)

                assert response.status_code == 400 and "Last-Event-ID" in response.text, (id, response.text)
        with pytest.raises(InvalidEvent, match=r"^id "):
            await app.hub.publish(channel="chat", user_id="*", data="x", id="a\x1bb")
        assert await app.received() == []
