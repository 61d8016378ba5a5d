"""`POST /emit/`: events in all their forms, alone and in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import BodyTooLarge, InvalidRequest
from ..event import Event
from ..fields import check_key, json_text
from ..pace import Pace, pace_for
from ..publication import BodyDigest, IdempotencyKey, Publication
from ..rights import ControlKey, Right
from .description import Answer, Description, Field, Shape, any_of, fields_body, list_of, object_of
from .emit_stream import STREAM_ANSWERS, STREAM_PARAMETERS, EmitStream, asks_for_stream
from .endpoint import Endpoint
from .forms import FORM, JSON, NDJSON, form_fields, known_object, media_type, names, refuse_null, small_form_fields
from .ingress import Ingress
from .requests import ControlRequest, idempotency_key
from .responses import SharedResponse
from .schemas import (
    ANY_BUT_NULL,
    BOOLEAN,
    EVENT_ID,
    IDEMPOTENCY_KEY,
    NAME,
    OK,
    POSITION,
    RETRY,
    STRING,
    TTL,
    TYPE,
    names_field,
)
from .strict_json import parse_json, read_json, read_ndjson, too_many_events

EMIT_FIELDS = {
    "userId": names_field("The user it is for, or `*` for everyone on the channel."),
    "channel": names_field("The channel to publish on. Users multiplied by channels are at most 1,000."),
    "data": Field(
        ANY_BUT_NULL,
        "The text of the event. In JSON any value but null: if it is not a string, it is sent as JSON.",
        STRING,
    ),
    "event": Field(TYPE, "The type of the event."),
    "id": Field(EVENT_ID, "An id in place of the event's position in the log."),
    "retry": Field(RETRY, "How many milliseconds the browser waits before it reconnects."),
    "payload": Field(
        {"type": "string", "minLength": 1},
        "Raw stream text, in place of `data`, `event`, `id` and `retry`. What is in it is checked like these.",
    ),
    "store": Field(BOOLEAN, "False: the event reaches only clients that are connected now, and can't have an `id`."),
    "ttl": Field(TTL, "How many seconds the event stays available to reconnecting clients."),
    "idempotencyKey": Field(NAME, "As the header `Idempotency-Key`, for this event alone."),
}
_DELIVERY = ("store", "ttl", "idempotencyKey")
_EVENT = (
    Shape(
        "Event",
        ("userId", "channel", "data"),
        ("event", "id", "retry", *_DELIVERY),
        rules={"dependentSchemas": {"id": {"properties": {"store": {"const": True}}}}},
    ),
    Shape("RawEvent", ("userId", "channel", "payload"), _DELIVERY),
)
_ONE = fields_body(EMIT_FIELDS, _EVENT)
_SEVERAL = list_of(_ONE[JSON], least=1)

_OK = SharedResponse("OK")
_KeyedEvent = tuple[Event, str | None]


def _published(id: str, kind: str) -> Response:
    """Return the answer to a request of the media type `kind`: its one event was published with this `id`."""
    return Response(f'{{"id":"{id}"}}', media_type=JSON) if kind == JSON else _OK


class Emit(Endpoint):
    """`POST /emit/`: publishes one event from a form or a JSON object, or a batch from a JSON array or NDJSON."""

    path = "/emit/"
    method = "POST"
    right = Right.PUBLISH
    description = Description(
        "emit",
        "Publish one event, or a batch that is published whole or not at all",
        [
            Answer(
                200,
                "The event is stored, or all of the batch. A form is answered with OK.",
                {
                    **OK,
                    JSON: any_of([object_of({"id": POSITION}), object_of({"ids": list_of(POSITION)})]),
                    NDJSON: list_of(any_of(STREAM_ANSWERS)),
                },
            )
        ],
        [IDEMPOTENCY_KEY, *STREAM_PARAMETERS],
        {**_ONE, JSON: any_of([_ONE[JSON], _SEVERAL]), NDJSON: _SEVERAL},
        refusals=(422, 429, 503),
        text=(
            "An event has at most `max_event_bytes`, a batch at most `max_batch_events`. With `stream=1` the body is "
            "NDJSON of any length, and the response has a line for each of its lines, as soon as it is published or "
            "refused. A line with `end` says that nothing more of the body is read. The `Idempotency-Key` can't be "
            "given then, only that of a line."
        ),
    )

    def __init__(self, ingress: Ingress) -> None:
        limits = ingress.limits
        super().__init__(limits.max_body_bytes)
        self._hub = ingress.hub
        self._max_event_bytes = limits.max_event_bytes
        self._max_batch_events = limits.max_batch_events
        self._turn = asyncio.Lock()
        """Large bodies are read one after the other: each takes its slices, and all of them together would block."""
        self._rates = ingress.rates
        self._stream = EmitStream(ingress, self._read_event)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if scope["method"] == self.method and self.keeps_body_open(scope["query_string"]):
            return self._stream(scope, receive, send)
        return super().__call__(scope, receive, send)

    def keeps_body_open(self, query_string: bytes) -> bool:
        return bool(query_string) and asks_for_stream(query_string)

    def answer(self, request: ControlRequest) -> Response | Coroutine[Any, Any, Response]:
        """Publish one small event at once, if that waits for nothing: most requests need no coroutine."""
        kind = media_type(request)
        pace = pace_for(request.body)
        if pace is not None or kind not in (FORM, JSON):
            return self._publish_many(request, kind, pace)
        if kind == FORM:
            event, key = self._keyed_event(small_form_fields(request, EMIT_FIELDS))
        else:
            value = parse_json("the body", request.body)
            if isinstance(value, list):
                return self._publish_batch(request, value)
            event, key = self._read_event(value)
        if request.key.grant is not None:
            request.key.require_channels(event.channels)
        self._rates.spend(request.key.name, 1)
        if key is None and "idempotency-key" not in request.headers:
            ids = self._hub.publish_at_once([Publication([event])])
            if ids is not None:
                return _published(ids[0], kind)
        return self._publish_one(request, kind, event, key)

    async def respond(self, request: ControlRequest) -> Response:
        answer = self.answer(request)
        return answer if isinstance(answer, Response) else await answer

    async def _publish_one(self, request: ControlRequest, kind: str, event: Event, key: str | None) -> Response:
        return _published((await self._publish(request, [(event, key)], None))[0], kind)

    async def _publish_batch(self, request: ControlRequest, values: list[Any]) -> Response:
        """Publish the events of a small array of JSON."""
        return await self._publish_read(request, await self._batch(values, "event {}", 0, None), JSON, None)

    async def _publish_many(self, request: ControlRequest, kind: str, pace: Pace | None) -> Response:
        """Publish what a body contains that is a batch, has several parts, or needs a `pace`."""
        if pace is None:
            events, is_batch = await self._read(request, kind, None)
        else:
            async with self._turn:
                events, is_batch = await self._read(request, kind, pace)
        if is_batch:
            return await self._publish_read(request, events, kind, pace)
        request.key.require_channels(events[0][0].channels)
        self._rates.spend(request.key.name, 1)
        return _published((await self._publish(request, events, pace))[0], kind)

    async def _publish_read(
        self, request: ControlRequest, events: list[_KeyedEvent], kind: str, pace: Pace | None
    ) -> Response:
        """Publish a batch of that media type, which has been read."""
        if request.key.grant is not None:
            await self._require_channels(request.key, events, kind, pace)
        self._rates.spend(request.key.name, len(events))
        listed = '","'.join(await self._publish(request, events, pace))  # positions need no escapes in JSON
        return Response(f'{{"ids":["{listed}"]}}', media_type=JSON)

    async def _read(self, request: ControlRequest, kind: str, pace: Pace | None) -> tuple[list[_KeyedEvent], bool]:
        """Return the events of the request, and True if it is a batch. A large body needs a `pace`."""
        if kind == NDJSON:
            values = await read_ndjson(request.body, self._max_batch_events, pace)
            return await self._batch(values, "line {}", 1, pace), True
        if kind != JSON:
            fields = await form_fields(request, kind, EMIT_FIELDS, pace, self._max_event_bytes)
            return [self._keyed_event(fields)], False
        assert pace is not None  # a small one has been read already
        value = await read_json("the body", request.body, self._max_batch_events, pace)
        if isinstance(value, list):
            return await self._batch(value, "event {}", 0, pace), True
        return [self._read_event(value)], False

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
                events.append(self._read_event(value))
            except InvalidRequest as exc:
                raise type(exc)(f"{where.format(number)}: {exc}") from exc
        return events

    def _read_event(self, value: Any) -> _KeyedEvent:
        """Return the event that a JSON value describes, and its own idempotency key. Raises InvalidRequest."""
        return self._keyed_event(known_object(value, EMIT_FIELDS))

    def _keyed_event(self, fields: Mapping[str, Any]) -> _KeyedEvent:
        """Return the event that `fields` describe, and its own idempotency key."""
        key = fields.get("idempotencyKey")
        return self._event(fields), None if key is None else check_key("idempotencyKey", key)

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
    async def _require_channels(key: ControlKey, keyed_events: list[_KeyedEvent], kind: str, pace: Pace | None) -> None:
        """Raise KeyForbidden, which names the event of a batch of that media type, if `key` may not publish all."""
        where, first = ("line {}: ", 1) if kind == NDJSON else ("event {}: ", 0)
        for number, (event, _) in enumerate(keyed_events, first):
            if pace is not None and pace.is_due:
                await pace.rest()
            key.require_channels(event.channels, where.format(number))

    async def _publish(self, request: ControlRequest, keyed_events: list[_KeyedEvent], pace: Pace | None) -> list[str]:
        """Publish events, each with its own idempotency key, or all together with the key of the header."""
        events = [event for event, _ in keyed_events]
        name = request.key.name
        has_keys = any([key is not None for _, key in keyed_events])
        header = idempotency_key(request.headers)
        if header is None and not has_keys:
            return await self._hub.publish_all([Publication(events)])
        if header is not None:
            if has_keys:
                raise InvalidRequest("Idempotency-Key and idempotencyKey are both given: leave one out")
            whole = await self._idempotency_key(header, name, events, pace)
            return await self._hub.publish_all([Publication(events, whole)])
        return await self._hub.publish_all(
            [
                Publication([event], None if key is None else await self._idempotency_key(key, name, [event], pace))
                for event, key in keyed_events
            ]
        )

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
