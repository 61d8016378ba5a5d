"""Addresses of clients behind proxies: whose word is believed, and what counts as one address."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssehub.errors import ConfigError
from ssehub.proxies import TrustedProxies, limit_key, parse_address

PROXIES = TrustedProxies.parse(["127.0.0.1", "10.0.0.0/8", "2001:db8:aa::/48"])
PROXY = "127.0.0.1"


def client(peer: str | None, *headers: tuple[str, str], proxies: TrustedProxies = PROXIES) -> str | None:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    found = proxies.client(None if peer is None else (peer, 4711), raw)
    return None if found is None else found[0]


def xff(value: str) -> tuple[str, str]:
    return "X-Forwarded-For", value


def fwd(value: str) -> tuple[str, str]:
    return "Forwarded", value


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        pytest.param("9.9.9.9", [xff("1.2.3.4")], "9.9.9.9", id="stranger-is-not-believed"),
        pytest.param("9.9.9.9", [fwd("for=1.2.3.4")], "9.9.9.9", id="stranger-is-not-believed-2"),
        pytest.param("11.0.0.1", [xff("1.2.3.4")], "11.0.0.1", id="just-outside-the-network"),
        pytest.param(None, [xff("1.2.3.4")], None, id="unix-is-not-trusted"),
        pytest.param(PROXY, [], PROXY, id="proxy-without-headers"),
        pytest.param(PROXY, [xff("1.2.3.4")], "1.2.3.4", id="one-hop"),
        pytest.param(f"::ffff:{PROXY}", [xff("1.2.3.4")], "1.2.3.4", id="proxy-seen-as-mapped-ipv4"),
        pytest.param(PROXY, [xff("6.6.6.6, 1.2.3.4")], "1.2.3.4", id="forged-entry-on-the-left"),
        pytest.param(PROXY, [xff("127.0.0.1, 1.2.3.4")], "1.2.3.4", id="forged-proxy-on-the-left"),
        pytest.param(PROXY, [xff("6.6.6.6, 1.2.3.4, 10.1.1.1")], "1.2.3.4", id="two-proxies"),
        pytest.param(PROXY, [xff("6.6.6.6"), xff("1.2.3.4")], "1.2.3.4", id="two-header-lines"),
        pytest.param(PROXY, [xff("10.0.0.7, 10.0.0.8")], "10.0.0.7", id="only-proxies"),
        pytest.param(PROXY, [xff("1.2.3.4:5678")], "1.2.3.4", id="port"),
        pytest.param(PROXY, [xff("2001:db8::7")], "2001:db8::7", id="ipv6"),
        pytest.param(PROXY, [xff("[2001:db8::7]:99")], "2001:db8::7", id="ipv6-port"),
        pytest.param(PROXY, [xff("1.2.3.4, unknown")], PROXY, id="unknown-hides-what-is-left-of-it"),
        pytest.param(PROXY, [xff("1.2.3.4, garbage, 10.0.0.1")], "10.0.0.1", id="garbage-behind-a-proxy"),
        pytest.param(PROXY, [xff("1.2.3.4,")], PROXY, id="empty-entry"),
        pytest.param(PROXY, [xff("")], PROXY, id="empty"),
        pytest.param(PROXY, [fwd("for=1.2.3.4")], "1.2.3.4", id="forwarded"),
        pytest.param(PROXY, [fwd("For=1.2.3.4;proto=https;by=203.0.113.43")], "1.2.3.4", id="rfc-4-a"),
        pytest.param(PROXY, [fwd('for="[2001:db8:cafe::17]:4711"')], "2001:db8:cafe::17", id="rfc-4-b"),
        pytest.param(PROXY, [fwd("for=192.0.2.43, for=10.1.2.3")], "192.0.2.43", id="rfc-4-c"),
        pytest.param(PROXY, [fwd('for=6.6.6.6, for="1.2.3.4:80"')], "1.2.3.4", id="forged-forwarded"),
        pytest.param(PROXY, [fwd('for=6.6.6.6;host="a,for=7.7.7.7", for=1.2.3.4')], "1.2.3.4", id="comma-in-quotes"),
        pytest.param(PROXY, [fwd("for=1.2.3.4, for=_hidden")], PROXY, id="obfuscated"),
        pytest.param(PROXY, [fwd("proto=https")], PROXY, id="forwarded-without-for"),
        pytest.param(PROXY, [fwd("for=1.2.3.4, proto=https")], PROXY, id="last-element-without-for"),
        pytest.param(PROXY, [fwd('for="1.2.3.4')], PROXY, id="open-quote"),
        pytest.param(PROXY, [fwd('for=6.6.6.6;x="'), fwd("for=1.2.3.4")], "1.2.3.4", id="open-quote-in-another-line"),
        pytest.param(PROXY, [fwd('for=6.6.6.6;x=", for="1.2.3.4:80";y="z"')], PROXY, id="open-quote-to-the-left"),
        pytest.param(PROXY, [fwd("a=," * 1_500 + "for=1.2.3.4")], PROXY, id="forwarded-too-long"),
        pytest.param(PROXY, [fwd("x=1," * 1_000 + "for=1.2.3.4")], "1.2.3.4", id="long-forwarded"),
        pytest.param(PROXY, [xff("1.2.3.4:" + "8" * 1_000)], PROXY, id="long-port"),
        pytest.param(PROXY, [fwd("for=1.2.3.4"), xff("1.2.3.4")], "1.2.3.4", id="both-agree"),
        pytest.param(PROXY, [fwd("for=6.6.6.6"), xff("1.2.3.4")], PROXY, id="both-differ-so-one-is-forged"),
    ],
)
def test_only_what_trusted_proxies_have_appended_counts(
    peer: str | None, headers: list[tuple[str, str]], expected: str | None
) -> None:
    assert client(peer, *headers) == expected


def test_client_without_a_proxy_keeps_its_port() -> None:
    assert PROXIES.client(("9.9.9.9", 4711), []) == ("9.9.9.9", 4711)


@pytest.mark.parametrize("name", ["::ffff:192.0.2.1", "::ffff:192.0.2.0/120", "192.0.2.0/24"])
@pytest.mark.parametrize("peer", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_ipv4_proxy_is_trusted_however_it_and_its_address_are_written(name: str, peer: str) -> None:
    assert client(peer, xff("1.2.3.4"), proxies=TrustedProxies.parse([name])) == "1.2.3.4"


@pytest.mark.parametrize("name", ["::/0", "::fffe:0:0/95"])
def test_ipv6_network_around_those_of_ipv4_stays_one(name: str) -> None:
    assert client("192.0.2.1", xff("1.2.3.4"), proxies=TrustedProxies.parse([name])) == "192.0.2.1"


@pytest.mark.parametrize("header", [xff("x" * 4_000), fwd("for=" + "y" * 4_000), fwd(f'for="[{"1" * 4_000}]"')])
def test_a15_long_entries_are_not_remembered(header: tuple[str, str]) -> None:
    """Addresses that were parsed are cached: 15 KB in each of 1,024 requests took 15 MB for good."""
    client(PROXY, xff("1.2.3.4"))
    before = parse_address.cache_info().misses

    assert client(PROXY, header) == PROXY
    assert parse_address.cache_info().misses == before


def test_unix_socket_can_be_trusted() -> None:
    proxies = TrustedProxies.parse(["unix"])

    assert client(None, xff("1.2.3.4"), proxies=proxies) == "1.2.3.4"
    assert client("127.0.0.1", xff("1.2.3.4"), proxies=proxies) == "127.0.0.1"


@pytest.mark.parametrize("name", ["", "localhost", "10.0.0.1/8", "10.0.0.0/33", "*", "10.0.0.0/8 "])
def test_bad_proxy_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrustedProxies.parse([name])

    assert str(caught.value).startswith(f"trusted_proxies {name!r}: ")


def test_string_in_place_of_a_list_of_proxies_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trusted_proxies must be a list of networks, .*, not '10\.0\.0\.0/8'"):
        TrustedProxies.parse("10.0.0.0/8")


def test_nobody_is_trusted_by_default() -> None:
    assert not TrustedProxies.parse([])
    assert client("127.0.0.1", xff("1.2.3.4"), proxies=TrustedProxies()) == "127.0.0.1"


SCALED = settings(max_examples=10_000 if "SOAK" in os.environ else 100, deadline=None)


@pytest.mark.soak
@SCALED
@given(st.text(st.characters(max_codepoint=255), max_size=300), st.text(st.characters(max_codepoint=255), max_size=300))
def test_a15_client_can_not_choose_its_address(forged: str, forwarded: str) -> None:
    """The proxy appends the address of its client to whatever that has sent."""
    assert client(PROXY, xff(f"{forged}, 1.2.3.4")) == "1.2.3.4"
    assert client(PROXY, xff(forged), xff("1.2.3.4")) == "1.2.3.4"
    assert client(PROXY, fwd(forwarded), xff(f"{forged}, 1.2.3.4")) in ("1.2.3.4", PROXY)


PIECES = [
    "for=",
    "For=",
    "by=",
    "proto=http",
    'host="a"',
    "1.2.3.4",
    "6.6.6.6",
    '"[2001:db8::1]:80"',
    '"6.6.6.6:5"',
    "unknown",
]
PIECES += ["_hidden", '"', ",", ";", "\\", " ", "=", "x", "\t", "10.0.0.1", '\\"', "é"]
APPENDED = ["for=1.2.3.4", 'for="1.2.3.4:55";proto=https;by=10.0.0.2', 'proto=http;for="1.2.3.4";host=a.example']


@pytest.mark.soak
@SCALED
@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.sampled_from(APPENDED),
    st.lists(st.sampled_from(["10.0.0.7", "10.1.1.1"]), max_size=3),
)
@example('for=6.6.6.6;x="', 'proto=http;for="1.2.3.4";host=a.example', [])
@example('for=6.6.6.6;x="\\', "for=1.2.3.4", ["10.0.0.7"])
def test_a15_client_can_not_choose_its_address_in_forwarded(forged: str, appended: str, chain: list[str]) -> None:
    """The first proxy appends the address of its client, and further ones that of the proxy before them."""
    sent = ", ".join([appended, *[f"for={proxy}" for proxy in chain]])

    assert client(PROXY, fwd(forged), fwd(sent)) == "1.2.3.4"
    assert client(PROXY, fwd(f"{forged}, {sent}")) in ("1.2.3.4", PROXY, *chain)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_ipv6_network_count_as_one(host: str, key: str) -> None:
    assert limit_key(host) == key
