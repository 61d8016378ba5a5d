"""The course of a load test: connect all subscribers, publish all events, and report."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .addresses import address_of
from .latencies import Latencies
from .messages import Tally
from .plan import BenchError, Plan
from .processes import Load, listening
from .publishing import publish_all
from .report import Report
from .resources import Meter, ServerProcesses, Usage

POLL_SECONDS = 0.02
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is to do."""


async def measure(plan: Plan, tokens: list[str], progress: Progress) -> Report:
    """Carry out `plan` with a token for each audience.

    Raises BenchError if not all subscribers can be connected, ConfigError if the URL or the server's pid is invalid. A
    problem while publishing is part of the report.
    """
    address_of(plan.url)
    server = ServerProcesses(plan.server_pid)
    meter = Meter(server)
    async with listening(plan, tokens) as load:
        own = load.cpu_seconds
        connecting = _Stage(
            "connecting", plan.subscribers, lambda: load.total.opened, lambda: _refusal(load.total, plan)
        )
        await _wait(connecting, plan, progress)
        connected = _Connected(meter.seconds(), meter.usage(), _own_share(own, load, meter.seconds()))
        published = await _publish(plan, load, server, progress) if plan.events else _Published()
    return _report(plan, connected, published, load.total)


@dataclass(frozen=True, slots=True)
class _Connected:
    seconds: float
    server: Usage
    own_cpu_share: float


@dataclass(frozen=True, slots=True)
class _Published:
    """`seconds` is the time until every event was received, `publishing_seconds` until every event was published."""

    seconds: float = 0.0
    publishing_seconds: float = 0.0
    server_cpu_seconds: float | None = None
    own_cpu_share: float = 0.0
    problem: str | None = None


async def _publish(plan: Plan, load: Load, server: ServerProcesses, progress: Progress) -> _Published:
    meter, own, began = Meter(server), load.cpu_seconds, time.monotonic()
    ended_at = began

    async def publish() -> None:
        nonlocal ended_at
        try:
            await publish_all(plan)
        finally:
            ended_at = time.monotonic()

    task = asyncio.create_task(publish())
    stage = _Stage(
        "publishing",
        plan.expected_deliveries,
        lambda: load.total.events,
        lambda: _failure(task) or _closing(load.total, plan),
        is_publishing=lambda: not task.done(),
    )
    problem = None
    try:
        await _wait(stage, plan, progress)
    except BenchError as exc:
        problem = str(exc)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    seconds = max(load.total.finished_at, ended_at) - began
    return _Published(
        seconds=seconds,
        publishing_seconds=ended_at - began,
        server_cpu_seconds=meter.usage().cpu_seconds if plan.server_pid is not None else None,
        own_cpu_share=_own_share(own, load, seconds),
        problem=problem,
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    """A part of a load test: how much there is to do, and how to ask what is done and what has gone wrong."""

    name: str
    wanted: int
    done: Callable[[], int]
    problem: Callable[[], str | None]
    is_publishing: Callable[[], bool] = lambda: False


async def _wait(stage: _Stage, plan: Plan, progress: Progress) -> None:
    """Wait for the end of `stage`; raises BenchError if it has a problem or makes no progress any more."""
    last, moved_at = -1, time.monotonic()
    while True:
        done, is_publishing = stage.done(), stage.is_publishing()
        progress(stage.name, done, stage.wanted)
        if problem := stage.problem():
            raise BenchError(f"{stage.name}: {problem}")
        if done >= stage.wanted and not is_publishing:
            return
        # With a rate, or without subscribers, there may be nothing to receive for long. A publisher that gets no
        # response has its own time limit, which should be reached first.
        if done != last or (is_publishing and (plan.rate or not stage.wanted)):
            last, moved_at = done, time.monotonic()
        elif time.monotonic() - moved_at > plan.patience_seconds * (1.5 if is_publishing else 1):
            raise BenchError(
                f"{stage.name}: no progress for {plan.patience_seconds:g} s at {done:,} of {stage.wanted:,}"
            )
        await asyncio.sleep(POLL_SECONDS)


def _refusal(tally: Tally, plan: Plan) -> str | None:
    """Return why subscribers have no stream, if there are any without."""
    for reason, count in tally.refused.items():
        return f"{count} of {plan.subscribers} subscribers failed: {reason}"
    return None


def _closing(tally: Tally, plan: Plan) -> str | None:
    """Return how many streams have ended, if there are any."""
    return f"the server closed {tally.closed} of {plan.subscribers} streams" if tally.closed else None


def _failure(task: asyncio.Task[None]) -> str | None:
    """Return why `task` failed, if it has."""
    if not task.done() or task.cancelled() or (exc := task.exception()) is None:
        return None
    return str(exc) or type(exc).__name__


def _own_share(before: Sequence[float], load: Load, seconds: float) -> float:
    return busy_share([now - earlier for now, earlier in zip(load.cpu_seconds, before, strict=True)], seconds)


def busy_share(used: Sequence[float], seconds: float) -> float:
    """Return how busy the busiest process was in `seconds`, or all together on the cores they may use, if that is more.

    `used` has the CPU seconds of each process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(max(used), sum(used) / cores) / max(1e-9, seconds)


def _report(plan: Plan, connected: _Connected, published: _Published, tally: Tally) -> Report:
    expected = plan.expected_deliveries
    latencies = Latencies(tally.latencies)
    knows_server = plan.server_pid is not None and plan.subscribers
    return Report(
        subscribers=plan.subscribers,
        expected=expected,
        delivered=tally.events,
        lost=max(0, expected - (tally.events - tally.duplicates)),
        gaps=tally.gaps,
        duplicates=tally.duplicates,
        reordered=tally.reordered,
        seconds=published.seconds,
        deliveries_per_second=_quotient(tally.events, published.seconds) or 0.0,
        published_per_second=_quotient(plan.events, published.publishing_seconds) or 0.0,
        connections_per_second=_quotient(plan.subscribers, connected.seconds) or 0.0,
        latency_ms={name: latencies.milliseconds(share) for name, share in PERCENTILES.items()} if tally.events else {},
        server_cpu_seconds=published.server_cpu_seconds,
        deliveries_per_cpu_second=_quotient(tally.events, published.server_cpu_seconds),
        events_per_cpu_second=_quotient(plan.events, published.server_cpu_seconds),
        connections_per_cpu_second=_quotient(plan.subscribers, connected.server.cpu_seconds) if knows_server else None,
        bytes_per_subscriber=_quotient(connected.server.memory_bytes, plan.subscribers) if knows_server else None,
        own_cpu_share=published.own_cpu_share if plan.events else connected.own_cpu_share,
        problem=published.problem,
    )


def _quotient(above: float, below: float | None) -> float | None:
    return above / below if below else None
