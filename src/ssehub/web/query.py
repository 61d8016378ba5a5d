"""The query of a request for a stream, parsed within bounds: nothing is known about the client yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from ..errors import InvalidRequest
from ..fields import MAX_NAMES, check_names
from .escapes import unescape

CHANNEL = "channel"
RUN = "run"
MAX_QUERY_BYTES = 64 * 1024
MAX_QUERY_FIELDS = 100
"""Most fields besides `channel`, of which there may be MAX_NAMES, as many as a token may grant."""
MAX_QUERY_ESCAPES = 2_000
"""Decoding a %XX takes 0.3 µs: without a bound, a megabyte of them takes half a second before the token is checked.

Those in the values of `channel` do not count: they are decoded after that, and ten times as fast.
"""
QUERY_BOUNDS = (
    f"{MAX_QUERY_BYTES} bytes, {MAX_NAMES} channels, {MAX_QUERY_FIELDS} other fields, or {MAX_QUERY_ESCAPES} "
    "percent-escapes in those"
)
_CHANNEL_FIELD = f"{CHANNEL}="
_ENCODED_CHANNEL_FIELD = _CHANNEL_FIELD.encode()


class Query:
    """`fields` are the first of each name that has a value, without `channel`, which may be repeated.

    A `run` without a name is among them: it is a mistake of the page, and not a request for another stream.
    """

    __slots__ = ("_channels", "fields")

    def __init__(self, fields: Mapping[str, str], channels: Sequence[str] = ()) -> None:
        """`channels` are the values of `channel`, still with their escapes."""
        self.fields = fields
        self._channels = channels

    @property
    def has_channels(self) -> bool:
        return bool(self._channels)

    def channels(self) -> tuple[str, ...]:
        """Return the names given as `channel`, each once. Raises InvalidRequest if one of them cannot be a name."""
        names, text = self._channels, "\n".join(self._channels)
        if "%" in text:
            try:
                names = unescape(text.encode()).decode().split("\n")
            except UnicodeDecodeError as exc:
                raise InvalidRequest("channel is not valid UTF-8: percent-encode its name in UTF-8") from exc
            if len(names) != len(self._channels):
                raise InvalidRequest("channel contains a line break: remove it")
        return check_names(CHANNEL, names)


def parse_query(query_string: bytes) -> Query | None:
    """Return the query, None if it exceeds QUERY_BOUNDS.

    Invalid UTF-8 is replaced, as in a header: an unknown cursor then leads to a reset, and not to an error.
    """
    if not query_string:
        return _EMPTY
    if len(query_string) > MAX_QUERY_BYTES or query_string.count(b"&") >= MAX_NAMES + MAX_QUERY_FIELDS:
        return None
    pieces = query_string.decode("utf-8", "replace").replace("+", " ").split("&")
    channels: list[str] = []
    if _ENCODED_CHANNEL_FIELD in query_string:
        channels = [piece.removeprefix(_CHANNEL_FIELD) for piece in pieces if piece.startswith(_CHANNEL_FIELD)]
        pieces = [piece for piece in pieces if not piece.startswith(_CHANNEL_FIELD)]
    if len(pieces) > MAX_QUERY_FIELDS:
        return None
    if b"%" in query_string and sum([piece.count("%") for piece in pieces]) > MAX_QUERY_ESCAPES:
        return None
    fields: dict[str, str] = {}
    for piece in pieces:
        name, _, value = piece.partition("=")
        if "%" in name:
            name = unquote(name, errors="replace")
        if name == CHANNEL:
            channels.append(value)
        elif (value or name == RUN) and name not in fields:
            fields[name] = unquote(value, errors="replace") if "%" in value else value
    return Query(fields, channels)


_EMPTY = Query({})
