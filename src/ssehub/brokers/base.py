"""What a broker is: one ordered log that every hub of a deployment reads from start to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from ..event import Event, Position


class Entry(NamedTuple):
    """One event of the log, and where it stands."""

    position: Position
    event: Event


Deliver = Callable[[Position, Sequence[Entry]], Awaitable[None]]
"""Takes what a hub is to read next: where the hub then stands, and the entries up to there, in order, each once.

The first call says where the log is when the hub comes (no entries if it is empty). A position of another log than
before says that the log was lost and begins anew. It is awaited, and returns when the hub has room for more.
"""


class Broker(Protocol):
    async def publish(self, events: Sequence[Event]) -> list[str]:
        """Append `events`, all or none, and return their positions, once they are stored.

        Raises BrokerUnavailable if it is not known whether they are.
        """

    async def head(self) -> str | None:
        """The position of the newest event in the log, None if there was never one."""

    def run(self, deliver: Deliver) -> AbstractAsyncContextManager[None]:
        """Inside, the broker is connected, and `deliver` gets the retained tail and then everything new."""
