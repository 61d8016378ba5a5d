"""The contract of a broker: one ordered log, which every hub of a deployment reads from start to end.

`tests/test_broker_contract.py` checks it for every broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, NamedTuple, Protocol

from ..event import Event
from ..position import Position
from ..publication import Disconnect, Publication
from ..urls import without_credentials


def without_password(url: str) -> str:
    """Return the broker's `url` without user name, password and options, so that it can be logged."""
    return url if url.startswith("sqlite:") else without_credentials(url)


class Entry(NamedTuple):
    """One entry of the log and its position: an event, or a command to every hub."""

    position: Position
    event: Event | Disconnect


class Follower(Protocol):
    """The reader of a log: the hub."""

    async def begin(self, base: Position) -> None:
        """Start reading after `base`.

        A second call means that events may be missing: up to `base` in the same log, or all of them if `base` is a
        position in another log.
        """

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        """Receive the next entries, in log order and each once; the log has then been read up to `position`.

        The follower accepts the entries before it first waits, so a cancelled call has delivered them. It returns when
        it has capacity for more, and the broker waits for that: before the next call or, if `publish` itself calls
        `deliver`, before that publisher is answered. Such calls may overlap; their order is that of the log. `entries`
        may be empty. Raises nothing but CancelledError; after any other error, which is a bug, events may be missing.
        """


class Broker(Protocol):
    """A log to publish to and to follow. It is built without I/O, and connects in `run`."""

    outlives_process: ClassVar[bool]
    """True if the log is there after the process has ended, so that clients of ended streams can resume from it."""

    @property
    def problem(self) -> str | None:
        """Why the log cannot be read or written at present, for `/readyz`; None if it can."""

    @property
    def clock_skew_seconds(self) -> float:
        """By how much this machine's clock is ahead of the log's; 0 if the log uses this machine's clock."""

    def now(self) -> float:
        """Return Unix time in seconds by the log's clock, from which positions are made."""

    @property
    def skipped(self) -> int:
        """Number of entries skipped so far because they were invalid or not written by ssehub."""

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        """Append the events of all `publications`, or none of them; return their positions once they are stored.

        A publication whose idempotency key is known is not stored again: its first positions are returned. Raises
        IdempotencyConflict if that key was used with another body, Overloaded if a queue of the broker's own is full,
        and BrokerUnavailable if the broker is not running or it is unknown whether the events are stored. A broker
        without a queue need not raise Overloaded: the hub bounds how many publishers wait for its capacity.
        """

    async def head(self) -> str | None:
        """Return the position of the newest event in the log, or None if there has never been one."""

    def run(self, follower: Follower) -> AbstractAsyncContextManager[None]:
        """Connect; inside the context, deliver the retained tail of the log to `follower`, then every new entry.

        The tail is the newest entries that `history_events` and `history_bytes` allow, at least one, whatever their
        age: the follower drops those older than `history_seconds`.

        One run at a time, but a broker may run again, in another event loop too. Raises BrokerUnavailable.
        """
