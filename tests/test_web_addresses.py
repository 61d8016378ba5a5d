"""Addresses of the clients of requests."""

from __future__ import annotations

import pytest

from ssehub.web.addresses import MAX_ADDRESS_LENGTH, address_of, origin_of


def test_a15_long_addresses_are_not_remembered() -> None:
    """Another server may take them from a header, and the results for addresses are cached."""
    client = ("x" * 60_000, 0)

    assert len(origin_of(client, {}).address) == MAX_ADDRESS_LENGTH
    assert len(address_of(client)) == MAX_ADDRESS_LENGTH


@pytest.mark.parametrize("client", [None, ("", 0)])
def test_client_of_a_unix_socket_has_no_address(client: tuple[str, int] | None) -> None:
    assert origin_of(client, {}).address == address_of(client) == ""
