"""Records: the state of a run in a store, apart from its events, and the changes that a step makes to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import RunConflict
from ..publication import IdempotencyKey
from .deadlines import NEVER
from .entries import RunEvent
from .model import Run
from .store import Ticket


class Claim(NamedTuple):
    """Which connection appends, or did last: then it is not held any more."""

    ticket: Ticket
    is_held: bool


class Record:
    """A run with what only its store knows. Only the book changes it."""

    __slots__ = ("claim", "creator", "due", "finisher", "key", "run", "since")

    def __init__(self, run: Run, key: IdempotencyKey | None = None, creator: str | None = None) -> None:
        self.run = run
        self.key = key
        """The idempotency key of the call that has created this generation."""
        self.creator = creator
        """The producer that has created this generation."""
        self.finisher: str | None = None
        """The producer whose append has ended the run."""
        self.claim: Claim | None = None
        self.since = 0.0
        """When its deadline began, by the monotonic clock: at its last sign of life, when it was stopped, or ended."""
        self.due = NEVER
        """The time of its entry in the heap."""


class Change(NamedTuple):
    """What a call or a deadline has changed. What is not said here has not changed, except for `Record.since`."""

    record: Record
    first: int
    """The ordinal of the first of `events`; without events, one above the last event."""
    events: Sequence[RunEvent] = ()
    """Events that were appended."""
    is_told: bool = True
    """True if listeners are told: `vanished` if it is gone, else `advanced`. Otherwise only the claim has changed."""
    is_transition: bool = False
    """True if `on_transition` is called: the run was created, or has ended."""
    is_new_log: bool = False
    """True if the events of the generation before are dropped, or are kept under another log: see `first`.

    Dropped if `first` is 1.
    """
    is_gone: bool = False
    """True if the run is not there any more: its generation is kept as a tombstone."""
    refusal: RunConflict | None = None
    """Raised to the caller although the run has changed."""
    claimant: str | None = None
    """The connection that has claimed the run, if another one held it."""
