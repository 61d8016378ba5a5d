"""The publishers of a load test, and the requests they send."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

from .plan import BenchError, Plan
from .poster import connected
from .stamps import stamped


async def publish_all(plan: Plan) -> None:
    """Publish all events of `plan`; raises BenchError as soon as one publisher fails."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for publisher in range(plan.publishers):
                tasks.create_task(publish(plan, publisher))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def publish(plan: Plan, publisher: int) -> None:
    """Publish one publisher's events at the rate of `plan`, or each request once the last one has its response."""
    loop = asyncio.get_running_loop()
    interval = plan.publishers * plan.batch * 1e9 / plan.rate if plan.rate else 0.0
    began = time.monotonic_ns() + int(interval * publisher / plan.publishers)

    def due(request: int) -> int:
        return began + int(request * interval) if interval else time.monotonic_ns()

    async with connected(plan) as poster:
        for request, body in enumerate(bodies(plan, publisher, due)):
            if interval:
                await asyncio.sleep(max(0.0, (due(request) - time.monotonic_ns()) / 1e9))
            try:
                async with asyncio.timeout_at(loop.time() + plan.patience_seconds):
                    await poster.post("/emit/", body, plan.body)
            except TimeoutError as exc:
                raise BenchError("the hub did not respond to a publisher in time") from exc


def bodies(plan: Plan, publisher: int, due: Callable[[int], int]) -> Iterator[bytes]:
    """Yield the bodies of one publisher's requests; `due` returns when a request should be sent, in ns."""
    audiences = plan.audiences
    count = plan.events_from(publisher)
    for request, start in enumerate(range(0, count, plan.batch)):
        due_at = due(request)
        events = []
        for event in range(start, min(count, start + plan.batch)):
            number, audience = divmod(event, len(audiences))
            channel, user = audiences[audience]
            data = stamped(number, publisher, due_at, plan.size)
            events.append({"userId": "*" if plan.users == 1 else user, "channel": channel, "data": data})
        yield body_of(events, plan.body)


def body_of(events: list[dict[str, str]], kind: str) -> bytes:
    """Return the body of a request that publishes `events`; more than one only if `kind` is "json"."""
    if kind == "raw":
        return events[0]["data"].encode()
    if kind == "form":
        return urlencode(events[0]).encode()
    return json.dumps(events[0] if len(events) == 1 else events).encode()
