"""Grants: sets of channels, named exactly or by patterns. A pattern is a prefix followed by `*`: `orders.*`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from .errors import InvalidEvent
from .fields import check_name

WILDCARD = "*"
MAX_PATTERNS = 100
"""Most patterns of one token."""


def check_pattern(field_name: str, value: object) -> str:
    """Return `value` if it is a pattern. `*` alone is one, too: the pattern of every channel. Raises InvalidEvent."""
    pattern = check_name(field_name, value)
    if pattern.find(WILDCARD) != len(pattern) - 1:
        raise InvalidEvent(
            f"{field_name} {pattern!r} is not a pattern: write a prefix of channels and one '*' at the end, "
            "such as 'orders.*'"
        )
    return pattern


def prefix_of(pattern: str) -> str:
    """Return `pattern` without its `*`."""
    return pattern[:-1]


def prefixes_of(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of `patterns`, sorted, each once."""
    return tuple(sorted(set(map(prefix_of, patterns)))) if patterns else ()


@dataclass(frozen=True, slots=True)
class Grant:
    """Exact `channels`, and every channel that begins with one of `prefixes`."""

    channels: frozenset[str]
    prefixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, channels: Iterable[str], patterns: Iterable[str] = ()) -> Self:
        """Return the grant of checked names and patterns."""
        return cls(frozenset(channels), tuple(map(prefix_of, patterns)))

    def covers(self, channel: str) -> bool:
        """True if `channel` is granted."""
        return channel in self.channels or channel.startswith(self.prefixes)

    def includes(self, pattern: str) -> bool:
        """True if every channel of `pattern` is granted by a pattern."""
        return prefix_of(pattern).startswith(self.prefixes)
