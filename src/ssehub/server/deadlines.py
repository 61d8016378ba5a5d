"""Deadlines: how long the connections of a server may take to send what the server waits for.

All deadlines of one kind last equally long. So each kind is a queue, the oldest first: starting and stopping a deadline
is one operation on a dict, and one timer per server serves them all. It is set to the first deadline, but goes
off at most twice a second. A deadline that is stopped leaves it as it is: the next request would only set it again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import Generic, TypeVar

TICK_SECONDS = 0.5
"""The least time between two looks at the deadlines, and so how late one is noticed at the most."""
_RESOLUTION_SECONDS = 0.001
"""uvloop's clock counts milliseconds."""


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
        self._looks_at = math.inf
        """When the timer goes off."""
        self._looked_at = -math.inf
        """When it last did."""

    def seconds(self, wait: Wait) -> float:
        """Return how long the deadlines of `wait` last."""
        return self._queues[wait][0]

    def start(self, connection: Owner, wait: Wait) -> None:
        seconds, queue = self._queues[wait]
        queue[connection] = deadline = self._loop.time() + seconds
        if deadline < self._looks_at:
            self._look_for(deadline)

    def restart(self, connection: Owner, wait: Wait) -> None:
        """Let the running deadline of `connection`, which is one of `wait`, begin anew."""
        seconds, queue = self._queues[wait]
        del queue[connection]
        queue[connection] = self._loop.time() + seconds

    def stop(self, connection: Owner, wait: Wait) -> None:
        self._queues[wait][1].pop(connection, None)

    def oldest(self, *waits: Wait) -> Owner | None:
        """Return the connection that has waited longest for the first of `waits` that any connection waits for."""
        for wait in waits:
            if queue := self._queues[wait][1]:
                return next(iter(queue))
        return None

    def _look_for(self, deadline: float) -> None:
        """Let the timer go off at `deadline`, or as soon after it as it may."""
        looks_at = max(deadline, self._looked_at + TICK_SECONDS)
        if looks_at < self._looks_at:
            if self._timer is not None:
                self._timer.cancel()
            self._looks_at = looks_at
            self._timer = self._loop.call_at(looks_at, self._look)

    def _look(self) -> None:
        self._looked_at = self._loop.time()
        try:
            self._expire_before(self._looked_at + _RESOLUTION_SECONDS)
        finally:  # the timer goes on even if `expire` raises
            self._timer, self._looks_at = None, math.inf
            firsts = [next(iter(queue.values())) for _, queue in self._queues.values() if queue]
            if firsts:
                self._look_for(min(firsts))

    def _expire_before(self, end: float) -> None:
        for wait, (_, queue) in self._queues.items():
            due = []
            for connection, deadline in queue.items():
                if deadline > end:
                    break
                due.append(connection)
            for connection in due:
                if queue.pop(connection, None) is not None:  # expiring one connection may have stopped another's
                    self._expire(connection, wait)
