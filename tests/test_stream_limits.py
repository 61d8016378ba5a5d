"""Limits on streams and publishes, with real clients: what each is told, that it is counted, and logged."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from apache import running_apache
from conftest import RunningHub, StartHub, require, wait_until
from control_requests import NDJSON, control_app, event_json, form
from node import NODE, NODE_MODULES, RECONNECT
from ssehub.settings import Limits
from streams import RawStream, get, listen


def busy(hub: RunningHub, token: str) -> int:
    """Open a stream that is refused; return after how many milliseconds the client is to come back."""
    answer = httpx.get(f"{hub.url}/events/", params={"token": token, "end": "clean"}, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = re.fullmatch(r"event: stream-busy\ndata: {}\nretry: (\d+)\nid: \S+\n\n", answer.text)
    assert found, answer.text
    return int(found[1])


@contextlib.contextmanager
def event_source(hub: RunningHub, token: str) -> Iterator[Callable[[], list[str]]]:
    """Listen with the npm package, as a browser does; yield a function that returns the data received so far."""
    require(NODE.exists() and (NODE_MODULES / "eventsource").exists(), "node with the npm package eventsource")
    with tempfile.NamedTemporaryFile("w") as output:
        command = [str(NODE), str(RECONNECT), f"{hub.url}/events/?token={token}"]
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
        try:
            yield lambda: [json.loads(line) for line in Path(output.name).read_text().split("\n")[:-1]]
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # `node` of the virtual environment starts the real one
            process.wait()


def test_a15_two_event_sources_of_one_user_do_not_replace_each_other_for_ever(start_hub: StartHub) -> None:
    hub = start_hub("--max-streams-per-user", "1", "--retry-milliseconds", "50")
    token = hub.token()
    with event_source(hub, token) as first:
        hub.wait_for("ssehub_subscribers", 1)
        with event_source(hub, token) as second:
            hub.wait_for('ssehub_endings_total{reason="replaced"}', 1)
            for number in range(20):
                hub.emit(data=f"{number}")
            wait_until(lambda: second() == [f"{number}" for number in range(20)])
            with pytest.raises(AssertionError):  # in 2 s it would have come back 40 times
                wait_until(lambda: hub.metric("ssehub_streams_total") > 2, 2)

            assert first() == []
            assert hub.metric("ssehub_subscribers") == 1
            assert hub.metric('ssehub_endings_total{reason="replaced"}') == 1


def test_a15_event_source_over_a_limit_comes_back_and_is_served_when_there_is_room(start_hub: StartHub) -> None:
    hub = start_hub("--max-streams-per-user", "1", "--user-limit-policy", "refuse")
    token = hub.token()
    stream = listen(hub.port, token)
    with event_source(hub, token) as received:
        hub.wait_for('ssehub_refused_total{reason="user"}', 1)
        stream.close()
        hub.wait_for("ssehub_subscribers", 0)
        hub.wait_for("ssehub_subscribers", 1, 20)
        hub.emit(data="served")
        wait_until(lambda: received() == ["served"])

    about = "user 'alex' is at max_streams_per_user (1); GET /events/, user 'alex', channels 'chat', from 127.0.0.1"
    wait_until(lambda: f"request refused, user: {about}" in hub.log)


@pytest.mark.parametrize(
    ("option", "reason", "most"),
    [
        ("--max-streams-per-user=3", "user", 3),
        ("--max-streams-per-address=3", "address", 3),
        ("--max-streams-per-channel=3", "channel", 3),
        ("--max-new-streams-per-second=0.05", "rate", 1),
        ("--max-new-streams-per-second-per-address=0.05", "address-rate", 1),
        ("--max-connections=3", "full", 3),
    ],
)
def test_a15_stream_over_a_limit_is_told_to_come_back(start_hub: StartHub, option: str, reason: str, most: int) -> None:
    hub = start_hub(option, "--user-limit-policy=refuse")
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(most)]

    began = time.monotonic()
    waits = [busy(hub, token) for _ in range(3)]
    elapsed = 1000 * (time.monotonic() - began)
    hub.emit(data="still here")

    # As many a second come back as may come; where the limit is one client's own, the others do not matter.
    turn = 20_000 if reason == "rate" else 2 if reason == "full" else 0
    for number, wait in enumerate(waits):
        assert 2_000 + max(0, number * turn - elapsed) <= wait <= 7_000 + number * turn
    assert hub.metric(f'ssehub_refused_total{{reason="{reason}"}}') == 3
    wait_until(lambda: hub.log.count(f"INFO ssehub.client: request refused, {reason}: ") == 3)
    for stream in streams:
        stream.read_event("still here")
        stream.close()
    hub.wait_for("ssehub_subscribers", 0)
    if "rate" not in reason:
        listen(hub.port, token).close()


def test_a15_requests_with_bad_tokens_do_not_use_up_the_rate_of_others(start_hub: StartHub) -> None:
    hub = start_hub("--max-new-streams-per-second=0.1", "--max-streams-per-user=1", "--user-limit-policy=refuse")
    for _ in range(50):
        assert httpx.get(f"{hub.url}/events/", params={"token": "x"}).status_code == 401

    listen(hub.port, hub.token()).close()


def test_refused_stream_leaves_the_connection_usable_for_its_answer(start_hub: StartHub) -> None:
    """Its sink has been made before the limit was noticed."""
    hub = start_hub("--max-streams-per-address=1")
    stream = listen(hub.port, hub.token())
    for version, header in (("1.1", "Connection: keep-alive"), ("1.0", "Accept: */*"), ("1.1", "Connection: close")):
        refused = RawStream(hub.port, get(f"/events/?token={hub.token()}", header, version=version))
        refused.read_to_end()
        assert re.fullmatch(rb"event: stream-busy\ndata: {}\nretry: \d+\nid: \S+\n\n", refused.body), refused.bytes
    stream.close()


def test_a15_clients_behind_apache_are_told_apart(start_hub: StartHub) -> None:
    """Apache appends to X-Forwarded-For what it sees: 127.0.0.2 or 3, whatever the client claims."""
    hub = start_hub("--max-streams-per-address=1", "--trusted-proxies=127.0.0.1")
    target = f"/api/sse/?token={hub.token()}"
    with running_apache(hub, {}) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        answers = []
        for address, forged in (("127.0.0.2", "1.1.1.1"), ("127.0.0.2", "2.2.2.2"), ("127.0.0.3", "127.0.0.2")):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, (address, 0)))
            sock.sendall(get(target, f"X-Forwarded-For: {forged}").encode())
            received = b""
            while b"stream-hello\n" not in received and b"stream-busy\n" not in received:
                part = sock.recv(4_000)
                assert part, received
                received += part
            answers.append(b"stream-busy" in received)
        wait_until(
            lambda: (
                "max_streams_per_address (1); GET /events/, user 'alex', channels 'chat', from 127.0.0.2\n" in hub.log
            )
        )

    assert answers == [False, True, False]


def test_a15_nobody_else_is_believed(start_hub: StartHub) -> None:
    hub = start_hub("--max-streams-per-address=1", "--trusted-proxies=10.0.0.0/8")
    stream = listen(hub.port, hub.token(), "X-Forwarded-For: 1.2.3.4")
    for header in ("X-Forwarded-For: 1.2.3.5", "Forwarded: for=1.2.3.6"):
        refused = RawStream(hub.port, get(f"/events/?token={hub.token()}", header))
        assert b"stream-busy" in refused.read_to_end()
    stream.close()


def test_bad_trusted_proxy_stops_the_start(start_hub: StartHub) -> None:
    with pytest.raises(AssertionError, match=r"ssehub: trusted_proxies 'localhost': .*expected an address, a network"):
        start_hub("--trusted-proxies=localhost")


@pytest.mark.anyio
async def test_publisher_over_its_rate_is_answered_429() -> None:
    async with control_app(limits=Limits(max_publishes_per_second=0.1)) as app:
        statuses = [(await app.post("/emit/", form())).status_code for _ in range(2)]
        over = await app.post("/emit/", event_json(), {"content-type": "application/json"})
        metrics = await app.metrics()

        assert statuses == [200, 429]
        assert over.status_code == 429 and 1 <= int(over.headers["retry-after"]) <= 10
        assert re.fullmatch(r"more events than max_publishes_per_second: try again in \d+\.\d s", over.json()["error"])
        assert 'ssehub_control_refused_total{reason="rate"} 2.0' in metrics
        assert await app.received() == ["x"]  # what was refused is not published
        assert (await app.post("/token/", form(exp="60"))).status_code != 429


@pytest.mark.anyio
async def test_batch_costs_as_much_as_it_has_events() -> None:
    async with control_app(limits=Limits(max_publishes_per_second=10)) as app:
        batch = "\n".join([event_json()] * 300)
        first = await app.post("/emit/", batch, NDJSON)
        second = await app.post("/emit/", form())

        assert first.status_code == 200
        assert second.status_code == 429 and 10 < int(second.headers["retry-after"]) <= 21


@pytest.mark.anyio
async def test_bad_event_costs_nothing() -> None:
    async with control_app(limits=Limits(max_publishes_per_second=0.1)) as app:
        for _ in range(5):
            assert (await app.post("/emit/", form(retry="-1"))).status_code == 400

        assert (await app.post("/emit/", form())).status_code == 200
