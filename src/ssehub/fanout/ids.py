"""Ids: the positions that publishers' ids, sent as cursors, stand for.

An id stands for its oldest use in a channel. When that is evicted while the channel retains a newer one, it is no
longer known which of them a client means, until the channel retains none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..position import Position
from .frames import Frame

ID_BYTES = 100
"""The memory of an id in a channel, as tracemalloc shows it, besides that of the string."""
CHANNELS_BYTES = 200
"""The memory that an id on several channels takes in addition."""


class Use:
    """An id in a channel: the position of its first use, None if that was evicted, and the number of uses retained."""

    __slots__ = ("channel", "cursor", "times")

    def __init__(self, channel: str, cursor: Position) -> None:
        self.channel = channel
        self.cursor: Position | None = cursor
        self.times = 1


class Ids:
    """The publishers' ids in the retained events, by channel."""

    def __init__(self) -> None:
        self._uses: dict[str, Use | dict[str, Use]] = {}
        """By id: its use, or its uses by channel, in the order of the first ones, if it was used on several."""

    def add(self, frame: Frame) -> int:
        """Note the ids in `frame`, which is newer than those noted before. Return the memory that this takes."""
        size = 0
        for id, cursor in _cursors(frame):
            for name in frame.channels:
                uses = self._uses.get(id)
                if uses is None:
                    self._uses[id] = Use(name, cursor)
                    size += ID_BYTES
                    continue
                if isinstance(uses, Use):
                    if uses.channel == name:
                        uses.times += 1
                        continue
                    uses = self._uses[id] = {uses.channel: uses}
                    size += CHANNELS_BYTES
                use = uses.get(name)
                if use is None:
                    uses[name] = Use(name, cursor)
                    size += ID_BYTES
                else:
                    use.times += 1
        return size

    def remove(self, frame: Frame) -> int:
        """Forget the ids in `frame`, the oldest of those noted. Return the memory that this frees."""
        size = 0
        for id, _ in _cursors(frame):
            for name in frame.channels:
                uses = self._uses[id]
                use = uses if isinstance(uses, Use) else uses[name]
                use.cursor = None
                use.times -= 1
                if use.times:
                    continue
                size += ID_BYTES
                if isinstance(uses, Use):
                    del self._uses[id]
                    continue
                del uses[name]
                if not uses:
                    del self._uses[id]
                    size += CHANNELS_BYTES
        return size

    def is_known(self, id: str, name: str) -> bool:
        """True if the oldest use of `id` in a channel that retains it was not evicted."""
        uses = self._uses[id]
        return (uses if isinstance(uses, Use) else uses[name]).cursor is not None

    def uses(self, id: str) -> Mapping[str, Use]:
        """Return the uses of an id by channel, in the order of the first ones: those that were evicted come first."""
        uses = self._uses.get(id)
        if uses is None:
            return {}
        return {uses.channel: uses} if isinstance(uses, Use) else uses


def _cursors(frame: Frame) -> Iterable[tuple[str, Position]]:
    """Return each publisher's id in `frame` with the position it stands for as a cursor.

    A client with an inner id has received only a part of the event, so that id stands for the position before it.
    """
    cursors = [(id, frame.position) for id in frame.ids]
    if frame.inner_ids:
        before = frame.position.before
        return [(id, before) for id in frame.inner_ids] + cursors
    return cursors
