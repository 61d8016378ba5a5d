"""Deadlines: how long the connections of a server may take to send what the server waits for.

All deadlines of one kind last equally long. So each kind is a queue, the oldest first: starting and stopping a deadline
is one operation on a dict, and one timer per server serves them all. It runs only while there are deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import Generic, TypeVar

TICK_SECONDS = 0.5
"""How late a deadline is noticed at the most."""


class Wait(Enum):
    """What a server waits for on a connection."""

    HEAD = "head"
    """The rest of a request's head, on a new connection also its beginning."""
    BODY = "body"
    """The body of a request, for the time that every body has."""
    MORE_BODY = "more body"
    """Enough of a long body in each interval."""
    DISCARD = "discard"
    """The rest of a body that nobody wants any more."""
    REFUSED = "refused"
    """The turn of a refused request to be answered; no client can be late for that."""
    REQUEST = "request"
    """The next request on a connection that is kept alive."""
    DRAIN = "drain"
    """The client to read enough of a response for the rest of it to be written."""
    FLUSH = "flush"
    """The client to read the rest of a response, before the connection is dropped."""

    __hash__ = object.__hash__  # Enum's own is a Python function


Owner = TypeVar("Owner", bound=Hashable)


class Deadlines(Generic[Owner]):
    """The running deadlines of one server, at most one per connection.

    `seconds` says how long each kind lasts. `expire` is called when one has passed; it has been removed then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: Mapping[Wait, float],
        expire: Callable[[Owner, Wait], None],
    ) -> None:
        self._loop = loop
        self._expire = expire
        self._queues: dict[Wait, tuple[float, dict[Owner, float]]] = {wait: (seconds[wait], {}) for wait in Wait}
        self._timer: asyncio.TimerHandle | None = None

    def seconds(self, wait: Wait) -> float:
        """Return how long the deadlines of `wait` last."""
        return self._queues[wait][0]

    def start(self, connection: Owner, wait: Wait) -> None:
        seconds, queue = self._queues[wait]
        queue[connection] = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def stop(self, connection: Owner, wait: Wait) -> None:
        self._queues[wait][1].pop(connection, None)

    def oldest(self, *waits: Wait) -> Owner | None:
        """Return the connection that has waited longest for the first of `waits` that any connection waits for."""
        for wait in waits:
            if queue := self._queues[wait][1]:
                return next(iter(queue))
        return None

    def _tick(self) -> None:
        is_needed = any([queue for _, queue in self._queues.values()])
        # The timer goes on even if `expire` raises.
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick) if is_needed else None
        now = self._loop.time()
        for wait, (_, queue) in self._queues.items():
            due = []
            for connection, deadline in queue.items():
                if deadline > now:
                    break
                due.append(connection)
            for connection in due:
                if queue.pop(connection, None) is not None:  # expiring one connection may have stopped another's
                    self._expire(connection, wait)
