"""Tables and JSON on a terminal, of names that anybody may have chosen."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence

ELLIPSIS = "…"
_ESCAPED = frozenset(("Cc", "Cf", "Cn", "Cs", "Zl", "Zp"))
"""Categories of characters that control a terminal, change the direction of what follows, or have no width."""
_NARROW = frozenset(("Mn", "Me"))


def table(heads: Sequence[str], rows: Sequence[Sequence[str | int]]) -> Iterator[str]:
    """Yield the lines of a table, numbers aligned to the right. The cells are as `cell` returns them, or numbers."""
    lines = [heads, *[[str(value) for value in row] for row in rows]]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    is_right = [all([isinstance(row[at], int) for row in rows]) for at in range(len(heads))]
    for line in lines:
        padded = [
            " " * (most - width(text)) + text if right else text + " " * (most - width(text))
            for text, most, right in zip(line, widths, is_right, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def cell(text: str, most: int = 40) -> str:
    """Return `text` in one line of at most so many columns, with escapes for what could control the terminal."""
    shown: list[str] = []
    columns = 0
    for character in text:
        piece = ascii(character)[1:-1] if unicodedata.category(character) in _ESCAPED else character
        columns += width(piece)
        if columns > most:
            while shown and width("".join(shown)) >= most:
                shown.pop()
            return "".join(shown) + ELLIPSIS
        shown.append(piece)
    return "".join(shown)


def printable_json(value: object, *, indent: int | None = None) -> str:
    """Return `value` as JSON, with escapes of JSON for what could control the terminal."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(
        [json.dumps(one)[1:-1] if one != "\n" and unicodedata.category(one) in _ESCAPED else one for one in text]
    )


def width(text: str) -> int:
    """Return how many columns a terminal takes for `text`, which has no control characters."""
    if text.isascii():
        return len(text)
    return sum([_width_of(character) for character in text])


def _width_of(character: str) -> int:
    if unicodedata.category(character) in _NARROW:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
