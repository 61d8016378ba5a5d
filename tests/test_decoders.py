"""Independent clients (httpx-sse, npm eventsource) decode what the hub sends, without any loss."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import islice

import httpx
import pytest
from httpx_sse import connect_sse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import RunningHub, require
from node import LISTEN, NODE, NODE_MODULES

pieces = [
    "\r",
    "\n",
    "\r\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\0",
    "\ufeff",
    "data: ",
    ":",
    " ",
    "🦜",
    "é",
    "x",
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.lists(st.sampled_from(pieces)).map("".join)
batches = st.lists(texts, min_size=1, max_size=20)
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normalized(text: str) -> str:
    """Return `text` as a stream can carry it: every line end becomes LF (HTML standard, 9.2.6)."""
    return re.sub(r"\r\n|\r", "\n", text)


def publish(hub: RunningHub, batch: list[str]) -> list[str]:
    events = [{"userId": "*", "channel": "chat", "data": data} for data in batch]
    response = httpx.post(f"{hub.control_url}/emit/", json=events)
    return list(response.raise_for_status().json()["ids"])


@quick
@given(batch=batches)
def test_httpx_sse_reads_what_was_published(hub: RunningHub, batch: list[str]) -> None:
    with httpx.Client() as client, connect_sse(client, "GET", f"{hub.url}/events/?token={hub.token()}") as source:
        ids = publish(hub, batch)
        events = (event for event in source.iter_sse() if event.id in ids)
        shown = [(event.id, event.data) for event in islice(events, len(batch))]

    assert shown == list(zip(ids, map(normalized, batch), strict=True))


@pytest.mark.e2e
def test_npm_eventsource_reads_what_was_published(hub: RunningHub) -> None:
    require(NODE.exists() and (NODE_MODULES / "eventsource").exists(), "node with the npm package eventsource")
    sent: list[str] = []

    @settings(max_examples=60, database=None, derandomize=True)
    @given(batch=batches)
    def collect(batch: list[str]) -> None:
        sent.extend(batch)

    collect()
    command = [str(NODE), str(LISTEN), f"{hub.url}/events/?token={hub.token()}", str(len(sent))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8") as node:
        assert node.stdout and node.stderr
        assert node.stderr.readline() == "open\n"
        ids = publish(hub, sent)
        output, errors = node.communicate(timeout=30)

    assert errors == ""
    shown = [json.loads(line) for line in output.split("\n") if line]
    assert [(event["lastEventId"], event["data"]) for event in shown] == list(
        zip(ids, map(normalized, sent), strict=True)
    )
