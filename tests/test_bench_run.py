"""The load test against a hub of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from commands import run, run_bench
from conftest import RunningHub
from ssehub.bench.run import busy_share


@pytest.fixture(scope="module")
def running() -> Iterator[RunningHub]:
    hub = RunningHub()
    yield hub
    hub.stop()


def test_wrong_secret_is_one_sentence(running: RunningHub) -> None:
    secret = "another secret that has 32 bytes or more"

    result = run_bench(running.url, "--secret", secret, control_url=running.control_url)

    assert result.returncode == 1
    assert result.stderr == "ssehub: connecting: 3 of 3 subscribers failed: 401 Unauthorized\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--users", "4", "--channels", "2", "--subscribers", "20", "--events", "300"),
        ("--publishers", "3", "--batch", "7", "--events", "100", "--processes", "2"),
        ("--rate", "200", "--events", "100", "--size", "2000"),
        ("--body", "form"),
        ("--events", "0"),
    ],
    ids=lambda arguments: " ".join(arguments) or "defaults",
)
def test_hub_loses_nothing(running: RunningHub, arguments: tuple[str, ...]) -> None:
    pid = str(running.process.pid)

    result = run_bench(running.url, "--server-pid", pid, *arguments, control_url=running.control_url)

    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["delivered"] == report["expected"]
    assert report["bytes_per_subscriber"] is not None
    if report["expected"]:
        assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"] < 10_000


def test_without_subscribers_publishing_may_take_longer_than_the_patience(running: RunningHub) -> None:
    server = ("--server-pid", str(running.process.pid))
    plan = ("--subscribers", "0", "--events", "5000", "--patience", "0.5")

    result = run_bench(running.url, *server, *plan, control_url=running.control_url)

    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["delivered"] == report["expected"] == 0
    assert report["seconds"] > 0.45 and report["events_per_cpu_second"] > 0


def test_report_is_a_table_by_default(running: RunningHub) -> None:
    addresses = ("--url", running.url, "--control-url", running.control_url)

    result = run("bench", *addresses, "--subscribers", "2", "--events", "10")

    assert result.returncode == 0
    assert re.search(r"^delivered +20 of 20 in ", result.stdout, re.MULTILINE)
    assert re.search(r"^faults +none$", result.stdout, re.MULTILINE)


def test_without_events_the_own_share_is_that_of_connecting(running: RunningHub) -> None:
    plan = ("--subscribers", "400", "--events", "0")

    result = run_bench(running.url, *plan, control_url=running.control_url)

    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["own_cpu_share"] > 0


def test_load_is_busy_if_all_its_processes_together_fill_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})

    assert busy_share([0.5, 0.45], 1.0) == pytest.approx(0.95)
    assert busy_share([0.1, 0.6], 2.0) == pytest.approx(0.35)
