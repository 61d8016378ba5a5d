"""Resuming: where a stream begins in the log, and what is replayed to it. Nothing here changes a subscriber."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from ..claims import Claims
from ..errors import InvalidRequest
from ..position import Position
from .frames import Batch
from .history import History, ResetReason
from .subscriber import Subscriber

PART_EVENTS = 1_000
"""Most events that one part of a replay looks at, so that the event loop is soon free again."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: after `cursor`, at the earliest retained event, at the `last` events, else now."""

    cursor: str | None = None
    last: int | None = None
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
    channels = claims.channels
    if start.cursor is not None:
        found = history.locate(start.cursor, channels, head)
        if isinstance(found, ResetReason):
            return Beginning(history.floor(channels) if start.replays_on_reset else head, found)
        return Beginning(found, None)
    if start.last is not None:
        return Beginning(history.start_of_last(start.last, channels, claims.user_id, now=now), None)
    if start.is_earliest:
        return Beginning(history.floor(channels), None)
    return Beginning(head, None)


class Part(NamedTuple):
    """The next part of a replay: a batch, unless it is empty, how far it reaches, and whether it is the last part."""

    batch: Batch | None
    reached: Position
    is_last: bool


def next_part(history: History, subscriber: Subscriber, max_bytes: int, now: float) -> Part | None:
    """Return the next part of what `subscriber` has missed, or None if some of it has been evicted meanwhile."""
    if subscriber.sent < history.floor(subscriber.channels):
        return None
    frames, reached, is_last = history.replay(
        subscriber.sent, subscriber.channels, subscriber.user_id, now=now, max_bytes=max_bytes, max_visits=PART_EVENTS
    )
    return Part(Batch(frames, reached) if frames else None, reached, is_last)
