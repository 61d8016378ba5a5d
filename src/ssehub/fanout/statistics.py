"""Statistics: plain numbers about one hub, which `/metrics` shows and workers send each other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from ..errors import ConflictReason, TokenReason
from ..revocations import MAX_REVOCATIONS
from ..runs.model import RunState
from ..settings import Backpressure, Retention, RunLimits, Streams
from .history import ResetReason
from .refusals import PORTS, ConnectionRefusal, ControlRefusal, Refusal
from .subscriber import CloseReason

ROUND_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds, in seconds, of the histogram of round durations."""
DELIVERY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The same for the time from publishing to written. Positions have milliseconds, so that no bound is lower."""


ALWAYS_SHOWN = ("config", "secret_file", "jwks")
"""The files that are shown among those that are read again, also where they are not used."""


class Logout(StrEnum):
    """How a back-channel logout ended."""

    DONE = "done"
    UNKNOWN_SID = "unknown-sid"
    """It was done, but names a session by `sid` only, and no token verified here has had one."""
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


class AppendRefusal(StrEnum):
    """Why an append to a run was refused, or was ended by the hub, besides ConflictReason."""

    INVALID = "invalid"
    UNKNOWN = "unknown"
    """There is no such run."""
    FORBIDDEN = "forbidden"
    TIMEOUT = "timeout"
    RATE = "rate"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"


OWN: Mapping[str, Any] = {"is_own": True}
"""Metadata of a field that each worker has of its own, so that it can be added to those of the others."""


def none_of(*names: Iterable[str]) -> Callable[[], dict[str, int]]:
    """Return what makes a count of 0 for each of the `names`."""
    return lambda: {str(name): 0 for each in names for name in each}


@dataclass(slots=True)
class Statistics:
    """Totals since the hub was made, and the current value of everything else.

    `…_max` is the limit of a number, None if there is none. Of several workers, what is OWN can be added up. They
    share the rest, or see the same of it.
    """

    subscribers: int = field(default=0, metadata=OWN)
    subscribers_max: int | None = field(default=None, metadata=OWN)
    channels: int = 0
    patterns: int = 0
    watchers: int = field(default=0, metadata=OWN)
    """Streams of runs. They count among the subscribers, too."""
    watched_runs: int = 0
    run_waits: int = field(default=0, metadata=OWN)
    """Clients that wait for a run to appear."""
    run_waits_max: int | None = field(default=None, metadata=OWN)
    connected: int = field(default=0, metadata=OWN)
    endings: dict[str, int] = field(default_factory=none_of(CloseReason), metadata=OWN)
    refused: dict[str, int] = field(default_factory=none_of(Refusal), metadata=OWN)
    refused_tokens: dict[str, int] = field(default_factory=none_of(TokenReason), metadata=OWN)
    refused_control: dict[str, int] = field(default_factory=none_of(ControlRefusal), metadata=OWN)
    refused_connections: dict[str, dict[str, int]] = field(
        default_factory=lambda: {port: none_of(ConnectionRefusal)() for port in PORTS}, metadata=OWN
    )
    """By port."""
    logouts: dict[str, int] = field(default_factory=none_of(Logout), metadata=OWN)
    published: int = field(default=0, metadata=OWN)
    delivered: int = field(default=0, metadata=OWN)
    delivered_bytes: int = field(default=0, metadata=OWN)
    replayed: int = field(default=0, metadata=OWN)
    resets: dict[str, int] = field(default_factory=none_of(ResetReason), metadata=OWN)
    history_events: int = 0
    history_events_max: int | None = None
    history_bytes: int = 0
    history_bytes_max: int | None = None
    backlog_bytes: int = field(default=0, metadata=OWN)
    backlog_bytes_max: int | None = field(default=None, metadata=OWN)
    lagging: int = field(default=0, metadata=OWN)
    waiting_bytes: int = field(default=0, metadata=OWN)
    waiting_bytes_max: int | None = field(default=None, metadata=OWN)
    waiting_publishers: int = field(default=0, metadata=OWN)
    waiting_publishers_max: int | None = field(default=None, metadata=OWN)
    round_bounds: tuple[float, ...] = ROUND_BOUNDS
    round_counts: list[int] = field(default_factory=lambda: [0] * (len(ROUND_BOUNDS) + 1), metadata=OWN)
    round_seconds: float = field(default=0.0, metadata=OWN)
    delivery_bounds: tuple[float, ...] = DELIVERY_BOUNDS
    delivery_counts: list[int] = field(default_factory=lambda: [0] * (len(DELIVERY_BOUNDS) + 1), metadata=OWN)
    delivery_seconds: float = field(default=0.0, metadata=OWN)
    loop_lag_seconds: float = 0.0
    memory_bytes: int = field(default=0, metadata=OWN)
    memory_limit_bytes: int = field(default=0, metadata=OWN)
    memory_is_short: bool = False
    broker_ready: bool = True
    revocations: int = 0
    revocations_max: int = MAX_REVOCATIONS
    runs: dict[str, int] = field(default_factory=lambda: {state.value: 0 for state in RunState})
    runs_max: int | None = None
    run_bytes: int = 0
    run_bytes_max: int | None = None
    run_events: int = field(default=0, metadata=OWN)
    """Events that were appended to runs here, those that a producer has sent again included."""
    run_producers: int = field(default=0, metadata=OWN)
    """Producers that append at present."""
    pipes: int = field(default=0, metadata=OWN)
    """Pipes of publishers that are open."""
    refused_appends: dict[str, int] = field(default_factory=none_of(ConflictReason, AppendRefusal), metadata=OWN)
    log_skipped_entries: int = 0
    clock_skew_seconds: float = 0.0
    reload_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ALWAYS_SHOWN, 0))
    """How often files could not be used when they were read again, by the first setting that names them."""
    reload_failed: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(ALWAYS_SHOWN, False))
    """True while that is so: what was read before is in use."""
    control_requests: dict[str, dict[str, int]] = field(default_factory=dict, metadata=OWN)
    """Requests to the control app that were admitted, by the name of the key, then by right."""
    refused_keys: dict[str, dict[str, int]] = field(default_factory=dict, metadata=OWN)
    """Those that were refused because of the key, by its name, then by reason."""
    control_responses: dict[str, int] = field(default_factory=dict, metadata=OWN)
    """Responses of the control app, by status."""
    tls_not_after: dict[str, float] = field(default_factory=dict)
    """When the certificates end, in Unix time, by port: `client`, `control`."""
    jwks_fetch_failures: int = 0
    jwks_age_seconds: float = 0.0
    process: dict[str, float] = field(default_factory=dict)
    """What the process uses, by the names of its metrics: see `web/process_metrics.py`."""
    build: dict[str, str] = field(default_factory=dict)
    """What the process runs: `version`, `python`, `broker`."""

    def set_limits(self, streams: Streams, retention: Retention, backpressure: Backpressure, runs: RunLimits) -> None:
        """Set each `…_max` to what the settings allow."""
        self.subscribers_max = streams.max_connections
        self.run_waits_max = streams.max_run_waits
        self.history_events_max = retention.history_events
        self.history_bytes_max = retention.history_bytes
        self.backlog_bytes_max = backpressure.max_total_backlog_bytes
        self.waiting_bytes_max = backpressure.max_waiting_bytes
        self.waiting_publishers_max = backpressure.max_waiting_publishers
        self.runs_max = runs.max_runs
        self.run_bytes_max = runs.max_runs_bytes

    def count_round(self, seconds: float) -> None:
        """Add a round of this duration to the histogram."""
        self.round_seconds += seconds
        self.round_counts[bisect_left(self.round_bounds, seconds)] += 1

    def count_deliveries(self, seconds: float, events: int) -> None:
        """Add so many events, written this long after they were published, to the histogram."""
        self.delivery_seconds += seconds * events
        self.delivery_counts[bisect_left(self.delivery_bounds, seconds)] += events


ADDED = tuple(each.name for each in fields(Statistics) if each.metadata == OWN)
"""The names of what can be added up over workers."""
