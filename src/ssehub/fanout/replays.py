"""Replays: sends subscribers what they have missed, part by part as their clients read it, until they are live."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .history import History, ResetReason
from .registry import Registry
from .resume import next_part
from .statistics import Statistics
from .subscriber import FAILED, State, Subscriber

logger = logging.getLogger("ssehub.hub")


class Replays:
    """The subscribers in the state REPLAYING. A part of a replay has at most `part_bytes`, or is a single event."""

    def __init__(
        self,
        history: History,
        registry: Registry,
        statistics: Statistics,
        part_bytes: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._history = history
        self._registry = registry
        self._statistics = statistics
        self._part_bytes = part_bytes
        self._monotonic = monotonic
        self._subscribers: set[Subscriber] = set()

    def add(self, subscriber: Subscriber) -> None:
        """Begin to replay to a subscriber that is REPLAYING."""
        self._subscribers.add(subscriber)
        self.advance(subscriber)

    def start_over(self, history: History) -> None:
        """Forget every replay: from now on they come from another history."""
        self._history = history
        self._subscribers.clear()

    def advance(self, subscriber: Subscriber) -> None:
        """Write the next part, if the client has read the ones before. After the last part, the subscriber is live."""
        if subscriber.state is not State.REPLAYING:
            self._subscribers.discard(subscriber)
            return
        if subscriber.sink.is_paused or subscriber.sink.backlog > self._part_bytes:
            return
        try:
            part = next_part(self._history, subscriber, self._part_bytes, self._monotonic())
        except Exception:
            logger.exception("a replay failed, so its stream ends")
            self._registry.end_failed(subscriber, FAILED)
            return
        if part is None:
            self._join(subscriber)
            self._registry.send_reset(subscriber, ResetReason.TOO_OLD)
            return
        if part.batch is not None:
            written = subscriber.write(part.batch)
            if written == FAILED:
                self._registry.end_failed(subscriber, FAILED)
                return
            self._statistics.replayed += written
        if part.is_last:
            self._join(subscriber)
        else:
            self._loop.call_soon(self.advance, subscriber)

    def advance_all(self) -> None:
        """Go on with every replay: some sinks do not report that their backlog has shrunk a little."""
        for subscriber in list(self._subscribers):
            self.advance(subscriber)

    def _join(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)
        subscriber.sent = self._registry.head
        subscriber.enter(State.LIVE)
