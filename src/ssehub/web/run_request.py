"""The parameters of `GET /events/?run=NAME`."""

from __future__ import annotations

from typing import NamedTuple, Self

from ..errors import InvalidRequest
from ..fanout.watching import Dialect
from ..run_streams import check_wait_seconds
from ..runs.model import Run, check_run_name
from .query import RUN, Query

AI_SDK = Dialect.AI_SDK.value


class RunRequest(NamedTuple):
    """The parameters of a request with `run=`."""

    name: str
    cursor: str | None
    wait_seconds: float | None
    dialect: Dialect
    replays_ended: bool
    """True if a client that takes no cursors wants a run that has ended already."""

    @classmethod
    def parse(cls, query: Query, cursor: str | None) -> Self:
        """Raises InvalidRequest."""
        fields = query.fields
        name = check_run_name(fields[RUN])
        if query.has_channels:
            raise InvalidRequest("channel can't be given together with run: a run has its own channels")
        if "since" in fields:
            raise InvalidRequest("since can't be given together with run: a run is sent from its first event")
        ended = fields.get("ended")
        if ended not in (None, "replay"):
            raise InvalidRequest(f"unknown ended {ended[:40]!r}: use replay, or leave it out")
        dialect = Dialect.AI_SDK if fields.get("dialect") == AI_SDK else Dialect.EVENTS
        return cls(name, cursor, _wait_seconds(fields.get("wait")), dialect, ended is not None)

    def has_all(self, run: Run) -> bool:
        """True if a run that has ended is not to be sent: its client has the end, or wants only what goes on."""
        if not run.state.is_end:
            return False
        if self.dialect is Dialect.AI_SDK:
            return not self.replays_ended
        return self.cursor == str(run.position(run.last))


def _wait_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest(f"wait {text[:40]!r} is not a whole number of seconds, such as 30")
    return check_wait_seconds(int(text))
