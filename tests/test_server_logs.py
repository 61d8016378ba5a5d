"""The log on stderr: it blocks nothing, has one line per record, and shows no secret."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from conftest import SECRET, StartHub, free_port, wait_until
from ssehub.fanout import registry, subscriber
from ssehub.loglimit import BURST, LIMIT, LINES_PER_SECOND, LimitedLogger, limited_logger
from ssehub.server import refusals as server_refusals
from ssehub.server.logs import logging_to_stderr
from ssehub.web import refusals, stream
from streams import listen

FLOOD = 12_000 if "SOAK" in os.environ else 1_000
"""Refused requests, which take as many two-hundredths of a second."""


@pytest.mark.parametrize("format", ["text", "json"])
def test_f10_hub_goes_on_when_nobody_reads_its_stderr(format: str) -> None:
    port, control_port = free_port(), free_port()
    control_url = f"http://127.0.0.1:{control_port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "ssehub", f"--bind=127.0.0.1:{port}", f"--control-bind=127.0.0.1:{control_port}"],
        stderr=subprocess.PIPE,
        env={**os.environ, "SSEHUB_SECRET": SECRET, "SSEHUB_LOG_FORMAT": format},
    )
    with process:
        wait_until(lambda: is_healthy(control_url), 20)
        token = httpx.post(f"{control_url}/token/", data={"userId": "a" * 250, "channel": "c" * 250}).text

        for _ in range(500):  # a line of 600 bytes for the first 200 of them: more than the 64 KiB of a pipe
            listen(port, token).close()
        health = httpx.get(f"{control_url}/healthz").text
        process.terminate()

        assert health == "ok\n"
        assert process.wait(20) == 0


def test_f9_hub_goes_on_when_its_log_cannot_be_written() -> None:
    port, control_port = free_port(), free_port()
    control_url = f"http://127.0.0.1:{control_port}"
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "ssehub", f"--bind=127.0.0.1:{port}", f"--control-bind=127.0.0.1:{control_port}"],
            stdout=full,
            stderr=full,
            env={**os.environ, "SSEHUB_SECRET": SECRET},
        )
    with process:
        try:
            wait_until(lambda: is_healthy(control_url), 20)
            token = httpx.post(f"{control_url}/token/", data={"userId": "alex", "channel": "chat"}).text
            for number in range(20):
                stream = listen(port, token)
                event = {"userId": "*", "channel": "chat", "data": str(number)}
                httpx.post(f"{control_url}/emit/", json=event).raise_for_status()
                stream.read_event(f"{number}")
                stream.close()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@contextmanager
def without_handlers(logger: logging.Logger) -> Iterator[None]:
    """Take the handlers of pytest away, as where nobody has configured logging."""
    handlers, logger.handlers = logger.handlers, []
    try:
        yield
    finally:
        logger.handlers = handlers


def is_healthy(control_url: str) -> bool:
    try:
        return httpx.get(f"{control_url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False


def test_c16_names_cannot_break_a_log_line(start_hub: StartHub) -> None:
    hub = start_hub()
    user = "evil\x1b[31m\u2028\x85name"

    listen(hub.port, hub.token(user)).close()
    wait_until(lambda: "stream ended" in hub.log)

    line = next(line for line in hub.log.split("\n") if "stream ended" in line)
    assert "\x1b" not in hub.log and "\u2028" not in hub.log and "\x85" not in hub.log
    assert "evil" in line and line.endswith(" bytes, disconnected")


def test_c16_names_cannot_break_a_line_of_json(start_hub: StartHub) -> None:
    hub = start_hub("--log-format", "json")
    user = 'evil\x1b[31m\u2028\x85\x7f"name'

    listen(hub.port, hub.token(user)).close()
    wait_until(lambda: "stream ended" in hub.log)

    lines = [json.loads(line) for line in hub.log.encode().splitlines()]
    assert hub.log.isascii() and all(line.isprintable() for line in hub.log.split("\n"))
    ended = next(line for line in lines if line["message"].startswith("stream ended"))
    assert ended.keys() == {"time", "level", "logger", "message", "process"}
    assert f"user {user!r}, channels 'chat'" in ended["message"]


def test_line_of_json_has_its_time_its_worker_and_an_exception_as_one_string(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ssehub.test")
    with logging_to_stderr("info", "json", worker=2, name="ssehub"), without_handlers(logging.getLogger()):
        before = datetime.now(UTC)
        try:
            raise ValueError("\u2028 \udc80 \x1b[31m 😀\n")
        except ValueError:
            logger.exception("it failed: %s", "\ud83d alone", extra={"color_message": "hidden"})

    written = capfd.readouterr().err
    (line,) = written.encode().splitlines()
    fields = json.loads(line)
    assert written.isascii()
    assert fields.keys() == {"time", "level", "logger", "message", "process", "worker", "exception"}
    assert (fields["level"], fields["logger"], fields["worker"]) == ("ERROR", "ssehub.test", "2")
    assert fields["process"] == os.getpid() and fields["message"] == r"it failed: \ud83d alone"
    assert fields["exception"].startswith("Traceback") and fields["exception"].rstrip().endswith(
        "\u2028 \\udc80 \x1b[31m 😀"
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields["time"])
    assert abs(datetime.fromisoformat(fields["time"]) - before) < timedelta(seconds=10)


@pytest.mark.parametrize("format", ["text", "json"])
def test_line_that_cannot_be_formatted_is_replaced_and_raises_nothing(
    format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    class Opaque:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    logger = logging.getLogger("ssehub.test")
    with logging_to_stderr("info", format, name="ssehub"), without_handlers(logging.getLogger()):
        logger.info("the number %d", "one")
        logger.info("the thing %s", Opaque())
        logger.info("the next line")

    lines = capfd.readouterr().err.splitlines()
    assert "a line can't be formatted: 'the number %d': TypeError" in lines[0]
    assert "a line can't be formatted: 'the thing %s': RuntimeError" in lines[1]
    assert "the next line" in lines[2]


def test_c17_no_token_is_in_the_log(start_hub: StartHub) -> None:
    hub = start_hub("--log-level", "debug")
    token = hub.token()

    listen(hub.port, token).close()
    httpx.get(f"{hub.url}/events/", params={"token": f"{token}x"})
    wait_until(lambda: "stream ended" in hub.log and "token refused" in hub.log)

    assert token not in hub.log and SECRET not in hub.log


@pytest.mark.soak
def test_flood_of_refused_requests_fills_no_disk(start_hub: StartHub) -> None:
    """One client could write 25 GiB of log a day: a line for each of 4,000 bad requests a second."""
    hub = start_hub()
    token = hub.token()

    def written() -> int:
        return hub.log.count("INFO ssehub.http: connection refused, malformed: ")

    def left_out() -> int:
        summaries = re.findall(
            r"INFO ssehub.http: (\d+) more lines like this were left out in \d+ s: connection refused, malformed",
            hub.log,
        )
        return sum(map(int, summaries))

    began = time.monotonic()
    for _ in range(FLOOD):
        with socket.create_connection(("127.0.0.1", hub.port)) as sock:
            sock.sendall(b"nonsense\r\n\r\n")
            sock.recv(1000)
    seconds = time.monotonic() - began
    listen(hub.port, token).close()

    wait_until(lambda: "stream ended" in hub.log)  # the flood hides no line of another kind
    wait_until(lambda: written() + left_out() == FLOOD, 30)
    assert BURST <= written() <= BURST + LINES_PER_SECOND * (seconds + 1)


def test_hub_in_a_host_with_a_log_of_its_own_limits_its_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The limit is on the loggers, because a host has handlers of its own."""
    logger = limited_logger("ssehub.client")
    with caplog.at_level("INFO", "ssehub.client"):
        for number in range(1_000):
            logger.info("a line of this test: %d", number)
        LIMIT.summarize()

    summary = re.fullmatch(
        r"(\d+) more lines like this were left out in \d+ s: a line of this test: %d", caplog.messages[-1]
    )
    assert summary and int(summary[1]) == 1_000 - (len(caplog.messages) - 1)
    assert BURST <= len(caplog.messages) < 2 * BURST
    for module in (server_refusals, stream, registry, subscriber):
        assert isinstance(module.logger, LimitedLogger)
    assert all(isinstance(logger, LimitedLogger) for logger, _ in refusals.KINDS.values())


def test_limited_line_says_where_it_was_logged(caplog: pytest.LogCaptureFixture) -> None:
    limited_logger("ssehub.client").warning("a line of this test")

    assert (caplog.records[-1].filename, caplog.records[-1].funcName) == (
        "test_server_logs.py",
        "test_limited_line_says_where_it_was_logged",
    )


def test_log_lines_about_a_stream_say_where_it_comes_from_and_what_it_was_sent(start_hub: StartHub) -> None:
    hub = start_hub()
    with httpx.stream(
        "GET", f"{hub.url}/events/", params={"token": hub.token()}, headers={"User-Agent": "page/1.0"}
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        event = {"userId": "*", "channel": "chat", "data": "hello"}
        httpx.post(f"{hub.control_url}/emit/", json=event).raise_for_status()
        next(line for line in lines if line == "data: hello")
    wait_until(lambda: "stream ended" in hub.log)

    about = "user 'alex', channels 'chat', from 127.0.0.1, 'page/1.0'"
    assert f"stream opened: {about}\n" in hub.log
    assert re.search(rf"stream ended: {about}, \d+\.\d s, 1 events, \d\d bytes, disconnected\n", hub.log)


def test_requests_that_the_control_app_refuses_leave_a_line_with_the_address(start_hub: StartHub) -> None:
    hub = start_hub()

    assert httpx.post(f"{hub.control_url}/emit/", data={"chanel": "hidden"}).status_code == 400
    assert httpx.get(f"{hub.control_url}/emit/").status_code == 405
    assert httpx.post(f"{hub.control_url}/emit/", headers={"Origin": "https://evil.example"}).status_code == 403
    wait_until(lambda: "request refused, page" in hub.log)

    assert re.search(r"request refused, invalid: POST /emit/, from 127\.0\.0\.1, 'python-httpx/[\d.]+'\n", hub.log)
    assert "request refused, method: GET /emit/, from 127.0.0.1" in hub.log
    assert re.search(
        r"request refused, page: a web page of another origin .*; POST /emit/, from 127\.0\.0\.1, ", hub.log
    )
    assert "hidden" not in hub.log


def test_log_of_a_hub_inside_another_server_leaves_the_host_s_own_changes_as_they_are() -> None:
    requests = logging.getLogger("httpx")
    before = requests.level
    try:
        with logging_to_stderr("info", name="ssehub"):
            requests.setLevel(logging.ERROR)

        assert requests.level == logging.ERROR
    finally:
        requests.setLevel(before)
