"""Feeds: the events in the body of an append, parsed as the body arrives, in whatever parts.

Both formats consist of lines. A line that has not ended is kept until the rest of it arrives. If the body breaks off,
nobody reads that rest, so that half a line, half an event or half a character is never stored. If the body ends as it
should, the last line needs no line end, and the last event no blank line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..errors import BodyTooLarge, InvalidEvent, InvalidRequest
from ..fields import json_text, to_utf8
from ..pace import SMALL_BODY_BYTES, Pace, pace_for
from ..runs.entries import RunEvent
from .description import Field, Shape, any_of
from .forms import known_object, not_an_object, refuse_null
from .lines import Lines
from .schemas import ANY_BUT_NULL, EVENT_ID, RETRY, TYPE
from .strict_json import not_utf8, parse_json, read_json, too_many_events

EVENT_STREAM = "text/event-stream"
EVENT_FIELDS = {
    "data": Field(
        ANY_BUT_NULL,
        "The text of the event; any value but null: if it is not a string, it is stored as JSON.",
    ),
    "event": Field(TYPE, "The type of the event."),
    "id": Field(EVENT_ID, "An id that is kept for those who read the run, and never sent to watchers."),
    "retry": Field(RETRY, "How many milliseconds the browser waits before it reconnects."),
    "payload": Field(
        {"type": "string", "pattern": r"(^|[\r\n])data(:|[\r\n]|$)"}, "Raw stream text, with exactly one event in it."
    ),
}
EVENT = any_of(
    [
        Shape("RunEvent", ("data",), ("event", "id", "retry")).schema(EVENT_FIELDS),
        Shape("RawRunEvent", ("payload",)).schema(EVENT_FIELDS),
    ]
)
LINE_SLACK_BYTES = 64 * 1024
"""How much longer than two events of the largest size a line may be. As JSON, an event may take twice its size."""

MAX_PAYLOAD_LINES = 50_000
"""Each takes up to a microsecond, and a payload is parsed at once."""

_BOM = b"\xef\xbb\xbf"
_OF_THE_RUN = "an event of a run goes to the users and channels that the run was created with: leave it out"
_NOT_HERE = {
    "userId": _OF_THE_RUN,
    "channel": _OF_THE_RUN,
    "store": "a run keeps all of its events: leave it out",
    "ttl": "a run keeps all of its events: leave it out",
    "idempotencyKey": "in a run the headers Run-Producer and Run-Offset make it safe to send events again",
}


class Feed:
    """The lines of one body. A subclass says what a line means.

    `events` are those that have been read and not taken yet, and `event_bytes` about their size. `is_alive` is True if
    something has arrived since they were taken that is no event, but a sign of life.
    """

    __slots__ = ("_lines", "_max_line_bytes", "_turn", "event_bytes", "events", "is_alive", "line_number", "max_bytes")

    def __init__(self, max_event_bytes: int, turn: asyncio.Lock) -> None:
        """Long lines are parsed by one feed after the other, in its `turn`."""
        self.max_bytes = max_event_bytes
        self.events: list[RunEvent] = []
        self.event_bytes = 0
        self.is_alive = False
        self.line_number = 0
        """The number of the line that was read last, counted from 1."""
        self._max_line_bytes = 2 * max_event_bytes + LINE_SLACK_BYTES
        self._lines = Lines(self._max_line_bytes)
        self._turn = turn

    @property
    def unfinished_bytes(self) -> int:
        """How much has arrived of a line that has not ended."""
        return self._lines.unfinished_bytes

    def take(self) -> list[RunEvent]:
        """Return the events that have been read, and forget them."""
        events = self.events
        self.events, self.event_bytes, self.is_alive = [], 0, False
        return events

    async def read(self, part: bytes) -> None:
        """Read the next part of the body. Raises InvalidRequest; `events` then has those before the bad line."""
        for line in self._lines.read(part):
            await self._read_line(line)
        if self._lines.unfinished_bytes > self._max_line_bytes:
            raise self._too_long()

    async def end(self) -> None:
        """The body has ended as it should: read what was not finished. Raises InvalidRequest."""
        for line in self._lines.end():
            await self._read_line(line)

    async def _read_line(self, line: bytes) -> None:
        if len(line) > self._max_line_bytes:
            raise self._too_long()
        self.line_number += 1
        try:
            await self._understand(line)
        except InvalidRequest as exc:
            raise type(exc)(f"{self.where}: {exc}") from exc

    async def _understand(self, line: bytes) -> None:
        """Add the event that ends with `line`, if one does. Raises InvalidRequest."""
        raise NotImplementedError

    def _add(self, event: RunEvent) -> None:
        self.events.append(_of_size(event, self.max_bytes))
        self.event_bytes += len(event.data)

    @property
    def where(self) -> str:
        """The name of the line that was read last, for errors."""
        return f"line {self.line_number}"

    def _too_long(self) -> BodyTooLarge:
        return BodyTooLarge(f"line {self.line_number + 1} has more than {self._max_line_bytes} bytes")


class LineFeed(Feed):
    """NDJSON: each line is an event with the fields EVENT_FIELDS, or empty, which is a sign of life."""

    __slots__ = ()

    async def _understand(self, line: bytes) -> None:
        if not line or line.isspace():
            self.is_alive = True
        elif len(line) <= SMALL_BODY_BYTES:
            self._add(run_event(parse_json("the line", line)))
        else:
            if line.lstrip().startswith(b"["):
                raise not_an_object("an array", EVENT_FIELDS)
            async with self._turn:
                self._add(run_event(await read_json("the line", line, 0, Pace())))


class EventStreamFeed(Feed):
    """`text/event-stream`: what a client would dispatch is an event. Anything else is a sign of life."""

    __slots__ = ("_block", "_skips_line_feed")

    def __init__(self, max_event_bytes: int, turn: asyncio.Lock) -> None:
        super().__init__(max_event_bytes, turn)
        self._block = Block(max_event_bytes)
        self._skips_line_feed = False
        """True if the last part ended with a CR: an LF behind it belongs to the same line end."""

    async def read(self, part: bytes) -> None:
        if self._skips_line_feed and part:
            part = part.removeprefix(b"\n")
            self._skips_line_feed = False
            if not part:
                return
        if b"\r" in part:
            self._skips_line_feed = part.endswith(b"\r")
            part = part.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        await super().read(part)

    async def end(self) -> None:
        await super().end()
        if self._block.is_begun:
            await self._read_line(b"")

    async def _understand(self, line: bytes) -> None:
        if self.line_number == 1:
            line = line.removeprefix(_BOM)
        event = self._block.read(line)
        if event is not None:
            self._add(event)
        else:
            self.is_alive = True


class Block:
    """What has been read of an event of an event stream (HTML standard, section 9.2.6).

    Its fields are kept, except that an id belongs only to the event that it is sent with.
    """

    __slots__ = ("_data", "_fields", "_has_data", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        """The data, each line with a line feed behind it."""
        self._has_data = False
        self._fields: dict[str, Any] = {}

    @property
    def is_begun(self) -> bool:
        return self._has_data or bool(self._fields)

    def read(self, line: bytes) -> RunEvent | None:
        """Return the event that the line ends, if it ends one that has data. Raises InvalidRequest."""
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._has_data = True
            self._data += value
            self._data += b"\n"
            if len(self._data) > self._max_bytes + 1:
                raise _too_large(len(self._data) - 1, self._max_bytes)
        elif name == b"event":
            self._fields["type"] = _text("event", value) or None
        elif name == b"id" and b"\0" not in value:
            self._fields["id"] = _text("id", value) or None
        elif name == b"retry" and value.isdigit():
            self._fields["retry"] = int(value[:20])
        return None

    def _end(self) -> RunEvent | None:
        event = None
        if self._has_data:
            event = RunEvent.checked(_text("data", bytes(self._data[:-1])), **self._fields)
            self._data.clear()
            self._has_data = False
        if self._fields:
            self._fields = {}
        return event


async def read_events(body: bytes, max_events: int, max_event_bytes: int, turn: asyncio.Lock) -> list[RunEvent]:
    """Return the events of a whole JSON body: one object, or an array of them. Raises InvalidRequest."""
    pace = pace_for(body)
    if pace is None:
        return await _events_of(parse_json("the body", body), max_events, max_event_bytes, None)
    async with turn:
        return await _events_of(await read_json("the body", body, max_events, pace), max_events, max_event_bytes, pace)


async def _events_of(value: Any, max_events: int, max_event_bytes: int, pace: Pace | None) -> list[RunEvent]:
    if not isinstance(value, list):
        return [_of_size(run_event(value), max_event_bytes)]
    if not value:
        raise InvalidRequest("the batch is empty: send at least one event")
    if len(value) > max_events:
        raise too_many_events(max_events)
    events = []
    for number, one in enumerate(value):
        if pace is not None and pace.is_due:
            await pace.rest()
        try:
            events.append(_of_size(run_event(one), max_event_bytes))
        except InvalidRequest as exc:
            raise type(exc)(f"event {number}: {exc}") from exc
    return events


def _of_size(event: RunEvent, most: int) -> RunEvent:
    """Return `event` unless it is too large."""
    if (size := event.size) > most:
        raise _too_large(size, most)
    return event


def run_event(value: Any) -> RunEvent:
    """Return the event that a JSON value describes. Raises InvalidRequest."""
    fields = value if isinstance(value, dict) and value.keys() <= _EVENT_FIELDS else _known(value)
    refuse_null(fields)
    get = fields.get
    if "payload" in fields:
        return _of_payload(fields)
    data = get("data")
    return RunEvent.checked(None if data is None else json_text(data), get("event"), get("id"), get("retry"))


_EVENT_FIELDS = frozenset(EVENT_FIELDS)


def _known(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        for name, reason in _NOT_HERE.items():
            if name in value:
                raise InvalidEvent(f"{name}: {reason}")
    return known_object(value, EVENT_FIELDS)


def _of_payload(fields: Mapping[str, Any]) -> RunEvent:
    """Return the only event in a payload: a run counts its events, so that each is an entry of its own."""
    if len(fields) > 1:
        other = next(name for name in fields if name != "payload")
        raise InvalidEvent(f"{other} can't be given together with payload: write it into the payload")
    text = to_utf8("payload", fields["payload"]).removeprefix(_BOM)
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n", MAX_PAYLOAD_LINES)
    if len(lines) > MAX_PAYLOAD_LINES:
        raise InvalidEvent(f"payload has more than {MAX_PAYLOAD_LINES} lines: send data instead")
    block = Block(len(text))
    try:
        read = [block.read(line) for line in (*lines, b"")]
    except InvalidRequest as exc:
        raise type(exc)(f"payload: {exc}") from exc
    events = [event for event in read if event is not None]
    if len(events) != 1:
        raise InvalidEvent(f"payload has {len(events)} events with data: in a run it must have exactly one")
    return events[0]


def _text(field_name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise not_utf8(field_name) from exc


def _too_large(size: int, most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the event has {size} bytes: at most {most} are allowed")
