"""History: the tail of the log that a hub keeps in memory, encoded, for clients that reconnect.

An evicted event leaves a *floor* for its channels: the position up to which it is no longer known what was in them.

There are two ways to find what a stream has missed. *Merging* takes the retained events of its channels and user, which
are kept apart, and visits no others. A stream with patterns cannot be served that way, because finding channels by
prefix would make publishing to a new channel more expensive. *Walking* looks at all events after the cursor, which
takes 0.3 µs for each. It is also used for streams with exact channels where it takes less time than merging, which
takes 7 µs for each channel and 4 µs for each event.
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from time import perf_counter
from typing import NamedTuple, cast

from ..fields import EVERYONE
from ..position import Position
from ..settings import Retention
from .floors import MAX_FLOORS, Floors
from .frames import Frame
from .ids import Ids
from .slices import SLICE_SECONDS

# The memory that things take besides the bytes of frames and strings, as tracemalloc shows it.
FRAME_BYTES = 450
CHANNEL_BYTES = 300
QUEUE_BYTES = 850
"""For each user with events on a channel."""
_POINTER_BYTES = 8
MIN_BYTES = 2**20
"""A history that has been shrunk still retains so much of what comes next, for clients that reconnect soon."""
MIN_EVICTED = 1_000
"""For fewer evicted events than these it is not worth moving the others."""
WALKED_PER_CHANNEL = 25
"""How many events can be looked at in the time that it takes to merge another channel."""
MAX_MERGED = 100
"""Merging more channels than these would take too long for one pass of the event loop, so all events are looked at."""
MAX_CHANNELS_OF_ID = 10_000
"""Most channels with one publisher's id among which those of a pattern are looked for: it takes 60 ns each."""


class ResetReason(StrEnum):
    """Why a client that reconnects may have missed something."""

    TOO_OLD = "too-old"
    LOG_LOST = "log-lost"
    UNKNOWN_ID = "unknown-id"
    RESTARTED = "restarted"
    """The run that is watched has begun anew."""


class Stretch(NamedTuple):
    """Retained events, the position up to which there are no others, and whether that is the end of history."""

    frames: list[Frame]
    reached: Position
    is_last: bool


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
        self.bytes = 0
        """The memory that is in use, nearly: shared strings count for each event, floors and spare capacity do not."""
        self._frames: list[Frame | None] = []
        """In log order. Those before `_oldest` have been evicted. Unlike in a deque, any one is reached at once."""
        self._oldest = 0
        self._channels: dict[str, dict[str, deque[Frame]]] = {}
        """The retained events by channel, then by user (`*`: for everyone)."""
        self._ids = Ids()
        self._floors = Floors(base, self._max_floors)

    def __len__(self) -> int:
        return len(self._frames) - self._oldest

    def add(self, frame: Frame) -> None:
        """Retain `frame`, which is newer than everything retained."""
        self._frames.append(frame)
        frame.retained_bytes = _size(frame)
        self.bytes += frame.retained_bytes
        for name in frame.channels:
            streams = self._channels.get(name)
            if streams is None:
                streams = self._channels[name] = {}
                self.bytes += CHANNEL_BYTES
            for user in frame.users:
                stream = streams.get(user)
                if stream is None:
                    stream = streams[user] = deque()
                    self.bytes += QUEUE_BYTES
                stream.append(frame)
        if frame.ids or frame.inner_ids:
            self.bytes += self._ids.add(frame)
        most = self._retention.history_events
        while len(self._frames) - self._oldest > most or self.bytes > self._max_bytes:
            self._evict(frame.arrived_at)

    def shrink(self, size: int, now: float) -> int:
        """Evict at least `size` bytes, as far as there are any, but for at most 5 ms.

        History keeps to what is left, but not to less than `MIN_BYTES`, until `regrow`. Returns how many bytes were
        evicted.
        """
        before, until = self.bytes, perf_counter() + SLICE_SECONDS
        while len(self) and before - self.bytes < size:
            self._evict(now)
            if perf_counter() > until:
                break
        self._max_bytes = min(self._max_bytes, max(self.bytes, MIN_BYTES))
        return before - self.bytes

    def regrow(self) -> None:
        """Retain as much as the settings allow again."""
        self._max_bytes = self._retention.history_bytes

    def expire(self, now: float, limit: int | None = None) -> bool:
        """Evict what is too old, at most `limit` events and for at most 5 ms; return True if there is more.

        Evicting one takes 2 µs, or a step for each of its channels, users and ids.
        """
        evicted, until = 0, perf_counter() + SLICE_SECONDS
        while (frame := self._oldest_frame()) and frame.arrived_at < now - self._retention.history_seconds:
            if evicted == limit or (evicted and perf_counter() > until):
                return True
            self._evict(now)
            evicted += 1
        return False

    def _oldest_frame(self) -> Frame | None:
        return self._frames[self._oldest] if self._oldest < len(self._frames) else None

    def _evict(self, now: float) -> None:
        frame = self._frames[self._oldest]
        assert frame is not None
        self._frames[self._oldest] = None
        self._oldest += 1
        if self._oldest >= MIN_EVICTED and self._oldest > len(self._frames) // 8:
            del self._frames[: self._oldest]
            self._oldest = 0
        self.bytes -= frame.retained_bytes
        has_expired = frame.expires_at is not None and frame.expires_at <= now
        for name in frame.channels:
            self._evict_from(name, frame)
            if not has_expired:
                id = None if frame.ends_with_position else self._last_own_id(name, frame)
                self._floors.set(name, frame.position, id)
        if frame.ids or frame.inner_ids:
            self.bytes -= self._ids.remove(frame)

    def _last_own_id(self, name: str, frame: Frame) -> str | None:
        """Return the publisher's id that, as a cursor, stands for everything up to `frame`, or None."""
        if not frame.ids or frame.ids[-1] in frame.inner_ids:
            return None
        return frame.ids[-1] if self._ids.is_known(frame.ids[-1], name) else None

    def _evict_from(self, name: str, frame: Frame) -> None:
        streams = self._channels[name]
        for user in frame.users:
            stream = streams[user]
            stream.popleft()
            if not stream:
                del streams[user]
                self.bytes -= QUEUE_BYTES
        if not streams:
            del self._channels[name]
            self.bytes -= CHANNEL_BYTES

    # Where a stream begins. `channels` are exact names, `prefixes` those of patterns; there is at least one of either.

    def earliest(self, channels: Collection[str], prefixes: tuple[str, ...] = ()) -> Position:
        """Return the position after which a client is sent everything that is retained for it."""
        if not prefixes:
            return self._floors.of(channels)
        oldest = self._oldest_frame()
        return self._floors.highest if oldest is None else oldest.position.before

    def has_evicted(self, after: Position, channels: Collection[str], prefixes: tuple[str, ...] = ()) -> bool:
        """True if a client that has everything up to `after` may have missed something that was evicted."""
        return self._floors.is_above(after, channels, prefixes)

    def locate(
        self, cursor: str, channels: Collection[str], head: Position, prefixes: tuple[str, ...] = ()
    ) -> Position | ResetReason:
        """Return the position up to which a client with this `cursor` has everything.

        If that is not known, return why. `head` is the position up to which the hub has read the log.
        """
        position = Position.parse(cursor)
        if position is None:
            position = self._position_of_id(cursor, channels, prefixes)
            if position is None:
                return ResetReason.UNKNOWN_ID
        elif position.log != head.log or position > head:
            return ResetReason.LOG_LOST
        return ResetReason.TOO_OLD if self.has_evicted(position, channels, prefixes) else position

    def _position_of_id(self, id: str, channels: Iterable[str], prefixes: tuple[str, ...]) -> Position | None:
        """Return the position of a publisher's id: of its oldest use, or None if that was evicted."""
        floors, uses = self._floors.with_id(id), self._ids.uses(id)
        found: list[Position] = []
        if prefixes:
            first = next((name for name in floors if name.startswith(prefixes)), None)
            names = {*channels} if first is None else {*channels, first}
            for looked_at, (name, use) in enumerate(uses.items()):
                if looked_at == MAX_CHANNELS_OF_ID:
                    return None
                if name.startswith(prefixes):
                    names.add(name)
                    if use.cursor is not None:
                        break  # the other uses are newer
            channels = names
        for name in channels:
            if name in floors:
                found.append(floors[name])
            elif name in uses:
                cursor = uses[name].cursor
                if cursor is None:
                    return None
                found.append(cursor)
        return min(found) if found else None

    # What is replayed

    def replay(
        self,
        after: Position,
        channels: Collection[str],
        user: str,
        prefixes: tuple[str, ...] = (),
        *,
        now: float,
        max_bytes: int | None = None,
        max_visits: int | None = None,
    ) -> Stretch:
        """Return the retained events for `user` above `after`, in log order, each once.

        They are on one of `channels`, or on a channel with one of `prefixes`. They have at most `max_bytes`, or are a
        single event, and at most `max_visits` are looked at.
        """
        if must_walk(channels, prefixes):
            return self._walk(self._index_after(after), after, channels, user, prefixes, now, max_bytes, max_visits)
        if len(channels) > 1:
            first = self._index_after(after)
            if len(self._frames) - first <= WALKED_PER_CHANNEL * len(channels):
                return self._walk(first, after, channels, user, prefixes, now, max_bytes, max_visits)
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

    def _walk(
        self,
        first: int,
        after: Position,
        channels: Collection[str],
        user: str,
        prefixes: tuple[str, ...],
        now: float,
        max_bytes: int | None,
        max_visits: int | None,
    ) -> Stretch:
        missed = self._retained[first : None if max_visits is None else first + max_visits]
        self.visited += len(missed)
        found: list[Frame] = []
        size = 0
        for frame in _wanted(missed, channels, user, prefixes, now):
            size += len(frame.data)
            if found and max_bytes is not None and size > max_bytes:
                return Stretch(found, found[-1].position, is_last=False)
            found.append(frame)
        reached = missed[-1].position if missed else after
        return Stretch(found, reached, is_last=first + len(missed) == len(self._frames))

    def _index_after(self, position: Position) -> int:
        """Return the index of the first retained event above `position`."""
        return bisect_right(self._retained, position, self._oldest, key=_position)

    @property
    def _retained(self) -> list[Frame]:
        """What is to be read from `_oldest` on."""
        return cast(list[Frame], self._frames)  # only those before `_oldest` are None

    def _streams(self, after: Position, channels: Collection[str], user: str) -> Iterator[Iterator[Frame]]:
        for of_channel in filter(None, map(self._channels.get, channels)):
            for stream in filter(None, map(of_channel.get, {EVERYONE, user})):
                yield islice(stream, bisect_right(stream, after, key=_position), None)

    def start_of_last(self, count: int, channels: Collection[str], user: str, *, now: float) -> Position:
        """Return the position after which come the last `count` events for `user` on `channels`."""
        streams = [
            stream
            for of_channel in filter(None, map(self._channels.get, channels))
            for stream in filter(None, map(of_channel.get, {EVERYONE, user}))
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
        return min([stream[0].position for stream in streams]).before if streams else self._floors.of(channels)

    def look_back(
        self,
        before: Position,
        count: int,
        channels: Collection[str],
        user: str,
        prefixes: tuple[str, ...],
        *,
        now: float,
        max_visits: int,
    ) -> tuple[Position, int]:
        """Search the last `max_visits` retained events up to `before` for the last `count` events for `user`.

        Return a position, after which come those that were found, and how many are still to be searched for before it.
        """
        end = self._index_after(before)
        first = max(self._oldest, end - max_visits)
        looked_at = self._retained[first:end]
        self.visited += len(looked_at)
        found = list(_wanted(looked_at, channels, user, prefixes, now))
        if len(found) >= count:
            return found[-count].position.before, 0
        reached = looked_at[0].position.before if looked_at else before
        return reached, 0 if first == self._oldest else count - len(found)


def must_walk(channels: Collection[str], prefixes: tuple[str, ...]) -> bool:
    """True if what such a stream has missed is found only by looking at all events."""
    return bool(prefixes) or len(channels) > MAX_MERGED


def _wanted(
    frames: Iterable[Frame], channels: Collection[str], user: str, prefixes: tuple[str, ...], now: float
) -> Iterator[Frame]:
    """Yield the events for `user` on one of `channels`, or on a channel with one of `prefixes`, that are to be sent."""
    exact = frozenset(channels)
    for frame in frames:
        if len(frame.channels) == 1:
            (name,) = frame.channels
            if not (name.startswith(prefixes) or name in exact):
                continue
        elif not any(name.startswith(prefixes) or name in exact for name in frame.channels):
            continue
        if (frame.is_for_everyone or user in frame.users) and (frame.expires_at is None or frame.expires_at > now):
            yield frame


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


def _position(frame: Frame) -> Position:
    return frame.position
