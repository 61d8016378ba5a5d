"""Waits: on which channels publishers wait, for whom, and for whom not again."""

from __future__ import annotations

from typing import Any

import pytest

from builders import subscriber
from fakes import FakeSink
from ssehub.fanout import waits
from ssehub.fanout.backlogs import Backlogs
from ssehub.fanout.index import Index
from ssehub.fanout.subscriber import Subscriber
from ssehub.fanout.waits import MAX_EXCLUDED, NOT_AGAIN_SECONDS, READING_SECONDS
from ssehub.settings import Backpressure

GRACE = 5.0


class Crowd:
    """Streams in an index, some of which lag. Their clients have read something at second 0."""

    def __init__(self) -> None:
        self.index = Index()
        bounds = Backpressure(max_backlog_bytes=100, max_total_backlog_bytes=10**6, grace_seconds=GRACE)
        self.backlogs = Backlogs(bounds, 10**6, self.index)

    def add(
        self, user: str, *channels: str, patterns: tuple[str, ...] = (), lags: bool = True, reads: bool = True
    ) -> Subscriber:
        one = subscriber(user, *channels, patterns=patterns, sink=FakeSink(reads=False))
        self.index.add(one)
        if lags:
            self.lag(one, reads=reads)
        return one

    def lag(self, one: Subscriber, *, since: float = 0.0, reads: bool = True) -> None:
        assert isinstance(one.sink, FakeSink)
        one.sink.backlog, one.sink.is_paused = 500, True
        self.backlogs.pause(one, since)
        self.backlogs.is_over(one, 0)
        self.backlogs.start_lag(one, since)
        if reads:
            one.sink.read(50)

    def end(self, one: Subscriber) -> None:
        self.index.remove(one)
        self.backlogs.remove(one)

    def waits(self, channel: str = "chat", now: float = 0.0) -> bool:
        return self.backlogs.waits.must_wait(channel, now)


@pytest.mark.parametrize(
    ("lagging", "keeping_up", "expected"),
    [
        pytest.param({"alex": 1}, {}, True, id="only-one"),
        pytest.param({"alex": 1}, {"kim": 1}, False, id="as-many-keep-up"),
        pytest.param({"alex": 1, "kim": 1}, {"lee": 1}, True, id="more-lag"),
        pytest.param({"alex": 15}, {"kim": 1}, False, id="15-streams-are-one-user"),
        pytest.param({"alex": 15}, {"kim": 10}, False, id="15-streams-of-one-against-10-of-one"),
        pytest.param({"alex": 15}, {"alex": 10}, True, id="most-streams-of-the-only-user"),
        pytest.param({"alex": 10}, {"alex": 15}, False, id="a-few-streams-of-the-only-user"),
        pytest.param({"alex": 1, "kim": 1}, {"kim": 1, "lee": 1}, False, id="user-that-keeps-up-on-another-stream"),
    ],
)
def test_publishers_wait_if_more_users_lag_and_read_than_keep_up(
    lagging: dict[str, int], keeping_up: dict[str, int], expected: bool
) -> None:
    crowd = Crowd()
    for users, lags in ((lagging, True), (keeping_up, False)):
        for user, count in users.items():
            for _ in range(count):
                crowd.add(user, lags=lags)

    assert crowd.waits() is expected


def test_other_channels_do_not_wait() -> None:
    crowd = Crowd()
    crowd.add("alex", "busy")
    crowd.add("kim", "calm", lags=False)

    assert crowd.waits("busy")
    assert not crowd.waits("calm") and not crowd.waits("empty")


def test_subscriber_of_several_channels_counts_on_each() -> None:
    crowd = Crowd()
    crowd.add("alex", "busy", "calm")
    crowd.add("kim", "calm", lags=False)

    assert crowd.waits("busy") and not crowd.waits("calm")


def test_slow_stream_with_a_pattern_is_waited_for_only_where_few_others_keep_up() -> None:
    crowd = Crowd()
    crowd.add("alex", patterns=("orders.*",))
    for channel, count in (("orders.1", 1), ("orders.2", 3)):
        for number in range(count):
            crowd.add(f"user-{number}", channel, lags=False)

    waits = {channel: crowd.waits(channel) for channel in ("orders.1", "orders.2", "orders.3", "order", "chat")}

    assert waits == {"orders.1": False, "orders.2": False, "orders.3": True, "order": False, "chat": False}


def test_streams_with_patterns_that_keep_up_count_as_subscribers_of_the_channel() -> None:
    crowd = Crowd()
    crowd.add("alex", "orders.1")
    assert crowd.waits("orders.1")

    crowd.add("kim", patterns=("ord*",), lags=False)

    assert not crowd.waits("orders.1", now=0.1)


@pytest.mark.parametrize(
    ("lagging", "keeping_up", "expected"),
    [
        pytest.param([("alex", "orders.1", "o*", "orders.*")], [], True, id="one-stream-by-three-topics"),
        pytest.param([("alex", "orders.1", "o*")], [("kim", "o*", "orders.*")], False, id="each-counts-once"),
        pytest.param(
            [("alex", "orders.1"), ("kim", "o*")], [("lee", "o*", "orders.1")], True, id="more-lag-by-different-topics"
        ),
        pytest.param([("alex", "o*")], [("alex", "orders.1"), ("kim", "x")], False, id="same-user-by-another-topic"),
        pytest.param([("alex", "o*"), ("alex", "orders.*")], [("alex", "orders.1")], True, id="most-of-the-only-user"),
    ],
)
def test_stream_counts_once_on_a_channel_that_it_hears_in_several_ways(
    lagging: list[tuple[str, ...]], keeping_up: list[tuple[str, ...]], expected: bool
) -> None:
    crowd = Crowd()
    for streams, lags in ((lagging, True), (keeping_up, False)):
        for user, *names in streams:
            patterns = tuple(name for name in names if name.endswith("*"))
            crowd.add(user, *(name for name in names if name not in patterns), patterns=patterns, lags=lags)

    assert crowd.waits("orders.1") is expected


def test_decisions_are_remembered_of_a_bounded_number_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "MAX_DECISIONS", 10)
    crowd = Crowd()
    one = crowd.add("alex", patterns=("orders.*",))

    for number in range(100):
        assert crowd.waits(f"orders.{number}")
    remembered = len(crowd.backlogs.waits._decisions)
    crowd.backlogs.end_lag(one)

    assert 0 < remembered <= 10
    assert not crowd.backlogs.waits._decisions and not crowd.backlogs.waits._by_topic


@pytest.mark.parametrize("reads", [True, False])
def test_client_that_reads_nothing_is_not_waited_for(reads: bool) -> None:
    crowd = Crowd()
    crowd.add("alex", reads=reads)

    assert crowd.waits() is reads


def test_client_counts_as_reading_for_a_second() -> None:
    crowd = Crowd()
    crowd.add("alex")

    waits = [crowd.waits(now=now) for now in (0.0, READING_SECONDS, READING_SECONDS + 0.1)]

    assert waits == [True, True, False]


def test_decision_holds_for_some_milliseconds_unless_nobody_lags() -> None:
    crowd = Crowd()
    one, other = crowd.add("alex"), crowd.add("kim", lags=False)
    first = crowd.waits()
    crowd.lag(other)

    assert (first, crowd.waits(now=0.001), crowd.waits(now=0.1)) == (False, False, True)
    for each in (one, other):
        crowd.backlogs.end_lag(each)
    assert not crowd.waits(now=0.1) and not crowd.backlogs.waits.laggards


def leave(crowd: Crowd, one: Subscriber) -> None:
    crowd.end(one)


def catch_up(crowd: Crowd, one: Subscriber) -> None:
    crowd.backlogs.end_lag(one)


@pytest.mark.parametrize(
    ("act", "was_waited_for", "again"),
    [
        pytest.param(leave, True, False, id="ended-while-it-was-waited-for"),
        pytest.param(leave, False, True, id="ended-without-having-been-waited-for"),
        pytest.param(catch_up, True, True, id="has-read-its-backlog-in-time"),
    ],
)
def test_user_that_was_waited_for_in_vain_is_not_waited_for_again_on_any_stream(
    act: Any, was_waited_for: bool, again: bool
) -> None:
    crowd = Crowd()
    one = crowd.add("alex", reads=was_waited_for)
    crowd.waits()

    act(crowd, one)
    crowd.add("alex", lags=False)
    for _ in range(3):
        crowd.lag(crowd.add("alex", lags=False), since=10.0)

    assert crowd.waits(now=10.0) is again


def test_user_may_be_waited_for_again_after_a_long_time() -> None:
    crowd = Crowd()
    one = crowd.add("alex")
    crowd.waits()
    crowd.end(one)

    again = []
    for now in (GRACE + NOT_AGAIN_SECONDS - 0.1, GRACE + NOT_AGAIN_SECONDS):
        one = crowd.add("alex", lags=False)
        crowd.lag(one, since=now)
        again.append(crowd.waits(now=now))
        crowd.backlogs.end_lag(one)
        crowd.index.remove(one)

    assert again == [False, True]


def test_number_of_users_that_are_remembered_is_bounded() -> None:
    crowd = Crowd()

    def wait_in_vain(user: str) -> None:
        one = crowd.add(user, user)
        assert crowd.waits(user)
        crowd.end(one)

    for number in range(MAX_EXCLUDED + 1):
        wait_in_vain(f"user-{number}")

    wait_in_vain("user-0")  # forgotten, so it is waited for
    crowd.add("user-2", "user-2")
    assert not crowd.waits("user-2")
