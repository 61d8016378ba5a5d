"""The plan of a load test, and the addresses it connects to and from."""

from __future__ import annotations

import pytest

from ssehub.bench import Plan
from ssehub.bench.addresses import Address, address_of, source_address
from ssehub.bench.processes import orders
from ssehub.errors import ConfigError


def test_each_subscriber_expects_its_share() -> None:
    plan = Plan("", "", subscribers=6, events=10, publishers=3, users=2, channels=2)

    assert sum(plan.events_for(audience) for audience in range(plan.audience_count)) == 10
    assert plan.audiences[3] == ("bench-1", "user-1")


def test_expected_deliveries_are_those_of_all_subscribers() -> None:
    """Audience 0 has two of the three subscribers and three of the five events."""
    plan = Plan("", "", subscribers=3, events=5, users=2)

    assert plan.expected_deliveries == 2 * 3 + 1 * 2


def test_workers_share_the_subscribers() -> None:
    plan = Plan("http://hub", "", subscribers=5, events=0, users=2, processes=2)

    found = list(orders(plan, ["a", "b"]))

    assert [order.tokens for order in found] == [["a", "a", "a"], ["b", "b"]]
    assert [order.first for order in found] == [0, 3]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("http://[::1]:8000/hub", Address("::1", 8000)),
        ("http://push.example/", Address("push.example", 80)),
        ("https://push.example/", Address("push.example", 443, is_tls=True)),
        ("https://127.0.0.1:8443", Address("127.0.0.1", 8443, is_tls=True)),
    ],
)
def test_address_is_read_from_the_url(url: str, address: Address) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", "http://hub:port", "http://[::1"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="invalid URL"):
        address_of(url)


def test_many_connections_come_from_several_addresses() -> None:
    assert source_address("127.0.0.1", 24_999) is None
    assert source_address("127.0.0.1", 60_000) == ("127.0.0.3", 0)
    assert source_address("10.0.0.1", 60_000) is None
