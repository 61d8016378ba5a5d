"""Resuming: where a stream begins in the log, and what is replayed to it. Nothing here changes a subscriber."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from ..claims import Claims
from ..errors import InvalidRequest
from ..grant import prefixes_of
from ..position import Position
from .frames import Batch
from .history import History, ResetReason, must_walk
from .subscriber import Subscriber

PART_EVENTS = 1_000
"""Most events that one part of a replay looks at, so that the event loop is soon free again."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: after `cursor`, at the earliest retained event, at the `last` events, else now."""

    cursor: str | None = None
    last: int | None = None
    last_after: Position | None = None
    """The position after which those come, if they have been searched for already."""
    is_earliest: bool = False
    replays_on_reset: bool = False

    @classmethod
    def parse(cls, cursor: str | None, since: str | None = None, on_reset: str | None = None) -> Self:
        """Return where a client wants its stream to begin.

        `cursor` is the last event id that the client says it has seen. It wins over `since`, which is `earliest`,
        `last:N` or a position. With `on_reset` "replay", a client that may have missed something is first sent what is
        retained. Raises InvalidRequest for anything else.
        """
        for name, value in (("cursor", cursor), ("since", since)):
            if not isinstance(value, str | None):
                raise InvalidRequest(f"{name} must be a string, not {type(value).__name__}")
        if on_reset not in (None, "replay"):
            raise InvalidRequest(f"unknown on_reset {on_reset[:40]!r}: use replay, or leave it out")
        replays = on_reset is not None
        if since is None:
            return cls(cursor or None, replays_on_reset=replays)
        count = since.removeprefix("last:")
        is_count = count != since and count.isascii() and count.isdigit() and 0 < len(count) < 10 and int(count) > 0
        if since != "earliest" and not is_count and Position.parse(since) is None:
            raise InvalidRequest(f"unknown since {since[:40]!r}: use earliest, last:10, or a position")
        if cursor:
            return cls(cursor, replays_on_reset=replays)
        if is_count:
            return cls(last=int(count), replays_on_reset=replays)
        if since == "earliest":
            return cls(is_earliest=True, replays_on_reset=replays)
        return cls(since, replays_on_reset=replays)


NOW = Start()
"""A stream that begins with the next event."""


class Beginning(NamedTuple):
    """The position after which a stream begins, and why the client may have missed something before it, if so."""

    sent: Position
    reset: ResetReason | None


def beginning(history: History, head: Position, claims: Claims, start: Start, now: float) -> Beginning:
    """Return where the stream of a client with these `claims` begins. `head` is the end of the log."""
    channels, prefixes = claims.channels, prefixes_of(claims.patterns)
    if start.cursor is not None:
        found = history.locate(start.cursor, channels, head, prefixes)
        if isinstance(found, ResetReason):
            return Beginning(history.earliest(channels, prefixes) if start.replays_on_reset else head, found)
        return Beginning(found, None)
    if start.last is not None:
        if not must_walk(channels, prefixes):
            return Beginning(history.start_of_last(start.last, channels, claims.user_id, now=now), None)
        after = start.last_after
        if after is None or after.log != head.log:
            after = _start_of_last(history, head, claims, start.last, now)
        return Beginning(max(after, history.earliest(channels, prefixes)), None)
    if start.is_earliest:
        return Beginning(history.earliest(channels, prefixes), None)
    return Beginning(head, None)


class Prospect(NamedTuple):
    """What a stream would begin with: how many events are replayed, and why others may be missing, if so."""

    events: int
    reset: ResetReason | None


class LastEvents:
    """A search for the last `count` events that `claims` grant, from `head` back, part by part."""

    def __init__(self, history: History, head: Position, claims: Claims, count: int) -> None:
        self._history = history
        self._claims = claims
        self._prefixes = prefixes_of(claims.patterns)
        self._missing = count
        self.after = head
        """The position after which come those that have been found."""

    def advance(self, now: float) -> bool:
        """Search the next part of history; return True at the end of the search."""
        claims = self._claims
        self.after, self._missing = self._history.look_back(
            self.after, self._missing, claims.channels, claims.user_id, self._prefixes, now=now, max_visits=PART_EVENTS
        )
        return not self._missing


def _start_of_last(history: History, head: Position, claims: Claims, count: int, now: float) -> Position:
    search = LastEvents(history, head, claims, count)
    while not search.advance(now):
        pass
    return search.after


class Part(NamedTuple):
    """The next part of a replay: a batch, unless it is empty, how far it reaches, and whether it is the last part."""

    batch: Batch | None
    reached: Position
    is_last: bool


def next_part(history: History, subscriber: Subscriber, max_bytes: int, now: float) -> Part | None:
    """Return the next part of what `subscriber` has missed, or None if some of it has been evicted meanwhile."""
    sent, channels, prefixes = subscriber.sent, subscriber.channels, subscriber.prefixes
    if history.has_evicted(sent, channels, prefixes):
        return None
    frames, reached, is_last = history.replay(
        sent, channels, subscriber.user_id, prefixes, now=now, max_bytes=max_bytes, max_visits=PART_EVENTS
    )
    return Part(Batch(frames, reached) if frames else None, reached, is_last)
