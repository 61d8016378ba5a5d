"""Raw payloads: stream text written by a publisher, parsed by the HTML standard, section 9.2.6, before it is stored.

A payload is sent as it is, with two additions. An unfinished last block is completed, as the next event would otherwise
become part of it; and the last block with data gets an `id:` line with the event's position as its last line, unless it
has an id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from .errors import InvalidEvent
from .fields import MAX_RETRY_MILLISECONDS, RESERVED_TYPE, check_id

MAX_CHECKED_FIELDS = 10_000
"""Most ids, and most `retry` fields of ten digits or more, in one payload: each takes microseconds to check."""

# A field is at the start of a line: its name, then a colon and a value, or nothing. Each pattern begins with a literal,
# which `re` finds quickly; only then it looks back whether a line begins there.
_ID_FIELD = re.compile(r"id(?<![^\r\n]id)(?::[ ]?([^\r\n]*))?(?![^\r\n])")
_RETRY_FIELD = re.compile(r"retry(?<![^\r\n]retry)(?!:[ ]?[0-9]{1,9}(?![^\r\n]))(?::[ ]?([^\r\n]*))?(?![^\r\n])")
_RESERVED_FIELD = re.compile(rf"event(?<![^\r\n]event):[ ]?({RESERVED_TYPE}[^\r\n]*)")
_DATA_FIELD_REVERSED = re.compile(r"atad(?<![^:\r\n]atad)(?![^\r\n])")
_BLOCK_END = re.compile(r"\n\n|\r\r|\n\r")  # any two line ends in a row contain one of these


@dataclass(frozen=True, slots=True)
class ParsedPayload:
    """The ids in a raw payload, and the additions it needs. `parse` raises InvalidEvent."""

    id: str | None
    """The last id in the payload, if it has any."""
    position_at: int | None
    """Where to insert the `id:` line into the completed payload; None if the last block with data has an id, or no
    block has data.
    """
    ends_with_position: bool
    """True if the inserted id is the last one that a client reads."""
    ids: tuple[str, ...]
    """The ids in and after the last block with data."""
    inner_ids: tuple[str, ...]
    """The ids before it: a client whose last id is one of these has not received the whole payload."""
    completion: str
    """The line ends to append so that the payload ends with a blank line."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if not text:
            raise InvalidEvent("payload is empty: give stream text, such as 'data: hello'")
        ids = _checked_ids(text)
        completion = _completion(text)
        data_at = _last_data_line(text)
        last_block, position_at = 0, None
        if data_at is not None:
            last_block, end = _block_around(text + completion, data_at)
            if not any(last_block <= start < end for start, _ in ids):
                position_at = end
        return cls(
            id=ids[-1][1] if ids else None,
            position_at=position_at,
            ends_with_position=position_at is not None and not any(start > position_at for start, _ in ids),
            ids=tuple(id for start, id in ids if start >= last_block),
            inner_ids=tuple(id for start, id in ids if start < last_block),
            completion=completion,
        )


def _checked_ids(text: str) -> list[tuple[int, str]]:
    """Check the fields of a payload as those of structured events are. Return the index and value of each id."""
    if reserved := _RESERVED_FIELD.search(text):
        raise InvalidEvent(
            f"payload: event type {reserved[1][:100]!r} begins with '{RESERVED_TYPE}', which is reserved for the hub: "
            "use another type"
        )
    for count, match in enumerate(_RETRY_FIELD.finditer(text), 1):
        _check_count(count)
        _check_retry(match[1] or "")
    ids = []
    for count, match in enumerate(_ID_FIELD.finditer(text), 1):
        _check_count(count)
        id = match[1] or ""
        check_id("payload: id", id)
        ids.append((match.start(), id))
    return ids


def _check_count(count: int) -> None:
    if count > MAX_CHECKED_FIELDS:
        raise InvalidEvent(f"payload has more than {MAX_CHECKED_FIELDS} ids or retry fields: publish several payloads")


def without_checked_fields(text: str) -> str:
    """Return a payload with a comment line in place of each id, and of each `retry` of ten digits or more."""
    return _RETRY_FIELD.sub(":", _ID_FIELD.sub(":", text))


def _check_retry(text: str) -> None:
    digits = text.lstrip("0")[:11]  # int() of a megabyte of digits takes too long, and raises ValueError
    if not (text.isascii() and text.isdigit() and int(digits or 0) <= MAX_RETRY_MILLISECONDS):
        raise InvalidEvent(
            f"payload: retry {text[:40]!r} is not a number of milliseconds: use digits only, and at most "
            f"{MAX_RETRY_MILLISECONDS}"
        )


def _last_data_line(text: str) -> int | None:
    match = _DATA_FIELD_REVERSED.search(text[::-1])
    return None if match is None else len(text) - match.end()


def _block_around(text: str, index: int) -> tuple[int, int]:
    """Return where the block that contains `index` starts, and where the blank line begins that ends it."""
    start = max(text.rfind(pair, 0, index) for pair in ("\n\n", "\r\r", "\n\r"))
    end = _BLOCK_END.search(text, index)
    assert end is not None, "a completed payload ends with a blank line"
    return max(start, 0), end.start() + 1


def _completion(text: str) -> str:
    if not text.endswith(("\r", "\n")):
        return "\n\n"
    line = text.removesuffix("\n").removesuffix("\r") if text.endswith("\r\n") else text[:-1]
    if not line or line.endswith(("\r", "\n")):
        return ""
    return "\r" if text.endswith("\r") else "\n"  # an LF after a CR would only turn that line end into a CRLF
