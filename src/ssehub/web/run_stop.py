"""`POST /events/stop`: a client that may watch a run asks its producer to stop."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import Forbidden, InvalidRequest, RunConflict, SSEHubError, Unavailable, UnknownRun
from ..hub import Hub
from ..runs.model import Run, RunState, check_run_name
from .denials import Denials
from .description import Answer, Description, Parameter, object_of
from .forms import JSON
from .logins import AsgiRequest, Login, StreamRequest, TokenLogin
from .origins import ANY, check_page
from .query import QUERY_BOUNDS, RUN
from .refusals import CLAIMS, Refusals
from .run_answers import RUN_ERROR
from .schemas import COUNT, RUN_NAME, one_of, whole_numbers
from .unknown_run import UnknownRuns

STOP = "/events/stop"
MAX_GENERATION_DIGITS = 15


_STOPPED = object_of({"run": RUN_NAME, "generation": COUNT, "state": one_of([*RunState])})


class RunStop:
    """Responds to `POST /events/stop?run=NAME&generation=N`: 202 if the producer was asked, 200 if the run has ended.

    `generation` is that of `stream-hello`, so that a click that comes late does not stop the next run.
    """

    path = STOP
    method = "POST"
    description = Description(
        "stopRun",
        "Ask the producer of a run to stop, on behalf of the user",
        [
            Answer(200, "The run has ended.", {JSON: _STOPPED}),
            Answer(202, "The producer has been asked.", {JSON: _STOPPED}),
            Answer(409, "The run has another generation by now.", {JSON: RUN_ERROR}),
        ],
        [
            Parameter(RUN, "query", RUN_NAME, "The name of the run.", required=True),
            Parameter("generation", "query", whole_numbers(), "The one that `stream-hello` has told.", required=True),
        ],
        refusals=(400, 401, 403, 404, 503),
    )

    def __init__(
        self,
        hub: Hub,
        login: Login,
        cors_origins: frozenset[str],
        refusals: Refusals,
        denials: Denials,
        unknown_runs: UnknownRuns,
    ) -> None:
        self._hub = hub
        self._login = login
        self._cors_origins = cors_origins
        self._refusals = refusals
        self._denials = denials
        self._unknown_runs = unknown_runs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = asyncio.get_running_loop().time()
        try:
            response = await self._respond(scope)
        except UnknownRun:
            response = await self._unknown_runs.response(scope, began)
        except RunConflict as exc:
            self._refusals.refuse_client(exc, scope)
            fields = {"reason": exc.reason, "generation": exc.generation, "state": exc.state, "events": exc.events}
            response = JSONResponse({"error": str(exc), **fields}, exc.status)
        except SSEHubError as exc:
            response = self._denials.response(exc, scope, "the run can't be stopped at present: try again")
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)

    async def _respond(self, scope: Scope) -> Response:
        request = AsgiRequest(scope)
        # Pages of all origins may listen with a token that is no cookie, which they have to know. So they may stop.
        if ANY not in self._cors_origins or not isinstance(self._login, TokenLogin):
            check_page(request.headers, self._cors_origins, "stop a run here")
        claims = scope[CLAIMS] = await self._login(request)
        self._hub.require_access(claims)
        name, generation = _wanted(request)
        await self._hub.start()
        if not self._hub.broker.is_current:
            raise Unavailable("the log cannot be read now, so that revocations may be missing")
        self._hub.require_access(claims)  # only now are the revocations known
        run = await self._hub.find_run(name, claims)
        if not run.options.stoppable:
            raise Forbidden("this run can't be stopped by its watchers: it was created without stoppable")
        return _response(await self._hub.runs.stop(name, generation))


def _wanted(request: StreamRequest) -> tuple[str, int]:
    """Return the name and the generation of the run to be stopped. Raises InvalidRequest."""
    if request.query is None:
        raise InvalidRequest(f"the query has more than {QUERY_BOUNDS}")
    fields = request.query.fields
    if RUN not in fields:
        raise InvalidRequest("run is missing: give the name of the run that is to stop")
    name, generation = check_run_name(fields[RUN]), fields.get("generation")
    if generation is None:
        raise InvalidRequest("generation is missing: give the one that stream-hello has told")
    if not (generation.isascii() and generation.isdigit() and len(generation) <= MAX_GENERATION_DIGITS):
        raise InvalidRequest(f"generation {generation[:40]!r} is not a number: give the one that stream-hello has told")
    return name, int(generation)


def _response(run: Run) -> Response:
    return JSONResponse(
        {"run": run.name, "generation": run.generation, "state": run.state}, 200 if run.state.is_end else 202
    )
