"""Tokens: JSON Web Tokens (RFC 7519) with `userId`, `channel` and `exp`, signed by HMAC.

The only room that knows python-jose and the names of claims. Whatever is wrong with a token, and whatever a library
makes of it, is one TokenError: a caller learns that it is no good, a debug log learns why.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jose import jwt
from jose.constants import ALGORITHMS
from jose.exceptions import JOSEError

from .errors import ConfigError, InvalidEvent, TokenError
from .event import Claims, check_name

MAX_TOKEN_LENGTH = 8_192
MAX_CHANNELS = 100
SHORT_SECRET_BYTES = 32
MAX_TIME = 2**53
"""Seconds that a float still counts one by one."""
_HMAC = (ALGORITHMS.HS256, ALGORITHMS.HS384, ALGORITHMS.HS512)
_SEGMENTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REFUSED_HEADERS = ("crit", "b64", "zip")
"""Headers that change what a token means, which python-jose ignores. Those that name keys are never looked at."""
# exp is checked below: python-jose allows none, and takes strings of digits.
_OPTIONS = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
    "verify_at_hash": False,
}


class Tokens:
    """Issues and verifies tokens with one `secret`.

    `require_exp` False also takes tokens without `exp`, which then are valid for ever. `now` gives Unix time.
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
        self._secret = secret
        self._algorithm = algorithm
        self._require_exp = require_exp
        self._now = now

    def issue(self, user_id: str, channels: Sequence[str], *, expires_at: float) -> str:
        """A token for `user_id` on `channels` until `expires_at` (Unix time, seconds). Raises InvalidEvent."""
        claims: dict[str, Any] = {"userId": check_name("userId", user_id)}
        if isinstance(channels, str) or not isinstance(channels, Collection):
            raise InvalidEvent(f"channels must be a sequence of names, such as ['chat'], not {channels!r:.40}")
        names = [check_name("channel", channel) for channel in channels]
        if not 1 <= len(names) <= MAX_CHANNELS:
            raise InvalidEvent(f"channel: {len(names)} were given, a token takes 1 to {MAX_CHANNELS}")
        if len(names) == 1:
            claims["channel"] = names[0]
        else:
            claims["channels"] = names
        if not isinstance(expires_at, int | float) or not 0 <= expires_at < MAX_TIME:
            raise InvalidEvent(
                f"exp {expires_at!r:.40} is no Unix time in seconds, such as {int(self._now()) + 86_400}"
            )
        claims["exp"] = int(expires_at)
        token: str = jwt.encode(claims, self._secret, algorithm=self._algorithm)
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidEvent(
                f"channel: the token would have {len(token)} characters, {MAX_TOKEN_LENGTH} are the most"
            )
        return token

    def verify(self, token: str) -> Claims:
        """What `token` grants. Raises TokenError."""
        header = _header(token)
        if header.get("alg") not in _HMAC:
            raise TokenError("it is not signed by HMAC")
        if any(name in header for name in _REFUSED_HEADERS):
            raise TokenError("its header asks for what we don't do")
        try:
            claims = jwt.decode(token, self._secret, algorithms=list(_HMAC), options=_OPTIONS)
        except (JOSEError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
            raise TokenError(f"{type(exc).__name__}: it can't be verified") from exc
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
        if "nbf" in claims and _number("nbf", claims["nbf"]) > now:
            raise TokenError("it is not valid yet")
        if "exp" not in claims and not self._require_exp:
            return None
        expires_at = _number("exp", claims.get("exp"))
        if expires_at <= now:
            raise TokenError("it has expired")
        return expires_at


def _header(token: str) -> dict[str, Any]:
    """The header of `token`, once its form is sound: its length bounded, its base64url canonical (RFC 7515, 2)."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenError(f"it is longer than {MAX_TOKEN_LENGTH} characters")
    if not _SEGMENTS.fullmatch(token):
        raise TokenError("it has not the form of a token")
    try:
        decoded = [_canonical(segment) for segment in token.split(".")]
        header = json.loads(decoded[0])
    except (ValueError, RecursionError) as exc:
        raise TokenError(f"{type(exc).__name__}: its header can't be read") from exc
    if not isinstance(header, dict):
        raise TokenError("its header is no object")
    return header


def _canonical(segment: str) -> bytes:
    try:
        decoded = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != segment.encode():
        raise ValueError("not canonical base64url")
    return decoded


def _channels(claims: dict[str, Any]) -> tuple[Any, ...]:
    channels = claims["channels"] if "channels" in claims else [claims.get("channel")]
    if not isinstance(channels, list) or not 1 <= len(channels) <= MAX_CHANNELS:
        raise TokenError(f"channels must be a list of 1 to {MAX_CHANNELS} names")
    return tuple(channels)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(f"{name} is no number")
    try:
        number = float(value)
    except OverflowError as exc:
        raise TokenError(f"{name} is out of range") from exc
    if not 0 <= number < MAX_TIME:
        raise TokenError(f"{name} is out of range")
    return number


def check_secret(secret: str) -> None:
    """Raises ConfigError, which never shows it, for a `secret` that everybody knows or that can't sign."""
    if not isinstance(secret, str):
        raise ConfigError(f"the secret must be a string of 32 random bytes or more, not {type(secret).__name__}")
    if not secret.strip():
        raise ConfigError("the secret is empty: give 32 random bytes or more, e.g. from `openssl rand -base64 32`")
    if secret == "secret":
        raise ConfigError("the secret is the original's default, which everybody knows: choose another")
    if "-----BEGIN" in secret or secret.startswith(("ssh-rsa", "ssh-ed25519")):
        raise ConfigError("the secret is a PEM or SSH key: HMAC takes a random string")
    try:
        value = json.loads(secret, parse_float=lambda _: 0)
    except (ValueError, RecursionError):
        value = 0
    if value is None or isinstance(value, str | list | dict | bool | float):
        raise ConfigError("the secret is JSON, which python-jose would take for a key set: choose a random string")
