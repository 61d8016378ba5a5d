"""Rounds: the events that wait to be written, and the pass over the subscribers that writes them.

A *round* takes what waits, and writes it in slices of at most a hundred subscribers, each slice a call of the event
loop, so that the loop goes on accepting and publishing meanwhile. What arrives during a round waits for the next one:
at rest an event leaves at once, under load one write carries many.

    state       meaning                                                             next
    IDLE        nothing waits                                                       SCHEDULED, WRITING
    SCHEDULED   a call of the loop will begin the next round, if anything waits     WRITING, ENDING, IDLE
    WRITING     the slices of a round are being written                             IDLE
    ENDING      the streams that a command names are being ended, also in slices    IDLE

Only one round is under way at any time, and commands stand between the events in the order of the log. So every
subscriber receives events in log order, and a command ends a stream after everything published before it. No round
waits for a client: what a slow one cannot be written yet is held for it (backlogs.py).

After WRITING or ENDING the state is IDLE for an instant; if something waits, it becomes SCHEDULED in the same call. An
event that is written straight through (writing.py) makes IDLE WRITING at once, and afterwards SCHEDULED until the next
turn of the loop.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from ..position import Position
from .frames import Ending, Frame
from .pacing import FULL_EVENTS, SLICE, SMALL_SLICE, Pace


class RoundState(Enum):
    """The state of the round; the table is at the head of this file."""

    IDLE = "idle"
    SCHEDULED = "scheduled"
    WRITING = "writing"
    ENDING = "ending"

    __hash__ = object.__hash__  # Enum's own is a Python function, which costs more than the rest of a transition


IDLE, SCHEDULED, WRITING, ENDING = RoundState

_NEXT: dict[RoundState, tuple[RoundState, ...]] = {
    IDLE: (SCHEDULED, WRITING),
    SCHEDULED: (WRITING, ENDING, IDLE),
    WRITING: (IDLE,),
    ENDING: (IDLE,),
}


class Rounds:
    """The batch that waits, and the state and pace of the rounds. Times are seconds of the monotonic clock."""

    def __init__(self, base: Position, max_waiting_bytes: int) -> None:
        self.state = IDLE
        self.waiting_bytes = 0
        self._commands = 0
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: deque[Frame | Ending] = deque()
        self._pace = Pace()
        self._began = 0.0
        self.last = base
        """The end of the round that is under way, or of the latest one."""
        self.writes = 0
        """The number of writes in that round so far."""
        self.events = 0
        """The number of events in it."""
        self.arrived_at = 0.0
        """When the log stored the first of them."""

    @property
    def slice(self) -> int:
        """The number of writes in a slice of the round that is under way."""
        return SLICE if self.events >= FULL_EVENTS else SMALL_SLICE

    @property
    def is_under_way(self) -> bool:
        return self.state in (WRITING, ENDING)

    @property
    def is_idle(self) -> bool:
        """True if everything has been written."""
        return not self._waiting and not self.is_under_way

    @property
    def has_command(self) -> bool:
        """True if a command waits or is being carried out."""
        return self._commands > 0

    def has_capacity(self, more_bytes: int = 0) -> bool:
        """Return True if publishers need not wait, also not when so many more bytes wait."""
        return self.waiting_bytes + more_bytes < self._max_waiting_bytes

    def add(self, item: Frame | Ending) -> None:
        """Add the next event, or command, of the log."""
        self._waiting.append(item)
        if isinstance(item, Frame):
            self.waiting_bytes += len(item.data)
        else:
            self._commands += 1

    def schedule(self, now: float) -> float | None:
        """Return in how many seconds the next round begins, or None if it is not to be scheduled now."""
        if not self._waiting or self.state is not IDLE:
            return None
        self._enter(SCHEDULED)
        return 0.0 if self.has_enough else max(0.0, self._pace.begins_at - now)

    @property
    def has_enough(self) -> bool:
        """True if so much waits that no round need be put off for more."""
        return len(self._waiting) >= self._pace.enough

    def lone_event(self, now: float) -> Frame | None:
        """Return the event that waits, if it is all that waits, at rest: the latest round carried one event, too."""
        waiting = self._waiting
        if self.state is not IDLE or self.events > 1 or len(waiting) != 1:
            return None
        first = waiting[0]
        return first if isinstance(first, Frame) and self._pace.begins_at <= now else None

    def begin_alone(self, now: float) -> None:
        """Begin to write the event that waits alone."""
        self._enter(WRITING)
        frame = self._waiting.popleft()
        assert isinstance(frame, Frame)
        self.waiting_bytes -= len(frame.data)
        self._start(now, frame, frame, 1)

    def await_turn(self) -> None:
        """An event was written straight through: what comes in this turn of the loop waits for the next one."""
        self._enter(SCHEDULED)

    def rest(self) -> None:
        """Nothing came in that turn."""
        self._enter(IDLE)

    def next_ending(self) -> Ending | None:
        """Remove and return the command that comes next, and begin to end streams; None if an event comes next."""
        first = self._waiting[0]
        if not isinstance(first, Ending):
            return None
        self._enter(ENDING)
        self._waiting.popleft()
        return first

    def begin(self, now: float, capacity_bytes: int) -> list[Frame]:
        """Begin to write. Remove and return the next events: as many as the capacity allows, and at least one."""
        self._enter(WRITING)
        waiting = self._waiting
        frames: list[Frame] = []
        size = 0
        while (
            waiting
            and isinstance(frame := waiting[0], Frame)
            and (not frames or size + len(frame.data) <= capacity_bytes)
        ):
            frames.append(frame)
            size += len(frame.data)
            waiting.popleft()
        self.waiting_bytes -= size
        self._start(now, frames[0], frames[-1], len(frames))
        return frames

    def _start(self, now: float, first: Frame, last: Frame, events: int) -> None:
        self.last = last.position
        self.events, self.arrived_at = events, first.arrived_at
        self._began = now
        self.writes = 0

    def finish(self, now: float) -> float:
        """All slices of the round have been written; return how many seconds it took."""
        self._enter(IDLE)
        self._pace.follow(self._began, now, self.writes, self.events)
        return now - self._began

    def finish_ending(self) -> None:
        """All streams that the command named have been ended."""
        self._enter(IDLE)
        self._commands -= 1

    def _enter(self, state: RoundState) -> None:
        assert state in _NEXT[self.state], f"{self.state} cannot be followed by {state}"
        self.state = state
