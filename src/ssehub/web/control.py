"""The control app, which is private: `POST /token/`, `POST /emit/`, `POST /disconnect/`, health and metrics."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import (
    BodyTooLarge,
    ConfigError,
    ControlKeyError,
    Forbidden,
    InvalidEvent,
    InvalidRequest,
    SSEHubError,
    Unavailable,
)
from ..event import Event
from ..fanout.statistics import Statistics
from ..fields import check_name, json_text
from ..hub import Hub
from ..publication import IdempotencyKey, Publication
from ..settings import Limits
from ..tokens import Tokens
from .forms import (
    JSON,
    NDJSON,
    RequestHeaders,
    content_type,
    drop_body,
    form_fields,
    known_object,
    parse_json,
    read_body,
    request_headers,
)
from .origins import is_own_page

logger = logging.getLogger("ssehub.control")

EMIT_FIELDS = ("userId", "channel", "data", "event", "id", "retry", "payload", "store", "ttl", "idempotencyKey")
DISCONNECT_FIELDS = ("userId", "channel", "retry")
TOKEN_FIELDS = ("userId", "channel", "exp")
TOKEN_JSON_FIELDS = ("userId", "channel", "channels", "exp")
OPEN_PATHS = ("/healthz", "/healthz/", "/readyz", "/readyz/")
"""What a load balancer asks, without key and by whatever name it knows us."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
RETRY_AFTER_SECONDS = "1"

Answer = Callable[[Scope, RequestHeaders, bytes], Awaitable[Response]]


def create_control_app(
    hub: Hub,
    *,
    tokens: Tokens,
    control_key: str | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    token_lifetime_seconds: float = 86_400,
    limits: Limits = Limits(),
    statistics: Callable[[], Awaitable[Mapping[str, Statistics]]] | None = None,
    now: Callable[[], float] = time.time,
) -> Starlette:
    """The app that issues `tokens` and publishes to `hub`.

    `statistics` are what `/metrics` shows, by worker, where this hub is not the only one behind the address.

    With a `control_key`, each call but the health checks needs it; without one, the app answers only by a name of
    `allowed_hosts`, which keeps web pages out that rebind their DNS name to this machine.
    """
    if control_key is not None and not control_key.strip():
        raise ConfigError("control_key is empty, which everybody knows: give a random string, or None for no key")
    issue = IssueToken(tokens, token_lifetime_seconds, now)
    emit = Emit(hub, limits, control_key or "")
    endpoints: dict[str, ASGIApp] = {
        # The one that is called most is matched first.
        "/emit": _Endpoint("POST", emit, limits.max_body_bytes),
        "/token": _Endpoint("POST", issue, limits.max_body_bytes),
        "/disconnect": _Endpoint("POST", _disconnect(hub), limits.max_body_bytes),
        "/healthz": _Endpoint("GET", _healthz, 0),
        "/readyz": _Endpoint("GET", _readyz(hub), 0),
        "/metrics": _Endpoint("GET", _metrics(hub, statistics), 0),
    }

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    app = Starlette(
        routes=[Route(path + slash, endpoint) for path, endpoint in endpoints.items() for slash in ("/", "")],
        middleware=[Middleware(Guard, control_key=control_key, allowed_hosts=allowed_hosts)],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class Guard:
    """Keeps out web pages and, where there is a key, whoever has it not.

    Any page can make a browser POST a form to this machine; then the browser says so in `Origin` or `Sec-Fetch-Site`.
    """

    def __init__(self, app: ASGIApp, control_key: str | None, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._key = control_key.encode() if control_key is not None else None
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) not in OPEN_PATHS:
            headers = request_headers(scope)
            try:
                self._check(headers, scope.get("server"))
            except SSEHubError as exc:
                await _error(exc, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: RequestHeaders, server: Sequence[Any] | None) -> None:
        host = headers.get("host", "").lower()
        if self._key is None:
            self._check_host(host, server)
        if not is_own_page(headers):
            raise Forbidden("a web page of another origin may not call this")
        if self._key is not None:
            self._check_key(self._key, headers.get("authorization", ""))

    def _check_host(self, host: str, server: Sequence[Any] | None) -> None:
        """`server` is the address that was called, as ASGI has it: with a port of None, a Unix socket."""
        if _host_name(host) not in self._hosts:
            raise Forbidden("this Host is not allowed: call it by a loopback name, or add yours to control_hosts")
        if server is not None and server[1] is not None and not self._is_ours(str(server[0])):
            raise Forbidden("other machines reach this address: set a control key, or listen on loopback")

    def _is_ours(self, address: str) -> bool:
        is_loopback = _is_loopback(address)
        return address in self._hosts if is_loopback is None else is_loopback

    @staticmethod
    def _check_key(key: bytes, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), key):
            raise ControlKeyError("the control key is needed: send it as 'Authorization: Bearer KEY'")


@lru_cache(64)
def _is_loopback(address: str) -> bool | None:
    """None where `address` is a name."""
    try:
        return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    except ValueError:
        return None


class _Endpoint:
    """Answers one method, with the body read and errors turned into answers; an ASGI app, which is quicker to call."""

    def __init__(self, method: str, answer: Answer, max_body_bytes: int) -> None:
        self._method = method
        self._answer = answer
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = request_headers(scope)
        response: Response
        if scope["method"] != self._method and (scope["method"], self._method) != ("HEAD", "GET"):
            response = PlainTextResponse(f"only {self._method} is answered here\n", 405, {"Allow": self._method})
        else:
            try:
                body = await read_body(headers, receive, self._max_body_bytes) if self._method == "POST" else b""
            except ClientDisconnect:
                return
            except SSEHubError as exc:
                await _refuse_body(_error(exc, headers), receive, send)
                return
            try:
                response = await self._answer(scope, headers, body)
            except SSEHubError as exc:
                response = _error(exc, headers)
        await response(scope, receive, send)


async def _refuse_body(response: Response, receive: Receive, send: Send) -> None:
    """Answer at once, for those who read while they send, and end when the others have sent the rest, too."""
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await drop_body(receive)
    await send({"type": "http.response.body", "body": b""})


class IssueToken:
    """`POST /token/`."""

    def __init__(self, tokens: Tokens, lifetime_seconds: float, now: Callable[[], float]) -> None:
        self._tokens = tokens
        self._lifetime = lifetime_seconds
        self._now = now

    async def __call__(self, scope: Scope, headers: RequestHeaders, body: bytes) -> Response:
        kind = content_type(headers, body)
        is_json = kind in (JSON, NDJSON)
        if is_json:
            fields = known_object(parse_json("the body", body), TOKEN_JSON_FIELDS)
        else:
            fields = await form_fields(scope, headers, kind, body, TOKEN_FIELDS)
        expires_at = int(self._now() + _lifetime(fields.get("exp"), self._lifetime))
        token = self._tokens.issue(_required(fields, "userId"), _token_channels(fields), expires_at=expires_at)
        no_store = {"Cache-Control": "no-store"}
        if is_json:
            return JSONResponse({"token": token, "expiresAt": expires_at}, headers=no_store)
        return PlainTextResponse(token, headers=no_store)


class Emit:
    """`POST /emit/`: one event from a form or a JSON object, or a batch from a JSON array or NDJSON."""

    def __init__(self, hub: Hub, limits: Limits, control_key: str) -> None:
        self._hub = hub
        self._max_event_bytes = limits.max_event_bytes
        self._max_batch_events = limits.max_batch_events
        self._control_key = control_key

    async def __call__(self, scope: Scope, headers: RequestHeaders, body: bytes) -> Response:
        kind = content_type(headers, body)
        if kind == NDJSON:
            lines = [line for line in body.split(b"\n") if line.strip()]
            values = [parse_json(f"line {n}", line) for n, line in enumerate(lines, 1)]
            return await self._batch(headers, values, "line {}", 1)
        if kind == JSON:
            value = parse_json("the body", body)
            if isinstance(value, list):
                return await self._batch(headers, value, "event {}", 0)
            ids = await self._publish(headers, [(self._event(known_object(value, EMIT_FIELDS)), _key(value))])
            return Response(f'{{"id":"{ids[0]}"}}', media_type=JSON)
        fields = await form_fields(scope, headers, kind, body, EMIT_FIELDS)
        await self._publish(headers, [(self._event(_form_values(fields)), _key(fields))])
        return PlainTextResponse("OK")

    async def _batch(self, headers: RequestHeaders, values: list[Any], where: str, first: int) -> Response:
        if not values:
            raise InvalidRequest("the batch is empty: send an event or more")
        if len(values) > self._max_batch_events:
            raise BodyTooLarge(f"the batch has {len(values)} events: {self._max_batch_events} are the most")
        events = []
        for number, value in enumerate(values, first):
            try:
                events.append((self._event(known_object(value, EMIT_FIELDS)), _key(value)))
            except InvalidRequest as exc:
                raise type(exc)(f"{where.format(number)}: {exc}") from exc
        ids = '","'.join(await self._publish(headers, events))  # positions hold nothing that JSON would escape
        return Response(f'{{"ids":["{ids}"]}}', media_type=JSON)

    async def _publish(self, headers: RequestHeaders, keyed: list[tuple[Event, str | None]]) -> list[str]:
        """Publish events, each with the key of its own field, or all with the one of the request's header."""
        events = [event for event, _ in keyed]
        has_keys = any([key is not None for _, key in keyed])
        header = headers.get("idempotency-key")
        if header is None and not has_keys:
            return await self._hub.publish_events(events)
        if header is not None:
            if has_keys:
                raise InvalidRequest("Idempotency-Key and idempotencyKey are both given: leave one out")
            key = _unquoted(header)
            return await self._hub.publish_all([Publication(events, self._idempotency_key(key, events))])
        return await self._hub.publish_all(
            [Publication([event], None if key is None else self._idempotency_key(key, [event])) for event, key in keyed]
        )

    def _idempotency_key(self, key: str, events: list[Event]) -> IdempotencyKey:
        channels = sorted({channel for event in events for channel in event.channels})
        return IdempotencyKey.make(key, (self._control_key, *channels), events)

    def _event(self, fields: Mapping[str, Any]) -> Event:
        _refuse_null(fields)
        get = fields.get
        data = get("data")
        event = Event(
            _names(fields, "channel"),
            _names(fields, "userId"),
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
            raise BodyTooLarge(f"{field} has {event.size} bytes: {self._max_event_bytes} are the most")
        return event


def _disconnect(hub: Hub) -> Answer:
    """`POST /disconnect/`: end the open streams of a user, of a channel, or of a user on a channel."""

    async def answer(scope: Scope, headers: RequestHeaders, body: bytes) -> Response:
        kind = content_type(headers, body)
        is_json = kind in (JSON, NDJSON)
        fields: Mapping[str, Any]
        if is_json:
            fields = known_object(parse_json("the body", body), DISCONNECT_FIELDS)
        else:
            fields = _form_values(await form_fields(scope, headers, kind, body, DISCONNECT_FIELDS))
        _refuse_null(fields)
        users, channels = (_names(fields, name) if name in fields else () for name in ("userId", "channel"))
        position = await hub.disconnect(user_id=users, channel=channels, retry=fields.get("retry"))
        return JSONResponse({"id": position}) if is_json else PlainTextResponse("OK")

    return answer


def _refuse_null(fields: Mapping[str, Any]) -> None:
    if None in fields.values():
        name = next(name for name, value in fields.items() if value is None)
        raise InvalidEvent(f"{name} is null: leave it out, or give a value")


def _required(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        raise InvalidRequest(f"{name} is missing")
    return value


def _key(fields: Mapping[str, Any]) -> str | None:
    key = fields.get("idempotencyKey")
    return None if key is None else check_name("idempotencyKey", key)


def _unquoted(key: str) -> str:
    """The key of a header: as it stands, or as the IETF's draft writes it, in quotes."""
    key = key.encode("latin-1").decode(errors="replace")
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    return check_name("Idempotency-Key", key)


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if isinstance(value, str):
        return (value,)
    value = _required(fields, name)
    return tuple(value) if isinstance(value, list) else (value,)


def _token_channels(fields: Mapping[str, Any]) -> list[str]:
    if "channels" not in fields:
        return list(_names(fields, "channel"))
    if "channel" in fields:
        raise InvalidRequest("channel and channels are both given: leave one out")
    if not isinstance(fields["channels"], list):
        raise InvalidRequest("channels must be a list of names")
    return list(fields["channels"])


def _form_values(fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a form, as JSON would have them."""
    return {name: _FORM_VALUES[name](value) if name in _FORM_VALUES else value for name, value in fields.items()}


def _form_retry(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidEvent(f"retry {text[:40]!r} is no number of milliseconds: write digits only")
    return int(text)


def _form_store(text: str) -> bool:
    if text not in ("true", "false"):
        raise InvalidEvent(f"store must be true or false, not {text[:40]!r}")
    return text == "true"


def _form_ttl(text: str) -> float:
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
        raise InvalidEvent(f"ttl {text[:40]!r} is no positive number of seconds")
    return float(text)


_FORM_VALUES: dict[str, Callable[[str], Any]] = {"retry": _form_retry, "store": _form_store, "ttl": _form_ttl}


def _lifetime(value: Any, default: float) -> float:
    """Seconds from now, from what came as `exp`."""
    if value is None:
        return default
    if isinstance(value, str):
        text = value[:40]
        if not (text.isascii() and text.isdigit()):
            raise InvalidRequest(f"exp {text!r} is no number of seconds from now, such as 86400")
        value = int(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**40:
        raise InvalidRequest(f"exp {str(value)[:40]} is no number of seconds from now, such as 86400")
    return float(value)


def _host_name(host: str) -> str:
    """A `Host` without its port (RFC 9110, 7.2)."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _error(exc: SSEHubError, headers: RequestHeaders) -> Response:
    extra = {}
    if isinstance(exc, Unavailable):
        extra["Retry-After"] = RETRY_AFTER_SECONDS
        logger.warning("answered 503: %s", exc)
    if isinstance(exc, ControlKeyError):
        extra["WWW-Authenticate"] = "Bearer"
    message = str(exc).encode(errors="backslashreplace").decode()
    if headers.get("content-type", "").partition(";")[0].strip().lower() in (JSON, NDJSON):
        return JSONResponse({"error": message}, exc.status, extra)
    return PlainTextResponse(f"{message}\n", exc.status, extra)


async def _healthz(scope: Scope, headers: RequestHeaders, body: bytes) -> Response:
    return PlainTextResponse("ok\n")


def _readyz(hub: Hub) -> Answer:
    async def answer(scope: Scope, headers: RequestHeaders, body: bytes) -> Response:
        reasons = hub.not_ready()
        return PlainTextResponse("\n".join(reasons or ["ready"]) + "\n", 503 if reasons else 200)

    return answer


def _metrics(hub: Hub, statistics: Callable[[], Awaitable[Mapping[str, Statistics]]] | None) -> Answer:
    async def answer(scope: Scope, headers: RequestHeaders, body: bytes) -> Response:
        registry = CollectorRegistry()
        registry.register(HubCollector(await statistics() if statistics is not None else {"": hub.statistics}))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return answer


class HubCollector(Collector):
    """The numbers of hubs, by worker, as they are when somebody asks, so that counting costs the hubs nothing."""

    def __init__(self, statistics: Mapping[str, Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """Each metric once, with the samples of every worker."""
        for metrics in zip(*[self._metrics(now) for now in self._statistics.values()], strict=True):
            first = metrics[0]
            for worker, metric in zip(self._statistics, metrics, strict=True):
                labels = {"worker": worker} if worker else {}
                samples = [sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples]
                first.samples = samples if metric is first else first.samples + samples
            yield first

    def _metrics(self, now: Statistics) -> Iterator[Metric]:
        for name, help, value in (
            ("subscribers", "Streams that are open.", now.subscribers),
            ("channels", "Channels that somebody listens to.", now.channels),
            ("lagging", "Streams over their backlog bound.", now.lagging),
            ("backlog_bytes", "Bytes that connections have not taken.", now.backlog_bytes),
            ("waiting_bytes", "Bytes that wait for a round.", now.waiting_bytes),
            ("waiting_publishers", "Publishers that wait for room.", now.waiting_publishers),
            ("history_events", "Events that are kept for those who come back.", now.history_events),
            ("history_bytes", "What they take.", now.history_bytes),
            ("broker_ready", "Whether the log can be read and written.", now.broker_ready),
            ("loop_lag_seconds", "How late the event loop's last tick came.", now.loop_lag_seconds),
        ):
            yield GaugeMetricFamily(f"ssehub_{name}", help, value)
        for name, help, value in (
            ("streams", "Streams that were opened.", now.connected),
            ("events_published", "Events that publishers were answered.", now.published),
            ("events_delivered", "Events that were written to streams.", now.delivered),
            ("events_replayed", "Events that were written to those who came back.", now.replayed),
            ("delivered_bytes", "Bytes of events that were written to streams.", now.delivered_bytes),
            ("log_skipped_entries", "Entries of the log that were none of ours, or broken.", now.log_skipped_entries),
        ):
            yield CounterMetricFamily(f"ssehub_{name}", help, value)
        yield _by_reason("endings", "Streams that ended, by reason.", now.endings)
        yield _by_reason("resets", "Clients that may have missed something, by reason.", now.resets)
        yield self._rounds(now)

    @staticmethod
    def _rounds(now: Statistics) -> Metric:
        total, buckets = 0, []
        for bound, count in zip((*now.round_bounds, "+Inf"), now.round_counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        return HistogramMetricFamily("ssehub_round_seconds", "How long rounds took.", buckets, now.round_seconds)


def _by_reason(name: str, help: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"ssehub_{name}", help, labels=["reason"])
    for reason, count in counts.items():
        family.add_metric([reason], count)
    return family
