"""The fields of events, commands and claims: what each may contain.

A value that a client could misread is rejected here, before anything is stored. The checks raise InvalidEvent; its
message calls the field by its name on the wire (`userId`, `event`), as most readers see it in an HTTP response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from .errors import InvalidEvent
from .position import Position

EVERYONE = "*"
RESERVED_TYPE = "stream-"
MAX_NAMES = 1_000
MAX_RETRY_MILLISECONDS = 2**31 - 1
"""The longest delay of a timer in a browser."""

_MAX_LENGTH = 255
_MAX_TTL_SECONDS = 2**40
_BREAKS = re.compile(r"[\r\n\0]")
_CONTROLS = re.compile(r"[\x01-\x1f\x7f]")
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))  # json.dumps makes one each time


def check_name(field_name: str, value: object) -> str:
    """Return `value` if it can be the name of a user or a channel."""
    if not isinstance(value, str):
        raise _not_a_string(field_name, value)
    # Most names are plain, and each client has its own.
    if 0 < len(value) <= _MAX_LENGTH and value.isascii() and value.isprintable():
        return value
    return _check_name(field_name, value)


@lru_cache(4_096)
def _check_name(field_name: str, value: str) -> str:
    return check_key(field_name, value)


def check_key(field_name: str, value: object) -> str:
    """Return `value` if it can be an idempotency key. Each comes once or twice, so nothing is remembered of it."""
    if not isinstance(value, str):
        raise _not_a_string(field_name, value)
    if 0 < len(value) <= _MAX_LENGTH and value.isascii() and value.isprintable():
        return value
    if not value:
        raise InvalidEvent(f"{field_name} is empty: it needs 1 to {_MAX_LENGTH} characters")
    _check_text(field_name, value)
    return value


def check_names(field_name: str, values: Sequence[str]) -> tuple[str, ...]:
    """Return `values` without repetitions, in order."""
    if isinstance(values, str):
        raise InvalidEvent(f"{field_name} must be a sequence of names, not the string {values[:40]!r}")
    if not values:
        raise InvalidEvent(f"{field_name} is missing: give at least one name")
    if len(values) == 1:
        (only,) = values
        return (_check_name(field_name, only) if isinstance(only, str) else check_name(field_name, only),)
    if len(values) > MAX_NAMES:
        raise InvalidEvent(f"{field_name} has {len(values)} names: at most {MAX_NAMES} are allowed")
    for value in values:
        check_name(field_name, value)
    return tuple(dict.fromkeys(values))


def check_type(field_name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _not_a_string(field_name, value)
    if not value:
        raise InvalidEvent(f"{field_name} is empty: give a type, or leave the field out")
    _check_text(field_name, value)
    if value.startswith(RESERVED_TYPE):
        raise InvalidEvent(
            f"{field_name} {value!r} begins with '{RESERVED_TYPE}', which is reserved for the hub: use another type"
        )


def check_id(field_name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _not_a_string(field_name, value)
    if not value:
        raise InvalidEvent(f"{field_name} is empty: give an id, or leave the field out to use the event's position")
    _check_text(field_name, value)
    # A browser sends the id back in the header Last-Event-ID. HTTP (RFC 9110, section 5.5) forbids these characters
    # there, so that its EventSource stops for good, and spaces around the value are removed on the way.
    if found := _CONTROLS.search(value):
        raise InvalidEvent(
            f"{field_name} {value!r} contains the control character {found[0]!r}, which a browser can't send back in "
            "Last-Event-ID: remove it"
        )
    if value[0] == " " or value[-1] == " ":
        raise InvalidEvent(
            f"{field_name} {value!r} begins or ends with a space, which is lost when a browser sends it back in "
            "Last-Event-ID: remove it"
        )
    if Position.parse(value) is not None:
        raise InvalidEvent(f"{field_name} {value!r} looks like a position in the log: use another format")


def check_retry(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRY_MILLISECONDS:
        raise InvalidEvent(
            f"retry {_shortened(value)} is not a whole number of milliseconds from 0 to {MAX_RETRY_MILLISECONDS}"
        )


def check_ttl(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MAX_TTL_SECONDS:
        raise InvalidEvent(f"ttl {_shortened(value)} is not a positive number of seconds less than {_MAX_TTL_SECONDS}")


def check_store(value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidEvent(f"store must be true or false, not {_shortened(value)}")


def utf8_size(field_name: str, value: object) -> int:
    """Return how many bytes `value` has in UTF-8."""
    if isinstance(value, str) and value.isascii():
        return len(value)
    return len(to_utf8(field_name, value))


def to_utf8(field_name: str, value: object) -> bytes:
    """Return `value` in UTF-8."""
    if not isinstance(value, str):
        raise _not_a_string(field_name, value)
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidEvent(
            f"{field_name} contains a lone surrogate at index {exc.start}, which UTF-8 can't encode: remove it"
        ) from exc


def one_or_many(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return tuple(names) if isinstance(names, Collection) and not isinstance(names, str) else (names,)


def json_text(value: object) -> str:
    """Return `value` itself if it is a string, else `value` as compact JSON."""
    if isinstance(value, str):
        return value
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(f"data can't be written as JSON ({exc}): give a string, or a value that JSON has") from exc


def _check_text(field_name: str, value: str) -> None:
    """Check what names, types and ids have in common."""
    if len(value) <= _MAX_LENGTH and value.isascii() and value.isprintable():
        return  # as most are
    if len(value) > _MAX_LENGTH:
        raise InvalidEvent(f"{field_name} has {len(value)} characters: at most {_MAX_LENGTH} are allowed")
    if found := _BREAKS.search(value):
        what = "a NUL character" if found[0] == "\0" else "a line break"
        raise InvalidEvent(f"{field_name} {value!r} contains {what}: remove it")
    to_utf8(field_name, value)


def _not_a_string(field_name: str, value: object) -> InvalidEvent:
    return InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")


def _shortened(value: object) -> str:
    return repr(value)[:40]
