"""Frames and batches: events encoded once, the batches they are written in, and the hub's own frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Self

from ..event import Event, encode, encode_fields, ends_with_position
from ..fields import json_text
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
        "retained_bytes",
        "users",
    )

    def __init__(self, position: Position, event: Event, arrived_at: float = 0.0) -> None:
        self.position = position
        self.arrived_at = arrived_at
        """When the log stored it, by the hub's monotonic clock."""
        self.expires_at = None if event.ttl is None else arrived_at + event.ttl
        self.ids = event.ids
        self.inner_ids = event.inner_ids
        self.channels = event.channels
        self.users = event.users
        self.is_for_everyone = event.is_for_everyone
        self.data = encode(event, position)
        self.ends_with_position = ends_with_position(event)
        self.retained_bytes = 0
        """The memory that history counts for it: kept here, because the size of a string may change."""


class Ending(NamedTuple):
    """A command among the frames: end the streams it names that were open at `position`."""

    position: Position
    command: Disconnect


class Batch(Chunk):
    """The frames of one round for one audience, joined once for all subscribers who share them."""

    __slots__ = ("_rest", "count", "final_position", "first", "frames", "holders", "last")

    def __init__(self, frames: Sequence[Frame], last: Position) -> None:
        super().__init__(frames[0].data if len(frames) == 1 else b"".join([frame.data for frame in frames]))
        self.frames = frames
        self.count = len(frames)
        self.first = frames[0].position
        self.last = last
        """Where the round ends: a subscriber that has this batch has received everything up to there."""
        final = frames[-1]
        self.final_position: Position | None = final.position if final.ends_with_position else None
        """The position that a client has as its last event id after this batch, None if that is a publisher's id."""
        self.holders = 0
        """The number of lagging subscribers that it is held for."""
        self._rest: tuple[Position, Self | None] | None = None

    def after(self, position: Position) -> Self | None:
        """Return the part of this batch that is above `position`, or None if nothing is."""
        if position < self.first:
            return self
        if self._rest is None or self._rest[0] != position:
            frames = [frame for frame in self.frames if frame.position > position]
            self._rest = position, type(self)(frames, self.last) if frames else None
        return self._rest[1]


@lru_cache(8)
def hello(position: Position | None, retry_milliseconds: int | None) -> Chunk:
    """Return the first frame of a stream. Clients that connect while nothing is published share it."""
    return Chunk(encode_fields(comment="ok", id=_text(position), retry=retry_milliseconds))


def heartbeat(position: Position | None) -> Chunk:
    """Return a heartbeat; it carries `position` as id, if there is one."""
    return Chunk(encode_fields(comment="ping", id=_text(position)))


def control_event(type: str, data: object, position: Position, retry_milliseconds: int | None = None) -> Chunk:
    """Return an event that the hub itself sends. It carries the subscriber's position as id."""
    return Chunk(encode_fields(event=type, data=json_text(data), id=str(position), retry=retry_milliseconds))


def _text(position: Position | None) -> str | None:
    return None if position is None else str(position)
