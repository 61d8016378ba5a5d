"""The facts about a stream: where it comes from, its number, and what was written to it."""

from __future__ import annotations

import pytest

from fakes import FakeSink
from hubs import join, manual_hub, publish
from ssehub.claims import Claims
from ssehub.fanout.origin import MAX_CLIENT_LENGTH, origin

pytestmark = pytest.mark.anyio


async def test_streams_of_a_hub_are_numbered_from_1_and_no_number_is_used_again() -> None:
    async with manual_hub() as hub:
        first, _ = join(hub)
        hub.detach(first)
        second, _ = join(hub)

        assert (first.number, second.number) == (1, 2)


async def test_events_and_bytes_of_a_stream_are_counted_apart_from_the_hub_s_own() -> None:
    async with manual_hub() as hub:
        first, sink = join(hub)
        hello = len(b"".join(sink.chunks))
        await publish(hub, "a", "bb")
        await hub.flush()
        replayed, again = join(hub, since="earliest")
        await hub.flush()

        assert (first.events, first.bytes) == (2, len(b"".join(sink.chunks)) - hello)
        assert (replayed.events, replayed.bytes) == (2, first.bytes)
        assert b"".join(again.chunks).endswith(b"".join(sink.chunks)[hello:])


async def test_large_counts_of_events_and_bytes_do_not_mix() -> None:
    async with manual_hub() as hub:
        stream, _ = join(hub)
        stream.written = complex(2**53 - 1, 2**53)

        assert (stream.events, stream.bytes) == (2**53 - 1, 2**53)


async def test_stream_has_the_origin_that_it_is_attached_with() -> None:
    async with manual_hub() as hub:
        given = origin("192.0.2.1", "curl/8.5")

        assert hub.attach(Claims("alex", ("chat",)), FakeSink(), origin=given).origin is given
        assert join(hub)[0].origin is None


def test_origins_that_are_equal_are_one_object_and_a_long_client_is_shortened() -> None:
    assert origin("192.0.2.1", "x" * 1_000) is origin("192.0.2.1", "x" * 1_000)
    assert len(origin("192.0.2.1", "x" * 1_000).client) == MAX_CLIENT_LENGTH
    assert str(origin("", "")) == "a Unix socket"
    assert str(origin("::1", "a\nb")) == r"::1, 'a\nb'"


def test_a15_long_clients_are_not_remembered() -> None:
    """Origins are cached: User-Agents of 16 KB in 10,000 refused requests took 156 MB for good."""
    kept = "x" * MAX_CLIENT_LENGTH

    assert origin("192.0.2.1", f"{kept} and more") is origin("192.0.2.1", f"{kept} and something else")
