"""What a run is, and its events: what is accepted, and what a watcher is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx_sse._decoders import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st

from ssehub.errors import InvalidEvent
from ssehub.position import Position
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import (
    DEFAULT_IDLE_SECONDS,
    DEFAULT_KEEP_SECONDS,
    Run,
    RunOptions,
    RunState,
    check_run_name,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1, max_size=50)


# Names


@pytest.mark.parametrize("name", ["a", "answer-42", "é ü", "a b", "...", ".a", "%2F", "x" * 255, "\U0001f600", "\xad"])
def test_name_is_accepted(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "run is empty"),
        ("a/b", "run 'a/b' contains '/'"),
        ("/", "contains '/'"),
        (".", "would be removed from a URL"),
        ("..", "would be removed from a URL"),
        ("x" * 256, "run has 256 characters"),
        ("a\nb", "contains a line break"),
        ("a\0b", "contains a NUL"),
        ("a\tb", "contains a control character"),
        ("a\x7f", "contains a control character"),
        ("a\x85", "contains a control character"),
        ("\ud800", "contains a lone surrogate"),
        (7, "run must be a string, not int"),
        (None, "run must be a string, not NoneType"),
    ],
)
def test_name_is_refused(name: object, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        check_run_name(name)


# Options


def test_options_have_defaults_and_each_name_once() -> None:
    options = RunOptions(("a", "b", "a"), ("alex", "alex"))

    assert (options.channels, options.users) == (("a", "b"), ("alex",))
    assert (options.keep, options.idle) == (DEFAULT_KEEP_SECONDS, DEFAULT_IDLE_SECONDS) == (3_600, 300)
    assert options.announce is None and options.stoppable is False
    assert RunOptions(("a",), ("alex", "*")).users == ("*",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, "channel is missing"),
        ({"users": ()}, "userId is missing"),
        ({"channels": "chat"}, "channel must be a sequence of names"),
        ({"users": ("",)}, "userId is empty"),
        ({"keep": -1}, "keep -1 is not a number of seconds from 0"),
        ({"keep": float("nan")}, "keep nan is not"),
        ({"keep": float("inf")}, "keep inf is not"),
        ({"keep": 2**31}, "keep 2147483648 is not a number of seconds from 0 to 2147483647"),
        ({"keep": True}, "keep True is not"),
        ({"keep": "60"}, "keep '60' is not"),
        ({"idle": 0.9}, "idle 0.9 is not a number of seconds from 1"),
        ({"idle": None}, "idle None is not"),
        ({"announce": ""}, "announce is empty"),
        ({"announce": "stream-run"}, "announce 'stream-run' begins with 'stream-'"),
        ({"announce": "a\nb"}, "announce 'a\\\\nb' contains a line break"),
        ({"announce": 1}, "announce must be a string"),
        ({"stoppable": 1}, "stoppable must be true or false, not 1"),
    ],
)
def test_option_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        RunOptions(**({"channels": ("chat",), "users": ("alex",)} | fields))


def test_least_options_are_accepted() -> None:
    options = RunOptions(("chat",), ("alex",), keep=0, idle=1, announce="run", stoppable=True)

    assert (options.keep, options.idle) == (0, 1)


# States


def test_states_that_are_an_end() -> None:
    assert [state for state in RunState if state.is_end] == [RunState.DONE, RunState.FAILED, RunState.STOPPED]


def test_end_has_an_ordinal() -> None:
    run = Run("a", RunOptions(("chat",), ("alex",)), 1, "log", 0.0)
    run.events = 3
    assert run.last == 3
    run.state = RunState.STOPPING
    assert run.last == 3
    run.state = RunState.DONE

    assert run.last == 4
    assert str(run.position(4)) == "4-0.log"


@pytest.mark.parametrize(
    ("users", "user", "covers", "may"),
    [
        (("alex",), "alex", [True], True),
        (("alex",), "alex", [False, True], True),
        (("alex",), "alex", [False, False], False),
        (("alex", "sam"), "sam", [True], True),
        (("alex",), "sam", [True], False),
        (("*",), "sam", [True], True),
        (("*",), "sam", [False], False),
        (("alex",), "*", [True], False),
    ],
)
def test_run_may_be_watched_by_those_who_could_hear_its_events(
    users: tuple[str, ...], user: str, covers: list[bool], may: bool
) -> None:
    run = Run("a", RunOptions(("chat", "news"), users), 1, "log", 0.0)

    assert run.may_be_watched(user, covers) is may


# Events


def test_event_has_what_was_given() -> None:
    event = RunEvent.checked("é", "token", "my id", 7)

    assert event.size == 2 + 5 + 5
    assert event == ("é", "token", "my id", 7)
    assert RunEvent.checked("") == ("", None, None, None)
    assert RunEvent.checked("").size == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": None}, "data is missing"),
        ({"data": 7}, "data must be a string"),
        ({"data": "\ud800"}, "data contains a lone surrogate"),
        ({"type": "stream-finished"}, "event 'stream-finished' begins with 'stream-'"),
        ({"type": ""}, "event is empty"),
        ({"id": ""}, "id is empty"),
        ({"id": "1-0.abc"}, "id '1-0.abc' looks like a position"),
        ({"retry": -1}, "retry -1 is not"),
        ({"retry": "5"}, "retry '5' is not"),
    ],
)
def test_event_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        RunEvent.checked(**({"data": "x"} | fields))


@given(TEXT, st.none() | LINE, st.none() | LINE, st.none() | st.integers(0, 2**31 - 1))
def test_event_is_loaded_as_it_was_dumped(data: str, type: str | None, id: str | None, retry: int | None) -> None:
    event = RunEvent(data, type, id, retry)
    dumped = event.dump()

    assert RunEvent.load(dumped) == RunEvent.load(dumped.encode()) == event
    assert json.loads(dumped)[0] == data
    assert event.size == sum(len(text.encode()) for text in (data, type, id) if text is not None)


@given(TEXT.filter(lambda text: "\0" not in text), st.none() | LINE, st.none() | st.integers(0, 2**31 - 1))
def test_frame_is_decoded_by_others_as_it_was_appended(data: str, type: str | None, retry: int | None) -> None:
    frame = RunEvent(data, type, "publisher's own", retry).encode(7, "abc").decode()
    normal = data.replace("\r\n", "\n").replace("\r", "\n")
    decoder = SSEDecoder()
    lines = frame.replace("\r\n", "\n").split("\n")[:-1]  # others split at U+2028, too, which the standard does not
    (decoded,) = [found for line in lines if (found := decoder.decode(line)) is not None]

    assert decoded.data == normal
    assert decoded.event == (type or "message")
    assert decoded.id == "7-0.abc"
    assert Position.parse(decoded.id) == (7, 0, "abc")
    assert decoded.retry == retry
    assert lines[-2].startswith("id: "), "an id before the data could be taken for that of a frame cut in the middle"
    data_only = RunEvent(data, type, "publisher's own", retry).encode_data().decode().replace("\r\n", "\n")
    assert data_only == "".join(f"data: {line}\n" for line in normal.split("\n")) + "\n"
