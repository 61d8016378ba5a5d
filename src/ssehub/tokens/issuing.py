"""The claims of tokens that are issued here."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Collection, Sequence
from typing import Any

from ..errors import InvalidEvent
from ..fields import check_name
from ..grant import MAX_PATTERNS, check_pattern
from .access import MAX_CHANNELS, MAX_LIFETIME_SECONDS, MAX_TIME

_JTI_BYTES = 16


def claims_to_sign(
    user_id: str,
    channels: Sequence[str],
    patterns: Sequence[str],
    *,
    expires_at: float,
    issued_at: float,
    max_token_seconds: float | None,
) -> dict[str, Any]:
    """Return the claims of a token for `user_id`, with an `iat` and a `jti`. The times are Unix times in seconds.

    Raises InvalidEvent if a token with them would not verify.
    """
    claims: dict[str, Any] = {"userId": check_name("userId", user_id)}
    names, granted = _checked_channels(channels), _checked_patterns(patterns)
    if not names and not granted:
        raise InvalidEvent("no channel and no pattern given: a token needs one at least")
    if names:
        claims |= {"channel": names[0]} if len(names) == 1 else {"channels": names}
    if granted:
        claims["patterns"] = granted
    claims["iat"] = round(issued_at, 3)
    claims["exp"] = _checked_exp(expires_at, claims["iat"], max_token_seconds)
    claims["jti"] = randomness.token_urlsafe(_JTI_BYTES)
    return claims


def _checked_exp(expires_at: float, issued_at: float, most: float | None) -> int:
    if not isinstance(expires_at, int | float) or not 0 <= expires_at < MAX_TIME:
        example = int(issued_at) + 86_400
        raise InvalidEvent(f"exp {expires_at!r:.40} is not a Unix time in seconds, such as {example}")
    if expires_at < MAX_LIFETIME_SECONDS < issued_at:
        raise InvalidEvent(
            f"exp {expires_at:g} is a duration, not a Unix time: give time.time() + {expires_at:g}, now "
            f"{int(issued_at + expires_at)}"
        )
    if most is not None and int(expires_at) - issued_at > most:
        lifetime = int(expires_at) - issued_at
        raise InvalidEvent(
            f"exp: the token would be valid for {lifetime:.0f} s, more than max_token_seconds ({most:g})"
        )
    return int(expires_at)


def _checked_channels(channels: Sequence[str]) -> list[str]:
    if isinstance(channels, str) or not isinstance(channels, Collection):
        raise InvalidEvent(f"channels must be a sequence of names, such as ['chat'], not {channels!r:.40}")
    if len(channels) > MAX_CHANNELS:
        raise InvalidEvent(
            f"channel: {len(channels)} names given: a token grants at most {MAX_CHANNELS}, so use a pattern"
        )
    return [check_name("channel", channel) for channel in channels]


def _checked_patterns(patterns: Sequence[str]) -> list[str]:
    if isinstance(patterns, str) or not isinstance(patterns, Collection):
        raise InvalidEvent(f"patterns must be a sequence of patterns, such as ['orders.*'], not {patterns!r:.40}")
    if len(patterns) > MAX_PATTERNS:
        raise InvalidEvent(f"patterns: {len(patterns)} given: a token grants at most {MAX_PATTERNS}")
    return [check_pattern("patterns", pattern) for pattern in patterns]
