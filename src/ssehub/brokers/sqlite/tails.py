"""The newest events of the runs that are followed here, so that a watcher who is a little behind reads no file."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...runs.entries import RunEvent
from ...runs.model import EVENT_OVERHEAD_BYTES

STEP_OVERHEAD_BYTES = 300
"""The memory for each step of an append, beside its events."""


class _Step(NamedTuple):
    number: int
    first: int
    """The ordinal of the first of its events."""
    events: Sequence[RunEvent]
    size: int


class _Tail:
    """The last steps of one log, without a gap."""

    __slots__ = ("log", "next", "steps")

    def __init__(self, log: str) -> None:
        self.log = log
        self.next = 0
        """The ordinal after that of its last event."""
        self.steps: deque[_Step] = deque()


class Tails:
    """Holds the newest events of several runs, of all together at most `max_bytes`: the oldest give way."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._tails: dict[str, _Tail] = {}
        self._order: OrderedDict[int, _Tail] = OrderedDict()
        """For the number of each step that is held, its tail; the oldest is first."""
        self._number = 0

    def add(self, name: str, log: str, first: int, events: Sequence[RunEvent]) -> None:
        """Hold `events` of the run `name`, of which the first has the ordinal `first`."""
        tail = self._tails.get(name)
        if tail is None or tail.log != log or tail.next != first:
            self.forget(name)
            tail = self._tails[name] = _Tail(log)
        self._number += 1
        step = _Step(self._number, first, events, STEP_OVERHEAD_BYTES + size_of(events))
        tail.steps.append(step)
        tail.next = first + len(events)
        self._order[step.number] = tail
        self.bytes += step.size
        while self.bytes > self._max_bytes:
            _, oldest = self._order.popitem(last=False)
            self.bytes -= oldest.steps.popleft().size

    def forget(self, name: str) -> None:
        """Hold no events of the run `name` any more."""
        tail = self._tails.pop(name, None)
        if tail is not None:
            for step in tail.steps:
                del self._order[step.number]
                self.bytes -= step.size

    def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        """Return events after the ordinal `after`, as `RunStore.read` does, or None if the first is not held."""
        tail = self._tails.get(name)
        if tail is None or tail.log != log or not tail.steps or not tail.steps[0].first <= after + 1 < tail.next:
            return None
        parts: list[Sequence[RunEvent]] = []
        for step in reversed(tail.steps):
            parts.append(step.events[max(after + 1 - step.first, 0) :])
            if step.first <= after + 1:
                break
        return first_events((event for part in reversed(parts) for event in part), max_bytes)


def size_of(events: Iterable[RunEvent]) -> int:
    """Return what `events` count for in the size of their run."""
    return sum(event.size + EVENT_OVERHEAD_BYTES for event in events)


def first_events(events: Iterable[RunEvent], max_bytes: int) -> list[RunEvent]:
    """Return the first of `events`, as many as `max_bytes` allow, at least one if there are any."""
    chosen: list[RunEvent] = []
    for event in events:
        max_bytes -= event.size + EVENT_OVERHEAD_BYTES
        if max_bytes < 0 and chosen:
            break
        chosen.append(event)
    return chosen
