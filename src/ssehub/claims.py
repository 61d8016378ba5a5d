"""Claims: what one request may listen to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InvalidEvent
from .fields import check_name


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token, or a host's own login, grants: `channels` to `user_id`, until `expires_at` (Unix time, seconds)."""

    user_id: str
    channels: tuple[str, ...]
    expires_at: float | None = None

    def __post_init__(self) -> None:
        """Raises InvalidEvent for values that a token cannot have."""
        check_name("userId", self.user_id)
        if isinstance(self.channels, str) or not self.channels:
            raise InvalidEvent(f"channels must be a tuple of names, such as ('chat',), not {self.channels!r}")
        for channel in self.channels:
            check_name("channel", channel)
        expires_at = self.expires_at
        if expires_at is not None and (not isinstance(expires_at, int | float) or math.isnan(expires_at)):
            raise InvalidEvent(f"expires_at must be a Unix time in seconds, not {self.expires_at!r}")
