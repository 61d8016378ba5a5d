"""Waits: on which channels publishers wait for clients to read, and for whom.

Rounds never wait. If the subscribers of a channel read, but more slowly than its publishers publish, the publishers of
that channel wait until most of them have caught up. Publishers of other channels do not.

What counts is users, not streams, so that no user can hold up a channel by opening many streams. A channel's publishers
wait while it has more users whose streams mostly lag *and read* than users whose streams mostly keep up. A client that
has stopped reading is not waited for, nor is one that is about to: it counts as reading for a second after its backlog
has shrunk.

Nobody is waited for twice. A stream that publishers wait for has the grace time to read its backlog. If it does not,
and ends, publishers do not wait for any stream of its user for `NOT_AGAIN_SECONDS`, however often it reconnects. A
stream that has read its backlog in time may be waited for again when it lags the next time: that is how a publisher is
kept to the pace of the connections. What its clients are still owed meanwhile is held; see backlogs.py.
"""

from __future__ import annotations

from collections.abc import Callable

from .index import Index
from .subscriber import Subscriber

READING_SECONDS = 1.0
"""How long a client counts as reading after its backlog has shrunk."""
NOT_AGAIN_SECONDS = 600.0
"""How long publishers do not wait for a user for whom they have waited in vain."""
MAX_EXCLUDED = 10_000
"""Most users that are remembered for that; beyond it the oldest are forgotten."""
FRESH_SECONDS = 0.005
FRESH_SECONDS_PER_LAGGARD = 5e-6
"""A decision holds for 5 ms, and longer the more streams lag, so that deciding takes a small part of the time."""


class Waits:
    """Knows the lagging subscribers by channel. `observe` notes whether a client has read some of its backlog."""

    def __init__(self, index: Index, observe: Callable[[Subscriber, float], None]) -> None:
        self._index = index
        self._observe = observe
        self.laggards: dict[str, dict[Subscriber, None]] = {}
        """The lagging subscribers of each channel that has any."""
        self._decisions: dict[str, tuple[bool, float]] = {}
        """For each channel: True if its publishers wait, and until when that decision holds."""
        self._waited_for: set[Subscriber] = set()
        """The lagging subscribers for which publishers have waited."""
        self._excluded: dict[str, float] = {}
        """The users for whom publishers do not wait, each with the end of that time."""

    def add(self, subscriber: Subscriber) -> None:
        """`subscriber` lags from now on."""
        for name in subscriber.channels:
            self.laggards.setdefault(name, {})[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """`subscriber` has caught up, or has ended."""
        for name in subscriber.channels:
            of_channel = self.laggards.get(name)
            if of_channel is not None:
                of_channel.pop(subscriber, None)
                if not of_channel:
                    del self.laggards[name]
                    self._decisions.pop(name, None)
        self._waited_for.discard(subscriber)

    def exclude(self, subscriber: Subscriber, until: float) -> None:
        """`subscriber` has ended while it lagged: do not wait for its user again until then, if it was waited for."""
        if subscriber in self._waited_for:
            self._excluded.pop(subscriber.user_id, None)
            self._excluded[subscriber.user_id] = until
            if len(self._excluded) > MAX_EXCLUDED:
                del self._excluded[next(iter(self._excluded))]

    def must_wait(self, channel: str, now: float) -> bool:
        """True if publishers of `channel` have to wait for its clients to read."""
        laggards = self.laggards.get(channel)
        if laggards is None:
            return False
        decision, holds_until = self._decisions.get(channel, (False, now))
        if now >= holds_until:
            decision = self._decide(channel, laggards, now)
            self._decisions[channel] = decision, now + FRESH_SECONDS + FRESH_SECONDS_PER_LAGGARD * len(laggards)
        return decision

    def _decide(self, channel: str, laggards: dict[Subscriber, None], now: float) -> bool:
        lagging: dict[str, int] = {}
        reading: dict[str, list[Subscriber]] = {}
        for subscriber in laggards:
            user = subscriber.user_id
            lagging[user] = lagging.get(user, 0) + 1
            self._observe(subscriber, now)
            if subscriber.read_at >= now - READING_SECONDS:
                reading.setdefault(user, []).append(subscriber)
        of_channel = self._index.channels.get(channel)
        if not reading or of_channel is None:
            return False
        streams = of_channel.by_user
        waited_for = [
            user
            for user, own in reading.items()
            if len(own) > len(streams[user]) - lagging[user] and not self._is_excluded(user, now)
        ]
        keeping_up = len(streams) - sum([1 for user, count in lagging.items() if 2 * count > len(streams[user])])
        if len(waited_for) <= keeping_up:
            return False
        for user in waited_for:
            self._waited_for.update(reading[user])
        return True

    def _is_excluded(self, user: str, now: float) -> bool:
        until = self._excluded.get(user)
        if until is not None and until <= now:
            del self._excluded[user]
            return False
        return until is not None
