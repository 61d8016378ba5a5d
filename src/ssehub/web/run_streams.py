"""`GET /events/?run=NAME`: the streams of runs."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import UnknownRun
from ..fanout.sinks import Sink
from ..fanout.subscriber import Subscriber
from ..fanout.watching import Dialect
from ..hub import Hub
from ..runs.model import Run
from .opening import Opening
from .run_request import RunRequest
from .stream import StreamResponse, disconnected
from .unknown_run import UnknownRuns

AI_SDK_HEADERS = {"x-vercel-ai-ui-message-stream": "v1", "Connection": "close"}
"""A server that sends the response itself would otherwise keep the connection open after its end."""


async def run_stream(
    hub: Hub,
    wanted: RunRequest,
    opening: Opening,
    scope: Scope,
    receive: Receive,
    unknown_runs: UnknownRuns,
    *,
    is_head: bool,
) -> ASGIApp:
    """Return the response: a stream, 204 if the client has all of the run, 404 if it may not watch it.

    Raises what `find_run` raises, apart from UnknownRun.
    """
    began = asyncio.get_running_loop().time()
    try:
        if wanted.wait_seconds is None or is_head:
            run: Run | None = await hub.find_run(wanted.name, opening.claims)
        else:
            run = await _wait_for_run(hub, wanted, opening, receive)
    except UnknownRun:
        return await unknown_runs.response(scope, began)
    if run is None or wanted.has_all(run):
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return RunStream(hub, wanted, opening, unknown_runs, began)


class RunStream(StreamResponse):
    """The stream of a run; 404 if it is gone, or not granted any more, when the stream is opened."""

    def __init__(self, hub: Hub, wanted: RunRequest, opening: Opening, unknown_runs: UnknownRuns, began: float) -> None:
        is_bare = wanted.dialect is Dialect.AI_SDK
        super().__init__(hub, cuts=opening.cuts or is_bare, headers=AI_SDK_HEADERS if is_bare else None)
        self._wanted = wanted
        self._opening = opening
        self._unknown_runs = unknown_runs
        self._began = began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except UnknownRun:  # nothing has been sent yet
            response = await self._unknown_runs.response(scope, self._began)
            await response(scope, receive, send)

    def attach(self, sink: Sink) -> Subscriber:
        opening = self._opening
        return self._hub.watch(
            self._wanted.name,
            opening.claims,
            sink,
            self._wanted.cursor,
            opening.address,
            dialect=self._wanted.dialect,
            uses_datastar=opening.uses_datastar,
            origin=opening.origin,
        )


async def _wait_for_run(hub: Hub, wanted: RunRequest, opening: Opening, receive: Receive) -> Run | None:
    """Return the run when there is one that may be watched, None if the client has left."""
    finding = asyncio.ensure_future(hub.find_run(wanted.name, opening.claims, wanted.wait_seconds, opening.address))
    leaving = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((finding, leaving), return_when=asyncio.FIRST_COMPLETED)
        return finding.result() if finding.done() else None
    finally:
        finding.cancel()
        leaving.cancel()
        await asyncio.gather(finding, leaving, return_exceptions=True)
