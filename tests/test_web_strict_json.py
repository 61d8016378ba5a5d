"""JSON bodies: the reader of large bodies returns what the plain parser returns, within its bounds."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssehub.errors import BodyTooLarge, InvalidRequest
from ssehub.pace import Pace
from ssehub.web.strict_json import MAX_BODY_VALUES, MAX_EVENT_VALUES, parse_json, read_json, read_ndjson

SOAK = "SOAK" in os.environ
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["\\", '"', "[", "{", ",", "\n", "é", "🦜", "x"])
).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=10,
)
CHARACTERS = [
    "",
    '"',
    "\\",
    ",",
    "[",
    "]",
    "{",
    "}",
    ":",
    "1",
    " ",
    "\n",
    "\x00",
    "tru",
    "1.",
    "1e+",
    "\\u00",
    "-",
    "NaN",
]
REFUSED = object()


def plain(body: bytes) -> Any:
    """Return what the plain parser makes of `body`, or REFUSED."""
    try:
        return parse_json("the body", body)
    except InvalidRequest:
        return REFUSED


def paced(body: bytes, max_elements: int = 10**6) -> Any:
    """Return what the reader of large bodies makes of `body`, or REFUSED."""
    try:
        return asyncio.run(read_json("the body", body, max_elements, Pace()))
    except InvalidRequest:
        return REFUSED


def plain_lines(body: bytes) -> Any:
    try:
        return [parse_json("line", line) for line in body.split(b"\n") if line.strip(b" \t\r")]
    except InvalidRequest:
        return REFUSED


def paced_lines(body: bytes, pace: Pace | None) -> Any:
    try:
        return asyncio.run(read_ndjson(body, 10**6, pace))
    except InvalidRequest:
        return REFUSED


@pytest.mark.soak
@settings(max_examples=150 if SOAK else 5, deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=6),
    st.sampled_from([None, 1]),
    st.floats(0, 1),
    st.sampled_from(CHARACTERS),
    st.booleans(),
)
@example([1.5], None, 0.5, "", False)
@example(['"\\'], None, 0.9999, '"', True)
@example([{"a": [1, 2], "b": "\\\\"}], 1, 0.3, "]", False)
@example([[], {}], None, 0.7, "[", False)
def test_large_arrays_are_read_as_the_plain_parser_reads_them(
    elements: list[Any], indent: int | None, where: float, inserted: str, overwrites: bool
) -> None:
    """One place of the text is damaged. The array is so long that it is read in several windows."""
    one = json.dumps(elements, indent=indent, ensure_ascii=False)[1:-1]
    count = max(1, 2 * MAX_EVENT_VALUES // max(len(one) // 20, one.count(",") + one.count("[") + one.count("{") + 1))
    text = "[" + ",".join([one] * count) + "]"
    at = int(where * len(text))
    text = text[:at] + inserted + text[at + (len(inserted) if overwrites else 0) :]

    expected, found = plain(text.encode()), paced(text.encode())

    if expected is REFUSED or isinstance(expected, list):
        assert found == expected or (found is REFUSED and max_weight(expected) > MAX_EVENT_VALUES)


def max_weight(values: object) -> int:
    """Return a lower bound of the values in the largest element: a damaged text may have joined many into one."""
    return max((len(json.dumps(value)) for value in values), default=0) if isinstance(values, list) else 0


@pytest.mark.soak
@settings(max_examples=3_000 if SOAK else 80, deadline=None)
@given(st.lists(st.binary(max_size=8) | VALUES.map(lambda value: json.dumps(value).encode()), max_size=8))
@example([b"1", b"", b" \t\r", b"{", b"2"])
@example([b"\xff"])
@example([b'{"a":1,"a":2}'])
def test_lines_are_read_as_the_plain_parser_reads_them(lines: list[bytes]) -> None:
    body = b"\n".join(lines)

    assert paced_lines(body, None) == paced_lines(body, Pace()) == plain_lines(body)
    assert paced_lines(body + b" " * 70_000 + b"\n", Pace()) == plain_lines(body)


@pytest.mark.soak
@settings(max_examples=3_000 if SOAK else 80, deadline=None)
@given(st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode()))
@example(b"[1,]")
@example(b"[1] x")
@example(b"[")
@example(b" [ ] ")
@example(b'\xef\xbb\xbf"bom"')
def test_any_text_is_read_as_the_plain_parser_reads_it(body: bytes) -> None:
    assert paced(body) == plain(body)


def independent(body: bytes) -> Any:
    """Return what the standard library makes of `body`, with the same two exceptions to what it accepts."""

    def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError
        return dict(pairs)

    def no_constant(constant: str) -> None:
        raise ValueError

    try:
        return json.loads(body.decode(), object_pairs_hook=no_name_twice, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return REFUSED


PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b'"a"',
    b"\\",
    b"\\u",
    b"\\ud800",
    b"1",
    b"-",
    b"1e5",
    b"1e999",
    b".",
    b"E",
]
PIECES += [
    b" ",
    b"\n",
    b"\x0c",
    b"\xef\xbb\xbf",
    b"true",
    b"null",
    b"NaN",
    b"-Infinity",
    b"\xc3\xa9",
    b"\xff",
    b"\x00",
    b"-0",
]
PIECES += [b'{"a":1,"a":2}', b"9" * 4_300, b"9" * 4_301, b"[" * 1_100]


@pytest.mark.soak
@settings(max_examples=20_000 if SOAK else 200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=25).map(b"".join))
@example(b'{"a":{"b":1,"b":1}}')
@example(b"[-0,-0.0,1e999,1E+2]")
@example(b'"\\ud800\\udc00\\ud800"')
def test_any_text_is_read_as_the_standard_library_reads_it(body: bytes) -> None:
    found, expected = plain(body), independent(body)

    assert (found is REFUSED) == (expected is REFUSED)
    assert repr(found) == repr(expected)  # 0 is equal to -0.0 and to False


@pytest.mark.parametrize("cut", range(1, 12))
def test_element_that_a_window_cuts_anywhere_is_read_whole(cut: int) -> None:
    element = [1.5e10, 'a"\\\u00e9', True, None, {"name": -12}]
    body = ("[" + " " * cut + ",".join([json.dumps(element)] * 20_000) + "]").encode()

    assert paced(body) == [element] * 20_000


def test_error_in_a_later_window_has_its_place_in_the_body() -> None:
    body = b"[" + b"[1,2,3,4],\n" * 20_000 + b"oops]"

    with pytest.raises(InvalidRequest, match=r"not valid JSON: Expecting value: line 20001 column 1 \(char 220001\)"):
        asyncio.run(read_json("the body", body, 10**6, Pace()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[" + "1," * MAX_EVENT_VALUES + "1]", "event 0 has more than 50000 JSON values", id="one-event"),
        pytest.param("[1,2," + "[" * 1 + "[]," * MAX_EVENT_VALUES + "1]]", "event 2 has more than 50000", id="third"),
        pytest.param('{"a":' + "[" + "1," * MAX_EVENT_VALUES + "1]}", "the body has more than 50000", id="object"),
        pytest.param("[" + "1," * MAX_BODY_VALUES + "1]", "the body has more than 400000", id="body"),
        pytest.param("[" + ",".join(["9" * 4_000] * 2_000) + "]", "more than", id="long-numbers"),
        pytest.param('["' + "\\n" * (50 * MAX_EVENT_VALUES) + '"]', "event 0 has more than 50000", id="escapes"),
    ],
)
def test_c7_too_many_values_are_refused_before_they_are_parsed(text: str, message: str) -> None:
    if message.startswith("event 0") and "[1,1" in text[:5]:
        text = f"[{text}]"

    with pytest.raises(BodyTooLarge, match=message):
        asyncio.run(read_json("the body", text.encode(), 10**6, Pace()))


def test_c7_as_many_values_as_allowed_are_read() -> None:
    numbers = [1] * (MAX_EVENT_VALUES * 9 // 10)  # their digits count, too

    assert paced(json.dumps({"data": numbers}).encode()) == {"data": numbers}
    assert paced(json.dumps([{"data": numbers}] * 4).encode()) == [{"data": numbers}] * 4


@pytest.mark.parametrize("pace", [None, Pace()])
def test_c7_lines_behind_the_last_allowed_one_are_not_parsed(pace: Pace | None) -> None:
    body = b"1\n" * 100 + b"not JSON\n"

    with pytest.raises(BodyTooLarge, match="more than 100 events"):
        asyncio.run(read_ndjson(body, 100, pace))
    with pytest.raises(InvalidRequest, match="line 101 is not valid JSON"):
        asyncio.run(read_ndjson(body, 101, pace))


def test_c7_elements_behind_the_last_allowed_one_are_not_parsed() -> None:
    body = b"[" + b"[1,2,3]," * 30_000 + b"not JSON]"

    with pytest.raises(BodyTooLarge, match="more than 100 events"):
        asyncio.run(read_json("the body", body, 100, Pace()))
