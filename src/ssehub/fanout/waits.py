"""Waits: on which channels publishers wait for clients to read, and for whom.

Rounds never wait. If the subscribers of a channel read, but more slowly than its publishers publish, the publishers of
that channel wait until most of them have caught up. Publishers of other channels do not.

What counts is users, not streams, so that no user can hold up a channel by opening many streams. A channel's publishers
wait while it has more users whose streams mostly lag *and read* than users whose streams mostly keep up. A client that
has stopped reading is not waited for, nor is one that is about to: it counts as reading for a second after its backlog
has shrunk.

Streams that listen to a channel by a pattern are among its subscribers, like those that name it: a slow one is waited
for where nobody or few others listen, and not on the channels of its pattern on which most users keep up.

Nobody is waited for twice. A stream that publishers wait for has the grace time to read its backlog. If it does not,
and ends, publishers do not wait for any stream of its user for `NOT_AGAIN_SECONDS`, however often it reconnects. A
stream that has read its backlog in time may be waited for again when it lags the next time: that is how a publisher is
kept to the pace of the connections. What its clients are still owed meanwhile is held; see backlogs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from .index import Index, Topic
from .subscriber import Subscriber

READING_SECONDS = 1.0
"""How long a client counts as reading after its backlog has shrunk."""
NOT_AGAIN_SECONDS = 600.0
"""How long publishers do not wait for a user for whom they have waited in vain."""
MAX_EXCLUDED = 10_000
"""Most users that are remembered for that; beyond it the oldest are forgotten."""
FRESH_SECONDS = 0.005
FRESH_SECONDS_PER_VISIT = 5e-6
"""A decision holds for 5 ms, and longer the more streams lag, so that deciding takes a small part of the time. It also
holds longer the more users there are, if they have to be counted because there are patterns.
"""
MAX_DECISIONS = 10_000
"""Most channels whose decisions are remembered; beyond it all are forgotten."""


class Waits:
    """Knows the lagging subscribers by topic. `observe` notes whether a client has read some of its backlog."""

    def __init__(self, index: Index, observe: Callable[[Subscriber, float], None]) -> None:
        self._index = index
        self._observe = observe
        self.laggards: dict[Subscriber, list[Topic]] = {}
        """The lagging subscribers with their topics: none on a healthy hub."""
        self._by_topic: dict[Topic, dict[Subscriber, None]] = {}
        """The lagging subscribers of each topic that has any."""
        self._decisions: dict[str, tuple[bool, float]] = {}
        """For each channel: True if its publishers wait, and until when that decision holds."""
        self._waited_for: set[Subscriber] = set()
        """The lagging subscribers for which publishers have waited."""
        self._excluded: dict[str, float] = {}
        """The users for whom publishers do not wait, each with the end of that time."""

    def add(self, subscriber: Subscriber) -> None:
        """`subscriber` lags from now on."""
        topics = self.laggards[subscriber] = self._index.topics_of(subscriber)
        for topic in topics:
            self._by_topic.setdefault(topic, {})[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """`subscriber` has caught up, or has ended."""
        for topic in self.laggards.pop(subscriber, ()):
            of_topic = self._by_topic[topic]
            del of_topic[subscriber]
            if not of_topic:
                del self._by_topic[topic]
        if not self.laggards:
            self._decisions.clear()
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
        topics = self._index.topics(channel)
        laggards = list(filter(None, map(self._by_topic.get, topics)))
        if not laggards:
            self._decisions.pop(channel, None)
            return False
        decision, holds_until = self._decisions.get(channel, (False, now))
        if now >= holds_until:
            decision, visits = self._decide(topics, laggards, now)
            if len(self._decisions) >= MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[channel] = decision, now + FRESH_SECONDS + FRESH_SECONDS_PER_VISIT * visits
        return decision

    def _decide(self, topics: list[Topic], laggards: list[dict[Subscriber, None]], now: float) -> tuple[bool, int]:
        """Decide for a channel with these `topics`, of which some have `laggards`. Who has several of them counts once.

        Returns True if publishers have to wait, and how many subscribers and users were visited to find out.
        """
        lagging: dict[str, int] = {}
        reading: dict[str, list[Subscriber]] = {}
        together = laggards[0] if len(laggards) == 1 else dict.fromkeys(chain.from_iterable(laggards))
        for subscriber in together:
            user = subscriber.user_id
            lagging[user] = lagging.get(user, 0) + 1
            self._observe(subscriber, now)
            if subscriber.read_at >= now - READING_SECONDS:
                reading.setdefault(user, []).append(subscriber)
        visits = len(together)
        if not reading:
            return False, visits
        streams, users, counted = _count(topics, lagging)
        visits += counted
        waited_for = [
            user
            for user, own in reading.items()
            if len(own) > streams[user] - lagging[user] and not self._is_excluded(user, now)
        ]
        keeping_up = users - sum([1 for user, count in lagging.items() if 2 * count > streams[user]])
        if len(waited_for) <= keeping_up:
            return False, visits
        for user in waited_for:
            self._waited_for.update(reading[user])
        return True, visits

    def _is_excluded(self, user: str, now: float) -> bool:
        until = self._excluded.get(user)
        if until is not None and until <= now:
            del self._excluded[user]
            return False
        return until is not None


def _count(topics: list[Topic], users: Iterable[str]) -> tuple[dict[str, int], int, int]:
    """Return how many streams each of `users` has on a channel with these `topics`, how many users the channel has, and
    how many had to be visited to find out. Who has several of the topics counts once.
    """
    if len(topics) == 1:
        by_user = topics[0].by_user
        return {user: len(by_user[user]) for user in users}, len(by_user), 0
    streams = {user: len(set[Subscriber]().union(*[topic.by_user.get(user, ()) for topic in topics])) for user in users}
    all_users = set[str]().union(*[topic.by_user for topic in topics])
    return streams, len(all_users), sum([len(topic.by_user) for topic in topics])
