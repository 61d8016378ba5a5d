"""What a request to the control app carries: its body, bounded, and the fields in it, each once and known."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from ..errors import BodyTooLarge, InvalidRequest, UnsupportedContent

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
JSON = "application/json"
NDJSON = "application/x-ndjson"
MAX_FIELDS = 1_000
MAX_DROPPED_BYTES = 64 * 2**20
MAX_DROPPING_SECONDS = 5.0


RequestHeaders = Mapping[str, str]


def request_headers(scope: Scope) -> RequestHeaders:
    """Each header by its name in lower case; of one that is given twice the first, as Starlette has it.

    Its own `Headers` searches a list at each look-up, of which a request takes seven.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(list(scope["headers"]))}


async def read_body(headers: RequestHeaders, receive: Receive, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to be over `max_bytes`, and ClientDisconnect."""
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedContent("a compressed body is not read: send it without Content-Encoding")
    declared = headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise BodyTooLarge(f"the body has {declared[:20]} bytes: {max_bytes} are the most")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise BodyTooLarge(f"the body is over {max_bytes} bytes")
        if not message.get("more_body", False):
            return b"".join(chunks)


async def drop_body(receive: Receive) -> None:
    """Read what is left of a body that is refused, within bounds, and keep nothing of it.

    Many clients read no answer before they have sent all, and closing on what they send loses it to them.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_DROPPING_SECONDS):
            while size < MAX_DROPPED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def content_type(headers: RequestHeaders, body: bytes) -> str:
    """The media type of `body`; FORM where there is no body. Raises UnsupportedContent for what we don't read."""
    kind, _, parameters = headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if not body:
        return kind if kind in (JSON, NDJSON) else FORM
    if kind not in (FORM, MULTIPART, JSON, NDJSON):
        raise UnsupportedContent(
            f"content type {kind[:100]!r} is not read: send {FORM}, {MULTIPART}, {JSON} or {NDJSON}"
        )
    charset = parameters.lower().replace('"', "").replace(" ", "").partition("charset=")[2].partition(";")[0]
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise UnsupportedContent(f"charset {charset[:40]!r} is not read: send UTF-8")
    return kind


async def form_fields(
    scope: Scope, headers: RequestHeaders, kind: str, body: bytes, known: Collection[str]
) -> dict[str, str]:
    """The fields of a form and of the query string; one of the body wins over one of the query."""
    query = _urlencoded("the query", scope["query_string"])
    if kind == MULTIPART:
        sent = await _multipart(headers, body)
    else:
        sent = _urlencoded("the body", body)
    return {**_checked(query, known), **_checked(sent, known)}


def _urlencoded(where: str, text: bytes) -> list[tuple[str, str]]:
    if not text:
        return []
    try:
        return parse_qsl(text.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{where} is no UTF-8") from exc
    except ValueError as exc:
        raise InvalidRequest(f"{where} has more than {MAX_FIELDS} fields") from exc


async def _multipart(headers: RequestHeaders, body: bytes) -> list[tuple[str, str]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        body.decode()  # the parser takes what is no UTF-8 for Latin-1
        parser = _MultiPartParser(
            Headers(headers), stream(), max_files=0, max_fields=MAX_FIELDS, max_part_size=len(body)
        )
        form = await parser.parse()
    except UnicodeDecodeError as exc:
        raise InvalidRequest("the body is no UTF-8") from exc
    except (MultiPartException, FormParserError, KeyError) as exc:
        raise InvalidRequest(f"the multipart body can't be read: {exc} (files are not taken)") from exc
    if not parser.is_whole:
        raise InvalidRequest("the multipart body is cut off: its closing boundary is missing")
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


class _MultiPartParser(MultiPartParser):
    """Starlette's, which leaves out a part that is cut off, and says nothing."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


def _checked(fields: list[tuple[str, str]], known: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in fields:
        if name in found:
            raise InvalidRequest(f"{name} is given twice: give it once")
        if name not in known:
            refuse_unknown(name, known)
        found[name] = value
    return found


def refuse_unknown(name: str, known: Collection[str]) -> NoReturn:
    raise InvalidRequest(f"{name[:100]!r} is no field: there are {', '.join(known)}")


def parse_json(where: str, text: bytes) -> Any:
    """What `text` says, strictly: UTF-8, no NaN, no name twice in one object."""
    try:
        return _STRICT.decode(text.decode())
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{where} is no UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise InvalidRequest(f"{where} is no JSON: {exc}") from exc
    except ValueError as exc:
        raise InvalidRequest(f"{where}: {exc}") from exc
    except RecursionError as exc:
        raise InvalidRequest(f"{where} is nested too deep") from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def known_object(value: Any, known: Collection[str]) -> Mapping[str, Any]:
    """`value` if it is an object of `known` names."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"an object is needed, not {type(value).__name__}")
    for name in value:
        if name not in known:
            refuse_unknown(name, known)
    return value
