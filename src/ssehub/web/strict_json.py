"""JSON in request bodies: parsed strictly, and in slices if a body is large.

The C scanner of `json` keeps the GIL until it is done, so a thread would block the event loop as well. The values of a
large text are therefore counted before they are parsed, 16 KiB at a time, and a text with too many of them is refused.
An array is parsed element by element, within windows of the text that hold no more values than one event may have.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ..errors import BodyTooLarge, InvalidRequest
from ..pace import SMALL_BODY_BYTES, Pace

MAX_EVENT_VALUES = 50_000
"""Most JSON values in one event. Parsing so many takes up to 50 ms."""
MAX_BODY_VALUES = 400_000
"""Most JSON values in one request body."""

_COUNTED_CHARACTERS = 16 * 1024
_NUMBER_CHARACTERS = 20
"""Long numbers take as long as several values: each 20 characters outside strings count as one more."""
_ESCAPES = 40
"""A string of escapes takes longer than another one: each 40 backslashes count as one more value."""
_MARGIN = 16
"""An error so close to the end of a window may be due to the cut."""
_SPACES = (" ", "\t", "\n", "\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_NO_SPACE = re.compile(rb"[^ \t\n\r]")


def parse_json(where: str, text: bytes) -> Any:
    """Parse JSON strictly: valid UTF-8, no NaN, no name twice in one object. `where` names the text in errors."""
    decoded = _to_text(where, text)
    return _decode(where, decoded, _skip_space(decoded, 0))


async def read_json(where: str, body: bytes, max_elements: int, pace: Pace) -> Any:
    """Do what `parse_json` does, for a large body. Raises BodyTooLarge if it is an array of more than `max_elements`,
    and for too many values."""
    text = _to_text(where, body)
    start = _skip_space(text, 0)
    if not text.startswith("[", start):
        await _check_values(where, text, MAX_EVENT_VALUES, pace)
        return _decode(where, text, start)
    await _check_values(where, text, MAX_BODY_VALUES, pace)
    try:
        return await _Elements(text, max_elements, pace).read(start + 1)
    except json.JSONDecodeError as exc:
        raise _invalid(where, exc) from exc


async def read_ndjson(body: bytes, max_lines: int, pace: Pace | None) -> list[Any]:
    """Return the values of the lines of `body`, without its empty ones. Reads no more lines than `max_lines`."""
    if pace is not None:
        await _check_values("the body", body.decode("latin-1"), MAX_BODY_VALUES, pace)
    values: list[Any] = []
    at = 0
    while at < len(body):
        if pace is not None and pace.is_due:
            await pace.rest()
        found = _NO_SPACE.search(body, at, at + SMALL_BODY_BYTES)
        if found is None:
            at += SMALL_BODY_BYTES
            continue
        if len(values) == max_lines:
            raise too_many_events(max_lines)
        end = body.find(b"\n", found.start())
        if end < 0:
            end = len(body)
        line, where = body[found.start() : end], f"line {len(values) + 1}"
        at = end + 1
        if pace is not None and len(line) > SMALL_BODY_BYTES:
            await _check_values(where, line.decode("latin-1"), MAX_EVENT_VALUES, pace)
        values.append(_decode(where, _to_text(where, line), 0))
    return values


def too_many_events(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the batch has more than {most} events: send them in several batches")


class _Elements:
    """Parses the elements of a large array.

    `_window` is the part of the text from `_start` on that may be parsed without a pause. An element that does not fit
    into what is left of it gets a new window, and one that does not fit into that has too many values.
    """

    def __init__(self, text: str, max_elements: int, pace: Pace) -> None:
        self._text = text
        self._max_elements = max_elements
        self._pace = pace
        self._window = ""
        self._start = 0

    async def read(self, at: int) -> list[Any]:
        """Return the elements of the array whose first one begins at `at`."""
        values: list[Any] = []
        text = self._text
        at = _skip_space(text, at)
        if text.startswith("]", at):
            return self._finish(values, at)
        while True:
            if len(values) == self._max_elements:
                raise too_many_events(self._max_elements)
            found = self._parse(at)
            if found is None:
                await self._open_window(at)
                found = self._parse(at)
            if found is None:
                raise BodyTooLarge(f"event {len(values)} {_too_many_values(MAX_EVENT_VALUES)}")
            value, at = found
            values.append(value)
            at = _skip_space(text, at)
            if text.startswith("]", at):
                return self._finish(values, at)
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip_space(text, at + 1)
            if self._pace.is_due:
                await self._pace.rest()

    def _finish(self, values: list[Any], at: int) -> list[Any]:
        end = _skip_space(self._text, at + 1)
        if end != len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, end)
        return values

    async def _open_window(self, at: int) -> None:
        end, _ = await _counted_end(self._text, at, MAX_EVENT_VALUES, self._pace)
        self._window, self._start = self._text[at:end], at

    def _parse(self, at: int) -> tuple[Any, int] | None:
        """Return the element at `at` and where it ends, or None if the window ends before it does."""
        end_of_window = self._start + len(self._window)
        is_cut = end_of_window < len(self._text)
        if at >= end_of_window and is_cut:
            return None
        try:
            value, end = _raw_decode("the body", self._window, at - self._start)
        except json.JSONDecodeError as exc:
            if is_cut and (exc.msg.startswith("Unterminated") or exc.pos >= len(self._window) - _MARGIN):
                return None
            raise json.JSONDecodeError(exc.msg, self._text, exc.pos + self._start) from exc
        if is_cut and end >= len(self._window) - _MARGIN:  # a number may go on behind the window
            return None
        return value, end + self._start


async def _check_values(where: str, text: str, most: int, pace: Pace) -> None:
    _, is_within = await _counted_end(text, 0, most, pace)
    if not is_within:
        raise BodyTooLarge(f"{where} {_too_many_values(most)}")


def _too_many_values(most: int) -> str:
    advice = "send data as a string of JSON" if most == MAX_EVENT_VALUES else "send several batches"
    return f"has more than {most} JSON values: {advice}"


async def _counted_end(text: str, start: int, most: int, pace: Pace) -> tuple[int, bool]:
    """Count the values of `text` from `start` on. Return where it became certain that there are more than `most`, and
    False; or the end of `text`, and True."""
    count, in_string, at = 0, False, start
    while at < len(text):
        chunk = text[at : at + _COUNTED_CHARACTERS]
        if (len(chunk) - len(chunk.rstrip("\\"))) % 2:  # do not cut an escape in two
            chunk = text[at : at + len(chunk) + 1]
        at += len(chunk)
        pieces = chunk.replace("\\\\", "").replace('\\"', "").split('"')
        outside = "".join(pieces[in_string::2])
        in_string ^= len(pieces) % 2 == 0
        count += chunk.count("\\") // _ESCAPES
        count += outside.count(",") + outside.count("[") + outside.count("{")
        count += (len(outside) - sum(map(outside.count, " \n\r\t"))) // _NUMBER_CHARACTERS
        if count > most:
            return at, False
        if pace.is_due:
            await pace.rest()
    return len(text), True


def _skip_space(text: str, at: int) -> int:
    if text[at : at + 1] not in _SPACES:  # as nearly everywhere: the pattern takes five times as long
        return at
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches everywhere
    return match.end()


def not_utf8(where: str) -> InvalidRequest:
    return InvalidRequest(f"{where} is not valid UTF-8: send text in UTF-8")


def _to_text(where: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as exc:
        raise not_utf8(where) from exc


def _decode(where: str, text: str, start: int) -> Any:
    try:
        value, end = _raw_decode(where, text, start)
        if end != len(text):
            end = _skip_space(text, end)
            if end != len(text):
                raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as exc:
        raise _invalid(where, exc) from exc
    return value


def _raw_decode(where: str, text: str, at: int) -> tuple[Any, int]:
    """Decode the value at `at`. Raises JSONDecodeError, whose position may be corrected, and InvalidRequest."""
    try:
        return _STRICT.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except _NotStrict as exc:
        raise InvalidRequest(f"{where}: {exc}") from exc
    except ValueError as exc:  # from `int`, with advice that is not for clients
        raise InvalidRequest(f"{where} has a number of too many digits: send it as a string") from exc
    except RecursionError as exc:
        raise InvalidRequest(f"{where} is nested too deeply: send data as a string of JSON") from exc


def _invalid(where: str, exc: json.JSONDecodeError) -> InvalidRequest:
    return InvalidRequest(f"{where} is not valid JSON: {exc}")


class _NotStrict(ValueError):
    """Something that the decoder of the standard library accepts and that we refuse."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _NotStrict(f"{name[:100]!r} is given twice: send it once")
            seen.add(name)
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise _NotStrict(f"{constant} is not a JSON number: send it as a string, or leave it out")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
