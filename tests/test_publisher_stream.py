"""Events that a publisher sends by a pipe: against real hubs, through proxies that cut, stall and buffer."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from pathlib import Path

import pytest
from httpx_sse import ServerSentEvent

from buffering_nginx import buffering_nginx
from conftest import CONTROL_KEY, RunningHub, StartHub, free_port, until
from proxy import Mode, Proxy
from redis_servers import SOAK
from ssehub import AsyncPublisher, Publisher
from ssehub.errors import ControlKeyError, InvalidRequest, Unavailable
from ssehub.publisher_http import Node
from ssehub.publisher_links import Links
from ssehub.publisher_pipe import MAX_KEPT_BYTES
from ssehub.publisher_request import Rhythm
from ssehub.publisher_route import Patience
from ssehub.publisher_stream import PublisherStream
from streams import RawStream, get

pytestmark = pytest.mark.anyio

QUICK = Patience(answer_seconds=2.0, first_wait_seconds=0.01, longest_wait_seconds=0.05, give_up_seconds=10.0)
RHYTHM = Rhythm(life_seconds=0.2, check_seconds=0.5)
SEEDS = 100 if SOAK else 8


def stream_to(*ports: int, patience: Patience = QUICK, rhythm: Rhythm = RHYTHM) -> PublisherStream:
    """Return a stream with waits that are shorter."""
    nodes = [
        Node(f"http://127.0.0.1:{port}", "127.0.0.1", port, "", None, {"Host": f"127.0.0.1:{port}"}) for port in ports
    ]
    return PublisherStream(Links(nodes, patience, rhythm))


def stored(hub: RunningHub, channel: str) -> list[str]:
    """Return the data of all events on a channel."""
    return [event.data for event in everything_on(hub, channel)]


def everything_on(hub: RunningHub, channel: str) -> list[ServerSentEvent]:
    """Return all events on a channel."""
    stream = RawStream(hub.port, get(f"/events/?token={hub.token(channel=channel)}&since=earliest"))
    hub.emit(channel=channel, data="the end")
    stream.read_event("the end")
    stream.close()
    return stream.events[:-1]


async def test_events_are_published_in_order_and_leaving_the_block_waits_for_all_answers(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher, publisher.stream() as stream:
        for number in range(2_000):
            await stream.send(channel="order", user_id="*", data=str(number), type="note")

    assert await asyncio.to_thread(stored, hub, "order") == [str(number) for number in range(2_000)]


async def test_emit_returns_the_id_of_the_event_and_tasks_share_the_stream(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher, publisher.stream() as stream:
        ids = await asyncio.gather(*[stream.emit(channel="ids", user_id="*", data=number) for number in range(200)])

    events = await asyncio.to_thread(everything_on, hub, "ids")
    assert [(event.data, event.id) for event in events] == [(str(number), id) for number, id in enumerate(ids)]


async def test_refused_event_ends_nothing_and_is_raised_by_flush(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher, publisher.stream() as stream:
        await stream.send(channel="refused", user_id="*", data="1")
        await stream.send(channel="refused", user_id="*", data="x", type="stream-x")
        await stream.send(channel="refused", user_id="*", data="2")
        with pytest.raises(InvalidRequest, match="400: event 'stream-x' begins with"):
            await stream.flush()
        await stream.flush()
        with pytest.raises(InvalidRequest, match="unknown field"):
            await stream.emit(channel="refused", user_id="*", data="x", unknown=1)  # type: ignore[call-arg]
        await stream.send(channel="refused", user_id="*", data="3")

    assert await asyncio.to_thread(stored, hub, "refused") == ["1", "2", "3"]


async def test_refused_event_is_raised_when_the_block_is_left(hub: RunningHub) -> None:
    with pytest.raises(InvalidRequest, match="channel"):
        async with AsyncPublisher(hub.control_url) as publisher, publisher.stream() as stream:
            await stream.send(channel="", user_id="*", data="x")
            await stream.send(channel="left", user_id="*", data="1")

    assert await asyncio.to_thread(stored, hub, "left") == ["1"]


async def test_block_that_raises_sends_what_it_was_given_first(hub: RunningHub) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        async with AsyncPublisher(hub.control_url) as publisher, publisher.stream() as stream:
            await stream.send(channel="raised", user_id="*", data="1")
            raise RuntimeError("mine")

    assert await asyncio.to_thread(stored, hub, "raised") == ["1"]


async def test_value_that_json_does_not_have_is_refused_at_once(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher, publisher.stream() as stream:
        with pytest.raises(InvalidRequest, match="can't be written as JSON"):
            await stream.send(channel="x", user_id="*", data={1, 2})


async def test_wrong_key_ends_the_stream_for_all_that_wait(start_hub: StartHub) -> None:
    hub = start_hub("--control-key", CONTROL_KEY)
    async with AsyncPublisher(hub.control_url, control_key="another control key of 32 bytes") as publisher:
        with pytest.raises(ControlKeyError):
            async with publisher.stream() as stream:
                await stream.send(channel="chat", user_id="*", data="1")
                with pytest.raises(ControlKeyError):
                    await stream.emit(channel="chat", user_id="*", data="2")
                with pytest.raises(ControlKeyError):
                    await stream.send(channel="chat", user_id="*", data="3")


async def test_hub_that_does_not_come_back_raises_unavailable() -> None:
    patience = QUICK._replace(give_up_seconds=0.3)

    with pytest.raises(Unavailable, match="could not be used"):
        async with stream_to(free_port(), patience=patience) as stream:
            await stream.emit(channel="chat", user_id="*", data="1")


async def test_publisher_that_is_closed_gives_the_stream_up(hub: RunningHub) -> None:
    publisher = AsyncPublisher(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="given up"):
        async with publisher.stream() as stream:
            waiting = asyncio.create_task(stream.emit(channel="chat", user_id="*", data="1"))
            await asyncio.sleep(0.1)
            await publisher.aclose()
            with pytest.raises(Unavailable, match="given up"):
                await waiting
            await stream.send(channel="chat", user_id="*", data="2")
    with pytest.raises(Unavailable, match="closed"):
        publisher.stream()


async def test_stream_can_be_entered_once(hub: RunningHub) -> None:
    async with AsyncPublisher(hub.control_url) as publisher:
        stream = publisher.stream()
        async with stream:
            pass
        with pytest.raises(InvalidRequest, match="entered before"):
            await stream.__aenter__()


async def test_send_waits_while_too_much_has_no_answer(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        async with stream_to(proxy.port, patience=QUICK._replace(answer_seconds=30.0)) as stream:
            await stream.emit(channel="full", user_id="*", data="0")
            proxy.mode = Mode.STALL
            sent = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    while True:
                        await stream.send(channel="full", user_id="*", data="x" * 10_000)
                        sent += 1
            proxy.mode = Mode.PASS

    assert 0.9 < sent * 10_000 / MAX_KEPT_BYTES < 1.1
    assert len(await asyncio.to_thread(stored, hub, "full")) == 1 + sent


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_every_event_is_published_once_and_in_order_over_cuts(hub: RunningHub, seed: int) -> None:
    chance = random.Random(seed)
    channel = f"cuts-{seed}"
    with Proxy(hub.control_port) as proxy:
        async with stream_to(proxy.port) as stream:
            for number in range(300):
                await stream.send(channel=channel, user_id="*", data=str(number))
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.uniform(0, 0.01))
                if chance.random() < 0.05:
                    proxy.cut()
                elif chance.random() < 0.05:
                    proxy.cut_after(chance.randrange(1, 300))

    assert await asyncio.to_thread(stored, hub, channel) == [str(number) for number in range(300)]


async def test_stream_goes_on_when_the_hub_restarts(start_hub: StartHub, caplog: pytest.LogCaptureFixture) -> None:
    before = start_hub()
    async with stream_to(before.control_port) as stream:
        await stream.emit(channel="chat", user_id="*", data="1")
        before.stop()
        waiting = asyncio.create_task(stream.emit(channel="chat", user_id="*", data="2"))
        await until(lambda: any(["trying again" in record.getMessage() for record in caplog.records]))
        after = await asyncio.to_thread(start_hub, "--control-bind", f"127.0.0.1:{before.control_port}")
        await waiting

    assert await asyncio.to_thread(stored, after, "chat") == ["2"]
    assert len([record for record in caplog.records if "trying again" in record.getMessage()]) == 1


async def test_idle_stream_notices_no_restart(start_hub: StartHub, caplog: pytest.LogCaptureFixture) -> None:
    before = start_hub()
    async with stream_to(before.control_port) as stream:
        await stream.emit(channel="chat", user_id="*", data="1")
        before.stop()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(start_hub, "--control-bind", f"127.0.0.1:{before.control_port}")
        await stream.emit(channel="chat", user_id="*", data="2")

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_drain_moves_a_stream_to_the_next_node(start_hub: StartHub) -> None:
    one, two = start_hub("--drain-seconds", "2"), start_hub()
    async with stream_to(one.control_port, two.control_port) as stream:
        for number in range(200):
            await stream.send(channel="chat", user_id="*", data=str(number))
            if number == 50:
                await stream.flush()
                one.signal()
            await asyncio.sleep(0.01)

    found = await asyncio.to_thread(stored, two, "chat")
    assert found == [str(number) for number in range(200 - len(found), 200)]
    assert 0 < len(found) < 150


async def test_silent_hub_is_left_and_its_events_sent_again(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        async with stream_to(proxy.port, patience=QUICK._replace(answer_seconds=0.5)) as stream:
            await stream.emit(channel="silent", user_id="*", data="1")
            proxy.mode = Mode.STALL
            waiting = asyncio.create_task(stream.emit(channel="silent", user_id="*", data="2"))
            await asyncio.sleep(1)
            proxy.mode = Mode.PASS
            await waiting

    assert await asyncio.to_thread(stored, hub, "silent") == ["1", "2"]


async def test_sign_of_life_keeps_an_idle_stream_open(hub: RunningHub) -> None:
    before = hub.metric('ssehub_control_responses_total{status="200"}')
    async with stream_to(hub.control_port) as stream:
        await stream.emit(channel="life", user_id="*", data="1")
        await asyncio.sleep(1)
        await stream.emit(channel="life", user_id="*", data="2")

    assert hub.metric('ssehub_control_responses_total{status="200"}') == before + 2  # the pipe, and the metrics


def test_threads_share_a_stream(hub: RunningHub) -> None:
    def work(thread: int) -> None:
        for number in range(50):
            stream.send(channel="threads", user_id="*", data=f"{thread}-{number}")

    with Publisher(hub.control_url) as publisher, publisher.stream() as stream:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.flush()
        id = stream.emit(channel="threads", user_id="*", data="last")
        with pytest.raises(InvalidRequest):
            stream.emit(channel="threads", user_id="*", data="x", retry=-1)

    found = stored(hub, "threads")
    assert len(found) == 201 and found[-1] == "last" and "-" in id
    for one in range(4):
        assert [data for data in found if data.startswith(f"{one}-")] == [f"{one}-{number}" for number in range(50)]


@pytest.mark.parametrize(
    "body",
    [b'{"ids":["1"]}\n', b"[]\n", b"<html>\n", b'{"id": "1"}\n{"id": "2"}\n', b"x" * 2**21],
    ids=["batch", "list", "text", "too-many", "endless"],
)
async def test_answer_of_something_that_is_not_a_hub_is_named(body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"data"')
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        with pytest.raises(Unavailable, match="not a hub with pipes"):
            async with stream_to(server.sockets[0].getsockname()[1]) as stream:
                await stream.emit(channel="chat", user_id="*", data="1")
                await stream.emit(channel="chat", user_id="*", data="2")


async def test_stream_through_a_proxy_that_buffers_is_sent_in_short_requests(
    hub: RunningHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with buffering_nginx(tmp_path, hub.control_port) as port:
        async with stream_to(port, patience=QUICK._replace(answer_seconds=5.0)) as stream:
            await stream.emit(channel="buffered", user_id="*", data="0")
            for number in range(1, 2_000):
                await stream.send(channel="buffered", user_id="*", data=str(number))
            await stream.flush()
            with pytest.raises(InvalidRequest):
                await stream.emit(channel="", user_id="*", data="x")

    assert await asyncio.to_thread(stored, hub, "buffered") == [str(number) for number in range(2_000)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "proxy_request_buffering off" in warnings[0] and len(warnings) <= 2
