"""The index: every subscriber, found by topic, then by user, without visiting any other subscriber.

A *topic* is what a subscriber listens to: one channel, or every channel that begins with a prefix. Both are the same
kind of thing here, but are kept apart: the channel named `orders.*` has nothing to do with the prefix `orders.`.

`select` answers the question of a round: which batch is for whom. Subscribers of a single topic, nearly all of them in
most deployments, share one batch per topic and, where events name users, one per named user. Subscribers of several
topics need the frames of all of them in log order, each once: those are merged once per audience.

The prefixes of a channel are found by trying each length that a prefix has, and are remembered by the channel's name
until the set of prefixes changes. While there are no patterns, all this is one `if` in a round.

Streams of runs are kept apart, by the channels of their runs: rounds have nothing for them, and publishers do not wait
for them, but commands that end streams find them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from ..position import Position
from .frames import Batch, Frame
from .subscriber import State, Subscriber

WATCHING = State.WATCHING
MAX_MATCHES = 4_096
"""Most names of channels whose prefixes are remembered; beyond it all are forgotten."""


class _Audience:
    """The subscribers of one user on the same topics, of which there are several."""

    __slots__ = ("channels", "members", "prefixes", "user_id")

    def __init__(self, user_id: str, channels: tuple[str, ...], prefixes: tuple[str, ...]) -> None:
        self.user_id = user_id
        self.channels = channels
        self.prefixes = prefixes
        self.members: dict[Subscriber, None] = {}


class Topic:
    """The subscribers of one channel or prefix. A topic without any is not in the index."""

    __slots__ = ("by_user", "count", "multiple", "single")

    def __init__(self) -> None:
        self.count = 0
        """The number of its subscribers."""
        self.single: dict[Subscriber, None] = {}
        """The subscribers of this topic only."""
        self.multiple: dict[_Audience, None] = {}
        """The audiences of those that have others, too."""
        self.by_user: dict[str, tuple[Subscriber] | set[Subscriber]] = {}
        """All of them. A user mostly has one, in a tuple, because a set would take 170 bytes more."""

    def add(self, subscriber: Subscriber, audience: _Audience | None) -> None:
        self.count += 1
        if audience is None:
            self.single[subscriber] = None
        else:
            self.multiple[audience] = None
        user = subscriber.user_id
        same_user = self.by_user.get(user)
        if same_user is None:
            self.by_user[user] = (subscriber,)
        elif isinstance(same_user, set):
            same_user.add(subscriber)
        else:
            self.by_user[user] = {*same_user, subscriber}

    def remove(self, subscriber: Subscriber, audience: _Audience | None) -> None:
        self.count -= 1
        if audience is None:
            del self.single[subscriber]
        elif not audience.members:
            del self.multiple[audience]
        same_user = self.by_user[subscriber.user_id]
        if len(same_user) == 1:
            del self.by_user[subscriber.user_id]
        else:
            assert isinstance(same_user, set)
            same_user.remove(subscriber)

    def groups(self) -> Iterator[Collection[Subscriber]]:
        """Yield its subscribers, in groups: those of this topic only, and of each audience."""
        yield self.single
        for audience in self.multiple:
            yield audience.members

    def groups_of(self, users: Iterable[str]) -> list[Collection[Subscriber]]:
        """Return the subscribers of each of `users`."""
        return [self.by_user.get(user, ()) for user in users]


Delivery = tuple[Batch, list[Subscriber]]
"""A batch, and the subscribers it is for."""


class Index:
    """Every subscriber of the hub, by topic and user."""

    def __init__(self) -> None:
        self.all: dict[Subscriber, None] = {}
        self.channels: dict[str, Topic] = {}
        """The topics that are one channel, by its name."""
        self.prefixes: dict[str, Topic] = {}
        """The topics that are every channel with a prefix, by that."""
        self._watched: dict[str, Topic] = {}
        """The streams of runs, by each of the channels of these."""
        self._audiences: dict[tuple[str, tuple[str, ...], tuple[str, ...]], _Audience] = {}
        self._audience_of: dict[Subscriber, _Audience] = {}
        """The audience of each subscriber that has several topics."""
        self._lengths: dict[int, int] = {}
        """How many prefixes there are of each length."""
        self._matches: dict[str, tuple[Topic, ...]] = {}
        """The topics of prefixes that a channel begins with, by its name, as far as they are remembered."""

    def __len__(self) -> int:
        return len(self.all)

    def add(self, subscriber: Subscriber) -> None:
        self.all[subscriber] = None
        if subscriber.state is WATCHING:
            self._watch(subscriber)
            return
        channels, prefixes = subscriber.channels, subscriber.prefixes
        audience = None if len(channels) + len(prefixes) == 1 else self._join_audience(subscriber)
        for name in channels:
            topic = self.channels.get(name)
            if topic is None:
                topic = self.channels[name] = Topic()
            topic.add(subscriber, audience)
        for prefix in prefixes:
            topic = self.prefixes.get(prefix)
            if topic is None:
                topic = self.prefixes[prefix] = Topic()
                self._count_length(prefix, 1)
            topic.add(subscriber, audience)

    def remove(self, subscriber: Subscriber) -> None:
        self.all.pop(subscriber, None)
        if subscriber.state is WATCHING:
            self._unwatch(subscriber)
            return
        audience = self._audience_of.pop(subscriber, None)
        if audience is not None:
            self._leave_audience(audience, subscriber)
        for name in subscriber.channels:
            topic = self.channels[name]
            topic.remove(subscriber, audience)
            if not topic.count:
                del self.channels[name]
        for prefix in subscriber.prefixes:
            topic = self.prefixes[prefix]
            topic.remove(subscriber, audience)
            if not topic.count:
                del self.prefixes[prefix]
                self._count_length(prefix, -1)

    def relocate(self, subscriber: Subscriber, channels: tuple[str, ...]) -> None:
        """Enter a stream of a run, which is on other channels from now on."""
        self._unwatch(subscriber)
        subscriber.channels = channels
        self._watch(subscriber)

    def _watch(self, subscriber: Subscriber) -> None:
        for name in subscriber.channels:
            topic = self._watched.get(name)
            if topic is None:
                topic = self._watched[name] = Topic()
            topic.add(subscriber, None)

    def _unwatch(self, subscriber: Subscriber) -> None:
        for name in subscriber.channels:
            topic = self._watched[name]
            topic.remove(subscriber, None)
            if not topic.count:
                del self._watched[name]

    def _join_audience(self, subscriber: Subscriber) -> _Audience:
        """Return the audience that `subscriber`, which has several topics, is a member of from now on."""
        key = subscriber.user_id, subscriber.channels, subscriber.prefixes
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = _Audience(*key)
        audience.members[subscriber] = None
        self._audience_of[subscriber] = audience
        return audience

    def _leave_audience(self, audience: _Audience, subscriber: Subscriber) -> None:
        del audience.members[subscriber]
        if not audience.members:
            del self._audiences[audience.user_id, audience.channels, audience.prefixes]

    def _count_length(self, prefix: str, change: int) -> None:
        """The set of prefixes has changed by `prefix`."""
        self._matches.clear()
        length = len(prefix)
        count = self._lengths.pop(length, 0) + change
        if count:
            self._lengths[length] = count

    def topics(self, channel: str) -> list[Topic]:
        """Return every topic that `channel` belongs to: itself, and prefixes."""
        exact = self.channels.get(channel)
        found = [] if exact is None else [exact]
        if self.prefixes:
            found += self._prefixes_of(channel)
        return found

    def topics_of(self, subscriber: Subscriber) -> list[Topic]:
        """Return every topic that `subscriber` is in: none if it is a stream of a run."""
        if subscriber.state is WATCHING:
            return []
        channels, prefixes = map(self.channels.get, subscriber.channels), map(self.prefixes.get, subscriber.prefixes)
        return list(filter(None, chain(channels, prefixes)))

    def _prefixes_of(self, channel: str) -> tuple[Topic, ...]:
        """Return the topics of the prefixes that `channel` begins with."""
        found = self._matches.get(channel)
        if found is None:
            if len(self._matches) >= MAX_MATCHES:
                self._matches.clear()
            most, get = len(channel), self.prefixes.get
            topics = [get(channel[:length]) for length in self._lengths if length <= most]
            found = self._matches[channel] = tuple(filter(None, topics))
        return found

    def names(self) -> list[str]:
        """Return the channels that streams have by name, in no order."""
        return list({**self.channels, **self._watched}) if self._watched else list(self.channels)

    def count(self, channel: str) -> tuple[int, int]:
        """Return how many streams have `channel` by its name, and how many by a pattern: one for each such pattern."""
        exact, watched = self.channels.get(channel), self._watched.get(channel)
        by_name = sum([topic.count for topic in (exact, watched) if topic is not None])
        return by_name, sum([topic.count for topic in self._prefixes_of(channel)]) if self.prefixes else 0

    def named(self, users: Iterable[str], channels: Iterable[str]) -> list[Subscriber]:
        """Return the subscribers of `users` that listen to any of `channels`; empty means all users, or all channels.

        Who listens to a channel by a pattern is one of them, and so is who watches a run on it.
        """
        wanted = set(users)
        topics = len(self.channels) + len(self.prefixes) + len(self._watched)
        if not channels and len(wanted) * topics > len(self.all):
            return [subscriber for subscriber in self.all if subscriber.user_id in wanted]
        found: dict[Subscriber, None] = {}
        for topic in self._topics_of_all(channels):
            for user in wanted & topic.by_user.keys() if wanted else topic.by_user:
                found.update(dict.fromkeys(topic.by_user[user]))
        return list(found)

    def few(self, user: str | None, channel: str | None, most: int) -> list[Subscriber] | None:
        """Return what `named` returns for one or none of each; None if finding that takes more than about `most` steps.

        A step is a stream in one of its topics: a user may have very many streams, with very many channels each.
        """
        channels = [] if channel is None else [channel]
        if channel is None and (user is None or len(self.channels) + len(self.prefixes) + len(self._watched) > most):
            return None
        steps = 0
        for topic in self._topics_of_all(channels):
            steps += topic.count if user is None else len(topic.by_user.get(user, ()))
            if steps > most:
                return None
        return self.named([] if user is None else [user], channels)

    def _topics_of_all(self, channels: Iterable[str]) -> Iterable[Topic]:
        if channels:
            topics = dict.fromkeys(chain.from_iterable(map(self.topics, channels)))
            return chain(topics, filter(None, map(self._watched.get, channels)))
        return chain(self.channels.values(), self.prefixes.values(), self._watched.values())

    def few_for(self, frame: Frame, most: int) -> Collection[Subscriber] | None:
        """Return the subscribers that `frame` is for, or None if they may be more than `most`.

        One that hears it in several ways, or under several names, counts as several.
        """
        if len(frame.channels) * len(frame.users) > most:
            return None
        found: dict[Subscriber, None] = {}
        count = 0
        for topic in chain.from_iterable(map(self.topics, frame.channels)):
            groups = topic.groups() if frame.is_for_everyone else topic.groups_of(frame.users)
            for members in groups:
                count += len(members)
                if count > most:
                    return None
                for subscriber in members:
                    found[subscriber] = None
        return found

    def select(self, frames: Sequence[Frame], last: Position) -> Iterable[Delivery]:
        """Return which part of `frames` is for whom. `frames` are in log order, in a round that ends at `last`.

        What has to be merged is merged when the iteration comes to it. Subscribers may leave meanwhile, and others may
        join: the frames are not for those, whose `sent` is at their end already.
        """
        by_topic: dict[Topic, list[Frame]] = {}
        channels = self.channels
        for frame in frames:
            for name in frame.channels:
                topic = channels.get(name)
                if topic is not None:
                    by_topic.setdefault(topic, []).append(frame)
        if self.prefixes:
            self._add_prefixes(frames, by_topic)
        deliveries: list[Delivery] = []
        merging: dict[_Audience, None] = {}
        for topic, waiting in by_topic.items():
            self._select_topic(topic, waiting, last, deliveries, merging)
        return chain(deliveries, self._merge(merging, by_topic, last)) if merging else deliveries

    def _add_prefixes(self, frames: Sequence[Frame], by_topic: dict[Topic, list[Frame]]) -> None:
        """Enter each frame at the topics of the prefixes that its channels begin with, once at each."""
        matches = self._matches
        for frame in frames:
            for name in frame.channels:
                found = matches.get(name)
                for topic in self._prefixes_of(name) if found is None else found:
                    waiting = by_topic.get(topic)
                    if waiting is None:
                        by_topic[topic] = [frame]
                    elif waiting[-1] is not frame:  # else another of its channels begins with the prefix, too
                        waiting.append(frame)

    def _select_topic(
        self,
        topic: Topic,
        frames: list[Frame],
        last: Position,
        deliveries: list[Delivery],
        merging: dict[_Audience, None],
    ) -> None:
        single = topic.single
        for_everyone = [frame for frame in frames if frame.is_for_everyone]
        named = {user for frame in frames if not frame.is_for_everyone for user in frame.users}
        named &= topic.by_user.keys()
        for user, own in _frames_by_user(frames, named).items():
            members = []
            for subscriber in topic.by_user[user]:
                if subscriber in single:
                    members.append(subscriber)
                else:
                    merging[self._audience_of[subscriber]] = None
            if members:
                deliveries.append((Batch(own, last), members))
        if for_everyone:
            if len(merging) < len(self._audiences):
                merging.update(topic.multiple)
            members = [s for s in single if s.user_id not in named] if named else list(single)
            if members:
                deliveries.append((Batch(for_everyone, last), members))

    def _merge(
        self, merging: Iterable[_Audience], by_topic: dict[Topic, list[Frame]], last: Position
    ) -> Iterator[Delivery]:
        """Yield the deliveries to audiences of several topics: the frames of all of them in log order, each once.

        Audiences for which the same topics have frames share a batch, unless one of these frames names users.
        """
        shared: dict[tuple[int, ...], tuple[list[Frame], Batch | None]] = {}
        for audience in merging:
            if not audience.members:  # they have left since the round began
                continue
            waiting = self._waiting_for(audience, by_topic)
            key = tuple(map(id, waiting))
            if key not in shared:
                together = _in_order(waiting)
                is_for_everyone = all([frame.is_for_everyone for frame in together])
                shared[key] = together, Batch(together, last) if is_for_everyone else None
            together, batch = shared[key]
            if batch is None:
                user = audience.user_id
                batch = Batch([frame for frame in together if frame.is_for_everyone or user in frame.users], last)
            yield batch, list(audience.members)

    def _waiting_for(self, audience: _Audience, by_topic: dict[Topic, list[Frame]]) -> list[list[Frame]]:
        """Return the frames of each topic of `audience` that has any. Either may have very many."""
        if len(by_topic) <= len(audience.channels) + len(audience.prefixes):
            return [waiting for topic, waiting in by_topic.items() if audience in topic.multiple]
        topics = chain(
            map(self.channels.__getitem__, audience.channels), map(self.prefixes.__getitem__, audience.prefixes)
        )
        return [by_topic[topic] for topic in topics if topic in by_topic]


def _frames_by_user(frames: list[Frame], users: set[str]) -> dict[str, list[Frame]]:
    """Return the part of one topic's `frames` that is for each of `users`: its own frames and those for everyone."""
    found: dict[str, list[Frame]] = {user: [] for user in users}
    for frame in frames if users else ():
        for user in users if frame.is_for_everyone else users.intersection(frame.users):
            found[user].append(frame)
    return found


def _in_order(waiting: list[list[Frame]]) -> list[Frame]:
    """Return the frames of all lists in log order, each once."""
    if len(waiting) == 1:
        return waiting[0]
    found = {frame.position: frame for frames in waiting for frame in frames}
    return [found[position] for position in sorted(found)]
