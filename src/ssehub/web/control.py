"""The control app, which is private: `/token/`, `/emit/`, `/disconnect/`, `/revoke/`, health checks and metrics."""

from __future__ import annotations

import asyncio
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
from ..claims import Claims
from ..control_keys import ControlKeys
from ..errors import BodyTooLarge, ConfigError, InvalidRequest, TooManyRequests
from ..event import Event
from ..fanout.limits import BURST_SECONDS, Refusal
from ..fields import check_name, check_names, json_text
from ..hub import Hub
from ..loglimit import limited_logger
from ..publication import BodyDigest, IdempotencyKey, Publication
from ..rights import ControlKey, Right
from ..settings import Limits
from ..tokens import Tokens
from .endpoint import Endpoint, Methods
from .forms import (
    JSON,
    NDJSON,
    form_fields,
    known_object,
    lifetime_seconds,
    media_type,
    names,
    read_fields,
    refuse_null,
    required,
)
from .guard import Guard
from .metrics import GatherStatistics, Metrics
from .pace import Pace, pace_for
from .requests import ControlRequest
from .revoke import ListRevocations, Revoke, TakeBack
from .strict_json import parse_json, read_json, read_ndjson, too_many_events

logger = limited_logger("ssehub.control")

EMIT_FIELDS = ("userId", "channel", "data", "event", "id", "retry", "payload", "store", "ttl", "idempotencyKey")
DISCONNECT_FIELDS = ("userId", "channel", "retry")
TOKEN_FIELDS = ("userId", "channel", "exp")
TOKEN_JSON_FIELDS = ("userId", "channel", "channels", "patterns", "exp", "expiresIn")


def create_control_app(
    hub: Hub,
    *,
    tokens: Tokens,
    control_key: str | None = None,
    control_keys: ControlKeys | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    token_lifetime_seconds: float = 86_400,
    limits: Limits = Limits(),
    statistics: GatherStatistics | None = None,
    now: Callable[[], float] = time.time,
) -> Starlette:
    """Return the app that issues `tokens` and publishes to `hub`.

    With a `control_key`, every call except the health checks requires it. With `control_keys` in its place, each
    requires one of them that has the right for it. Without either, the app must be called at an address that other
    machines can't reach, with a `Host` of `allowed_hosts`: a web page that rebinds its DNS name to this machine sends
    another one.

    `statistics` returns what `/metrics` shows, if this hub is one of several workers. `now` returns Unix time.
    Raises ConfigError for a control key that is empty, well known or shorter than 16 bytes.
    """
    if control_key is not None and control_keys is not None:
        raise ConfigError("control_key and control_keys are both given: use ControlKeys(control_key, file=…)")
    keys = control_keys or ControlKeys(control_key)
    hub.accompany(tokens)
    hub.accompany(keys)
    endpoints: list[Endpoint | Methods] = [
        Emit(hub, limits),  # the most frequent call, so it is matched first
        IssueToken(hub, tokens, token_lifetime_seconds, limits, now),
        Disconnect(hub, limits),
        Methods(Revoke(hub, tokens, limits), TakeBack(hub, tokens, limits), ListRevocations(hub)),
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
        middleware=[Middleware(Guard, keys=keys, allowed_hosts=allowed_hosts)],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


_KeyedEvent = tuple[Event, str | None]


class Emit(Endpoint):
    """`POST /emit/`: publishes one event from a form or a JSON object, or a batch from a JSON array or NDJSON."""

    path = "/emit"
    method = "POST"
    right = Right.PUBLISH

    def __init__(self, hub: Hub, limits: Limits) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub
        self._max_event_bytes = limits.max_event_bytes
        self._max_batch_events = limits.max_batch_events
        self._turn = asyncio.Lock()
        """Large bodies are read one after the other: each takes its slices, and all of them together would block."""
        rate = limits.max_publishes_per_second
        self._rates = Buckets(rate, BURST_SECONDS, time.monotonic) if rate is not None else None

    async def respond(self, request: ControlRequest) -> Response:
        kind = media_type(request)
        pace = pace_for(request.body)
        if pace is None:
            events, is_batch = await self._read(request, kind, None)
        else:
            async with self._turn:
                events, is_batch = await self._read(request, kind, pace)
        if request.key.grant is not None:
            await self._require_channels(request.key, events, kind if is_batch else None, pace)
        ids = await self._publish(request, events, pace)
        if is_batch:
            listed = '","'.join(ids)  # positions need no escapes in JSON
            return Response(f'{{"ids":["{listed}"]}}', media_type=JSON)
        if kind == JSON:
            return Response(f'{{"id":"{ids[0]}"}}', media_type=JSON)
        return PlainTextResponse("OK")

    async def _read(self, request: ControlRequest, kind: str, pace: Pace | None) -> tuple[list[_KeyedEvent], bool]:
        """Return the events of the request, and True if it is a batch. A large body needs a `pace`."""
        if kind == NDJSON:
            values = await read_ndjson(request.body, self._max_batch_events, pace)
            return await self._batch(values, "line {}", 1, pace), True
        if kind != JSON:
            fields = await form_fields(request, kind, EMIT_FIELDS, pace, self._max_event_bytes)
            return [self._keyed_event(fields)], False
        if pace is None:
            value = parse_json("the body", request.body)
        else:
            value = await read_json("the body", request.body, self._max_batch_events, pace)
        if isinstance(value, list):
            return await self._batch(value, "event {}", 0, pace), True
        return [self._keyed_event(known_object(value, EMIT_FIELDS))], False

    async def _batch(self, values: list[Any], where: str, first: int, pace: Pace | None) -> list[_KeyedEvent]:
        """`where` and `first` name the events in errors, as in `line 1`."""
        if not values:
            raise InvalidRequest("the batch is empty: send at least one event")
        if len(values) > self._max_batch_events:
            raise too_many_events(self._max_batch_events)
        events = []
        for number, value in enumerate(values, first):
            if pace is not None and pace.is_due:
                await pace.rest()
            try:
                events.append(self._keyed_event(known_object(value, EMIT_FIELDS)))
            except InvalidRequest as exc:
                raise type(exc)(f"{where.format(number)}: {exc}") from exc
        return events

    def _keyed_event(self, fields: Mapping[str, Any]) -> _KeyedEvent:
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

    @staticmethod
    async def _require_channels(
        key: ControlKey, keyed_events: list[_KeyedEvent], batch: str | None, pace: Pace | None
    ) -> None:
        """Raise KeyForbidden, which names the event of a `batch` of that media type, if `key` may not publish all."""
        if batch is None:
            key.require_channels(keyed_events[0][0].channels)
            return
        where, first = ("line {}: ", 1) if batch == NDJSON else ("event {}: ", 0)
        for number, (event, _) in enumerate(keyed_events, first):
            if pace is not None and pace.is_due:
                await pace.rest()
            key.require_channels(event.channels, where.format(number))

    async def _publish(self, request: ControlRequest, keyed_events: list[_KeyedEvent], pace: Pace | None) -> list[str]:
        """Publish events, each with its own idempotency key, or all together with the key of the header."""
        events = [event for event, _ in keyed_events]
        name = request.key.name
        if self._rates is not None:
            self._check_rate(self._rates, name, len(events))
        has_keys = any([key is not None for _, key in keyed_events])
        header = request.headers.get("idempotency-key")
        if header is None and not has_keys:
            return await self._hub.publish_events(events)
        if header is not None:
            if has_keys:
                raise InvalidRequest("Idempotency-Key and idempotencyKey are both given: leave one out")
            whole = await self._idempotency_key(_header_key(header), name, events, pace)
            return await self._hub.publish_all([Publication(events, whole)])
        return await self._hub.publish_all(
            [
                Publication([event], None if key is None else await self._idempotency_key(key, name, [event], pace))
                for event, key in keyed_events
            ]
        )

    def _check_rate(self, rates: Buckets, key_name: str, events: int) -> None:
        """Raise TooManyRequests if the control key is over its rate. A batch costs as much as it has events."""
        if not rates.spend(key_name, events):
            self._hub.count_refusal(Refusal.PUBLISH_RATE)
            wait = rates.wait_seconds(key_name)
            raise TooManyRequests(f"more events than max_publishes_per_second: try again in {wait:.1f} s", wait)

    @staticmethod
    async def _idempotency_key(key: str, owner: str, events: list[Event], pace: Pace | None) -> IdempotencyKey:
        """Return the idempotency key that belongs to the control key named `owner`, on the channels of `events`."""
        channels = sorted({channel for event in events for channel in event.channels})
        body = BodyDigest()
        for event in events:
            if pace is not None and pace.is_due:
                await pace.rest()
            body.add(event)
        return IdempotencyKey.of(key, (owner, *channels), body)


def _header_key(value: str) -> str:
    """Return the key of an `Idempotency-Key` header, bare or in quotes as the IETF draft writes it."""
    key = value.encode("latin-1").decode(errors="replace")
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    return check_name("Idempotency-Key", key)


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
