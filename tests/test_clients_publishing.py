"""What HTTP clients publish arrives exactly: a few of those in docs/clients.md, or all."""

from __future__ import annotations

import os
import sys

import pytest

from clients import publishing
from clients.publishing import Publisher, Recorder, publish
from conftest import RunningHub, report, require
from streams import RawStream

SOAK = "SOAK" in os.environ
FEW = ("curl --http2, `--data-urlencode`", "curl --http2, JSON", "curl --http2, `--form 'data=@FILE'`")
CHOSEN = [publisher for publisher in publishing.PUBLISHERS if SOAK or publisher.name in FEW]


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    publishing.install(CHOSEN)


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("publisher", CHOSEN, ids=lambda publisher: publisher.name)
def test_everything_that_a_client_publishes_arrives_exactly(hub: RunningHub, publisher: Publisher) -> None:
    missing = publisher.missing()
    if SOAK and missing:
        report(f"{publisher.name}: skipped, {missing} is missing")
        return
    require(not missing, missing or "")

    outcome = publish(hub, publisher)

    assert outcome.text == "all exact", outcome.details
    assert ("`Upgrade: h2c`" in outcome.sends) == publisher.asks_for_http2


def test_few_are_among_the_publishers() -> None:
    assert set(FEW) <= {publisher.name for publisher in publishing.PUBLISHERS}


def test_latest_results_are_fine() -> None:
    assert publishing.problems() == []


def test_recorder_shows_what_was_sent(hub: RunningHub) -> None:
    recorder = Recorder(hub.control_port)

    request = "POST /emit/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/x; y\r\nContent-Length: 0\r\n\r\n"
    client = RawStream(int(recorder.url.rpartition(":")[2]), request)
    client.read_until(b"HTTP/1.1 400")
    client.close()
    recorder.close()

    assert recorder.sent("content-type") == ["text/x"]
    assert recorder.sent("upgrade") == []


def test_altered_texts_are_reported(hub: RunningHub) -> None:
    code = """
import sys, httpx
from pathlib import Path
url, _, channel, kind, *files = sys.argv[1:]
print(httpx.post(f"{url}/token/", data={"userId": "alex", "channel": channel}).text)
for file in files:
    fields = {"userId": "*", "channel": channel, "event": kind, "data": Path(file).read_bytes().decode().strip(" ")}
    httpx.post(f"{url}/emit/", data=fields).raise_for_status()
"""
    stripping = Publisher("a program", "form", "that strips", (sys.executable, "-c", code), (), ())

    outcome = publish(hub, stripping)

    assert outcome.text == "1 altered, 0 missing"
    assert outcome.sends == "application/x-www-form-urlencoded"
