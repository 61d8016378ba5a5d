"""How publications get their places in a log, and how a key makes publishing again safe: the same for every broker
that numbers its log itself.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import IdempotencyConflict
from ..position import Position
from ..publication import IdempotencyKey, Publication
from .base import Entry

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_log_name() -> str:
    """A name that no other log has: 8 characters, 41 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


class Kept(NamedTuple):
    """What was published with a key: the hash of it, the position of its first event, and how many there are."""

    body: str
    first: Position
    events: int

    @property
    def positions(self) -> list[Position]:
        return places(self.first, self.events)


class Appended(NamedTuple):
    """What is new in the log, the keys to keep, and the positions to answer: those of what was there already, too."""

    entries: list[Entry]
    keys: dict[str, Kept]
    positions: list[str]


def place_after(position: Position, ahead: int) -> Position:
    milliseconds, sequence, log = position
    return Position(milliseconds, sequence + ahead, log)


def places(first: Position, count: int) -> list[Position]:
    """`count` positions in a row, from `first` on."""
    milliseconds, sequence, log = first
    return [Position(milliseconds, place, log) for place in range(sequence, sequence + count)]


def first_place(last: Position, milliseconds: int) -> Position:
    """The place after `last`, also when the clock has been set back."""
    if milliseconds > last.milliseconds:
        return Position(milliseconds, 0, last.log)
    return place_after(last, 1)


def append(publications: Sequence[Publication], first: Position, find: Callable[[str], Kept | None]) -> Appended:
    """Give `publications` their places, from `first` on, but for those whose key `find` knows.

    Raises IdempotencyConflict, before anything else.
    """
    found = Appended([], {}, [])
    for events, key in publications:
        kept = None if key is None else _known(key, found.keys, find)
        if kept is not None:
            positions = kept.positions
        else:
            at = place_after(first, len(found.entries))
            positions = places(at, len(events))
            found.entries.extend(map(Entry, positions, events))
            if key is not None:
                found.keys[key.name] = Kept(key.body, at, len(events))
        found.positions.extend(map(str, positions))
    return found


def _known(key: IdempotencyKey, fresh: dict[str, Kept], find: Callable[[str], Kept | None]) -> Kept | None:
    kept = fresh.get(key.name) or find(key.name)
    if kept is not None and kept.body != key.body:
        raise IdempotencyConflict("this idempotency key was used for something else: take a new one for a new event")
    return kept


class Window:
    """The keys of the last `seconds`, at most `max_keys` of them, in memory."""

    def __init__(self, seconds: float, max_keys: int, now: Callable[[], float]) -> None:
        self._seconds = seconds
        self._max_keys = max_keys
        self._now = now
        self._keys: OrderedDict[str, tuple[float, Kept]] = OrderedDict()

    def find(self, name: str) -> Kept | None:
        self._forget()
        found = self._keys.get(name)
        return found[1] if found is not None else None

    def keep(self, keys: dict[str, Kept]) -> None:
        now = self._now()
        for name, kept in keys.items():
            self._keys[name] = now, kept
        self._forget()

    def _forget(self) -> None:
        end = self._now() - self._seconds
        while self._keys and (len(self._keys) > self._max_keys or next(iter(self._keys.values()))[0] < end):
            self._keys.popitem(last=False)
