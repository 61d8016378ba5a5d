"""Clients that leave and come back at random, and what they must have received, by the log of what was published."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from conftest import until
from fakes import FakeSink
from hubs import engine_of
from ssehub.claims import Claims
from ssehub.event import Event
from ssehub.fanout.resume import Start
from ssehub.fanout.subscriber import Subscriber
from ssehub.grant import Grant
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.subscription import Message, MessageReader

CHANNELS = ("news", "orders", "orders.1", "orders.1.items", "orders.12", "orders.2", "users.alex", "users.kim")
PATTERNS = ("orders.*", "orders.1*", "orders.1.*", "users.*", "n*")
USERS = ("alex", "kim")


@dataclass(frozen=True)
class Published:
    """An event of the log."""

    position: Position
    event: Event
    messages: tuple[str, ...]
    """The data of each message that a page is shown of it."""


class Log:
    """Everything that was published, by any node, in log order."""

    def __init__(self, chance: random.Random, history_events: int) -> None:
        self._chance = chance
        self._history_events = history_events
        self._count = 0
        self.entries: list[Published] = []

    async def publish(self, hub: Hub, count: int) -> None:
        """Publish `count` random events in one step."""
        events = [self._event() for _ in range(count)]
        positions = await hub.publish_events([event for event, _ in events])
        for text, (event, messages) in zip(positions, events, strict=True):
            position = Position.parse(text)
            assert position is not None
            self.entries.append(Published(position, event, messages))
        self.entries.sort(key=lambda entry: entry.position)

    async def publish_end(self, hub: Hub) -> None:
        """Publish an event for everyone, on every channel."""
        (text,) = await hub.publish_events([Event(CHANNELS, ("*",), "end")])
        position = Position.parse(text)
        assert position is not None
        self.entries.append(Published(position, Event(CHANNELS, ("*",), "end"), ("end",)))

    def _event(self) -> tuple[Event, tuple[str, ...]]:
        chance, number = self._chance, self._count
        self._count += 1
        channels = tuple(chance.sample(CHANNELS, chance.choice([1, 1, 1, 2, 3])))
        users = chance.choice([("*",), ("*",), ("alex",), ("kim",), USERS])
        kind = chance.randrange(6)
        if kind == 0:
            inner = f"id: inner-{number}\n" if chance.random() < 0.5 else ""
            last = f"id: last-{number}\n" if chance.random() < 0.5 else ""
            payload = f"{inner}data: {number}a\n\ndata: {number}b\n\n{last}data: {number}c\n\n"
            return Event(channels, users, payload=payload), (f"{number}a", f"{number}b", f"{number}c")
        if kind == 1:
            return Event(channels, users, f"{number}", store=False), (f"{number}",)
        data = f"{number} " + "x" * chance.choice([0, 0, 100, 1_000])
        return Event(channels, users, data, id=f"mine-{number}" if kind < 4 else None), (data,)

    def retained(self, head: Position) -> list[Published]:
        """Return what a node retains that has read the log up to `head`."""
        stored = [entry for entry in self.entries if entry.event.store and entry.position <= head]
        return stored[-self._history_events :]

    def evicted(self, head: Position) -> list[Published]:
        stored = [entry for entry in self.entries if entry.event.store and entry.position <= head]
        return stored[: -self._history_events]


@dataclass
class Connection:
    """One stream of a client: how it was opened, and what the client has received of it."""

    hub: Hub
    subscriber: Subscriber
    sink: FakeSink
    cursor: str
    start: Start
    head: Position
    """The end of the log on that node, when the stream was opened."""
    messages: list[Message] = field(default_factory=list)


class Client:
    """A client that is cut off after any frame, and reconnects to any node with the last id that it has read."""

    def __init__(self, user: str, channels: Sequence[str], patterns: Sequence[str], chance: random.Random) -> None:
        self.claims = Claims(user, tuple(channels), patterns=tuple(patterns))
        self._grant = Grant.of(channels, patterns)
        self._chance = chance
        self._last_id = ""
        self.connections: list[Connection] = []

    async def connect(self, hub: Hub) -> None:
        chance = self._chance
        since = chance.choice([None, "earliest", "last:1", "last:5", "last:999"])
        on_reset = chance.choice([None, "replay"])
        start = Start.parse(self._last_id, since, on_reset)
        sink = FakeSink(reads=chance.random() < 0.7)
        start = await hub.prepare(self.claims, start)
        head = engine_of(hub).head
        subscriber = hub.attach(self.claims, sink, start)
        self.connections.append(Connection(hub, subscriber, sink, self._last_id, start, head))

    def cut(self, *, keeps_all: bool = False) -> None:
        """Lose the connection, and all frames from a random one on."""
        connection = self.connections[-1]
        connection.sink.lose()
        frames = connection.sink.text.split("\n\n")[:-1]
        if not keeps_all:
            frames = frames[: self._chance.choice([len(frames), self._chance.randint(0, len(frames))])]
        reader = MessageReader()
        connection.messages = list(reader.read("".join(f"{frame}\n\n" for frame in frames)))
        self._last_id = reader.last_id or self._last_id

    async def receive_end(self) -> None:
        """Read everything until the last event has come."""
        sink = self.connections[-1].sink

        def has_all() -> bool:
            sink.read_all()
            return "data: end\n" in sink.text

        await until(has_all, 20)
        self.cut(keeps_all=True)

    def check(self, log: Log) -> int:
        """Check what every connection has received; return the number of resets."""
        return sum(self._check(log, connection) for connection in self.connections)

    def _check(self, log: Log, connection: Connection) -> int:
        received = [(message.type, message.data) for message in connection.messages]
        reset, after = self._beginning(log, connection)
        resets = 0
        if reset is not None and received:
            assert received.pop(0) == ("stream-reset", f'{{"reason":"{reset}"}}')
            resets += 1
        missed = [entry for entry in log.retained(connection.head) if entry.position > after]
        live = [entry for entry in log.entries if entry.position > connection.head]
        while ("stream-reset", '{"reason":"too-old"}') in received:
            # Eviction has overtaken a replay that the client read slowly. Live events follow.
            index = received.index(("stream-reset", '{"reason":"too-old"}'))
            assert self._is_prefix(received[:index], [*missed, *live])
            received, missed = received[index + 1 :], []
            live = self._from(received, live)
            resets += 1
        assert self._is_prefix(received, [*missed, *live])
        return resets

    def _from(self, received: list[tuple[str, str]], entries: list[Published]) -> list[Published]:
        """Return `entries` from the one on that was received first."""
        if not received:
            return entries
        index = next(index for index, entry in enumerate(entries) if entry.messages[0] == received[0][1])
        return entries[index:]

    def _is_prefix(self, received: list[tuple[str, str]], entries: list[Published]) -> bool:
        """True if all messages for this client in `entries` begin with those received, in this order, each once.

        Only an event that is not stored may be missing: a client that has not caught up does not get it.
        """
        rest = list(received)
        for entry in entries:
            if not rest:
                return True
            if not self._is_for(entry):
                continue
            expected = [("message", data) for data in entry.messages]
            if rest[: len(expected)] == expected[: len(rest)]:
                rest = rest[len(expected) :]
            elif entry.event.store:
                return False
        return not rest

    def _is_for(self, entry: Published) -> bool:
        event = entry.event
        return self._is_granted(entry) and (event.is_for_everyone or self.claims.user_id in event.users)

    def _is_granted(self, entry: Published) -> bool:
        return any(map(self._grant.covers, entry.event.channels))

    def _beginning(self, log: Log, connection: Connection) -> tuple[str | None, Position]:
        """Return why the stream must begin with a reset, if so, and the position after which events are replayed."""
        retained, start, head = log.retained(connection.head), connection.start, connection.head
        before_all = retained[0].position.before if retained else head
        if not connection.cursor:
            if start.is_earliest:
                return None, before_all
            if start.last is None:
                return None, head
            mine = list(islice((entry for entry in reversed(retained) if self._is_for(entry)), start.last))
            return None, mine[-1].position.before if mine else head
        after, evicted = self._position_of(log, connection), log.evicted(head)
        if after is None:
            reason = "unknown-id"
        elif any(self._is_granted(entry) and entry.position > after for entry in evicted):
            reason = "too-old"
        else:
            return None, after
        return reason, before_all if start.replays_on_reset else head

    def _position_of(self, log: Log, connection: Connection) -> Position | None:
        """Return the position that the cursor stands for, None if the node cannot know."""
        cursor = connection.cursor
        if (position := Position.parse(cursor)) is not None:
            return position
        (entry,) = [entry for entry in log.entries if cursor in (*entry.event.ids, *entry.event.inner_ids)]
        if entry.position > connection.head:
            return None  # by an id, other than by a position, a node does not know that it is behind
        evicted = log.evicted(connection.head)
        if entry not in evicted:
            return entry.position.before if cursor in entry.event.inner_ids else entry.position
        if cursor in entry.event.inner_ids:
            return None
        for channel in filter(self._grant.covers, entry.event.channels):
            # The newest event that was evicted from a channel is remembered, with its id.
            if [other for other in evicted if channel in other.event.channels][-1] is entry:
                return entry.position
        return None
