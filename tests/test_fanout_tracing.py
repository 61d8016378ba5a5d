"""Traces: which steps of which streams they report, what they cost, and what they drop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import until
from fakes import FakeSink
from hubs import join, publish
from ssehub.claims import Claims
from ssehub.errors import Overloaded
from ssehub.fanout import tracing
from ssehub.fanout.origin import origin
from ssehub.fanout.tracing import MAX_EACH, MAX_TRACES, MAX_WAITING, Record, Step
from ssehub.fanout.wanted import Wanted
from ssehub.hub import Hub
from ssehub.web.listing import parse_addresses
from ssehub.web.records import trace

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "INTERVAL_SECONDS", 0.05)


@asynccontextmanager
async def traced(hub: Hub, **wanted: Any) -> AsyncIterator[list[Record]]:
    """Collect the records about `wanted` in the list."""
    found: list[Record] = []

    async def collect() -> None:
        with hub.tracer.watching(Wanted(**wanted)) as trace:
            async for record in trace.records():
                found.append(record)

    task = asyncio.create_task(collect())
    await until(lambda: hub.tracer.is_watched)
    await asyncio.sleep(0.02)  # it has counted what there was
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def steps(records: list[Record]) -> list[Step]:
    return [record.step for record in records]


async def test_stream_is_traced_from_its_begin_to_its_end() -> None:
    async with Hub() as hub, traced(hub, user_id="alex") as found:
        subscriber, _ = join(hub, "alex")
        join(hub, "kim")
        await publish(hub, "one", "two")
        await until(lambda: Step.DELIVERED in steps(found))
        hub.detach(subscriber)
        await until(lambda: Step.ENDED in steps(found))

    opened, delivered, ended = found[:3]
    assert steps(found) == [Step.OPENED, Step.DELIVERED, Step.ENDED]
    assert {record.user_id for record in found} == {"alex"}
    assert opened.channels == ("chat",)
    assert (delivered.events, delivered.number) == (2, subscriber.number)
    assert delivered.bytes == subscriber.bytes
    assert (ended.reason, ended.events, ended.bytes) == ("disconnected", 2, subscriber.bytes)


async def test_what_was_delivered_before_the_trace_is_not_reported() -> None:
    async with Hub() as hub:
        join(hub, "alex")
        await publish(hub, "before")
        await hub.flush()
        async with traced(hub) as found:
            await publish(hub, "one")
            await until(lambda: Step.DELIVERED in steps(found))

    assert [record.events for record in found] == [1]


async def test_replay_and_reset_are_reported_and_not_counted_as_delivered() -> None:
    async with Hub() as hub:
        first, *_ = await publish(hub, "one", "two", "three")
        async with traced(hub) as found:
            join(hub, "alex", cursor=first)
            join(hub, "kim", cursor="1-1.foreign0")
            await until(lambda: Step.REPLAYED in steps(found))
            await publish(hub, "four")
            await until(lambda: steps(found).count(Step.DELIVERED) == 2)

    of_alex = [record for record in found if record.user_id == "alex"]
    of_kim = [record for record in found if record.user_id == "kim"]
    assert [(record.step, record.events) for record in of_alex] == [
        (Step.OPENED, None),
        (Step.REPLAYED, 2),
        (Step.DELIVERED, 1),
    ]
    assert [(record.step, record.reason) for record in of_kim][:2] == [(Step.OPENED, None), (Step.RESET, "log-lost")]


async def test_trace_by_channel_covers_patterns_and_trace_by_address_covers_refusals() -> None:
    async with Hub() as hub:
        there = origin("192.0.2.7", "curl/8")
        async with (
            traced(hub, channel="orders.7") as by_channel,
            traced(hub, addresses=parse_addresses("192.0.2.0/24")) as by_address,
            traced(hub, user_id="alex") as by_user,
        ):
            join(hub, "alex", patterns=("orders.*",))
            join(hub, "alex", "news")
            hub.attach(Claims("kim", ("chat",)), FakeSink(), origin=there)
            hub.tracer.refused("expired", None, (), (), there)
            hub.tracer.refused("full", "alex", ("news",), (), origin("198.51.100.1", ""))
            await until(lambda: len(by_address) == 2 and len(by_user) == 3)

    assert [(record.step, record.patterns) for record in by_channel] == [(Step.OPENED, ["orders.*"])]
    assert [(record.step, record.user_id, record.reason) for record in by_address] == [
        (Step.OPENED, "kim", None),
        (Step.REFUSED, None, "expired"),
    ]
    assert [(record.step, record.reason) for record in by_user] == [
        (Step.OPENED, None),
        (Step.OPENED, None),
        (Step.REFUSED, "full"),
    ]


async def test_deliveries_to_many_streams_are_reported_as_a_sum() -> None:
    async with Hub() as hub:
        for number in range(MAX_EACH + 1):
            join(hub, f"user-{number}")
        async with traced(hub) as found:
            await publish(hub, "one", "two")
            await until(lambda: sum(record.events or 0 for record in found) == 2 * (MAX_EACH + 1))

    assert {record.user_id for record in found} == {None}
    assert max(record.streams or 0 for record in found) == MAX_EACH + 1


async def test_reader_that_is_too_slow_loses_the_oldest_records_and_is_told_how_many() -> None:
    async with Hub() as hub:
        with hub.tracer.watching(Wanted()) as trace:
            records = trace.records()
            for _ in range(MAX_WAITING + 5):
                hub.detach(join(hub)[0])
            first, second = await anext(records), await anext(records)
            await records.aclose()

    assert (first.step, first.records) == (Step.MISSED, MAX_WAITING + 10)
    assert second.step is Step.OPENED


async def test_trace_ends_with_the_drain_and_reports_it() -> None:
    async with Hub() as hub:
        join(hub)
        with hub.tracer.watching(Wanted()) as trace:
            waiting = asyncio.create_task(anext(trace.records()))
            await asyncio.sleep(0.02)
            await hub.drain(0.1)
            record = await asyncio.wait_for(waiting, 5)
            rest = [each async for each in trace.records()]

    assert (record.step, record.reason) == (Step.ENDED, "drained")
    assert rest == []


async def test_there_are_so_many_traces_and_no_more_and_none_is_left_behind() -> None:
    async with Hub() as hub:
        contexts = [hub.tracer.watching(Wanted()) for _ in range(MAX_TRACES)]
        for context in contexts:
            context.__enter__()
        with pytest.raises(Overloaded, match=f"{MAX_TRACES} traces"), hub.tracer.watching(Wanted()):
            pass
        for context in contexts:
            context.__exit__(None, None, None)

        assert not hub.tracer.is_watched


async def test_stream_that_ends_is_forgotten() -> None:
    async with Hub() as hub, traced(hub) as found:
        for _ in range(20):
            subscriber, _ = join(hub)
            await publish(hub, "one")
            await hub.flush()
            hub.detach(subscriber)
        await until(lambda: steps(found).count(Step.ENDED) == 20)

        (trace,) = hub.tracer._traces
        assert trace._counted == {}


async def test_trace_that_begins_when_the_drain_is_over_ends_at_once() -> None:
    async with Hub() as hub:
        await hub.drain(0.0)

        async with asyncio.timeout(5):
            found = [record async for record in trace(hub, "0", {})]

    assert found == []


async def test_drain_that_is_cancelled_ends_traces() -> None:
    async with Hub() as hub:
        with hub.tracer.watching(Wanted()) as followed:
            draining = asyncio.create_task(hub.drain(60))
            join(hub, "alex")
            await asyncio.sleep(0)
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)

            async with asyncio.timeout(5):
                found = [record async for record in followed.records()]

    assert steps(found)[:1] == [Step.OPENED]
