"""Positions: where an event is in one log."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

LAST_SEQUENCE = 10**19 - 1

_POSITION = re.compile(r"(\d{1,19})-(\d{1,19})\.([0-9a-z]{1,32})", re.ASCII)


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
        return self._replace(milliseconds=self.milliseconds - 1, sequence=LAST_SEQUENCE)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `text`, such as `1795633044736-0.loh23qqu`; return None if it is not a position."""
        match = _POSITION.fullmatch(text)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None
