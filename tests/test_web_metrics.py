"""`GET /metrics`."""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_left

import httpx
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from control_requests import control_app, form
from fakes import FakeSink
from known_metrics import full_statistics, known_metrics
from ssehub import Claims
from ssehub.event import Event
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.statistics import DELIVERY_BOUNDS
from ssehub.hub import Hub
from ssehub.settings import Streams
from ssehub.tokens import Tokens
from ssehub.web.control import create_control_app
from ssehub.web.metrics import HubCollector
from ssehub.web.responses import counting_failures, counting_responses

pytestmark = pytest.mark.anyio


async def test_metrics_show_what_the_hub_has_done() -> None:
    async with control_app() as app:
        stopped = FakeSink(reads=False)
        app.hub.attach(Claims("sam", ("chat",), patterns=("orders.*",)), stopped)
        await app.post("/emit/", form(userId="*"))
        await app.hub.flush()
        await app.post("/emit/", form(userId="sam", data="y" * 70_000))
        await app.hub.flush()
        app.sink.lose()
        text = await app.metrics()
        written = 3 * len(app.sink.chunks[-1]) + len(stopped.chunks[-1])

        for line in (
            "ssehub_subscribers 2.0",
            "ssehub_channels 2.0",
            "ssehub_patterns 1.0",
            "ssehub_streams_total 3.0",
            "ssehub_events_published_total 2.0",
            "ssehub_events_delivered_total 4.0",
            f"ssehub_delivered_bytes_total {float(written)}",
            f"ssehub_backlog_bytes {float(stopped.backlog)}",
            "ssehub_lagging 0.0",
            'ssehub_endings_total{reason="disconnected"} 1.0',
            "ssehub_round_seconds_count 2.0",
            "ssehub_delivery_seconds_count 2.0",
            'ssehub_control_responses_total{status="200"} 2.0',
            "ssehub_history_events_max 10000.0",
        ):
            assert f"\n{line}\n" in text, line


async def test_metrics_show_the_lag_of_the_event_loop() -> None:
    async with control_app() as app:
        time.sleep(0.6)  # noqa: ASYNC251  # the lag to be shown
        await asyncio.sleep(0)
        text = await app.metrics()
        lag = re.search(r"^ssehub_loop_lag_seconds (\S+)$", text, re.MULTILINE)

        assert lag and 0.2 < float(lag[1]) < 5


def test_each_metric_appears_once_with_the_samples_of_all_workers() -> None:
    workers = {number: full_statistics() for number in ("1", "2")}
    workers["1"].subscribers, workers["2"].subscribers = 2, 3

    metrics = known_metrics(workers)

    assert len({metric.name for metric in metrics}) == len(metrics) > 10
    assert [(sample.labels, sample.value) for sample in metrics[0].samples] == [
        ({"worker": "1"}, 2),
        ({"worker": "2"}, 3),
    ]
    for metric in metrics:
        assert {sample.labels["worker"] for sample in metric.samples} == {"1", "2"}, metric.name


async def test_format_is_the_one_that_accept_asks_for() -> None:
    async with control_app() as app:
        plain = await app.http.get("/metrics")
        openmetrics = await app.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        families = {family.name for family in text_string_to_metric_families(openmetrics.text)}  # type: ignore[no-untyped-call]
        assert {"ssehub_subscribers", "ssehub_delivery_seconds", "process_cpu_seconds"} <= families


async def test_responses_of_the_control_app_are_counted_by_status() -> None:
    async with control_app() as app:
        await app.post("/emit/", form())
        await app.post("/emit/", form(typo="x"))
        await app.http.get("/nowhere")
        await app.http.get("/emit/")
        await app.http.get("/healthz")
        await app.post("/emit/", form(), {"origin": "https://evil.example"})
        text = await app.metrics()

        counted = dict(re.findall(r'^ssehub_control_responses_total{status="(\d+)"} (\S+)$', text, re.MULTILINE))
        assert counted == {"200": "2.0", "400": "1.0", "404": "1.0", "405": "1.0", "403": "1.0"}


async def test_response_to_a_request_that_fails_is_counted_as_500(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    app = create_control_app(hub, tokens=Tokens("a secret of 32 bytes, or rather more"))

    def fail() -> list[str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(hub, "not_ready", fail)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
        response = await http.get("/readyz")

    assert response.status_code == 500
    assert hub.statistics.control_responses == {"500": 1}


async def test_response_that_fails_after_its_head_is_counted_once() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("a bug")

    hub = Hub()
    app = Starlette(
        routes=[Mount("/", half)],
        middleware=[Middleware(counting_responses, hub=hub)],
        exception_handlers={Exception: counting_failures(hub)},
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
        await http.get("/")

    assert hub.statistics.control_responses == {"200": 1}


async def test_delivery_lasts_from_publishing_until_the_last_stream_has_been_written_to() -> None:
    class SlowSink(FakeSink):
        def write(self, chunk: Chunk) -> None:
            time.sleep(0.12)
            super().write(chunk)

    async with control_app() as app:
        app.hub.attach(Claims("sam", ("chat",)), SlowSink())
        await app.hub.publish_events([Event(("chat",), ("*",), data=data) for data in "12"])
        await app.hub.flush()
        counts, seconds = app.hub.statistics.delivery_counts, app.hub.statistics.delivery_seconds

        assert sum(counts) == 2
        assert sum(counts[: bisect_left(DELIVERY_BOUNDS, 0.12)]) == 0
        assert 0.24 <= seconds < 10


async def test_metrics_describe_the_process_and_the_build() -> None:
    async with control_app() as app:
        text = await app.metrics()

        values = dict(re.findall(r"^(process_\w+) (\S+)$", text, re.MULTILINE))
        assert abs(float(values["process_start_time_seconds"]) - psutil.Process().create_time()) < 2
        assert 0 < float(values["process_open_fds"]) < float(values["process_max_fds"])
        build = r'^ssehub_build_info{broker="MemoryBroker",python="3[\d.]+",version="[\d.]+"} 1.0$'
        assert re.search(build, text, re.MULTILINE)


async def test_limits_are_shown_beside_what_they_limit_unless_there_is_none() -> None:
    hub = Hub(streams=Streams(max_connections=7))

    assert hub.statistics.subscribers_max == 7
    assert Hub().statistics.subscribers_max is None
    samples = {metric.name: metric.samples for metric in HubCollector({"": Hub().statistics}).collect()}
    assert samples["ssehub_subscribers_max"] == []
    for name in samples:
        if name.endswith("_max"):
            assert name.removesuffix("_max") in samples
