"""The control app, which is private: `POST /token/`, `POST /emit/`, `POST /disconnect/`, health checks and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..address import LOOPBACK_HOSTS
from ..buckets import Buckets
from ..errors import BodyTooLarge, ConfigError, InvalidRequest, TooManyRequests
from ..event import Event
from ..fanout.limits import BURST_SECONDS, Refusal
from ..fields import check_name, json_text
from ..hub import Hub
from ..publication import IdempotencyKey, Publication
from ..settings import Limits
from ..tokens import Tokens
from .endpoint import Endpoint
from .forms import (
    JSON,
    NDJSON,
    form_fields,
    known_object,
    lifetime_seconds,
    media_type,
    names,
    parse_json,
    read_fields,
    refuse_null,
    required,
)
from .guard import Guard
from .metrics import GatherStatistics, Metrics
from .requests import ControlRequest

EMIT_FIELDS = ("userId", "channel", "data", "event", "id", "retry", "payload", "store", "ttl", "idempotencyKey")
DISCONNECT_FIELDS = ("userId", "channel", "retry")
TOKEN_FIELDS = ("userId", "channel", "exp")
TOKEN_JSON_FIELDS = ("userId", "channel", "channels", "exp")


def create_control_app(
    hub: Hub,
    *,
    tokens: Tokens,
    control_key: str | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    token_lifetime_seconds: float = 86_400,
    limits: Limits = Limits(),
    statistics: GatherStatistics | None = None,
    now: Callable[[], float] = time.time,
) -> Starlette:
    """Return the app that issues `tokens` and publishes to `hub`.

    With a `control_key`, every call except the health checks requires it. Without one, the app must be called at an
    address that other machines can't reach, with a `Host` of `allowed_hosts`: a web page that rebinds its DNS name to
    this machine sends another one.

    `statistics` returns what `/metrics` shows, if this hub is one of several workers. `now` returns Unix time.
    Raises ConfigError for an empty control key.
    """
    if control_key is not None and not control_key.strip():
        raise ConfigError("control_key is empty: give a random string, or None for no key")
    endpoints: list[Endpoint] = [
        Emit(hub, limits, control_key or ""),  # the most frequent call, so it is matched first
        IssueToken(tokens, token_lifetime_seconds, limits, now),
        Disconnect(hub, limits),
        Health(),
        Readiness(hub),
        Metrics(hub, statistics),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    app = Starlette(
        routes=[Route(endpoint.path + slash, endpoint) for endpoint in endpoints for slash in ("/", "")],
        middleware=[Middleware(Guard, control_key=control_key, allowed_hosts=allowed_hosts)],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class Emit(Endpoint):
    """`POST /emit/`: publishes one event from a form or a JSON object, or a batch from a JSON array or NDJSON."""

    path = "/emit"
    method = "POST"

    def __init__(self, hub: Hub, limits: Limits, control_key: str) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub
        self._max_event_bytes = limits.max_event_bytes
        self._max_batch_events = limits.max_batch_events
        self._control_key = control_key
        rate = limits.max_publishes_per_second
        self._rates = Buckets(rate, BURST_SECONDS, time.monotonic) if rate is not None else None

    async def respond(self, request: ControlRequest) -> Response:
        kind = media_type(request)
        if kind == NDJSON:
            lines = [line for line in request.body.split(b"\n") if line.strip()]
            values = [parse_json(f"line {n}", line) for n, line in enumerate(lines, 1)]
            return await self._publish_batch(request, values, "line {}", 1)
        if kind == JSON:
            value = parse_json("the body", request.body)
            if isinstance(value, list):
                return await self._publish_batch(request, value, "event {}", 0)
            ids = await self._publish(request, [self._keyed_event(known_object(value, EMIT_FIELDS))])
            return Response(f'{{"id":"{ids[0]}"}}', media_type=JSON)
        fields = await form_fields(request, kind, EMIT_FIELDS)
        await self._publish(request, [self._keyed_event(fields)])
        return PlainTextResponse("OK")

    async def _publish_batch(self, request: ControlRequest, values: list[Any], where: str, first: int) -> Response:
        """`where` and `first` name the events in errors, as in `line 1`."""
        if not values:
            raise InvalidRequest("the batch is empty: send at least one event")
        if len(values) > self._max_batch_events:
            raise BodyTooLarge(f"the batch has {len(values)} events: at most {self._max_batch_events} are allowed")
        events = []
        for number, value in enumerate(values, first):
            try:
                events.append(self._keyed_event(known_object(value, EMIT_FIELDS)))
            except InvalidRequest as exc:
                raise type(exc)(f"{where.format(number)}: {exc}") from exc
        ids = '","'.join(await self._publish(request, events))  # positions need no escapes in JSON
        return Response(f'{{"ids":["{ids}"]}}', media_type=JSON)

    def _keyed_event(self, fields: Mapping[str, Any]) -> tuple[Event, str | None]:
        """Return the event that `fields` describe, and its own idempotency key."""
        key = fields.get("idempotencyKey")
        return self._event(fields), None if key is None else check_name("idempotencyKey", key)

    def _event(self, fields: Mapping[str, Any]) -> Event:
        refuse_null(fields)
        get = fields.get
        data = get("data")
        event = Event(
            names(fields, "channel"),
            names(fields, "userId"),
            None if data is None else json_text(data),
            get("event"),
            get("id"),
            get("retry"),
            get("payload"),
            get("store", True),
            get("ttl"),
        )
        if event.size > self._max_event_bytes:
            field = "data" if event.payload is None else "payload"
            raise BodyTooLarge(f"{field} has {event.size} bytes: at most {self._max_event_bytes} are allowed")
        return event

    async def _publish(self, request: ControlRequest, keyed_events: list[tuple[Event, str | None]]) -> list[str]:
        """Publish events, each with its own idempotency key, or all together with the key of the header."""
        events = [event for event, _ in keyed_events]
        if self._rates is not None:
            self._check_rate(self._rates, len(events))
        has_keys = any([key is not None for _, key in keyed_events])
        header = request.headers.get("idempotency-key")
        if header is None and not has_keys:
            return await self._hub.publish_events(events)
        if header is not None:
            if has_keys:
                raise InvalidRequest("Idempotency-Key and idempotencyKey are both given: leave one out")
            key = _header_key(header)
            return await self._hub.publish_all([Publication(events, self._idempotency_key(key, events))])
        return await self._hub.publish_all(
            [
                Publication([event], None if key is None else self._idempotency_key(key, [event]))
                for event, key in keyed_events
            ]
        )

    def _check_rate(self, rates: Buckets, events: int) -> None:
        """Raise TooManyRequests if the control key is over its rate. A batch costs as much as it has events."""
        if not rates.spend(self._control_key, events):
            self._hub.count_refusal(Refusal.PUBLISH_RATE)
            raise TooManyRequests(
                "more events than max_publishes_per_second: try again later",
                rates.wait_seconds(self._control_key),
            )

    def _idempotency_key(self, key: str, events: list[Event]) -> IdempotencyKey:
        channels = sorted({channel for event in events for channel in event.channels})
        return IdempotencyKey.make(key, (self._control_key, *channels), events)


def _header_key(value: str) -> str:
    """Return the key of an `Idempotency-Key` header, bare or in quotes as the IETF draft writes it."""
    key = value.encode("latin-1").decode(errors="replace")
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    return check_name("Idempotency-Key", key)


class IssueToken(Endpoint):
    """`POST /token/`: issues a token."""

    path = "/token"
    method = "POST"

    def __init__(self, tokens: Tokens, lifetime_seconds: float, limits: Limits, now: Callable[[], float]) -> None:
        super().__init__(limits.max_body_bytes)
        self._tokens = tokens
        self._lifetime_seconds = lifetime_seconds
        self._now = now

    async def respond(self, request: ControlRequest) -> Response:
        fields, is_json = await read_fields(request, TOKEN_FIELDS, TOKEN_JSON_FIELDS)
        expires_at = int(self._now() + lifetime_seconds(fields, self._lifetime_seconds))
        token = self._tokens.issue(required(fields, "userId"), _token_channels(fields), expires_at=expires_at)
        no_store = {"Cache-Control": "no-store"}
        if is_json:
            return JSONResponse({"token": token, "expiresAt": expires_at}, headers=no_store)
        return PlainTextResponse(token, headers=no_store)


def _token_channels(fields: Mapping[str, Any]) -> list[str]:
    if "channels" not in fields:
        return list(names(fields, "channel"))
    if "channel" in fields:
        raise InvalidRequest("channel and channels are both given: leave one out")
    if not isinstance(fields["channels"], list):
        raise InvalidRequest("channels must be a list of names")
    return list(fields["channels"])


class Disconnect(Endpoint):
    """`POST /disconnect/`: ends the open streams of a user, of a channel, or of a user on a channel."""

    path = "/disconnect"
    method = "POST"

    def __init__(self, hub: Hub, limits: Limits) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub

    async def respond(self, request: ControlRequest) -> Response:
        fields, is_json = await read_fields(request, DISCONNECT_FIELDS)
        refuse_null(fields)
        users, channels = (names(fields, name) if name in fields else () for name in ("userId", "channel"))
        position = await self._hub.disconnect(user_id=users, channel=channels, retry=fields.get("retry"))
        return JSONResponse({"id": position}) if is_json else PlainTextResponse("OK")


class Health(Endpoint):
    """`GET /healthz`: 200 while the process responds."""

    path = "/healthz"
    method = "GET"

    async def respond(self, request: ControlRequest) -> Response:
        return PlainTextResponse("ok\n")


class Readiness(Endpoint):
    """`GET /readyz`: 200 if the hub is ready for streams and events, otherwise 503 with the reasons."""

    path = "/readyz"
    method = "GET"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    async def respond(self, request: ControlRequest) -> Response:
        reasons = self._hub.not_ready()
        return PlainTextResponse("\n".join(reasons or ["ready"]) + "\n", 503 if reasons else 200)
