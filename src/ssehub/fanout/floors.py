"""Floors: for each channel, the newest position that history has evicted.

A cursor below the floor of one of its channels may have missed something. Events are evicted in log order, so the
floors are in log order too, and everything retained is above all of them. The floors of channels that have been quiet
for long are merged into one, `base`, which applies to every channel that has no floor of its own, and to patterns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from ..position import Position

MAX_FLOORS = 10_000


class Floors:
    """The floors of at most `max_floors` channels, in log order, and of all others."""

    def __init__(self, base: Position, max_floors: int = MAX_FLOORS) -> None:
        self._base = base
        self._max_floors = max_floors
        self._floors: OrderedDict[str, Position] = OrderedDict()
        self._ids: dict[str, str] = {}
        """The publisher's id that clients of a channel have after its floor, if it is one."""
        self._by_id: dict[str, dict[str, Position]] = {}
        """The channels with such ids, and their floors, by id."""

    def set(self, name: str, position: Position, id: str | None) -> None:
        """Set the floor of a channel, which is not below any other, and the publisher's id that clients have there."""
        if name in self._ids:
            self._forget_id(name)
        self._floors[name] = position
        self._floors.move_to_end(name)
        if id is not None:
            self._ids[name] = id
            self._by_id.setdefault(id, {})[name] = position
        if len(self._floors) > self._max_floors:
            forgotten, oldest = self._floors.popitem(last=False)
            if forgotten in self._ids:
                self._forget_id(forgotten)
            self._base = max(self._base, oldest)

    def _forget_id(self, name: str) -> None:
        id = self._ids.pop(name)
        channels = self._by_id[id]
        del channels[name]
        if not channels:
            del self._by_id[id]

    @property
    def highest(self) -> Position:
        """The highest floor of all."""
        newest = next(reversed(self._floors.values()), None)
        return self._base if newest is None else newest

    def of(self, channels: Iterable[str]) -> Position:
        """Return the position up to which it is no longer known what was in `channels`, of which there is one."""
        floors = self._floors
        return max(floors.get(name, self._base) for name in channels)

    def is_above(self, position: Position, channels: Iterable[str], prefixes: tuple[str, ...]) -> bool:
        """True if the floor of one of `channels`, or of a channel with one of `prefixes`, is above `position`."""
        if channels and position < self.of(channels):
            return True
        if not prefixes:
            return False
        if position < self._base:
            return True
        # Only cursors older than everything retained are below any floor, so that nearly always the loop ends at once.
        for name, floor in reversed(self._floors.items()):
            if floor <= position:
                return False
            if name.startswith(prefixes):
                return True
        return False

    def with_id(self, id: str) -> Mapping[str, Position]:
        """Return the channels, in log order, whose clients have this publisher's id after the floor, with the floor."""
        return self._by_id.get(id, {})
