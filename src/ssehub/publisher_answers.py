"""The answers of a hub to the requests of one run: how the run is, why it can't go on, or that to try again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import ConflictReason, RunConflict, RunLost, RunStopped, SSEHubError, StaleRun, Unavailable
from .publisher_http import TEMPORARY_STATUSES, Answer, refusal
from .publisher_route import TryAgain
from .runs.model import RunError


class RunAnswers:
    """Reads the answers about the run `name` of the hub at `url`. Keeps nothing of them."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._url = url

    def require_available(self, answer: Answer) -> None:
        """Raise TryAgain if the hub, or a proxy in front of it, can't serve requests at present."""
        if answer.status in (*TEMPORARY_STATUSES, 408, 429):
            raise TryAgain(f"it responded with {answer.status}: {answer.reason}")

    def run(self, answer: Answer) -> dict[str, Any]:
        """Return the fields of the run. Raises Unavailable if these are not those of a run."""
        run = answer.fields
        if not all(
            isinstance(run.get(name), kind) for name, kind in (("generation", int), ("events", int), ("position", str))
        ):
            raise Unavailable(f"{self._url} is not a hub with runs: unexpected response {answer.reason[:80]!r}")
        return run

    def created(self, answer: Answer) -> dict[str, Any]:
        """Return the run that was created. Raises RunConflict, and what else the hub refuses it for."""
        if answer.status not in (200, 201):
            raise self._conflict(answer)
        return self.run(answer)

    def count(self, answer: Answer, generation: int, log: str) -> int:
        """Return how many events the run has. Raises StaleRun or RunLost if it is another generation or log."""
        if answer.status == 404:
            raise RunLost(
                f"{self._url} does not have run {self._name!r} any more: it was deleted, or the hub was restarted and "
                "keeps runs in memory only"
            )
        if answer.status != 200:
            raise refusal(self._url, answer.status, answer.reason)
        run = self.run(answer)
        if run["generation"] > generation:
            raise StaleRun(f"run {self._name!r} was restarted or taken over meanwhile")
        if run["generation"] < generation or log_of(run) != log:
            raise RunLost(f"run {self._name!r} was lost: the hub has another run of that name by now")
        events: int = run["events"]
        return events

    def appended(self, answer: Answer, generation: int) -> int | None:
        """Return how many events the run has after an append, whatever came of it; None if the answer does not say so.

        Raises Unavailable if it was not a hub that answered.
        """
        events = answer.fields.get("events")
        if isinstance(events, int):
            return events if answer.fields.get("generation") == generation else None
        if answer.status == 200:
            raise Unavailable(f"{self._url} is not a hub: unexpected response {answer.reason[:80]!r}")
        return None

    def require_accepted(self, answer: Answer) -> None:
        """Raise the error for an append, or an end, after which nothing more can be appended; TryAgain if it can."""
        if answer.status == 200:
            return
        fields = answer.fields
        reason = fields.get("reason")
        if answer.status == 404:
            raise StaleRun(f"run {self._name!r} was deleted")
        if answer.status != 409:
            raise refusal(self._url, answer.status, answer.reason)
        # Only this writer has its identity. If it is superseded, an old request of its own has arrived late, or the
        # store has forgotten this connection, with its last events.
        if reason in (ConflictReason.OFFSET, ConflictReason.SUPERSEDED):
            raise TryAgain(answer.reason)
        if reason == ConflictReason.STOPPED:
            raise RunStopped(f"run {self._name!r} was stopped")
        if reason == ConflictReason.TOO_LARGE:
            raise self._conflict(answer)
        if fields.get("runError") == RunError.IDLE:
            raise RunLost(f"run {self._name!r} has failed: the hub had heard nothing of its producer for too long")
        raise StaleRun(answer.reason)

    def _conflict(self, answer: Answer) -> SSEHubError:
        fields = answer.fields
        if answer.status != 409 or fields.get("reason") not in set(ConflictReason):
            return refusal(self._url, answer.status, answer.reason)
        return RunConflict(
            ConflictReason(fields["reason"]),
            answer.reason,
            generation=fields.get("generation", 0),
            state=fields.get("state", ""),
            events=fields.get("events", 0),
            error=fields.get("runError"),
        )


def log_of(run: Mapping[str, Any]) -> str:
    """Return the name of a run's log."""
    return str(run["position"]).rpartition(".")[2]
