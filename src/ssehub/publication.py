"""What a broker stores: events and commands in publications, each with an idempotency key if retries must be safe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring_ascii as _quote
from typing import ClassVar, NamedTuple, Self

from .errors import InvalidEvent
from .event import Event
from .fields import EVERYONE, check_key, check_names, check_retry
from .revocations import Revocation

REVOKED_RETRY_MILLISECONDS = 600_000
_DIGEST_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A command to every hub: end the open streams of `users` on `channels`. It is in the log, in order with events.

    No users means all users, no channels all channels; at least one of them must be given. Browsers reconnect after
    `retry` milliseconds, to which each adds up to a fifth at random.

    Raises InvalidEvent, which calls the field by its name on the wire.
    """

    users: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    retry: int = REVOKED_RETRY_MILLISECONDS
    store: ClassVar[bool] = False
    """A command applies to the streams that are open, so it is never replayed."""
    size: ClassVar[int] = 0

    def __post_init__(self) -> None:
        users = check_names("userId", self.users) if self.users else ()
        object.__setattr__(self, "users", () if EVERYONE in users else users)
        object.__setattr__(self, "channels", check_names("channel", self.channels) if self.channels else ())
        if not self.users and not self.channels:
            raise InvalidEvent("channel is missing: name a user, a channel, or both")
        check_retry(self.retry)

    def dump(self) -> str:
        """Return the command as JSON, for `load_entry`."""
        command = {"command": "disconnect", "users": self.users, "channels": self.channels, "retry": self.retry}
        return json.dumps(command, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Revoke:
    """A command to every hub: enter `revocations`, and end the open streams that they name."""

    revocations: tuple[Revocation, ...]
    store: ClassVar[bool] = False
    size: ClassVar[int] = 0

    def dump(self) -> str:
        """Return the command as JSON, for `load_entry`."""
        command = {"command": "revoke", "revocations": [revocation.dump() for revocation in self.revocations]}
        return json.dumps(command, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class TakeBack:
    """A command to every hub: remove the revocations with these `keys`."""

    keys: tuple[str, ...]
    store: ClassVar[bool] = False
    size: ClassVar[int] = 0

    def dump(self) -> str:
        """Return the command as JSON, for `load_entry`."""
        return json.dumps({"command": "take-back", "keys": self.keys}, ensure_ascii=False, separators=(",", ":"))


Command = Disconnect | Revoke | TakeBack

_COMMAND = '{"command":'


def load_entry(text: str) -> Event | Command:
    """Return the event or command that `dump` returned as `text`. Raises InvalidEvent."""
    if not text.startswith(_COMMAND):
        return Event.load(text)
    try:
        fields = json.loads(text)
        command = fields.pop("command")
        if command == "disconnect":
            return Disconnect(tuple(fields["users"]), tuple(fields["channels"]), fields["retry"])
        if command == "revoke":
            return Revoke(tuple(map(Revocation.load, fields["revocations"])))
        if command == "take-back":
            return TakeBack(tuple(fields["keys"]))
        raise InvalidEvent(f"unknown command {command!r}: a newer version of ssehub may have stored it")
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(f"not a stored command: {exc!r}") from exc


class IdempotencyKey(NamedTuple):
    """Makes it safe to publish again: `name` is a hash of the key and its scope, `body` one of the events.

    A second publication with the same `name` is not stored; with another `body` it is a conflict.
    """

    name: str
    body: str

    @classmethod
    def make(cls, key: object, scope: Sequence[str], events: Sequence[Event]) -> Self:
        """Raises InvalidEvent unless `key` is a string of 1 to 255 characters."""
        return cls(_name(key, scope), _digest([event.dump() for event in events]))

    @classmethod
    def of_event(cls, key: str, owner: str, event: Event) -> Self:
        """Do what `make` does, for one event and a `key` of `owner` that has been checked, on the event's channels."""
        # Written out, since a pipe does this for each event.
        channels = event.channels
        scope = _scope_of_one(owner, channels[0]) if len(channels) == 1 else _scope_of(owner, channels)
        name = f"[{_quote(key)}, {scope}]"
        body = f"[{_quote(event.dump())}]"
        return tuple.__new__(cls, (_hash_of(name), _hash_of(body)))

    @classmethod
    def of(cls, key: object, scope: Sequence[str], body: BodyDigest) -> Self:
        """Do what `make` does, for events that `body` has been made of, one at a time."""
        return cls(_name(key, scope), body.hexdigest())

    @classmethod
    def of_text(cls, key: object, scope: Sequence[str], text: str) -> Self:
        """Do what `make` does, for something else than events that `text` describes."""
        return cls(_name(key, scope), _digest([text]))


class BodyDigest:
    """The hash of several events, which are added one at a time: hashing megabytes takes long."""

    __slots__ = ("_hash", "_is_empty")

    def __init__(self) -> None:
        self._hash = sha256()
        self._is_empty = True

    def add(self, event: Event) -> None:
        self._hash.update((("[" if self._is_empty else ", ") + _quote(event.dump())).encode())
        self._is_empty = False

    def hexdigest(self) -> str:
        """Return the hash. It is that of a JSON array: logs remember such hashes, also across versions."""
        whole = self._hash.copy()
        whole.update(b"[]" if self._is_empty else b"]")
        return whole.hexdigest()[:_DIGEST_CHARACTERS]


class Publication(NamedTuple):
    """Events and commands that are stored together or not at all, and with a `key` only once."""

    events: Sequence[Event | Command]
    key: IdempotencyKey | None = None


def _scope_of(owner: str, channels: Iterable[str]) -> str:
    """Return the owner and the channels as they follow the key in the JSON array that is hashed."""
    return ", ".join(map(_quote, (owner, *sorted(channels))))


@lru_cache(1_024)
def _scope_of_one(owner: str, channel: str) -> str:
    return _scope_of(owner, [channel])


def _name(key: object, scope: Sequence[str]) -> str:
    return _digest([check_key("idempotencyKey", key), *scope])


def _digest(parts: Iterable[str]) -> str:
    """Return the hash of a JSON array, whose strings are written one by one: in a list each takes longer."""
    array = f"[{', '.join(map(_quote, parts))}]"
    return _hash_of(array)


def _hash_of(array: str) -> str:
    return sha256(array.encode()).hexdigest()[:_DIGEST_CHARACTERS]
