"""The announcements of runs, and the runs of a hub: what other tabs hear of a run."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from conftest import until
from control_requests import control_app
from run_worlds import DONE, FAILED, NAME, events, options, ticket
from ssehub.errors import BrokerUnavailable, HubClosed, InvalidEvent
from ssehub.event import Event
from ssehub.runs import announcements
from ssehub.runs.announcements import Announcements
from ssehub.runs.followers import Followers
from ssehub.runs.model import Run, RunError, RunState
from ssehub.runs.store import Append, CreateMode, Creation
from ssehub.testing import ManualHub

pytestmark = pytest.mark.anyio


def announced(number: int) -> Event:
    return Event(("chat",), ("alex",), f"{number}", "run")


class Log:
    """Publishes to a list. `problems` are raised first."""

    def __init__(self, *problems: Exception) -> None:
        self.batches: list[list[str | None]] = []
        self.problems = list(problems)

    async def publish(self, events: Sequence[Event]) -> None:
        await asyncio.sleep(0)
        if self.problems:
            raise self.problems.pop(0)
        self.batches.append([event.data for event in events])

    @property
    def data(self) -> list[str | None]:
        return [data for batch in self.batches for data in batch]


@asynccontextmanager
async def running(log: Log) -> AsyncIterator[Announcements]:
    announcements = Announcements(log.publish)
    task = asyncio.create_task(announcements.run())
    yield announcements
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# Announcements


async def test_events_are_published_in_order_by_one_task() -> None:
    log = Log()
    async with running(log) as announcements:
        tasks = len(asyncio.all_tasks())
        for number in range(250):
            announcements.add(announced(number))
        assert len(asyncio.all_tasks()) == tasks
        await until(lambda: len(log.data) == 250)
        announcements.add(announced(250))
        await until(lambda: len(log.data) == 251)

        assert log.data == [f"{number}" for number in range(251)]
        assert max(map(len, log.batches)) == 100


async def test_events_wait_until_the_log_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "RETRY_SECONDS", 0.001)
    log = Log(*[BrokerUnavailable("gone")] * 5)
    async with running(log) as added:
        for number in range(3):
            added.add(announced(number))
        await until(lambda: log.data == ["0", "1", "2"])


async def test_events_that_can_not_be_published_are_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(announcements, "RETRY_SECONDS", 0.001)
    log = Log(*[BrokerUnavailable("gone")] * announcements.RETRIES, InvalidEvent("bad"), HubClosed("closed"))
    async with running(log) as added:
        for number in range(4):
            added.add(announced(number))
            await until(lambda number=number: len(log.problems) == max(0, 2 - number))  # type: ignore[misc]
        await until(lambda: log.data == ["3"])

    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


async def test_no_more_wait_than_there_may(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(announcements, "MAX_WAITING", 10)
    log = Log()
    async with running(log) as added:
        for number in range(15):
            added.add(announced(number))
        await until(lambda: len(log.data) == 10)

    assert log.data == [f"{number}" for number in range(10)]
    assert "further ones are dropped" in caplog.text


# Listeners


def test_listener_that_fails_concerns_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def advanced(self, run: Run, first: int, events: object) -> None:
            raise RuntimeError("advanced")

        def vanished(self, run: Run) -> None:
            raise RuntimeError("vanished")

        def claimed(self, connection: str) -> None:
            raise RuntimeError("claimed")

    class Counting:
        calls = 0

        def advanced(self, run: Run, first: int, events: object) -> None:
            self.calls += 1

        def vanished(self, run: Run) -> None:
            self.calls += 1

        def claimed(self, connection: str) -> None:
            self.calls += 1

    followers, run, counting = Followers(), Run(NAME, options(), 1, "log", 0.0), Counting()
    for listener in (Failing(), counting):
        followers.add(NAME, listener)
    followers.advanced(run, 1, ())
    followers.vanished(run)
    followers.claimed(NAME, "connection")

    assert counting.calls == 3 and list(followers) == [NAME] and NAME in followers
    assert caplog.text.count("a listener of a run failed") == 3


# The runs of a hub


async def test_start_and_end_are_announced_to_the_users_of_the_run() -> None:
    async with ManualHub() as hub:
        alex = await hub.record(channel="chat", user_id="alex")
        sam = await hub.record(channel="chat", user_id="sam")
        await hub.runs.create(NAME, Creation(options(announce="run"), ticket=ticket()))
        await hub.runs.append(NAME, Append(ticket(), events("1"), outcome=DONE))
        await hub.runs.create(NAME, Creation(options(announce="run", idle=60)))
        await hub.runs.create("silent", Creation(options()))
        await hub.pass_seconds(61)
        await hub.runs.create(NAME, Creation(options(announce="run"), CreateMode.TAKEOVER))
        await hub.runs.delete(NAME)
        await until(lambda: len(alex.messages) == 6)

        assert {message.type for message in alex.messages} == {"run"}
        found = [json.loads(message.data) for message in alex.messages]
        assert [(one["run"], one["state"], one["generation"]) for one in found] == [
            (NAME, "open", 1),
            (NAME, "done", 1),
            (NAME, "open", 2),
            (NAME, "failed", 2),
            (NAME, "open", 3),
            (NAME, "failed", 3),
        ]
        assert sam.messages == []


async def test_open_runs_of_a_hub_that_is_closed_have_failed_and_nothing_is_announced_later() -> None:
    hub = ManualHub()
    async with hub:
        await hub.runs.create(NAME, Creation(options(announce="run")))
        await hub.runs.create("ended", Creation(options(announce="run")))
        await hub.runs.append("ended", Append(ticket(), events("1"), True, outcome=FAILED))
    with pytest.raises(BrokerUnavailable):
        await hub.runs.append(NAME, Append(ticket()))

    async with hub:
        alex = await hub.record(channel="chat", user_id="alex")
        run = await hub.runs.get(NAME)
        ended = await hub.runs.get("ended")
        await hub.runs.create("next", Creation(options(announce="run")))
        await until(lambda: alex.messages)

        assert run is not None and (run.state, run.error) == (RunState.FAILED, RunError.SHUTDOWN)
        assert ended is not None and ended.events == 1
        assert [json.loads(message.data)["run"] for message in alex.messages] == ["next"]


async def test_nothing_is_created_while_the_hub_drains() -> None:
    async with ManualHub() as hub:
        await hub.runs.create(NAME, Creation(options(), ticket=ticket()))
        await hub.drain(0)
        with pytest.raises(HubClosed, match="draining"):
            await hub.runs.create("late", Creation(options()))

        assert (await hub.runs.append(NAME, Append(ticket(), events("1")))).events == 1


async def test_statistics_and_metrics_show_the_runs() -> None:
    async with control_app() as app:
        await app.hub.runs.create(NAME, Creation(options(), ticket=ticket()))
        await app.hub.runs.append(NAME, Append(ticket(), events("x" * 68)))
        await app.hub.runs.create("ended", Creation(options()))
        await app.hub.runs.finish("ended", FAILED)
        statistics = app.hub.statistics
        text = await app.metrics()

        assert statistics.runs == {"open": 1, "stopping": 0, "done": 0, "failed": 1, "stopped": 0}
        size = 100 + 2 * options().size
        assert statistics.run_bytes == size
        for line in ('ssehub_runs{state="open"} 1.0', 'ssehub_runs{state="failed"} 1.0', f"ssehub_run_bytes {size}.0"):
            assert f"\n{line}\n" in text, line
