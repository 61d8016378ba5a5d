"""Limits on streams in the hub: what is counted, what is refused or replaced, and that everything is released."""

from __future__ import annotations

import random
from typing import Any

import pytest

from conftest import report
from fakes import FakeSink
from hubs import engine_of, manual_hub, running_hub
from ssehub.claims import Claims
from ssehub.errors import StreamRefused
from ssehub.fanout import limits
from ssehub.fanout.subscriber import CloseReason, Subscriber
from ssehub.hub import Hub

pytestmark = pytest.mark.anyio


def open_stream(hub: Hub, user_id: str = "alex", address: str | None = "1.2.3.4", *channels: str) -> Subscriber:
    return hub.attach(Claims(user_id, channels or ("chat",)), FakeSink(), address=address)


def refusal(hub: Hub, *arguments: Any) -> str | None:
    """Return the reason for which another stream is refused, None if it is not."""
    try:
        open_stream(hub, *arguments)
    except StreamRefused as exc:
        return exc.reason
    return None


async def test_a15_oldest_stream_of_a_user_is_replaced_and_told_to_stay_away() -> None:
    async with manual_hub(max_streams_per_user=2) as hub:
        first, second, other = open_stream(hub), open_stream(hub), open_stream(hub, "kim")
        third = open_stream(hub)

        assert first.reason is CloseReason.REPLACED
        assert second.reason is third.reason is other.reason is None
        assert isinstance(first.sink, FakeSink) and "event: stream-replaced\n" in first.sink.text
        assert 600_000 <= int(first.sink.text.rpartition("retry: ")[2].split()[0]) <= 720_000
        assert first.sink.is_closed and not first.sink.is_aborted
        assert hub.statistics.endings["replaced"] == 1 and hub.statistics.subscribers == 3


async def test_a15_further_stream_of_a_user_is_refused_by_that_policy() -> None:
    async with manual_hub(max_streams_per_user=2, user_limit_policy="refuse") as hub:
        first, _ = open_stream(hub), open_stream(hub)

        assert refusal(hub) == "user"
        assert refusal(hub, "kim") is None
        hub.detach(first)
        assert refusal(hub) is None


async def test_a15_streams_of_an_address_are_limited_whoever_their_users_are() -> None:
    async with manual_hub(max_streams_per_address=2) as hub:
        open_stream(hub, "a")
        second = open_stream(hub, "b")

        assert refusal(hub, "c") == "address"
        assert refusal(hub, "c", "5.6.7.8") is None
        assert refusal(hub, "c", None) is None  # a stream of Python code
        hub.detach(second)
        assert refusal(hub, "c") is None


async def test_a15_streams_of_a_channel_are_limited_on_each_of_its_channels() -> None:
    async with manual_hub(max_streams_per_channel=2) as hub:
        open_stream(hub, "a")
        open_stream(hub, "b", "1.2.3.4", "chat", "news")

        assert refusal(hub, "c") == "channel"
        assert refusal(hub, "c", "1.2.3.4", "sport", "chat") == "channel"
        assert refusal(hub, "c", "1.2.3.4", "news") is None


async def test_a15_new_streams_a_second_are_limited_in_all_and_by_address() -> None:
    async with manual_hub(max_new_streams_per_second=2, max_new_streams_per_second_per_address=0.5) as hub:
        by_address = [refusal(hub, "a", "1.1.1.1") for _ in range(8)]
        in_all = [refusal(hub, "a", f"2.2.2.{number}") for number in range(20)]
        hub.clock.pass_seconds(1)
        later = [refusal(hub, "a", f"3.3.3.{number}") for number in range(3)]

        assert by_address == [None] * 5 + ["address-rate"] * 3
        assert in_all == [None] * 15 + ["rate"] * 5  # what was refused by address took nothing from the others
        assert later == [None, None, "rate"]


async def test_stream_that_is_refused_by_the_rate_of_all_takes_nothing_from_that_of_its_address() -> None:
    async with manual_hub(max_new_streams_per_second=1, max_new_streams_per_second_per_address=0.5) as hub:
        for number in range(10):
            open_stream(hub, "a", f"2.2.2.{number}")

        assert [refusal(hub) for _ in range(5)] == ["rate"] * 5
        hub.clock.pass_seconds(1)
        assert refusal(hub) is None


async def test_stream_that_is_replaced_makes_room_at_its_address_and_on_its_channel() -> None:
    """The user's connection was lost unnoticed: the new one must not wait until that has been noticed."""
    async with manual_hub(max_streams_per_user=1, max_streams_per_address=1, max_streams_per_channel=1) as hub:
        first = open_stream(hub)

        assert refusal(hub, "kim", "5.6.7.8") == "channel"
        assert refusal(hub, "kim", "1.2.3.4", "news") == "address"
        assert refusal(hub) is None
        assert first.reason is CloseReason.REPLACED


async def test_refused_stream_leaves_no_trace() -> None:
    async with manual_hub(max_streams_per_user=5, max_new_streams_per_second=0.1) as hub:
        open_stream(hub)
        before = hub.statistics.connected
        sink = FakeSink()
        with pytest.raises(StreamRefused):
            hub.attach(Claims("alex", ("chat",)), sink, address="1.2.3.4")

        assert sink.chunks == [] and sink.owner is None
        assert hub.statistics.connected == before and hub.statistics.subscribers == 1


async def test_no_stream_is_replaced_by_one_that_is_refused() -> None:
    async with manual_hub(max_streams_per_user=1, max_new_streams_per_second=0.1) as hub:
        first = open_stream(hub)

        assert refusal(hub) == "rate"
        assert first.reason is None


@pytest.mark.parametrize("policy", ["replace", "refuse"])
async def test_a15_counts_are_exact_after_any_sequence_of_events(policy: str) -> None:
    seed = random.randrange(2**32)
    report(f"seed {seed}")
    chance = random.Random(seed)
    async with running_hub(
        max_streams_per_user=3, user_limit_policy=policy, max_streams_per_address=6, max_streams_per_channel=9
    ) as hub:
        open_now: list[tuple[Subscriber, str]] = []
        for _ in range(3_000):
            open_now = [(one, at) for one, at in open_now if one.reason is None]
            if open_now and chance.random() < 0.4:
                one, _ = chance.choice(open_now)
                assert isinstance(one.sink, FakeSink)
                if chance.random() < 0.5:
                    one.sink.lose()
                else:
                    hub.detach(one)
                continue
            user, address = f"u{chance.randrange(5)}", f"10.0.0.{chance.randrange(4)}"
            channels = chance.choice([("a",), ("b",), ("a", "b")])
            mine = [one for one, _ in open_now if one.user_id == user]
            leaving = mine[:1] if policy == "replace" and len(mine) == 3 else []
            staying = [(one, at) for one, at in open_now if one not in leaving]
            is_over = policy == "refuse" and len(mine) == 3
            is_over |= sum(at == address for _, at in staying) >= 6
            is_over |= any(sum(name in one.channels for one, _ in staying) >= 9 for name in channels)
            try:
                opened = hub.attach(Claims(user, channels), FakeSink(), address=address)
            except StreamRefused:
                assert is_over
                continue
            assert not is_over
            replaced = [one for one in mine if one.reason is CloseReason.REPLACED]
            assert replaced == (mine[:1] if len(mine) == 3 else [])
            open_now.append((opened, address))
        counts = engine_of(hub).registry.counts
        still_open = [(one, at) for one, at in open_now if one.reason is None]
        assert counts is not None
        assert len(counts) == len({one.user_id for one, _ in still_open}) + len({at for _, at in still_open})
        await hub.drain(0.1)

        assert len(counts) == 0


async def test_memory_for_rates_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ADDRESSES", 50)
    async with manual_hub(max_new_streams_per_second_per_address=1) as hub:
        for number in range(500):
            hub.detach(open_stream(hub, "a", f"10.0.{number // 250}.{number % 250}"))
        counts = engine_of(hub).registry.counts

        assert counts is not None and len(counts) == 50


async def test_nothing_is_counted_without_limits() -> None:
    async with manual_hub() as hub:
        open_stream(hub)

        assert not hub.limits_streams and engine_of(hub).registry.counts is None
