"""Fields of requests to the control app: from forms, query strings and JSON, each known and given once."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from ..errors import BodyTooLarge, InvalidEvent, InvalidRequest, UnsupportedContent
from ..pace import SMALL_BODY_BYTES, Pace
from ..tokens import MAX_LIFETIME_SECONDS
from .escapes import unescape
from .requests import ControlRequest, RequestHeaders
from .strict_json import not_utf8, parse_json, read_json

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
JSON = "application/json"
NDJSON = "application/x-ndjson"
MAX_FIELDS = 1_000
_BARE_KINDS = frozenset((FORM, JSON, NDJSON))
"""Media types that need no parameters. Most requests name theirs like this."""
_LISTS_IN_JSON = ("userId", "channel", "channels", "patterns")
_DECODED_BYTES = 16 * 1024


def media_type(request: ControlRequest) -> str:
    """Return the media type of the body; FORM if it is empty, unless declared as JSON. Raises UnsupportedContent."""
    declared = request.headers.get("content-type", "")
    if declared in _BARE_KINDS and request.body:
        return declared
    kind, _, parameters = declared.partition(";")
    kind = kind.strip().lower()
    if not request.body:
        return kind if kind in (JSON, NDJSON) else FORM
    if kind not in (FORM, MULTIPART, JSON, NDJSON):
        raise UnsupportedContent(
            f"unsupported content type {kind[:100]!r}: send {FORM}, {MULTIPART}, {JSON} or {NDJSON}"
        )
    charset = parameters.lower().replace('"', "").replace(" ", "").partition("charset=")[2].partition(";")[0]
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise UnsupportedContent(f"unsupported charset {charset[:40]!r}: send UTF-8")
    return kind


async def read_fields(
    request: ControlRequest,
    known: Collection[str],
    known_in_json: Collection[str] | None,
    pace: Pace | None,
    repeated: Collection[str] = (),
) -> tuple[Mapping[str, Any], bool]:
    """Return the fields of a form or of one JSON object, and True if it was JSON. A large body needs a `pace`.

    Fields of a form that may be `repeated` become lists.
    """
    kind = media_type(request)
    if kind in (JSON, NDJSON):
        if pace is None:
            value = parse_json("the body", request.body)
        else:
            if request.body.lstrip(b" \t\n\r").startswith(b"["):
                raise not_an_object("an array", known_in_json or known)
            value = await read_json("the body", request.body, 0, pace)
        return known_object(value, known_in_json or known), True
    return await form_fields(request, kind, known, pace, repeated=repeated), False


async def form_fields(
    request: ControlRequest,
    kind: str,
    known: Collection[str],
    pace: Pace | None,
    max_value_bytes: int = SMALL_BODY_BYTES,
    repeated: Collection[str] = (),
) -> dict[str, Any]:
    """Return the fields of the query string and of a form, which takes precedence, with values as in JSON.

    A large body needs a `pace`, and then no value may have more than `max_value_bytes`. Those that may be `repeated`
    become lists.
    """
    if kind != MULTIPART and pace is None:
        return small_form_fields(request, known, repeated)
    fields = _known(urlencoded("the query", request.query_string), known, repeated)
    if kind == MULTIPART:
        sent = await _multipart(request.headers, request.body, pace, max_value_bytes)
    else:
        assert pace is not None
        sent = await _large_urlencoded("the body", request.body, pace, max_value_bytes)
    return _form_values({**fields, **_known(sent, known, repeated)})


def small_form_fields(
    request: ControlRequest, known: Collection[str], repeated: Collection[str] = ()
) -> dict[str, Any]:
    """Do what `form_fields` does, for a body that is a FORM and needs no pace."""
    if not request.query_string:
        return _form_values(_known(urlencoded("the body", request.body), known, repeated))
    fields = _known(urlencoded("the query", request.query_string), known, repeated)
    return _form_values({**fields, **_known(urlencoded("the body", request.body), known, repeated)})


def _form_values(fields: dict[str, Any]) -> dict[str, Any]:
    """Return `fields` with values as in JSON."""
    if not _FORM_VALUES.keys().isdisjoint(fields):
        for name, text in fields.items():
            read = _FORM_VALUES.get(name)
            if read is not None:
                fields[name] = read(text)
    return fields


def query_fields(query: bytes, known: Collection[str]) -> dict[str, str]:
    """Return the fields of the query of a GET. Raises InvalidRequest."""
    fields: dict[str, str] = {}
    for name, value in urlencoded("the query", query):
        if name not in known:
            _refuse_unknown(name, known)
        if name in fields:
            raise InvalidRequest(f"{name} is given twice: send it once")
        fields[name] = value
    return fields


def urlencoded(where: str, text: bytes) -> list[tuple[str, str]]:
    """Return the fields of a small `text`, as `parse_qsl` of urllib does, in a third of its time."""
    if not text:
        return []
    fields: list[tuple[str, str]] = []
    try:
        for piece in _decoded(where, text).replace("+", " ").split("&"):
            name, equals, value = piece.partition("=")
            if "%" in piece:
                name, value = _unescaped(name), _unescaped(value)
            if name or equals:
                fields.append((name, value))
    except UnicodeDecodeError as exc:
        raise not_utf8(where) from exc
    return fields


def _unescaped(text: str) -> str:
    return unescape(text.encode()).decode() if "%" in text else text


def _decoded(where: str, text: bytes) -> str:
    """Return `text`. Raises InvalidRequest if it is not UTF-8 as it stands, or has too many fields."""
    decoded = text.decode()
    if decoded.count("&") >= MAX_FIELDS:
        raise InvalidRequest(f"{where} has more than {MAX_FIELDS} fields")
    return decoded


async def _large_urlencoded(where: str, text: bytes, pace: Pace, max_value_bytes: int) -> list[tuple[str, str]]:
    """Do what `urlencoded` does, in slices. Values that are certainly too large are not decoded."""
    fields = []
    try:
        _decoded(where, text)  # what is not UTF-8 as it stands must not become so by what is decoded beside it
        for piece in filter(None, text.split(b"&")):
            name, _, value = piece.partition(b"=")
            if len(name) > SMALL_BODY_BYTES:
                raise InvalidRequest(
                    f"unknown field of {len(name)} bytes, which begins with {name[:100].decode('latin-1')!r}"
                )
            if len(value) > 3 * max(max_value_bytes, SMALL_BODY_BYTES):  # an escape has three bytes
                raise _too_large(name.decode("latin-1"), max_value_bytes)
            decoded = [await _percent_decoded(part, pace) for part in (name, value)]
            fields.append((decoded[0].decode(), decoded[1].decode()))
    except UnicodeDecodeError as exc:
        raise not_utf8(where) from exc
    return fields


async def _percent_decoded(text: bytes, pace: Pace) -> bytes:
    text = text.replace(b"+", b" ")
    parts: list[bytes] = []
    at = 0
    while at < len(text):
        end = at + _DECODED_BYTES
        if end < len(text) and (in_escape := text.rfind(b"%", end - 2, end)) > 0:
            end = in_escape  # do not cut an escape in two
        parts.append(unescape(text[at:end]))
        at = end
        if pace.is_due:
            await pace.rest()
    return b"".join(parts)


def _too_large(name: str, most: int) -> BodyTooLarge:
    return BodyTooLarge(f"{name[:100]} has more than {most} bytes: at most {most} are allowed")


async def _multipart(
    headers: RequestHeaders, body: bytes, pace: Pace | None, max_value_bytes: int
) -> list[tuple[str, str]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        if pace is None:
            yield body
            return
        for at in range(0, len(body), SMALL_BODY_BYTES):
            yield body[at : at + SMALL_BODY_BYTES]
            if pace.is_due:
                await pace.rest()

    try:
        body.decode()  # the parser would read invalid UTF-8 as Latin-1
        parser = _MultiPartParser(
            Headers(headers),
            stream(),
            max_part_size=len(body) if pace is None else max_value_bytes,
        )
        form = await parser.parse()
    except UnicodeDecodeError as exc:
        raise not_utf8("the body") from exc
    except (MultiPartException, FormParserError, KeyError) as exc:
        raise InvalidRequest(f"the multipart body can't be parsed: {exc}") from exc
    if not parser.is_complete:
        raise InvalidRequest("the multipart body is truncated: its closing boundary is missing")
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


class _MultiPartParser(MultiPartParser):
    """Starlette's parser, for which a part with a file name is a field like any other.

    Starlette silently leaves out a truncated part. `is_complete` says that the body had its closing boundary.
    """

    is_complete = False

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._current_part.content_disposition)
        if b"name" not in options:
            raise MultiPartException("a part has no name in its Content-Disposition header")
        if len(self.items) == MAX_FIELDS:
            raise MultiPartException(f"it has more than {MAX_FIELDS} fields")
        self._current_part.field_name = options[b"name"].decode()
        self._charset = "utf-8"  # Starlette would read UTF-8 that is declared as ASCII as Latin-1

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if len(part.data) + end - start > self.max_part_size:
            raise _too_large(part.field_name, self.max_part_size)
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self.is_complete = True


def _known(fields: list[tuple[str, str]], known: Collection[str], repeated: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields:
        if name not in known:
            _refuse_in_form(name, value, known)
        if name in found:
            if name not in repeated:
                several = f", or several as a list in JSON ({JSON})" if name in _LISTS_IN_JSON else ""
                raise InvalidRequest(f"{name} is given twice: send it once{several}")
            found[name].append(value)
        else:
            found[name] = [value] if name in repeated else value
    return found


def _refuse_in_form(name: str, value: str, known: Collection[str]) -> NoReturn:
    """Raise InvalidRequest, which names the usual mistake that leads to such a field."""
    if name.lstrip()[:1] in ("{", "["):
        raise InvalidRequest(f"a form was sent, whose field {name[:40]!r} looks like JSON: send JSON as {JSON}")
    if (indexed := re.fullmatch(r"(\w+)\[\w*\]", name)) and indexed[1] in _LISTS_IN_JSON:
        raise InvalidRequest(f"unknown field {name[:100]!r}: send several names as a list in JSON ({JSON})")
    if not value:
        raise InvalidRequest(
            f"unknown field {name[:100]!r}, without a value: in the value of a field, write & as %26; expected "
            + ", ".join(known)
        )
    _refuse_unknown(name, known)


def _refuse_unknown(name: str, known: Collection[str]) -> NoReturn:
    raise InvalidRequest(f"unknown field {name[:100]!r}: expected {', '.join(known)}")


_JSON_TYPES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}


def known_object(value: Any, known: Collection[str]) -> Mapping[str, Any]:
    """Return `value` if it is an object whose names are all `known`."""
    if not isinstance(value, dict):
        raise not_an_object(_JSON_TYPES.get(type(value), "an array"), known)
    for name in value:
        if name not in known:
            _refuse_unknown(name, known)
    return value


def not_an_object(kind: str, known: Collection[str]) -> InvalidRequest:
    return InvalidRequest(f"expected a JSON object, not {kind}: its fields are {', '.join(known)}")


# Values of single fields


def required(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        raise InvalidRequest(f"{name} is missing: send it as a field of the request")
    return value


def names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the required field `name`, which is one name or a list of names.

    An empty list is refused. Where the field may be left out, that would mean everyone, or every channel.
    """
    value = fields.get(name)
    if isinstance(value, str):
        return (value,)
    value = required(fields, name)
    if value == []:
        raise InvalidRequest(f"{name} is an empty list: give at least one name")
    return tuple(value) if isinstance(value, list) else (value,)


def refuse_null(fields: Mapping[str, Any]) -> None:
    if None in fields.values():
        name = next(name for name, value in fields.items() if value is None)
        raise InvalidEvent(f"{name} is null: leave it out, or give a value")


def lifetime_seconds(fields: Mapping[str, Any], default: float) -> float:
    """Return the field `exp` or `expiresIn`, which is a number of seconds, also as text."""
    given = [name for name in ("exp", "expiresIn") if fields.get(name) is not None]
    if not given:
        return default
    if len(given) > 1:
        raise InvalidRequest("exp and expiresIn are both given: leave one out")
    name = given[0]
    value = fields[name]
    seconds = int(value[:40]) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidRequest(f"{name} {value!r:.42} is not a number of seconds from now, such as 86400")
    if seconds > MAX_LIFETIME_SECONDS:
        raise InvalidRequest(
            f"{name} {value!r:.42} is more than ten years: give the number of seconds from now, such as 86400, not a "
            "Unix time"
        )
    return float(seconds)


def _retry(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidEvent(f"retry {text[:40]!r} is not a number of milliseconds: write digits only")
    return int(text)


def _flag(name: str) -> Callable[[str], bool]:
    def read(text: str) -> bool:
        if text not in ("true", "false"):
            raise InvalidEvent(f"{name} must be true or false, not {text[:40]!r}")
        return text == "true"

    return read


def whole_number(name: str) -> Callable[[str], int]:
    """Return a function that reads the field or header `name`, which raises InvalidRequest."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise InvalidRequest(f"{name} {text[:40]!r} is not a whole number")
        return int(text)

    return read


def _number(name: str, kind: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        if not re.fullmatch(r"\d{1,20}(\.\d{1,30})?([eE][+-]?\d{1,3})?", text, re.ASCII):  # as JSON has them
            raise InvalidEvent(f"{name} {text[:40]!r} is not a {kind}")
        return float(text)

    return read


_FORM_VALUES: dict[str, Callable[[str], Any]] = {
    "retry": _retry,
    "ttl": _number("ttl", "positive number of seconds"),
    **{name: _flag(name) for name in ("store", "everyone", "withoutSid", "stoppable", "restart", "takeover")},
    **{name: _number(name, "number of seconds") for name in ("keep", "idle")},
    "generation": whole_number("generation"),
    **{name: _number(name, "Unix time in seconds") for name in ("issuedBefore", "expiresAt")},
}
