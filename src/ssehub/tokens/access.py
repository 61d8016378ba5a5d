"""Rules for access tokens (RFC 7519, 4.1; RFC 8725; RFC 9068, 4): what the claims of a verified token grant, and when.

Whether the signature is right has been decided before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..claims import Claims
from ..errors import InvalidEvent, TokenError, TokenReason
from ..report import Report
from .compact import Header
from .provider import Granted, ProviderRules

MAX_CHANNELS = 1_000
"""Most exact channels of one token. A token of the greatest length has room for so many."""
MAX_TIME = 2**53
"""A float counts single seconds up to here."""
MAX_LIFETIME_SECONDS = 10 * 365.25 * 86_400
"""Whoever asks for a token that is valid for longer has probably taken a duration for a point in time."""
_TYPES = ("jwt", "at+jwt")
_ABSENT = object()
_NUMBERS = (int, float)


class Access(NamedTuple):
    """What a token grants, and from when. `expires_at` of the claims is its `exp`, whether it has passed or not."""

    claims: Claims
    not_before: float
    """The later one of `nbf` and `iat`, in Unix time; 0 without them."""


@dataclass(frozen=True, slots=True)
class TimeRules:
    """When a token is valid, by a clock that may differ by `leeway_seconds` from that of the machine that signed it."""

    require_exp: bool
    leeway_seconds: float
    max_token_seconds: float | None

    def check_lifetime(self, expires_at: float | None, issued_at: float | None, report: Report) -> None:
        """Report a token that is valid for too long. Raises TokenError if it has no `exp` where it needs one."""
        if expires_at is None and self.require_exp:
            raise TokenError("the token has no exp", TokenReason.CLAIMS)
        most = self.max_token_seconds
        if most is None:
            return
        if expires_at is None or issued_at is None:
            report.fail(
                TokenError("the token has no exp or no iat, which max_token_seconds needs", TokenReason.LIFETIME)
            )
        elif expires_at - issued_at > most:
            message = f"the token is valid for {expires_at - issued_at:g} s, more than max_token_seconds"
            report.fail(TokenError(message, TokenReason.LIFETIME))

    def claims_at(self, now: float, access: Access, report: Report) -> Claims:
        """Return what `access` grants at the Unix time `now`. Reports a token that is not valid then.

        Access ends at `exp` or, if that has passed already, at the end of the leeway after it. Otherwise a token within
        its leeway would open streams that end at once, and their clients would reconnect.
        """
        if access.not_before > now + self.leeway_seconds:
            report.fail(TokenError("the token's nbf or iat is in the future", TokenReason.NOT_YET_VALID))
        expires_at = access.claims.expires_at
        if expires_at is None or expires_at > now:
            return access.claims
        if expires_at + self.leeway_seconds <= now:
            report.fail(TokenError("the token has expired", TokenReason.EXPIRED))
        return replace(access.claims, expires_at=expires_at + self.leeway_seconds)


def check_type(header: Header, claims: Mapping[str, Any], report: Report) -> None:
    """Report tokens that are not meant to grant access, such as logout tokens (RFC 8725, 3.11)."""
    kind = header.fields.get("typ", "JWT")
    if kind != "JWT" and (not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES):
        report.fail(TokenError("the token's typ is neither JWT nor at+jwt", TokenReason.TYPE))
    if "events" in claims:
        report.fail(TokenError("the token has events: it reports them, and grants nothing", TokenReason.TYPE))


def access(claims: Mapping[str, Any], times: TimeRules, provider: ProviderRules | None, report: Report) -> Access:
    """Return what the claims of a verified token grant. Without `provider`, the token is one by secret.

    What does not keep it from being read is reported. Raises TokenError for everything else.
    """
    if provider is not None:
        provider.check_issuer(claims, report)
    get = claims.get
    expires_at, issued_at, not_before = seconds(claims, "exp"), seconds(claims, "iat"), seconds(claims, "nbf")
    times.check_lifetime(expires_at, issued_at, report)
    user_id, channels, patterns = _grants(claims) if provider is None else provider.grants(claims)
    if not channels and not patterns:
        raise TokenError("the token grants no channel and no pattern", TokenReason.CLAIMS)
    if len(channels) > MAX_CHANNELS:
        raise TokenError(
            f"the token grants {len(channels)} channels: at most {MAX_CHANNELS} are possible", TokenReason.CLAIMS
        )
    iss, sub, sid, jti = get("iss"), get("sub"), get("sid"), get("jti")
    if (
        (iss is None and "iss" in claims)
        or (sub is None and "sub" in claims)
        or (sid is None and "sid" in claims)
        or (jti is None and "jti" in claims)
    ):
        raise TokenError("the token's iss, sub, sid or jti is null", TokenReason.CLAIMS)
    try:
        # Claims checks the types, too.
        granted = Claims(user_id, channels, expires_at, iss, sub, sid, jti, issued_at or 0.0, patterns)  # type: ignore[arg-type]
    except InvalidEvent as exc:
        raise TokenError(str(exc), TokenReason.CLAIMS) from exc
    return Access(granted, max(issued_at or 0.0, not_before or 0.0))


def _grants(claims: Mapping[str, Any]) -> Granted:
    """Return the user, the channels and the patterns of a token by secret, not yet checked."""
    patterns = claims.get("patterns", ())
    if patterns != () and not isinstance(patterns, list):
        raise TokenError("the token's patterns are not a list", TokenReason.CLAIMS)
    if "channels" in claims:
        channels = claims["channels"]
    elif "channel" in claims or not patterns:
        channels = [claims.get("channel")]
    else:
        channels = []
    if not isinstance(channels, list):
        raise TokenError("the token's channels are not a list", TokenReason.CLAIMS)
    return claims.get("userId", claims.get("sub")), tuple(channels), tuple(patterns)


def seconds(claims: Mapping[str, Any], name: str) -> float | None:
    """Return the claim `name`, a Unix time; None if there is none. Raises TokenError."""
    value = claims.get(name, _ABSENT)
    if value is _ABSENT:
        return None
    if type(value) not in _NUMBERS:  # faster than isinstance, and false for bool
        raise TokenError(f"the token's {name} is not a number", TokenReason.CLAIMS)
    if not 0 <= value < MAX_TIME:
        raise TokenError(f"the token's {name} is out of range", TokenReason.CLAIMS)
    return float(value)
