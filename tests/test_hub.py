"""The hub's public face: its life, publishing from tasks and threads, and what it raises."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conftest import until
from fakes import FakeSink
from hubs import hub_settings, join, publish, running_hub
from ssehub import Hub
from ssehub.brokers import Follower, create_broker
from ssehub.brokers.memory import MemoryBroker
from ssehub.errors import BrokerUnavailable, ConfigError, HubClosed, InvalidEvent, Unavailable, WrongEventLoop
from ssehub.event import Event
from ssehub.fanout.engine import Engine
from ssehub.fanout.statistics import Statistics

pytestmark = pytest.mark.anyio


async def test_hub_starts_at_first_use() -> None:
    hub = Hub()

    await publish(hub, "first")

    assert hub.statistics.published == 1
    await hub.aclose()


async def test_first_use_that_is_cancelled_leaves_the_hub_usable() -> None:
    hub = Hub()
    first = asyncio.create_task(publish(hub, "1"))
    await asyncio.sleep(0)
    first.cancel()

    await publish(hub, "2")
    _, sink = join(hub)
    await publish(hub, "3")
    await hub.flush()
    await hub.aclose()

    assert sink.data() == ["3", "{}"]


async def test_start_that_fails_after_the_log_was_followed_leaves_nothing_behind() -> None:
    class FailingBroker(MemoryBroker):
        @asynccontextmanager
        async def run(self, follower: Follower) -> AsyncIterator[None]:
            async with super().run(follower):
                raise BrokerUnavailable("the log can be read, but not written")
            yield

    hub = Hub(FailingBroker())

    for _ in range(5):
        with pytest.raises(BrokerUnavailable, match="not written"):
            await hub.start()
    gc.collect()

    engines = [one for one in gc.get_objects() if isinstance(one, Engine)]
    assert len(engines) <= 1  # the traceback of the last error may refer to one


async def test_publishers_that_wait_for_clients_are_answered_when_the_hub_closes() -> None:
    hub = Hub(**hub_settings(max_backlog_bytes=70_000))
    await hub.start()
    _, sink = join(hub, sink=FakeSink(reads=False))
    for _ in range(2):
        await publish(hub, "x" * 60_000)
        await hub.flush()
    sink.read(30_000)
    publishing = [asyncio.create_task(publish(hub, "x" * 2_000)) for _ in range(3)]
    await until(lambda: hub.statistics.waiting_publishers == 3)

    await hub.aclose()

    _, pending = await asyncio.wait(publishing, timeout=2)
    assert pending == set()
    assert all(task.exception() is None or isinstance(task.exception(), Unavailable) for task in publishing)


async def test_closing_hub_first_writes_what_was_published() -> None:
    async with running_hub(round_bytes=10) as hub:
        _, sink = join(hub)
        await publish(hub, *[f"{number}" for number in range(20)])

    assert sink.data() == [*(f"{number}" for number in range(20)), "{}"]


async def test_publishing_to_a_closed_hub_raises_and_says_how_to_reopen_it() -> None:
    async with Hub() as hub:
        pass

    with pytest.raises(HubClosed, match="async with"):
        await publish(hub, "x")


async def test_hub_that_was_closed_can_be_reopened() -> None:
    async with Hub() as hub:
        join(hub)
        await hub.drain(0.01)
    closed = hub.not_ready()

    async with hub:
        _, sink = join(hub)
        await publish(hub, "again")
        await hub.flush()

        assert closed == ["the hub has been closed"]
        assert hub.not_ready() == [] and not hub.is_draining
        assert sink.data() == ["again"]


async def test_hub_closes_when_it_has_been_left_as_often_as_it_was_entered() -> None:
    hub = Hub()
    async with hub:
        async with hub:
            _, sink = join(hub)
        still_open = not sink.is_closed

    assert still_open and sink.is_closed


async def test_hub_takes_the_url_of_a_broker(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    async with Hub(url) as hub:
        (before,) = await publish(hub, "x")
    async with Hub(url) as hub:
        (after,) = await publish(hub, "y")
    with pytest.raises(ConfigError, match=r"unknown broker 'kafka://h': use memory://, sqlite:///PATH"):
        Hub("kafka://alex:mackerel@h")

    assert before < after


async def test_hub_is_full_at_its_limit_of_connections() -> None:
    async with running_hub(max_connections=2) as hub:
        join(hub)
        before = hub.is_full
        _, sink = join(hub)
        at_the_limit = hub.is_full
        sink.lose()

        assert (before, at_the_limit, hub.is_full) == (False, True, False)


async def test_statistics_have_totals_and_current_values() -> None:
    async with running_hub() as hub:
        join(hub, "alex", "chat", "news"), join(hub)
        await publish(hub, "1", "2")
        await hub.flush()

        statistics = hub.statistics
        assert (statistics.subscribers, statistics.channels, statistics.connected) == (2, 2, 2)
        assert (statistics.published, statistics.delivered, statistics.history_events) == (2, 4, 2)
        assert statistics.broker_ready

    assert hub.statistics.subscribers == hub.statistics.channels == 0
    assert hub.statistics.endings["drained"] == hub.statistics.connected == 2


@pytest.mark.parametrize("broker", ["memory://", "sqlite:///{path}"])
async def test_publish_events_refuses_anything_but_events_and_other_publishers_go_on(
    broker: str, tmp_path: Path
) -> None:
    good = Event(("chat",), ("*",), data="good")
    async with Hub(create_broker(broker.format(path=tmp_path / "events.db"))) as hub:
        stored, *refused = await asyncio.gather(
            hub.publish_events([good]),
            hub.publish_events([good, {"channel": "chat"}]),  # type: ignore[list-item]
            hub.publish_events(good),  # type: ignore[arg-type]
            return_exceptions=True,
        )

    assert isinstance(stored, list)
    assert all(isinstance(exc, InvalidEvent) and "takes a list" in str(exc) for exc in refused)


# Threads and event loops


async def test_publish_sync_works_from_any_other_thread() -> None:
    async with Hub() as hub, hub.subscribe(channel="chat", user_id="alex") as messages:
        position = await asyncio.to_thread(hub.publish_sync, channel="chat", user_id="alex", data="from a thread")
        message = await anext(messages)

    assert (message.data, message.id) == ("from a thread", position)


async def test_publish_sync_says_what_to_do_where_it_cannot_work() -> None:
    hub = Hub()
    with pytest.raises(HubClosed, match=r"hub\.start"):
        hub.publish_sync(channel="chat", user_id="*", data="x")
    async with hub:
        with pytest.raises(WrongEventLoop, match="await hub"):
            hub.publish_sync(channel="chat", user_id="*", data="x")
        with pytest.raises(InvalidEvent, match="channel must be a string"):
            await hub.publish(channel=5, user_id="*", data="x")  # type: ignore[arg-type]
        with pytest.raises(InvalidEvent, match="JSON"):
            await asyncio.to_thread(hub.publish_sync, channel="chat", user_id="*", data=object())


async def test_publish_sync_raises_after_its_timeout() -> None:
    raised: list[BaseException] = []
    async with Hub() as hub:

        def publish_in_thread() -> None:
            try:
                hub.publish_sync(channel="chat", user_id="*", data="x", timeout_seconds=0.05)
            except BrokerUnavailable as exc:
                raised.append(exc)

        thread = threading.Thread(target=publish_in_thread)
        thread.start()
        thread.join()  # this blocks the event loop, so that nothing answers

    assert "may or may not be stored" in str(raised[0])


async def test_hub_refuses_another_event_loop_while_it_runs() -> None:
    async with Hub() as hub:
        with pytest.raises(WrongEventLoop, match="publish_sync"):
            await asyncio.to_thread(asyncio.run, hub.publish(channel="chat", user_id="*", data="x"))
        with pytest.raises(WrongEventLoop, match="close it there"):
            await asyncio.to_thread(asyncio.run, hub.aclose())

        await publish(hub, "it goes on")


def test_hub_can_be_closed_after_its_event_loop_has_ended() -> None:
    hub = Hub()

    async def use() -> None:
        await hub.subscribe(channel="chat", user_id="alex").__aenter__()

    asyncio.run(use())
    asyncio.run(hub.aclose())

    assert hub.statistics.subscribers == 0
    with pytest.raises(HubClosed, match="reopen it"):
        asyncio.run(hub.start())


def test_hub_restarts_in_a_new_event_loop_after_the_old_one_has_ended() -> None:
    hub = Hub()

    async def use() -> str:
        await hub.start()
        await publish(hub, "x")
        async with hub.subscribe(channel="chat", user_id="alex") as messages:
            await publish(hub, "y")
            return (await anext(messages)).data

    assert asyncio.run(use()) == asyncio.run(use()) == "y"
    with pytest.raises(HubClosed, match=r"await hub\.start\(\)"):
        hub.publish_sync(channel="chat", user_id="*", data="x")


class Guest:
    """A companion that records its runs."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.begun = self.ended = 0

    async def run(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    def measure(self, statistics: Statistics) -> None:
        statistics.jwks_fetch_failures = 7


async def test_companion_runs_once_in_each_run_of_the_hub() -> None:
    hub, early, late = Hub(), Guest(), Guest()
    hub.accompany(early)
    hub.accompany(early)

    async with hub:
        hub.accompany(late)
        await until(lambda: (early.begun, late.begun) == (1, 1))
    assert (early.ended, late.ended) == (1, 1)
    async with hub:
        await hub.start()
        await until(lambda: (early.begun, late.begun) == (2, 2))

    assert (early.begun, early.ended) == (2, 2)


async def test_companion_tells_why_the_hub_is_not_ready_and_has_statistics() -> None:
    hub, guest = Hub(), Guest()
    hub.accompany(guest)

    guest.problem = "no keys yet"

    assert hub.not_ready() == ["no keys yet"]
    assert hub.statistics.jwks_fetch_failures == 7
