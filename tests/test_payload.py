"""Raw payloads: which are rejected, and what clients read of the others."""

from __future__ import annotations

import os
import random
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from event_decoding import POSITION, decode, event
from ssehub.errors import InvalidEvent
from ssehub.event import Event, encode, ends_with_position
from ssehub.payload import ParsedPayload

SOAK = "SOAK" in os.environ


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param("", "payload is empty", id="C5-empty"),
        pytest.param("event:stream-expired\ndata: x", "payload: event type 'stream-", id="C3-no-space"),
        pytest.param("data: x\revent: stream-x\r\r", "payload: event type 'stream-x'", id="C3-lone-CR"),
        pytest.param("data\nevent: stream-\ndata", "payload: event type 'stream-'", id="C3-bare"),
        pytest.param("id\ndata: x", "payload: id is empty", id="id-bare"),
        pytest.param("id:\ndata: x", "payload: id is empty", id="id-empty"),
        pytest.param("id: a\0\ndata: x", "payload: id 'a\\x00' contains a NUL", id="id-NUL"),
        pytest.param("id: " + "x" * 256, "payload: id has 256 characters", id="id-long"),
        pytest.param("id:1-2.abc\n", "payload: id '1-2.abc' looks like", id="id-position"),
        pytest.param("retry: 1e3\n", "payload: retry '1e3' is not a number", id="retry"),
        pytest.param("retry: \u0661\n", "payload: retry '\u0661' is not a number", id="retry-arabic"),
        pytest.param("retry\n", "payload: retry '' is not a number", id="retry-bare"),
        pytest.param("retry: " + "9" * 5000, "payload: retry '9", id="retry-huge"),
        pytest.param("retry: " + "0" * 11 + "9" * 20, "payload: retry '0", id="retry-zeros"),
        pytest.param("retry: 5\n\ufeffretry: 1\nretry:x", "payload: retry 'x'", id="retry-BOM"),
    ],
)
def test_payload_that_would_break_a_stream_is_rejected(payload: str, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        event(payload=payload)

    assert str(caught.value).startswith(message)


def test_error_of_a_payload_says_what_to_do() -> None:
    with pytest.raises(InvalidEvent) as retry:
        ParsedPayload.parse("retry: 1e3\n")
    with pytest.raises(InvalidEvent) as type:
        ParsedPayload.parse("event: stream-x\ndata: y\n")

    assert str(retry.value) == (
        "payload: retry '1e3' is not a number of milliseconds: use digits only, and at most 2147483647"
    )
    assert str(type.value) == (
        "payload: event type 'stream-x' begins with 'stream-', which is reserved for the hub: use another type"
    )


@pytest.mark.parametrize(
    ("payload", "ids", "inner_ids"),
    [
        pytest.param("data: x\n", (), (), id="none"),
        pytest.param("id: 1\ndata: x\n", ("1",), (), id="one"),
        pytest.param("id: 1\ndata: x\n\nid: 2\ndata: y\n", ("2",), ("1",), id="one-before"),
        pytest.param("id: 1\ndata: x\n\ndata: y\n\nid: 2\n", ("2",), ("1",), id="one-after"),
        pytest.param("id: 1\nid: 2\n", ("1", "2"), (), id="no-data"),
    ],
)
def test_ids_tell_whether_a_client_has_the_whole_payload(
    payload: str, ids: tuple[str, ...], inner_ids: tuple[str, ...]
) -> None:
    made = event(payload=payload)

    assert (made.ids, made.inner_ids) == (ids, inner_ids)


@pytest.mark.parametrize(
    ("payload", "written", "position_is_last"),
    [
        pytest.param("data: x", "data: x\nid: P\n\n", True, id="no-line-end"),
        pytest.param("event: message\ndata: x\n", "event: message\ndata: x\nid: P\n\n", True, id="of-the-original"),
        pytest.param("data: x\n\n", "data: x\nid: P\n\n", True, id="complete"),
        pytest.param("data: x\r\n\r\n", "data: x\r\nid: P\n\r\n", True, id="complete-CRLF"),
        pytest.param("data: x\r\n", "data: x\r\nid: P\n\n", True, id="CRLF"),
        pytest.param("data: x\r", "data: x\rid: P\n\r", True, id="CR-is-not-made-a-CRLF"),
        pytest.param("data: x\r\r", "data: x\rid: P\n\r", True, id="complete-CR"),
        pytest.param("data: x\n\r", "data: x\nid: P\n\r", True, id="complete-LF-CR"),
        pytest.param("data\n", "data\nid: P\n\n", True, id="bare-data"),
        pytest.param("id: 7\ndata: x\n\n", "id: 7\ndata: x\n\n", False, id="its-own-id"),
        pytest.param("data: x\nid:7\n\n", "data: x\nid:7\n\n", False, id="its-own-id-after"),
        pytest.param("id: 7\ndata: x\n\ndata: y\n\n", "id: 7\ndata: x\n\ndata: y\nid: P\n\n", True, id="id-within"),
        pytest.param("data: x\n\nid: 7\n\n", "data: x\nid: P\n\nid: 7\n\n", False, id="id-in-a-block-after"),
        pytest.param(
            "data: x\ndata: y\nevent: e", "data: x\ndata: y\nevent: e\nid: P\n\n", True, id="fields-behind-the-data"
        ),
        pytest.param("data: x\r\ndata: y", "data: x\r\ndata: y\nid: P\n\n", True, id="CRLF-and-no-line-end"),
        pytest.param("data: x\n\n: bye\n", "data: x\nid: P\n\n: bye\n\n", True, id="comment-after"),
        pytest.param(": only a comment\n\n", ": only a comment\n\n", False, id="no-data"),
        pytest.param("database: x\n", "database: x\n\n", False, id="not-a-data-field"),
        pytest.param("data: data\nmetadata\n", "data: data\nmetadata\nid: P\n\n", True, id="data-in-a-value"),
        pytest.param("\n", "\n", False, id="blank"),
        pytest.param("data: a\0b\n\n", "data: a\0b\nid: P\n\n", True, id="NUL-in-data-passes"),
        pytest.param(
            "retry: 000005\ndata: x\n\n", "retry: 000005\ndata: x\nid: P\n\n", True, id="zeros-before-a-retry"
        ),
        pytest.param(
            "\ufeffdata: x\ndata: y\n\n", "\ufeffdata: x\ndata: y\nid: P\n\n", True, id="BOM-is-no-data-field"
        ),
        pytest.param("data: \ufeffx\n\n", "data: \ufeffx\nid: P\n\n", True, id="BOM-in-data-passes"),
        pytest.param("\ufeffid: 7\ndata: x\n\n", "\ufeffid: 7\ndata: x\nid: P\n\n", True, id="BOM-is-no-id-field"),
        pytest.param(
            "\ufeffevent: stream-x\ndata: x\n\n",
            "\ufeffevent: stream-x\ndata: x\nid: P\n\n",
            True,
            id="BOM-is-no-event-field",
        ),
        pytest.param("data: \u2028id: 5\n\n", "data: \u2028id: 5\nid: P\n\n", True, id="U+2028-ends-no-line"),
    ],
)
def test_payload_is_completed_and_given_an_id_and_not_changed_otherwise(
    payload: str, written: str, position_is_last: bool
) -> None:
    made = event(payload=payload)

    assert encode(made, POSITION).decode() == written.replace("id: P", f"id: {POSITION}")
    assert ends_with_position(made) is position_is_last


fragments = st.lists(
    st.sampled_from(
        ["data: x", "data:y", "data", "event: e", "id: 7", "id:8", ": c", "retry: 5", "\n", "\r", "\r\n", "\n\n", "z"]
    ),
    min_size=1,
).map("".join)


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 100, deadline=None)
@given(fragments)
@example("data: x\r\ndata: y\r")
def test_completed_payload_shows_the_same_events_and_does_not_affect_the_next_one(payload: str) -> None:
    try:
        made = event(payload=payload)
    except InvalidEvent:
        return
    completed = decode(encode(made, POSITION) + b"data: next\n\n")
    alone = decode(f"{payload}\n\n\n".encode())

    # The decoder also returns blocks without data, which a browser does not.
    assert [(s.event, s.data) for s in completed[:-1] if s.data] == [(s.event, s.data) for s in alone if s.data]
    assert completed[-1].data == "next" and completed[-1].event == "message"
    if ends_with_position(made):
        assert completed[-1].id == str(POSITION)  # the next event inherits the last id


PIECES = [
    *("data: x", "data:y", "data", "event: e", "event:stream-x", "event:  stream-y", "event", "id: 7", "id:8", ": c"),
    *("retry: 5", "\n", "\r", "\r\n", "\n\n", "z", "\ufeff", "\0", "\u2028", "dat", "a: ", ":", " ", "id"),
    *("Event: stream-q", "\ufeffevent: stream-b", " event: stream-s"),
]


def read_by_a_browser(text: str) -> tuple[list[tuple[str, str]], str, bool]:
    """Return the type and data of each event, the last id, and True if an event is unfinished (HTML, 9.2.6)."""
    *lines, rest = re.split(r"\r\n|\r|\n", text)
    shown: list[tuple[str, str]] = []
    data: list[str] = []
    type = id = last_id = ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                shown.append((type or "message", "\n".join(data)))
            data, type, last_id = [], "", id
        elif name == "event":
            type = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            id = value
    return shown, last_id, bool(rest or data or type or id != last_id)


def test_browser_reads_the_same_events_wherever_a_payload_is_in_a_stream() -> None:
    chance = random.Random(7)
    accepted = 0
    for _ in range(15_000):
        payload = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 9)))
        expected, _, _ = read_by_a_browser(payload + ("\r\r" if payload.endswith("\r") else "\r\n\r\n"))
        try:
            made = event(payload=payload)
        except InvalidEvent:
            continue
        accepted += 1
        for before in (": ok\n\n", "data: p\r\r", "data: p\n\r"):
            shown, last_id, is_unfinished = read_by_a_browser(before + encode(made, POSITION).decode())
            shown = shown[before.startswith("data") :]

            assert shown == expected and not is_unfinished, payload
            assert not any(type.startswith("stream-") for type, _ in shown), payload
            assert not shown or last_id in (str(POSITION), *made.ids), payload
            assert not shown or not ends_with_position(made) or last_id == str(POSITION), payload
    assert accepted > 5_000


SHORT_LINES = (
    "\n",
    "data\n",
    "id: x\n",
    "\r\n",
    "data",
    "\n\r",
    "xdata",
    "\ndatax",
    "event:x\n",
    "retry:1\n",
    "idid",
    "idx\n",
)


@pytest.mark.alone
@pytest.mark.parametrize("line", SHORT_LINES)
def test_megabyte_of_short_lines_is_decided_in_time(line: str) -> None:
    times = []
    for _ in range(3):
        began = time.process_time()
        try:
            assert event(payload=line * (2**20 // len(line))).size <= 2**20
        except InvalidEvent as exc:
            assert "more than 10000 ids" in str(exc)
        times.append(time.process_time() - began)

    assert min(times) < 0.15


@pytest.mark.parametrize(
    ("ids", "channels", "is_accepted"), [(10_000, 1, True), (10_001, 1, False), (11, 1_000, False)]
)
def test_ids_times_channels_are_bounded(ids: int, channels: int, is_accepted: bool) -> None:
    payload = "".join(f"id: i{n}\ndata: x\n\n" for n in range(ids))
    names = tuple(f"c{n}" for n in range(channels))

    if is_accepted:
        assert Event(names, ("*",), payload=payload).id == f"i{ids - 1}"
    else:
        with pytest.raises(InvalidEvent, match="10000"):
            Event(names, ("*",), payload=payload)


PIECES = [
    "data",
    "id",
    "retry",
    "event",
    ":",
    ": ",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "x",
    "1",
    "é",
    "\u2028",
    "stream-",
    "ï",
]


@pytest.mark.soak
@settings(max_examples=5_000 if SOAK else 300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).map("".join))
@example("id\ndata:x")
@example("data:x\nidx\nid:1")
@example("atad\ndata\rdata:1\n\ndata:2\n\nid:y")
@example("retry:\ndata:x")
@example("event:streamdata:x\n\n")
@example("data:data\r")
@example("data:data\n\ndata")
def test_independent_decoder_reads_the_data_and_the_id_of_a_payload(payload: str) -> None:
    try:
        made = event(payload=payload)
    except InvalidEvent:
        return
    parsed = ParsedPayload.parse(payload)

    before = [shown for shown in decode((payload + "\n\n").encode()) if shown.data]
    # The decoder waits for what follows a CR at the end, which might be the LF of the same line end.
    decoded = decode(encode(made, POSITION) + b":\n")
    after = [shown for shown in decoded if shown.data]

    assert [(shown.event, shown.data) for shown in after] == [(shown.event, shown.data) for shown in before]
    assert set(parsed.ids + parsed.inner_ids) >= {shown.id for shown in before if shown.id}
    if after:
        assert decoded[-1].id in (str(POSITION), *parsed.ids)
