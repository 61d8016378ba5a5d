"""The events that the producer of a run keeps to send them again: those not known to be stored, and some before them.

    first          stored                     total
      | tail        | waiting                   |
      events in order of their ordinals, as lines of NDJSON

`first`, `stored` and `total` count events from the beginning of the run. The tail is kept for a log that loses what it
had stored, such as that of a Redis which writes to its disk once a second.
"""

from __future__ import annotations

import json

from .runs.entries import RunEvent

TAIL_BYTES = 262_144
"""How much is kept of the events that are known to be stored."""


class KeptEvents:
    """Begins behind the `count` events that the run has already."""

    def __init__(self, count: int = 0) -> None:
        self.first = self.stored = self.total = count
        self.waiting_bytes = 0
        """The size of the events that are not known to be stored."""
        self._tail_bytes = 0
        self._lines: list[bytes] = []

    def add(self, event: RunEvent) -> None:
        line = _line(event)
        self._lines.append(line)
        self.total += 1
        self.waiting_bytes += len(line)

    def acknowledge(self, count: int) -> None:
        """The hub has stored `count` events of the run, which may be less than it had stored before.

        Raises ValueError if it has more than were ever added, or fewer than can be sent again.
        """
        if not self.first <= count <= self.total:
            raise ValueError(count)
        low, high = sorted((count, self.stored))
        size = sum(map(len, self._lines[low - self.first : high - self.first]))
        if count < self.stored:
            size = -size
        self.stored = count
        self.waiting_bytes -= size
        self._tail_bytes += size
        self._forget()

    def _forget(self) -> None:
        count = 0
        while self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= len(self._lines[count])
            count += 1
        if count:
            del self._lines[:count]
            self.first += count

    def lines(self, after: int, max_bytes: int) -> list[bytes]:
        """Return the events after the first `after` of the run, as many as `max_bytes` allow, at least one if any."""
        chosen: list[bytes] = []
        size = 0
        for index in range(after - self.first, len(self._lines)):
            line = self._lines[index]
            size += len(line)
            if size > max_bytes and chosen:
                break
            chosen.append(line)
        return chosen


def _line(event: RunEvent) -> bytes:
    fields = {"data": event.data, "event": event.type, "id": event.id, "retry": event.retry}
    present = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(present, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
