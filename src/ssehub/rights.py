"""Rights: what a control key may do, and on which channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from .errors import KeyForbidden
from .grant import Grant

_FILE = "control_keys_file"


class Right(StrEnum):
    """A right that a request to the control app needs. `ADMIN` implies all others."""

    PUBLISH = "publish"
    TOKEN = "token"
    DISCONNECT = "disconnect"
    REVOKE = "revoke"
    READ = "read"
    ADMIN = "admin"


class KeyRefusal(StrEnum):
    """A reason to refuse a request because of its control key, as `/metrics` counts it."""

    KEY = "key"
    """The key is missing or wrong."""
    RIGHT = "right"
    CHANNEL = "channel"


class KeyUse:
    """Counts the requests with one key: those admitted, by right, and those refused, by reason."""

    __slots__ = ("admitted", "refused")

    def __init__(self) -> None:
        self.admitted: dict[Right, int] = {}
        self.refused: dict[KeyRefusal, int] = {}

    def refuse(self, reason: KeyRefusal) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class ControlKey:
    """The control key of a request, by its `name`: it does not have the key itself.

    `grant` limits the channels that it may publish to and issue tokens for. None means all channels.
    """

    name: str
    rights: frozenset[Right]
    grant: Grant | None = None
    use: KeyUse = field(default_factory=KeyUse, compare=False, repr=False)

    def __str__(self) -> str:
        return f"control key {self.name!r}" if self.name else "a request without a key"

    def require(self, right: Right) -> None:
        """Count a request that needs `right`. Raises KeyForbidden if the key lacks it."""
        if right not in self.rights and Right.ADMIN not in self.rights:
            self.use.refuse(KeyRefusal.RIGHT)
            raise KeyForbidden(
                f"{self} lacks the right {right.value!r}: add it to keys.{self.name} in {_FILE}, or use another key"
            )
        admitted = self.use.admitted
        admitted[right] = admitted.get(right, 0) + 1

    def require_channels(self, channels: Iterable[str], where: str = "") -> None:
        """Raise KeyForbidden, which begins with `where`, if the key may not use one of `channels`."""
        grant = self.grant
        if grant is not None:
            for channel in channels:
                if not grant.covers(channel):
                    raise self._outside("channel", channel, where)

    def require_patterns(self, patterns: Iterable[str]) -> None:
        """Raise KeyForbidden if a pattern is not inside one of the key's."""
        grant = self.grant
        if grant is not None:
            for pattern in patterns:
                if not grant.includes(pattern):
                    raise self._outside("pattern", pattern, "")

    def _outside(self, kind: str, value: str, where: str) -> KeyForbidden:
        self.use.refuse(KeyRefusal.CHANNEL)
        return KeyForbidden(
            f"{where}{kind} {value[:255]!r} is not allowed with {self}: add it to the channels of keys.{self.name} in "
            f"{_FILE}, or use another key"
        )


NO_KEY = ControlKey("", frozenset())
"""The key of a request that no guard has checked. It has no rights."""
