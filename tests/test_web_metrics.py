"""`GET /metrics`."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from control_requests import control_app, form
from fakes import FakeSink
from ssehub import Claims
from ssehub.fanout.statistics import Statistics
from ssehub.web.metrics import HubCollector

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
    counts = {"orders": {"publish": 1}}
    workers = {
        str(number): Statistics(
            subscribers=number + 1, control_requests=counts, control_refused=counts, tls_not_after={"client": 2e9}
        )
        for number in (1, 2)
    }

    metrics = list(HubCollector(workers).collect())

    assert len({metric.name for metric in metrics}) == len(metrics) > 10
    assert [(sample.labels, sample.value) for sample in metrics[0].samples] == [
        ({"worker": "1"}, 2),
        ({"worker": "2"}, 3),
    ]
    for metric in metrics:
        assert {sample.labels["worker"] for sample in metric.samples} == {"1", "2"}, metric.name
