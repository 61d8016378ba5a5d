"""Statistics: plain numbers about one hub, which `/metrics` shows and workers send each other."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import ConflictReason, TokenReason
from ..runs.model import RunState
from .history import ResetReason
from .limits import Refusal
from .subscriber import CloseReason

ROUND_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds, in seconds, of the histogram of round durations."""


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


@dataclass(slots=True)
class Statistics:
    """Totals since the hub was made, and the current value of everything else."""

    subscribers: int = 0
    channels: int = 0
    patterns: int = 0
    watchers: int = 0
    """Streams of runs. They count among the subscribers, too."""
    watched_runs: int = 0
    run_waits: int = 0
    """Clients that wait for a run to appear."""
    connected: int = 0
    endings: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in CloseReason})
    refused: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in Refusal})
    refused_tokens: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in TokenReason})
    logouts: dict[str, int] = field(default_factory=lambda: {logout.value: 0 for logout in Logout})
    published: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    replayed: int = 0
    resets: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in ResetReason})
    history_events: int = 0
    history_bytes: int = 0
    backlog_bytes: int = 0
    lagging: int = 0
    waiting_bytes: int = 0
    waiting_publishers: int = 0
    round_bounds: tuple[float, ...] = ROUND_BOUNDS
    round_counts: list[int] = field(default_factory=lambda: [0] * (len(ROUND_BOUNDS) + 1))
    round_seconds: float = 0.0
    loop_lag_seconds: float = 0.0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_is_short: bool = False
    broker_ready: bool = True
    revocations: int = 0
    runs: dict[str, int] = field(default_factory=lambda: {state.value: 0 for state in RunState})
    run_bytes: int = 0
    run_events: int = 0
    """Events that were appended to runs here, those that a producer has sent again included."""
    run_producers: int = 0
    """Producers that append at present."""
    refused_appends: dict[str, int] = field(
        default_factory=lambda: {reason.value: 0 for reason in (*ConflictReason, *AppendRefusal)}
    )
    log_skipped_entries: int = 0
    clock_skew_seconds: float = 0.0
    key_file_failures: dict[str, int] = field(default_factory=lambda: {"secret_file": 0, "jwks": 0})
    control_requests: dict[str, dict[str, int]] = field(default_factory=dict)
    """Requests to the control app that were admitted, by the name of the key, then by right."""
    control_refused: dict[str, dict[str, int]] = field(default_factory=dict)
    """Those that were refused because of the key, by its name, then by reason."""
    tls_not_after: dict[str, float] = field(default_factory=dict)
    """When the certificates end, in Unix time, by port: `client`, `control`."""
    jwks_fetch_failures: int = 0
    jwks_age_seconds: float = 0.0

    def count_round(self, seconds: float) -> None:
        """Add a round of this duration to the histogram."""
        self.round_seconds += seconds
        self.round_counts[bisect_left(self.round_bounds, seconds)] += 1
