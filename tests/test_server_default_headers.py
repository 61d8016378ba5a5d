"""The headers that every response has: the date of the second in which it was sent, and those of uvicorn's settings."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import pytest

from conftest import RunningHub
from ssehub.server.default_headers import DefaultHeaders
from streams import RawStream, get, listen


def test_date_is_that_of_the_second_also_after_the_clock_was_set_back() -> None:
    times = [1_750_000_000.0, 1_750_000_000.9, 1_750_000_001.0, 1_749_996_400.0]
    headers = DefaultHeaders([], has_date=True, now=iter(times).__next__)

    assert [headers.lines() for _ in times] == [
        b"date: Sun, 15 Jun 2025 15:06:40 GMT\r\n",
        b"date: Sun, 15 Jun 2025 15:06:40 GMT\r\n",
        b"date: Sun, 15 Jun 2025 15:06:41 GMT\r\n",
        b"date: Sun, 15 Jun 2025 14:06:40 GMT\r\n",
    ]


@pytest.mark.parametrize(("has_date", "date"), [(True, b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"), (False, b"")])
def test_other_headers_follow_the_date_if_there_is_one(has_date: bool, date: bytes) -> None:
    headers = DefaultHeaders([(b"server", b"uvicorn"), (b"x-a", b"1")], has_date=has_date, now=lambda: 0.5)

    assert headers.lines() == headers.lines() == date + b"server: uvicorn\r\nx-a: 1\r\n"


def test_every_response_has_the_date_after_a_time_in_which_nothing_happened(hub: RunningHub) -> None:
    time.sleep(1.1)
    stream = listen(hub.port, hub.token())
    answered = RawStream(hub.control_port, get("/healthz"))
    refused = RawStream(hub.control_port, "GET / HTTP/1.1\r\n\r\n")  # without a Host, and so before the app
    for one in (stream, answered, refused):
        one.read_until(b"\r\n\r\n")
        one.close()

    assert [one.bytes[9:12] for one in (stream, answered, refused)] == [b"200", b"200", b"400"]
    for one in (stream, answered, refused):
        (date,) = re.findall(rb"\r\ndate: (.+)\r\n", one.bytes)
        assert abs(parsedate_to_datetime(date.decode()).timestamp() - time.time()) < 3
