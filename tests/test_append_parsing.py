"""The feeds of appends: NDJSON and event streams, cut into parts anywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from httpx_sse._decoders import SSEDecoder
from hypothesis import example, given
from hypothesis import strategies as st

from ssehub.errors import BodyTooLarge, InvalidRequest
from ssehub.runs.entries import RunEvent
from ssehub.web.feed import MAX_PAYLOAD_LINES, EventStreamFeed, Feed, LineFeed, run_event

MakeFeed = Callable[[int, asyncio.Lock], Feed]

pytestmark = pytest.mark.anyio


async def feed_all(
    make: MakeFeed, parts: Sequence[bytes], *, ends: bool = True, most: int = 2**20
) -> tuple[list[RunEvent], str | None]:
    """Return the events of a body that arrives in `parts`, and the error that has ended it."""
    feed = make(most, asyncio.Lock())
    error = None
    try:
        for part in parts:
            await feed.read(part)
        if ends:
            await feed.end()
    except InvalidRequest as exc:
        error = str(exc)
    return feed.take(), error


def read_all(make: MakeFeed, *parts: bytes, **options: Any) -> tuple[list[RunEvent], str | None]:
    return asyncio.run(feed_all(make, parts, **options))


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in pairwise(edges)]


# Any split of the bytes gives the same events

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EVENTS = st.lists(st.fixed_dictionaries({"data": TEXT}, optional={"event": st.just("tick"), "retry": st.just(5)}))
LINES = st.lists(
    st.sampled_from(
        [
            *("data: x", "data:é", "data", "data:", "data:  two", ": comment", ":", "", "", "event: tick", "event:"),
            *("id: 7", "id:", "id: a\0b", "retry: 5", "retry: x", "unknown: 1", "\ufeffdata: y", "data: 🙂"),
        ]
    ),
    max_size=30,
)
ENDS = st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=30, max_size=30)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@given(events=EVENTS, places=PLACES, has_last_line_end=st.booleans())
def test_lines_are_read_alike_however_they_are_cut(
    events: list[dict[str, Any]], places: list[int], has_last_line_end: bool
) -> None:
    body = "\n".join(json.dumps(event, ensure_ascii=False) for event in events).encode()
    body += b"\n" if has_last_line_end else b""

    found, error = read_all(LineFeed, *cut(body, places))

    assert error is None
    assert [(event.data, event.type, event.retry) for event in found] == [
        (event["data"], event.get("event"), event.get("retry")) for event in events
    ]


@given(lines=LINES, ends=ENDS, places=PLACES)
@example(lines=["data: x", "", "data: y", ""], ends=["\r\n"] * 30, places=list(range(40)))
def test_event_stream_is_read_alike_however_it_is_cut_and_as_a_client_reads_it(
    lines: list[str], ends: list[str], places: list[int]
) -> None:
    text = "".join(line + end for line, end in zip(lines, ends, strict=False))
    body = text.encode()

    found, error = read_all(EventStreamFeed, *cut(body, places))
    whole, _ = read_all(EventStreamFeed, body)

    assert error is None
    assert found == whole
    assert [(event.data, event.type or "message") for event in found] == decoded(text)


def decoded(text: str) -> list[tuple[str, str]]:
    """Return what another decoder reads, which also completes the last event."""
    decoder = SSEDecoder()
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    has_data = False
    found = []
    for line in [*lines, ""]:
        event = decoder.decode(line)
        if event is not None and has_data:
            found.append((event.data, event.event or "message"))
        # It also gives events without data, and those whose data is empty.
        has_data = bool(line) and (has_data or line.partition(":")[0] == "data")
    return found


@given(body=st.binary(max_size=200), places=PLACES)
@pytest.mark.parametrize("make", [LineFeed, EventStreamFeed])
def test_garbage_is_read_alike_however_it_is_cut(make: MakeFeed, body: bytes, places: list[int]) -> None:
    assert read_all(make, *cut(body, places)) == read_all(make, body)


@given(body=st.binary(max_size=100), place=st.integers(0, 200))
@pytest.mark.parametrize("make", [LineFeed, EventStreamFeed])
def test_body_that_breaks_off_gives_only_what_was_complete(make: MakeFeed, body: bytes, place: int) -> None:
    lines = b'{"data":"a"}\n{"data":"\xc3\xa9"}\n' if make is LineFeed else b"data: a\n\ndata: \xc3\xa9\n\n"
    whole = lines + body

    found, _ = read_all(make, whole[: place % (len(lines) + 1)], ends=False)

    assert found == [RunEvent("a"), RunEvent("é")][: len(found)]
    assert len(found) == lines[: place % (len(lines) + 1)].count(b"\n" if make is LineFeed else b"\n\n")


# What the standard says of an event stream, and what is kept


@pytest.mark.parametrize(
    ("body", "events"),
    [
        pytest.param(b"data: a\n\n", [RunEvent("a")], id="one"),
        pytest.param(b"data: a\ndata:b\ndata\n\n", [RunEvent("a\nb\n")], id="several-lines"),
        pytest.param(b"data:\n\n", [RunEvent("")], id="empty-data"),
        pytest.param(b"event: t\nid: 1\n\ndata: a\n\n", [RunEvent("a")], id="without-data-is-ignored-with-its-fields"),
        pytest.param(b"id: 1\ndata: a\n\ndata: b\n\n", [RunEvent("a", None, "1"), RunEvent("b")], id="id-of-one"),
        pytest.param(b"event: t\nretry: 10\ndata: a\n\n", [RunEvent("a", "t", None, 10)], id="fields"),
        pytest.param(b"retry: soon\nid: a\0b\nevent:\ndata: a\n\n", [RunEvent("a")], id="useless-fields"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [RunEvent("a")], id="bom"),
        pytest.param(b"\n\xef\xbb\xbfdata: a\n\n", [], id="bom-elsewhere"),
        pytest.param(b": hi\ndata: a\n: there\n\n", [RunEvent("a")], id="comments"),
        pytest.param(b"data: a\n\ndata: [DONE]\n\n", [RunEvent("a"), RunEvent("[DONE]")], id="done"),
        pytest.param(b"data: a\n\ndata: b", [RunEvent("a"), RunEvent("b")], id="last-event-without-its-end"),
        pytest.param(b"data: a\r\rdata: b\r\n\r\n", [RunEvent("a"), RunEvent("b")], id="line-ends"),
        pytest.param(b"data:  a \n\n", [RunEvent(" a ")], id="one-space-is-removed"),
        pytest.param(b"Data: a\n data: b\n\n", [], id="other-names"),
    ],
)
async def test_event_stream_is_read_by_the_standard(body: bytes, events: list[RunEvent]) -> None:
    for parts in ([body], [body[n : n + 1] for n in range(len(body))]):
        assert await feed_all(EventStreamFeed, parts) == (events, None)


@pytest.mark.parametrize(
    ("make", "part", "is_alive"),
    [
        (LineFeed, b"\n", True),
        (LineFeed, b" \r\n", True),
        (LineFeed, b'{"data"', False),
        (LineFeed, b'{"data":1}\n', False),
        (EventStreamFeed, b": ping\n", True),
        (EventStreamFeed, b"\n", True),
        (EventStreamFeed, b"event: ping\n\n", True),
        (EventStreamFeed, b": pi", False),
    ],
)
async def test_signs_of_life_are_lines_without_an_event(make: MakeFeed, part: bytes, is_alive: bool) -> None:
    feed = make(100, asyncio.Lock())

    await feed.read(part)

    assert feed.is_alive is is_alive
    assert (feed.unfinished_bytes > 0) is not part.endswith(b"\n")


# Bad lines


@pytest.mark.parametrize(
    ("make", "body", "error"),
    [
        (LineFeed, b'{"data":1}\n{"data":2\n', "line 2: the line is not valid JSON"),
        (LineFeed, b'{"data":1}\n\n[{"data":2}]\n', "line 3: expected a JSON object, not an array"),
        (LineFeed, b'{"data":1}\n{"data":"\xff"}\n', "line 2: the line is not valid UTF-8"),
        (LineFeed, b'{"data":1}\n{"data":"\\ud800"}\n', "line 2: data contains a lone surrogate"),
        (LineFeed, b'{"data":1}\n{"event":"x"}\n', "line 2: data is missing"),
        (LineFeed, b'{"data":1}\n{"data":null}\n', "line 2: data is null"),
        (LineFeed, b'{"data":1}\n{"data":1,"data":1}\n', "line 2: the line: 'data' is given twice"),
        (LineFeed, b'{"data":1}\n{"data":1,"event":"stream-x"}\n', "line 2: event 'stream-x' begins with 'stream-'"),
        (LineFeed, b'{"data":1}\n{"data":1,"x":1}\n', "line 2: unknown field 'x': expected data, event, id, retry"),
        (LineFeed, b'{"data":1}\n{"data":1,"userId":"a"}\n', "line 2: userId: an event of a run goes to the users"),
        (LineFeed, b'{"data":1}\n{"data":1,"channel":"a"}\n', "line 2: channel: an event of a run goes to"),
        (LineFeed, b'{"data":1}\n{"data":1,"store":false}\n', "line 2: store: a run keeps all of its events"),
        (LineFeed, b'{"data":1}\n{"data":1,"ttl":5}\n', "line 2: ttl: a run keeps all of its events"),
        (LineFeed, b'{"data":1}\n{"data":1,"idempotencyKey":"a"}\n', "line 2: idempotencyKey: in a run the headers"),
        (EventStreamFeed, b"data: 1\n\ndata: 2\nevent: stream-x\n\n", "line 5: event 'stream-x' begins with"),
        (EventStreamFeed, b"data: 1\n\ndata: \xff\n\n", "line 4: data is not valid UTF-8"),
        (EventStreamFeed, b"data: 1\n\nid: 7-0.loh23qqu\ndata: 2\n\n", "line 5: id '7-0.loh23qqu' looks like a"),
        (EventStreamFeed, b"data: 1\n\nretry: 99999999999999999999999\ndata: 2\n\n", "line 5: retry 9999999999999"),
    ],
)
async def test_bad_line_is_named_and_those_before_it_are_read(make: MakeFeed, body: bytes, error: str) -> None:
    events, found = await feed_all(make, [body + (b'{"data":9}\n' if make is LineFeed else b"data: 9\n\n")])

    assert events == [RunEvent("1")]
    assert found is not None and found.startswith(error)


@pytest.mark.parametrize("part_bytes", [10**9, 1_000])
@pytest.mark.parametrize("make", [LineFeed, EventStreamFeed])
async def test_event_over_the_limit_is_refused_and_one_at_the_limit_is_not(make: MakeFeed, part_bytes: int) -> None:
    most = 100_000
    for size, is_accepted in ((most, True), (most + 1, False)):
        body = b'{"data":"%b"}\n' if make is LineFeed else b"data: %b\n\n"
        body %= b"x" * size
        parts = [body[at : at + part_bytes] for at in range(0, len(body), part_bytes)]

        events, error = await feed_all(make, parts, most=most)

        assert [len(event.data) for event in events] == ([size] if is_accepted else [])
        assert is_accepted or (error is not None and "at most 100000 are allowed" in error)


@pytest.mark.parametrize("make", [LineFeed, EventStreamFeed])
async def test_line_without_end_is_refused_before_all_of_it_is_kept(make: MakeFeed) -> None:
    feed = make(1_000, asyncio.Lock())

    with pytest.raises(BodyTooLarge, match="line 1 has more than"):
        for _ in range(1_000):
            await feed.read(b"x" * 1_000)

    assert feed.unfinished_bytes < 70_000


# Payloads


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        ("data: a", RunEvent("a")),
        ("event: t\nid: 1\nretry: 5\ndata: a\ndata: b\n\n", RunEvent("a\nb", "t", "1", 5)),
        (": comment\r\n\r\ndata: a\r\n\r\n", RunEvent("a")),
    ],
)
def test_payload_of_one_event_is_kept_as_its_fields(payload: str, event: RunEvent) -> None:
    assert run_event({"payload": payload}) == event


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"payload": "data: a\n\ndata: b\n\n"}, "payload has 2 events with data"),
        ({"payload": ": nothing"}, "payload has 0 events with data"),
        ({"payload": ""}, "payload has 0 events with data"),
        ({"payload": 5}, "payload must be a string"),
        ({"payload": "data: a", "event": "t"}, "event can't be given together with payload"),
        ({"payload": "event: stream-x\ndata: a"}, "payload: event 'stream-x' begins with"),
        ({"payload": "\n" * (MAX_PAYLOAD_LINES + 1)}, "payload has more than 50000 lines"),
    ],
)
def test_other_payloads_are_refused(fields: dict[str, object], error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        run_event(fields)
