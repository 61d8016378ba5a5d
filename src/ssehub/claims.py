"""Claims: what one request may listen to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from .errors import InvalidEvent, NotGranted
from .fields import check_name
from .grant import MAX_PATTERNS, Grant, check_pattern
from .report import RAISE, Report

_NUMBERS = (int, float)  # faster than the union of both, which would be made for each token


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token, or a host's own login, grants to `user_id` until `expires_at` (Unix time, seconds).

    That is exact `channels`, and every channel that begins like one of `patterns`, such as `orders.*`. There must be a
    channel or a pattern.

    The other fields are claims of the token, as RFC 7519 (4.1) and OpenID Connect (`sid`) name them, by which access
    can be revoked.
    """

    user_id: str
    channels: tuple[str, ...] = ()
    expires_at: float | None = None
    iss: str | None = None
    sub: str | None = None
    sid: str | None = None
    jti: str | None = None
    iat: float | None = None
    """When the token was issued, in Unix time; 0 if it does not say. None if there was no token."""
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidEvent for values that a token cannot have."""
        check_name("userId", self.user_id)
        if self.iss is not None:
            check_name("iss", self.iss)
        if self.sub is not None:
            check_name("sub", self.sub)
        if self.sid is not None:
            check_name("sid", self.sid)
        if self.jti is not None:
            check_name("jti", self.jti)
        if not (self.channels or self.patterns):
            raise InvalidEvent(
                "channels and patterns are both empty: give a channel, such as ('chat',), or a pattern, such as "
                "('orders.*',)"
            )
        if isinstance(self.channels, str):
            raise InvalidEvent(f"channels must be a tuple of names, such as ('chat',), not {self.channels!r}")
        for channel in self.channels:
            check_name("channel", channel)
        if self.patterns:
            self._check_patterns()
        expires_at = self.expires_at
        if expires_at is not None and (not isinstance(expires_at, _NUMBERS) or math.isnan(expires_at)):
            raise InvalidEvent(f"expires_at must be a Unix time in seconds, not {self.expires_at!r}")

    def narrowed(self, channels: Sequence[str], report: Report = RAISE) -> Self:
        """Return these claims for `channels` only. Reports each that they do not grant, as NotGranted."""
        grant = Grant.of(self.channels, self.patterns)
        for channel in channels:
            if not grant.covers(channel):
                report.fail(NotGranted(channel))
        return replace(self, channels=tuple(channels), patterns=())

    def _check_patterns(self) -> None:
        if isinstance(self.patterns, str):
            raise InvalidEvent(
                f"patterns must be a tuple of patterns, such as ('orders.*',), not {self.patterns!r:.80}"
            )
        if len(self.patterns) > MAX_PATTERNS:
            raise InvalidEvent(f"patterns: {len(self.patterns)} given: at most {MAX_PATTERNS} are allowed")
        for pattern in self.patterns:
            check_pattern("patterns", pattern)
