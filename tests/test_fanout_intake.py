"""The intake: large batches are dispatched in slices, in the order of the log, and to their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from conftest import until
from fakes import FakeSink
from hubs import engine_of, join, publish, running_hub
from ssehub.brokers import Entry
from ssehub.event import Event
from ssehub.fanout.intake import Intake
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.publication import IdempotencyKey, Publication

pytestmark = pytest.mark.anyio

BATCH = 10_000
TIME = 0.0001
"""How long the fake `dispatch` takes per entry, in seconds."""


def events(start: int, count: int) -> list[Event]:
    return [Event(("chat",), ("*",), data=str(n)) for n in range(start, start + count)]


def numbers(start: int, count: int) -> list[str]:
    return [str(n) for n in range(start, start + count)]


async def next_slice(hub: Hub) -> None:
    """Return when the next slice of a batch has been dispatched."""
    before = engine_of(hub).head
    while engine_of(hub).head == before:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_events_published_beside_a_large_batch_arrive_in_the_order_of_the_log() -> None:
    async with running_hub() as hub:
        _, sink = join(hub)

        answers = await asyncio.gather(
            hub.publish_events(events(0, BATCH)),
            *[publish(hub, str(BATCH + n)) for n in range(50)],
            hub.publish_events(events(BATCH + 50, 1_000)),
            publish(hub, "last"),
        )
        await hub.flush()

        assert sink.data() == [*numbers(0, BATCH + 1_050), "last"]
        assert sink.ids()[1:] == [position for positions in answers for position in positions]


async def test_publisher_of_a_large_batch_is_answered_when_all_of_it_has_been_dispatched() -> None:
    async with running_hub() as hub:
        publishing = asyncio.create_task(hub.publish_events(events(0, BATCH)))
        await next_slice(hub)
        assert not publishing.done()

        positions = await publishing

        assert str(engine_of(hub).head) == positions[-1]
        _, sink = join(hub, since="earliest")
        await until(lambda: len(sink.data()) == BATCH)


async def test_publisher_that_repeats_a_large_batch_is_answered_after_it() -> None:
    async with running_hub() as hub:
        batch = [Publication(events(0, BATCH), IdempotencyKey("name", "body"))]
        first = asyncio.create_task(hub.publish_all(batch))
        await next_slice(hub)

        positions = await hub.publish_all(batch)

        assert str(engine_of(hub).head) == positions[-1]
        assert await first == positions


async def test_streams_opened_within_a_large_batch_miss_nothing_and_get_nothing_twice() -> None:
    async with running_hub() as hub:
        _, early = join(hub)
        publishing = asyncio.create_task(hub.publish_events(events(0, BATCH)))
        late: list[FakeSink] = []
        heads = {engine_of(hub).head}
        while not publishing.done():
            await asyncio.sleep(0)
            if engine_of(hub).head not in heads and len(late) < 20:
                heads.add(engine_of(hub).head)
                late.append(join(hub)[1])
        await publishing
        await hub.flush()

        assert early.data() == numbers(0, BATCH)
        rests = [len(sink.data()) for sink in late]
        assert rests[0] > 0
        for sink, rest in zip(late, rests, strict=True):
            assert sink.data() == numbers(BATCH - rest, rest)
            assert sink.ids() == early.ids()[BATCH - rest :]


async def test_streams_resumed_within_a_large_batch_get_the_rest_of_it() -> None:
    async with running_hub() as hub:
        (cursor,) = await publish(hub, "before")
        publishing = asyncio.create_task(hub.publish_events(events(0, BATCH)))
        await next_slice(hub)
        resumed = [join(hub, cursor=cursor)[1], join(hub, cursor=str(engine_of(hub).head))[1]]
        assert not publishing.done()

        positions = await publishing
        await hub.flush()

        await until(lambda: all(sink.ids()[-1] == positions[-1] for sink in resumed))
        rest = len(resumed[1].data())
        assert 0 < rest < BATCH
        assert resumed[0].data() == numbers(0, BATCH)
        assert resumed[1].data() == numbers(BATCH - rest, rest)


async def test_large_batch_arrives_whole_if_its_publisher_is_cancelled() -> None:
    async with running_hub() as hub:
        _, sink = join(hub)
        publishing = asyncio.create_task(hub.publish_events(events(0, BATCH)))
        await next_slice(hub)

        publishing.cancel()
        await publish(hub, "next")
        await hub.flush()

        assert publishing.cancelled()
        assert sink.data() == [*numbers(0, BATCH), "next"]


async def test_drain_writes_a_large_batch_before_it_ends_streams() -> None:
    async with running_hub() as hub:
        _, sink = join(hub)
        publishing = asyncio.create_task(hub.publish_events(events(0, BATCH)))
        await next_slice(hub)

        await hub.drain(8)

        assert len(await publishing) == BATCH
        assert sink.data() == [*numbers(0, BATCH), "{}"]
        assert "event: stream-drain" in sink.text


async def test_reset_comes_after_a_large_batch_that_was_accepted_before() -> None:
    async with running_hub() as hub:
        _, sink = join(hub)
        publishing = asyncio.create_task(hub.publish_events(events(0, BATCH)))
        await next_slice(hub)

        await engine_of(hub).start_over(Position(5, 0, "newlog00"))

        assert len(await publishing) == BATCH
        assert sink.data() == [*numbers(0, BATCH), '{"reason":"log-lost"}']


# The intake by itself


def entries(start: int, count: int) -> list[Entry]:
    return [Entry(Position(n, 0, "log"), event) for n, event in enumerate(events(start, count), start)]


class Slow:
    """Dispatches slowly, and fails at the entry `bad`."""

    def __init__(self, bad: int = -1) -> None:
        self.dispatched: list[int] = []
        self.head = -1
        self.waiting = 0
        self._bad = bad
        self.intake = Intake(self.dispatch, self.expect)

    def dispatch(self, position: Position, entries: Sequence[Entry]) -> None:
        until = asyncio.get_running_loop().time() + TIME * len(entries)
        while asyncio.get_running_loop().time() < until:
            pass
        for at, _ in entries:
            if at.milliseconds == self._bad:
                raise RuntimeError("a bug")
            self.dispatched.append(at.milliseconds)
        self.head = position.milliseconds

    def expect(self, size: int) -> None:
        self.waiting += size

    def accept(self, start: int, count: int) -> asyncio.Future[None] | None:
        return self.intake.accept(Position(start + count, 0, "log"), entries(start, count))


@pytest.mark.alone
async def test_small_batches_are_dispatched_at_once() -> None:
    slow = Slow()

    assert slow.accept(0, 1) is None
    assert slow.accept(1, 12) is None
    assert slow.accept(13, 0) is None

    assert slow.dispatched == list(range(13))
    assert slow.head == 13
    assert slow.intake.is_idle and slow.waiting == 0


async def test_what_comes_later_waits_behind_a_large_batch() -> None:
    slow = Slow()

    done = [slow.accept(0, 300), slow.accept(300, 1), slow.accept(301, 0), slow.accept(301, 200)]

    assert 0 < len(slow.dispatched) < 300
    assert slow.head == slow.dispatched[-1]
    assert not slow.intake.is_idle and slow.waiting > 0
    for future in done:
        assert future is not None
        await future
    assert slow.dispatched == list(range(501))
    assert slow.head == 501
    assert slow.intake.is_idle and slow.waiting == 0


async def test_failure_concerns_its_own_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(bad=250)
    first, second = slow.accept(0, 300), slow.accept(300, 200)
    assert first is not None and second is not None

    with pytest.raises(RuntimeError, match="a bug"):
        await first
    await second

    assert slow.dispatched == [*range(250), *range(300, 500)]
    assert slow.intake.is_idle and slow.waiting == 0
    assert not caplog.records


async def test_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(bad=250)
    first = slow.accept(0, 300)
    assert first is not None

    first.cancel()
    await until(lambda: slow.intake.is_idle)

    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "events may be missing" in caplog.text
