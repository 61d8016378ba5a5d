"""History: the tail of the log that a hub keeps, encoded, to answer those who come back.

What is evicted leaves a *floor* for its channels: up to there nobody can say any more what was in them. Evictions go in
the order of the log, so everything that is kept is above every floor. Floors of channels that are long quiet merge into
one, which counts for every channel that has none of its own.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from ..fields import EVERYONE
from ..position import Position
from .frames import Frame

FRAME_BYTES = 600
"""What a kept event costs beside its bytes, about."""
PLACE_BYTES = 900
"""What it costs more for each further user, on each channel, that it is for: a queue of events of their own."""
MAX_FLOORS = 10_000


class ResetReason(StrEnum):
    """Why a client that comes back may have missed something."""

    TOO_OLD = "too-old"
    LOG_LOST = "log-lost"
    UNKNOWN_ID = "unknown-id"


class Floor(NamedTuple):
    """The newest event of a channel that was evicted, and the publisher's id that a client has after it, if any."""

    position: Position
    id: str | None


class _Channel:
    """What is kept of one channel: its events by user, or for everyone, and the publisher's ids."""

    __slots__ = ("ids", "streams")

    def __init__(self) -> None:
        self.streams: dict[str, deque[Frame]] = {}
        self.ids: dict[str, _Use] = {}

    def note_ids(self, frame: Frame) -> None:
        for id, cursor in _cursors(frame):
            use = self.ids.get(id)
            if use is None:
                self.ids[id] = _Use(cursor)
            else:
                use.times += 1

    def forget_ids(self, frame: Frame) -> None:
        for id, _ in _cursors(frame):
            use = self.ids[id]
            use.cursor = None
            use.times -= 1
            if not use.times:
                del self.ids[id]


class _Use:
    """Where a publisher's id is in a channel: where it was used first, None if that has been evicted."""

    __slots__ = ("cursor", "times")

    def __init__(self, cursor: Position | None) -> None:
        self.cursor = cursor
        self.times = 1


class History:
    """Keeps at most `max_events`, `max_bytes` and `max_seconds` of the log from `base` on, by the clock `monotonic`."""

    def __init__(
        self,
        base: Position,
        *,
        max_events: int,
        max_bytes: int,
        max_seconds: float,
        monotonic: Callable[[], float],
        max_floors: int = MAX_FLOORS,
    ) -> None:
        self.base = base
        """The floor of every channel that has none of its own."""
        self.bytes = 0
        self.visited = 0
        """Events that replays have looked at so far."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._max_floors = max_floors
        self._monotonic = monotonic
        self._frames: deque[Frame] = deque()
        self._channels: dict[str, _Channel] = {}
        self._floors: OrderedDict[str, Floor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Frame) -> None:
        """Keep `frame`, which is newer than all that is kept."""
        self._frames.append(frame)
        self.bytes += _size(frame)
        for name in frame.channels:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel()
            for user in frame.users:
                stream = channel.streams.get(user)
                if stream is None:
                    stream = channel.streams[user] = deque()
                stream.append(frame)
            if frame.ids or frame.inner_ids:
                channel.note_ids(frame)
        while len(self._frames) > self._max_events or self.bytes > self._max_bytes:
            self._evict(frame.arrived_at)

    def expire(self) -> None:
        """Drop what is too old by now."""
        now = self._monotonic()
        while self._frames and self._frames[0].arrived_at < now - self._max_seconds:
            self._evict(now)

    def _evict(self, now: float) -> None:
        frame = self._frames.popleft()
        self.bytes -= _size(frame)
        has_expired = frame.expires_at is not None and frame.expires_at <= now
        for name in frame.channels:
            id = None if frame.ends_with_position else self._last_own_id(name, frame)
            self._evict_from(name, frame)
            if not has_expired:
                self._raise_floor(name, Floor(frame.position, id))

    def _last_own_id(self, name: str, frame: Frame) -> str | None:
        """The publisher's id that says of a client that it has had all of `frame`, and everything before it."""
        if not frame.ids or frame.ids[-1] in frame.inner_ids:
            return None
        use = self._channels[name].ids[frame.ids[-1]]
        # Without a cursor: an older use of it has been evicted, and that is what it means.
        return frame.ids[-1] if use.cursor is not None else None

    def _evict_from(self, name: str, frame: Frame) -> None:
        channel = self._channels[name]
        for user in frame.users:
            stream = channel.streams[user]
            stream.popleft()
            if not stream:
                del channel.streams[user]
        if frame.ids or frame.inner_ids:
            channel.forget_ids(frame)
        if not channel.streams:
            del self._channels[name]

    def _raise_floor(self, name: str, floor: Floor) -> None:
        self._floors[name] = floor
        self._floors.move_to_end(name)
        if len(self._floors) > self._max_floors:
            _, forgotten = self._floors.popitem(last=False)
            self.base = max(self.base, forgotten.position)

    def floor(self, channels: Iterable[str]) -> Position:
        """Up to where it can't be said any more what was in `channels`."""
        floors = self._floors
        return max(floors[name].position if name in floors else self.base for name in channels)

    def locate(self, cursor: str, channels: Sequence[str], head: Position) -> Position | ResetReason:
        """Up to where a client with this `cursor` has had everything in `channels`, or why that can't be said.

        `head` is where the hub stands in the log.
        """
        position = Position.parse(cursor)
        if position is None:
            position = self._position_of_id(cursor, channels)
            if position is None:
                return ResetReason.UNKNOWN_ID
        elif position.log != head.log or position > head:
            return ResetReason.LOG_LOST
        return position if position >= self.floor(channels) else ResetReason.TOO_OLD

    def _position_of_id(self, id: str, channels: Iterable[str]) -> Position | None:
        """What a publisher's id means: where it was used twice, the older use, and nothing if that has been evicted."""
        found: list[Position] = []
        for name in channels:
            floor = self._floors.get(name)
            use = self._channels[name].ids.get(id) if name in self._channels else None
            if floor is not None and floor.id == id:
                found.append(floor.position)
            elif use is not None:
                if use.cursor is None:
                    return None
                found.append(use.cursor)
        return min(found) if found else None

    def replay(
        self, after: Position, channels: Sequence[str], user: str, *, max_bytes: int | None = None
    ) -> tuple[list[Frame], bool]:
        """What is kept for `user` on `channels` above `after`, in log order, each once; and whether that is all.

        It is at most `max_bytes`, but one event at least, if there is any. Looks at nothing else.
        """
        now = self._monotonic()
        found: list[Frame] = []
        size = 0
        for frame in heapq.merge(*self._streams(after, channels, user), key=_position):
            self.visited += 1
            if (found and found[-1] is frame) or (frame.expires_at is not None and frame.expires_at <= now):
                continue
            size += len(frame.data)
            if found and max_bytes is not None and size > max_bytes:
                return found, False
            found.append(frame)
        return found, True

    def _streams(self, after: Position, channels: Sequence[str], user: str) -> Iterator[Iterator[Frame]]:
        for channel in filter(None, map(self._channels.get, channels)):
            for stream in filter(None, map(channel.streams.get, {EVERYONE, user})):
                yield islice(stream, bisect_right(stream, after, key=_position), None)

    def start_of_last(self, count: int, channels: Sequence[str], user: str) -> Position:
        """The position from which on there are the last `count` events for `user` on `channels`."""
        floor = self.floor(channels)
        frames = self.replay(floor, channels, user)[0][-count:]
        return frames[0].position.before if frames else floor


def _size(frame: Frame) -> int:
    size = len(frame.data) + FRAME_BYTES
    places = len(frame.channels) * len(frame.users)
    if places > 1:
        size += places * PLACE_BYTES + sum(map(len, frame.channels)) + sum(map(len, frame.users))
    return size


def _cursors(frame: Frame) -> Iterator[tuple[str, Position]]:
    """Each of its publisher's ids, and what it means as a cursor; an inner one means that none of it was had."""
    for id in frame.inner_ids:
        yield id, frame.position.before
    for id in frame.ids:
        yield id, frame.position


def _position(frame: Frame) -> Position:
    return frame.position
