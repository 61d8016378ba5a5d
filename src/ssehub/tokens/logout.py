"""Logout tokens, by which an identity provider ends a session (OpenID Connect Back-Channel Logout 1.0, 2.4 and 2.6).

Only a key of the JWKS can sign one. The messages of the errors are sent to the caller, so they contain no claim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, InvalidEvent, KeysUnavailable, TokenError, TokenReason, UnknownKey
from ..fields import check_name
from .access import seconds
from .tokens import Tokens

EVENT = "http://schemas.openid.net/event/backchannel-logout"
MAX_AGE_SECONDS = 120
"""How far `iat` may be from our clock, either way. A token is remembered until it is too old."""
MAX_REMEMBERED = 10_000
MAX_LOGOUT_TOKEN_LENGTH = 8_192
"""A logout token names a user and a session, and grants no channels."""
_TYPES = ("logout+jwt", "jwt")
"""The first is recommended; `JWT` and none are what providers sent before it was defined (2.4)."""


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """A verified logout token: the session `sid` of `iss` has ended, or all sessions of `sub`, or both are named.

    `iat` is when it was issued, in Unix time.
    """

    iss: str
    sub: str | None
    sid: str | None
    iat: float
    jti: str


class LogoutTokens:
    """Verifies logout tokens with the keys, the issuer and the audience of `tokens`, each token once.

    The tokens that were accepted are remembered in this process, the newest MAX_REMEMBERED of them; another one does
    not know them. `now` returns Unix time in seconds. Raises ConfigError if `tokens` has no JWKS.
    """

    def __init__(self, tokens: Tokens, now: Callable[[], float] = time.time) -> None:
        if not tokens.has_jwks:
            raise ConfigError("back-channel logout needs the keys of an identity provider: set jwks")
        self._tokens = tokens
        self._now = now
        self._seen: dict[str, float] = {}
        """Until when each `jti` is remembered, the oldest first."""

    async def accept(self, token: str) -> LogoutToken:
        """Return what `token` says, and accept no other with its `jti` from now on, until `forget`.

        Raises TokenError, and KeysUnavailable if the keys are not known yet.
        """
        if len(token) > MAX_LOGOUT_TOKEN_LENGTH:
            raise TokenError(f"the token has more than {MAX_LOGOUT_TOKEN_LENGTH} characters")
        try:
            signed = self._tokens.verified(token)
        except (UnknownKey, KeysUnavailable):
            await self._tokens.ask_for_keys()
            signed = self._tokens.verified(token)
        logout = self._checked(signed.header, signed.claims)
        self._remember(logout.jti)
        return logout

    def forget(self, logout: LogoutToken) -> None:
        """Accept the token once more: what it asks for could not be done."""
        self._seen.pop(logout.jti, None)

    def _checked(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> LogoutToken:
        """Check everything that 2.4 and 2.6 ask for besides the signature."""
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
            raise TokenError("typ is neither logout+jwt nor JWT", TokenReason.TYPE)
        self._tokens.check_issuer(claims)
        iat = self._issued_at(claims)
        events = claims.get("events")
        if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
            raise TokenError(f"events does not have {EVENT} with an object", TokenReason.TYPE)
        if "nonce" in claims:
            raise TokenError("a logout token must not have a nonce", TokenReason.TYPE)
        if "sub" not in claims and "sid" not in claims:
            raise TokenError("the token has neither sub nor sid", TokenReason.CLAIMS)
        names = {name: _name(claims, name) for name in ("sub", "sid") if name in claims}
        return LogoutToken(str(claims["iss"]), names.get("sub"), names.get("sid"), iat, _name(claims, "jti"))

    def _issued_at(self, claims: Mapping[str, Any]) -> float:
        """Return `iat`, after it, `exp` and `nbf` have been checked."""
        now, leeway = self._now(), self._tokens.leeway_seconds
        iat, exp, nbf = (_seconds(claims, name) for name in ("iat", "exp", "nbf"))
        if iat is None:
            raise TokenError("the token has no iat", TokenReason.CLAIMS)
        if iat < now - MAX_AGE_SECONDS:
            raise TokenError(f"iat is more than {MAX_AGE_SECONDS} seconds ago", TokenReason.EXPIRED)
        if iat > now + MAX_AGE_SECONDS:
            raise TokenError(f"iat is more than {MAX_AGE_SECONDS} seconds ahead", TokenReason.NOT_YET_VALID)
        if exp is None:
            raise TokenError("the token has no exp", TokenReason.CLAIMS)
        if exp + leeway <= now:
            raise TokenError("the token has expired", TokenReason.EXPIRED)
        if nbf is not None and nbf > now + leeway:
            raise TokenError("nbf is in the future", TokenReason.NOT_YET_VALID)
        return iat

    def _remember(self, jti: str) -> None:
        now = self._now()
        if self._seen.get(jti, 0.0) > now:
            raise TokenError("a token with this jti has been received before", TokenReason.CLAIMS)
        self._seen.pop(jti, None)
        while self._seen and (len(self._seen) >= MAX_REMEMBERED or next(iter(self._seen.values())) <= now):
            del self._seen[next(iter(self._seen))]
        self._seen[jti] = now + 2 * MAX_AGE_SECONDS  # `iat` may be ahead of us by one of them


def _name(claims: Mapping[str, Any], name: str) -> str:
    """Return the claim `name`, which is text of 1 to 255 characters. Raises TokenError."""
    if name not in claims:
        raise TokenError(f"the token has no {name}", TokenReason.CLAIMS)
    try:
        return check_name(name, claims[name])
    except InvalidEvent:
        raise TokenError(f"{name} is not a string of 1 to 255 characters on one line", TokenReason.CLAIMS) from None


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    """Return the claim `name`, a Unix time, None if there is none. Raises TokenError."""
    try:
        return seconds(claims, name)
    except TokenError:
        raise TokenError(f"{name} is not a Unix time in seconds", TokenReason.CLAIMS) from None
