"""The messages between the load test and its worker processes: one order, then reports, each a line of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker should do: open one subscriber of the hub at `url` for each token."""

    url: str
    tokens: list[str]
    first: int = 0
    """The number of connections that other workers make before this one's; see `source_address`."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Order:
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Tally:
    """What the subscribers of one worker have received so far."""

    opened: int = 0
    events: int = 0
    reads: int = 0
    """The reads that contained events."""
    gaps: int = 0
    duplicates: int = 0
    reordered: int = 0
    closed: int = 0
    finished_at: float = 0.0
    """The `time.monotonic()` of the last read that contained events."""
    cpu_seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    """The number of failed subscribers by reason."""
    latencies: dict[int, int] = field(default_factory=dict)
    """The counts of a `Latencies`, in the last report only."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Tally:
        found = json.loads(line)
        found["latencies"] = {int(bucket): count for bucket, count in found["latencies"].items()}
        return cls(**found)


def total_of(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of the workers' tallies; `finished_at` is the latest."""
    found = list(tallies)
    refused: Counter[str] = Counter()
    latencies: Counter[int] = Counter()
    for tally in found:
        refused.update(tally.refused)
        latencies.update(tally.latencies)
    return Tally(
        opened=sum(tally.opened for tally in found),
        events=sum(tally.events for tally in found),
        reads=sum(tally.reads for tally in found),
        gaps=sum(tally.gaps for tally in found),
        duplicates=sum(tally.duplicates for tally in found),
        reordered=sum(tally.reordered for tally in found),
        closed=sum(tally.closed for tally in found),
        finished_at=max((tally.finished_at for tally in found), default=0.0),
        cpu_seconds=sum(tally.cpu_seconds for tally in found),
        refused=dict(refused),
        latencies=dict(latencies),
    )
