"""Watchers of runs on a hub, with connections that record: what they are sent, when they read, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import until
from event_decoding import decode
from fakes import FakeSink
from hubs import engine_of, join, manual_hub, running_hub
from ssehub.claims import Claims
from ssehub.errors import BrokerUnavailable, InvalidRequest, StreamRefused, TokenError, UnknownRun
from ssehub.fanout import finding, reading, upkeep, watchers
from ssehub.fanout.feeds import Feed
from ssehub.fanout.run_waits import RunWait
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import CloseReason, Subscriber
from ssehub.fanout.watching import Dialect, Passage, farewell
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Outcome, Run, RunOptions, RunState
from ssehub.runs.store import CreateMode
from watched_runs import NAME, Producer, producing, watch

pytestmark = pytest.mark.anyio

END = Position(3, 0, "log")


def shown(sink: FakeSink) -> list[tuple[str, str, str]]:
    """Return type, data and id of each event that a client is shown."""
    return [(event.event, event.data, event.id) for event in decode(sink.text.encode())]


def data(sink: FakeSink) -> list[str]:
    """Return the data of the run's own events."""
    return [text for type, text, _ in shown(sink) if not type.startswith("stream-")]


def types(sink: FakeSink) -> list[str]:
    """Return the types of the hub's own events."""
    return [type for type, _, _ in shown(sink) if type.startswith("stream-")]


# What is sent


def test_events_have_their_position_as_id_and_never_the_publishers() -> None:
    passage = Passage.of([RunEvent("a", id="mine"), RunEvent("b\nc", "note")], 7, "log", Dialect.EVENTS)

    assert passage.data == b"data: a\nid: 7-0.log\n\nevent: note\ndata: b\ndata: c\nid: 8-0.log\n\n"
    assert (passage.first, passage.last, passage.position) == (7, 8, Position(8, 0, "log"))


def test_rest_of_a_passage_begins_behind_an_ordinal() -> None:
    passage = Passage.of([RunEvent(str(number)) for number in range(5)], 1, "log", Dialect.EVENTS)

    rest = passage.after(3)

    assert (rest.first, rest.last, rest.count) == (4, 5, 2)
    assert rest.data == b"data: 3\nid: 4-0.log\n\ndata: 4\nid: 5-0.log\n\n"


def test_ai_sdk_is_sent_data_lines_alone_and_a_producers_done_at_the_end() -> None:
    events = [RunEvent("a", "note", "mine", 5), RunEvent("[DONE]"), RunEvent("b")]
    passage = Passage.of(events, 1, "log", Dialect.AI_SDK)

    assert passage.data == b"data: a\n\ndata: b\n\n"
    assert (passage.count, passage.last) == (3, 3)


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(RunState.DONE), b"data: [DONE]\n\n"),
        (Outcome(RunState.STOPPED), b'data: {"type":"abort"}\n\ndata: [DONE]\n\n'),
        (Outcome(RunState.FAILED, "idle"), b'data: {"type":"error","errorText":"idle"}\n\ndata: [DONE]\n\n'),
        (Outcome(RunState.FAILED), b'data: {"type":"error","errorText":"the run has failed"}\n\ndata: [DONE]\n\n'),
    ],
    ids=["done", "stopped", "failed", "failed-without-reason"],
)
def test_end_in_the_dialect_of_ai_sdk(outcome: Outcome, text: bytes) -> None:
    assert farewell(outcome, END, Dialect.AI_SDK).data == text


# From the first event to the end


async def test_watcher_is_sent_everything_from_the_first_event_and_then_the_end() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one", "two")
        watcher, sink = await watch(hub)
        await until(lambda: data(sink) == ["one", "two"])
        await producer.append("three")
        await producer.append("four", type="note")
        await hub.flush()
        await producer.finish()
        await hub.flush()

        run = await hub.runs.get(NAME)
        assert run is not None
        log = run.log
        assert shown(sink) == [
            ("stream-hello", '{"run":"answer","generation":1}', f"0-0.{log}"),
            ("message", "one", f"1-0.{log}"),
            ("message", "two", f"2-0.{log}"),
            ("message", "three", f"3-0.{log}"),
            ("note", "four", f"4-0.{log}"),
            ("stream-finished", '{"reason":"done"}', f"5-0.{log}"),
        ]
        assert watcher.reason is CloseReason.FINISHED
        assert sink.is_closed and not sink.is_aborted and sink.cut_after is None
        assert hub.statistics.endings["finished"] == 1 and hub.statistics.subscribers == 0


async def test_run_that_has_ended_is_sent_whole() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, *map(str, range(100)))
        await producer.finish(RunState.FAILED, "no more money")

        watcher, sink = await watch(hub)
        await until(lambda: watcher.reason)

        assert data(sink) == [str(number) for number in range(100)]
        assert shown(sink)[-1][:2] == ("stream-finished", '{"reason":"failed","error":"no more money"}')


async def test_run_without_events_ends_as_soon_as_it_has_ended() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub)
        first, early = await watch(hub)
        await producer.finish(RunState.STOPPED)
        await hub.flush()
        second, late = await watch(hub)
        await until(lambda: second.reason)

        assert first.reason is second.reason is CloseReason.FINISHED
        assert types(early) == types(late) == ["stream-hello", "stream-finished"]


async def test_each_cursor_is_sent_exactly_what_comes_behind_it() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, *map(str, range(10)))
        run = await hub.runs.get(NAME)
        assert run is not None
        sinks = [(await watch(hub, cursor=str(run.position(ordinal))))[1] for ordinal in range(11)]
        await producer.append("10")
        await producer.finish()
        await until(lambda: not hub.statistics.subscribers)

        for ordinal, sink in enumerate(sinks):
            assert data(sink) == [str(number) for number in range(ordinal, 11)]
            assert types(sink) == ["stream-hello", "stream-finished"]


async def test_client_that_was_cut_before_the_end_is_sent_the_end() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        run = await hub.runs.get(NAME)
        assert run is not None
        await producer.finish()

        watcher, sink = await watch(hub, cursor=str(run.position(1)))
        await until(lambda: watcher.reason)

        assert types(sink) == ["stream-hello", "stream-finished"] and data(sink) == []


async def test_client_that_has_the_end_is_not_told_it_again_by_a_node_that_learns_of_it_later() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        run = await hub.runs.get(NAME)
        assert run is not None

        watcher, sink = await watch(hub, cursor=str(run.position(2)))  # where the end will be
        await producer.finish()
        await until(lambda: watcher.reason)

        assert types(sink) == ["stream-hello"]
        assert watcher.reason is CloseReason.FINISHED


@pytest.mark.parametrize("cursor", ["5-0.otherlog", "1795633044736-0.loh23qqu", "mine", "1-1.{log}", "9-0.{log}"])
async def test_cursor_of_another_log_is_sent_a_reset_and_then_everything(cursor: str) -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one", "two")
        run = await hub.runs.get(NAME)
        assert run is not None
        await producer.finish()

        watcher, sink = await watch(hub, cursor=cursor.format(log=run.log))
        await until(lambda: watcher.reason)

        assert types(sink) == ["stream-hello", "stream-reset", "stream-finished"]
        assert shown(sink)[1] == ("stream-reset", '{"reason":"log-lost"}', f"0-0.{run.log}")
        assert "id: " not in sink.text.partition("event: stream-reset")[0]
        assert data(sink) == ["one", "two"]
        assert hub.statistics.resets["log-lost"] == 1


async def test_cursor_of_the_generation_before_says_that_it_was_restarted() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        run = await hub.runs.get(NAME)
        assert run is not None
        cursor = str(run.position(1))
        await producer.create(CreateMode.RESTART)
        await producer.append("again")

        _, sink = await watch(hub, cursor=cursor)
        await until(lambda: data(sink))

        assert shown(sink)[1][:2] == ("stream-reset", '{"reason":"restarted"}')
        assert data(sink) == ["again"]


async def test_what_is_appended_in_one_turn_of_the_loop_is_one_write() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub)
        _, sink = await watch(hub)
        await asyncio.sleep(0)
        written = len(sink.chunks)
        for number in range(5):
            await producer.append(str(number))
        await hub.flush()

        assert data(sink) == ["0", "1", "2", "3", "4"]
        assert len(sink.chunks) == written + 1


async def test_events_of_the_hub_are_not_for_watchers() -> None:
    async with manual_hub() as hub:
        await producing(hub)
        _, sink = await watch(hub)
        _, ordinary = join(hub)
        await hub.publish(channel="chat", user_id="*", data="news")
        await hub.flush()

        assert ordinary.data() == ["news"]
        assert data(sink) == []
        assert hub.statistics.channels == 1 and hub.statistics.watchers == 1


# Connections that do not read


async def test_slow_watcher_keeps_nothing_and_reads_on_from_its_cursor() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub)
        _, fast = await watch(hub)
        slow_watcher, slow = await watch(hub, sink=FakeSink(reads=False))
        lines = [f"{number} " + "x" * 1_000 for number in range(500)]
        for line in lines:
            await producer.append(line)
            await hub.flush()
        assert data(fast) == lines
        assert slow.is_paused and slow.backlog < 100_000
        unread = hub.statistics.backlog_bytes
        assert unread == slow.backlog
        await producer.finish()

        for _ in range(200):
            slow.read_all()
            await asyncio.sleep(0)
            if slow_watcher.reason:
                break
            assert slow.backlog < 200_000

        assert slow_watcher.reason is CloseReason.FINISHED
        assert data(slow) == lines
        assert hub.statistics.replayed > 0


async def test_watcher_that_reads_nothing_for_the_grace_time_ends_as_slow() -> None:
    async with manual_hub(grace_seconds=5) as hub:
        producer = await producing(hub)
        stuck, stuck_sink = await watch(hub, sink=FakeSink(reads=False))
        trickling, trickling_sink = await watch(hub, sink=FakeSink(reads=False))
        caught_up, caught_up_sink = await watch(hub, sink=FakeSink(reads=False))
        await producer.append(*["x" * 1_000] * 60)
        await hub.flush()
        for _ in range(9):
            caught_up_sink.read_all()
            await asyncio.sleep(0)
        await producer.append("x" * 70_000)
        await hub.flush()
        assert caught_up_sink.is_paused and caught_up.sent[0] == 61
        await producer.append(*["x" * 1_000] * 60)
        caught_up_sink.read_all()
        await until(lambda: caught_up.sent[0] == 121)

        for _ in range(7):
            await hub.pass_seconds(1)
            trickling_sink.read(1)

        assert stuck.reason is CloseReason.SLOW and stuck_sink.is_aborted
        assert trickling.reason is None and caught_up.reason is None


async def test_watchers_that_do_not_read_end_when_all_backlogs_together_are_too_large() -> None:
    async with manual_hub(max_total_backlog_bytes=400_000) as hub:
        producer = await producing(hub)
        streams = [await watch(hub, sink=FakeSink(reads=False)) for _ in range(10)]
        await producer.append("x" * 70_000)
        await hub.flush()
        await hub.pass_seconds(0.25)

        ended = [watcher for watcher, _ in streams if watcher.reason is CloseReason.SLOW]
        assert 0 < len(ended) < 10
        assert hub.statistics.backlog_bytes <= 400_000


async def test_burst_that_is_too_large_to_be_kept_is_read_from_the_store() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub)
        _, sink = await watch(hub)
        await asyncio.sleep(0)
        lines = [str(number) for number in range(20_000)]
        for start in range(0, len(lines), 5_000):
            await producer.append(*lines[start : start + 5_000])
        await producer.append("x" * 2**20)
        await producer.finish()
        await until(lambda: sink.is_closed)

        assert data(sink) == [*lines, "x" * 2**20]
        assert hub.statistics.replayed > 10_000


async def test_event_that_cannot_be_encoded_ends_the_streams_of_its_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = RunEvent.encode

    def failing(event: RunEvent, ordinal: int, log: str) -> bytes:
        if event.data == "boom":
            raise RuntimeError("broken")
        return encode(event, ordinal, log)

    monkeypatch.setattr(RunEvent, "encode", failing)
    async with manual_hub() as hub:
        bad, good = await producing(hub, name="bad"), await producing(hub, name="good")
        ends, _ = await watch(hub, name="bad")
        stays, sink = await watch(hub, name="good")
        await bad.append("boom")
        await good.append("fine")
        await hub.flush()

        assert ends.reason is CloseReason.DISCONNECTED
        assert stays.reason is None and data(sink) == ["fine"]


async def test_sink_that_raises_ends_its_own_watcher_only() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b"boom" in chunk.data:
                raise RuntimeError("broken")
            super().write(chunk)

    async with manual_hub() as hub:
        producer = await producing(hub)
        first, _ = await watch(hub)
        broken, _ = await watch(hub, sink=Broken())
        last, sink = await watch(hub)
        await producer.append("boom")
        await hub.flush()

        assert broken.reason is CloseReason.DISCONNECTED
        assert first.reason is last.reason is None and data(sink) == ["boom"]


async def test_many_watchers_are_written_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "SLICE", 10)
    async with manual_hub() as hub:
        producer = await producing(hub)
        streams = [await watch(hub) for _ in range(50)]
        await asyncio.sleep(0)
        await producer.append("one")
        await asyncio.sleep(0)
        assert sum(bool(data(sink)) for _, sink in streams) == 10
        await producer.append("two")
        await producer.finish()
        await hub.flush()

        for watcher, sink in streams:
            assert data(sink) == ["one", "two"]
            assert watcher.reason is CloseReason.FINISHED


async def test_thousand_clients_that_come_back_read_a_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with manual_hub() as hub:
        await producing(hub, *["x" * 100] * 1_000)
        reads = 0
        read = hub.runs.read

        async def counted(name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
            nonlocal reads
            reads += 1
            return await read(name, log, after, max_bytes)

        monkeypatch.setattr(hub.runs, "read", counted)
        streams = [await watch(hub) for _ in range(300)]
        await until(lambda: all(watcher.sent[0] == 1_000 for watcher, _ in streams), 20)

        assert reads < 30
        assert all(len(data(sink)) == 1_000 for _, sink in streams[::50])


async def test_readers_meet_the_events_that_arrive_meanwhile() -> None:
    """Streams that begin, pause and go on at random while a run grows: each is sent everything once, in order."""
    for seed in range(200 if "SOAK" in os.environ else 6):
        chance = random.Random(seed)
        async with manual_hub() as hub:
            producer = await producing(hub)
            streams: list[FakeSink] = []
            lines: list[str] = []
            for _ in range(60):
                count = chance.choice([0, 1, 1, 2, 50])
                new = [f"{len(lines) + number} " + "x" * chance.choice([0, 10, 3_000]) for number in range(count)]
                lines += new
                if new:
                    await producer.append(*new)
                if chance.random() < 0.2:
                    streams.append((await watch(hub, sink=FakeSink(reads=chance.random() < 0.5)))[1])
                for sink in streams:
                    if chance.random() < 0.3:
                        sink.read_all()
                for _ in range(chance.choice([0, 0, 1, 3])):
                    await asyncio.sleep(0)
            await producer.finish()
            for _ in range(3_000):
                for sink in streams:
                    sink.read_all()
                await asyncio.sleep(0)
                if not hub.statistics.subscribers:
                    break

            for sink in streams:
                assert data(sink) == lines, f"seed {seed}"
                assert types(sink) == ["stream-hello", "stream-finished"]


class History:
    """What has become of a run: the events of each of its logs, and for whom each of them was at some time."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[str, set[str]]]] = {}

    def begin(self, run: Run) -> None:
        """A generation has begun: all that its log has is for its users, too."""
        for _, users in self.events.setdefault(run.log, []):
            users |= {*run.options.users}

    def append(self, run: Run, data: str) -> None:
        self.events[run.log].append((data, {*run.options.users}))

    def check(self, user: str, sink: FakeSink) -> None:
        """Check that a client was sent nothing twice, out of order, or of others, and all of a run that is done."""
        at, log = 0, ""
        for type, text, id in shown(sink):
            ordinal, _, of_log = id.partition("-0.")
            log = log or of_log
            if type == "message":
                at += 1
                assert (int(ordinal), of_log) == (at, log)
                written, users = self.events[log][at - 1]
                assert written == text and user in users
            elif type == "stream-reset":
                at, log = 0, of_log
            elif text == '{"reason":"done"}':
                assert (at, log) == (len(self.events[log]), of_log)


async def test_streams_are_right_whatever_happens_to_their_run() -> None:
    """Restarts, takeovers and deletions for changing users, at random, while streams begin, pause and go on."""
    for seed in range(300 if "SOAK" in os.environ else 12):
        chance = random.Random(seed)
        async with manual_hub() as hub:
            producer, history = Producer(hub), History()
            run = await producer.create(users=("alex", "kim"))
            history.begin(run)
            streams: list[tuple[str, Subscriber, FakeSink]] = []
            for number in range(120):
                users = chance.choice([("alex",), ("kim",), ("alex", "kim"), ("alex", "kim")])
                what = chance.choice(["append"] * 12 + ["restart", "takeover", "delete", "finish"])
                if what == "append":
                    text = f"{number} " + "x" * chance.choice([0, 10, 70_000])
                    await producer.append(text)
                    history.append(run, text)
                else:
                    if what == "delete":
                        await producer.delete()
                    elif what == "finish":
                        await producer.finish()
                        await asyncio.sleep(chance.choice([0, 0.001]))
                    mode = CreateMode.TAKEOVER if what == "takeover" else CreateMode.RESTART
                    run = await producer.create(mode, users=users)
                    history.begin(run)
                if chance.random() < 0.2:
                    user = chance.choice(["alex", "kim"])
                    with contextlib.suppress(UnknownRun):
                        streams.append((user, *await watch(hub, user, sink=FakeSink(reads=chance.random() < 0.5))))
                for _, _, sink in streams:
                    if chance.random() < 0.3:
                        sink.read_all()
                for _ in range(chance.choice([0, 0, 1, 3])):
                    await asyncio.sleep(0)
            await producer.finish()
            for _ in range(3_000):
                for *_, sink in streams:
                    sink.read_all()
                await asyncio.sleep(0)
                if not hub.statistics.subscribers:
                    break

            for user, watcher, sink in streams:
                assert watcher.reason in (CloseReason.FINISHED, CloseReason.REVOKED), f"seed {seed}"
                history.check(user, sink)


# Other generations


async def test_restart_resets_watchers_and_tells_the_new_generation() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "old")
        _, sink = await watch(hub)
        await until(lambda: data(sink))
        run = await producer.create(CreateMode.RESTART)
        await producer.append("new")
        await producer.finish()
        await hub.flush()

        assert shown(sink)[2:] == [
            ("stream-reset", '{"reason":"restarted"}', f"0-0.{run.log}"),
            ("stream-hello", '{"run":"answer","generation":2}', f"0-0.{run.log}"),
            ("message", "new", f"1-0.{run.log}"),
            ("stream-finished", '{"reason":"done"}', f"2-0.{run.log}"),
        ]


async def test_restart_reaches_a_watcher_that_is_paused_when_it_reads_on() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "old " + "x" * 100_000, "never seen")
        _, sink = await watch(hub, sink=FakeSink(reads=False))
        await until(lambda: sink.is_paused)
        await producer.create(CreateMode.RESTART)
        await producer.append("new")
        await hub.flush()
        assert types(sink) == ["stream-hello"]

        sink.read_all()
        await until(lambda: "new" in data(sink))

        assert types(sink) == ["stream-hello", "stream-reset", "stream-hello"]
        assert "never seen" not in data(sink)


async def test_takeover_keeps_the_events_and_tells_the_new_generation() -> None:
    async with manual_hub() as hub:
        await producing(hub, "one")
        _, sink = await watch(hub)
        await until(lambda: data(sink))
        other = Producer(hub)
        await other.create(CreateMode.TAKEOVER)
        await other.append("two")
        await hub.flush()

        assert types(sink) == ["stream-hello", "stream-hello"]
        assert shown(sink)[2][1] == '{"run":"answer","generation":2}'
        assert data(sink) == ["one", "two"]


@pytest.mark.parametrize("mode", [CreateMode.RESTART, CreateMode.TAKEOVER])
@pytest.mark.parametrize("is_paused", [False, True], ids=["reading", "paused"])
async def test_watcher_that_may_not_see_the_next_generation_ends(mode: CreateMode, is_paused: bool) -> None:
    async with manual_hub() as hub:
        first = "x" * 100_000 if is_paused else "for both"
        await producing(hub, first, users=("alex", "kim"))
        _, stays = await watch(hub, "alex")
        leaves, sink = await watch(hub, "kim", sink=FakeSink(reads=not is_paused))
        await until(lambda: data(sink) and data(stays))
        other = Producer(hub)
        await other.create(mode, users=("alex",))
        await other.append("secret")
        await hub.flush()

        assert leaves.reason is CloseReason.REVOKED
        assert "secret" not in sink.text
        assert types(sink) == ["stream-hello", "stream-revoked"]
        assert data(stays)[-1] == "secret"
        with pytest.raises(UnknownRun):
            await hub.find_run(NAME, Claims("kim", ("chat",)))


async def test_page_read_for_an_audience_is_not_written_to_it_after_that_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with manual_hub() as hub:
        await producing(hub, "one", users=("alex", "kim"))
        may_read = asyncio.Event()
        read = hub.runs.read

        async def slowly(name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
            await may_read.wait()
            return await read(name, log, after, max_bytes)

        monkeypatch.setattr(hub.runs, "read", slowly)
        leaves, sink = await watch(hub, "kim")
        await asyncio.sleep(0)
        other = Producer(hub)
        await other.create(CreateMode.TAKEOVER, users=("alex",))
        await other.append("secret")
        may_read.set()
        await until(lambda: leaves.reason)
        await asyncio.sleep(0.01)

        assert data(sink) == []


async def test_next_generation_on_other_channels_is_watched_on_those() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, channels=("orders.1",))
        watcher, sink = await watch(hub, patterns=("orders.*",))
        await producer.create(CreateMode.RESTART, channels=("orders.2", "chat"))
        await hub.flush()
        assert watcher.channels == ("orders.2",)

        await hub.disconnect(channel="orders.1")
        await hub.flush()
        assert watcher.reason is None
        await hub.disconnect(channel="orders.2")
        await hub.flush()
        assert watcher.reason is CloseReason.REVOKED
        assert types(sink)[-1] == "stream-revoked"


async def test_deletion_ends_watchers_as_failed() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        _, fast = await watch(hub)
        _, behind = await watch(hub, sink=FakeSink(reads=False))
        await until(lambda: data(fast))
        await producer.append("x" * 100_000)
        await hub.flush()
        await producer.append("lost to the one that is behind")
        await producer.delete()
        await producer.create()
        await producer.append("another run")
        await hub.flush()

        for sink in (fast, behind):
            assert shown(sink)[-1][:2] == ("stream-finished", '{"reason":"failed","error":"deleted"}')
            assert sink.is_closed
        assert data(fast)[-1] == "lost to the one that is behind"


async def test_run_that_is_not_kept_after_its_end_is_still_sent_to_those_that_watch() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, keep=0)
        _, sink = await watch(hub)
        await asyncio.sleep(0)
        await producer.append("last")
        await producer.finish()
        await producer.delete()
        await hub.flush()

        assert data(sink) == ["last"]
        assert shown(sink)[-1][:2] == ("stream-finished", '{"reason":"done"}')


def lone_feed(woken: list[Feed]) -> Feed:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ready.set_result(None)
    return Feed(NAME, ready, woken.append)


def run_of(generation: int, log: str, events: int, state: RunState = RunState.OPEN) -> Run:
    run = Run(NAME, RunOptions(("chat",), ("alex",)), generation, log, 0.0, events=events)
    run.state = state
    return run


async def test_run_that_the_store_has_lost_ends_its_watchers_as_lost() -> None:
    async with manual_hub() as hub:
        await producing(hub, "one")
        watcher, sink = await watch(hub)
        await until(lambda: data(sink))
        run = await hub.runs.get(NAME)
        assert run is not None
        engine_of(hub).finder.require(NAME, Claims("alex", ("chat",))).vanished(run)
        await hub.flush()

        assert watcher.reason is CloseReason.FINISHED
        assert shown(sink)[-1][:2] == ("stream-finished", '{"reason":"failed","error":"lost"}')


async def test_feed_ignores_what_is_older_than_what_it_was_told() -> None:
    feed = lone_feed([])
    feed.advanced(run_of(2, "b", 5), 6, ())
    feed.begin(run_of(1, "a", 9))
    assert (feed.generation, feed.log, feed.tail) == (2, "b", 5)

    feed.vanished(run_of(1, "a", 9))
    assert feed.run is not None

    feed.begin(run_of(2, "b", 3))
    assert feed.tail == 5
    feed.advanced(run_of(2, "b", 5, RunState.DONE), 6, ())
    feed.begin(run_of(2, "b", 5))
    assert feed.outcome == Outcome(RunState.DONE)

    feed.vanished(run_of(2, "b", 5))
    feed.begin(run_of(2, "b", 5))
    assert feed.run is None


@pytest.mark.parametrize("is_paused", [False, True], ids=["reading", "paused"])
async def test_run_that_goes_on_in_another_log_is_sent_anew_in_the_same_generation(is_paused: bool) -> None:
    """Redis has lost a part of the run, and continues it: see `renew_log` in runs.lua."""
    async with manual_hub() as hub:
        await producing(hub, "one", "x" * 100_000 if is_paused else "two")
        watcher, sink = await watch(hub, sink=FakeSink(reads=not is_paused))
        await until(lambda: len(data(sink)) == 2)
        run = await hub.runs.get(NAME)
        assert run is not None
        feed = engine_of(hub).finder.require(NAME, Claims("alex", ("chat",)))
        run.log = "renewed"
        feed.advanced(run, 3, ())
        await hub.flush()
        sink.read_all()
        await until(lambda: len(data(sink)) == 4 or watcher.reason)

        assert types(sink) == ["stream-hello", "stream-reset", "stream-hello"]
        assert [text for type, text, _ in shown(sink) if type == "stream-reset"] == ['{"reason":"log-lost"}']
        assert [id for *_, id in shown(sink)][-2:] == ["1-0.renewed", "2-0.renewed"]


async def test_end_of_a_log_is_not_that_of_the_log_in_which_the_run_goes_on() -> None:
    async with manual_hub() as hub:
        await producing(hub, "one", "two")
        _, sink = await watch(hub)
        await until(lambda: len(data(sink)) == 2)
        feed = engine_of(hub).finder.require(NAME, Claims("alex", ("chat",)))
        feed.advanced(run_of(1, "renewed", 1, RunState.DONE), 2, ())
        feed.vanished(run_of(1, "renewed", 1, RunState.DONE))
        await hub.flush()

        assert shown(sink)[-1][:2] == ("stream-finished", '{"reason":"failed","error":"deleted"}')


async def test_events_that_the_feed_was_not_told_of_are_not_read() -> None:
    """They may be of the next generation, which is for others."""
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        await hub.find_run(NAME, Claims("alex", ("chat",)))
        feed = engine_of(hub).finder.require(NAME, Claims("alex", ("chat",)))
        hub.broker.runs.unfollow(NAME, feed)
        feed.run = run_of(1, feed.log, 1)
        await producer.create(CreateMode.TAKEOVER, users=("kim",))
        await producer.append("secret")
        _, sink = await watch(hub)
        await until(lambda: data(sink))
        await hub.flush()

        assert data(sink) == ["one"]


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "never-told"])
async def test_run_that_the_feed_was_not_told_of_yet_is_found(is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without `wait=` would be answered 404 otherwise, at which a browser stops for good."""
    monkeypatch.setattr(finding, "TOLD_SECONDS", 10 if is_told else 0.01)
    async with manual_hub() as hub:
        producer = await producing(hub, users=("kim",))
        await watch(hub, "kim")
        store = hub.broker.runs
        feed = engine_of(hub).finder.require(NAME, Claims("kim", ("chat",)))
        store.unfollow(NAME, feed)  # as if the message were on its way
        await producer.create(CreateMode.RESTART)
        await producer.append("one")
        watching = asyncio.create_task(watch(hub))
        if not is_told:
            with pytest.raises(StreamRefused, match="not told of in time"):
                await watching
            return
        await until(lambda: feed.waiting)
        run = await store.follow(NAME, feed)
        assert run is not None
        feed.advanced(run, 2, ())
        _, sink = await watching

        await until(lambda: data(sink) == ["one"])
        assert hub.statistics.run_waits == 0


async def test_clients_that_wait_are_woken_by_a_generation_that_is_counted_anew() -> None:
    feed = lone_feed([])
    feed.advanced(run_of(1, "a", 1), 2, ())
    feed.vanished(run_of(1, "a", 1))  # with its tombstone: Redis has lost everything
    wait = RunWait("alex")
    feed.waiting.add(wait)
    feed.advanced(run_of(1, "b", 0), 1, ())

    await asyncio.wait_for(wait.until_woken(), 5)


async def test_gap_in_what_is_told_is_read_from_the_store() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        _, sink = await watch(hub)
        await until(lambda: data(sink))
        store = hub.broker.runs
        feed = engine_of(hub).finder.require(NAME, Claims("alex", ("chat",)))
        store.unfollow(NAME, feed)
        await producer.append("two", "three")
        run = await store.follow(NAME, feed)
        assert run is not None
        await producer.append("four")
        await until(lambda: data(sink) == ["one", "two", "three", "four"])
        feed.advanced(run, 3, [RunEvent("three"), RunEvent("four")])  # told twice
        await producer.append("five")
        await hub.flush()

        assert data(sink) == ["one", "two", "three", "four", "five"]


async def test_store_that_cannot_be_reached_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RETRY_SECONDS", 0.01)
    async with manual_hub() as hub:
        await producing(hub, "one")
        read, failures = hub.runs.read, iter([True, True, False])

        async def failing(name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
            if next(failures):
                raise BrokerUnavailable("down")
            return await read(name, log, after, max_bytes)

        monkeypatch.setattr(hub.runs, "read", failing)
        _, sink = await watch(hub)
        await until(lambda: data(sink) == ["one"])


async def test_store_that_has_lost_what_it_told_of_is_asked_for_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RETRY_SECONDS", 0.01)
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        feed_of = engine_of(hub).finder.require
        _, first = await watch(hub)
        await until(lambda: data(first) == ["one"])
        feed_of(NAME, Claims("alex", ("chat",))).tail = 5  # as if four more had been told of, and lost since
        watcher, sink = await watch(hub)
        await until(lambda: data(sink) == ["one"])
        await until(lambda: feed_of(NAME, Claims("alex", ("chat",))).tail == 1)
        await producer.append("two")
        await until(lambda: data(sink) == ["one", "two"])

        assert watcher.reason is None


# Access, and what holds for every stream


@pytest.mark.parametrize(
    ("user_id", "channels", "patterns"),
    [("kim", ("chat",), ()), ("alex", ("news",), ()), ("alex", (), ("c.*",)), ("*", ("chat",), ())],
    ids=["user", "channel", "pattern", "everyone"],
)
async def test_run_of_others_is_unknown(user_id: str, channels: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    async with manual_hub() as hub:
        await producing(hub)

        with pytest.raises(UnknownRun):
            await hub.find_run(NAME, Claims(user_id, channels, patterns=patterns))
        with pytest.raises(UnknownRun):
            await hub.find_run("unknown", Claims("alex", ("chat",)))
        assert hub.statistics.watched_runs == 0


async def test_run_is_watched_by_one_of_its_channels_or_a_pattern_and_by_everyone() -> None:
    async with manual_hub() as hub:
        await producing(hub, channels=("news", "orders.1"), users=("*",))

        by_channel, _ = await watch(hub, "kim", "news")
        by_pattern, _ = await watch(hub, "lee", patterns=("orders.*",))

        assert by_channel.channels == ("news",)
        assert by_pattern.channels == ("orders.1",)


async def test_revocations_of_every_kind_end_watchers() -> None:
    async with manual_hub() as hub:
        await producing(hub, users=("*",))
        by_user, _ = await watch(hub, "kim")
        by_token, _ = await watch(hub, "lee", jti="token-1")
        by_session, _ = await watch(hub, "sam", sid="session-1", iss="me")
        stays, _ = await watch(hub)

        await hub.revoke(user_id="kim")
        await hub.revoke(jti="token-1")
        await hub.revoke(sid="session-1", issuer="me")
        await hub.flush()

        assert {each.reason for each in (by_user, by_token, by_session)} == {CloseReason.REVOKED}
        assert stays.reason is None


async def test_disconnect_finds_watchers_by_user_and_channel() -> None:
    async with manual_hub() as hub:
        await producing(hub, users=("*",))
        first, _ = await watch(hub, "kim")
        second, _ = await watch(hub, "alex")
        await hub.disconnect(user_id="kim", channel="news")
        await hub.flush()
        assert first.reason is None
        await hub.disconnect(user_id="kim", channel="chat")
        await hub.flush()
        assert first.reason is CloseReason.REVOKED and second.reason is None
        await hub.disconnect(channel="chat")
        await hub.flush()

        assert second.reason is CloseReason.REVOKED


async def test_expiry_heartbeats_and_lifetime_hold_for_watchers() -> None:
    async with manual_hub(heartbeat_seconds=15, expiring_seconds=20, stream_lifetime_seconds=1_000) as hub:
        producer = await producing(hub, "one")
        watcher, sink = await watch(hub, expires_at=hub.clock.wall + 60)
        long, long_sink = await watch(hub)
        await until(lambda: data(sink))
        await hub.pass_seconds(30)
        assert sink.text.endswith(": ping\n")
        await producer.append("two")
        await hub.pass_seconds(31)

        assert watcher.reason is CloseReason.EXPIRED
        assert types(sink) == ["stream-hello", "stream-expiring", "stream-expired"]
        run = await hub.runs.get(NAME)
        assert run is not None and shown(sink)[-1][2] == f"2-0.{run.log}"
        for _ in range(5):
            await producer.append("alive")
            await hub.pass_seconds(200)
        assert long.reason is CloseReason.LIFETIME
        assert types(long_sink)[-1] == "stream-lifetime"


async def test_drain_ends_watchers_and_tells_them_to_come_back() -> None:
    async with running_hub() as hub:
        await producing(hub, "one")
        watcher, sink = await watch(hub)
        await hub.drain(0.2)

        assert watcher.reason is CloseReason.DRAINED
        assert data(sink) == ["one"]
        assert types(sink) == ["stream-hello", "stream-drain"]
        assert sink.cut_after is not None


async def test_limits_count_watchers_by_user_and_address_but_not_by_channel() -> None:
    async with manual_hub(max_streams_per_user=2, max_streams_per_address=3, max_streams_per_channel=1) as hub:
        await producing(hub, users=("*",))
        first, _ = await watch(hub, address="1.2.3.4")
        second, _ = await watch(hub, address="1.2.3.4")
        third, _ = await watch(hub, address="1.2.3.4")
        assert first.reason is CloseReason.REPLACED and second.reason is third.reason is None

        await watch(hub, "kim", address="1.2.3.4")
        with pytest.raises(StreamRefused):
            await watch(hub, "lee", address="1.2.3.4")


async def test_hub_that_stops_follows_nothing_any_more() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        watcher, sink = await watch(hub)
        followed = engine_of(hub).finder.require(NAME, Claims("alex", ("chat",)))
        await hub.aclose()
        assert watcher.reason is CloseReason.DRAINED
        async with hub:
            await producer.create(CreateMode.RESTART)
            _, again = await watch(hub)
            await producer.append("two")
            await hub.flush()

            assert followed.generation == 1  # it is not told any more
            assert data(sink) == ["one"] and data(again) == ["two"]


async def test_log_names_the_run_of_a_stream_that_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ssehub.hub")
    async with manual_hub() as hub:
        producer = await producing(hub)
        await watch(hub)
        await producer.finish()
        await hub.flush()

    about = "user 'alex', run 'answer', channels 'chat', from this process"
    assert f"stream ended: {about}, 0.0 s, 0 events, 0 bytes, finished" in caplog.text


async def test_recording_of_a_run() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one")
        recording = await hub.record(run=NAME, channel="chat", user_id="alex")
        await producer.finish()
        await hub.flush()

        assert [message.data for message in recording.messages] == ["one", '{"reason":"done"}']
        assert recording.reason is CloseReason.FINISHED


async def test_subscription_to_a_run_ends_with_it_and_resumes_behind_a_cursor() -> None:
    async with manual_hub() as hub:
        waiting = hub.subscribe(run=NAME, channel="chat", user_id="alex", wait_seconds=30)
        entering = asyncio.create_task(waiting.__aenter__())
        await until(lambda: hub.statistics.run_waits == 1)
        producer = await producing(hub, "one", "two")
        async with await entering as messages:
            await producer.finish()
            seen = [message async for message in messages]
        assert [message.data for message in seen] == ["one", "two", '{"reason":"done"}']
        assert waiting.reason is CloseReason.FINISHED

        behind = hub.subscribe(run=NAME, channel="chat", user_id="alex", cursor=seen[0].id)
        assert [message.data async for message in behind] == ["two", '{"reason":"done"}']
        with pytest.raises(UnknownRun):
            await hub.subscribe(run=NAME, channel="chat", user_id="kim").__aenter__()


@pytest.mark.parametrize(
    "arguments", [{"since": "earliest", "run": NAME}, {"run": "a/b"}, {"wait_seconds": 3}, {"run": NAME, "channel": ()}]
)
async def test_subscription_refuses_what_does_not_fit_a_run(arguments: dict[str, Any]) -> None:
    async with manual_hub() as hub:
        with pytest.raises(InvalidRequest):
            hub.subscribe(**{"channel": "chat", "user_id": "alex", **arguments})


async def test_subscription_refuses_a_wait_that_is_too_long() -> None:
    async with manual_hub() as hub:
        with pytest.raises(InvalidRequest, match="from 1 to 300"):
            await hub.subscribe(run=NAME, channel="chat", user_id="alex", wait_seconds=301).__aenter__()


async def test_feed_is_dropped_some_time_after_its_last_watcher_has_left() -> None:
    async with manual_hub() as hub:
        await producing(hub)
        watcher, _ = await watch(hub)
        hub.detach(watcher)
        assert hub.statistics.watched_runs == 1
        await hub.pass_seconds(upkeep.SWEEP_SECONDS * 3)

        assert hub.statistics.watched_runs == 0
        assert hub.statistics.watchers == 0


# Waiting


async def test_client_waits_for_a_run_to_appear() -> None:
    async with manual_hub() as hub:
        waiting = asyncio.create_task(watch(hub, wait_seconds=30))
        await until(lambda: hub.statistics.run_waits == 1)
        await producing(hub, "one")
        _, sink = await waiting
        await until(lambda: data(sink) == ["one"])

        assert hub.statistics.run_waits == 0


async def test_token_that_expires_while_its_client_waits_shows_nothing() -> None:
    async with manual_hub() as hub:
        waiting = asyncio.create_task(watch(hub, wait_seconds=300, expires_at=hub.clock.wall + 60))
        await until(lambda: hub.statistics.run_waits == 1)
        await hub.pass_seconds(61)
        await producing(hub, "one")

        with pytest.raises(TokenError, match="expired"):
            await waiting
        assert hub.statistics.connected == 0


async def test_stranger_waits_like_for_a_run_that_is_not_there() -> None:
    async with running_hub() as hub:
        await producing(hub, users=("kim",))
        loop = asyncio.get_running_loop()
        for name in (NAME, "unknown"):
            began = loop.time()
            with pytest.raises(UnknownRun):
                await watch(hub, name=name, wait_seconds=1)
            assert 0.9 < loop.time() - began < 5
        assert hub.statistics.run_waits == 0


async def test_stranger_that_waits_is_let_in_when_the_run_begins_anew_for_it() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "not for alex", users=("kim",))
        waiting = asyncio.create_task(watch(hub, wait_seconds=30))
        await until(lambda: hub.statistics.run_waits == 1)
        await producer.append("nor this")
        await producer.create(CreateMode.RESTART, users=("alex",))
        _, sink = await waiting
        await producer.append("for alex")
        await hub.flush()

        assert data(sink) == ["for alex"]


async def test_clients_that_wait_are_bounded_in_number() -> None:
    async with manual_hub(max_run_waits=3) as hub:
        waiting = [asyncio.create_task(watch(hub, name=f"run-{number}", wait_seconds=30)) for number in range(3)]
        await until(lambda: hub.statistics.run_waits == 3)
        with pytest.raises(StreamRefused) as refused:
            await watch(hub, name="another", wait_seconds=30)
        assert refused.value.reason == "run-waits"
        await producing(hub, name="another")
        await watch(hub, name="another", wait_seconds=30)  # needs no waiting

        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert hub.statistics.run_waits == 0


class Waiting:
    """Clients that wait for runs, and are ended with the test."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.tasks: list[asyncio.Task[tuple[Subscriber, FakeSink]]] = []

    async def add(self, user_id: str, address: str | None = None, name: str = "later") -> str | None:
        """Let another client wait; return the reason if it is refused."""
        task = asyncio.create_task(watch(self._hub, user_id, name=name, wait_seconds=30, address=address))
        done, _ = await asyncio.wait([task], timeout=0.05)
        if done and isinstance(refused := task.exception(), StreamRefused):
            return refused.reason
        self.tasks.append(task)
        return None

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def waiting_on(hub: Hub) -> AsyncIterator[Waiting]:
    waiting = Waiting(hub)
    try:
        yield waiting
    finally:
        await waiting.leave()


async def test_one_user_does_not_keep_others_from_waiting() -> None:
    async with manual_hub(max_run_waits=4) as hub, waiting_on(hub) as waiting:
        assert [await waiting.add("alex", name=f"{number}") for number in range(5)] == [None] * 4 + ["run-waits"]
        assert [await waiting.add("kim") for _ in range(3)] == [None, None, "run-waits"]
        assert await waiting.add("alex") == "run-waits"
        assert await waiting.add("sam") is None
        assert hub.statistics.run_waits == 4
        refused = [task for task in waiting.tasks if task.done()]
        assert {str(task.exception()) for task in refused} == {"4 clients wait for runs already (max_run_waits)"}
        assert len(refused) == 3 and not waiting.tasks[0].done(), "those that came last gave way"

        await waiting.leave()
        assert hub.statistics.run_waits == 0


async def test_clients_that_wait_count_as_streams_of_their_address() -> None:
    async with manual_hub(max_streams_per_address=2) as hub, waiting_on(hub) as waiting:
        await producing(hub)
        assert await waiting.add("alex", "1.2.3.4") is None
        await watch(hub, "alex", address="1.2.3.4")
        with pytest.raises(StreamRefused, match="max_streams_per_address"):
            await watch(hub, "alex", address="1.2.3.4")
        assert await waiting.add("alex", "1.2.3.4") == "address"
        assert await waiting.add("alex", "1.2.3.5") is None
        assert await waiting.add("alex") is None
        await producing(hub, name="later")
        await until(lambda: all(task.done() for task in waiting.tasks))

        assert hub.statistics.subscribers == 4
        assert await waiting.add("alex", "1.2.3.4", name="never") == "address"


@pytest.mark.parametrize("policy", ["refuse", "replace"])
async def test_clients_that_wait_count_as_streams_of_their_user(policy: str) -> None:
    async with manual_hub(max_streams_per_user=2, user_limit_policy=policy) as hub, waiting_on(hub) as waiting:
        await producing(hub, users=("*",))
        first, _ = await watch(hub, "alex", address="1")
        assert await waiting.add("alex", "2") is None
        assert await waiting.add("alex", "3") == ("user" if policy == "refuse" else None)
        assert await waiting.add("alex", "4") == "user"
        assert await waiting.add("kim", "4") is None
        if policy == "refuse":
            with pytest.raises(StreamRefused, match="max_streams_per_user"):
                await watch(hub, "alex", address="5")
        else:
            await watch(hub, "alex", address="5")
            assert first.reason is None
        await waiting.leave()

        assert await waiting.add("alex", "6") is None


async def test_client_that_may_not_wait_watches_a_run_that_is_there() -> None:
    async with manual_hub(max_streams_per_user=1) as hub, waiting_on(hub) as waiting:
        assert await waiting.add("alex", "1") is None
        await producing(hub)

        await watch(hub, "alex", address="1", wait_seconds=30)


async def test_drain_refuses_clients_that_wait() -> None:
    async with running_hub() as hub:
        waiting = asyncio.create_task(watch(hub, wait_seconds=30))
        await until(lambda: hub.statistics.run_waits == 1)
        await hub.drain(0.1)

        with pytest.raises(StreamRefused, match="draining"):
            await waiting
        with pytest.raises(StreamRefused, match="draining"):
            await watch(hub, wait_seconds=30)


async def test_drain_refuses_a_client_that_is_woken_at_the_same_moment() -> None:
    async with running_hub() as hub:
        producer = await producing(hub, users=("kim",))
        await watch(hub, "kim")
        finder = engine_of(hub).finder
        feed = finder.require(NAME, Claims("kim", ("chat",)))
        waiting = asyncio.create_task(watch(hub, wait_seconds=30))
        await until(lambda: feed.waiting)
        await producer.create(CreateMode.RESTART, users=("kim",))
        finder.refuse_waiting()

        with pytest.raises(StreamRefused, match="draining"):
            await asyncio.wait_for(waiting, 5)


# The dialect of the AI SDK


async def ai_sdk(hub: Hub, **options: object) -> tuple[object, FakeSink]:
    return await watch(hub, dialect=Dialect.AI_SDK, **options)  # type: ignore[arg-type]


async def test_ai_sdk_sees_data_and_done_and_a_clean_end() -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, '{"type":"start"}')
        _, sink = await ai_sdk(hub)
        await producer.append('{"type":"finish"}', type="note", id="x", retry=5)
        await hub.flush()
        await until(lambda: sink.text.count("data: ") == 2)
        await hub.pass_seconds(20)
        await producer.finish()
        await hub.flush()

        text = sink.text.replace(": ping\n", "")
        assert text == 'data: {"type":"start"}\n\ndata: {"type":"finish"}\n\ndata: [DONE]\n\n'
        assert sink.is_closed and sink.cut_after is None


@pytest.mark.parametrize("state", [RunState.DONE, RunState.FAILED, RunState.STOPPED], ids=str)
async def test_ai_sdk_is_sent_done_once_and_nothing_after_it(state: RunState) -> None:
    async with manual_hub() as hub:
        producer = await producing(hub, "one", "[DONE]")
        _, sink = await ai_sdk(hub)
        await until(lambda: sink.text == "data: one\n\n")
        await producer.append("[DONE]")
        await hub.flush()
        await producer.append("two", "[DONE]")
        await hub.flush()
        assert sink.text == "data: one\n\ndata: two\n\n"
        assert all(sink.chunks)  # an empty one would be the last of a chunked response
        await producer.finish(state)
        await hub.flush()

        assert sink.text.endswith("data: [DONE]\n\n") and sink.text.count("[DONE]") == 1
        assert sink.is_closed and sink.cut_after is None


@pytest.mark.parametrize("how", ["restart", "drain", "revoke", "expire", "delete", "takeover"])
async def test_every_end_but_that_of_the_run_is_a_cut_for_ai_sdk(how: str) -> None:
    async with manual_hub(expiring_seconds=1) as hub:
        producer = await producing(hub, "one")
        watcher, sink = await watch(hub, dialect=Dialect.AI_SDK, expires_at=hub.clock.wall + 100)
        await until(lambda: sink.text == "data: one\n\n")
        if how == "restart":
            await producer.create(CreateMode.RESTART)
        elif how == "takeover":
            await producer.create(CreateMode.TAKEOVER)
        elif how == "drain":
            await hub.aclose()
        elif how == "revoke":
            await hub.revoke(user_id="alex")
        elif how == "expire":
            await hub.pass_seconds(101)
        else:
            await producer.delete()
        await hub.flush()

        if how == "delete":
            assert sink.text == 'data: one\n\ndata: {"type":"error","errorText":"deleted"}\n\ndata: [DONE]\n\n'
            assert sink.cut_after is None
        elif how == "takeover":
            assert watcher.reason is None and sink.text == "data: one\n\n"
        else:
            assert sink.text.replace(": ping\n", "") == "data: one\n\n"
            assert sink.is_closed and sink.cut_after == 0.0
