"""`POST /emit/?stream=1`: a publisher's pipe, whose body and response stay open for as long as it has something to say.

`pipe.py` is one open pipe. The response begins at once, so that a client sees that nothing in between holds its body
back, unless it expects 100 Continue: it would take a response for a refusal.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ..errors import HubClosed, InvalidRequest, SSEHubError, UnsupportedContent
from ..rights import NO_KEY, ControlKey, Right
from .description import Field, object_of, queries
from .endpoint import error_response
from .feed import LINE_SLACK_BYTES
from .forms import NDJSON, query_fields
from .ingress import Ingress
from .open_body import KeyCheck, OpenBody
from .pipe import Pipe, ReadEvent, last_line
from .refusals import Caller, caller_of
from .requests import (
    HEADERS,
    KEY,
    REFUSED_SECONDS,
    DroppedBodies,
    RequestHeaders,
    request_headers,
    require_identity,
)
from .schemas import COUNT, POSITION, STRING, one_of
from .transport import answer_open

STREAM_FIELDS = {
    "stream": Field(
        one_of(["1"]),
        "Publish the lines of an NDJSON body as they arrive, and answer each of them with a line.",
    )
}
STREAM_PARAMETERS = queries(STREAM_FIELDS)
_REFUSED = {"error": STRING, "status": COUNT}
STREAM_ANSWERS = [object_of({"id": POSITION}), object_of(_REFUSED), object_of({"end": STRING, **_REFUSED})]
"""Schemas of the lines of a response."""
_ASKS_FOR_STREAM = re.compile(rb"(?:^|&)stream=")
_HEADERS = [
    (b"content-type", NDJSON.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect answers
]


def asks_for_stream(query_string: bytes) -> bool:
    """Return True if a request with this query is for a pipe, perhaps a malformed one."""
    return _ASKS_FOR_STREAM.search(query_string) is not None


class EmitStream:
    """`POST /emit/?stream=1`. `read_event` returns the event of a line and its idempotency key."""

    def __init__(self, ingress: Ingress, read_event: ReadEvent) -> None:
        self._ingress = ingress
        self._hub = ingress.hub
        self._refusals = ingress.refusals
        self._read_event = read_event
        self._dropped = DroppedBodies(REFUSED_SECONDS)
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: RequestHeaders = scope.get(HEADERS) or request_headers(scope)
        key: ControlKey = scope.get(KEY, NO_KEY)
        try:
            key.require(Right.PUBLISH)
            _check(scope, headers)
            if self._hub.is_draining:
                raise HubClosed("the hub is about to stop: publish to another node, or here after its restart")
        except SSEHubError as exc:
            self._refusals.refuse_control(exc, scope)
            await self._dropped.refuse(error_response(exc, headers), receive, send)
            return
        caller = caller_of(scope)
        pipe = self._pipe(headers, key, caller)
        await answer_open(scope, receive, self._answer(pipe, caller, "expect" in headers, receive, send))

    def _pipe(self, headers: RequestHeaders, key: ControlKey, caller: Caller) -> Pipe:
        return Pipe(
            self._hub.publish_all,
            self._read_event,
            key,
            KeyCheck(self._ingress.keys, headers.get("authorization", "")),
            self._ingress.rates,
            OpenBody(self._ingress.line_limits),
            partial(self._refuse, caller),
            max_line_bytes=2 * self._ingress.limits.max_event_bytes + LINE_SLACK_BYTES,
            turn=self._turn,
        )

    def _refuse(self, caller: Caller, exc: SSEHubError) -> None:
        self._refusals.refuse_control(exc, caller)

    async def _answer(self, pipe: Pipe, caller: Caller, expects: bool, receive: Receive, send: Send) -> None:
        """Answer the request of `pipe`: `expects` says that its client waits for 100 Continue."""

        async def send_lines(lines: bytes) -> None:
            await send({"type": "http.response.body", "body": lines, "more_body": True})

        self._hub.pipes.add(pipe)
        try:
            if expects:
                receive = _begun(await receive(), receive)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await pipe.copy(receive, send_lines)
        except ClientDisconnect:
            return
        except SSEHubError as exc:
            self._refuse(caller, exc)
            await send_lines(last_line(exc).encode())
            if not pipe.is_read:
                await self._dropped.drop(receive)
        finally:
            self._hub.pipes.remove(pipe)
        await send({"type": "http.response.body", "body": b""})


def _begun(first: Message, receive: Receive) -> Receive:
    """Return `receive` with what it has returned already before what comes next."""
    waiting = [first]

    async def receive_begun() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_begun


def _check(scope: Scope, headers: RequestHeaders) -> None:
    """Raise InvalidRequest unless the request can be for a pipe."""
    fields = query_fields(scope["query_string"], STREAM_FIELDS)
    if fields["stream"] != "1":
        raise InvalidRequest(f"stream must be 1, not {fields['stream'][:40]!r}: leave it out for a request of its own")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != NDJSON:
        raise UnsupportedContent(f"unsupported content type {kind[:100]!r} with stream=1: send {NDJSON}")
    require_identity(headers)
    if "idempotency-key" in headers:
        raise InvalidRequest("Idempotency-Key can't be given with stream=1: give each line an idempotencyKey")
