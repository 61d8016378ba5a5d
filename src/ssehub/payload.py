"""Raw payloads: stream text that a publisher wrote itself, parsed by the rules of the HTML standard, section 9.2.6."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from .errors import InvalidEvent
from .fields import MAX_RETRY_MILLISECONDS, RESERVED_TYPE, check_id

# A field of a raw payload that we look at, at the start of a line: its name, then a colon and a value or nothing.
_RAW_FIELD = re.compile(r"(?:\A|(?<=[\r\n]))(event|id|retry)(?::[ ]?([^\r\n]*))?(?=[\r\n]|\Z)")
_RAW_DATA = re.compile(r"(?:\A|(?<=[\r\n]))data(?=[:\r\n]|\Z)")
_BLOCK_END = re.compile(r"\n\n|\r\r|\n\r")  # two line ends in a row, whichever they are, contain one of these


@dataclass(frozen=True, slots=True)
class RawText:
    """A parsed raw payload: where our `id:` line goes, and what completes it."""

    id: str | None
    """The last id the payload gives, if any."""
    id_at: int | None
    """Where the last block with data takes our `id:` line; None if it has its own, or there is no data."""
    ends_with_ours: bool
    """Whether our id is the last one a client reads."""
    ids: tuple[str, ...]
    """The ids in or behind the last block with data."""
    inner_ids: tuple[str, ...]
    """The ids before it: a client that has one of these has not had all."""
    completion: str
    """The line end and blank line that are missing at the end."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if not text:
            raise InvalidEvent("payload is empty: it needs stream text, such as 'data: hello'")
        ids = [(match.start(), match[2]) for match in _RAW_FIELD.finditer(text) if _is_id(match)]
        id_at = _last_data_line(text)
        last_block = 0
        if id_at is not None:
            last_block, end = _block_around(text, id_at)
            if any(last_block <= place < end for place, _ in ids):
                id_at = None
        return cls(
            id=ids[-1][1] if ids else None,
            id_at=id_at,
            ends_with_ours=id_at is not None and not any(place > id_at for place, _ in ids),
            ids=tuple(value for place, value in ids if place >= last_block),
            inner_ids=tuple(value for place, value in ids if place < last_block),
            completion=_completion(text),
        )


def _is_id(match: re.Match[str]) -> bool:
    """Checks one field of a raw payload as the structured field of that name would be; says whether it is an id."""
    name, value = match[1], match[2] or ""
    if name == "event" and value.startswith(RESERVED_TYPE):
        raise InvalidEvent(f"payload: event type {value!r} begins with 'stream-', which is ours: choose another")
    if name == "id":
        check_id("payload: id", value)
    if name == "retry" and not (
        value.isascii() and value.isdigit() and int(value.lstrip("0")[:11] or 0) <= MAX_RETRY_MILLISECONDS
    ):
        raise InvalidEvent(f"payload: retry {value[:40]!r} is no number of milliseconds: write digits only")
    return name == "id"


def _last_data_line(text: str) -> int | None:
    end = len(text)
    while (start := text.rfind("data", 0, end)) >= 0:
        if _RAW_DATA.match(text, start):
            return start
        end = start + 3
    return None


def _block_around(text: str, place: int) -> tuple[int, int]:
    start = max(text.rfind(pair, 0, place) for pair in ("\n\n", "\r\r", "\n\r"))
    end = _BLOCK_END.search(text, place)
    return max(start, 0), end.start() if end else len(text)


def _completion(text: str) -> str:
    if not text.endswith(("\r", "\n")):
        return "\n\n"
    line = text.removesuffix("\n").removesuffix("\r") if text.endswith("\r\n") else text[:-1]
    if not line or line.endswith(("\r", "\n")):
        return ""
    return "\r" if text.endswith("\r") else "\n"  # an LF behind a CR would only make that line end a CRLF
