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
from typing import Any

from jose import jwk, jws, jwt
from jose.constants import ALGORITHMS
from jose.exceptions import JOSEError

from .claims import Claims
from .errors import ConfigError, InvalidEvent, TokenError
from .fields import check_name

MAX_TOKEN_LENGTH = 8_192
MAX_CHANNELS = 100
SHORT_SECRET_BYTES = 32
MAX_TIME = 2**53
"""A float counts single seconds up to here."""
_HMAC = (ALGORITHMS.HS256, ALGORITHMS.HS384, ALGORITHMS.HS512)
_SEGMENT = r"(?=[\w-])(?:[\w-]{4})*(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?"
"""Canonical base64url without padding (RFC 7515, 2): the unused bits of the last character are 0 (RFC 4648, 3.5)."""
_TOKEN = re.compile(rf"{_SEGMENT}\.{_SEGMENT}\.{_SEGMENT}", re.ASCII)
_REFUSED_HEADERS = ("crit", "b64", "zip")
"""Headers that change what a token means and that python-jose ignores. Headers that name keys are never used."""


class Tokens:
    """Issues and verifies tokens with one `secret`. `now` returns Unix time in seconds.

    With `require_exp` False, tokens without `exp` are accepted too, and never expire.
    """

    def __init__(
        self,
        secret: str,
        *,
        algorithm: str = ALGORITHMS.HS256,
        require_exp: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        check_secret(secret)
        # Given the secret itself, python-jose would construct a key for every token.
        self._keys = {name: jwk.construct(secret, name) for name in _HMAC}
        self._algorithm = algorithm
        self._require_exp = require_exp
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
        """Return what `token` grants. Raises TokenError."""
        header = _header(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._keys:
            raise TokenError(f"the token's algorithm is not one of {', '.join(self._keys)}")
        if any(name in header for name in _REFUSED_HEADERS):
            raise TokenError(f"the token's header has one of {', '.join(_REFUSED_HEADERS)}, which are not supported")
        try:
            # jwt.decode would parse the header again, and it checks claims less strictly than `_claims` does.
            claims = json.loads(jws.verify(token, self._keys[algorithm], [algorithm]).decode())
        except (JOSEError, ValueError, RecursionError) as exc:
            raise TokenError(f"the token can't be verified ({type(exc).__name__})") from exc
        if not isinstance(claims, dict):
            raise TokenError("the token's claims are not a JSON object")
        return self._claims(claims)

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
        now = self._now()
        if "nbf" in claims and _seconds("nbf", claims["nbf"]) > now:
            raise TokenError("the token is not valid yet")
        if "exp" not in claims and not self._require_exp:
            return None
        expires_at = _seconds("exp", claims.get("exp"))
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


def _header(token: str) -> dict[str, Any]:
    """Return the header of `token`, if the token is well-formed."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenError(f"the token has more than {MAX_TOKEN_LENGTH} characters")
    if not _TOKEN.fullmatch(token):
        raise TokenError("the token is not made of three base64url segments")
    segment = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode())
    except (ValueError, RecursionError) as exc:
        raise TokenError(f"the token's header can't be decoded ({type(exc).__name__})") from exc
    if not isinstance(header, dict):
        raise TokenError("the token's header is not a JSON object")
    return header


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


def check_secret(secret: str) -> None:
    """Raise ConfigError if `secret` is publicly known or unusable for HMAC. The message never shows the secret."""
    if not isinstance(secret, str):
        raise ConfigError(f"the secret must be a string of 32 random bytes or more, not {type(secret).__name__}")
    if not secret.strip():
        raise ConfigError("the secret is empty: use 32 random bytes or more, e.g. from `openssl rand -base64 32`")
    if secret == "secret":
        raise ConfigError("the secret is a publicly known default: choose a random string")
    if "-----BEGIN" in secret or secret.startswith(("ssh-rsa", "ssh-ed25519")):
        raise ConfigError("the secret is a PEM or SSH key: tokens are signed with HMAC, choose a random string")
    try:
        value = json.loads(secret, parse_float=lambda _: 0)
    except (ValueError, RecursionError):
        value = 0
    if value is None or isinstance(value, str | list | dict | bool | float):
        raise ConfigError("the secret is JSON, which python-jose would read as a key set: choose a random string")
