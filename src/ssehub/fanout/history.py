"""History: the tail of the log that a hub keeps in memory, encoded, for clients that reconnect.

An evicted event leaves a *floor* for its channels: the position up to which it is no longer known what was in them.
Events are evicted in log order, so everything retained is above every floor. The floors of channels that have been
quiet for long are merged into one, `base`, which applies to every channel that has no floor of its own.
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from time import perf_counter
from typing import NamedTuple

from ..fields import EVERYONE
from ..position import Position
from ..settings import Retention
from .frames import Frame

# The memory that things take besides the bytes of frames and strings, as tracemalloc shows it.
FRAME_BYTES = 450
CHANNEL_BYTES = 300
QUEUE_BYTES = 850
"""For each user with events on a channel."""
ID_BYTES = 90
"""For each of the publishers' ids in a channel."""
_POINTER_BYTES = 8
MAX_FLOORS = 10_000
MIN_BYTES = 2**20
"""A history that has been shrunk still retains so much of what comes next, for clients that reconnect soon."""
SLICE_SECONDS = 0.005
"""How long events are evicted at a time. Evicting one takes 2 µs, or a step for each of its channels, users and ids."""


class ResetReason(StrEnum):
    """Why a client that reconnects may have missed something."""

    TOO_OLD = "too-old"
    LOG_LOST = "log-lost"
    UNKNOWN_ID = "unknown-id"


class Floor(NamedTuple):
    """The newest evicted event of a channel, and the publisher's id that a client has after it, if any."""

    position: Position
    id: str | None


class Stretch(NamedTuple):
    """Retained events, the position up to which there are no others, and whether that is the end of history."""

    frames: list[Frame]
    reached: Position
    is_last: bool


class _Channel:
    """The retained events of one channel by user (`*`: for everyone), and the publishers' ids among them."""

    __slots__ = ("ids", "streams")

    def __init__(self) -> None:
        self.streams: dict[str, deque[Frame]] = {}
        self.ids: dict[str, _Use] = {}

    def note_ids(self, frame: Frame) -> int:
        """Return the number of ids that are new to this channel."""
        known = len(self.ids)
        for id, cursor in _cursors(frame):
            use = self.ids.get(id)
            if use is None:
                self.ids[id] = _Use(cursor)
            else:
                use.times += 1
        return len(self.ids) - known

    def forget_ids(self, frame: Frame) -> int:
        """Return the number of ids that this channel does not have any more."""
        known = len(self.ids)
        for id, _ in _cursors(frame):
            use = self.ids[id]
            use.cursor = None
            use.times -= 1
            if not use.times:
                del self.ids[id]
        return known - len(self.ids)


class _Use:
    """The position that a publisher's id stands for in a channel: its first use, or None if that was evicted."""

    __slots__ = ("cursor", "times")

    def __init__(self, cursor: Position | None) -> None:
        self.cursor = cursor
        self.times = 1


class History:
    """Retains the log from `base` on within the bounds of `retention`. Times are seconds of the monotonic clock."""

    def __init__(self, base: Position, retention: Retention, *, max_floors: int = MAX_FLOORS) -> None:
        self.visited = 0
        """The number of events that replays have looked at so far."""
        self._retention = retention
        self._max_bytes = retention.history_bytes
        self._max_floors = max_floors
        self.start_over(base)

    def start_over(self, base: Position) -> None:
        """Retain the log from `base` on, and nothing of what was before, still within a reduced size."""
        self.base = base
        """The floor of every channel that has none of its own."""
        self.bytes = 0
        """The memory that is in use, nearly: shared strings count for each event, floors and spare capacity do not."""
        self._frames: deque[Frame] = deque()
        self._channels: dict[str, _Channel] = {}
        self._floors: OrderedDict[str, Floor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Frame) -> None:
        """Retain `frame`, which is newer than everything retained."""
        self._frames.append(frame)
        frame.retained_bytes = _size(frame)
        self.bytes += frame.retained_bytes
        for name in frame.channels:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel()
                self.bytes += CHANNEL_BYTES
            for user in frame.users:
                stream = channel.streams.get(user)
                if stream is None:
                    stream = channel.streams[user] = deque()
                    self.bytes += QUEUE_BYTES
                stream.append(frame)
            if frame.ids or frame.inner_ids:
                self.bytes += channel.note_ids(frame) * ID_BYTES
        while len(self._frames) > self._retention.history_events or self.bytes > self._max_bytes:
            self._evict(frame.arrived_at)

    def shrink(self, size: int, now: float) -> int:
        """Evict at least `size` bytes, as far as there are any, but for at most 5 ms.

        History keeps to what is left, but not to less than `MIN_BYTES`, until `regrow`. Returns how many bytes were
        evicted.
        """
        before, until = self.bytes, perf_counter() + SLICE_SECONDS
        while self._frames and before - self.bytes < size and perf_counter() < until:
            self._evict(now)
        self._max_bytes = min(self._max_bytes, max(self.bytes, MIN_BYTES))
        return before - self.bytes

    def regrow(self) -> None:
        """Retain as much as the settings allow again."""
        self._max_bytes = self._retention.history_bytes

    def expire(self, now: float, limit: int | None = None) -> bool:
        """Evict what is too old, at most `limit` events and for at most 5 ms; return True if there is more."""
        evicted, until = 0, perf_counter() + SLICE_SECONDS
        while self._frames and self._frames[0].arrived_at < now - self._retention.history_seconds:
            if evicted == limit or perf_counter() > until:
                return True
            self._evict(now)
            evicted += 1
        return False

    def _evict(self, now: float) -> None:
        frame = self._frames.popleft()
        self.bytes -= frame.retained_bytes
        has_expired = frame.expires_at is not None and frame.expires_at <= now
        for name in frame.channels:
            id = None if frame.ends_with_position else self._last_own_id(name, frame)
            self._evict_from(name, frame)
            if not has_expired:
                self._raise_floor(name, Floor(frame.position, id))

    def _last_own_id(self, name: str, frame: Frame) -> str | None:
        """Return the publisher's id that, as a cursor, stands for everything up to `frame`, or None."""
        if not frame.ids or frame.ids[-1] in frame.inner_ids:
            return None
        use = self._channels[name].ids[frame.ids[-1]]
        # No cursor: an older use of the id, which it stands for, was evicted before.
        return frame.ids[-1] if use.cursor is not None else None

    def _evict_from(self, name: str, frame: Frame) -> None:
        channel = self._channels[name]
        for user in frame.users:
            stream = channel.streams[user]
            stream.popleft()
            if not stream:
                del channel.streams[user]
                self.bytes -= QUEUE_BYTES
        if frame.ids or frame.inner_ids:
            self.bytes -= channel.forget_ids(frame) * ID_BYTES
        if not channel.streams:
            del self._channels[name]
            self.bytes -= CHANNEL_BYTES

    def _raise_floor(self, name: str, floor: Floor) -> None:
        self._floors[name] = floor
        self._floors.move_to_end(name)
        if len(self._floors) > self._max_floors:
            _, forgotten = self._floors.popitem(last=False)
            self.base = max(self.base, forgotten.position)

    def floor(self, channels: Iterable[str]) -> Position:
        """Return the position up to which it is no longer known what was in `channels`."""
        floors = self._floors
        return max(floors[name].position if name in floors else self.base for name in channels)

    def locate(self, cursor: str, channels: Sequence[str], head: Position) -> Position | ResetReason:
        """Return the position up to which a client with this `cursor` has everything in `channels`.

        If that is not known, return why. `head` is the position up to which the hub has read the log.
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
        """Return the position of a publisher's id: of its oldest use, or None if that was evicted."""
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
        self,
        after: Position,
        channels: Sequence[str],
        user: str,
        *,
        now: float,
        max_bytes: int | None = None,
        max_visits: int | None = None,
    ) -> Stretch:
        """Return the retained events for `user` on `channels` above `after`, in log order, each once.

        They have at most `max_bytes`, or are a single event, and at most `max_visits` are looked at. Events for others
        are not visited.
        """
        found: list[Frame] = []
        last: Frame | None = None
        reached, size = after, 0
        merged = heapq.merge(*self._streams(after, channels, user), key=_position)
        for visits, frame in enumerate(merged):
            if frame is last:  # it is on several channels
                continue
            if max_visits is not None and visits >= max_visits:
                return Stretch(found, reached, is_last=False)
            self.visited += 1
            if frame.expires_at is None or frame.expires_at > now:
                size += len(frame.data)
                if found and max_bytes is not None and size > max_bytes:
                    return Stretch(found, reached, is_last=False)
                found.append(frame)
            last, reached = frame, frame.position
        return Stretch(found, reached, is_last=True)

    def _streams(self, after: Position, channels: Sequence[str], user: str) -> Iterator[Iterator[Frame]]:
        for channel in filter(None, map(self._channels.get, channels)):
            for stream in filter(None, map(channel.streams.get, {EVERYONE, user})):
                yield islice(stream, bisect_right(stream, after, key=_position), None)

    def start_of_last(self, count: int, channels: Sequence[str], user: str, *, now: float) -> Position:
        """Return the position after which come the last `count` events for `user` on `channels`."""
        streams = [
            stream
            for channel in filter(None, map(self._channels.get, channels))
            for stream in filter(None, map(channel.streams.get, {EVERYONE, user}))
        ]
        if sum(map(len, streams)) > count:
            # Sorting runs that are in order takes a fraction of the time that merging them does.
            newest = [frame for stream in streams for frame in reversed(stream)]
            if len(streams) > 1:
                newest.sort(key=_position, reverse=True)
            last = None
            for frame in newest:
                if frame is last or (frame.expires_at is not None and frame.expires_at <= now):
                    continue
                last = frame
                count -= 1
                if not count:
                    return frame.position.before
        return min([stream[0].position for stream in streams]).before if streams else self.floor(channels)


def _size(frame: Frame) -> int:
    """Return the memory of a frame itself, with its names and ids. A single name is shared by all of its events."""
    size = FRAME_BYTES + len(frame.data)
    channels, users = frame.channels, frame.users
    if len(channels) > 1 or len(users) > 1:
        size += len(channels) * len(users) * _POINTER_BYTES + _strings_size(channels) + _strings_size(users)
    if frame.ids or frame.inner_ids:
        size += _strings_size(frame.ids) + _strings_size(frame.inner_ids)
    return size


def _strings_size(strings: Sequence[str]) -> int:
    return sum(map(sys.getsizeof, strings)) + len(strings) * _POINTER_BYTES


def _cursors(frame: Frame) -> Iterator[tuple[str, Position]]:
    """Yield each publisher's id in `frame` with the position it stands for as a cursor.

    A client with an inner id has received only a part of the event, so that id stands for the position before it.
    """
    if frame.inner_ids:
        before = frame.position.before
        for id in frame.inner_ids:
            yield id, before
    for id in frame.ids:
        yield id, frame.position


def _position(frame: Frame) -> Position:
    return frame.position
