"""Events: which are rejected, and that a decoder which is not ours reads from the bytes what was given."""

from __future__ import annotations

import json
import os
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from event_decoding import POSITION, Shown, decode, event
from ssehub.errors import InvalidEvent
from ssehub.event import Event, encode, encode_fields
from ssehub.position import Position

SCALED = settings(max_examples=5_000 if "SOAK" in os.environ else 100, deadline=None)


def normalized(text: str) -> str:
    """Return `text` as a stream can carry it: every line end is LF."""
    return re.sub(r"\r\n|\r", "\n", text)


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["\r", "\n", "\r\n", "\u2028", "\x85", "\x0b", "\0", "\ufeff", "data: ", ":", " ", "🦜", "x"])
).map("".join)


@pytest.mark.soak
@SCALED
@given(texts)
@example("")
@example("\n\nevent: admin\ndata: x")
@example("\ufeffbom")
@example("%(id)s \0id %s")
def test_c1_data_arrives_as_it_was_sent(data: str) -> None:
    shown = decode(encode(event(data=data), POSITION))

    assert shown == [Shown("message", normalized(data), str(POSITION))]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1, max_size=255)
CONTROLS = "".join(map(chr, (*range(32), 127)))
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=CONTROLS), min_size=1, max_size=255).filter(
    lambda id: id.strip(" ") == id and not Position.parse(id)
)


@pytest.mark.soak
@SCALED
@given(names.filter(lambda name: not name.startswith("stream-")), ids)
@example("\x85", "\x85\u00a0")
def test_type_and_id_arrive_as_they_were_sent(type: str, id: str) -> None:
    shown = decode(encode(event(data="x", type=type, id=id, retry=5), POSITION))

    assert shown == [Shown(type, "x", id)]


def test_structured_event_has_a_line_for_each_field() -> None:
    frame = encode(event(data="a\nb", type="note", retry=1500), POSITION)

    assert frame == f"event: note\ndata: a\ndata: b\nretry: 1500\nid: {POSITION}\n\n".encode()


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
        pytest.param({"data": "x", "id": "\ud800"}, "id contains a lone surrogate", id="C4-id"),
        pytest.param({"data": "\ud800"}, "data contains a lone surrogate at index 0", id="C4-data"),
        pytest.param({"data": 5}, "data must be a string", id="data-int"),
        pytest.param({"payload": "data: \udfff"}, "payload contains a lone surrogate at index 6", id="C4-payload"),
        pytest.param({"data": "x", "retry": -1}, "retry -1 is not a whole number", id="C8-retry-negative"),
        pytest.param({"data": "x", "retry": True}, "retry True is not a whole number", id="C8-retry-bool"),
        pytest.param({"data": "x", "retry": 1.5}, "retry 1.5 is not a whole number", id="C8-retry-float"),
        pytest.param({"data": "x", "retry": 10**12}, "retry 1000000000000 is not a whole number", id="C8-retry-huge"),
        pytest.param({"data": "x", "ttl": 10**310}, "ttl 1000000", id="ttl-huge"),
        pytest.param({"data": "x", "ttl": float("nan")}, "ttl nan is not a positive number", id="ttl-nan"),
        pytest.param({"data": "x", "ttl": 2**40}, "ttl 1099511627776 is not a positive number", id="ttl-over"),
        pytest.param({"data": "x", "ttl": 0}, "ttl 0 is not a positive number", id="ttl-zero"),
        pytest.param({"data": "x", "ttl": True}, "ttl True is not a positive number", id="ttl-bool"),
        pytest.param({"payload": "data: x", "data": "x"}, "data can't be given together", id="payload-and-data"),
        pytest.param({"payload": "data: x", "retry": 1}, "retry can't be given together", id="payload-and-retry"),
    ],
)
def test_event_that_would_break_a_stream_is_rejected(fields: dict[str, Any], message: str) -> None:
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
        (("a",), ("\ud800",), "userId contains a lone surrogate"),
        ("chat", ("a",), "channel must be a sequence"),
        ((5,), ("a",), "channel must be a string, not int"),
        (("a",), tuple(map(str, range(1_001))), "userId has 1001 names: at most 1000 are allowed"),
        (tuple(map(str, range(1_001))), ("*",), "channel has 1001 names: at most 1000 are allowed"),
        (tuple(map(str, range(11))), tuple(map(str, range(100))), "userId: 100 users on 11 channels are too many"),
    ],
)
def test_invalid_names_are_rejected(channels: Any, users: Any, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        Event(channels, users, data="x")

    assert str(caught.value).startswith(message)


def test_repeated_names_count_once() -> None:
    made = Event(("b", "a", "b"), ("x", "y", "x"), data="")

    assert made.channels == ("b", "a") and made.users == ("x", "y") and not made.is_for_everyone


def test_everyone_includes_the_users_named_beside_it() -> None:
    made = Event(("a",), ("x", "*"), data="")

    assert made.users == ("*",) and made.is_for_everyone


def test_event_can_not_be_changed_after_its_checks() -> None:
    made = Event(("a",), ("x",), data="x")

    with pytest.raises(FrozenInstanceError):
        made.data = "\0"  # type: ignore[misc]  # this test is about the error
    with pytest.raises(InvalidEvent):
        replace(made, channels=())


def test_size_is_in_bytes() -> None:
    assert event(data="🦜").size == event(payload="🦜").size == 4


@pytest.mark.parametrize("channels", ['{"0":1}', "{}", "5", "[5]", "[[]]", '"chat"', "null", "[null]"])
def test_entry_that_was_not_dumped_is_rejected_or_loaded_with_valid_names(channels: str) -> None:
    text = f'{{"channels":{channels},"users":["*"],"data":"x"}}'

    try:
        loaded = Event.load(text)
    except InvalidEvent:
        return

    assert all(isinstance(channel, str) for channel in loaded.channels)


@pytest.mark.parametrize("character", [*CONTROLS])
@pytest.mark.parametrize("where", ["{}a", "a{}b", "a{}"])
def test_c2_control_characters_in_ids_are_refused(character: str, where: str) -> None:
    id = where.format(character)
    with pytest.raises(InvalidEvent, match=r"^id .* contains"):
        event(data="x", id=id)
    with pytest.raises(InvalidEvent, match=r"^payload: id "):
        event(payload=f"data: x\nid: a{character if character not in chr(10) + chr(13) else chr(0)}b")


@pytest.mark.parametrize("id", [" a", "a ", " 1795633044736-0.loh23qqu", "1795633044736-0.loh23qqu ", " "])
def test_c2_spaces_around_ids_are_refused(id: str) -> None:
    with pytest.raises(InvalidEvent, match="begins or ends with a space"):
        event(data="x", id=id)
    with pytest.raises(InvalidEvent, match=r"payload: id .* (begins or ends with a space|looks like a position)"):
        event(payload=f"data: x\nid: {id}")


@pytest.mark.parametrize("id", ["é", "\x80", "\x85", "\x9f", "\u00a0x\u00a0", "\u2028", "\u3000a", "🦜", "a b"])
def test_c2_ids_that_survive_http_are_accepted(id: str) -> None:
    assert decode(encode(event(data="x", id=id), POSITION)) == [Shown("message", "x", id)]
    # As a browser sends it back, and as an HTTP server reads it: without spaces and tabs around it.
    assert id.encode().strip(b" \t").decode() == id


@pytest.mark.parametrize("id", ["a\x1bb", "\x7f", " a", "a\t"])
def test_c2_stored_events_with_ids_of_an_older_version_get_their_position(id: str) -> None:
    structured = Event.load(json.dumps({"channels": ["chat"], "users": ["*"], "data": "x", "id": id}))
    payload = f"id: {id}\ndata: 1\n\nid:  {id}\ndata: 2\n\n"
    raw = Event.load(json.dumps({"channels": ["chat"], "users": ["*"], "payload": payload}))

    assert decode(encode(structured, POSITION)) == [Shown("message", "x", str(POSITION))]
    assert [(shown.data, shown.id) for shown in decode(encode(raw, POSITION))] == [("1", ""), ("2", str(POSITION))]
    assert raw.ids == raw.inner_ids == ()


@pytest.mark.soak
@SCALED
@given(
    st.lists(names, min_size=1, max_size=3),
    st.lists(names, min_size=1, max_size=3),
    texts,
    st.none() | names.filter(lambda name: not name.startswith("stream-")),
    st.none() | ids,
    st.none() | st.integers(0, 2**31 - 1),
    st.none() | st.integers(1, 10**6),
)
def test_event_is_the_same_after_it_was_stored(
    channels: list[str],
    users: list[str],
    data: str,
    type: str | None,
    id: str | None,
    retry: int | None,
    ttl: int | None,
) -> None:
    stored = Event(channels, users, data, type, id, retry, ttl=ttl)

    loaded = Event.load(stored.dump())

    assert loaded == stored
    assert encode(loaded, POSITION) == encode(stored, POSITION)


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (
            Event(["chat"], ["alex"], 'say "hi"\n\u00e9'),
            '{"channels":["chat"],"users":["alex"],"data":"say \\"hi\\"\\n\u00e9"}',
        ),
        (
            Event(["b", "a"], ["*"], "x", "t", "i1", 5, ttl=2.5),
            '{"channels":["b","a"],"users":["*"],"data":"x","type":"t","id":"i1","retry":5,"ttl":2.5}',
        ),
        (
            Event(["a"], ["*"], payload="data: x\nid: 7\n\n", store=True, ttl=60),
            '{"channels":["a"],"users":["*"],"payload":"data: x\\nid: 7\\n\\n","ttl":60}',
        ),
        (Event(["a"], ["*"], "x", store=False), '{"channels":["a"],"users":["*"],"data":"x","store":false}'),
    ],
    ids=["data", "all fields", "payload", "not stored"],
)
def test_event_is_stored_as_compact_json(stored: Event, text: str) -> None:
    assert stored.dump() == text


@pytest.mark.parametrize("data", ["a\nb", "\n", "\r", "a\r\nb\rc\n", "\n\nx\n\r\n", "50 %\n%(id)s", "a\u2028b\n"])
def test_data_of_several_lines_is_framed_as_sse_starlette_does_it(data: str) -> None:
    event = Event(("chat",), ("*",), data, type="t", id="i", retry=5)

    assert encode(event, POSITION) == encode_fields(data=data, event="t", id="i", retry=5)
