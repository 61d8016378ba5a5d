"""`POST /runs/NAME`: appends events to a run, as the body of the request arrives or, if it is JSON, as a whole.

A body that arrives bit by bit may go on for hours, so it is exempt from the server's limits on bodies. If it has to be
refused in the middle, the answer is complete at once. What the client still sends is read and discarded for a moment,
since a connection that is closed while the client sends loses the answer; then the connection is closed, since many
clients send everything before they look at the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Coroutine, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from ..errors import HubClosed, InvalidRequest, SSEHubError, UnknownRun, UnsupportedContent
from ..fields import check_name
from ..rights import NO_KEY, ControlKey, Right
from ..runs.conflicts import stale
from ..runs.model import Outcome, RunOptions, check_run_name
from ..runs.runs import Runs
from ..runs.store import Appended, Created, CreateMode, Creation, Ticket
from .appending import Appending
from .description import TEXT, Answer, Description, Field, Parameter, any_of, list_of, queries
from .feed import EVENT, EVENT_STREAM, EventStreamFeed, Feed, LineFeed, read_events
from .forms import JSON, NDJSON, whole_number
from .ingress import Ingress
from .open_body import KeyCheck, OpenBody
from .refusals import Caller, caller_of
from .requests import (
    HEADERS,
    KEY,
    NAME,
    REFUSED_SECONDS,
    ControlRequest,
    DroppedBodies,
    RequestHeaders,
    read_body,
    request_headers,
    require_identity,
)
from .run_access import change_run
from .run_answers import APPENDED, append_error, append_refusal, appended_object
from .run_calls import (
    ERROR_FIELD,
    ERRORS,
    GENERATION_FIELD,
    GENERATION_HEADER,
    NAME_IN_PATH,
    OPTION_FIELDS,
    PATH,
    fields_of,
    generation_of,
    options_of,
    outcome_of,
)
from .schemas import IDEMPOTENCY_KEY, STRING, one_of, whole_numbers
from .transport import answer_open

APPEND_FIELDS = {
    **OPTION_FIELDS,
    "generation": GENERATION_FIELD,
    "finish": Field(one_of(["done", "failed"]), "End the run with the last event of the body."),
    "error": replace(ERROR_FIELD, text="Why the run has failed, with `finish=failed`."),
}
PRODUCER, OFFSET = "run-producer", "run-offset"

_PROCESS = secrets.token_hex(8)
_CONNECTIONS = count()


class _Wish(NamedTuple):
    """The parameters of an append."""

    options: RunOptions | None
    """Not None if the run is to be created unless it is open."""
    generation: int | None
    outcome: Outcome | None


class _RunKeyCheck:
    """Checks the control key of an open append again, once the keys have been replaced."""

    __slots__ = ("_check", "_name", "_runs")

    def __init__(self, check: KeyCheck, runs: Runs, name: str) -> None:
        self._check = check
        self._runs = runs
        self._name = name

    @property
    def is_due(self) -> bool:
        return self._check.is_due

    async def repeat(self) -> None:
        """Raises ControlKeyError, and KeyForbidden if the key may not append to the run any more."""
        key = self._check.repeat()
        if key.grant is not None and (run := await self._runs.get(self._name)) is not None:
            key.require_channels(run.options.channels)


class AppendToRun:
    """`POST /runs/NAME`."""

    path = PATH
    method = "POST"
    right = Right.PUBLISH
    description = Description(
        "appendToRun",
        "Append events to a run as the body arrives, or all at once if it is JSON",
        [
            Answer(200, "How many events the run has now, all of them stored.", {JSON: APPENDED}),
            Answer(414, "The query is longer than the server reads.", {TEXT: STRING}),
        ],
        [
            NAME_IN_PATH,
            Parameter("Run-Producer", "header", IDEMPOTENCY_KEY.schema, "The identity of the producer."),
            Parameter("Run-Offset", "header", whole_numbers(), "How many events came before this body."),
            GENERATION_HEADER,
            *[one for one in queries(APPEND_FIELDS) if one.name != "generation"],
        ],
        {NDJSON: list_of(EVENT), EVENT_STREAM: STRING, JSON: any_of([EVENT, list_of(EVENT, 1)])},
        is_body_required=False,
        refusals=(404, 408, 409, 429, 503),
        errors=ERRORS,
        text=(
            "With `channel` and `userId` it is created unless it is open; the other options go with these only. "
            "`error` needs `finish=failed`."
        ),
    )

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress
        self._hub = ingress.hub
        self._refusals = ingress.refusals
        self._runs = ingress.hub.runs
        self._limits = ingress.limits
        self._dropped = DroppedBodies(REFUSED_SECONDS)
        self._turn = asyncio.Lock()
        """Large bodies and long lines are parsed one after the other."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: RequestHeaders = scope.get(HEADERS) or request_headers(scope)
        key: ControlKey = scope.get(KEY, NO_KEY)
        is_whole = _media_type(headers) == JSON
        try:
            key.require(Right.PUBLISH)
            wish = await _wish(scope, headers, key)
            if self._hub.is_draining:  # nothing may wait from here on, until a drain knows this append
                raise HubClosed("the hub is about to stop: append to another node, or here after its restart")
            appending = self._appending(check_run_name(scope[NAME]), headers, key, wish)
            feed = self._feed(headers)
        except SSEHubError as exc:
            await self._refuse(exc, caller_of(scope), None, receive, send)
            return
        if is_whole:
            work = self._append_whole(appending, headers, key, wish, receive)
        else:
            work = self._append_stream(appending, key, wish, feed, receive)
        answering = self._answer(appending, work, caller_of(scope), receive, send)
        if is_whole:
            await answering
        else:
            await answer_open(scope, receive, answering)

    async def _answer(
        self, appending: Appending, work: Coroutine[Any, Any, Appended], caller: Caller, receive: Receive, send: Send
    ) -> None:
        try:
            appended = await work
        except ClientDisconnect:
            pass
        except SSEHubError as exc:
            await self._refuse(exc, caller, appending, receive, send)
        except Exception:
            # The app's own handler has returned if the connection has adopted this.
            await PlainTextResponse("Internal Server Error", 500)({"type": "http"}, receive, send)
            raise
        else:
            await JSONResponse(appended_object(appended))({"type": "http"}, receive, send)

    async def _refuse(
        self, exc: SSEHubError, caller: Caller, appending: Appending | None, receive: Receive, send: Send
    ) -> None:
        self._hub.count_refused_append(append_refusal(exc))
        self._refusals.refuse_control(exc, caller)
        response = append_error(exc, appending.appended if appending is not None else None)
        if appending is not None and appending.is_read:
            await response({"type": "http"}, receive, send)
        else:
            await self._dropped.refuse(response, receive, send)

    def _appending(self, name: str, headers: RequestHeaders, key: ControlKey, wish: _Wish) -> Appending:
        connection = f"{_PROCESS}-{next(_CONNECTIONS)}"
        producer = headers.get(PRODUCER)
        if producer is None:
            producer = connection
        else:
            check_name("Run-Producer", producer)
        offset = headers.get(OFFSET)
        return Appending(
            self._runs,
            name,
            Ticket(producer, connection),
            generation=wish.generation,
            offset=None if offset is None else whole_number("Run-Offset")(offset),
            rates=self._ingress.rates,
            key_name=key.name,
            key_check=_RunKeyCheck(KeyCheck(self._ingress.keys, headers.get("authorization", "")), self._runs, name),
            body=OpenBody(self._ingress.line_limits),
            count=self._hub.count_appended,
        )

    async def _append_whole(
        self, appending: Appending, headers: RequestHeaders, key: ControlKey, wish: _Wish, receive: Receive
    ) -> Appended:
        limits = self._limits
        body = await read_body(headers, receive, limits.max_body_bytes)
        appending.is_read = True
        events = await read_events(body, limits.max_batch_events, limits.max_event_bytes, self._turn) if body else []
        self._ingress.rates.spend(key.name, len(events))
        await self._hub.start()
        try:
            await self._enter(appending, key, wish)
            return await appending.append(events, wish.outcome)
        finally:
            await self._release(appending)

    async def _append_stream(
        self, appending: Appending, key: ControlKey, wish: _Wish, feed: Feed, receive: Receive
    ) -> Appended:
        producers = self._hub.producers
        producers.add(appending)
        try:
            await self._runs.follow(appending.run_name, appending)
            await self._enter(appending, key, wish)
            return await appending.copy(receive, feed, wish.outcome)
        finally:
            producers.remove(appending)
            self._runs.unfollow(appending.run_name, appending)
            await self._release(appending)

    def _feed(self, headers: RequestHeaders) -> Feed:
        """Return what parses a body of this type. Raises UnsupportedContent."""
        kind = _media_type(headers)
        require_identity(headers)
        if kind == EVENT_STREAM:
            return EventStreamFeed(self._limits.max_event_bytes, self._turn)
        if kind in (NDJSON, JSON) or not _has_body(headers):
            return LineFeed(self._limits.max_event_bytes, self._turn)
        raise UnsupportedContent(f"unsupported content type {kind[:100]!r}: send {NDJSON}, {EVENT_STREAM} or {JSON}")

    async def _enter(self, appending: Appending, key: ControlKey, wish: _Wish) -> None:
        """Create the run if that is wanted. Raises KeyForbidden if the run has a channel that the key may not use.

        A key that is limited to channels appends to no other generation than the one that was found to have them.
        """
        name, run = appending.run_name, None
        if wish.options is not None:
            creation = Creation(wish.options, CreateMode.JOIN, ticket=appending.ticket)

            def create(expected: int | None) -> Awaitable[Created]:
                return self._runs.create(name, creation._replace(expected=expected))

            run = (await change_run(self._runs, name, key, create)).run
        elif key.grant is not None:
            run = await self._runs.get(name)
            if run is None:
                raise UnknownRun(name)
            key.require_channels(run.options.channels)
        if key.grant is not None and run is not None:
            if wish.generation not in (None, run.generation):
                raise stale(run, wish.generation)
            appending.expect(run.generation)

    async def _release(self, appending: Appending) -> None:
        """Let other producers append."""
        with contextlib.suppress(SSEHubError):  # the store will notice by itself that the producer is gone
            await self._runs.release(appending.run_name, appending.ticket)


async def _wish(scope: Scope, headers: RequestHeaders, key: ControlKey) -> _Wish:
    """Return what the query and the headers ask for. Raises InvalidRequest and KeyForbidden."""
    request = ControlRequest(scope["query_string"], {}, b"")
    fields: Mapping[str, Any] = await fields_of(request, APPEND_FIELDS) if request.query_string else {}
    options = None
    if not fields.keys().isdisjoint(OPTION_FIELDS):
        options = options_of(fields)
        key.require_channels(options.channels)
    return _Wish(options, generation_of(headers, fields), _outcome(fields))


def _outcome(fields: Mapping[str, Any]) -> Outcome | None:
    finish, error = fields.get("finish"), fields.get("error")
    if finish not in (None, "done", "failed"):
        raise InvalidRequest(f"finish {finish[:40]!r} is not one of done, failed")
    if error is not None and finish != "failed":
        raise InvalidRequest("error is given without finish=failed: leave it out, or end the run as failed")
    if finish is None:
        return None
    return outcome_of("failed" if finish == "failed" and error is None else error)


def _media_type(headers: RequestHeaders) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _has_body(headers: RequestHeaders) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
