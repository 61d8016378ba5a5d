"""The compact form of a token, `header.claims.signature` (RFC 7515, 7.1): base64url, and the JSON in it."""

from __future__ import annotations

import base64
import binascii
import json
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import TokenError, TokenReason

MAX_TOKEN_LENGTH = 64 * 1024
"""Enough for 1,000 channels with names of 45 characters. A forged token of this length costs 0.1 ms."""
MAX_HEADER_LENGTH = 1_024
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST_CHARACTERS = ("", None, "AQgw", "AEIMQUYcgkosw048")
"""How a segment may end, by its length modulo 4: the unused bits of the last character are 0 (RFC 4648, 3.5)."""
_PADDING = (b"", b"===", b"==", b"=")
_TO_BASE64 = bytes.maketrans(b"-_", b"+/")
_JSON_SPACE = " \t\n\r"
_raw_decode = json.JSONDecoder().raw_decode
_REFUSED_HEADERS = ("crit", "b64", "zip")
"""Headers that change what a token means. Headers that contain or locate keys (`jwk`, `jku`, `x5u`) are never used."""


class Header(NamedTuple):
    """The header of a token. `fields` has all of it."""

    alg: str
    kid: str | None
    fields: dict[str, Any]


class CompactToken(NamedTuple):
    """A token taken apart. The claims and the signature are still in base64url; `signed` is what the latter signs."""

    header: Header
    claims: str
    signature: str
    signed: str


def take_apart(token: str) -> CompactToken:
    """Raises TokenError. Nothing but the header is parsed: the claims of a forged token cost nothing."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenError(f"the token has more than {MAX_TOKEN_LENGTH} characters")
    segments = token.split(".", 3)
    # For a long token, a regular expression takes five times as long.
    if (
        len(segments) != 3
        or not all(segments)
        or not token.isascii()
        or token.encode().translate(None, _ALPHABET) != b".."
    ):
        raise TokenError("the token is not made of three base64url segments")
    header, claims, signature = segments
    return CompactToken(_header(header), claims, signature, token[: -1 - len(signature)])


@lru_cache(64)
def _header(segment: str) -> Header:
    """Almost all tokens have one of a few headers, so parsing them is cached."""
    if len(segment) > MAX_HEADER_LENGTH:
        raise TokenError(f"the token's header has more than {MAX_HEADER_LENGTH} characters")
    fields = json_object("header", segment)
    algorithm, key_id = fields.get("alg"), fields.get("kid")
    if not isinstance(algorithm, str):
        raise TokenError("the token's header names no algorithm", TokenReason.ALGORITHM)
    if any(name in fields for name in _REFUSED_HEADERS):
        raise TokenError(f"the token's header has one of {', '.join(_REFUSED_HEADERS)}, which are not supported")
    if key_id is not None and not isinstance(key_id, str):
        raise TokenError("the token's kid is not a string")
    return Header(algorithm, key_id, fields)


def json_object(name: str, segment: str) -> dict[str, Any]:
    """Return the JSON object that the segment `name` of a token contains. Raises TokenError."""
    try:
        value = _parse(decoded(name, segment).decode())
    except (ValueError, RecursionError) as exc:
        raise TokenError(f"the token's {name} can't be decoded ({type(exc).__name__})") from exc
    if not isinstance(value, dict):
        raise TokenError(f"the token's {name} is not a JSON object")
    return value


def _parse(text: str) -> Any:
    """`json.loads` without its looks at types and options, and without a regular expression at either end."""
    text = text.strip(_JSON_SPACE)
    value, end = _raw_decode(text)
    if end != len(text):
        raise ValueError("more follows the JSON")
    return value


def decoded(name: str, segment: str) -> bytes:
    """Return the octets of the segment `name` of a token. Raises TokenError."""
    end = _LAST_CHARACTERS[len(segment) % 4]
    if end is None or (end and segment[-1] not in end):
        raise TokenError(f"the token's {name} is not canonical base64url")
    # What `urlsafe_b64decode` does, without converting twice
    return binascii.a2b_base64(segment.encode().translate(_TO_BASE64) + _PADDING[len(segment) % 4])


def decode_base64url(text: str) -> bytes:
    """Decode canonical base64url without padding (RFC 7515, 2). Raises ValueError for anything else."""
    octets = base64.urlsafe_b64decode(text.encode() + _PADDING[len(text) % 4])
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != text.encode():
        raise ValueError("not canonical base64url")
    return octets
