"""The index: every subscriber, found by channel, then by user, without visiting any other subscriber.

`select` answers the question of a round: which batch is for whom. Subscribers of a single channel, nearly all of them
in most deployments, share one batch per channel and, where events name users, one per named user. Subscribers of
several channels need the frames of all of them in log order, each once: those are merged once per audience.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..position import Position
from .frames import Batch, Frame
from .subscriber import Subscriber


class _Channel:
    """The subscribers of one channel: those of this channel only, those of others too, and all of them by user."""

    __slots__ = ("by_user", "multiple", "single")

    def __init__(self) -> None:
        self.single: dict[Subscriber, None] = {}
        self.multiple: dict[Subscriber, None] = {}
        self.by_user: dict[str, set[Subscriber]] = {}


Delivery = tuple[Batch, list[Subscriber]]
"""A batch, and the subscribers it is for."""


class Index:
    """Every subscriber of the hub, by channel and user."""

    def __init__(self) -> None:
        self.all: dict[Subscriber, None] = {}
        self.channels: dict[str, _Channel] = {}

    def __len__(self) -> int:
        return len(self.all)

    def add(self, subscriber: Subscriber) -> None:
        self.all[subscriber] = None
        is_single = len(subscriber.channels) == 1
        for name in subscriber.channels:
            channel = self.channels.get(name)
            if channel is None:
                channel = self.channels[name] = _Channel()
            (channel.single if is_single else channel.multiple)[subscriber] = None
            channel.by_user.setdefault(subscriber.user_id, set()).add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        self.all.pop(subscriber, None)
        for name in subscriber.channels:
            channel = self.channels[name]
            channel.single.pop(subscriber, None)
            channel.multiple.pop(subscriber, None)
            same_user = channel.by_user[subscriber.user_id]
            same_user.discard(subscriber)
            if not same_user:
                del channel.by_user[subscriber.user_id]
            if not channel.by_user:
                del self.channels[name]

    def count(self, channel: str) -> int:
        """Return the number of subscribers of `channel`."""
        found = self.channels.get(channel)
        return 0 if found is None else len(found.single) + len(found.multiple)

    def named(self, users: Iterable[str], channels: Iterable[str]) -> list[Subscriber]:
        """Return the subscribers of `users` on `channels`; empty means all users, or all channels."""
        wanted = set(users)
        if not channels and len(wanted) * len(self.channels) > len(self.all):
            return [subscriber for subscriber in self.all if subscriber.user_id in wanted]
        found: dict[Subscriber, None] = {}
        for channel in filter(None, map(self.channels.get, channels or self.channels)):
            for user in wanted & channel.by_user.keys() if wanted else channel.by_user:
                found.update(dict.fromkeys(channel.by_user[user]))
        return list(found)

    def select(self, frames: Sequence[Frame], last: Position) -> list[Delivery]:
        """Return which part of `frames` is for whom. `frames` are in log order, in a round that ends at `last`."""
        by_channel: dict[str, list[Frame]] = {}
        for frame in frames:
            for name in frame.channels:
                if name in self.channels:
                    by_channel.setdefault(name, []).append(frame)
        deliveries: list[Delivery] = []
        merging: dict[Subscriber, None] = {}
        for name, waiting in by_channel.items():
            self._select_channel(self.channels[name], waiting, last, deliveries, merging)
        if merging:
            _merge(merging, by_channel, last, deliveries)
        return deliveries

    def _select_channel(
        self,
        channel: _Channel,
        frames: list[Frame],
        last: Position,
        deliveries: list[Delivery],
        merging: dict[Subscriber, None],
    ) -> None:
        for_everyone = [frame for frame in frames if frame.is_for_everyone]
        named = {user for frame in frames if not frame.is_for_everyone for user in frame.users}
        named &= channel.by_user.keys()
        for user, own in _frames_by_user(frames, named).items():
            members = []
            for subscriber in channel.by_user[user]:
                if len(subscriber.channels) == 1:
                    members.append(subscriber)
                else:
                    merging[subscriber] = None
            if members:
                deliveries.append((Batch(own, last), members))
        if for_everyone:
            merging.update(channel.multiple)
            members = [s for s in channel.single if s.user_id not in named] if named else list(channel.single)
            if members:
                deliveries.append((Batch(for_everyone, last), members))


def _frames_by_user(frames: list[Frame], users: set[str]) -> dict[str, list[Frame]]:
    """Return the part of one channel's `frames` that is for each of `users`: its own frames and those for everyone."""
    found: dict[str, list[Frame]] = {user: [] for user in users}
    for frame in frames if users else ():
        for user in users if frame.is_for_everyone else users.intersection(frame.users):
            found[user].append(frame)
    return found


def _merge(
    merging: Iterable[Subscriber], by_channel: dict[str, list[Frame]], last: Position, deliveries: list[Delivery]
) -> None:
    """Add deliveries to subscribers of several channels: the frames of all of them in log order, each once."""
    audiences: dict[tuple[tuple[str, ...], str], list[Subscriber]] = {}
    for subscriber in merging:
        audiences.setdefault((subscriber.channels, subscriber.user_id), []).append(subscriber)
    for (channels, user), members in audiences.items():
        found = {
            frame.position: frame
            for name in channels
            for frame in by_channel.get(name, ())
            if frame.is_for_everyone or user in frame.users
        }
        deliveries.append((Batch([found[position] for position in sorted(found)], last), members))
