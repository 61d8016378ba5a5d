"""What an event is, and the only code that makes `text/event-stream` bytes.

The format is the HTML standard's, section 9.2.6 "Interpreting an event stream": UTF-8 lines that end with CR, LF or
CRLF, a blank line between events. Everything that a client could misread is refused here, when the event is made:
encoding one can then no longer fail in the middle of somebody's stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from sse_starlette import ServerSentEvent

from .errors import InvalidEvent
from .fields import (
    EVERYONE,
    MAX_NAMES,
    check_alone,
    check_fields,
    check_names,
    check_ttl,
    check_unstored,
    to_utf8,
)
from .payload import RawText
from .position import Position

SEPARATOR = "\n"


@dataclass(frozen=True, init=False)
class Event:
    """One event for `users` (or `("*",)`, everyone) on `channels`: structured, or a `payload` of raw stream text.

    Without `store` it is for those who listen now: never in history, so nobody who misses it is told. After `ttl`
    seconds it is not replayed any more.

    Raises InvalidEvent, which names the field as the wire calls it, for whatever would break a stream.
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
    raw: RawText | None = field(init=False, default=None)

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
        raw = None
        channels, users = check_names("channel", channels), check_names("userId", users)
        if EVERYONE in users:
            users = (EVERYONE,)
        elif len(channels) * len(users) > MAX_NAMES:
            raise InvalidEvent(
                f"userId: {len(users)} users on {len(channels)} channels are too many for one event, "
                f"which takes {MAX_NAMES} of both multiplied: send more events"
            )
        if payload is not None:
            check_alone(data=data, event=type, id=id, retry=retry)
            size = len(to_utf8("payload", payload))
            raw = RawText.parse(payload)
            id = raw.id
        elif data is not None:
            size = len(to_utf8("data", data))
            check_fields(type, id, retry)
        else:
            raise InvalidEvent("data is missing: an event needs 'data' or 'payload'")
        if ttl is not None:
            check_ttl(ttl)
        if store is not True:
            check_unstored(store, id)
        # All at once, in half of the time that the constructor of a frozen dataclass takes.
        vars(self).update(
            channels=channels,
            users=users,
            data=data,
            type=type,
            id=id,
            retry=retry,
            payload=payload,
            store=store,
            ttl=ttl,
            size=size,
            raw=raw,
        )

    @property
    def is_for_everyone(self) -> bool:
        return EVERYONE in self.users

    @property
    def ids(self) -> tuple[str, ...]:
        """The publisher's ids that a client has when it has had all of this event."""
        if self.raw is not None:
            return self.raw.ids
        return () if self.id is None else (self.id,)

    @property
    def inner_ids(self) -> tuple[str, ...]:
        """Those that it has when it has had a part of it."""
        return () if self.raw is None else self.raw.inner_ids

    def dump(self) -> str:
        """The event as JSON text, which `load` reads."""
        given = {name: value for name in _DUMPED if (value := getattr(self, name)) is not None}
        if self.payload is not None:
            given.pop("id", None)
        if self.store:
            del given["store"]
        return json.dumps(given, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> Self:
        """Raises InvalidEvent for what `dump` never wrote."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidEvent(f"this is no stored event: {exc}") from exc


_DUMPED = ("channels", "users", "data", "type", "id", "retry", "payload", "store", "ttl")


def encode(event: Event, position: Position) -> bytes:
    """The bytes of `event` as every subscriber gets them; they carry `position` as id unless it has its own."""
    raw = event.raw
    if raw is None:
        id, data = event.id or str(position), event.data or ""
        if "\n" in data or "\r" in data:
            return encode_fields(data=data, event=event.type, id=id, retry=event.retry)
        return (_template(event.type, event.retry) % {"id": id, "data": data}).encode()
    text = event.payload or ""
    if raw.id_at is not None:
        text = f"{text[: raw.id_at]}id: {position}{SEPARATOR}{text[raw.id_at :]}"
    return (text + raw.completion).encode()


@lru_cache(1_024)
def _template(type: str | None, retry: int | None) -> str:
    """The frame of an event with one line of data, to be filled in: framing each anew takes four times as long."""
    frame = encode_fields(data="\0data", event=type, id="\0id", retry=retry).decode()
    return frame.replace("%", "%%").replace("\0data", "%(data)s").replace("\0id", "%(id)s")


def ends_with_position(event: Event) -> bool:
    """Whether the last id that a client reads from `event` is its position."""
    return event.id is None if event.raw is None else event.raw.ends_with_ours


def encode_fields(
    *,
    data: str | None = None,
    event: str | None = None,
    id: str | None = None,
    retry: int | None = None,
    comment: str | None = None,
) -> bytes:
    """One frame of our own making: a heartbeat, an in-band event, a `retry:`."""
    return ServerSentEvent(data, event=event, id=id, retry=retry, comment=comment, sep=SEPARATOR).encode()
