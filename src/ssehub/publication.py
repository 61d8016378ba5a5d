"""Publications: what is published together, commands among the events, and the keys that make a retry safe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from .errors import InvalidEvent
from .event import Event
from .fields import (
    EVERYONE,
    check_name,
    check_names,
    check_retry,
)

REVOKED_RETRY_MILLISECONDS = 600_000


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
        users = check_names("userId", self.users) if self.users else ()
        object.__setattr__(self, "users", () if EVERYONE in users else users)
        object.__setattr__(self, "channels", check_names("channel", self.channels) if self.channels else ())
        if not self.users and not self.channels:
            raise InvalidEvent("channel is missing: name a user, a channel, or both")
        check_retry(self.retry)

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
