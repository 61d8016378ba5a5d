"""Frames and batches: events encoded once, the batches they are written in, and the hub's own frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Self

from ..event import Event, encode, encode_fields, ends_with_position
from ..fields import json_text
from ..position import Position
from ..publication import Disconnect, Revoke
from .sinks import Chunk

_LINE_BYTES = 7
"""A line break of the data becomes `\\ndata: `, which is the most that one byte can become."""
_FIELDS_BYTES = 2_500
"""Room for all else: a type and an id have up to 255 characters, each of up to four bytes."""


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
        self.ids: tuple[str, ...] = ()
        self.inner_ids: tuple[str, ...] = ()
        self.ends_with_position = True
        if event.id is not None or event.parsed is not None:
            self.ids = event.ids
            self.inner_ids = event.inner_ids
            self.ends_with_position = ends_with_position(event)
        self.channels = event.channels
        self.users = event.users
        self.is_for_everyone = event.is_for_everyone
        self.data = encode(event, position)
        self.retained_bytes = 0
        """The memory that history counts for it: kept here, because the size of a string may change."""


def most_bytes(event: Event) -> int:
    """Return a size that the frame of `event` does not exceed, without encoding it."""
    return event.size * _LINE_BYTES + _FIELDS_BYTES


class Ending(NamedTuple):
    """A command among the frames: end the streams it names that were open at `position`."""

    position: Position
    command: Disconnect | Revoke


class Batch(Chunk):
    """The frames of one round for one audience, joined once for all subscribers who share them."""

    __slots__ = ("_rest", "count", "final_position", "first", "frames", "holders", "last", "tally")

    def __init__(self, frames: Sequence[Frame], last: Position) -> None:
        super().__init__(frames[0].data if len(frames) == 1 else b"".join([frame.data for frame in frames]))
        self.frames = frames
        self.count = len(frames)
        self.tally = complex(self.count, len(self.data))
        """Its events and bytes: see `Subscriber.written`."""
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


HEARTBEAT = Chunk(encode_fields(comment="ping").removesuffix(b"\n"))
"""A line on its own: after a comment and a blank line some clients deliver an event with empty data."""


@lru_cache(8)
def hello(position: Position | None, retry_milliseconds: int | None) -> Chunk:
    """Return the first frame of a stream. Clients that connect while nothing is published share it."""
    return control_event("stream-hello", {}, position, retry_milliseconds)


def control_event(
    type: str, data: object, position: Position | str | None, retry_milliseconds: int | None = None
) -> Chunk:
    """Return an event that the hub itself sends, with the subscriber's position, or its cursor, as id.

    All that the hub sends on its own account are events with a type and data: some clients remember no ids of frames
    without data, ignore their `retry`, or deliver them as events with empty data.
    """
    id = None if position is None else str(position)
    return Chunk(encode_fields(event=type, data=json_text(data), id=id, retry=retry_milliseconds))


def reset(reason: str, position: Position, *, for_datastar: bool) -> Chunk:
    """Return the event that tells a client that it may have missed events.

    For a page with Datastar the same is sent as a patch of its signals before that, which it applies by itself. Both
    are written at once, and only the second one has an id: a client that has one of them cannot resume without both.
    """
    event = control_event("stream-reset", {"reason": reason}, position)
    if not for_datastar:
        return event
    signals = json_text({"stream": {"reset": reason}})
    return Chunk(encode_fields(event="datastar-patch-signals", data=f"signals {signals}") + event.data)
