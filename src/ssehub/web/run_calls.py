"""Calls of the control app that create, end, stop, delete, look up and list runs. Their bodies are read whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import InvalidRequest, SSEHubError, UnknownRun
from ..fields import check_name, to_utf8
from ..hub import Hub
from ..pace import pace_for
from ..publication import IdempotencyKey
from ..rights import ControlKey, Right
from ..runs.entries import RunEvent
from ..runs.model import DEFAULT_IDLE_SECONDS, DEFAULT_KEEP_SECONDS, Outcome, Run, RunOptions, RunState, check_run_name
from ..runs.store import Created, CreateMode, Creation, RunFilter
from ..settings import Limits
from .description import (
    Answer,
    Description,
    Errors,
    Field,
    Named,
    Parameter,
    Shape,
    fields_body,
    list_of,
    object_of,
    queries,
)
from .endpoint import Endpoint
from .forms import JSON, NDJSON, names, read_fields, refuse_null, urlencoded, whole_number
from .requests import ControlRequest, RequestHeaders, idempotency_key
from .run_access import change_run
from .run_answers import RUN, RUN_ERROR, run_error, run_object
from .schemas import (
    BOOLEAN,
    COUNT,
    EVENT_ID,
    IDEMPOTENCY_KEY,
    NAME,
    NAME_LIST,
    NAMES,
    RETRY,
    RUN_NAME,
    STRING,
    TYPE,
    nullable,
    one_of,
    seconds,
    whole_numbers,
)
from .transport import closing_of

MAX_LIMIT = 1_000
MAX_ERROR_CHARACTERS = 1_000
OPTION_FIELDS = {
    "channel": Field(NAMES, "Who may watch the run: clients with one of these channels,", NAME_LIST),
    "userId": Field(NAMES, "and one of these users. `*` stands for everyone.", NAME_LIST),
    "keep": Field(seconds(0), f"How many seconds it is kept after its end; {DEFAULT_KEEP_SECONDS:g} if left out."),
    "idle": Field(
        seconds(1), f"After how many seconds without a sign of life it fails; {DEFAULT_IDLE_SECONDS:g} if left out."
    ),
    "announce": Field(TYPE, "The type of an event that tells the same users of its start and its end."),
    "stoppable": Field(BOOLEAN, "True: its watchers may stop it."),
}
CREATE_FIELDS = {
    **OPTION_FIELDS,
    "restart": Field(BOOLEAN, "True: even if it is open, the next generation begins, without events."),
    "takeover": Field(BOOLEAN, "True: the next generation begins, and keeps the events."),
}
GENERATION_FIELD = Field(whole_numbers(), "Refuse the call if the run has another generation.")
ERROR_FIELD = Field({"type": "string", "minLength": 1, "maxLength": MAX_ERROR_CHARACTERS}, "Why the run has failed.")
FINISH_FIELDS = {"generation": GENERATION_FIELD, "error": ERROR_FIELD}
STOP_FIELDS = {"generation": GENERATION_FIELD}
LIST_FIELDS = {
    "userId": Field(NAME, "Only runs for this user, or for everyone."),
    "channel": Field(NAME, "Only runs on this channel."),
    "state": Field({"type": "array", "items": one_of([*RunState]), "minItems": 1}, "Only runs in one of these states."),
    "after": Field(STRING, "The `next` of the page before."),
    "limit": Field(whole_numbers(1, MAX_LIMIT), f"At most so many; {MAX_LIMIT} if left out."),
}
REPEATED = ("channel", "userId")
PATH = "/runs/{run}"
NAME_IN_PATH = Parameter("run", "path", RUN_NAME, "The name of the run.", required=True)
GENERATION_HEADER = Parameter("Run-Generation", "header", whole_numbers(), GENERATION_FIELD.text)
ERRORS = Errors("RunRefusal", {JSON: RUN_ERROR})
_TRUE = {"const": True}
_CREATE = Shape(
    "CreateRun",
    ("channel", "userId"),
    [name for name in CREATE_FIELDS if name not in REPEATED],
    rules={"not": {"required": ["restart", "takeover"], "properties": {"restart": _TRUE, "takeover": _TRUE}}},
)
_EVENT = Named(
    "StoredRunEvent",
    object_of({"data": STRING, "event": TYPE, "id": EVENT_ID, "retry": RETRY}, optional=("event", "id", "retry")),
)
PAGE_BYTES = 64 * 1024
GENERATION = "run-generation"


class RunCall(Endpoint):
    """A call below `/runs/`, or for all runs. `request.name` is the run's."""

    path = PATH
    right = Right.PUBLISH

    def __init__(self, hub: Hub, limits: Limits = Limits()) -> None:
        super().__init__(limits.max_body_bytes)
        self._runs = hub.runs

    def refusal(self, exc: SSEHubError, headers: RequestHeaders) -> Response:
        return run_error(exc, headers)

    async def _find(self, request: ControlRequest) -> Run:
        """Return the run. Raises UnknownRun, and KeyForbidden if it has a channel that the key may not use."""
        name = check_run_name(request.name)
        run = await self._runs.get(name)
        if run is None:
            raise UnknownRun(name)
        request.key.require_channels(run.options.channels)
        return run


async def fields_of(request: ControlRequest, known: Collection[str]) -> Mapping[str, Any]:
    """Return the fields of the query and of the body, which takes precedence, also if it is JSON.

    An empty body is fine whatever its type. Raises InvalidRequest.
    """
    whole = request if request.body else ControlRequest(request.query_string, {}, b"")
    fields, is_json = await read_fields(whole, known, None, pace_for(request.body), REPEATED)
    if is_json and request.query_string:
        fields = {**await fields_of(ControlRequest(request.query_string, {}, b""), known), **fields}
    refuse_null(fields)
    return fields


def options_of(fields: Mapping[str, Any]) -> RunOptions:
    """Return the options that a run is to be created with. Raises InvalidRequest."""
    return RunOptions(
        names(fields, "channel"),
        names(fields, "userId"),
        fields.get("keep", DEFAULT_KEEP_SECONDS),
        fields.get("idle", DEFAULT_IDLE_SECONDS),
        fields.get("announce"),
        fields.get("stoppable", False),
    )


def generation_of(headers: RequestHeaders, fields: Mapping[str, Any]) -> int | None:
    """Return the generation that a call is about, None if it does not say so. Raises InvalidRequest."""
    header = headers.get(GENERATION)
    if header is None:
        value = fields.get("generation")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InvalidRequest(f"generation {value!r:.40} is not a whole number")
        return value
    if "generation" in fields:
        raise InvalidRequest("Run-Generation and generation are both given: leave one out")
    return whole_number("Run-Generation")(header)


class CreateRun(RunCall):
    """`PUT /runs/NAME`."""

    method = "PUT"
    description = Description(
        "createRun",
        "Create a run, or begin it anew",
        [Answer(201, "The run, also if the same key has created it before.", {JSON: RUN})],
        [NAME_IN_PATH, IDEMPOTENCY_KEY],
        fields_body(CREATE_FIELDS, [_CREATE]),
        refusals=(409, 422, 503),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        name = check_run_name(request.name)
        fields = await fields_of(request, CREATE_FIELDS)
        options, mode = options_of(fields), _mode(fields)
        request.key.require_channels(options.channels)
        creation = Creation(options, mode, _key_for(request, name, options, mode))

        def create(expected: int | None) -> Awaitable[Created]:
            return self._runs.create(name, creation._replace(expected=expected))

        created = await change_run(self._runs, name, request.key, create)
        return JSONResponse(run_object(created.run), 201)


def _mode(fields: Mapping[str, Any]) -> CreateMode:
    restart, takeover = (fields.get(name, False) for name in ("restart", "takeover"))
    for name, value in (("restart", restart), ("takeover", takeover)):
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} must be true or false, not {value!r:.40}")
    if restart and takeover:
        raise InvalidRequest("restart and takeover are both given: restart drops the events, and takeover keeps them")
    return CreateMode.RESTART if restart else CreateMode.TAKEOVER if takeover else CreateMode.NEW


def _key_for(request: ControlRequest, name: str, options: RunOptions, mode: CreateMode) -> IdempotencyKey | None:
    """Return the idempotency key, which belongs to the control key and to this run."""
    key = idempotency_key(request.headers)
    if key is None:
        return None
    return IdempotencyKey.of_text(key, (request.key.name, f"run\n{name}"), repr((options, mode)))


class GetRun(RunCall):
    """`GET /runs/NAME`."""

    method = "GET"
    description = Description(
        "getRun",
        "Look a run up",
        [Answer(200, "The run.", {JSON: RUN})],
        [NAME_IN_PATH],
        refusals=(404, 503),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        return JSONResponse(run_object(await self._find(request)))


class DeleteRun(RunCall):
    """`DELETE /runs/NAME`: answers with the run as it was at last."""

    method = "DELETE"
    description = Description(
        "deleteRun",
        "Delete a run, which ends for its watchers",
        [Answer(200, "The run as it was last.", {JSON: RUN})],
        [NAME_IN_PATH],
        refusals=(404, 409, 503),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        name = check_run_name(request.name)
        run = await change_run(self._runs, name, request.key, partial(self._runs.delete, name))
        return JSONResponse(run_object(run))


class FinishRun(RunCall):
    """`POST /runs/NAME/finish`: ends a run as done, or as failed if there is an `error`."""

    path = f"{PATH}/finish"
    method = "POST"
    description = Description(
        "finishRun",
        "End a run as done, or as failed if there is an error",
        [Answer(200, "The run.", {JSON: RUN})],
        [NAME_IN_PATH],
        fields_body(FINISH_FIELDS, [Shape("FinishRun", (), [*FINISH_FIELDS])]),
        is_body_required=False,
        refusals=(404, 409, 503),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        name = check_run_name(request.name)
        fields = await fields_of(request, FINISH_FIELDS)
        finish = partial(self._runs.finish, name, outcome_of(fields.get("error")))
        generation = generation_of(request.headers, fields)
        return JSONResponse(run_object(await change_run(self._runs, name, request.key, finish, generation)))


def outcome_of(error: object) -> Outcome:
    """Return how a run ends whose producer gives this error, or None. Raises InvalidRequest."""
    if error is None:
        return Outcome(RunState.DONE)
    if not isinstance(error, str) or not error:
        raise InvalidRequest(f"error must be a text that is not empty, not {error!r:.40}")
    to_utf8("error", error)
    if len(error) > MAX_ERROR_CHARACTERS:
        raise InvalidRequest(f"error has {len(error)} characters: at most {MAX_ERROR_CHARACTERS} are allowed")
    return Outcome(RunState.FAILED, error)


class StopRun(RunCall):
    """`POST /runs/NAME/stop`: asks the producer to stop."""

    path = f"{PATH}/stop"
    method = "POST"
    description = Description(
        "stopRun",
        "Ask the producer of a run to stop",
        [Answer(200, "The run.", {JSON: RUN})],
        [NAME_IN_PATH],
        fields_body(STOP_FIELDS, [Shape("StopRun", (), [*STOP_FIELDS])]),
        is_body_required=False,
        refusals=(404, 409, 503),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        name = check_run_name(request.name)
        generation = generation_of(request.headers, await fields_of(request, STOP_FIELDS))
        run = await change_run(self._runs, name, request.key, partial(self._runs.stop, name), generation)
        return JSONResponse(run_object(run))


class ListRuns(RunCall):
    """`GET /runs/`: the runs that match, as far as the key may use all of their channels."""

    path = "/runs/"
    method = "GET"
    description = Description(
        "listRuns",
        "List runs by their names",
        [Answer(200, "A page of them.", {JSON: object_of({"runs": list_of(RUN), "next": nullable(NAME)})})],
        [
            replace(one, more={"style": "form", "explode": False}) if one.name == "state" else one
            for one in queries(LIST_FIELDS)
        ],
        refusals=(503,),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        wanted, after, limit = _listing(request.query_string)
        found: list[Run] = []
        is_last = False
        page_runs = limit if request.key.grant is None else MAX_LIMIT
        while len(found) < limit and not is_last:
            page = await self._runs.list_runs(wanted, after, page_runs)
            is_last = len(page) < page_runs
            for run in page:
                after = run.name
                if _may_use(request.key, run):
                    found.append(run)
                    if len(found) == limit:
                        break
            await asyncio.sleep(0)
        following = after if len(found) == limit else None
        return JSONResponse({"runs": [run_object(run) for run in found], "next": following})


def _may_use(key: ControlKey, run: Run) -> bool:
    grant = key.grant
    return grant is None or all([grant.covers(channel) for channel in run.options.channels])


def _listing(query: bytes) -> tuple[RunFilter, str | None, int]:
    """Return which runs are asked for, the name after which they begin, and how many. Raises InvalidRequest."""
    fields: dict[str, str] = {}
    states: list[str] = []
    for name, value in urlencoded("the query", query):
        if name == "state":
            states += value.split(",")
        elif name in fields:
            raise InvalidRequest(f"{name} is given twice: send it once")
        elif name not in LIST_FIELDS:
            raise InvalidRequest(f"unknown field {name[:100]!r}: expected {', '.join(LIST_FIELDS)}")
        else:
            fields[name] = value
    for state in states:
        if state not in RunState.__members__.values():
            raise InvalidRequest(f"state {state[:40]!r} is not one of {', '.join(RunState)}")
    limit = whole_number("limit")(fields.get("limit", str(MAX_LIMIT)))
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit {limit} is not between 1 and {MAX_LIMIT}")
    user_id, channel = (check_name(name, fields[name]) if name in fields else None for name in ("userId", "channel"))
    wanted = RunFilter(user_id, channel, frozenset(map(RunState, states)) or None)
    return wanted, fields.get("after"), limit


class ReadRun(RunCall):
    """`GET /runs/NAME/events`: the events of a run, as they were appended, a line for each.

    An open run is read up to the event that is the last one when the call arrives.
    """

    path = f"{PATH}/events"
    method = "GET"
    description = Description(
        "readRun",
        "Read the events of a run",
        [
            Answer(
                200,
                "All events, up to the last one when the call arrives. The headers describe the run at that time.",
                {NDJSON: list_of(_EVENT)},
                {
                    "Run-Generation": (COUNT, "Its generation."),
                    "Run-State": (one_of([*RunState]), "Its state."),
                    "Run-Events": (COUNT, "How many events it has."),
                },
            )
        ],
        [NAME_IN_PATH],
        refusals=(404, 503),
        errors=ERRORS,
    )

    async def respond(self, request: ControlRequest) -> Response:
        run = await self._find(request)
        return EventLines(self._pages(run.name, run.log, run.events), run)

    async def _pages(self, name: str, log: str, count: int) -> AsyncIterator[list[RunEvent] | None]:
        """Yield the events in pages; None if they are gone."""
        after = 0
        while after < count:
            page = await self._runs.read(name, log, after, PAGE_BYTES)
            yield page[: count - after] if page else None
            if not page:
                return
            after += len(page)


class EventLines(Response):
    """Sends pages of events as NDJSON, as fast as the client reads. If they are gone, the response is cut off."""

    media_type = "application/x-ndjson"

    def __init__(self, pages: AsyncIterator[list[RunEvent] | None], run: Run) -> None:
        super().__init__(
            headers={"Run-Generation": str(run.generation), "Run-State": run.state, "Run-Events": str(run.events)}
        )
        del self.headers["content-length"]
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            async for page in self._pages:
                if page is None:
                    closing = closing_of(scope, receive)
                    if closing is None:
                        raise RuntimeError("the events of a run are gone while they are read")
                    closing.cut()
                    return
                body = "".join([_line(event) for event in page]).encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0)  # a client that reads fast, and a store in memory, wait for nothing
        await send({"type": "http.response.body", "body": b""})


def _line(event: RunEvent) -> str:
    fields = {"data": event.data, "event": event.type, "id": event.id, "retry": event.retry}
    given = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(given, ensure_ascii=False, separators=(",", ":")) + "\n"
