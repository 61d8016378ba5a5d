"""Tokens: JSON Web Tokens (RFC 7519) with `userId`, `channel` and `exp`, signed with HMAC.

The only module that uses python-jose and knows the names of claims. Every defect of a token, and every exception that
python-jose raises for it, becomes a TokenError: clients learn only that the token is invalid, the debug log says why.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

from jose import jwk, jwt
from jose.constants import ALGORITHMS

from .claims import Claims
from .credentials import check_secret
from .errors import ConfigError, InvalidEvent, TokenError
from .fields import check_name
from .settings import LEEWAY

MAX_TOKEN_LENGTH = 8_192
MAX_HEADER_LENGTH = 1_024
MAX_CHANNELS = 100
MAX_TIME = 2**53
"""A float counts single seconds up to here."""
_HMAC = (ALGORITHMS.HS256, ALGORITHMS.HS384, ALGORITHMS.HS512)
_TOKEN = re.compile(r"([\w-]++)\.([\w-]++)\.([\w-]++)", re.ASCII)
_LAST_CHARACTERS = {0: "", 2: "AQgw", 3: "AEIMQUYcgkosw048"}
"""How a segment may end, by its length modulo 4: the unused bits of the last character are 0 (RFC 4648, 3.5)."""
_REFUSED_HEADERS = ("crit", "b64", "zip")
"""Headers that change what a token means and that python-jose ignores. Headers that name keys are never used."""


class Tokens:
    """Issues and verifies tokens with one `secret`. `now` returns Unix time in seconds.

    With `require_exp` False, tokens without `exp` are accepted too, and never expire. `leeway_seconds` is how far the
    clock of a machine that signs tokens may differ from ours: `nbf` and `iat` may be that far in the future, and `exp`
    that far in the past. Raises ConfigError.
    """

    def __init__(
        self,
        secret: str,
        *,
        algorithm: str = ALGORITHMS.HS256,
        require_exp: bool = True,
        leeway_seconds: float = 5,
        now: Callable[[], float] = time.time,
    ) -> None:
        check_secret(secret)
        try:
            LEEWAY.check(leeway_seconds)
        except ValueError as exc:
            raise ConfigError(f"leeway_seconds {leeway_seconds!r}: {exc}") from None
        # Given the secret itself, python-jose would construct a key for every token.
        self._keys = {name: jwk.construct(secret, name) for name in _HMAC}
        self._algorithm = algorithm
        self._require_exp = require_exp
        self._leeway_seconds = leeway_seconds
        self._now = now

    def issue(self, user_id: str, channels: Sequence[str], *, expires_at: float) -> str:
        """Return a token for `user_id` on `channels`, valid until `expires_at` (Unix time). Raises InvalidEvent."""
        claims: dict[str, Any] = {"userId": check_name("userId", user_id)}
        names = _checked_channels(channels)
        claims |= {"channel": names[0]} if len(names) == 1 else {"channels": names}
        claims["exp"] = self._checked_exp(expires_at)
        token: str = jwt.encode(claims, self._keys[self._algorithm], algorithm=self._algorithm)
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidEvent(
                f"channel: the token would have {len(token)} characters: at most {MAX_TOKEN_LENGTH} are allowed"
            )
        return token

    def _checked_exp(self, expires_at: float) -> int:
        if not isinstance(expires_at, int | float) or not 0 <= expires_at < MAX_TIME:
            example = int(self._now()) + 86_400
            raise InvalidEvent(f"exp {expires_at!r:.40} is not a Unix time in seconds, such as {example}")
        return int(expires_at)

    def verify(self, token: str) -> Claims:
        """Return what `token` grants. Raises TokenError.

        Nothing but the header is parsed before the signature has been verified, so refusing a forged token costs no
        more than accepting a valid one of its length.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenError(f"the token has more than {MAX_TOKEN_LENGTH} characters")
        segments = _TOKEN.fullmatch(token)
        if segments is None:
            raise TokenError("the token is not made of three base64url segments")
        header, claims, signature = segments.groups()
        key = self._keys[_algorithm(header)]
        if not key.verify(token[: segments.end(2)].encode(), _decode(signature)):
            raise TokenError("the token's signature is wrong")
        return self._claims(_json_object("claims", claims))

    def _claims(self, claims: dict[str, Any]) -> Claims:
        user_id = claims.get("userId", claims.get("sub"))
        channels = _channels(claims)
        try:
            check_name("userId", user_id)
            for channel in channels:
                check_name("channel", channel)
        except InvalidEvent as exc:
            raise TokenError(str(exc)) from exc
        return Claims(str(user_id), channels, self._expires_at(claims))

    def _expires_at(self, claims: dict[str, Any]) -> float | None:
        """Return when access ends: at `exp` or, if that has passed already, at the end of the leeway after it.

        Otherwise a token within its leeway would open streams that end at once, and their clients would reconnect.
        """
        now = self._now()
        for name in ("nbf", "iat"):
            if name in claims and _seconds(name, claims[name]) > now + self._leeway_seconds:
                raise TokenError(f"the token's {name} is in the future")
        if "exp" not in claims and not self._require_exp:
            return None
        expires_at = _seconds("exp", claims.get("exp"))
        if expires_at <= now:
            expires_at += self._leeway_seconds
        if expires_at <= now:
            raise TokenError("the token has expired")
        return expires_at


def _checked_channels(channels: Sequence[str]) -> list[str]:
    if isinstance(channels, str) or not isinstance(channels, Collection):
        raise InvalidEvent(f"channels must be a sequence of names, such as ['chat'], not {channels!r:.40}")
    names = [check_name("channel", channel) for channel in channels]
    if not 1 <= len(names) <= MAX_CHANNELS:
        raise InvalidEvent(f"channel: {len(names)} names given: a token grants 1 to {MAX_CHANNELS} channels")
    return names


@lru_cache(64)
def _algorithm(header: str) -> str:
    """Return the algorithm that the header segment of a token names. Raises TokenError.

    Almost all tokens have one of a few headers, so parsing them is cached.
    """
    if len(header) > MAX_HEADER_LENGTH:
        raise TokenError(f"the token's header has more than {MAX_HEADER_LENGTH} characters")
    fields = _json_object("header", header)
    algorithm = fields.get("alg")
    if algorithm not in _HMAC:
        raise TokenError(f"the token's algorithm is not one of {', '.join(_HMAC)}")
    if any(name in fields for name in _REFUSED_HEADERS):
        raise TokenError(f"the token's header has one of {', '.join(_REFUSED_HEADERS)}, which are not supported")
    return str(algorithm)


def _json_object(name: str, segment: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(segment).decode())
    except (ValueError, RecursionError) as exc:
        raise TokenError(f"the token's {name} can't be decoded ({type(exc).__name__})") from exc
    if not isinstance(value, dict):
        raise TokenError(f"the token's {name} is not a JSON object")
    return value


def _decode(segment: str) -> bytes:
    """Decode canonical base64url without padding (RFC 7515, 2)."""
    end = _LAST_CHARACTERS.get(len(segment) % 4)
    if end is None or (end and segment[-1] not in end):
        raise TokenError("a segment of the token is not canonical base64url")
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _channels(claims: dict[str, Any]) -> tuple[Any, ...]:
    channels = claims["channels"] if "channels" in claims else [claims.get("channel")]
    if not isinstance(channels, list) or not 1 <= len(channels) <= MAX_CHANNELS:
        raise TokenError(f"the token's channels are not a list of 1 to {MAX_CHANNELS} names")
    return tuple(channels)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(f"the token's {name} is not a number")
    try:
        seconds = float(value)
    except OverflowError as exc:
        raise TokenError(f"the token's {name} is out of range") from exc
    if not 0 <= seconds < MAX_TIME:
        raise TokenError(f"the token's {name} is out of range")
    return seconds
