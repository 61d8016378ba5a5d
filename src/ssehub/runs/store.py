"""The contract of a store of runs. Each broker has one: `Broker.runs`. `tests/test_run_contract.py` checks it for all.

Every call that changes a run is one atomic step, and what it was told to do has happened when it returns: it survives
whatever the broker survives. A store tells the listeners of a run what happened to it only afterwards, so that nobody
has seen what could still be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from ..publication import IdempotencyKey
from ..settings import RunLimits
from .entries import RunEvent
from .model import Outcome, Run, RunOptions, RunState

LEASE_SECONDS = 10.0
"""How long a producer counts as alive after its node was last heard of. A node renews its leases in time."""


class CreateMode(Enum):
    """What is to happen if there is a run of that name already."""

    NEW = "new"
    """Open: RunConflict. Ended: the next generation begins, without events."""
    RESTART = "restart"
    """The next generation begins, without events."""
    TAKEOVER = "takeover"
    """Open: the next generation begins and keeps the events. Ended: as NEW, but it keeps the events, too."""
    JOIN = "join"
    """Open: nothing is created. Ended: as NEW, unless this producer created it: it may not know that it succeeded."""


class Created(NamedTuple):
    """`is_new` is False if nothing was created: by JOIN, or since this idempotency key has created it before."""

    run: Run
    is_new: bool


class Ticket(NamedTuple):
    """Who appends: a producer, which may reconnect, and its connection. `connection` is new for each connection."""

    producer: str
    connection: str


class Creation(NamedTuple):
    """How a run is created.

    A producer that gives its `ticket` holds the run from then on. The same `key` again creates nothing, whatever became
    of the run, until it is gone or created anew by another call. `expected`, if given, is the generation that the run
    must have before this, 0 if there must be none: so a caller that has looked at a run replaces no other.
    """

    options: RunOptions
    mode: CreateMode = CreateMode.NEW
    key: IdempotencyKey | None = None
    ticket: Ticket | None = None
    expected: int | None = None


class Append(NamedTuple):
    """What one step of an append is about.

    A step without events and outcome claims the run for its producer, if `is_first`, or is a sign of life.

    `generation`, if given, must be the run's. `offset` is how many events the run had before these, as far as the
    producer knows: those that the run has already are skipped. Without it they follow whatever there is. `outcome` ends
    the run together with these events, in the same step.
    """

    ticket: Ticket
    events: Sequence[RunEvent] = ()
    is_first: bool = False
    """True at the first step of a connection. Later ones are refused once the same producer has connected again."""
    generation: int | None = None
    offset: int | None = None
    outcome: Outcome | None = None


class Appended(NamedTuple):
    """The result of an append: how many events the run has now, in which generation and state."""

    generation: int
    events: int
    state: RunState


class RunFilter(NamedTuple):
    """Which runs are listed: those that match all that is given."""

    user_id: str | None = None
    """Those that are for this user, or for everyone."""
    channel: str | None = None
    states: frozenset[RunState] | None = None


class RunTotals(NamedTuple):
    """What a store holds at present: for metrics, and for what `max_runs` and `max_runs_bytes` are compared with."""

    states: dict[RunState, int]
    bytes: int
    """The size of all runs: of their events, as in `Run.bytes`, and of their options."""


class RunListener(Protocol):
    """Follows one name. Called synchronously in the event loop; may not raise."""

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        """The run has changed: it was created, restarted or taken over, has more events, or is to stop, or has ended.

        `events` are those from the ordinal `first` to the last of `run.events`, in order. There may have been others
        before them that this listener was not told of: whoever needs them reads them. A restart is seen by `run.log`.
        """

    def vanished(self, run: Run) -> None:
        """The run was deleted, or what was kept after its end is gone. `run` is as it was at last.

        A run that was deleted while it was open is FAILED here, with RunError.DELETED.
        """

    def claimed(self, connection: str) -> None:
        """The run is claimed by `connection`, which has taken it over from another connection that held it.

        It may be told more than once, and late: a connection that appends to the run asks the store if it still may.
        """


class RunStore(Protocol):
    """The runs of one deployment. A name is used with `/` and control characters excluded: see `check_run_name`.

    All methods raise BrokerUnavailable if the store can't be reached, or does not run; then it may or may not have
    happened. It is safe to repeat any of them: an append with its ticket and offset.
    """

    on_transition: Callable[[Run], None]
    """Called when a run has been created or has ended by a step of this node, once for each, in its event loop. The
    owner sets it before the store is used. It does not wait and may not raise.
    """

    outlives_process: bool
    """True if runs are there after the process has ended."""

    limits: RunLimits

    async def create(self, name: str, creation: Creation) -> Created:
        """Create the run `name`.

        Raises RunConflict if it is open, see CreateMode, if JOIN finds another producer alive, or if the run has
        another generation than `expected`; UnknownRun if that is given, and there is no run; IdempotencyConflict if the
        key was used with another body; Overloaded if there are too many runs or bytes.
        """

    async def append(self, name: str, step: Append) -> Appended:
        """Append events, claim the run for a producer, show a sign of life, or end the run.

        The last step of a producer may be repeated: if it ended the run and nothing of it is missing, it succeeds. So
        does each step of this producer whose events the run has, by its offset, and whose outcome, if any, is the same.
        Raises UnknownRun; RunConflict, with its reason; Overloaded if all runs together are too large. If this run
        becomes too large, it ends as FAILED with RunError.TOO_LARGE, without these events, and RunConflict is raised.
        """

    async def release(self, name: str, ticket: Ticket) -> None:
        """The connection of `ticket` has ended: another producer may append. A run that is STOPPING has then STOPPED.

        Nothing happens if it does not hold the run any more.
        """

    async def finish(self, name: str, outcome: Outcome, generation: int | None = None) -> Run:
        """End the run. One that is STOPPING ends as STOPPED unless it FAILED. Ended with the same state: nothing.

        Raises UnknownRun; RunConflict if it has another generation, or has ended otherwise.
        """

    async def stop(self, name: str, generation: int | None = None) -> Run:
        """Ask the producer to stop, who is told as a listener. Without one that is alive, the run has STOPPED at once.

        It ends as STOPPED when the producer releases it, or ends it, or `run_stop_seconds` have passed. Nothing happens
        to a run that has ended, or is STOPPING already. Raises UnknownRun; RunConflict if it has another generation.
        """

    async def delete(self, name: str, generation: int | None = None) -> Run:
        """End the run if it is open, as FAILED with RunError.DELETED, and forget it except for its generation.

        Returns it as it was at last. Raises UnknownRun; RunConflict if it has another generation.
        """

    async def get(self, name: str) -> Run | None:
        """Return the run, or None if there is none."""

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        """Return the events of this `log` after the ordinal `after`, as many as `max_bytes` allow, at least one.

        Empty if there are no more; None if the run has another log by now, or none.
        """

    async def list_runs(self, wanted: RunFilter, after: str | None = None, limit: int = 1_000) -> list[Run]:
        """Return runs in the order of their names (by code point), those after the name `after`, at most `limit`."""

    async def follow(self, name: str, listener: RunListener) -> Run | None:
        """Tell `listener` from now on what happens to the run `name`; return the run, or None if there is none yet.

        What happened before this returns may be told, too, but nothing that happens afterwards is missed.
        """

    def unfollow(self, name: str, listener: RunListener) -> None:
        """Stop to tell `listener`. It is not called again."""

    def totals(self) -> RunTotals:
        """Return what the store holds, as far as is known without asking anyone."""
