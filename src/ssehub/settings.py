"""The settings of the hub, its brokers and its apps, as values: each with its default, its bounds and its description.

Field names are the TOML keys, so `Hub(retention=Retention(history_events=100))` in Python and `history_events = 100` in
a file mean the same. `config.Config` builds its command-line options and variables from the same fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from .errors import ConfigError

MAX_SECONDS = 2**31


def setting(
    default: Any,
    description: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare a field of a settings class: a number greater than `above`, at least `least` and less than `below`."""
    bounds = {"above": above, "least": least, "below": below, "pattern": pattern}
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a settings class: its declared type, such as `int` or `float | None`, and what it accepts."""

    name: str
    kind: Any
    default: Any
    description: str
    bounds: Mapping[str, Any]

    def check(self, value: object) -> None:
        """Raise ValueError, which says what would do, unless `value` fits."""
        kinds = get_args(self.kind) or (self.kind,)
        if type(value) not in (*kinds, *((int,) if float in kinds else ())):
            raise ValueError(f"must be {_KINDS[kinds[0]]}, not {type(value).__name__}")
        if isinstance(value, int | float):
            _check_bounds(value, self.bounds["above"], self.bounds["least"], self.bounds["below"])
        elif isinstance(value, str) and self.bounds["pattern"] and not re.fullmatch(self.bounds["pattern"], value):
            raise ValueError(f"must match {self.bounds['pattern']}")


_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


class Settings:
    """The base of all settings classes: checks every field when an object is made. Raises ConfigError."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            value = getattr(self, setting.name)
            try:
                setting.check(value)
            except ValueError as exc:
                raise ConfigError(f"{setting.name} {value!r}: {exc}") from None


def settings_of(group: Any) -> tuple[Setting, ...]:
    """Return what the settings class `group` declares."""
    kinds = get_type_hints(group)
    return tuple(
        Setting(one.name, kinds[one.name], one.default, one.metadata["description"], one.metadata)
        for one in fields(group)
    )


def _check_bounds(value: float, above: float | None, least: float | None, below: float | None) -> None:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    if above is not None and value <= above:
        raise ValueError(f"must be greater than {above}")
    if least is not None and value < least:
        raise ValueError(f"must be at least {least}")
    if below is not None and value >= below:
        raise ValueError(f"must be less than {below}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention(Settings):
    """How much of the log a hub keeps in memory, for clients that reconnect."""

    history_events: int = setting(10_000, "events kept in memory for clients that reconnect", above=0)
    history_bytes: int = setting(64 * 2**20, "bytes that the retained events may take", above=0)
    history_seconds: float = setting(3_600, "how long events are retained", above=0, below=MAX_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backpressure(Settings):
    """How far clients may fall behind, and how much may wait, before the hub ends streams or delays publishers."""

    max_backlog_bytes: int = setting(
        2**20, "bytes that a client may leave unread before events are held for it", above=0
    )
    grace_seconds: float = setting(
        5,
        "how long a stream may stay over its backlog bound before it ends as slow",
        above=0,
        below=MAX_SECONDS,
    )
    max_total_backlog_bytes: int = setting(256 * 2**20, "bound on all backlogs together", above=0)
    round_bytes: int = setting(256 * 2**10, "most bytes that one round writes to one stream", above=0)
    max_waiting_bytes: int = setting(
        16 * 2**20, "bytes of events that may wait for a round before publishers have to wait", above=0
    )
    max_waiting_publishers: int = setting(
        1_000, "publishers that may wait before further ones are answered 503", above=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams(Settings):
    """How many streams there may be, and what each of them is sent besides events."""

    max_connections: int | None = setting(
        None, "open streams at once; if not set, the descriptor limit less 500, at least half of it", above=0
    )
    heartbeat_seconds: float = setting(
        15, "time between heartbeats on each stream; 0 turns them off", least=0, below=86_401
    )
    retry_milliseconds: int | None = setting(
        None, "how long a browser waits before it reconnects; if not set, the browser decides", least=0, below=2**31
    )
    expiring_seconds: float = setting(
        60, "how long before its token expires a stream is sent stream-expiring", above=0, below=MAX_SECONDS
    )
    stream_lifetime_seconds: float | None = setting(
        None,
        "how long a stream may last, jittered to 80-100 %; if not set, without limit",
        above=0,
        below=MAX_SECONDS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency(Settings):
    """How long a broker remembers idempotency keys."""

    idempotency_seconds: float = setting(600, "how long an idempotency key is remembered", above=0, below=MAX_SECONDS)
    idempotency_keys: int = setting(100_000, "most idempotency keys remembered at once", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRetention(Settings):
    """How much a durable broker (SQLite, Redis) keeps of its log."""

    log_seconds: float = setting(
        604_800, "how long events stay in the log of SQLite or Redis", above=0, below=MAX_SECONDS
    )
    log_bytes: int = setting(2**30, "size of SQLite's file beyond which its oldest events are deleted", above=0)
    log_events: int = setting(100_000, "approximate number of events that the log in Redis may have", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions(Settings):
    """How the Redis broker names its keys and watches its connections."""

    redis_prefix: str = setting(
        "ssehub", "prefix, in braces, of this deployment's keys in Redis", pattern=r"[^{}\s]{1,100}"
    )
    wait_for_broker: bool = setting(
        False, "start even if Redis is unreachable, and stay not ready until it answers, instead of exiting"
    )
    broker_probe_seconds: float = setting(
        5, "how long a connection to Redis may be silent before it is replaced", above=0, below=MAX_SECONDS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Settings):
    """How large requests to the control app may be."""

    max_event_bytes: int = setting(2**20, "largest data or payload of one event", above=0)
    max_body_bytes: int = setting(8 * 2**20, "largest request body of the control app", above=0)
    max_batch_events: int = setting(10_000, "most events in one batch", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions(Settings):
    """Socket options of the connections."""

    send_buffer_bytes: int = setting(
        64 * 2**10, "the kernel's send buffer of each connection (SO_SNDBUF)", above=0, below=2**31
    )
    tcp_user_timeout_seconds: float = setting(
        30,
        "how long a peer may leave data unacknowledged before its connection is closed (TCP_USER_TIMEOUT)",
        above=0,
        below=MAX_SECONDS // 1000,
    )
