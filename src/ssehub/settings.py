"""The settings of the hub, its brokers and its apps: frozen dataclasses that declare each setting once.

A field's name is its TOML key: `Hub(retention=Retention(history_events=100))` in Python means the same as
`history_events = 100` in a file. `config.Config` takes its fields, and with them the command-line options and
environment variables, from these declarations.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_type_hints

from .errors import ConfigError

BROKERS = "memory://, sqlite:///PATH or redis://HOST:PORT"
"""The URLs of brokers, for messages about an unknown one."""

ComebackEnd = Literal["auto", "clean", "cut"]
"""How to end the response of a client that should reconnect: as the client needs it, complete it, or cut it off."""

P = ParamSpec("P")
R = TypeVar("R")

_KIND_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Range:
    """Finite numbers that are greater than `above`, at least `least`, at most `most` and less than `below`.

    `check` raises ValueError, which says what is expected, for any other number.
    """

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def check(self, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        if value <= self.above:
            raise ValueError(f"must be greater than {self.above}")
        if value < self.least:
            raise ValueError(f"must be at least {self.least}")
        if value > self.most:
            raise ValueError(f"must be at most {self.most}")
        if value >= self.below:
            raise ValueError(f"must be less than {self.below}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Strings that `regex` matches completely, which `wording` describes. `check` raises ValueError for others."""

    regex: str
    wording: str

    def check(self, value: Any) -> None:
        if not re.fullmatch(self.regex, value):
            raise ValueError(f"must be {self.wording}")


POSITIVE = Range(above=0)
RATE = Range(above=0, most=1_000_000)
SECONDS = Range(above=0, below=2**31)
LEEWAY = Range(least=0, most=600)
"""Seconds by which clocks may differ. More would let access outlive its token for long."""


def setting(default: Any, description: str, limit: Range | Pattern | None = None) -> Any:
    """Declare a field of a settings class: its default, its `--help` text and the values it accepts."""
    return field(default=default, metadata={"description": description, "limit": limit})


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a settings class. `annotation` is its type: int, float, str or bool, or one of these or None."""

    name: str
    annotation: Any
    default: Any
    description: str
    limit: Range | Pattern | None

    def check(self, value: Any) -> None:
        """Raise ValueError, which says what is expected, if the setting does not accept `value`."""
        kind, *optional = get_args(self.annotation) or (self.annotation,)
        if value is None and optional:
            return
        accepted = (int, float) if kind is float else kind
        # bool is a subclass of int.
        if not isinstance(value, accepted) or isinstance(value, bool) is not (kind is bool):
            raise ValueError(f"must be {_KIND_NAMES[kind]}, not {type(value).__name__}")
        if self.limit is not None:
            self.limit.check(value)


@dataclass(frozen=True, slots=True)
class Settings:
    """The base of all settings classes. Constructing one raises ConfigError if a field does not accept its value."""

    def __post_init__(self) -> None:
        for declared in settings_of(type(self)):
            value = getattr(self, declared.name)
            try:
                declared.check(value)
            except ValueError as exc:
                raise ConfigError(f"{declared.name} {value!r}: {exc}") from None


def settings_of(group: type[Settings]) -> tuple[Setting, ...]:
    """Return the settings that the settings class `group` declares, in order."""
    annotations = get_type_hints(group)
    return tuple(Setting(each.name, annotations[each.name], each.default, **each.metadata) for each in fields(group))


def takes_settings(call: Callable[P, R]) -> Callable[P, R]:
    """Decorate `call`, whose arguments include settings classes, to say where a setting given by itself belongs."""
    places = {
        declared.name: (type(group), parameter)
        for parameter, group in ((each.name, each.default) for each in inspect.signature(call).parameters.values())
        if isinstance(group, Settings)
        for declared in settings_of(type(group))
    }

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name in places:
                group, parameter = places[name]
                raise TypeError(
                    f"{name} is a setting of ssehub.settings.{group.__name__}: give "
                    f"{parameter}={group.__name__}({name}=…)"
                )
        return call(*args, **kwargs)

    return checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams(Settings):
    """How many streams a hub accepts, and what it sends on them besides events."""

    max_connections: int | None = setting(
        None,
        "most open streams of a process; if not set, its descriptor limit minus 2,000, but at least half of it",
        POSITIVE,
    )
    heartbeat_seconds: float = setting(
        15, "interval between heartbeats on each stream; 0 turns them off", Range(least=0, most=86_400)
    )
    retry_milliseconds: int | None = setting(
        None,
        "how long a browser waits before it reconnects; if not set, the browser decides",
        Range(least=0, below=2**31),
    )
    expiring_seconds: float = setting(60, "how long before its token expires a stream is sent stream-expiring", SECONDS)
    stream_lifetime_seconds: float | None = setting(
        None, "maximum lifetime of a stream, of which each gets a random 80 to 100 %; if not set, unlimited", SECONDS
    )
    max_run_waits: int = setting(
        1_000,
        "clients that may wait at once for a run; beyond that, one of the user with the most is told to come back",
        POSITIVE,
    )
    allow_all_channels: bool = setting(
        False, "let a stream have the pattern *, with which it receives the events of every channel"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits(Settings):
    """How many streams there may be of one user, address and channel, and how many may be opened a second."""

    max_streams_per_user: int | None = setting(None, "most open streams of one user", POSITIVE)
    user_limit_policy: str = setting(
        "replace",
        "what happens to a further stream of a user: replace (the oldest one ends) or refuse",
        Pattern("replace|refuse", "replace or refuse"),
    )
    max_streams_per_address: int | None = setting(
        None, "most open streams of one client address, or of one IPv6 network of 64 bits", POSITIVE
    )
    max_streams_per_channel: int | None = setting(None, "most open streams on one channel", POSITIVE)
    max_new_streams_per_second: float | None = setting(
        None, "streams that may be opened a second, with a burst of those of ten seconds", RATE
    )
    max_new_streams_per_second_per_address: float | None = setting(
        None, "streams that one client address may open a second, with a burst of those of ten seconds", RATE
    )

    @property
    def has_any(self) -> bool:
        """True if any limit is set."""
        settings = (
            self.max_streams_per_user,
            self.max_streams_per_address,
            self.max_streams_per_channel,
            self.max_new_streams_per_second,
            self.max_new_streams_per_second_per_address,
        )
        return any([value is not None for value in settings])


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention(Settings):
    """How much of the log a hub keeps in memory for clients that reconnect."""

    history_events: int = setting(10_000, "events kept in memory for clients that reconnect", POSITIVE)
    history_bytes: int = setting(64 * 2**20, "maximum size of the events kept in memory", POSITIVE)
    history_seconds: float = setting(3_600, "how long events are kept in memory", SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backpressure(Settings):
    """How far clients may fall behind, and how much may wait, before the hub ends streams or delays publishers."""

    max_backlog_bytes: int = setting(
        2**20, "bytes that a client may leave unread before its stream counts as lagging", POSITIVE
    )
    grace_seconds: float = setting(5, "how long a stream may lag before it ends as slow", SECONDS)
    max_total_backlog_bytes: int = setting(
        256 * 2**20, "maximum size of the backlogs of all streams together", POSITIVE
    )
    round_bytes: int = setting(256 * 2**10, "most bytes that one round writes to one stream", POSITIVE)
    max_waiting_bytes: int = setting(
        16 * 2**20, "size of the events that may wait for a round before publishers have to wait", POSITIVE
    )
    max_waiting_publishers: int = setting(
        1_000, "publishers that may wait at once; further ones are answered 503", POSITIVE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Settings):
    """How much memory the process may use before the hub frees some."""

    max_memory_bytes: int | None = setting(
        None,
        "memory above which a process opens no stream, shrinks history and ends the largest backlogs; if not set, "
        "80 % of what the machine or its cgroup has, divided by the workers; 0 for no limit",
        Range(least=0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Settings):
    """How large requests to the control app may be, and how many events they may publish."""

    max_event_bytes: int = setting(2**20, "largest data or payload of one event", POSITIVE)
    max_body_bytes: int = setting(8 * 2**20, "largest request body that the control app accepts", POSITIVE)
    max_batch_events: int = setting(10_000, "most events in one batch", POSITIVE)
    max_publishes_per_second: float | None = setting(
        None, "events that one control key may publish a second; further ones are answered 429", RATE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits(Settings):
    """How large the head of an HTTP request may be, how long a client may take to send a request, and how many may."""

    max_head_bytes: int = setting(
        80 * 2**10, "largest head of a request: its URL and headers", Range(least=1_024, most=2**20)
    )
    max_head_fields: int = setting(100, "most headers of a request", POSITIVE)
    head_seconds: float = setting(10, "how long a client may take to send the head of a request", SECONDS)
    body_seconds: float = setting(
        30, "how long a client may take to send a request body that is slower than the least rate", SECONDS
    )
    min_body_bytes_per_second: int = setting(
        16 * 2**10, "the least rate of a request body that takes longer than body_seconds", Range(least=0)
    )
    max_control_connections: int | None = setting(
        None, "most connections to the control app; if not set, as many as the descriptor limit leaves", POSITIVE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency(Settings):
    """How many idempotency keys a broker remembers, and for how long."""

    idempotency_seconds: float = setting(600, "how long an idempotency key is remembered", SECONDS)
    idempotency_keys: int = setting(100_000, "most idempotency keys that are remembered at once", POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRetention(Settings):
    """How much of its log a durable broker (SQLite, Redis) keeps."""

    log_seconds: float = setting(604_800, "how long events stay in the log of SQLite or Redis", SECONDS)
    log_bytes: int = setting(2**30, "size of the SQLite file above which its oldest events are deleted", POSITIVE)
    log_events: int = setting(100_000, "approximate maximum number of events in the Redis log", POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits(Settings):
    """How many runs there may be, how large they may become, and how long a producer has to stop."""

    run_bytes: int = setting(
        8 * 2**20,
        "largest size of one run, with 32 bytes for each event; a run that would become larger fails",
        POSITIVE,
    )
    max_runs: int = setting(20_000, "largest number of runs, including those that are kept after their end", POSITIVE)
    max_runs_bytes: int = setting(
        512 * 2**20, "size of all runs together above which nothing can be created or appended", POSITIVE
    )
    run_stop_seconds: float = setting(
        5, "how long a producer that is asked to stop may take before its run ends as stopped", SECONDS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions(Settings):
    """How the Redis broker names its keys and checks its connections."""

    redis_prefix: str = setting(
        "ssehub",
        "prefix of this deployment's keys in Redis, as in {ssehub}:log",
        Pattern(r"[^{}\s]{1,100}", "1 to 100 characters without spaces or braces"),
    )
    wait_for_broker: bool = setting(
        False, "if Redis is unreachable at the start, run without being ready until it answers, instead of exiting"
    )
    broker_probe_seconds: float = setting(
        5, "how long a connection to Redis may be silent before it is replaced", SECONDS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions(Settings):
    """Socket options of the connections."""

    send_buffer_bytes: int = setting(
        64 * 2**10, "the kernel's send buffer of each connection (SO_SNDBUF)", Range(above=0, below=2**31)
    )
    tcp_user_timeout_seconds: float = setting(
        30,
        "how long sent bytes may stay unacknowledged before the connection is closed (TCP_USER_TIMEOUT)",
        Range(above=0, below=2**31 // 1000),  # the kernel takes milliseconds in 32 bits
    )
