"""The control app, which is private: tokens, events, runs, the end of streams and of access, health and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
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
from .emit import Emit
from .endpoint import Endpoint, Methods
from .explain import Explain
from .forms import (
    lifetime_seconds,
    names,
    read_fields,
    refuse_null,
    required,
)
from .guard import RUNS, Guard
from .metrics import Metrics
from .not_found import not_found
from .rates import PublishRates
from .refusals import Refusals
from .requests import ControlRequest
from .responses import counting_failures, counting_responses
from .revoke import ListRevocations, Revoke, TakeBack
from .runs import RunCalls
from .statistics import GetStatistics
from .statistics_events import FollowStatistics
from .streams import ListChannels, ListStreams
from .trace import FollowTrace

logger = limited_logger("ssehub.control")
DISCONNECT_FIELDS = ("userId", "channel", "retry")
TOKEN_FIELDS = ("userId", "channel", "exp")
TOKEN_JSON_FIELDS = ("userId", "channel", "channels", "patterns", "exp", "expiresIn")


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
) -> Starlette:
    """Return the app that issues `tokens` and publishes to `hub`.

    With a `control_key`, every call except the health checks requires it. With `control_keys` in its place, each
    requires one of them that has the right for it. Without either, the app must be called at an address that other
    machines can't reach, with a `Host` of `allowed_hosts`: a web page that rebinds its DNS name to this machine sends
    another one.

    Of `request_limits`, the deadline of a body is that of a line of an append; the others are for the server.
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
    rates = PublishRates(limits.max_publishes_per_second)
    endpoints: list[Endpoint | Methods] = [
        Emit(hub, limits, rates),  # the most frequent call, so it is matched first
        IssueToken(hub, tokens, token_lifetime_seconds, limits, now),
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
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    runs = RunCalls(hub, refusals, keys, limits, request_limits, rates)
    served = ", ".join(f"{path}/" for path in [*(endpoint.path for endpoint in endpoints), RUNS])
    elsewhere = (
        f"not found: this is the control app, with {served}; streams are at /events/ of the client app, on another "
        "port (bind, by default 127.0.0.1:8000)\n"
    )
    routes = [Route(endpoint.path + slash, endpoint) for endpoint in endpoints for slash in ("/", "")]
    routes[2:2] = runs.routes()
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(counting_responses, hub=hub),
            Middleware(Guard, keys=keys, allowed_hosts=allowed_hosts),
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


class IssueToken(Endpoint):
    """`POST /token/`: issues a token for streams of `hub`."""

    path = "/token"
    method = "POST"
    right = Right.TOKEN

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

    path = "/disconnect"
    method = "POST"
    right = Right.DISCONNECT

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

    async def respond(self, request: ControlRequest) -> Response:
        return PlainTextResponse("ok\n")


class Readiness(Endpoint):
    """`GET /readyz`: 200 if the hub is ready for streams and events, otherwise 503 with the reasons."""

    path = "/readyz"
    method = "GET"
    right = None

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    async def respond(self, request: ControlRequest) -> Response:
        reasons = self._hub.not_ready()
        return PlainTextResponse("\n".join(reasons or ["ready"]) + "\n", 503 if reasons else 200)
