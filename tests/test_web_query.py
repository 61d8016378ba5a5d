"""The query of a request for a stream: what it contains, and when it is refused."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssehub.errors import InvalidRequest
from ssehub.web.query import MAX_QUERY_BYTES, MAX_QUERY_ESCAPES, MAX_QUERY_FIELDS, parse_query


def channels_of(query: bytes) -> tuple[str, ...]:
    parsed = parse_query(query)
    assert parsed is not None
    return parsed.channels() if parsed.has_channels else ()


PIECES = st.sampled_from(["a", "b", "token", "=", "&", "+", "%41", "%", "%C3%A9", "%FF", "é", "channe", "l", ";", " "])


@given(st.lists(PIECES, max_size=30).map("".join))
@example("a=1&a=2&b=&b=3&c&=d&%61=4")
def test_first_field_of_a_name_is_what_the_standard_library_reads(text: str) -> None:
    query = text.encode()
    fields = dict(reversed(parse_qsl(query.decode(), errors="replace")))
    fields.pop("channel", None)

    parsed = parse_query(query)

    assert parsed is not None
    assert parsed.fields == fields


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=20), min_size=1)
)
def test_channels_are_read_however_they_are_escaped(names: list[str]) -> None:
    everything = "&".join(f"channel={''.join(f'%{octet:02x}' for octet in name.encode())}" for name in names)
    usual = "&".join(f"channel={quote(name, safe='')}" for name in names)

    assert channels_of(everything.encode()) == channels_of(usual.encode()) == tuple(dict.fromkeys(names))


@pytest.mark.parametrize(
    ("query", "channels"),
    [
        (b"", ()),
        (b"a=1", ()),
        (b"channel=a", ("a",)),
        (b"channel=b&token=x&channel=a&channel=b", ("b", "a")),
        (b"ch%61nnel=a&channel=b", ("b", "a")),
        (b"channel=a+b&channel=c%2Bd", ("a b", "c+d")),
        (b"channel=a%26channel%3Db", ("a&channel=b",)),
        (b"channel=a=b", ("a=b",)),
        (b"channel=100%", ("100%",)),
        (b"channel=%5Cx41", ("\\x41",)),
        (b"channel=orders.*", ("orders.*",)),
        (b"channels=a&Channel=b&xchannel=c", ()),
    ],
)
def test_channel_may_be_repeated(query: bytes, channels: tuple[str, ...]) -> None:
    assert channels_of(query) == channels


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"channel=", "channel is empty"),
        (b"channel", "channel is empty"),
        (b"channel=a&channel=", "channel is empty"),
        (b"channel=" + b"x" * 256, "channel has 256 characters: at most 255 are allowed"),
        (b"channel=a%00", "contains a NUL"),
        (b"channel=a%0Ab", "channel contains a line break"),
        (b"channel=a%0Db", "contains a line break"),
        (b"channel=%0A&channel=a%0A", "channel contains a line break"),
        (b"channel=%FF", "channel is not valid UTF-8"),
        (b"channel=%ED%A0%80", "channel is not valid UTF-8"),
        (b"channel=%C3&channel=%A9", "channel is not valid UTF-8"),
        (b"&".join([b"channel=a"] * 1_001), "channel has 1001 names: at most 1000 are allowed"),
    ],
)
def test_b31_channel_that_is_no_name_is_refused(query: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        channels_of(query)

    assert message in str(caught.value)
    assert caught.value.status == 400


LONG = b"channel=" + b"x" * 50
CYRILLIC = "".join(f"&channel={quote(f'заказ{number:04}')}" for number in range(1_000)).encode()


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (b"&".join([b"a=1"] * MAX_QUERY_FIELDS), b"&".join([b"a=1"] * (MAX_QUERY_FIELDS + 1))),
        (b"&" * (MAX_QUERY_FIELDS - 1), b"&" * MAX_QUERY_FIELDS),
        (b"a=" + b"%41" * MAX_QUERY_ESCAPES, b"a=" + b"%41" * (MAX_QUERY_ESCAPES + 1)),
        (b"a=" + b"x" * (MAX_QUERY_BYTES - 2), b"a=" + b"x" * (MAX_QUERY_BYTES - 1)),
        (b"&".join([LONG] * 1_000), b"&".join([LONG] * 1_200)),
        (b"&".join([LONG] * 1_000) + b"&a=1" * 100, b"&".join([LONG] * 1_000) + b"&a=1" * 101),
        (CYRILLIC[1:] + b"&a=" + b"%41" * MAX_QUERY_ESCAPES, CYRILLIC[1:] + b"&a=" + b"%41" * (MAX_QUERY_ESCAPES + 1)),
    ],
    ids=["fields", "ampersands", "escapes", "bytes", "channels", "channels-and-fields", "escapes-beside-channels"],
)
def test_b13_query_beyond_a_bound_is_refused_whole(within: bytes, beyond: bytes) -> None:
    assert parse_query(within) is not None
    assert parse_query(beyond) is None


def test_thousand_channels_with_escapes_are_read() -> None:
    assert len(channels_of(CYRILLIC[1:])) == 1_000
