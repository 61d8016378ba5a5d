"""The runs as callers and listeners know them: as they were when the last commit had been told.

The book is ahead of them while a transaction is being written. Who is handed a `Run` of the book would see what could
still be lost, so there is another `Run` for each, which changes when the change is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...runs.entries import RunEvent
from ...runs.followers import Followers
from ...runs.model import Run
from ...runs.store import RunListener
from .run_ledger import Telling
from .tails import Tails

TAIL_BYTES = 32 * 2**20
"""The memory for the newest events of all runs that are followed."""


class ToldRuns:
    """The told runs with their listeners, and the newest events of those that have listeners."""

    def __init__(self) -> None:
        self.on_transition: Callable[[Run], None] = lambda run: None
        self._runs: dict[str, Run] = {}
        self._numbers: dict[str, int] = {}
        """The number under which the events of a run are stored."""
        self._followers = Followers()
        self._tails = Tails(TAIL_BYTES)

    def begin(self, runs: Mapping[str, Run], numbers: Mapping[str, int]) -> None:
        """Begin with what is in the file."""
        self._runs = {name: _copy(run) for name, run in runs.items()}
        self._numbers = dict(numbers)
        self._tails = Tails(TAIL_BYTES)

    def get(self, name: str) -> Run | None:
        return self._runs.get(name)

    def number(self, name: str) -> int:
        """Return the number under which the events of a run are stored; 0 if there is no such run."""
        return self._numbers.get(name, 0)

    def told(self, run: Run) -> Run:
        """Return the told run in place of the book's `run`. That itself if it is gone: then it does not change."""
        told = self._runs.get(run.name)
        return told if told is not None and told.generation == run.generation else run

    def tell(self, telling: Telling) -> None:
        """Make a change known."""
        change = telling.change
        decided = change.record.run
        name = decided.name
        if change.claimant is not None:
            self._followers.claimed(name, change.claimant)
        if not change.is_told:
            return
        run = self._runs.get(name)
        if run is None or run.generation != decided.generation:
            run = self._runs[name] = _copy(decided)
        run.state, run.error, run.ended_at = telling.state, telling.error, telling.ended_at
        run.events, run.bytes = telling.events, telling.bytes
        self._numbers[name] = telling.number
        if change.is_gone:
            del self._runs[name], self._numbers[name]
            self._tails.forget(name)
            self._followers.vanished(run)
        else:
            if change.events and name in self._followers:
                self._tails.add(name, run.log, change.first, change.events)
            self._followers.advanced(run, change.first, change.events)
        if change.is_transition:
            self.on_transition(run)

    def read_tail(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        """Return events after the ordinal `after`, as `RunStore.read` does, or None if they are not in memory."""
        return self._tails.read(name, log, after, max_bytes)

    def follow(self, name: str, listener: RunListener) -> None:
        self._followers.add(name, listener)

    def unfollow(self, name: str, listener: RunListener) -> None:
        self._followers.remove(name, listener)
        if name not in self._followers:
            self._tails.forget(name)


def _copy(run: Run) -> Run:
    """Return another run in the same state."""
    copy = Run(run.name, run.options, run.generation, run.log, run.created_at, events=run.events)
    copy.bytes, copy.state, copy.error, copy.ended_at = run.bytes, run.state, run.error, run.ended_at
    return copy
