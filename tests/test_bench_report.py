"""The figures of the load test: latencies, the messages of its workers, the server's resources, the report."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from ssehub.bench import Report, table
from ssehub.bench.latencies import Latencies
from ssehub.bench.messages import Order, Tally, total_of
from ssehub.bench.resources import ServerProcesses


def test_latencies_are_at_most_a_thirty_second_too_low() -> None:
    latencies = Latencies()
    for value in range(1, 100_001):
        latencies.add(value * 1_000)

    for share, exact in ((0.5, 50.0), (0.9, 90.0), (0.999, 99.9), (1.0, 100.0)):
        assert exact * 31 / 32 <= latencies.milliseconds(share) <= exact


def test_latency_of_an_event_before_its_time_counts_as_zero() -> None:
    latencies = Latencies()

    latencies.add(-1_000_000)

    assert latencies.milliseconds(1.0) == 0


def test_messages_survive_their_way_between_processes() -> None:
    order = Order("http://127.0.0.1:8000", ["a", "b"], 5)
    tally = Tally(events=3, finished_at=1.5, refused={"401 Unauthorized": 2}, latencies={40: 3})

    assert Order.from_line(order.to_line()) == order
    assert Tally.from_line(tally.to_line()) == tally


def test_total_is_the_sum_of_all_workers() -> None:
    one = Tally(opened=1, events=3, finished_at=1.5, refused={"a": 2}, latencies={40: 3})
    other = Tally(opened=2, events=4, finished_at=1.2, refused={"a": 1, "b": 1}, latencies={40: 1, 41: 3})

    total = total_of([one, other])

    assert (total.opened, total.events, total.finished_at) == (3, 7, 1.5)
    assert (total.refused, total.latencies) == ({"a": 3, "b": 1}, {40: 4, 41: 3})
    assert total_of([]) == Tally()


def test_usage_includes_child_processes() -> None:
    code = "data = bytearray(50_000_000); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()

        usage = ServerProcesses(os.getpid()).usage()

        this = psutil.Process()
        processes = [this, *this.children(recursive=True)]
        memory = sum(process.memory_info().rss for process in processes)
        cpu = sum(process.cpu_times().user + process.cpu_times().system for process in processes)
        child.communicate(b"\n")
    assert len(processes) >= 2
    assert usage.memory_bytes == pytest.approx(memory, rel=0.1)
    assert usage.cpu_seconds == pytest.approx(cpu, abs=0.2)


def test_unknown_server_uses_nothing() -> None:
    usage = ServerProcesses(None).usage()

    assert (usage.cpu_seconds, usage.memory_bytes) == (0, 0)


GOOD = Report(subscribers=2, expected=20, delivered=20, seconds=0.5, deliveries_per_second=40.0)


def test_table_has_the_servers_figures_if_they_are_known() -> None:
    labels = [label for label, _ in table(GOOD)]
    more = [label for label, _ in table(replace(GOOD, bytes_per_subscriber=7_000.0))]

    assert "server bytes per subscriber" not in labels
    assert "server bytes per subscriber" in more


def test_table_says_what_went_wrong() -> None:
    lossy = dict(table(replace(GOOD, lost=3, gaps=3)))
    failed = dict(table(replace(GOOD, problem="publishing: no progress", lost=3)))

    assert lossy["faults"] == "3 lost, 3 gaps, 0 duplicates, 0 reordered"
    assert (failed["faults"], failed[""]) == (
        "publishing: no progress",
        "3 lost, 0 gaps, 0 duplicates, 0 reordered",
    )


def test_table_says_if_the_load_test_was_the_bottleneck() -> None:
    idle, busy = dict(table(replace(GOOD, own_cpu_share=0.69))), dict(table(replace(GOOD, own_cpu_share=0.71)))

    assert idle["own CPU share"] == "69%"
    assert busy["own CPU share"] == "71%: the load test is the bottleneck, try more --processes"
