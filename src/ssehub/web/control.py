"""The control app, which is private: tokens, events, runs, the end of streams and of access, health and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..address import LOOPBACK_HOSTS
from ..claims import Claims
from ..control_keys import ControlKeys
from ..errors import ConfigError, InvalidRequest
from ..fanout.refusals import ControlRefusal
from ..fields import check_names
from ..hub import Hub
from ..loglimit import limited_logger
from ..pace import pace_for
from ..rights import Right
from ..settings import Limits, RequestLimits, takes_settings
from ..tokens import Tokens
from .board import Answerer, Board, LocalBoard
from .description import TEXT, Answer, Description, Field, Operation, Shape, fields_body, object_of
from .direct import DirectApp
from .emit import Emit
from .endpoint import Endpoint, Methods
from .explain import Explain
from .fast_endpoint import FastEndpoint
from .forms import (
    JSON,
    lifetime_seconds,
    names,
    read_fields,
    refuse_null,
    required,
)
from .guard import OPEN_PATHS, RUNS, Guard, Guarding
from .ingress import Ingress
from .metrics import Metrics
from .not_found import not_found
from .openapi import Document, GetDocument
from .refusals import Refusals
from .requests import ControlRequest
from .responses import counting_failures, counting_responses
from .revoke import ListRevocations, Revoke, TakeBack
from .runs import RunCalls
from .schemas import (
    COUNT,
    LIFETIME,
    NAME,
    NAME_LIST,
    OK,
    PATTERNS,
    POSITION,
    POSSIBLE_PATTERNS,
    RETRY,
    STRING,
    TEXT_OR_JSON,
    TOKEN,
    WHOLE_LIFETIME,
    names_field,
)
from .statistics import GetStatistics
from .statistics_events import FollowStatistics
from .streams import ListChannels, ListStreams
from .trace import FollowTrace

logger = limited_logger("ssehub.control")
DISCONNECT_FIELDS = {
    "userId": names_field("End the streams of this user. `*` stands for everyone on the channel."),
    "channel": names_field("End the streams on this channel, also those that hear it by a pattern."),
    "retry": Field(RETRY, "How many milliseconds browsers wait before they reconnect; 600000 if left out."),
}
TOKEN_FIELDS = {
    "userId": Field(NAME, "The user the token is for."),
    "channel": names_field("The channel it grants."),
    "exp": Field(
        LIFETIME, "How many seconds the token is valid; `token_lifetime_seconds` if left out.", WHOLE_LIFETIME
    ),
}
TOKEN_JSON_FIELDS = {
    "userId": TOKEN_FIELDS["userId"],
    "channel": TOKEN_FIELDS["channel"],
    "channels": Field(NAME_LIST, "The same as `channel`."),
    "patterns": Field(POSSIBLE_PATTERNS, "Patterns of channels that it grants, such as `orders.*`."),
    "exp": TOKEN_FIELDS["exp"],
    "expiresIn": Field(LIFETIME, "The same as `exp`."),
}
_LIFETIMES = ("exp", "expiresIn")
_ONE_LIFETIME = {"not": {"required": _LIFETIMES}}
_TOKEN = (
    Shape("TokenOfChannel", ("userId", "channel"), ("patterns", *_LIFETIMES), rules=_ONE_LIFETIME),
    Shape("TokenOfChannels", ("userId", "channels"), ("patterns", *_LIFETIMES), rules=_ONE_LIFETIME),
    Shape(
        "TokenOfPatterns",
        ("userId", "patterns"),
        ("channels", *_LIFETIMES),
        instead={"patterns": PATTERNS, "channels": {**NAME_LIST, "minItems": 0, "maxItems": 0}},
        rules=_ONE_LIFETIME,
    ),
)


@takes_settings
def create_control_app(
    hub: Hub,
    *,
    tokens: Tokens,
    control_key: str | None = None,
    control_keys: ControlKeys | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    token_lifetime_seconds: float = 86_400,
    limits: Limits = Limits(),
    request_limits: RequestLimits = RequestLimits(),
    board: Board | None = None,
    cors_origins: Sequence[str] | None = None,
    now: Callable[[], float] = time.time,
) -> DirectApp:
    """Return the app that issues `tokens` and publishes to `hub`.

    With a `control_key`, every call except the health checks requires it. With `control_keys` in its place, each
    requires one of them that has the right for it. Without either, the app must be called at an address that other
    machines can't reach, with a `Host` of `allowed_hosts`: a web page that rebinds its DNS name to this machine sends
    another one.

    Of `request_limits`, the deadline of a body is that of a line of an append or a pipe; the others are for the server.
    `board` asks all workers, if this hub is one of several. `cors_origins` are those of the
    client app, which `/explain/` compares an origin with. `now` returns Unix time.
    Raises ConfigError for a control key that is empty, well known or shorter than 16 bytes.
    """
    if control_key is not None and control_keys is not None:
        raise ConfigError("control_key and control_keys are both given: use ControlKeys(control_key, file=…)")
    keys = control_keys or ControlKeys(control_key)
    hub.accompany(tokens)
    hub.accompany(keys)
    asked = board or LocalBoard(Answerer(hub, tokens, cors_origins, now))
    refusals = Refusals(hub)
    ingress = Ingress.of(hub, refusals, keys, limits, request_limits)
    frequent: list[Endpoint] = [
        Emit(ingress),
        IssueToken(hub, tokens, token_lifetime_seconds, limits, now),
    ]
    endpoints: list[Endpoint | Methods] = [
        *frequent,
        Disconnect(hub, limits),
        Methods(Revoke(hub, tokens, limits), TakeBack(hub, tokens, limits), ListRevocations(hub)),
        Explain(asked, limits, now),
        Health(),
        Readiness(hub),
        Metrics(asked),
        GetStatistics(hub, asked),
        FollowStatistics(hub, asked),
        FollowTrace(hub, asked),
        ListStreams(hub, asked),
        ListChannels(hub, asked),
    ]

    @asynccontextmanager
    async def lifespan(app: DirectApp) -> AsyncIterator[None]:
        async with hub:
            yield

    runs = RunCalls(ingress)
    endpoints.append(GetDocument(_document([*endpoints, runs], keys)))
    served = ", ".join([*(endpoint.path for endpoint in endpoints), f"{RUNS}/"])
    elsewhere = (
        f"not found: this is the control app, with {served}; streams are at /events/ of the client app, on another "
        "port (bind, by default 127.0.0.1:8000)\n"
    )
    routes = [Route(path, endpoint) for endpoint in endpoints for path in both(endpoint.path)]
    routes[2:2] = runs.routes()
    guard = Guard(keys, allowed_hosts)
    app = DirectApp(
        {
            path: counting_responses(Guarding(endpoint, guard), hub)
            for endpoint in frequent
            for path in both(endpoint.path)
        },
        {
            path.encode(): FastEndpoint(endpoint, guard, hub, refusals)
            for endpoint in frequent
            for path in both(endpoint.path)
        },
        routes=routes,
        middleware=[
            Middleware(counting_responses, hub=hub),
            Middleware(Guarding, guard=guard),
        ],
        exception_handlers={
            404: not_found(elsewhere, partial(refusals.refuse, ControlRefusal.NOT_FOUND)),
            Exception: counting_failures(hub),
        },
        lifespan=lifespan,
    )
    app.state.refusals = refusals
    app.router.redirect_slashes = False
    return app


def both(path: str) -> tuple[str, str]:
    """Return `path` as it is documented, and with or without the slash at its end."""
    return (path, path.removesuffix("/") if path.endswith("/") else f"{path}/")


_TITLE = "ssehub control API"
_TEXT = """\
Publish events, issue tokens, keep runs, end access, and ask a hub how it is. It is for backends, not for web pages.

Every path works with and without its final slash. A GET can also be a HEAD. The fields of a form can be in the query, \
too, except those of `/explain/`. Methods that a path does not have are answered 405, and unknown paths 404. Requests \
that are not valid HTTP, or too slow, are refused by the server with a status from 400 to 431."""
_CONTROL_KEY = {
    "controlKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A control key. Each operation names the right that it needs; `admin` implies all.",
    }
}


def _document(endpoints: Sequence[Endpoint | Methods | RunCalls], keys: ControlKeys) -> Document:
    """Return the document of these endpoints and of itself."""
    described = [
        one for endpoint in endpoints for one in ([endpoint] if isinstance(endpoint, Endpoint) else endpoint.endpoints)
    ]
    schemes = _CONTROL_KEY if keys.is_required else {}
    operations = [
        Operation(one.path, one.method, one.description, () if one.path in OPEN_PATHS else tuple(schemes), one.right)
        for one in [*described, GetDocument]
    ]
    return Document(_TITLE, _TEXT, operations, schemes, TEXT_OR_JSON, _refusals)


def _refusals(operation: Operation) -> set[int]:
    """Return the statuses with which the guard refuses, or the base of all endpoints."""
    description = operation.description
    found = set() if operation.path in OPEN_PATHS else {403}
    if operation.schemes:
        found.add(401)
    if description.body is not None:
        found |= {400, 413, 415}
    elif description.parameters:
        found.add(400)
    return found


class IssueToken(Endpoint):
    """`POST /token/`: issues a token for streams of `hub`."""

    path = "/token/"
    method = "POST"
    right = Right.TOKEN
    description = Description(
        "issueToken",
        "Issue a token",
        [
            Answer(
                200,
                "The token. A form is answered with the bare token.",
                {TEXT: TOKEN, JSON: object_of({"token": TOKEN, "expiresAt": COUNT})},
            )
        ],
        body=fields_body(TOKEN_FIELDS, _TOKEN, TOKEN_JSON_FIELDS),
    )

    def __init__(
        self, hub: Hub, tokens: Tokens, lifetime_seconds: float, limits: Limits, now: Callable[[], float]
    ) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub
        self._tokens = tokens
        self._lifetime_seconds = lifetime_seconds
        self._now = now

    async def respond(self, request: ControlRequest) -> Response:
        if not self._tokens.can_issue:
            raise InvalidRequest("this hub has no secret to sign tokens with: get them from the identity provider")
        fields, is_json = await read_fields(request, TOKEN_FIELDS, TOKEN_JSON_FIELDS, pace_for(request.body))
        requested = self._requested(fields)
        refuse_null(fields)
        expires_at = int(self._now() + lifetime_seconds(fields, self._lifetime_seconds))
        request.key.require_channels(requested.channels)
        request.key.require_patterns(requested.patterns)
        token = self._tokens.issue(
            requested.user_id, requested.channels, patterns=requested.patterns, expires_at=expires_at
        )
        no_store = {"Cache-Control": "no-store"}
        if is_json:
            return JSONResponse({"token": token, "expiresAt": expires_at}, headers=no_store)
        return PlainTextResponse(token, headers=no_store)

    def _requested(self, fields: Mapping[str, Any]) -> Claims:
        """Return what the token is to grant. Raises InvalidRequest."""
        user_id, patterns, channels = required(fields, "userId"), _listed(fields, "patterns"), _token_channels(fields)
        if not channels and not patterns:
            raise InvalidRequest(
                "channel is missing: send it as a field of the request, or send JSON with a list of channels or of "
                "patterns that is not empty"
            )
        requested = Claims(user_id, check_names("channel", channels) if channels else (), patterns=patterns)
        self._hub.check_patterns(patterns)
        return requested


def _token_channels(fields: Mapping[str, Any]) -> tuple[str, ...]:
    if "channels" in fields:
        if "channel" in fields:
            raise InvalidRequest("channel and channels are both given: leave one out")
        return _listed(fields, "channels")
    return names(fields, "channel") if "channel" in fields else ()


def _listed(fields: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """Return the elements of the field `name`, nothing if there is no such field."""
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list, such as {_EXAMPLES[name]}")
    return tuple(value)


_EXAMPLES = {"channels": '["chat", "news"]', "patterns": '["orders.*"]'}


class Disconnect(Endpoint):
    """`POST /disconnect/`: ends the open streams of a user, of a channel, or of a user on a channel."""

    path = "/disconnect/"
    method = "POST"
    right = Right.DISCONNECT
    description = Description(
        "disconnect",
        "End the open streams of a user, of a channel, or of a user on a channel",
        [Answer(200, "The command is in the log, where all nodes read it.", {**OK, JSON: object_of({"id": POSITION})})],
        body=fields_body(
            DISCONNECT_FIELDS,
            (
                Shape("DisconnectUser", ("userId",), ("retry",)),
                Shape("DisconnectChannel", ("channel",), ("userId", "retry")),
            ),
        ),
        refusals=(503,),
    )

    def __init__(self, hub: Hub, limits: Limits) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub

    async def respond(self, request: ControlRequest) -> Response:
        fields, is_json = await read_fields(request, DISCONNECT_FIELDS, None, pace_for(request.body))
        refuse_null(fields)
        users, channels = (names(fields, name) if name in fields else () for name in ("userId", "channel"))
        position = await self._hub.disconnect(user_id=users, channel=channels, retry=fields.get("retry"))
        logger.info("disconnect at %s by %s", position, request.key)
        return JSONResponse({"id": position}) if is_json else PlainTextResponse("OK")


class Health(Endpoint):
    """`GET /healthz`: 200 while the process responds."""

    path = "/healthz"
    method = "GET"
    right = None
    description = Description("getHealth", "Ask if the process responds", [Answer(200, "It does.", {TEXT: STRING})])

    async def respond(self, request: ControlRequest) -> Response:
        return PlainTextResponse("ok\n")


class Readiness(Endpoint):
    """`GET /readyz`: 200 if the hub is ready for streams and events, otherwise 503 with the reasons."""

    path = "/readyz"
    method = "GET"
    right = None
    description = Description(
        "getReadiness",
        "Ask if the hub is ready for streams and events",
        [Answer(200, "It is.", {TEXT: STRING}), Answer(503, "It is not: a line for each reason.", {TEXT: STRING})],
    )

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    async def respond(self, request: ControlRequest) -> Response:
        reasons = self._hub.not_ready()
        return PlainTextResponse("\n".join(reasons or ["ready"]) + "\n", 503 if reasons else 200)
