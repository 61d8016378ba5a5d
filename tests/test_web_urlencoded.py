"""Forms: small ones are read as the standard library reads them, and escapes as well."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssehub.errors import InvalidRequest
from ssehub.web.escapes import unescape
from ssehub.web.forms import MAX_FIELDS, media_type, small_form_fields, urlencoded
from ssehub.web.requests import ControlRequest

SCALED = settings(max_examples=10_000 if "SOAK" in os.environ else 300, deadline=None)
PIECES = [
    b"a",
    b"=",
    b"&",
    b"+",
    b"%",
    b"%4",
    b"%41",
    b"%C3",
    b"%a9",
    b"%25",
    b"%26",
    b"%ED%A0%80",
    b"%00",
    b"\\",
    b"x",
]
PIECES += [b"\\x41", b"\xc3", b"\xa9", b"\xc3\xa9", b";", b"\n", b" ", b"\\\n"]
FORMS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=12).map(b"".join)
REFUSED = [("refused", "")]


def independent(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:
        return REFUSED


@pytest.mark.soak
@SCALED
@given(FORMS)
@example(b"a=\xc3%A9")
@example(b"a=%C3\xc3\xa9")
@example(b"&&a&=b&c=&=&%")
@example(b"=&a")
@example(b"&" * (MAX_FIELDS - 1))
@example(b"&" * MAX_FIELDS)
@example(b"\xff" + b"&" * MAX_FIELDS)
def test_small_form_is_read_as_the_standard_library_reads_it(text: bytes) -> None:
    try:
        found = urlencoded("the body", text)
    except InvalidRequest:
        found = REFUSED

    assert found == independent(text)


@pytest.mark.soak
@SCALED
@given(FORMS)
@example(b"%%%41%")
@example(b"%\\x41")
@example(b"%4\\")
def test_escapes_are_read_as_the_standard_library_reads_them(text: bytes) -> None:
    assert unescape(text) == unquote_to_bytes(text)


@pytest.mark.parametrize(
    ("query", "body", "fields"),
    [
        (b"", b"a=1&retry=5", {"a": "1", "retry": 5}),
        (b"a=2&retry=6", b"retry=5", {"a": "2", "retry": 5}),
        (b"retry=6", b"", {"retry": 6}),
        (b"store=false", b"ttl=1e3", {"store": False, "ttl": 1000.0}),
    ],
)
def test_field_of_the_body_takes_precedence_over_the_query(
    query: bytes, body: bytes, fields: dict[str, object]
) -> None:
    assert small_form_fields(ControlRequest(query, {}, body), ("a", "retry", "store", "ttl")) == fields


@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        (b"a=1&a=2", b"b=1", "a is given twice"),
        (b"%ff", b"b=1", "the query is not valid UTF-8"),
        (b"a=%ff", b"\xff", "the query is not valid UTF-8"),
        (b"", b"a=%ff", "the body is not valid UTF-8"),
        (b"&" * MAX_FIELDS, b"", "the query has more than 1000 fields"),
        (b"retry=x", b"store=y", "retry 'x' is not a number of milliseconds"),
        (b"store=y", b"retry=x", "store must be true or false"),
    ],
)
def test_first_mistake_of_a_form_is_named(query: bytes, body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        small_form_fields(ControlRequest(query, {}, body), ("a", "retry", "store"))


@pytest.mark.parametrize(
    ("declared", "body", "kind"),
    [
        ("application/json", b"{}", "application/json"),
        ("application/json", b"", "application/json"),
        ("Application/JSON ; charset=utf-8", b"{}", "application/json"),
        ("application/x-www-form-urlencoded", b"", "application/x-www-form-urlencoded"),
        ("text/plain", b"", "application/x-www-form-urlencoded"),
    ],
)
def test_media_type_is_read_with_and_without_parameters(declared: str, body: bytes, kind: str) -> None:
    assert media_type(ControlRequest(b"", {"content-type": declared}, body)) == kind
