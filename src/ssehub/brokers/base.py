"""What a broker is: one ordered log that every hub of a deployment reads from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..event import Event
from ..position import Position
from ..publication import Disconnect, Publication


def without_password(url: str) -> str:
    """A broker's `url` as it may be shown: no user, password or options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


class Entry(NamedTuple):
    """One event of the log, or a command to every hub, and where it stands."""

    position: Position
    event: Event | Disconnect


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a broker keeps: of idempotency keys, of its log, and how much of that a hub reads when it starts."""

    idempotency_seconds: float = 600.0
    idempotency_keys: int = 100_000
    log_seconds: float = 7 * 86_400.0
    log_bytes: int = 2**30
    log_events: int = 100_000
    tail_events: int = 10_000
    tail_bytes: int = 64 * 2**20


class Follower(Protocol):
    """Who reads the log from start to end: the hub."""

    async def begin(self, base: Position) -> None:
        """From here on the log is read, from behind `base`.

        Called again, it says that something up to there may be missing, or that this is another log, which begins anew.
        """

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        """The entries that come next, in order, each once, up to `position`; returns when there is room for more."""


class Broker(Protocol):
    @property
    def problem(self) -> str | None:
        """What keeps it from its work just now, for `/readyz`."""

    @property
    def skipped(self) -> int:
        """Entries of the log so far that were none of ours, or broken."""

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        """Append the events of all `publications`, or none, and return their positions, once they are stored.

        A publication whose key is known is not stored again: its positions are the first ones. Raises
        IdempotencyConflict if that was another one, BrokerUnavailable if it is not known whether they are stored.
        """

    async def head(self) -> str | None:
        """The position of the newest event in the log, None if there was never one."""

    def run(self, follower: Follower) -> AbstractAsyncContextManager[None]:
        """Inside, the broker is connected, and `follower` gets the retained tail and then everything new."""
