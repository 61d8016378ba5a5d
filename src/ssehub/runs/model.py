"""The model of a run: its name, its options, its state, and the positions of its events.

    state      meaning                                                        next
    OPEN       events may be appended                                         STOPPING, DONE, FAILED, STOPPED
    STOPPING   its producer has been asked to stop; nothing can be appended   STOPPED, FAILED
    DONE, FAILED, STOPPED: it has ended                                       OPEN, as the next generation

A run is created with a *generation*, a number that grows with each creation, restart and takeover under its name, also
after the run has been deleted. It fences: a call with the number of an older generation changes nothing. Its *log* is a
random name, new for each generation that begins without events, or takes over a run that has ended. An event's position
is its ordinal, counted from 1, in that log: `7-0.loh23qqu`. The end is an entry with an ordinal, too, one above that of
the last event. (If such a run is taken over, that ordinal is an event's. A client whose cursor is the end would miss
it, if the log were the same.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ..errors import InvalidEvent
from ..fields import EVERYONE, check_name, check_names, check_type
from ..position import Position

DEFAULT_KEEP_SECONDS = 3_600.0
DEFAULT_IDLE_SECONDS = 300.0
MAX_SECONDS = 2**31
TOMBSTONE_SECONDS = 86_400.0
"""How long the generation of a run that is gone is remembered."""
MAX_TOMBSTONES = 100_000
EVENT_OVERHEAD_BYTES = 32
"""What each event counts for in the size of a run, besides its fields."""
NAME_OVERHEAD_BYTES = 256
"""What each channel and user of a run counts for in the size of all runs, besides its name. Runs are found by their
users: that takes up to 350 bytes for each in memory, and 150 in Redis.
"""


class RunState(StrEnum):
    """The state of a run; the table is at the head of this file."""

    OPEN = "open"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_end(self) -> bool:
        """True if the run has ended."""
        return self not in (RunState.OPEN, RunState.STOPPING)


class RunError(StrEnum):
    """The errors with which the hub itself ends a run as failed. A producer may give any other text."""

    IDLE = "idle"
    TOO_LARGE = "too-large"
    DELETED = "deleted"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    LOST = "lost"
    """Its store has lost it while it was open. Only watchers are told this, since the run is gone."""


def check_run_name(value: object) -> str:
    """Return `value` if it can be the name of a run: 1 to 255 characters, no `/`, no control characters.

    Raises InvalidEvent.
    """
    name = check_name("run", value)
    if "/" in name:
        raise InvalidEvent(f"run {name!r} contains '/', which can't be in a run's path: remove it")
    if not name.isprintable() and any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        raise InvalidEvent(f"run {name!r} contains a control character: remove it")
    if name in (".", ".."):
        raise InvalidEvent(f"run {name!r} would be removed from a URL: use another name")
    return name


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options that a run is created with. Raises InvalidEvent, which calls each field by its name on the wire.

    Clients that could hear an event for `users` on `channels` may watch the run. `keep` is how long it is kept after
    its end, and `idle` after how long without an event or a sign of life it fails; both in seconds. `announce` is the
    type of the event that tells the same users of its start and its end. If it is `stoppable`, its watchers may stop
    it.
    """

    channels: tuple[str, ...]
    users: tuple[str, ...]
    keep: float = DEFAULT_KEEP_SECONDS
    idle: float = DEFAULT_IDLE_SECONDS
    announce: str | None = None
    stoppable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_names("channel", self.channels))
        users = check_names("userId", self.users)
        object.__setattr__(self, "users", (EVERYONE,) if EVERYONE in users else users)
        _check_seconds("keep", self.keep, least=0)
        _check_seconds("idle", self.idle, least=1)
        if self.announce is not None:
            check_type("announce", self.announce)
        if not isinstance(self.stoppable, bool):
            raise InvalidEvent(f"stoppable must be true or false, not {self.stoppable!r:.40}")

    @property
    def size(self) -> int:
        """What they count for in the size of all runs."""
        names = (*self.channels, *self.users)
        return len("".join(names).encode()) + len(names) * NAME_OVERHEAD_BYTES


def _check_seconds(name: str, value: object, *, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < MAX_SECONDS:
        raise InvalidEvent(f"{name} {value!r:.40} is not a number of seconds from {least} to {MAX_SECONDS - 1}")


class Outcome(NamedTuple):
    """How a run ends: `state` is DONE, FAILED or STOPPED; `error` says why, for people and programs."""

    state: RunState
    error: str | None = None


class Run:
    """One run as its store knows it. Only the store changes it; a caller that waits meanwhile may find it changed."""

    __slots__ = (
        "bytes",
        "created_at",
        "ended_at",
        "error",
        "events",
        "generation",
        "log",
        "name",
        "options",
        "state",
    )

    def __init__(
        self, name: str, options: RunOptions, generation: int, log: str, created_at: float, *, events: int = 0
    ) -> None:
        self.name = name
        self.options = options
        self.generation = generation
        self.log = log
        self.state = RunState.OPEN
        self.error: str | None = None
        self.events = events
        """How many events it has. The end is not counted."""
        self.bytes = 0
        """The size of its events, with EVENT_OVERHEAD_BYTES for each."""
        self.created_at = created_at
        """When this generation was created, in Unix time."""
        self.ended_at: float | None = None

    @property
    def last(self) -> int:
        """The ordinal of its last entry: of its end, if it has ended."""
        return self.events + 1 if self.state.is_end else self.events

    def position(self, ordinal: int) -> Position:
        """Return the position of the entry with this ordinal; of 0, that before the first event."""
        return Position(ordinal, 0, self.log)

    def may_be_watched(self, user_id: str, covers: Sequence[bool]) -> bool:
        """True if a user may watch it to whom `covers` says which of its channels are granted."""
        return any(covers) and (EVERYONE in self.options.users or user_id in self.options.users)
