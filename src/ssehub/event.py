"""Events, and the only code that writes `text/event-stream` bytes.

The format is defined by the HTML standard, section 9.2.6 "Interpreting an event stream": UTF-8 lines that end with CR,
LF or CRLF, and a blank line after each event. An event that a client could misread is rejected when it is constructed,
so that encoding cannot fail later, in the middle of a stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring as _quote
from typing import Any, Self

from sse_starlette import ServerSentEvent

from .errors import InvalidEvent
from .fields import (
    EVERYONE,
    MAX_NAMES,
    check_id,
    check_names,
    check_retry,
    check_store,
    check_ttl,
    check_type,
    json_text,
    utf8_size,
)
from .payload import MAX_CHECKED_FIELDS, ParsedPayload, without_checked_fields
from .position import Position

SEPARATOR = "\n"


@dataclass(frozen=True, init=False)
class Event:
    """An event for `users`, or everyone (`("*",)`), on `channels`: structured fields, or a raw `payload`.

    With `store` False, only clients that are connected now receive it: it never enters the history, and a client that
    misses it is not told. After `ttl` seconds it is no longer replayed.

    Raises InvalidEvent, which calls the field by its name on the wire, for a value that would break a stream.
    """

    channels: tuple[str, ...]
    users: tuple[str, ...]
    data: str | None = None
    type: str | None = None
    id: str | None = None
    retry: int | None = None
    payload: str | None = None
    store: bool = True
    ttl: float | None = None
    size: int = field(init=False, default=0)
    """Bytes of `data` or `payload` in UTF-8."""
    parsed: ParsedPayload | None = field(init=False, default=None)
    """The parsed `payload`, if there is one."""

    def __init__(
        self,
        channels: Sequence[str],
        users: Sequence[str],
        data: str | None = None,
        type: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        payload: str | None = None,
        store: bool = True,
        ttl: float | None = None,
    ) -> None:
        parsed = None
        channels, users = check_names("channel", channels), check_names("userId", users)
        if len(users) > 1:
            users = _check_users(users, channels)
        if payload is not None:
            _check_alone(data=data, event=type, id=id, retry=retry)
            size = utf8_size("payload", payload)
            parsed = ParsedPayload.parse(payload)
            id = parsed.id
            _check_id_count(parsed, channels)
        elif data is not None:
            size = utf8_size("data", data)
            if type is not None:
                check_type("event", type)
            if id is not None:
                check_id("id", id)
            if retry is not None:
                check_retry(retry)
        else:
            raise InvalidEvent("data is missing: an event needs 'data' or 'payload'")
        if ttl is not None:
            check_ttl(ttl)
        if store is not True:
            check_store(store)
            if id is not None:
                raise InvalidEvent("id can't be given with store false: a client can't resume after such an event")
        # The constructor that `dataclass` would write takes three times as long for this.
        fields = vars(self)
        fields["channels"] = channels
        fields["users"] = users
        fields["data"] = data
        fields["type"] = type
        fields["id"] = id
        fields["retry"] = retry
        fields["payload"] = payload
        fields["store"] = store
        fields["ttl"] = ttl
        fields["size"] = size
        fields["parsed"] = parsed

    @property
    def is_for_everyone(self) -> bool:
        return EVERYONE in self.users

    @property
    def ids(self) -> tuple[str, ...]:
        """The publisher's ids that tell, as a client's last id, that it has received the whole event."""
        if self.parsed is not None:
            return self.parsed.ids
        return () if self.id is None else (self.id,)

    @property
    def inner_ids(self) -> tuple[str, ...]:
        """The publisher's ids that tell, as a client's last id, that it has received only a part of the event."""
        return () if self.parsed is None else self.parsed.inner_ids

    def dump(self) -> str:
        """Return the event as JSON, for `load`."""
        # A dict for `json.dumps` takes four times as long.
        fields = vars(self)
        channels, users = fields["channels"], fields["users"]
        listed = _quote(channels[0]) if len(channels) == 1 else ",".join(map(_quote, channels))
        named = _quote(users[0]) if len(users) == 1 else ",".join(map(_quote, users))
        text = f'{{"channels":[{listed}],"users":[{named}]'
        if (data := fields["data"]) is not None:
            text += f',"data":{_quote(data)}'
        if (type := fields["type"]) is not None:
            text += f',"type":{_quote(type)}'
        if (id := fields["id"]) is not None and fields["payload"] is None:
            text += f',"id":{_quote(id)}'
        if (retry := fields["retry"]) is not None:
            text += f',"retry":{retry:d}'
        if (payload := fields["payload"]) is not None:
            text += f',"payload":{_quote(payload)}'
        if not fields["store"]:
            text += ',"store":false'
        if (ttl := fields["ttl"]) is not None:
            text += f',"ttl":{json_text(ttl)}'
        return text + "}"

    @classmethod
    def load(cls, text: str) -> Self:
        """Return the event that `dump` returned as `text`. Raises InvalidEvent.

        An older version may have stored ids that are not accepted any more. Such an event goes out without them, so
        that clients get its position as id.
        """
        try:
            fields = json.loads(text)
            try:
                return cls(**fields)
            except InvalidEvent:
                if not isinstance(fields.get("id", ""), str):
                    raise
                return cls(**_without_ids(fields))
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidEvent(f"not a stored event: {exc}") from exc


def _without_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event without the publisher's ids."""
    kept = {name: value for name, value in fields.items() if name != "id"}
    if isinstance(payload := kept.get("payload"), str):
        kept["payload"] = without_checked_fields(payload)
    return kept


def _check_users(users: tuple[str, ...], channels: tuple[str, ...]) -> tuple[str, ...]:
    if EVERYONE in users:
        return (EVERYONE,)
    if len(channels) * len(users) > MAX_NAMES:
        raise InvalidEvent(
            f"userId: {len(users)} users on {len(channels)} channels are too many for one event: users times channels "
            f"may be at most {MAX_NAMES}, so publish several events"
        )
    return users


def _check_id_count(parsed: ParsedPayload, channels: tuple[str, ...]) -> None:
    """Each hub that retains an event remembers its ids for each of its channels."""
    count = len(parsed.ids) + len(parsed.inner_ids)
    if len(channels) * count > MAX_CHECKED_FIELDS:
        raise InvalidEvent(
            f"payload: {count} ids on {len(channels)} channels are too many for one event: ids times channels may be "
            f"at most {MAX_CHECKED_FIELDS}, so publish several payloads"
        )


def _check_alone(**fields: object) -> None:
    for name, value in fields.items():
        if value is not None:
            raise InvalidEvent(f"{name} can't be given together with payload: write it into the payload")


def encode(event: Event, position: Position) -> bytes:
    """Return the bytes that every subscriber receives; they contain `position` as id if the publisher gave none."""
    parsed = event.parsed
    if parsed is None:
        return encode_data(event.data or "", event.type, event.id or str(position), event.retry)
    text = f"{event.payload}{parsed.completion}"
    if parsed.position_at is not None:
        text = f"{text[: parsed.position_at]}id: {position}{SEPARATOR}{text[parsed.position_at :]}"
    return text.encode()


def encode_data(data: str, type: str | None, id: str, retry: int | None) -> bytes:
    """Return the frame that `encode_fields` returns, in a fifth of the time. It writes most events."""
    if "\n" in data or "\r" in data:
        data = data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", f"{SEPARATOR}data: ")
    head, middle, end = _around(type, retry)
    return f"{head}{data}{middle}{id}{end}".encode()


@lru_cache(1_024)
def _around(type: str | None, retry: int | None) -> tuple[str, str, str]:
    """Return the text of a frame before its data, between data and id, and after the id."""
    frame = encode_fields(data="\0data", event=type, id="\0id", retry=retry).decode()
    head, _, rest = frame.partition("\0data")
    middle, _, end = rest.partition("\0id")
    return head, middle, end


def ends_with_position(event: Event) -> bool:
    """Return True if the last id that a client reads from `event` is the event's position."""
    return event.id is None if event.parsed is None else event.parsed.ends_with_position


def encode_fields(
    *,
    data: str | None = None,
    event: str | None = None,
    id: str | None = None,
    retry: int | None = None,
    comment: str | None = None,
) -> bytes:
    """Return one frame, as sse-starlette writes it, except that `id` comes last. It must not contain a line end.

    Some clients take an id when they read its line, not at the blank line that ends the event. If the connection were
    cut between an id and the data behind it, such a client would lose that event without a sign.
    """
    frame = ServerSentEvent(data, event=event, retry=retry, comment=comment, sep=SEPARATOR).encode()
    return frame if id is None else b"%bid: %b\n\n" % (frame.removesuffix(b"\n"), id.encode())
