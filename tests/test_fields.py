"""Single fields: what each may contain, and errors that say what was wrong, with the value, and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ssehub.errors import InvalidEvent
from ssehub.fields import (
    check_id,
    check_name,
    check_names,
    check_retry,
    check_store,
    check_ttl,
    check_type,
    json_text,
    one_or_many,
    to_utf8,
)


def test_name_is_returned_as_it_is() -> None:
    assert check_name("channel", "x" * 255) == "x" * 255
    assert check_name("channel", "*") == "*"


def test_fields_at_their_limits_are_accepted() -> None:
    check_retry(0)
    check_retry(2**31 - 1)
    check_ttl(0.001)
    check_ttl(2**40 - 1)
    check_type("event", "x" * 255)
    check_id("id", "1-2")


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "name-empty": (lambda: check_name("userId", ""), "userId is empty: it needs 1 to 255 characters"),
    "name-long": (
        lambda: check_name("channel", "x" * 256),
        "channel has 256 characters: at most 255 are allowed",
    ),
    "name-line-break": (lambda: check_name("channel", "a\nb"), "channel 'a\\nb' contains a line break: remove it"),
    "name-NUL": (lambda: check_name("channel", "a\0b"), "channel 'a\\x00b' contains a NUL character: remove it"),
    "name-int": (lambda: check_name("channel", 5), "channel must be a string, not int"),
    "names-string": (
        lambda: check_names("channel", "chat"),
        "channel must be a sequence of names, not the string 'chat'",
    ),
    "names-none": (lambda: check_names("channel", ()), "channel is missing: give at least one name"),
    "type-empty": (lambda: check_type("event", ""), "event is empty: give a type, or leave the field out"),
    "type-reserved": (
        lambda: check_type("event", "stream-x"),
        "event 'stream-x' begins with 'stream-', which is reserved for the hub: use another type",
    ),
    "id-empty": (
        lambda: check_id("id", ""),
        "id is empty: give an id, or leave the field out to use the event's position",
    ),
    "id-line-break": (lambda: check_id("id", "a\nb"), "id 'a\\nb' contains a line break: remove it"),
    "id-position": (
        lambda: check_id("id", "1-2.abc"),
        "id '1-2.abc' looks like a position in the log: use another format",
    ),
    "retry": (lambda: check_retry(-1), "retry -1 is not a whole number of milliseconds from 0 to 2147483647"),
    "ttl": (lambda: check_ttl(0), "ttl 0 is not a positive number of seconds less than 1099511627776"),
    "store": (lambda: check_store("no"), "store must be true or false, not 'no'"),
    "surrogate": (
        lambda: to_utf8("data", "x\ud800"),
        "data contains a lone surrogate at index 1, which UTF-8 can't encode: remove it",
    ),
}


@pytest.mark.parametrize(("check", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_error_says_what_is_wrong_and_what_to_do(check: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        check()

    assert str(caught.value) == message


@pytest.mark.parametrize("given", ["a", ("a",), ["a"], {"a"}])
def test_one_name_or_several_become_a_tuple(given: str | list[str]) -> None:
    assert one_or_many(given) == ("a",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as is", "as is"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (5, "5"),
        (None, "null"),
        ("é", "é"),
        (["é"], '["é"]'),
        ([1e-7, 1e16, 1.5, -0.0], "[1e-07,1e+16,1.5,-0.0]"),
        (123456789012345678901234567890, "123456789012345678901234567890"),
        (["\x7f\u2028\0/"], '["\x7f\u2028\\u0000/"]'),
        ({1: True, "b": {}}, '{"1":true,"b":{}}'),
    ],
)
def test_data_other_than_a_string_becomes_json(value: object, text: str) -> None:
    """Idempotency keys depend on this text, and nodes of different versions must agree on it."""
    assert json_text(value) == text


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [object(), float("nan"), {1, 2}, nested(100_000)], ids=["object", "nan", "set", "deep"]
)
def test_data_that_json_does_not_have_is_rejected(value: object) -> None:
    with pytest.raises(InvalidEvent, match="data can't be written as JSON"):
        json_text(value)
