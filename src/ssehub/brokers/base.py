"""The contract of a broker: one ordered log, which every hub of a deployment reads from start to end.

`tests/test_broker_contract.py` checks it for every broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from ..event import Event
from ..node import Nodes
from ..position import Position
from ..publication import Command, Publication, Revoke, TakeBack
from ..revocations import Revocation, Revocations
from ..runs.store import RunStore
from ..urls import without_credentials


def without_password(url: str) -> str:
    """Return the broker's `url` without user name, password and options, so that it can be logged."""
    return url if url.startswith("sqlite:") else without_credentials(url)


class Entry(NamedTuple):
    """One entry of the log and its position: an event, or a command to every hub."""

    position: Position
    event: Event | Command


def apply_commands(revocations: Revocations, entries: Iterable[Entry]) -> None:
    """Bring a node's copy of the table up to date with `entries` of the log."""
    for _, command in entries:
        if isinstance(command, Revoke):
            for revocation in command.revocations:
                revocations.add(revocation)
        elif isinstance(command, TakeBack):
            for key in command.keys:
                revocations.remove(key)


class Follower(Protocol):
    """The reader of a log: the hub."""

    async def begin(self, base: Position) -> None:
        """Start reading after `base`.

        A second call means that events may be missing: up to `base` in the same log, or all of them if `base` is a
        position in another log.
        """

    async def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Learn of revocations that the log does not tell, because the entries about them are missing.

        The broker calls it after it has read its table, once they are in `Broker.revocations`. The follower ends the
        open streams that they name.
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
    def is_current(self) -> bool:
        """True if the log is being read, as far as is known. Otherwise revocations may be missing here."""

    @property
    def revocations(self) -> Revocations:
        """This node's full copy of the table of revocations.

        It is complete when `Follower.begin` is first called. An entry of the log has changed it before it is delivered.
        The hub removes from it what has run out (`Revocations.expire`); the broker does so in its table.
        """

    @property
    def runs(self) -> RunStore:
        """The store of this deployment's runs. It can be used while the broker runs."""

    @property
    def nodes(self) -> Nodes:
        """This node, and the others that share its log, as far as is known. A log of one process has no others."""

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

    async def revoke(self, revocations: Sequence[Revocation]) -> str:
        """Store `revocations` in the table and, in the same step, in the log as a `Revoke`; return its position.

        The table is never trimmed with the log. Where one with the same key is known, it is extended. Raises Overloaded
        if the table would have more than MAX_REVOCATIONS, and what `publish` raises.
        """

    async def take_back(self, keys: Sequence[str]) -> str:
        """Remove the revocations with these keys, and tell every hub by a `TakeBack`; return its position.

        Raises what `publish` raises.
        """

    async def head(self) -> str | None:
        """Return the position of the newest event in the log, or None if there has never been one."""

    def run(self, follower: Follower) -> AbstractAsyncContextManager[None]:
        """Connect; inside the context, deliver the retained tail of the log to `follower`, then every new entry.

        The tail is the newest entries that `history_events` and `history_bytes` allow, at least one, whatever their
        age: the follower drops those older than `history_seconds`.

        One run at a time, but a broker may run again, in another event loop too. Raises BrokerUnavailable.
        """


@runtime_checkable
class AppendingBroker(Protocol):
    """A broker that can store publications at once, without delivering them: the follower does that itself."""

    def append(self, publications: Sequence[Publication]) -> tuple[Position, Sequence[Entry], list[str]]:
        """Store `publications`; return the end of the log, what is to be delivered, and all positions.

        Raises what `Broker.publish` raises.
        """
