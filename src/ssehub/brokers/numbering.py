"""Positions for new events, and idempotency keys: for brokers that number their log in Python.

Redis does the same in `redis/log.lua`.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

from ..errors import IdempotencyConflict
from ..position import Position
from ..publication import Publication
from ..settings import Idempotency
from .base import Entry

KEY_CONFLICT = "this idempotency key was already used with a different body: use a new key for a new event"
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
# The constructor of a NamedTuple is a function in Python, and takes twice as long.
_position, _entry = partial(tuple.__new__, Position), partial(tuple.__new__, Entry)


def new_log_name() -> str:
    """Return a random name for a new log: 8 characters, 41 bits."""
    number = secrets.randbelow(36**8)  # each new run needs a name, and 8 calls of choice take three times as long
    return "".join(_ALPHABET[number // 36**place % 36] for place in range(8))


class Receipt(NamedTuple):
    """What was stored with an idempotency key: the hash of its body, the first position, the number of events."""

    body: str
    first: Position
    events: int

    @property
    def positions(self) -> list[Position]:
        return consecutive(self.first, self.events)


_new_receipt = partial(tuple.__new__, Receipt)


class Numbered(NamedTuple):
    """Numbered publications: the entries and keys to store, and the position of every event published.

    `positions` includes those of publications that had been stored before.
    """

    entries: list[Entry]
    keys: dict[str, Receipt]
    positions: list[str]


def position_after(position: Position, count: int) -> Position:
    milliseconds, sequence, log = position
    return _position((milliseconds, sequence + count, log))


def consecutive(first: Position, count: int) -> list[Position]:
    """Return `count` consecutive positions, of which `first` is the first."""
    milliseconds, sequence, log = first
    return list(map(_position, zip(repeat(milliseconds), range(sequence, sequence + count), repeat(log))))


def next_position(last: Position, milliseconds: int) -> Position:
    """Return the position after `last` at the time `milliseconds`, which may be earlier: clocks are set back."""
    if milliseconds > last.milliseconds:
        return _position((milliseconds, 0, last.log))
    return position_after(last, 1)


def assign_positions(
    publications: Sequence[Publication], first: Position, find: Callable[[str], Receipt | None]
) -> Numbered:
    """Assign consecutive positions, from `first` on, to all `publications` except those whose key `find` knows.

    Raises IdempotencyConflict if a key was used with another body.
    """
    entries: list[Entry] = []
    keys: dict[str, Receipt] = {}
    texts: list[str] = []
    milliseconds, sequence, log = first
    for events, key in publications:
        if key is not None and (receipt := keys.get(key.name) or find(key.name)) is not None:
            if receipt.body != key.body:
                raise IdempotencyConflict(KEY_CONFLICT)
            texts += map(str, receipt.positions)
            continue
        start = _position((milliseconds, sequence + len(entries), log))
        if len(events) == 1:  # as most publications have: this takes half the time
            entries.append(_entry((start, events[0])))
            texts.append(str(start))
        else:
            positions = consecutive(start, len(events))
            entries += map(_entry, zip(positions, events, strict=True))
            texts += map(str, positions)
        if key is not None:
            keys[key.name] = _new_receipt((key.body, start, len(events)))
    return Numbered(entries, keys, texts)


class KeyWindow:
    """The most recent idempotency keys with their receipts, in memory. `now` returns Unix time in seconds."""

    def __init__(self, idempotency: Idempotency, now: Callable[[], float]) -> None:
        self._seconds = idempotency.idempotency_seconds
        self._max_keys = idempotency.idempotency_keys
        self._now = now
        self._receipts: dict[str, Receipt] = {}
        # A dict takes long to find its first item after others were removed.
        self._names: deque[str] = deque()
        """The names of the keys, the oldest first."""
        self._times: deque[float] = deque()
        """When each of `_names` was added."""

    def find(self, name: str) -> Receipt | None:
        if name not in self._receipts:
            return None
        self._expire()
        return self._receipts.get(name)

    def add(self, receipts: dict[str, Receipt]) -> None:
        """Remember `receipts` for `idempotency_seconds` from now on.

        A broker that reloads keys after a restart leaves out those older than `idempotency_seconds`.
        """
        now = self._now()
        self._receipts.update(receipts)
        self._names += receipts
        self._times += repeat(now, len(receipts))
        self._expire()

    def _expire(self) -> None:
        end = self._now() - self._seconds
        receipts, names, times = self._receipts, self._names, self._times
        while names and (len(names) > self._max_keys or times[0] < end):
            del receipts[names.popleft()]
            times.popleft()
