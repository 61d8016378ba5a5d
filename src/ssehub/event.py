"""What an event is, and the only code that makes `text/event-stream` bytes.

The format is the HTML standard's, section 9.2.6 "Interpreting an event stream": UTF-8 lines that end with CR, LF or
CRLF, a blank line between events. Everything that a client could misread is refused here, when the event is made:
encoding one can then no longer fail in the middle of somebody's stream.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple, Self

from sse_starlette import ServerSentEvent

from .errors import InvalidEvent

EVERYONE = "*"
RESERVED_TYPE = "stream-"
MAX_NAME_LENGTH = 255
MAX_NAMES = 1_000
MAX_TTL_SECONDS = 2**40
MAX_RETRY_MILLISECONDS = 2**31 - 1  # what browsers' timers hold
LAST_SEQUENCE = 10**19 - 1
REVOKED_RETRY_MILLISECONDS = 600_000
SEPARATOR = "\n"

_BREAKS = re.compile(r"[\r\n\0]")
_POSITION = re.compile(r"(\d{1,19})-(\d{1,19})\.([0-9a-z]{1,32})", re.ASCII)
# A field of a raw payload that we look at, at the start of a line: its name, then a colon and a value or nothing.
_RAW_FIELD = re.compile(r"(?:\A|(?<=[\r\n]))(event|id|retry)(?::[ ]?([^\r\n]*))?(?=[\r\n]|\Z)")
_RAW_DATA = re.compile(r"(?:\A|(?<=[\r\n]))data(?=[:\r\n]|\Z)")
_BLOCK_END = re.compile(r"\n\n|\r\r|\n\r")  # two line ends in a row, whichever they are, contain one of these


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token, or a host's own login, grants: `channels` to `user_id`, until `expires_at` (Unix time, seconds)."""

    user_id: str
    channels: tuple[str, ...]
    expires_at: float | None = None

    def __post_init__(self) -> None:
        """Raises InvalidEvent for what no token could grant."""
        check_name("userId", self.user_id)
        if isinstance(self.channels, str) or not self.channels:
            raise InvalidEvent(f"channels must be a tuple of names, such as ('chat',), not {self.channels!r}")
        for channel in self.channels:
            check_name("channel", channel)
        expires_at = self.expires_at
        if expires_at is not None and (not isinstance(expires_at, int | float) or math.isnan(expires_at)):
            raise InvalidEvent(f"expires_at must be a Unix time in seconds, not {self.expires_at!r}")


class Position(NamedTuple):
    """An event's place in one log; positions of the same log order as their events do."""

    milliseconds: int
    sequence: int
    log: str

    def __str__(self) -> str:
        return "%d-%d.%s" % self  # noqa: UP031  # an f-string looks up each field by its name

    @property
    def before(self) -> Self:
        """A position that is above every earlier one and below this."""
        if self.sequence:
            return self._replace(sequence=self.sequence - 1)
        return self._replace(milliseconds=self.milliseconds - 1, sequence=LAST_SEQUENCE)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The position that `text` writes out, or None if it is something else."""
        match = _POSITION.fullmatch(text)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None


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
        channels, users = _names("channel", channels), _names("userId", users)
        if EVERYONE in users:
            users = (EVERYONE,)
        elif len(channels) * len(users) > MAX_NAMES:
            raise InvalidEvent(
                f"userId: {len(users)} users on {len(channels)} channels are too many for one event, "
                f"which takes {MAX_NAMES} of both multiplied: send more events"
            )
        if payload is not None:
            _check_alone(data=data, event=type, id=id, retry=retry)
            size = len(_utf8("payload", payload))
            raw = RawText.parse(payload)
            id = raw.id
        elif data is not None:
            size = len(_utf8("data", data))
            _check_fields(type, id, retry)
        else:
            raise InvalidEvent("data is missing: an event needs 'data' or 'payload'")
        if ttl is not None:
            _check_ttl(ttl)
        if store is not True:
            _check_unstored(store, id)
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


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A command to every hub, in order with the events: end the open streams of `users` on `channels`.

    No users are all users, no channels all channels; one of them is needed. After `retry` milliseconds, and up to a
    fifth more, browsers come back.

    Raises InvalidEvent, which names the field as the wire calls it.
    """

    users: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    retry: int = REVOKED_RETRY_MILLISECONDS
    store: ClassVar[bool] = False
    """It is for the streams that are open: nobody who comes later is to see it."""
    size: ClassVar[int] = 0

    def __post_init__(self) -> None:
        users = _names("userId", self.users) if self.users else ()
        object.__setattr__(self, "users", () if EVERYONE in users else users)
        object.__setattr__(self, "channels", _names("channel", self.channels) if self.channels else ())
        if not self.users and not self.channels:
            raise InvalidEvent("channel is missing: name a user, a channel, or both")
        _check_retry(self.retry)

    def dump(self) -> str:
        """The command as JSON text, which `load_entry` reads."""
        command = {"command": "disconnect", "users": self.users, "channels": self.channels, "retry": self.retry}
        return json.dumps(command, ensure_ascii=False, separators=(",", ":"))


def load_entry(text: str) -> Event | Disconnect:
    """What `dump` of either wrote; raises InvalidEvent for anything else."""
    if not text.startswith(_COMMAND):
        return Event.load(text)
    try:
        fields = json.loads(text)
        if fields.pop("command") != "disconnect":
            raise InvalidEvent("this is a command that a newer version knows")
        return Disconnect(tuple(fields["users"]), tuple(fields["channels"]), fields["retry"])
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(f"this is no stored command: {exc!r}") from exc


_COMMAND = '{"command":'


class IdempotencyKey(NamedTuple):
    """What makes publishing again safe: the key in its scope, and what was published with it; both hashed."""

    name: str
    body: str

    @classmethod
    def make(cls, key: object, scope: Sequence[str], events: Sequence[Event]) -> Self:
        """Raises InvalidEvent unless `key` is a string of 1 to 255 characters."""
        check_name("idempotencyKey", key)
        body = [event.dump() for event in events]
        return cls(_digest([key, *scope]), _digest(body))


class Publication(NamedTuple):
    """What is published together, and once for its `key`, if it has one."""

    events: Sequence[Event | Disconnect]
    key: IdempotencyKey | None = None


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class RawText:
    """A parsed raw payload: where our `id:` line goes, and what completes it."""

    id: str | None
    """The last id the payload gives, if any."""
    id_at: int | None
    """Where the last block with data takes our `id:` line; None if it has its own, or there is no data."""
    ends_with_ours: bool
    """Whether our id is the last one a client reads."""
    ids: tuple[str, ...]
    """The ids in or behind the last block with data."""
    inner_ids: tuple[str, ...]
    """The ids before it: a client that has one of these has not had all."""
    completion: str
    """The line end and blank line that are missing at the end."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if not text:
            raise InvalidEvent("payload is empty: it needs stream text, such as 'data: hello'")
        ids = [(match.start(), match[2]) for match in _RAW_FIELD.finditer(text) if _is_id(match)]
        id_at = _last_data_line(text)
        last_block = 0
        if id_at is not None:
            last_block, end = _block_around(text, id_at)
            if any(last_block <= place < end for place, _ in ids):
                id_at = None
        return cls(
            id=ids[-1][1] if ids else None,
            id_at=id_at,
            ends_with_ours=id_at is not None and not any(place > id_at for place, _ in ids),
            ids=tuple(value for place, value in ids if place >= last_block),
            inner_ids=tuple(value for place, value in ids if place < last_block),
            completion=_completion(text),
        )


def _is_id(match: re.Match[str]) -> bool:
    """Checks one field of a raw payload as the structured field of that name would be; says whether it is an id."""
    name, value = match[1], match[2] or ""
    if name == "event" and value.startswith(RESERVED_TYPE):
        raise InvalidEvent(f"payload: event type {value!r} begins with 'stream-', which is ours: choose another")
    if name == "id":
        _check_id("payload: id", value)
    if name == "retry" and not (
        value.isascii() and value.isdigit() and int(value.lstrip("0")[:11] or 0) <= MAX_RETRY_MILLISECONDS
    ):
        raise InvalidEvent(f"payload: retry {value[:40]!r} is no number of milliseconds: write digits only")
    return name == "id"


def _last_data_line(text: str) -> int | None:
    end = len(text)
    while (start := text.rfind("data", 0, end)) >= 0:
        if _RAW_DATA.match(text, start):
            return start
        end = start + 3
    return None


def _block_around(text: str, place: int) -> tuple[int, int]:
    start = max(text.rfind(pair, 0, place) for pair in ("\n\n", "\r\r", "\n\r"))
    end = _BLOCK_END.search(text, place)
    return max(start, 0), end.start() if end else len(text)


def _completion(text: str) -> str:
    if not text.endswith(("\r", "\n")):
        return "\n\n"
    line = text.removesuffix("\n").removesuffix("\r") if text.endswith("\r\n") else text[:-1]
    if not line or line.endswith(("\r", "\n")):
        return ""
    return "\r" if text.endswith("\r") else "\n"  # an LF behind a CR would only make that line end a CRLF


def check_name(field_name: str, value: object) -> str:
    """`value` if it can name a user or a channel; `field_name` is what the error calls it."""
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    return _good_name(field_name, value)


@lru_cache(4_096)
def _good_name(field_name: str, value: str) -> str:
    if not value:
        raise InvalidEvent(f"{field_name} is empty: give a name")
    _check_text(field_name, value)
    _utf8(field_name, value)
    return value


def one_or_many(names: str | Sequence[str]) -> tuple[str, ...]:
    """`names` as a tuple, whether it is one or several."""
    return tuple(names) if isinstance(names, Collection) and not isinstance(names, str) else (names,)


def json_text(value: object) -> str:
    """`value` itself if it is a string, else the compact JSON of it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(f"data can't be written as JSON ({exc}): give a string or what JSON can hold") from exc


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


def _names(field_name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InvalidEvent(f"{field_name} must be a sequence of names, not one string")
    if not values:
        raise InvalidEvent(f"{field_name} is missing: name at least one")
    if len(values) == 1:
        (only,) = values
        return (check_name(field_name, only),)
    if len(values) > MAX_NAMES:
        raise InvalidEvent(f"{field_name} has {len(values)} names: {MAX_NAMES} are the most")
    for value in values:
        check_name(field_name, value)
    return tuple(dict.fromkeys(values))


def _check_alone(**fields: object) -> None:
    for name, value in fields.items():
        if value is not None:
            raise InvalidEvent(f"{name} can't be given together with payload: write it into the payload")


def _check_fields(type: str | None, id: str | None, retry: int | None) -> None:
    if type is not None:
        _check_type("event", type)
    if id is not None:
        _check_id("id", id)
    if retry is not None:
        _check_retry(retry)


def _check_unstored(store: bool, id: str | None) -> None:
    if store is not False:
        raise InvalidEvent(f"store must be true or false, not {store!r}")
    if id is not None:
        raise InvalidEvent("id can't be given with store false: nobody could come back with it")


def _check_text(field_name: str, value: str) -> None:
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidEvent(f"{field_name} has {len(value)} characters: {MAX_NAME_LENGTH} are the most")
    if found := _BREAKS.search(value):
        what = "a NUL" if found[0] == "\0" else "a line break"
        raise InvalidEvent(f"{field_name} {value!r} contains {what}: leave it out")


def _check_type(field_name: str, value: str) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidEvent(f"{field_name} is empty: leave it out, or give a type")
    _check_text(field_name, value)
    _utf8(field_name, value)
    if value.startswith(RESERVED_TYPE):
        raise InvalidEvent(f"{field_name} {value!r} begins with 'stream-', which is ours: choose another")


def _check_id(field_name: str, value: str) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidEvent(f"{field_name} is empty: leave it out, and the event gets its position as id")
    _check_text(field_name, value)
    _utf8(field_name, value)
    if _POSITION.fullmatch(value):
        raise InvalidEvent(f"{field_name} {value!r} looks like a position in our log: choose another form")


def _check_retry(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRY_MILLISECONDS:
        raise InvalidEvent(f"retry {value!r} is no number of milliseconds from 0 to {MAX_RETRY_MILLISECONDS}")


def _check_ttl(value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_TTL_SECONDS:
        raise InvalidEvent(f"ttl {repr(value)[:40]} is no positive number of seconds below {MAX_TTL_SECONDS}")


def _utf8(field_name: str, value: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidEvent(f"{field_name} must be a string, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidEvent(f"{field_name} holds a lone surrogate at {exc.start}: it can't be written as UTF-8") from exc
