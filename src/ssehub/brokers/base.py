"""What a broker is: one ordered log that every hub of a deployment reads from start to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..event import Event, Position, Publication


class Entry(NamedTuple):
    """One event of the log, and where it stands."""

    position: Position
    event: Event


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a broker keeps: of idempotency keys, of its log, and how much of that a hub reads when it starts."""

    idempotency_seconds: float = 600.0
    idempotency_keys: int = 100_000
    log_seconds: float = 7 * 86_400.0
    log_bytes: int = 2**30
    tail_events: int = 10_000
    tail_bytes: int = 64 * 2**20


Deliver = Callable[[Position, Sequence[Entry]], Awaitable[None]]
"""Takes what a hub is to read next: where the hub then stands, and the entries up to there, in order, each once.

The first call says where the log is when the hub comes (no entries if it is empty). A position of another log than
before says that the log was lost and begins anew. It is awaited, and returns when the hub has room for more.
"""


class Broker(Protocol):
    problem: str | None
    """What keeps it from its work just now, for `/readyz`."""

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        """Append the events of all `publications`, or none, and return their positions, once they are stored.

        A publication whose key is known is not stored again: its positions are the first ones. Raises
        IdempotencyConflict if that was another one, BrokerUnavailable if it is not known whether they are stored.
        """

    async def head(self) -> str | None:
        """The position of the newest event in the log, None if there was never one."""

    def run(self, deliver: Deliver) -> AbstractAsyncContextManager[None]:
        """Inside, the broker is connected, and `deliver` gets the retained tail and then everything new."""
