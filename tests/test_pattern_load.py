"""Ten thousand streams with a pattern each, beside as many with exact channels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import httpx
import psutil
import pytest

from conftest import SECRET, RunningHub, StartHub, report, wait_until
from named_crowd import NamedCrowd, Received, named_crowd
from ssehub.tokens import Tokens

CHANNELS, SUBSCRIBERS_OF_EACH = 1_000, 10
EVENTS, WARM_UP_EVENTS, EVENTS_PER_SECOND = 2_000, 100, 100
NAMES = [f"{number:03}/abcdefghi" for number in range(CHANNELS)]
PREFIX = 4
"""How much of a name belongs to no other one."""

Grant = tuple[tuple[str, ...], tuple[str, ...]]
EXACT: list[Grant] = [((name,), ()) for name in NAMES for _ in range(SUBSCRIBERS_OF_EACH)]
PATTERNS: list[Grant] = [((), (f"{name[: PREFIX + more]}*",)) for name in NAMES for more in range(SUBSCRIBERS_OF_EACH)]


class Cost(NamedTuple):
    """What the events have cost the hub: CPU seconds, and how old they were when they arrived."""

    cpu_seconds: float
    received: Received

    def __str__(self) -> str:
        median, p99 = self.received.median * 1000, self.received.p99 * 1000
        return f"{self.cpu_seconds:.2f} s of CPU time, median {median:.1f} ms, p99 {p99:.1f} ms"


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(600)
def test_ten_thousand_patterns_cost_little_more_than_exact_channels(start_hub: StartHub) -> None:
    assert len({patterns for _, patterns in PATTERNS}) == CHANNELS * SUBSCRIBERS_OF_EACH

    costs = {name: cost_of(start_hub, grants) for name, grants in (("exact", EXACT), ("patterns", PATTERNS))}
    for name, cost in costs.items():
        report(f"10,000 streams, {name}: {EVENTS} events, {EVENTS_PER_SECOND} a second, cost {cost}")

    exact, patterns = costs["exact"], costs["patterns"]
    for cost in (exact, patterns):
        assert cost.received.deliveries == EVENTS * SUBSCRIBERS_OF_EACH
        assert cost.received.streams == CHANNELS * SUBSCRIBERS_OF_EACH
        assert cost.received.faults == 0
    assert patterns.cpu_seconds < 2 * exact.cpu_seconds + 1
    assert patterns.received.p99 < 3 * exact.received.p99 + 0.1


def cost_of(start_hub: StartHub, grants: Sequence[Grant]) -> Cost:
    tokens, expires_at = Tokens(SECRET), time.time() + 3_600
    issued = [
        tokens.issue(f"user-{number}", channels, patterns=patterns, expires_at=expires_at)
        for number, (channels, patterns) in enumerate(grants)
    ]
    hub = start_hub()
    process = psutil.Process(hub.process.pid)
    with named_crowd(hub.port, issued) as crowd:
        assert hub.metric("ssehub_patterns") == len({pattern for _, patterns in grants for pattern in patterns})
        publish(hub, crowd, 1, WARM_UP_EVENTS)
        crowd.start_again()
        before = sum(process.cpu_times()[:2])
        publish(hub, crowd, WARM_UP_EVENTS + 1, EVENTS)
        return Cost(sum(process.cpu_times()[:2]) - before, crowd.report())


def publish(hub: RunningHub, crowd: NamedCrowd, first: int, count: int) -> None:
    """Publish `count` events in the time that this takes, and wait until all clients have received them."""
    began = time.monotonic()
    with httpx.Client(timeout=60) as http:
        for number in range(count):
            time.sleep(max(0.0, began + number / EVENTS_PER_SECOND - time.monotonic()))
            data = f"{first + number} {time.monotonic()}"
            event = {"userId": "*", "channel": NAMES[number % CHANNELS], "data": data}
            http.post(f"{hub.control_url}/emit/", json=event).raise_for_status()
    wait_until(lambda: crowd.report().deliveries == count * SUBSCRIBERS_OF_EACH)
