"""`GET /events/?run=NAME`: the streams of runs."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Self

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..claims import Claims
from ..errors import InvalidRequest, UnknownRun
from ..fanout.origin import Origin
from ..fanout.sinks import Sink
from ..fanout.subscriber import Subscriber
from ..fanout.watching import Dialect
from ..hub import Hub
from ..run_streams import check_wait_seconds
from ..runs.model import Run, check_run_name
from .query import RUN, Query
from .stream import StreamResponse, disconnected
from .unknown_run import UnknownRuns

AI_SDK = Dialect.AI_SDK.value
AI_SDK_HEADERS = {"x-vercel-ai-ui-message-stream": "v1", "Connection": "close"}
"""A server that sends the response itself would otherwise keep the connection open after its end."""


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


async def run_stream(
    hub: Hub,
    wanted: RunRequest,
    claims: Claims,
    address: str | None,
    origin: Origin,
    scope: Scope,
    receive: Receive,
    unknown_runs: UnknownRuns,
    *,
    is_head: bool,
    cuts: bool,
    uses_datastar: bool,
) -> ASGIApp:
    """Return the response: a stream, 204 if the client has all of the run, 404 if it may not watch it.

    Raises what `find_run` raises, apart from UnknownRun.
    """
    began = asyncio.get_running_loop().time()
    try:
        if wanted.wait_seconds is None or is_head:
            run: Run | None = await hub.find_run(wanted.name, claims)
        else:
            run = await _wait_for_run(hub, wanted, claims, address, receive)
    except UnknownRun:
        return await unknown_runs.response(scope, began)
    if run is None or wanted.has_all(run):
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return RunStream(hub, wanted, claims, address, origin, unknown_runs, began, cuts=cuts, uses_datastar=uses_datastar)


class RunStream(StreamResponse):
    """The stream of a run; 404 if it is gone, or not granted any more, when the stream is opened."""

    def __init__(
        self,
        hub: Hub,
        wanted: RunRequest,
        claims: Claims,
        address: str | None,
        origin: Origin,
        unknown_runs: UnknownRuns,
        began: float,
        *,
        cuts: bool,
        uses_datastar: bool,
    ) -> None:
        is_bare = wanted.dialect is Dialect.AI_SDK
        super().__init__(hub, cuts=cuts or is_bare, headers=AI_SDK_HEADERS if is_bare else None)
        self._wanted = wanted
        self._claims = claims
        self._address = address
        self._origin = origin
        self._unknown_runs = unknown_runs
        self._began = began
        self._uses_datastar = uses_datastar

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except UnknownRun:  # nothing has been sent yet
            response = await self._unknown_runs.response(scope, self._began)
            await response(scope, receive, send)

    def attach(self, sink: Sink) -> Subscriber:
        return self._hub.watch(
            self._wanted.name,
            self._claims,
            sink,
            self._wanted.cursor,
            self._address,
            dialect=self._wanted.dialect,
            uses_datastar=self._uses_datastar,
            origin=self._origin,
        )


async def _wait_for_run(
    hub: Hub, wanted: RunRequest, claims: Claims, address: str | None, receive: Receive
) -> Run | None:
    """Return the run when there is one that may be watched, None if the client has left."""
    finding = asyncio.ensure_future(hub.find_run(wanted.name, claims, wanted.wait_seconds, address))
    leaving = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((finding, leaving), return_when=asyncio.FIRST_COMPLETED)
        return finding.result() if finding.done() else None
    finally:
        finding.cancel()
        leaving.cancel()
        await asyncio.gather(finding, leaving, return_exceptions=True)


def _wait_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest(f"wait {text[:40]!r} is not a whole number of seconds, such as 30")
    return check_wait_seconds(int(text))
