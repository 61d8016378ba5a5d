"""What a round carries: events encoded once, and the batches in which they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from ..event import Event, encode, ends_with_position
from ..position import Position
from ..publication import Disconnect
from .sinks import Chunk


class Frame:
    """One event of the log, encoded."""

    __slots__ = (
        "arrived_at",
        "channels",
        "data",
        "ends_with_position",
        "expires_at",
        "ids",
        "inner_ids",
        "is_for_everyone",
        "position",
        "users",
    )

    def __init__(self, position: Position, event: Event, arrived_at: float = 0.0) -> None:
        self.position = position
        self.arrived_at = arrived_at
        """When the log took it, by the hub's monotonic clock."""
        self.expires_at = None if event.ttl is None else arrived_at + event.ttl
        self.ids = event.ids
        self.inner_ids = event.inner_ids
        self.channels = event.channels
        self.users = event.users
        self.is_for_everyone = event.is_for_everyone
        self.data = encode(event, position)
        self.ends_with_position = ends_with_position(event)


class Ending(NamedTuple):
    """A command among the frames: end the streams it names that were open at `position`."""

    position: Position
    command: Disconnect


class Batch(Chunk):
    """The frames of one round for one audience, put together once for all who share them."""

    __slots__ = ("_rest", "count", "first", "frames", "holders", "last", "told")

    def __init__(self, frames: Sequence[Frame], last: Position) -> None:
        super().__init__(frames[0].data if len(frames) == 1 else b"".join([frame.data for frame in frames]))
        self.frames = frames
        self.count = len(frames)
        self.first = frames[0].position
        self.last = last
        """Where the round ends: a subscriber that has this batch has been given everything up to there."""
        final = frames[-1]
        self.told: Position | None = final.position if final.ends_with_position else None
        """The position that a client has as its last event id after this, None if that is a publisher's id."""
        self.holders = 0
        """Subscribers that it is held for."""
        self._rest: tuple[Position, Self | None] | None = None

    def after(self, position: Position) -> Self | None:
        """What of this batch is above `position`; None if nothing is."""
        if position < self.first:
            return self
        if self._rest is None or self._rest[0] != position:
            frames = [frame for frame in self.frames if frame.position > position]
            self._rest = position, type(self)(frames, self.last) if frames else None
        return self._rest[1]
