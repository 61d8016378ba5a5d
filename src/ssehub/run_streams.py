"""The part of a hub that opens streams of runs."""

from __future__ import annotations

from functools import partial

from .admission import Admission
from .claims import Claims
from .errors import InvalidRequest
from .fanout.origin import Origin
from .fanout.sinks import Sink
from .fanout.subscriber import Subscriber
from .fanout.watching import Dialect
from .runs.model import Run, check_run_name
from .subscription import Attach

MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 1.0, 300.0
"""How long a client may wait for a run to appear."""


def check_wait_seconds(value: float) -> float:
    """Return `value` if a client may wait so long for a run. Raises InvalidRequest."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not MIN_WAIT_SECONDS <= value <= MAX_WAIT_SECONDS:
        raise InvalidRequest(
            f"wait {value!r:.40} is not a number of seconds from {MIN_WAIT_SECONDS:g} to {MAX_WAIT_SECONDS:g}"
        )
    return value


class RunStreams(Admission):
    """Lets streams watch runs. The hub, which is built on it, says in which lifespan."""

    async def find_run(
        self, name: str, claims: Claims, wait_seconds: float | None = None, address: str | None = None
    ) -> Run:
        """Return the run `name` if `claims` grant it; wait for that, if `wait_seconds` is given, at most so long.

        `wait_seconds` is 1 to 300. Call `watch` within a second. Raises UnknownRun both if there is no such run and if
        it is not granted; InvalidRequest; StreamRefused if `max_run_waits` clients wait already, if a client from
        `address` would be one stream too many, or if the hub drains meanwhile; BrokerUnavailable, and what `start`
        raises.
        """
        check_run_name(name)
        if wait_seconds is not None:
            check_wait_seconds(wait_seconds)
        await self.start()
        return await self._following().finder.find(name, claims, wait_seconds, address)

    def watch(
        self,
        name: str,
        claims: Claims,
        sink: Sink,
        cursor: str | None = None,
        address: str | None = None,
        *,
        dialect: Dialect = Dialect.EVENTS,
        uses_datastar: bool = False,
        origin: Origin | None = None,
    ) -> Subscriber:
        """Open a stream that writes the run `name` to `sink`, for a server's response; see `attach`.

        `find_run` has returned the run. The stream begins at its first event or behind `cursor`, and ends with it.
        Raises what `attach` raises, and UnknownRun if it is gone meanwhile.
        """
        engine = self._following()
        self.require_access(claims)
        return engine.watch(
            name, claims, sink, cursor, address, dialect=dialect, uses_datastar=uses_datastar, origin=origin
        )

    async def _prepare_run(self, name: str, claims: Claims, cursor: str | None, wait_seconds: float | None) -> Attach:
        """Return what attaches a stream of the run for Python code, as soon as there is that run."""
        await self.find_run(name, claims, wait_seconds)
        return partial(self._attach_run, name, claims, cursor)

    def _attach_run(self, name: str, claims: Claims, cursor: str | None, sink: Sink) -> Subscriber:
        return self.watch(name, claims, sink, cursor)
