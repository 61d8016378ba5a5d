"""Sinks: what reaches the connection, what counts as backlog, what is reported to the owner, and how it ends."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from conftest import until
from hubs import hub_settings
from ssehub import Claims, Hub
from ssehub.fanout.sinks import (
    HIGH_WATER_BYTES,
    LAST_CHUNK,
    LOW_WATER_BYTES,
    MAX_READ_BYTES,
    Chunk,
    TaskSink,
    TransportSink,
)
from ssehub.fanout.subscriber import State
from streams import unchunked

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class RecordingOwner:
    """The owner of a sink; records what the sink reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []

    def sink_paused(self) -> None:
        self.reports.append("paused")

    def sink_resumed(self) -> None:
        self.reports.append("resumed")

    def sink_lost(self) -> None:
        self.reports.append("lost")


class FakeTransport(asyncio.WriteTransport):
    """A connection that accepts everything, or, with `is_stuck`, buffers everything."""

    def __init__(self, *, is_stuck: bool = False) -> None:
        super().__init__()
        self.data = b""
        self.is_stuck = is_stuck
        self.is_aborted = self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closing(), "uvloop raises here"
        self.data += data

    def is_closing(self) -> bool:
        return self.is_aborted or self.is_closed

    def get_write_buffer_size(self) -> int:
        return len(self.data) if self.is_stuck else 0

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


def corked_sink(*, is_chunked: bool = True, is_stuck: bool = False) -> tuple[TransportSink, FakeTransport, list[str]]:
    """Return a sink, its transport, and the list that grows with what the sink reports."""
    transport, owner = FakeTransport(is_stuck=is_stuck), RecordingOwner()
    sink = TransportSink(transport, is_chunked=is_chunked)
    sink.owner = owner
    return sink, transport, owner.reports


# TransportSink


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_transport_sink_writes_the_head_then_what_was_corked_then_directly(is_chunked: bool) -> None:
    sink, transport, _ = corked_sink(is_chunked=is_chunked)
    for text in (b"one ", b"two "):
        sink.write(Chunk(text))
    corked = (transport.data, sink.backlog)

    sink.uncork(HEAD)
    sink.write(Chunk(b"three"))
    sink.close()

    body = transport.data.removeprefix(HEAD)
    assert corked == (b"", 8)
    assert transport.data.startswith(HEAD)
    assert (unchunked(body) if is_chunked else body) == b"one two three"
    assert body.endswith(LAST_CHUNK) == is_chunked
    assert transport.is_closed and not transport.is_aborted


async def test_chunk_header_is_made_once_for_all_connections() -> None:
    chunk = Chunk(b"x" * 26)

    assert chunk.framed is chunk.framed
    assert chunk.framed == b"1a\r\n" + b"x" * 26 + b"\r\n"


async def test_corked_sink_pauses_above_the_high_water_mark_and_resumes_when_it_is_uncorked() -> None:
    sink, _, reports = corked_sink()

    sink.write(Chunk(b"x" * HIGH_WATER_BYTES))
    before = list(reports)
    sink.write(Chunk(b"x"))
    sink.write(Chunk(b"x"))
    while_corked = (list(reports), sink.is_paused)
    sink.uncork(HEAD)

    assert before == []
    assert while_corked == (["paused"], True)
    assert (reports, sink.is_paused, sink.backlog) == (["paused", "resumed"], False, 0)


async def test_transport_sink_that_is_closed_while_corked_ends_the_response_when_it_is_uncorked() -> None:
    sink, transport, _ = corked_sink()
    sink.write(Chunk(b"farewell"))

    sink.close()
    sink.write(Chunk(b"too late"))
    while_corked = transport.data
    sink.uncork(HEAD)

    assert while_corked == b""
    assert unchunked(transport.data.removeprefix(HEAD)) == b"farewell"
    assert transport.data.endswith(LAST_CHUNK) and transport.is_closed


async def test_transport_sink_aborts_a_client_that_does_not_read_the_rest_within_the_linger_time() -> None:
    sink, transport, _ = corked_sink(is_stuck=True)
    sink.uncork(HEAD)

    sink.close(0.01)
    at_once = transport.is_aborted
    await until(lambda: transport.is_aborted)

    assert not at_once


async def test_aborted_transport_sink_writes_nothing_more() -> None:
    sink, transport, reports = corked_sink()
    sink.write(Chunk(b"corked"))

    sink.abort()
    sink.write(Chunk(b"too late"))
    sink.uncork(HEAD)

    assert transport.data == b"" and transport.is_aborted
    assert reports == [] and sink.backlog == 0


async def test_transport_sink_reports_once_that_its_connection_is_lost_and_writes_nothing_more() -> None:
    sink, transport, reports = corked_sink()
    sink.uncork(HEAD)
    transport.is_closed = True

    sink.connection_lost()
    sink.connection_lost()
    sink.write(Chunk(b"too late"))
    sink.close()

    assert reports == ["lost"]
    assert transport.data == HEAD


async def test_transport_sink_passes_on_that_writing_pauses_and_resumes() -> None:
    sink, _, reports = corked_sink()
    sink.uncork(HEAD)

    sink.pause_writing()
    while_paused = sink.is_paused
    sink.resume_writing()

    assert (reports, while_paused, sink.is_paused) == (["paused", "resumed"], True, False)


async def test_corked_backlog_is_bounded_like_any_other() -> None:
    transport = FakeTransport()
    sink = TransportSink(transport, is_chunked=True)
    async with Hub(**hub_settings(max_backlog_bytes=100_000, grace_seconds=0.2)) as hub:
        subscriber = hub.attach(Claims("alex", ("chat",)), sink)
        for _ in range(20):
            await hub.publish(channel="chat", user_id="*", data="x" * 50_000)
            await hub.flush()
        backlog = sink.backlog
        await until(lambda: subscriber.reason is not None)

    assert backlog < 200_000
    assert subscriber.reason == "slow" and transport.is_aborted and sink.backlog == 0


async def test_uncorked_bytes_come_before_what_was_held() -> None:
    transport = FakeTransport()
    sink = TransportSink(transport, is_chunked=False)
    async with Hub(**hub_settings(max_backlog_bytes=100_000)) as hub:
        subscriber = hub.attach(Claims("alex", ("chat",)), sink)
        for number in range(10):
            await hub.publish(channel="chat", user_id="*", data=f"{number}" * 50_000)
            await hub.flush()
        sink.uncork()
        await hub.publish(channel="chat", user_id="*", data="after")
        await hub.flush()
        state = subscriber.state

    _, *lines = [line[:7] for line in transport.data.decode().split("\n") if line.startswith("data: ")]
    assert lines[:11] == [*(f"data: {number}" for number in range(10)), "data: a"]
    assert state is State.LIVE and not sink.is_paused


# TaskSink


async def test_task_sink_reads_everything_gathered_and_counts_what_is_being_sent() -> None:
    sink = TaskSink()
    for text in (b"one", b"two"):
        sink.write(Chunk(text))

    assert await sink.read() == b"onetwo"
    assert sink.backlog == 6
    reading = asyncio.create_task(sink.read())
    await asyncio.sleep(0)
    assert sink.backlog == 0
    sink.abort()
    sink.write(Chunk(b"too late"))
    assert await reading == b""


async def test_task_sink_reads_at_most_64_kib_at_once_unless_one_chunk_is_larger() -> None:
    sink = TaskSink()
    for size in (MAX_READ_BYTES - 1, 1, 1, MAX_READ_BYTES + 1, 1):
        sink.write(Chunk(b"x" * size))

    sizes = [len(await sink.read()) for _ in range(4)]

    assert sizes == [MAX_READ_BYTES, 1, MAX_READ_BYTES + 1, 1]


async def test_task_sink_pauses_above_the_high_and_resumes_below_the_low_water_mark() -> None:
    sink, owner = TaskSink(), RecordingOwner()
    sink.owner = owner
    quarter = HIGH_WATER_BYTES // 4
    for _ in range(5):
        sink.write(Chunk(b"x" * quarter))
    paused = (list(owner.reports), sink.is_paused)

    await sink.read()
    still_paused = (sink.is_paused, sink.backlog)
    await sink.read()

    assert paused == (["paused"], True)
    assert still_paused == (True, 5 * quarter)
    assert sink.backlog == quarter == LOW_WATER_BYTES
    assert (owner.reports, sink.is_paused) == (["paused", "resumed"], False)


async def test_closed_task_sink_is_read_to_its_end() -> None:
    sink = TaskSink()
    sink.write(Chunk(b"farewell"))

    sink.close()
    sink.write(Chunk(b"too late"))

    assert [await sink.read(), await sink.read()] == [b"farewell", b""]


async def test_task_sink_drops_a_connection_after_the_linger_time_unless_it_has_finished() -> None:
    dropped: list[str] = []
    sinks = {name: TaskSink(partial(dropped.append, name)) for name in ("closed", "aborted", "done", "gone on")}
    sinks["closed"].close(0.1)
    sinks["aborted"].abort()
    assert dropped == ["aborted"]
    sinks["done"].close(0.1)
    for name in ("done", "gone on"):
        sinks[name].finish()
        sinks[name].abort()
    await until(lambda: dropped == ["aborted", "closed"])
    await asyncio.sleep(0.1)

    assert dropped == ["aborted", "closed"]
