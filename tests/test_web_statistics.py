"""`GET /statistics`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import pytest

from control_requests import control_app
from ssehub.fanout.statistics import Statistics
from ssehub.web.board import Answers
from ssehub.web.statistics import total

pytestmark = pytest.mark.anyio


class SomeWorkers:
    """A board on which workers 0 and 2 answer, and 1 does not."""

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        assert question == "statistics"
        workers = {"0": Statistics(subscribers=2), "2": Statistics(subscribers=3)}
        return Answers({name: [dataclasses.asdict(one)] for name, one in workers.items()}, ["1"])


async def test_statistics_of_a_hub_that_is_alone() -> None:
    async with control_app() as app:
        answer = (await app.http.get("/statistics")).json()

    assert answer["missing"] == []
    assert list(answer["workers"]) == ["0"]
    assert answer["workers"]["0"]["subscribers"] == answer["total"]["subscribers"] == 2
    assert answer["workers"]["0"]["refusedTokens"]["signature"] == 0
    assert answer["node"]["pid"] == os.getpid() and answer["nodes"] == []


async def test_worker_that_does_not_answer_is_named_beside_the_numbers_of_the_others() -> None:
    async with control_app(board=SomeWorkers()) as app:
        answer = (await app.http.get("/statistics/")).json()
        metrics = await app.metrics()

    assert answer["missing"] == ["1"]
    assert list(answer["workers"]) == ["0", "2"]
    assert answer["total"]["subscribers"] == 5
    assert '\nssehub_subscribers{worker="2"} 3.0\n' in metrics


async def test_the_only_worker_that_answers_keeps_its_label() -> None:
    class Alone(SomeWorkers):
        async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
            return Answers({"0": [dataclasses.asdict(Statistics())]}, ["1"])

    async with control_app(board=Alone()) as app:
        assert '\nssehub_subscribers{worker="0"} 0.0\n' in await app.metrics()


def test_sums_over_no_worker_have_the_form_of_all_sums() -> None:
    assert total([]) == total([Statistics()])


async def test_query_is_refused() -> None:
    async with control_app() as app:
        answer = await app.http.get("/statistics?worker=1")

    assert (answer.status_code, answer.text) == (400, "the query is not used: leave it out\n")


def test_totals_are_sums_of_numbers_of_counts_by_reason_and_of_histograms() -> None:
    first, second = Statistics(delivered=1, delivery_seconds=0.5), Statistics(delivered=2, delivery_seconds=1.0)
    first.endings["slow"], second.endings["slow"] = 3, 4
    first.control_requests, second.control_requests = (
        {"shop": {"read": 1}},
        {"shop": {"read": 2}, "blog": {"publish": 5}},
    )
    first.refused_connections["client"]["full"], second.refused_connections["client"]["full"] = 5, 6
    first.count_deliveries(0.002, 2)
    second.count_deliveries(0.002, 3)

    sums = total([first, second])

    assert sums["delivered"] == 3
    assert sums["endings"]["slow"] == 7
    assert sums["endings"]["expired"] == 0
    assert sums["controlRequests"] == {"shop": {"read": 3}, "blog": {"publish": 5}}
    assert sums["refusedConnections"]["client"]["full"] == 11
    assert sums["deliveryCounts"][:3] == [0, 5, 0]


def test_total_of_limits_is_their_sum_unless_one_worker_has_none() -> None:
    assert total([Statistics(subscribers_max=10), Statistics(subscribers_max=20)])["subscribersMax"] == 30
    assert total([Statistics(subscribers_max=10), Statistics()])["subscribersMax"] is None


def test_what_workers_share_has_no_total() -> None:
    sums = total([Statistics(), Statistics()])

    assert not sums.keys() & {"runs", "revocations", "historyEvents", "brokerReady", "loopLagSeconds", "channels"}
    assert all(f"{name}Max" in sums for name in ("subscribers", "backlogBytes", "waitingBytes"))
