"""What `POST /explain/` is asked: about a client with a token, or about one that would have certain claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..claims import Claims
from ..errors import InvalidRequest
from ..fanout.resume import NOW, Start
from ..fields import MAX_NAMES, check_names
from ..grant import MAX_PATTERNS
from ..proxies import limit_key, parse_address
from .description import Field, Shape
from .forms import refuse_null
from .origins import require_origin
from .schemas import NAME, NAME_LIST, NAMES, PATTERNS, SINCE, STRING

MAX_TEXT_LENGTH = 100_000
"""Most characters of a token, which is longer than the hub accepts one, and of every other text."""
_TEXT = {**STRING, "maxLength": MAX_TEXT_LENGTH}
LISTS = ("channel", "channels", "patterns")
FIELDS = {
    "token": Field(_TEXT, "The token of a client."),
    "userId": Field(NAME, "In place of a token: the user that one would have."),
    "channel": Field(NAMES, "The channels that the client requests, or that a token would have.", NAME_LIST),
    "channels": Field(NAMES, "The same as `channel`.", NAME_LIST),
    "patterns": Field(PATTERNS, "Patterns that a token would have."),
    "lastEventId": Field(_TEXT, "The cursor that the client brings."),
    "since": Field(SINCE, "Where a client without a cursor wants to begin."),
    "origin": Field(_TEXT, "The origin of the page, as browsers send it."),
    "address": Field(_TEXT, "The IP address of the client."),
}
_CLIENT = ("lastEventId", "since", "origin", "address")
SHAPES = (
    Shape("ExplainToken", ("token",), ("channel", *_CLIENT)),
    Shape("ExplainTokenOnChannels", ("token", "channels"), _CLIENT),
    Shape("ExplainUser", ("userId", "channel"), ("patterns", *_CLIENT)),
    Shape("ExplainUserOnChannels", ("userId", "channels"), ("patterns", *_CLIENT)),
    Shape("ExplainUserOnPatterns", ("userId", "patterns"), _CLIENT),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A client to explain: its `token`, or the `claims` that one would have.

    `channels` are those that it requests, which are all if there are none. `address` is as limits count it, and
    `origin` that of the page; None if they don't matter.
    """

    token: str | None = None
    claims: Claims | None = None
    channels: tuple[str, ...] = ()
    start: Start = NOW
    address: str | None = None
    origin: str | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], now: float) -> Self:
        """Return the question that the fields of a request ask at the Unix time `now`. Raises InvalidRequest."""
        refuse_null(fields)
        for name in fields.keys() - LISTS:
            if not isinstance(fields[name], str):
                raise InvalidRequest(f"{name} must be a string, not {type(fields[name]).__name__}")
            if len(fields[name]) > MAX_TEXT_LENGTH:
                raise InvalidRequest(
                    f"{name} has {len(fields[name])} characters: at most {MAX_TEXT_LENGTH} are allowed"
                )
        if "channel" in fields and "channels" in fields:
            raise InvalidRequest("channel and channels are both given: leave one out")
        channels = _names(fields, "channels" if "channels" in fields else "channel")
        patterns = _names(fields, "patterns", MAX_PATTERNS)
        token = fields.get("token")
        if token is not None:
            for name in ("userId", "patterns"):
                if name in fields:
                    raise InvalidRequest(f"token and {name} are both given: leave one out, as the token says it")
            claims = None
        elif "userId" in fields:
            claims = Claims(fields["userId"], channels, iat=now, patterns=patterns)
            channels = ()
        else:
            raise InvalidRequest("token is missing: send the token of a client, or userId and channel")
        return cls(
            token,
            claims,
            channels,
            Start.parse(fields.get("lastEventId"), fields.get("since")),
            _address(fields),
            require_origin(fields["origin"]) if "origin" in fields else None,
        )


def _names(fields: Mapping[str, Any], name: str, most: int = MAX_NAMES) -> tuple[str, ...]:
    if name not in fields:
        return ()
    value = fields[name]
    values = value if isinstance(value, list) else [value]
    if len(values) > most:
        raise InvalidRequest(f"{name} has {len(values)} names: at most {most} are allowed")
    return check_names(name, values)


def _address(fields: Mapping[str, Any]) -> str | None:
    """Return the address as limits count it, None if there is none."""
    address = fields.get("address")
    if address is None:
        return None
    if parse_address(address) is None:
        raise InvalidRequest(f"address {address[:40]!r} is not an IP address: give that of the client, without a port")
    return limit_key(address)
