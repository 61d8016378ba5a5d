"""The report of a load test."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

BUSY_SHARE = 0.7
"""Above this, the figures may be those of the load test: a thread that uses a core to 70 % makes its events wait."""
FAULTS = ("lost", "gaps", "duplicates", "reordered")
SERVER_FIGURES = (
    ("deliveries_per_cpu_second", "deliveries per CPU second"),
    ("events_per_cpu_second", "events per CPU second"),
    ("connections_per_cpu_second", "connections per CPU second"),
    ("bytes_per_subscriber", "server bytes per subscriber"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a load test.

    A delivery is an event that reached a subscriber. CPU time and memory are the server's, except for
    `own_cpu_share`: how busy the load test kept its busiest process, or all processes together their cores, while it
    published or, without events, while it connected.
    """

    subscribers: int
    expected: int
    delivered: int = 0
    lost: int = 0
    gaps: int = 0
    duplicates: int = 0
    reordered: int = 0
    seconds: float = 0.0
    deliveries_per_second: float = 0.0
    published_per_second: float = 0.0
    connections_per_second: float = 0.0
    latency_ms: dict[str, float] = field(default_factory=dict)
    server_cpu_seconds: float | None = None
    deliveries_per_cpu_second: float | None = None
    events_per_cpu_second: float | None = None
    connections_per_cpu_second: float | None = None
    bytes_per_subscriber: float | None = None
    own_cpu_share: float = 0.0
    problem: str | None = None

    @property
    def is_good(self) -> bool:
        """True if every event arrived, once and in order."""
        return not (self.lost or self.gaps or self.duplicates or self.reordered or self.problem)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def table(report: Report) -> list[tuple[str, str]]:
    """Return the report as rows of a label and a value, for people to read."""
    rows = [
        ("subscribers", f"{report.subscribers:,}"),
        ("delivered", f"{report.delivered:,} of {report.expected:,} in {report.seconds:.2f} s"),
        *_faults(report),
        ("deliveries per second", f"{report.deliveries_per_second:,.0f}"),
        ("published per second", f"{report.published_per_second:,.0f}"),
    ]
    if report.subscribers:
        rows.append(("connections per second", f"{report.connections_per_second:,.0f}"))
    if report.latency_ms:
        rows.append(("latency, ms", ", ".join(f"{name} {value:.2f}" for name, value in report.latency_ms.items())))
    for name, label in SERVER_FIGURES:
        value = getattr(report, name)
        if value is not None:
            rows.append((label, f"{value:,.0f}"))
    hint = ": the load test is the bottleneck, try more --processes" if report.own_cpu_share > BUSY_SHARE else ""
    return [*rows, ("own CPU share", f"{report.own_cpu_share:.0%}{hint}")]


def _faults(report: Report) -> list[tuple[str, str]]:
    if report.is_good:
        return [("faults", "none")]
    counts = ", ".join(f"{getattr(report, name):,} {name}" for name in FAULTS)
    return [("faults", report.problem), ("", counts)] if report.problem else [("faults", counts)]
