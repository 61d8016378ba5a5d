"""Checks of single fields: everything that a client could misread is rejected here, before anything is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from .errors import InvalidEvent
from .position import Position

EVERYONE = "*"
RESERVED_TYPE = "stream-"
MAX_NAME_LENGTH = 255
MAX_NAMES = 1_000
MAX_TTL_SECONDS = 2**40
MAX_RETRY_MILLISECONDS = 2**31 - 1  # what browsers' timers hold

_BREAKS = re.compile(r"[\r\n\0]")


def check_name(field_name: str, value: object) -> str:
    """`value` if it can name a user or a channel; `field_name` is what the error calls it."""
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    return _good_name(field_name, value)


@lru_cache(4_096)
def _good_name(field_name: str, value: str) -> str:
    if not value:
        raise InvalidEvent(f"{field_name} is empty: give a name")
    check_text(field_name, value)
    to_utf8(field_name, value)
    return value


def one_or_many(names: str | Sequence[str]) -> tuple[str, ...]:
    """`names` as a tuple, whether it is one or several."""
    return tuple(names) if isinstance(names, Collection) and not isinstance(names, str) else (names,)


def json_text(value: object) -> str:
    """`value` itself if it is a string, else the compact JSON of it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(f"data can't be written as JSON ({exc}): give a string or what JSON can hold") from exc


def check_names(field_name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InvalidEvent(f"{field_name} must be a sequence of names, not one string")
    if not values:
        raise InvalidEvent(f"{field_name} is missing: name at least one")
    if len(values) == 1:
        (only,) = values
        return (check_name(field_name, only),)
    if len(values) > MAX_NAMES:
        raise InvalidEvent(f"{field_name} has {len(values)} names: {MAX_NAMES} are the most")
    for value in values:
        check_name(field_name, value)
    return tuple(dict.fromkeys(values))


def check_alone(**fields: object) -> None:
    for name, value in fields.items():
        if value is not None:
            raise InvalidEvent(f"{name} can't be given together with payload: write it into the payload")


def check_fields(type: str | None, id: str | None, retry: int | None) -> None:
    if type is not None:
        check_type("event", type)
    if id is not None:
        check_id("id", id)
    if retry is not None:
        check_retry(retry)


def check_unstored(store: bool, id: str | None) -> None:
    if store is not False:
        raise InvalidEvent(f"store must be true or false, not {store!r}")
    if id is not None:
        raise InvalidEvent("id can't be given with store false: nobody could come back with it")


def check_text(field_name: str, value: str) -> None:
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidEvent(f"{field_name} has {len(value)} characters: {MAX_NAME_LENGTH} are the most")
    if found := _BREAKS.search(value):
        what = "a NUL" if found[0] == "\0" else "a line break"
        raise InvalidEvent(f"{field_name} {value!r} contains {what}: leave it out")


def check_type(field_name: str, value: str) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidEvent(f"{field_name} is empty: leave it out, or give a type")
    check_text(field_name, value)
    to_utf8(field_name, value)
    if value.startswith(RESERVED_TYPE):
        raise InvalidEvent(f"{field_name} {value!r} begins with 'stream-', which is ours: choose another")


def check_id(field_name: str, value: str) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidEvent(f"{field_name} is empty: leave it out, and the event gets its position as id")
    check_text(field_name, value)
    to_utf8(field_name, value)
    if Position.parse(value) is not None:
        raise InvalidEvent(f"{field_name} {value!r} looks like a position in our log: choose another form")


def check_retry(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRY_MILLISECONDS:
        raise InvalidEvent(f"retry {value!r} is no number of milliseconds from 0 to {MAX_RETRY_MILLISECONDS}")


def check_ttl(value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_TTL_SECONDS:
        raise InvalidEvent(f"ttl {repr(value)[:40]} is no positive number of seconds below {MAX_TTL_SECONDS}")


def to_utf8(field_name: str, value: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidEvent(f"{field_name} holds a lone surrogate at {exc.start}: it can't be written as UTF-8") from exc
