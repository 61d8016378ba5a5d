"""Patterns in the fan-out: who hears an event by a pattern, and what else goes by the channels of a subscriber."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import at, frame, subscriber
from conftest import until
from fakes import FakeSink
from hubs import engine_of, hub_settings, join, manual_hub, publish, running_hub
from ssehub.claims import Claims
from ssehub.errors import InvalidRequest, StreamRefused, TokenError, TokenReason
from ssehub.event import Event
from ssehub.fanout.frames import Batch, Frame
from ssehub.fanout.index import MAX_MATCHES, Index
from ssehub.fanout.subscriber import CloseReason, Subscriber
from ssehub.hub import Hub

pytestmark = pytest.mark.anyio

SOAK = "SOAK" in os.environ

NAMES = st.text("ab*", min_size=1, max_size=4)
"""Few letters, so that many patterns match, and names that look like patterns."""
PATTERNS = st.text("ab", max_size=3).map(lambda prefix: f"{prefix}*")
USERS = st.sampled_from(["alex", "kim", "sam"])


@dataclass
class Listener:
    """A subscriber, and what a naive model says it should have received."""

    subscriber: Subscriber
    grant: tuple[tuple[str, ...], tuple[str, ...]]
    received: list[Frame]

    def hears(self, one: Frame) -> bool:
        channels, patterns = self.grant
        is_granted = any(
            name in channels or any(name.startswith(pattern[:-1]) for pattern in patterns) for name in one.channels
        )
        return is_granted and (one.is_for_everyone or self.subscriber.user_id in one.users)


GRANTS = st.tuples(
    st.lists(NAMES, max_size=4).map(tuple),
    st.lists(PATTERNS, max_size=4).map(tuple),
).filter(any)
EVENTS = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=3, unique=True),
        st.one_of(st.just(["*"]), st.lists(st.one_of(USERS, st.just("*")), min_size=1, max_size=3, unique=True)),
    ),
    min_size=1,
    max_size=8,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.tuples(USERS, GRANTS)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("round"), EVENTS),
    ),
    min_size=3,
    max_size=30,
)


@settings(max_examples=2_000 if SOAK else 100, deadline=None)
@pytest.mark.soak
@given(STEPS)
def test_every_subscriber_receives_exactly_what_is_for_it_in_order_and_once(steps: list[tuple[str, Any]]) -> None:
    index, listeners, number = Index(), list[Listener](), 0
    for kind, value in [*steps, ("round", [(["a", "ab"], ["*", "kim"])])]:
        if kind == "join":
            user, (channels, patterns) = value
            one = subscriber(user, *channels, patterns=patterns)
            index.add(one)
            listeners.append(Listener(one, (channels, patterns), []))
        elif kind == "leave" and listeners:
            index.remove(listeners.pop(value % len(listeners)).subscriber)
        elif kind == "round":
            frames = [frame(number + n, *on, users=tuple(to)) for n, (on, to) in enumerate(value, 1)]
            number += len(frames)
            check_round(index, listeners, frames)
    for listener in listeners:
        index.remove(listener.subscriber)

    assert (index.all, index.channels, index.prefixes) == ({}, {}, {})
    assert not any([index._audiences, index._audience_of, index._lengths, index._matches])


def check_round(index: Index, listeners: Sequence[Listener], frames: list[Frame]) -> None:
    batches: dict[Subscriber, Batch] = {}
    for batch, members in index.select(frames, frames[-1].position):
        assert batch.last == frames[-1].position
        assert members
        for member in members:
            assert member not in batches, "two batches for one subscriber in one round"
            batches[member] = batch
    expected = {
        listener.subscriber: [one for one in frames if listener.hears(one)]
        for listener in listeners
        if any(map(listener.hears, frames))
    }

    assert {member: list(batch.frames) for member, batch in batches.items()} == expected
    for channel in {name for one in frames for name in one.channels}:
        named = index.named(("kim", "alex"), (channel,))
        probe = frame(0, channel, users=("kim", "alex"))
        assert len(named) == len(set(named))
        assert set(named) == {listener.subscriber for listener in listeners if listener.hears(probe)}


@settings(max_examples=2_000 if SOAK else 50, deadline=None)
@pytest.mark.soak
@given(
    st.lists(st.tuples(USERS, GRANTS), min_size=1, max_size=12),
    EVENTS,
    st.lists(st.one_of(st.integers(0, 30), st.tuples(USERS, GRANTS)), max_size=12),
    st.integers(0, 3),
)
def test_who_stays_during_a_round_receives_it_whoever_leaves_and_joins_meanwhile(
    grants: list[tuple[str, Any]], events: list[Any], changes: list[Any], changes_between: int
) -> None:
    index, listeners = Index(), list[Listener]()

    def join(user: str, grant: tuple[tuple[str, ...], tuple[str, ...]], number: int) -> Listener:
        one = subscriber(user, *grant[0], patterns=grant[1], head=at(number), sent=at(number))
        index.add(one)
        return Listener(one, grant, [])

    listeners = [join(user, grant, 0) for user, grant in grants]
    newcomers: list[Listener] = []
    frames = [frame(n, *on, users=tuple(to)) for n, (on, to) in enumerate(events, 1)]
    received: dict[Subscriber, list[Frame]] = {}
    for batch, members in index.select(frames, frames[-1].position):
        for member in members:
            if (rest := batch.after(member.sent)) is not None:
                assert member not in received
                received[member] = list(rest.frames)
        for change in [changes.pop() for _ in range(min(changes_between, len(changes)))]:
            if isinstance(change, tuple):
                newcomers.append(join(change[0], change[1], len(frames)))
            elif everyone := [*listeners, *newcomers]:
                left = everyone[change % len(everyone)]
                (listeners if left in listeners else newcomers).remove(left)
                index.remove(left.subscriber)

    for listener in listeners:
        assert received.get(listener.subscriber, []) == [one for one in frames if listener.hears(one)]
    assert not any(newcomer.subscriber in received for newcomer in newcomers)


def index_of(*subscribers: Subscriber) -> Index:
    index = Index()
    for one in subscribers:
        index.add(one)
    return index


def receivers(index: Index, *frames: Frame) -> dict[Subscriber, list[str]]:
    """Return the data that each subscriber receives."""
    found: dict[Subscriber, list[str]] = {}
    for batch, members in index.select(frames, frames[-1].position):
        for member in members:
            found[member] = [str(one.position.milliseconds - at(0).milliseconds) for one in batch.frames]
    return found


def test_channel_that_is_spelled_like_a_pattern_is_no_pattern() -> None:
    exact, pattern = subscriber("alex", "orders.*"), subscriber("kim", patterns=("orders.*",))
    of_prefix = subscriber("sam", "orders.")
    index = index_of(exact, pattern, of_prefix)

    found = receivers(index, frame(1, "orders.1"), frame(2, "orders.*"), frame(3, "orders."))

    assert found == {exact: ["2"], of_prefix: ["3"], pattern: ["1", "2", "3"]}
    index.remove(pattern)
    assert receivers(index, frame(1, "orders.1"), frame(2, "orders.*")) == {exact: ["2"]}


def test_subscribers_of_one_pattern_share_one_batch() -> None:
    many = [subscriber(f"user-{number}", patterns=("orders.*",)) for number in range(100)]

    deliveries = list(index_of(*many).select([frame(1, "orders.1"), frame(2, "orders.2", "orders.3")], at(2)))

    assert [(batch.count, len(members)) for batch, members in deliveries] == [(2, 100)]


def test_audiences_of_several_topics_share_a_batch_where_no_user_is_named() -> None:
    many = [subscriber(f"user-{number}", f"own-{number}", patterns=("orders.*", "news.*")) for number in range(100)]
    index = index_of(*many)

    for_everyone = list(index.select([frame(1, "orders.1"), frame(2, "news.1", "orders.2")], at(2)))
    for_one = list(index.select([frame(1, "orders.1"), frame(2, "news.1", users=("user-7",))], at(2)))

    assert len({id(batch) for batch, _ in for_everyone}) == 1 and len(for_everyone) == 100
    assert sorted(batch.count for batch, _ in for_one) == [1] * 99 + [2]


def test_prefixes_of_a_channel_are_looked_up_again_when_they_change() -> None:
    early, late = subscriber("alex", patterns=("a*",)), subscriber("kim", patterns=("ab*",))
    index = index_of(early)

    found = [receivers(index, frame(1, "abc"))]
    index.add(late)
    found.append(receivers(index, frame(1, "abc")))
    index.remove(early)
    found.append(receivers(index, frame(1, "abc")))

    assert found == [{early: ["1"]}, {early: ["1"], late: ["1"]}, {late: ["1"]}]


def test_channel_that_is_shorter_than_some_prefixes_has_each_of_its_topics_once() -> None:
    index = index_of(subscriber("alex", "ab", patterns=("a*", "ab*", "abc*", "abcd*")))

    assert index.topics("ab") == [index.channels["ab"], index.prefixes["a"], index.prefixes["ab"]]
    assert index.topics("b") == []


def test_number_of_channels_whose_prefixes_are_remembered_is_bounded() -> None:
    index = index_of(one := subscriber("alex", patterns=("a*",)))

    for number in range(MAX_MATCHES + 100):
        assert receivers(index, frame(1, f"a{number}")) == {one: ["1"]}
        assert receivers(index, frame(1, f"b{number}")) == {}

    assert 0 < len(index._matches) <= MAX_MATCHES


def test_subscriber_that_leaves_while_its_round_is_written_is_left_out() -> None:
    leaving, staying = subscriber("alex", "a", "b"), subscriber("kim", "a", "c")
    index = index_of(leaving, staying)

    deliveries = iter(index.select([frame(1, "a", users=("alex", "kim"))], at(1)))
    index.remove(leaving)
    index.remove(staying)
    index.add(again := subscriber("kim", "a", "c"))

    assert [members for _, members in deliveries] == []
    assert again in index.all


# In a hub


async def test_event_on_several_matching_channels_is_received_once() -> None:
    async with running_hub(allow_all_channels=True) as hub:
        _, one = join(hub, "alex", "orders.1", patterns=("orders.*", "ord*"))
        _, single = join(hub, "alex", patterns=("orders.*",))
        _, all_of_them = join(hub, "kim", patterns=("*",))

        await hub.publish_events(
            [
                Event(("orders.1", "orders.2", "x"), ("*",), data="1"),
                Event(("order",), ("alex",), data="2"),
                Event(("x",), ("*",), data="3"),
                Event(("orders.9",), ("kim",), data="4"),
            ]
        )
        await hub.flush()

        assert (one.data(), single.data(), all_of_them.data()) == (["1", "2"], ["1"], ["1", "3", "4"])
        assert hub.statistics.channels == 1 and hub.statistics.patterns == 3


async def test_publishers_wait_for_a_slow_pattern_only_on_channels_that_nobody_else_hears() -> None:
    async with running_hub(max_backlog_bytes=70_000) as hub:
        _, slow = join(hub, "alex", patterns=("orders.*",), sink=FakeSink(reads=False))
        _, fast = join(hub, "kim", "orders.1")
        await publish(hub, "x" * 80_000, channel="orders.1")
        await hub.flush()
        slow.read(5_000)

        async with asyncio.timeout(5):
            await publish(hub, "kept up with", channel="orders.1")
            waiting = asyncio.create_task(publish(hub, "waits", channel="orders.2"))
            await until(lambda: hub.statistics.waiting_publishers == 1)
            slow.read_all()
            await waiting
            await hub.flush()

        assert fast.data()[1:] == ["kept up with"]
        assert slow.data()[1:] == ["kept up with", "waits"]


@pytest.mark.parametrize(
    ("command", "ended"),
    [
        ({"channel": "orders.1"}, ["exact", "pattern", "both"]),
        ({"channel": ["orders.2", "nothing"]}, ["pattern", "both"]),
        ({"channel": "orders.1", "user_id": "alex"}, ["exact", "pattern"]),
        ({"channel": "orders.*"}, ["pattern", "both"]),
        ({"user_id": "kim"}, ["both"]),
        ({"channel": "order"}, []),
    ],
)
async def test_disconnecting_a_channel_ends_streams_that_hear_it_by_a_pattern(
    command: dict[str, Any], ended: list[str]
) -> None:
    async with manual_hub() as hub:
        streams = {
            "exact": join(hub, "alex", "orders.1"),
            "pattern": join(hub, "alex", patterns=("orders.*",)),
            "both": join(hub, "kim", "chat", patterns=("orders.*", "o.*")),
        }

        await hub.disconnect(**command)
        await hub.flush()

        assert [name for name, (one, _) in streams.items() if one.reason is CloseReason.REVOKED] == ended
        # The index and everything else is as if they had never been there.
        for _, sink in streams.values():
            sink.lose()
        assert engine_of(hub).index.prefixes == {} and engine_of(hub).index.channels == {}


async def test_pattern_counts_as_one_more_channel_for_the_limit_of_a_channel() -> None:
    async with manual_hub(max_streams_per_channel=2, max_streams_per_user=2) as hub:

        def open_stream(user: str, *channels: str, patterns: tuple[str, ...] = ()) -> Subscriber:
            return hub.attach(Claims(user, channels, patterns=patterns), FakeSink(), address="1.2.3.4")

        first = open_stream("alex", "a", patterns=("orders.*",))
        open_stream("alex", patterns=("orders.*",))
        for user, channels, patterns, named in (
            ("kim", ("b",), ("orders.*",), "pattern 'orders.*'"),
            ("kim", ("orders.*", "orders.1"), ("order*", "orders.1*"), None),
            ("kim", ("orders.*",), (), None),
            ("sam", ("orders.*",), (), "channel 'orders.*'"),
            ("alex", (), ("orders.*",), None),  # it replaces a stream with that pattern
        ):
            if named is None:
                open_stream(user, *channels, patterns=patterns)
            else:
                with pytest.raises(StreamRefused, match="is at max_streams_per_channel") as caught:
                    open_stream(user, *channels, patterns=patterns)
                assert named in str(caught.value)

        assert first.reason is CloseReason.REPLACED


async def test_stream_of_python_code_has_channels_patterns_or_both() -> None:
    async with (
        Hub() as hub,
        hub.subscribe(patterns=["orders.*"], user_id="alex") as orders,
        hub.subscribe(patterns="orders.1*", channel="chat", user_id="alex") as both,
    ):
        await publish(hub, "1", channel="orders.7")
        await publish(hub, "2", channel="orders.12")
        await publish(hub, "3", channel="chat")

        assert [(await anext(orders)).data for _ in range(2)] == ["1", "2"]
        assert [(await anext(both)).data for _ in range(2)] == ["2", "3"]


SUBSCRIBE: list[Callable[..., Any]] = [
    lambda hub, **given: hub.subscribe(user_id="alex", **given),
    lambda hub, **given: hub.record(user_id="alex", **given),
]


@pytest.mark.parametrize("open_stream", SUBSCRIBE, ids=["subscribe", "record"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a stream needs a channel or a pattern"),
        ({"channel": [], "patterns": ()}, "a stream needs a channel or a pattern"),
        ({"patterns": ["a.*", "*"]}, "allow_all_channels"),
        ({"patterns": "*"}, "allow_all_channels"),
        ({"patterns": ""}, "patterns is empty"),
        ({"patterns": ["a*b"]}, "patterns 'a\\*b' is not a pattern"),
        ({"patterns": ["a**"]}, "is not a pattern"),
        ({"patterns": [7]}, "patterns must be a string, not int"),
        ({"patterns": ["x" * 4_000 + "*"]}, "patterns has 4001 characters"),
        ({"patterns": [f"{number}*" for number in range(101)]}, "patterns: 101 given: at most 100"),
    ],
)
async def test_stream_that_cannot_be_is_refused_with_a_reason(
    open_stream: Callable[..., Any], given: dict[str, Any], message: str
) -> None:
    async with manual_hub() as hub:
        with pytest.raises(InvalidRequest, match=message):
            opened = open_stream(hub, **given)
            await opened  # `record` has to be awaited, `subscribe` has raised already
        assert hub.statistics.connected == 0


async def test_all_channels_are_for_hubs_that_allow_it() -> None:
    claims = Claims("alex", ("chat",), patterns=("a*", "*"))
    async with Hub() as hub:
        for refuse in (hub.require_access, lambda claims: hub.attach(claims, FakeSink())):
            with pytest.raises(TokenError, match="allow_all_channels") as caught:
                refuse(claims)
            assert caught.value.reason == TokenReason.CLAIMS
        with pytest.raises(InvalidRequest, match="allow_all_channels"):
            hub.check_patterns(("*",))
        hub.check_patterns(("a*",))
        hub.check_patterns(())
    async with Hub(**hub_settings(allow_all_channels=True)) as hub:
        hub.check_patterns(("*",))
        sink = FakeSink()
        hub.attach(claims, sink)
        await publish(hub, "everything", channel="whatever")
        await hub.flush()

        assert sink.data() == ["everything"]
