"""One append request that stays open: decides what is sent in it, and when it ends. The writer sends and waits."""

from __future__ import annotations

from typing import NamedTuple

from .publisher_kept import KeptEvents

MAX_REQUEST_BYTES = 262_144
"""How much it carries."""
SIGN_OF_LIFE = b"\n"


class Rhythm(NamedTuple):
    """The times after which a writer acts without being called, in seconds."""

    renew_seconds: float = 5.0
    """How long a request stays open once it has carried something."""
    life_seconds: float = 15.0
    """After how long without an event a sign of life is sent."""
    check_seconds: float = 2.0
    """How long after its first event it is checked that the hub has it."""
    short_life_seconds: float = 5.0
    """As `life_seconds`, for short requests: only their answers tell that the run is to stop."""

    def within(self, idle_seconds: float) -> Rhythm:
        """Return it for a run that fails after so long without a sign of life."""
        return self._replace(
            renew_seconds=min(self.renew_seconds, idle_seconds / 4),
            life_seconds=min(self.life_seconds, idle_seconds / 4),
            short_life_seconds=min(self.short_life_seconds, idle_seconds / 4),
        )


class OpenRequest:
    """It begins behind the events of `kept` that are stored. Times are those of the event loop."""

    def __init__(self, kept: KeptEvents, rhythm: Rhythm, now: float) -> None:
        self._kept = kept
        self._rhythm = rhythm
        self._sent = kept.stored
        self._carried_bytes = 0
        self._spoken_at = now
        self._renew_at: float | None = None
        self._event_at: float | None = None
        """When its first event was sent."""
        self.is_checked = False
        """True once it has been checked that the hub has its first event."""

    @property
    def has_all(self) -> bool:
        """True if no event waits to be sent."""
        return self._sent == self._kept.total

    @property
    def check_at(self) -> float:
        """When it should be checked that the hub has its first event."""
        if self._event_at is None or self.is_checked:
            return float("inf")
        return self._event_at + self._rhythm.check_seconds

    @property
    def wake_at(self) -> float:
        """When there is something to do, even if there are no more events."""
        return self._spoken_at + self._rhythm.life_seconds if self._renew_at is None else self._renew_at

    def next_part(self, now: float) -> bytes:
        """Return what is to be sent now, which is regarded as sent: events, a sign of life, or nothing."""
        lines = self._kept.lines(self._sent, MAX_REQUEST_BYTES - self._carried_bytes)
        if lines:
            self._sent += len(lines)
            self._event_at = now if self._event_at is None else self._event_at
        elif now >= self._spoken_at + self._rhythm.life_seconds:
            lines = [SIGN_OF_LIFE]
        if not lines:
            return b""
        part = b"".join(lines)
        self._carried_bytes += len(part)
        self._spoken_at = now
        if self._renew_at is None:
            self._renew_at = now + self._rhythm.renew_seconds
        return part

    def is_over(self, now: float) -> bool:
        """True if it is time to end it and to hear what is stored."""
        is_due = self._renew_at is not None and now >= self._renew_at
        return is_due or self._carried_bytes >= MAX_REQUEST_BYTES or not self.has_all
