"""Listings of the open streams of one hub."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import until
from fakes import FakeSink
from hubs import engine_of, hub_settings
from ssehub import pace
from ssehub.claims import Claims
from ssehub.fanout import listing as listing_module
from ssehub.fanout.listing import Group, Listing
from ssehub.fanout.origin import origin
from ssehub.fanout.subscriber import Subscriber
from ssehub.fanout.wanted import Wanted
from ssehub.hub import Hub

pytestmark = pytest.mark.anyio
ALL = Wanted()


class Crowd:
    """A hub with streams, and its listing."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        listing = hub.listing
        assert listing is not None
        self.listing: Listing = listing

    def join(
        self,
        user_id: str,
        *channels: str,
        patterns: tuple[str, ...] = (),
        address: str | None = "192.0.2.1",
        client: str = "curl/8",
        sink: FakeSink | None = None,
    ) -> Subscriber:
        claims = Claims(user_id, channels, patterns=patterns)
        where = None if address is None else origin(address, client)
        return self.hub.attach(claims, sink or FakeSink(), origin=where)

    async def numbers(self, wanted: Wanted, after: int = 0, limit: int = 100) -> list[int]:
        return [stream.number for stream in (await self.listing.page(wanted, after, limit)).streams]


@asynccontextmanager
async def crowd(**settings: Any) -> AsyncIterator[Crowd]:
    async with Hub(**hub_settings(**settings)) as hub:
        yield Crowd(hub)


async def test_stream_is_described_with_what_it_has_received() -> None:
    async with crowd() as streams:
        subscriber = streams.join(
            "alex", "chat", "news", patterns=("orders.*",), address="2001:db8::1", client="x" * 90
        )
        id = await streams.hub.publish(channel="chat", user_id="*", data="hello")
        await streams.hub.flush()

        (stream,) = (await streams.listing.page(ALL, 0, 10)).streams

    assert (stream.number, stream.user_id, stream.state, stream.run) == (1, "alex", "live", None)
    assert (list(stream.channels), list(stream.patterns)) == (["chat", "news"], ["orders.*"])
    assert stream.origin == ("2001:db8::1", "x" * 80)
    assert (stream.events, stream.bytes, stream.last_id) == (1, subscriber.bytes, id)


async def test_pages_go_by_number_and_do_not_repeat_streams_although_others_end() -> None:
    async with crowd() as streams:
        joined = [streams.join(f"user{number}", "chat") for number in range(5)]
        first = await streams.listing.page(ALL, 0, 2)
        streams.hub.detach(joined[0])
        streams.hub.detach(joined[2])
        second = await streams.listing.page(ALL, first.streams[-1].number, 2)
        third = await streams.listing.page(ALL, second.streams[-1].number, 2)

    assert [stream.number for stream in first.streams] == [1, 2] and first.has_more
    assert [stream.number for stream in second.streams] == [4, 5] and not second.has_more
    assert third.streams == []


async def test_stream_that_ends_while_the_walk_comes_to_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTime:
        """A pace that is due after each stream."""

        is_due = True

        async def rest(self) -> None:
            await asyncio.sleep(0)

    monkeypatch.setattr(listing_module, "Pace", NoTime)
    async with crowd() as streams:
        joined = [streams.join("alex", "chat") for _ in range(10)]
        walk = asyncio.create_task(streams.numbers(ALL))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        streams.hub.detach(joined[8])
        streams.join("alex", "chat")

        assert await walk == [1, 2, 3, 4, 5, 6, 7, 8, 10]


async def test_stream_that_ends_meanwhile_is_not_among_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)
    async with crowd() as streams:
        first, *_ = [streams.join("alex", "chat") for _ in range(5)]
        largest = asyncio.create_task(streams.listing.largest(ALL, 10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        streams.hub.detach(first)

        assert [stream.number for stream in await largest] == [2, 3, 4, 5]


@pytest.mark.parametrize("few", [0, 1_000], ids=["walk", "index"])
@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted("alex"), [1, 3]),
        (Wanted("nobody"), []),
        (Wanted(channel="chat"), [1, 2]),
        (Wanted(channel="orders.7"), [2, 3]),
        (Wanted(channel="orders.*"), [3]),  # a channel that is named like a pattern, which the pattern covers
        (Wanted("alex", "chat"), [1]),
        (Wanted("alex", "orders.7"), [3]),
        (Wanted(addresses=ipaddress.ip_network("10.0.0.0/8")), [1, 2]),
        (Wanted(addresses=ipaddress.ip_network("10.1.2.3")), [1]),
        (Wanted(addresses=ipaddress.ip_network("2001:db8::/64")), [3]),
        (Wanted(addresses="unix"), [4]),
        (Wanted("kim", addresses=ipaddress.ip_network("10.1.2.3")), []),
    ],
    ids=str,
)
async def test_streams_are_found_by_all_that_is_wanted(
    wanted: Wanted, numbers: list[int], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "FEW", few)
    async with crowd() as streams:
        streams.join("alex", "chat", address="10.1.2.3")
        streams.join("kim", "chat", "orders.7", address="::ffff:10.200.0.1")
        streams.join("alex", patterns=("orders.*", "ord*"), address="2001:db8::77")
        streams.join("sam", "news", address="")
        streams.join("lee", "news", address=None)

        assert await streams.numbers(wanted) == numbers


async def test_page_ends_early_where_streams_have_very_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "PAGE_CHARACTERS", 1_000)
    async with crowd() as streams:
        for user in ("alex", "kim", "sam"):
            streams.join(user, *[f"{number:0>100}" for number in range(8)])

        page = await streams.listing.page(ALL, 0, 100)

    assert [stream.user_id for stream in page.streams] == ["alex", "kim"] and page.has_more


async def test_largest_backlogs_come_first_with_what_is_held() -> None:
    async with crowd(max_backlog_bytes=70_000) as streams:
        slow = FakeSink(reads=False)
        streams.join("reads", "chat")
        streams.join("slow", "chat", sink=slow)
        streams.join("idle", "news", sink=FakeSink(reads=False))
        for _ in range(3):
            await streams.hub.publish(channel="chat", user_id="*", data="x" * 50_000)
            await streams.hub.flush()

        found = await streams.listing.largest(ALL, 2)
        held, unread = engine_of(streams.hub).backlogs.held_bytes, slow.backlog

    assert [stream.user_id for stream in found] == ["slow", "idle"]
    assert held > 0 and found[0].backlog_bytes == unread + held
    assert found[0].state == "lagging"


@pytest.mark.parametrize(
    ("by", "counts"),
    [
        (Group.USER, {"alex": 2, "kim": 1}),
        (Group.ADDRESS, {"192.0.2.1": 1, "unix": 1, None: 1}),
        (Group.CHANNEL, {"chat": 2, "news": 1}),
        (Group.PATTERN, {"orders.*": 1}),
        (Group.CLIENT, {"curl/8": 2, None: 1}),
    ],
)
async def test_streams_are_counted_by_what_they_have_in_common(by: Group, counts: dict[str | None, int]) -> None:
    async with crowd() as streams:
        streams.join("alex", "chat", "news")
        streams.join("alex", "chat", address="")
        streams.join("kim", patterns=("orders.*",), address=None)

        found, has_more = await streams.listing.count(ALL, by)

    assert {group.value: group.streams for group in found} == counts and not has_more


async def test_of_too_many_groups_the_largest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MAX_GROUPS", 2)
    async with crowd() as streams:
        for user in ("alex", "kim", "sam", "kim", "sam", "sam"):
            streams.join(user, "chat")

        found, has_more = await streams.listing.count(ALL, Group.USER)

    assert [(group.value, group.streams) for group in found] == [("sam", 3), ("kim", 2)] and has_more


async def test_channels_are_listed_by_name_and_counted_by_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "PART", 2)
    async with crowd() as streams:
        streams.join("alex", *[f"c{number}" for number in range(7)])
        streams.join("kim", "c3", "d", patterns=("c*", "c3*"))

        names = await streams.listing.channels("c", "c2", 3)
        counts = await streams.listing.channel_counts(["c3", "d", "c9", "x"])

    assert names == ["c3", "c4", "c5"]
    assert counts == [(2, 2), (1, 0), (0, 1), (0, 0)]


async def test_stream_of_a_run_is_listed_with_it_and_counted_on_its_channel() -> None:
    async with crowd() as streams:
        hub = streams.hub
        async with hub.run("answer", channel="chat", user_id="alex") as run:
            await run.append(data="one")
            subscription = hub.subscribe(run="answer", channel="chat", user_id="alex")
            async with subscription as messages:
                await anext(aiter(messages))
                await until(lambda: len(engine_of(hub)) == 1)
                (stream,) = (await streams.listing.page(Wanted(channel="chat"), 0, 10)).streams
                names, counts = (
                    await streams.listing.channels("", "", 10),
                    await streams.listing.channel_counts(["chat"]),
                )

    assert (stream.run, stream.state, stream.origin) == ("answer", "watching", None)
    assert names == ["chat"] and counts == [(1, 0)]
