"""Positions: where an event is in one log."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

LAST_NUMBER = 2**64 - 1
"""The largest number in a position: Redis' stream ids have 64 bits each for milliseconds and sequence."""

_POSITION = re.compile(r"(\d{1,20})-(\d{1,20})\.([0-9a-z]{1,32})", re.ASCII)


class Position(NamedTuple):
    """An event's place in one log; positions of the same log order as their events do."""

    milliseconds: int
    sequence: int
    log: str

    def __str__(self) -> str:
        return "%d-%d.%s" % self  # noqa: UP031  # an f-string looks up each field by its name

    @property
    def before(self) -> Self:
        """A position between this one and every earlier one."""
        if self.sequence:
            return self._replace(sequence=self.sequence - 1)
        return self._replace(milliseconds=self.milliseconds - 1, sequence=LAST_NUMBER)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `text`, such as `1795633044736-0.loh23qqu`; return None if it is not a position."""
        match = _POSITION.fullmatch(text)
        if match is None:
            return None
        milliseconds, sequence = int(match[1]), int(match[2])
        return cls(milliseconds, sequence, match[3]) if max(milliseconds, sequence) <= LAST_NUMBER else None
