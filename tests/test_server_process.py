"""`ssehub serve`: how the process starts, drains and stops, whatever its clients do."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from conftest import CONTROL_KEY, ERROR_LINES, StartHub, report, wait_until
from readme import check_curl_lines
from ssehub.tokens import Tokens
from streams import LAST_CHUNK, NATIVE, RawStream, listen

pytest_plugins = ("redis_fixtures",)

SECRET = "MySuperPassword42"


def test_start_logs_where_it_listens_and_a_command_to_try(start_hub: StartHub) -> None:
    hub = start_hub("--secret", SECRET)

    assert "the secret is short and might be guessed: use 32 bytes or more" in hub.log
    assert f"listening for browsers on {hub.url}/events/" in hub.log
    assert f"listening for publishers on {hub.control_url}/" in hub.log
    assert "broker memory://" in hub.log
    assert f"try: curl -d 'userId=alex&channel=chat' {hub.control_url}/token/" in hub.log
    assert SECRET not in hub.log


def test_random_secret_is_announced_and_never_shown() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSEHUB_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ssehub", "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stderr is not None

        lines = [process.stderr.readline() for _ in range(3)]
        process.terminate()
        rest = process.stderr.read()

        assert process.wait(10) == 0
    assert "no secret is set: a random one is used" in lines[0]
    assert not re.search(r"[A-Za-z0-9_-]{40,}", "".join(lines) + rest)


@pytest.mark.parametrize("is_unix", [False, True], ids=["tcp", "unix"])
def test_first_curl_to_try_works_as_printed(is_unix: bool, tmp_path: Path, start_hub: StartHub) -> None:
    address = f"unix:{tmp_path}/control.sock" if is_unix else "127.0.0.1:0"
    hub = start_hub("--secret", SECRET, "--control-bind", address, "--control-key", CONTROL_KEY)
    wait_until(lambda: re.search(r"try: .*\n", hub.log))  # the line after the one that `start_hub` waits for
    command = re.search(r"try: (.*)", hub.log)
    assert command

    environment = {**os.environ, "KEY": CONTROL_KEY}
    printed = subprocess.run(["bash", "-c", command[1]], capture_output=True, text=True, env=environment, timeout=20)

    assert Tokens(SECRET).verify(printed.stdout).user_id == "alex", printed


def test_curl_lines_of_the_readme_work_as_printed(start_hub: StartHub) -> None:
    check_curl_lines(start_hub())


def test_control_app_on_every_interface_runs_with_a_key(start_hub: StartHub) -> None:
    hub = start_hub("--control-bind", ":0", "--control-key", CONTROL_KEY)

    answer = httpx.post(f"{hub.control_url}/token/", data={"userId": "a", "channel": "b"})

    assert answer.status_code == 401


SERVERS_THAT_FAIL = """
import asyncio
import uvicorn
from ssehub.cli import main

start = uvicorn.Server.startup

async def startup(self, sockets=None):
    await start(self, sockets)
    await asyncio.sleep(1)
    raise TimeoutError

uvicorn.Server.startup = startup
main()
"""


def test_f8_server_that_fails_stops_the_hub_with_a_log_line_and_exit_code_1(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "1", code=SERVERS_THAT_FAIL)

    assert hub.wait() == 1
    assert "a server ended by itself, so the process stops: TimeoutError()" in hub.log
    assert "Traceback" not in hub.log


@pytest.mark.alone
@pytest.mark.parametrize(("count", "window"), [(200, 3), (99, 2)])
def test_f1_sigterm_drains_every_stream_and_exits_0(count: int, window: int, start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", str(window))
    token = hub.token()
    streams = [listen(hub.port, token, *(NATIVE if number % 2 else ())) for number in range(count)]
    hub.emit(data="last")
    began = time.monotonic()

    hub.signal()
    wait_until(lambda: "draining" in hub.log)
    not_ready = httpx.get(f"{hub.control_url}/readyz")
    newcomer = httpx.get(f"{hub.url}/events/", params={"token": token, "end": "clean"})
    for stream in streams:
        stream.read_to_end()

    assert hub.wait() == 0
    assert time.monotonic() - began < window + 2
    assert (not_ready.status_code, newcomer.status_code) == (503, 200)
    busy = re.fullmatch(r"event: stream-busy\ndata: {}\nretry: (\d+)\nid: \S+\n\n", newcomer.text)
    assert busy and 2_000 <= int(busy[1]) <= 7_000 + 1_000 * window + 10 * count
    for number, stream in enumerate(streams):
        assert [event.event for event in stream.events] == ["message", "stream-drain"]
        assert stream.bytes.endswith(LAST_CHUNK) is bool(number % 2)
        retry = stream.events[-1].retry
        assert retry is not None and 2_000 <= retry <= 2_000 + 1_000 * window + 10 * count
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.alone
def test_f2_sigterm_with_clients_that_never_read_exits_in_time(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "1.5")
    token = hub.token()
    stuck = [listen(hub.port, token, receive_buffer=4096) for _ in range(5)]
    for _ in range(4):
        hub.emit(data="x" * 200_000)
    began = time.monotonic()

    hub.signal()

    assert hub.wait() == 0
    assert time.monotonic() - began < 3.5
    assert not ERROR_LINES.search(hub.log)
    for stream in stuck:
        stream.close()


@pytest.mark.alone
def test_f3_second_signal_stops_at_once(start_hub: StartHub) -> None:
    hub = start_hub("--drain-seconds", "30")
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(100)]
    hub.signal(signal.SIGINT)
    wait_until(lambda: "draining" in hub.log)
    began = time.monotonic()

    hub.signal(signal.SIGINT)

    assert hub.wait() == 128 + signal.SIGINT
    assert time.monotonic() - began < 3
    for stream in streams:
        stream.close()


@pytest.mark.soak
@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis"])
def test_f4_every_event_answered_200_during_the_drain_is_delivered_or_stored(
    broker: str, tmp_path: Path, start_hub: StartHub, request: pytest.FixtureRequest
) -> None:
    log = f"sqlite:///{tmp_path}/events.db" if broker == "sqlite" else "memory://"
    if broker == "redis":
        log = request.getfixturevalue("valkey").url
    seconds, published = (10, 5_000) if "SOAK" in os.environ else (3, 100)
    hub = start_hub("--drain-seconds", str(seconds), "--broker", log)
    streams = [listen(hub.port, hub.token()) for _ in range(10)]
    with ThreadPoolExecutor(14) as threads:
        reading = [threads.submit(stream.read_to_end, 30) for stream in streams]
        publishing = [threads.submit(publish_until_it_stops, hub.control_url, name) for name in "abcd"]
        wait_until(lambda: hub.metric("ssehub_events_published_total") > published, 30)

        hub.signal()

        for ended in reading:
            ended.result()
        outcomes = [published.result() for published in publishing]
    answered = {data for outcome in outcomes for data in outcome.answered}
    report(f"{broker}: {len(answered)} events answered 200, {sum(len(one.refused) for one in outcomes)} refused")
    assert hub.wait() == 0
    assert {status for outcome in outcomes for status in outcome.refused} <= {503}
    if broker == "memory":
        assert all(outcome.refused for outcome in outcomes)
        for stream in streams:
            received = messages(stream)
            assert stream.events[-1].event == "stream-drain"
            assert len(received) == len(set(received)) and answered <= set(received)
        return
    restarted = start_hub("--broker", log)
    end = restarted.emit(data="end")
    for stream in streams:
        last_id = re.findall(rb"^id: (\S+)", stream.body, re.MULTILINE)[-1].decode()
        resumed = listen(restarted.port, restarted.token(), f"Last-Event-ID: {last_id}")
        resumed.read_until(end.encode(), 30)
        resumed.read_event("end")
        resumed.close()
        received = messages(stream) + messages(resumed)
        assert not any(event.event == "stream-reset" for event in resumed.events)
        assert len(received) == len(set(received)) and answered <= set(received)


class Outcome(NamedTuple):
    """What became of one publisher's events: the data of those answered 200, and the other statuses."""

    answered: list[str]
    refused: list[int]


def publish_until_it_stops(control_url: str, name: str) -> Outcome:
    """Publish one event after the other, until the hub no longer answers."""
    outcome = Outcome([], [])
    with httpx.Client(base_url=control_url, timeout=10) as http:
        for number in itertools.count():
            data = f"{name}{number}"
            try:
                answer = http.post("/emit/", json={"userId": "*", "channel": "chat", "data": data})
            except httpx.HTTPError:
                return outcome
            if answer.status_code == 200:
                outcome.answered.append(data)
            else:
                outcome.refused.append(answer.status_code)
    raise AssertionError("counting never ends")


def messages(stream: RawStream) -> list[str]:
    """Return the data of the published events that `stream` has received."""
    return [event.data for event in stream.events if event.data and not event.event.startswith("stream-")]


def test_f17_health_checks_see_that_the_hub_drains_before_the_ports_close(start_hub: StartHub) -> None:
    hub = start_hub()  # without streams, so that shutdown waits for nothing else
    checks = []

    with httpx.Client() as http:
        for _ in range(2):
            checks.append(http.get(f"{hub.control_url}/readyz").status_code)
            time.sleep(0.5)
        checks.append(http.get(f"{hub.control_url}/readyz").status_code)
        hub.signal()
        time.sleep(0.5)
        checks.append(http.get(f"{hub.control_url}/readyz").status_code)

    assert checks == [200, 200, 200, 503]
    assert hub.wait(5) == 0


def test_f17_shutdown_does_not_wait_for_health_checks_that_have_ended(start_hub: StartHub) -> None:
    hub = start_hub()
    for _ in range(2):
        httpx.get(f"{hub.control_url}/readyz")
        time.sleep(0.2)
    began = time.monotonic()

    hub.signal()

    assert hub.wait() == 0
    assert time.monotonic() - began < 5  # 0.6 on an idle machine; the window is 10


def test_f5_killed_hub_starts_again_on_the_same_port(start_hub: StartHub) -> None:
    first = start_hub()
    stream = listen(first.port, first.token())
    first.signal(signal.SIGKILL)
    first.wait()

    second = start_hub("--bind", f"127.0.0.1:{first.port}")
    stream.close()

    assert second.port == first.port


def test_f7_sighup_without_files_changes_nothing(start_hub: StartHub) -> None:
    hub = start_hub()

    hub.signal(signal.SIGHUP)

    wait_until(lambda: "SIGHUP: reading secrets, keys, certificates, log_level and log_format again" in hub.log)
    assert httpx.get(f"{hub.control_url}/healthz").text == "ok\n"
