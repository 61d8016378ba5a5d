"""The subscribers of the load test: what they count, wherever their reads end, and how fast."""

from __future__ import annotations

import time

import pytest

from ssehub.bench.listener import Group, Listener
from ssehub.bench.stamps import Span, content_of, stamped
from ssehub.fanout.frames import HEARTBEAT, control_event, hello
from ssehub.position import Position

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
POSITION = Position(1795600000000, 7, "k3j9x0ab")
HELLO = hello(POSITION, None).data
PING = HEARTBEAT.data
MOVED = control_event("stream-position", {}, POSITION).data


def event(number: int, publisher: int = 0) -> bytes:
    return f"data: {stamped(number, publisher, time.monotonic_ns(), 38)}\nid: x\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def listener_of(group: Group) -> Listener:
    return Listener(b"", group, lambda: None)


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_events_are_found_wherever_reads_end(step: int, is_chunked: bool) -> None:
    body = b"".join(event(number) for number in range(50))
    if is_chunked:
        body = b"".join(chunk(body[at : at + 100]) for at in range(0, len(body), 100))
    data = (HEAD if is_chunked else b"HTTP/1.1 200 OK\r\n\r\n") + body
    group = Group()
    listener = listener_of(group)

    for at in range(0, len(data), step):
        listener.data_received(data[at : at + step])

    tally = group.tally()
    assert (tally.events, tally.gaps, tally.duplicates, tally.reordered) == (50, 0, 0, 0)


def test_cached_reads_are_counted_for_each_subscriber() -> None:
    frames = [event(number) for number in range(4)]
    chunks = [chunk(frames[number]) for number in (0, 1, 3, 3, 2)]
    group = Group()

    for _ in range(3):
        listener = listener_of(group)
        listener.data_received(HEAD + chunk(HELLO[:-1]) + chunk(b"\n"))
        for data in chunks:
            listener.data_received(data)

    tally = group.tally()
    assert (tally.events, tally.gaps, tally.duplicates, tally.reordered) == (15, 0, 3, 3)
    assert len(group.whole_reads) == 4


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_frames_of_the_hub_itself_count_neither_as_events_nor_as_reads_with_events(step: int) -> None:
    group = Group()
    listener = listener_of(group)
    data = HEAD + chunk(HELLO) + chunk(PING) + chunk(MOVED) + chunk(PING) + chunk(PING)

    for at in range(0, len(data), step):
        listener.data_received(data[at : at + step])

    tally = group.tally()
    assert (tally.opened, tally.events, tally.reads, tally.finished_at) == (1, 0, 0, 0.0)
    listener.data_received(chunk(event(0)))
    tally = group.tally()
    assert (tally.events, tally.reads, tally.gaps, tally.duplicates) == (1, 1, 0, 0)


@pytest.mark.parametrize("between", [PING, MOVED, PING + MOVED])
def test_reads_after_a_frame_of_the_hub_itself_come_from_the_cache(
    between: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group()
    listeners = [listener_of(group) for _ in range(3)]
    reads = [chunk(event(number)) for number in range(4)]
    for listener in listeners:
        listener.data_received(HEAD + chunk(HELLO))
        listener.data_received(chunk(between))
    for data in reads:
        listeners[0].data_received(data)
        listeners[0].data_received(chunk(between))

    monkeypatch.setattr(group, "content", pytest.fail)  # parses what is not in the cache
    for data in reads:
        for listener in listeners[1:]:
            listener.data_received(data)

    tally = group.tally()
    assert set(group.whole_reads) == set(reads)
    assert (tally.events, tally.reads, tally.gaps, tally.duplicates, tally.reordered) == (12, 12, 0, 0, 0)


def test_refused_subscriber_counts_no_events() -> None:
    group = Group()
    listener = listener_of(group)

    listener.data_received(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 99\r\n\r\n" + event(0))
    listener.data_received(event(0))

    tally = group.tally()
    assert (tally.opened, tally.events, tally.refused) == (0, 0, {"401 Unauthorized": 1})


def test_events_of_a_chunk_without_a_size_are_lost() -> None:
    group = Group()
    listener = listener_of(group)

    listener.data_received(HEAD + chunk(event(0)) + b"size\r\n\r\n" + chunk(event(1)))

    assert group.tally().events == 2


def test_content_of_several_publishers_is_told_apart() -> None:
    assert sorted(content_of(b"\n" + event(5, 1) + event(0, 2) + event(6, 1)).spans) == [Span(1, 5, 6), Span(2, 0, 0)]
    assert content_of(b"\n" + event(5) + event(7)).spans == [Span(0, 5, 5), Span(0, 7, 7)]


def read_rate(together: int, total: int) -> float:
    """Return how many events per CPU second are read, with `together` events in each read."""
    group = Group()
    listeners = [listener_of(group) for _ in range(100)]
    firsts = range(0, total // len(listeners), together)
    reads = [chunk(b"".join(map(event, range(first, first + together)))) for first in firsts]
    for listener in listeners:
        listener.data_received(HEAD)
    began = time.process_time()
    for data in reads:
        for listener in listeners:
            listener.data_received(data)
    seconds = max(0.001, time.process_time() - began)
    tally = group.tally()
    assert (tally.events, tally.gaps, tally.duplicates) == (total, 0, 0)
    return total / seconds


def test_reading_is_fast_and_faster_if_reads_contain_many_events() -> None:
    alone, together = read_rate(1, 20_000), read_rate(50, 200_000)

    assert alone > 20_000  # measured: 600,000
    assert together > 2 * alone  # measured: 20 times
