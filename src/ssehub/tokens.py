"""Tokens: JSON Web Tokens (RFC 7519) with `userId`, `channel` and `exp`, signed by HMAC.

The only room that knows python-jose and the names of claims. Whatever is wrong with a token, and whatever a library
makes of it, is one TokenError: a caller learns that it is no good, a debug log learns why.
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
"""Seconds that a float still counts one by one."""
_HMAC = (ALGORITHMS.HS256, ALGORITHMS.HS384, ALGORITHMS.HS512)
_SEGMENT = r"(?=[\w-])(?:[\w-]{4})*(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?"
"""Base64url without padding (RFC 7515, 2) that is canonical: no bits behind the last byte (RFC 4648, 3.5)."""
_TOKEN = re.compile(rf"{_SEGMENT}\.{_SEGMENT}\.{_SEGMENT}", re.ASCII)
_REFUSED_HEADERS = ("crit", "b64", "zip")
"""Headers that change what a token means, which python-jose ignores. Those that name keys are never looked at."""


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
        # From the secret itself python-jose would make a key for each token.
        self._keys = {name: jwk.construct(secret, name) for name in _HMAC}
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
        token: str = jwt.encode(claims, self._keys[self._algorithm], algorithm=self._algorithm)
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidEvent(
                f"channel: the token would have {len(token)} characters, {MAX_TOKEN_LENGTH} are the most"
            )
        return token

    def verify(self, token: str) -> Claims:
        """What `token` grants. Raises TokenError."""
        header = _header(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._keys:
            raise TokenError("it is not signed by HMAC")
        if any(name in header for name in _REFUSED_HEADERS):
            raise TokenError("its header asks for what we don't do")
        try:
            # jwt.decode would read the header again, and check claims more loosely than it is done below.
            claims = json.loads(jws.verify(token, self._keys[algorithm], [algorithm]).decode())
        except (JOSEError, ValueError, RecursionError) as exc:
            raise TokenError(f"{type(exc).__name__}: it can't be verified") from exc
        if not isinstance(claims, dict):
            raise TokenError("its claims are no object")
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
    """The header of `token`, once its form is sound."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenError(f"it is longer than {MAX_TOKEN_LENGTH} characters")
    if not _TOKEN.fullmatch(token):
        raise TokenError("it has not the form of a token")
    segment = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode())
    except (ValueError, RecursionError) as exc:
        raise TokenError(f"{type(exc).__name__}: its header can't be read") from exc
    if not isinstance(header, dict):
        raise TokenError("its header is no object")
    return header


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
