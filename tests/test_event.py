"""Events: what they refuse, and that decoders which nobody here wrote read the bytes as they were meant."""

from __future__ import annotations

import random
import re
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import example, given
from hypothesis import strategies as st

from ssehub.claims import Claims
from ssehub.errors import InvalidEvent
from ssehub.event import Event, encode, ends_with_position
from ssehub.fields import check_name, json_text
from ssehub.position import Position

POSITION = Position(1_700_000_000_000, 3, "abcd1234")


def event(**fields: Any) -> Event:
    return Event(("chat",), ("*",), **fields)


@dataclass
class Shown:
    """What a page sees of one event."""

    event: str
    data: str
    id: str


def decode(stream: bytes) -> list[Shown]:
    """What httpx-sse, an independent decoder, makes of a stream."""
    lines, decoder = SSELineDecoder(), SSEDecoder()
    shown = (decoder.decode(line) for line in lines.decode(stream.decode()))
    return [Shown(sse.event, sse.data, sse.id) for sse in shown if sse is not None]


def normal(text: str) -> str:
    """What a stream can carry of `text`: its line ends all become LF."""
    return re.sub(r"\r\n|\r", "\n", text)


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["\r", "\n", "\r\n", "\u2028", "\x85", "\x0b", "\0", "\ufeff", "data: ", ":", " ", "🦜", "x"])
).map("".join)


@given(texts)
@example("")
@example("\n\nevent: admin\ndata: x")
@example("\ufeffbom")
@example("%(id)s \0id %s")
def test_data_arrives_as_it_was_sent(data: str) -> None:
    shown = decode(encode(event(data=data), POSITION))

    assert shown == [Shown("message", normal(data), str(POSITION))]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1, max_size=255)


@given(names.filter(lambda name: not name.startswith("stream-")), names.filter(lambda name: not Position.parse(name)))
def test_type_and_id_arrive_as_they_were_sent(type: str, id: str) -> None:
    shown = decode(encode(event(data="x", type=type, id=id, retry=5), POSITION))

    assert shown == [Shown(type, "x", id)]


def test_structured_event_has_one_line_a_field() -> None:
    frame = encode(event(data="a\nb", type="note", retry=1500), POSITION)

    assert frame == f"id: {POSITION}\nevent: note\ndata: a\ndata: b\nretry: 1500\n\n".encode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({}, "data is missing", id="nothing"),
        pytest.param({"data": "x", "type": "a\nb"}, "event 'a\\nb' contains a line break", id="C2-event-LF"),
        pytest.param({"data": "x", "type": "a\rb"}, "event 'a\\rb' contains a line break", id="C2-event-CR"),
        pytest.param({"data": "x", "type": "a\0b"}, "event 'a\\x00b' contains a NUL", id="C2-event-NUL"),
        pytest.param({"data": "x", "type": ""}, "event is empty", id="event-empty"),
        pytest.param({"data": "x", "type": "stream-reset"}, "event 'stream-reset' begins with", id="event-reserved"),
        pytest.param({"data": "x", "type": "x" * 256}, "event has 256 characters", id="C2-event-long"),
        pytest.param({"data": "x", "type": 5}, "event must be a string", id="event-int"),
        pytest.param({"data": "x", "id": "a\nb"}, "id 'a\\nb' contains a line break", id="C2-id-LF"),
        pytest.param({"data": "x", "id": "a\rb"}, "id 'a\\rb' contains a line break", id="C2-id-CR"),
        pytest.param({"data": "x", "id": "a\0b"}, "id 'a\\x00b' contains a NUL", id="C2-id-NUL"),
        pytest.param({"data": "x", "id": ""}, "id is empty", id="id-empty"),
        pytest.param({"data": "x", "id": "x" * 256}, "id has 256 characters", id="C2-id-long"),
        pytest.param(
            {"data": "x", "id": "12-0.abcd1234"}, "id '12-0.abcd1234' looks like a position", id="id-position"
        ),
        pytest.param({"data": "x", "id": 5}, "id must be a string", id="id-int"),
        pytest.param({"data": "x", "id": "\ud800"}, "id holds a lone surrogate", id="C4-id"),
        pytest.param({"data": "\ud800"}, "data holds a lone surrogate at 0", id="C4-data"),
        pytest.param({"data": 5}, "data must be a string", id="data-int"),
        pytest.param({"payload": "data: \udfff"}, "payload holds a lone surrogate at 6", id="C4-payload"),
        pytest.param({"data": "x", "retry": -1}, "retry -1 is no number", id="C8-retry-negative"),
        pytest.param({"data": "x", "retry": True}, "retry True is no number", id="C8-retry-bool"),
        pytest.param({"data": "x", "retry": 1.5}, "retry 1.5 is no number", id="C8-retry-float"),
        pytest.param({"data": "x", "retry": 10**12}, "retry 1000000000000 is no number", id="C8-retry-huge"),
        pytest.param({"data": "x", "ttl": 10**310}, "ttl 1000000", id="ttl-huge"),
        pytest.param({"data": "x", "ttl": float("nan")}, "ttl nan is no positive number", id="ttl-nan"),
        pytest.param({"data": "x", "ttl": 2**40}, "ttl 1099511627776 is no positive number", id="ttl-over"),
        pytest.param({"data": "x", "ttl": 0}, "ttl 0 is no positive number", id="ttl-zero"),
        pytest.param({"data": "x", "ttl": True}, "ttl True is no positive number", id="ttl-bool"),
        pytest.param({"payload": ""}, "payload is empty", id="C5-payload-empty"),
        pytest.param({"payload": "data: x", "data": "x"}, "data can't be given together", id="payload-and-data"),
        pytest.param({"payload": "data: x", "retry": 1}, "retry can't be given together", id="payload-and-retry"),
        pytest.param({"payload": "event:stream-expired\ndata: x"}, "payload: event type 'stream-", id="C3-no-space"),
        pytest.param({"payload": "data: x\revent: stream-x\r\r"}, "payload: event type 'stream-x'", id="C3-lone-CR"),
        pytest.param({"payload": "data\nevent: stream-\ndata"}, "payload: event type 'stream-'", id="C3-bare"),
        pytest.param({"payload": "id\ndata: x"}, "payload: id is empty", id="payload-id-bare"),
        pytest.param({"payload": "id:\ndata: x"}, "payload: id is empty", id="payload-id-empty"),
        pytest.param({"payload": "id: a\0\ndata: x"}, "payload: id 'a\\x00' contains a NUL", id="payload-id-NUL"),
        pytest.param({"payload": "id: " + "x" * 256}, "payload: id has 256 characters", id="payload-id-long"),
        pytest.param({"payload": "id:1-2.abc\n"}, "payload: id '1-2.abc' looks like", id="payload-id-position"),
        pytest.param({"payload": "retry: 1e3\n"}, "payload: retry '1e3' is no number", id="payload-retry"),
        pytest.param({"payload": "retry: \u0661\n"}, "payload: retry '\u0661' is no number", id="payload-retry-arabic"),
        pytest.param({"payload": "retry\n"}, "payload: retry '' is no number", id="payload-retry-bare"),
        pytest.param({"payload": "retry: " + "9" * 5000}, "payload: retry '9", id="payload-retry-huge"),
        pytest.param({"payload": "retry: " + "0" * 11 + "9" * 20}, "payload: retry '0", id="payload-retry-zeros"),
        pytest.param({"payload": "retry: 5\n\ufeffretry: 1\nretry:x"}, "payload: retry 'x'", id="payload-retry-BOM"),
    ],
)
def test_event_that_would_break_a_stream_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        event(**fields)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("channels", "users", "message"),
    [
        ((), ("a",), "channel is missing"),
        (("a",), (), "userId is missing"),
        (("",), ("a",), "channel is empty"),
        (("a\n",), ("a",), "channel 'a\\n' contains a line break"),
        (("a",), ("b", "c\0"), "userId 'c\\x00' contains a NUL"),
        (("a",), ("b", "c\r"), "userId 'c\\r' contains a line break"),
        (("a" * 256,), ("b",), "channel has 256 characters"),
        (("a",), ("\ud800",), "userId holds a lone surrogate"),
        ("chat", ("a",), "channel must be a sequence"),
        ((5,), ("a",), "channel must be a string, not int"),
        (("a",), tuple(map(str, range(1_001))), "userId has 1001 names: 1000 are the most"),
        (tuple(map(str, range(1_001))), ("*",), "channel has 1001 names: 1000 are the most"),
        (tuple(map(str, range(11))), tuple(map(str, range(100))), "userId: 100 users on 11 channels are too many"),
    ],
)
def test_name_that_can_not_be_is_refused(channels: Any, users: Any, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        Event(channels, users, data="x")

    assert str(caught.value).startswith(message)


def test_names_given_twice_count_once() -> None:
    made = Event(("b", "a", "b"), ("x", "y", "x"), data="")

    assert made.channels == ("b", "a") and made.users == ("x", "y") and not made.is_for_everyone
    assert check_name("channel", "ok") == "ok"


def test_everyone_is_whoever_else_is_named() -> None:
    made = Event(("a",), ("x", "*"), data="")

    assert made.users == ("*",) and made.is_for_everyone


def test_event_stays_as_it_was_checked() -> None:
    made = Event(("a",), ("x",), data="x")

    with pytest.raises(FrozenInstanceError):
        made.data = "\0"  # type: ignore[misc]  # that it can't be set is what is tested
    with pytest.raises(InvalidEvent):
        replace(made, channels=())


@pytest.mark.parametrize(
    ("payload", "written", "ours_is_last"),
    [
        pytest.param("data: x", "id: P\ndata: x\n\n", True, id="no-line-end"),
        pytest.param("event: message\ndata: x\n", "event: message\nid: P\ndata: x\n\n", True, id="of-the-original"),
        pytest.param("data: x\n\n", "id: P\ndata: x\n\n", True, id="complete"),
        pytest.param("data: x\r\n\r\n", "id: P\ndata: x\r\n\r\n", True, id="complete-CRLF"),
        pytest.param("data: x\r\n", "id: P\ndata: x\r\n\n", True, id="CRLF"),
        pytest.param("data: x\r", "id: P\ndata: x\r\r", True, id="CR-is-not-made-a-CRLF"),
        pytest.param("data: x\r\r", "id: P\ndata: x\r\r", True, id="complete-CR"),
        pytest.param("data: x\n\r", "id: P\ndata: x\n\r", True, id="complete-LF-CR"),
        pytest.param("data\n", "id: P\ndata\n\n", True, id="bare-data"),
        pytest.param("id: 7\ndata: x\n\n", "id: 7\ndata: x\n\n", False, id="its-own-id"),
        pytest.param("data: x\nid:7\n\n", "data: x\nid:7\n\n", False, id="its-own-id-behind"),
        pytest.param("id: 7\ndata: x\n\ndata: y\n\n", "id: 7\ndata: x\n\nid: P\ndata: y\n\n", True, id="id-within"),
        pytest.param("data: x\n\nid: 7\n\n", "id: P\ndata: x\n\nid: 7\n\n", False, id="id-behind-in-its-own-block"),
        pytest.param("data: x\n\n: bye\n", "id: P\ndata: x\n\n: bye\n\n", True, id="comment-behind"),
        pytest.param(": only a comment\n\n", ": only a comment\n\n", False, id="no-data"),
        pytest.param("database: x\n", "database: x\n\n", False, id="not-a-data-field"),
        pytest.param("data: data\nmetadata\n", "id: P\ndata: data\nmetadata\n\n", True, id="data-in-a-value"),
        pytest.param("\n", "\n", False, id="blank"),
        pytest.param("data: a\0b\n\n", "id: P\ndata: a\0b\n\n", True, id="NUL-in-data-passes"),
        pytest.param(
            "retry: 000005\ndata: x\n\n", "retry: 000005\nid: P\ndata: x\n\n", True, id="zeros-before-a-retry"
        ),
        pytest.param(
            "\ufeffdata: x\ndata: y\n\n", "\ufeffdata: x\nid: P\ndata: y\n\n", True, id="BOM-is-no-data-field"
        ),
        pytest.param("data: \ufeffx\n\n", "id: P\ndata: \ufeffx\n\n", True, id="BOM-in-data-passes"),
        pytest.param("\ufeffid: 7\ndata: x\n\n", "\ufeffid: 7\nid: P\ndata: x\n\n", True, id="BOM-is-no-id-field"),
        pytest.param(
            "\ufeffevent: stream-x\ndata: x\n\n",
            "\ufeffevent: stream-x\nid: P\ndata: x\n\n",
            True,
            id="BOM-is-no-event-field",
        ),
        pytest.param("data: \u2028id: 5\n\n", "id: P\ndata: \u2028id: 5\n\n", True, id="U+2028-ends-no-line"),
    ],
)
def test_raw_payload_is_completed_and_given_an_id_and_else_left_alone(
    payload: str, written: str, ours_is_last: bool
) -> None:
    made = event(payload=payload)

    assert encode(made, POSITION).decode() == written.replace("id: P", f"id: {POSITION}")
    assert ends_with_position(made) is ours_is_last


fragments = st.lists(
    st.sampled_from(
        ["data: x", "data:y", "data", "event: e", "id: 7", "id:8", ": c", "retry: 5", "\n", "\r", "\r\n", "\n\n", "z"]
    ),
    min_size=1,
).map("".join)


@given(fragments)
@example("data: x\r\ndata: y\r")
def test_completed_payload_shows_what_it_showed_before_and_leaves_nothing_hanging(payload: str) -> None:
    try:
        made = event(payload=payload)
    except InvalidEvent:
        return
    completed = decode(encode(made, POSITION) + b"data: next\n\n")
    alone = decode(f"{payload}\n\n\n".encode())

    # The decoder also shows blocks without data, which the standard does not.
    assert [(s.event, s.data) for s in completed[:-1] if s.data] == [(s.event, s.data) for s in alone if s.data]
    assert completed[-1].data == "next" and completed[-1].event == "message"
    if ends_with_position(made):
        assert completed[-1].id == str(POSITION)  # the last id, which the next event inherits


PIECES = [
    *("data: x", "data:y", "data", "event: e", "event:stream-x", "event:  stream-y", "event", "id: 7", "id:8", ": c"),
    *("retry: 5", "\n", "\r", "\r\n", "\n\n", "z", "\ufeff", "\0", "\u2028", "dat", "a: ", ":", " ", "id"),
    *("Event: stream-q", "\ufeffevent: stream-b", " event: stream-s"),
]


def shown_by_a_browser(text: str) -> tuple[list[tuple[str, str]], str, bool]:
    """What a client is shown in the middle of a stream, its last id, and whether anything hangs (HTML, 9.2.6)."""
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


def test_raw_payloads_show_a_browser_what_they_say_wherever_they_stand() -> None:
    chance = random.Random(7)
    accepted = 0
    for _ in range(15_000):
        payload = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 9)))
        wanted, _, _ = shown_by_a_browser(payload + ("\r\r" if payload.endswith("\r") else "\r\n\r\n"))
        try:
            made = event(payload=payload)
        except InvalidEvent:
            continue
        accepted += 1
        for before in (": ok\n\n", "data: p\r\r", "data: p\n\r"):
            shown, last_id, hangs = shown_by_a_browser(before + encode(made, POSITION).decode())
            shown = shown[before.startswith("data") :]

            assert shown == wanted and not hangs, payload
            assert not any(type.startswith("stream-") for type, _ in shown), payload
            assert not shown or last_id in (str(POSITION), *made.ids), payload
            assert not shown or not ends_with_position(made) or last_id == str(POSITION), payload
    assert accepted > 5_000


def test_a_megabyte_of_raw_lines_is_parsed_in_time() -> None:
    for line in ("\n", "data\n", "id: x\n", "\r\n", "data", "\n\r"):
        assert event(payload=line * (2**20 // len(line))).size <= 2**20


def test_size_is_in_bytes() -> None:
    assert event(data="🦜").size == event(payload="🦜").size == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [("as is", "as is"), ({"a": [1, None]}, '{"a":[1,null]}'), (5, "5"), (None, "null"), ("é", "é"), (["é"], '["é"]')],
)
def test_data_that_is_no_string_becomes_json(value: object, text: str) -> None:
    assert json_text(value) == text


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [object(), float("nan"), {1, 2}, nested(100_000)], ids=["object", "nan", "set", "deep"]
)
def test_data_that_json_can_not_hold_is_refused(value: object) -> None:
    with pytest.raises(InvalidEvent, match="data can't be written as JSON"):
        json_text(value)


@pytest.mark.parametrize(
    "text", ["", "1-2", "1-2.", "-1-2.abc", "1-2.ABC", "1-2.abc\n", "1" * 20 + "-0.abc", "\u0661-\u0662.abc"]
)
def test_text_that_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None


def test_position_reads_what_it_writes() -> None:
    assert Position.parse(str(POSITION)) == POSITION


@pytest.mark.parametrize(
    "claims",
    [
        ("alex", "chat"),
        ("alex", ()),
        ("", ("chat",)),
        (5, ("chat",)),
        ("alex", (None,)),
        ("a", ("b",), "soon"),
        ("a", ("b",), float("nan")),
    ],
)
def test_claims_that_no_token_could_grant_are_refused(claims: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidEvent):
        Claims(*claims)


@pytest.mark.parametrize("channels", ['{"0":1}', "{}", "5", "[5]", "[[]]", '"chat"', "null", "[null]"])
def test_entries_of_a_log_that_nobody_dumped_are_refused_or_read_in_our_own_words(channels: str) -> None:
    text = f'{{"channels":{channels},"users":["*"],"data":"x"}}'
    try:
        event = Event.load(text)
    except InvalidEvent:
        return
    assert all(isinstance(channel, str) for channel in event.channels)
