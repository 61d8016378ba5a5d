"""Addresses of clients behind proxies: which proxies are trusted, and what they say about the client.

Anybody can send `Forwarded` and `X-Forwarded-For`. Each proxy appends the address that called it. Only what trusted
proxies have appended counts, so both headers are read from the right, up to the first address that is not a proxy's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Self

from .errors import ConfigError

UNIX = "unix"
"""Stands for all clients that connect to a Unix socket, which have no address."""
MAX_HOPS = 100
"""Most entries of the headers that are looked at."""
MAX_FORWARDED_BYTES = 4_096
"""Most bytes of `Forwarded` that are parsed, which takes up to 1 µs for each. A longer one says nothing."""
_MAX_NODE_CHARACTERS = 100
"""More than any address and port have. The results for addresses are cached, so what a client sends must be short."""
NETWORK_BITS = 64
"""A provider gives a customer at least this network of IPv6. Its addresses count as one."""
_NODE = re.compile(r"\[([^\]]*)\](?::[^:]*)?|([^:]*)(?::[^:]*)?")
"""An IPv6 address in brackets, or anything else without a colon, each with or without a port (RFC 7239, section 6)."""
_PAIR = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^;,"\s]*)\s*')

Client = tuple[str, int]
"""A client's address and port, as in an ASGI scope. The port is 0 if it is unknown."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The proxies that are believed when they name the address of a client."""

    def __init__(self, networks: Sequence[Network] = (), *, has_unix: bool = False) -> None:
        self._networks = networks
        self._has_unix = has_unix
        self._is_known = lru_cache(1024)(self._is_in_networks)

    @classmethod
    def parse(cls, names: Iterable[str]) -> Self:
        """Return the proxies named by addresses, networks and `unix`. Raises ConfigError."""
        if isinstance(names, str):
            raise ConfigError(f"trusted_proxies must be a list of networks, such as ['10.0.0.0/8'], not {names!r}")
        networks = []
        has_unix = False
        for name in names:
            if name == UNIX:
                has_unix = True
                continue
            try:
                networks.append(parse_network(name))
            except ValueError as exc:
                raise ConfigError(
                    f"trusted_proxies {name!r}: {exc}: expected an address, a network such as 10.0.0.0/8, or unix"
                ) from None
        return cls(networks, has_unix=has_unix)

    def __bool__(self) -> bool:
        return bool(self._networks) or self._has_unix

    def __contains__(self, host: str | None) -> bool:
        """True if `host`, the address of a connection, is one of the proxies. A Unix socket has None or ""."""
        return self._is_known(host) if host else self._has_unix

    def _is_in_networks(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and any([address in network for network in self._networks])

    def client(self, peer: Client | None, headers: Iterable[tuple[bytes, bytes]]) -> Client | None:
        """Return the address of the client of a request that came from `peer` with these `headers`.

        It is `peer` itself unless that is a trusted proxy. If both headers are there and name different clients, one of
        them is forged, as a proxy passes on what it does not set. Then it is `peer`, too.
        """
        if (None if peer is None else peer[0]) not in self:
            return peer
        forwarded: list[bytes] = []
        for_: list[bytes] = []
        for name, value in headers:
            if name == b"x-forwarded-for":
                for_.append(value)
            elif name == b"forwarded":
                forwarded.append(value)
        found = {
            self._nearest_stranger(hops)
            for values, hops in ((for_, _hops(for_)), (forwarded, _forwarded_hops(forwarded)))
            if values
        }
        host = found.pop() if len(found) == 1 else None
        return peer if host is None else (host, 0)

    def _nearest_stranger(self, hops: Iterable[str]) -> str | None:
        """Return the first of `hops` that is not a trusted proxy, or the last one if all are; None if there is none.

        The hops begin with the one nearest to us. They end before the first entry that is not an address: those behind
        it can't be trusted.
        """
        found = None
        for _, hop in zip(range(MAX_HOPS), hops, strict=False):
            address = parse_address(_host_of(hop))
            if address is None:
                return found
            found = str(address)
            if found not in self:
                return found
        return found


def parse_network(name: str) -> Network:
    """Return the network `name`; an address is one, too. IPv4 within IPv6 is returned as IPv4. Raises ValueError."""
    network = ipaddress.ip_network(name)
    if network.version == 6 and network.prefixlen >= 96 and (mapped := network.network_address.ipv4_mapped):
        return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def _hops(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the entries of `X-Forwarded-For`, the last first."""
    for value in reversed(values):
        for hop in reversed(value.decode("latin-1").split(",")):
            yield hop.strip()


def _forwarded_hops(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the `for` of each element of `Forwarded`, the last first (RFC 7239, section 4)."""
    if sum(map(len, values)) > MAX_FORWARDED_BYTES:
        return
    for value in reversed(values):
        elements = _forwarded_elements(value.decode("latin-1"))
        yield from reversed(elements)


def _forwarded_elements(value: str) -> list[str]:
    """Return the `for` of each element, "" if it has none. After a syntax error, the rest is one such element."""
    found: list[str] = []
    current, place = "", 0
    while place < len(value):
        pair = _PAIR.match(value, place)
        if pair is None:
            if value[place:].strip() == "":
                break
            return [*found, ""]
        if pair[1].lower() == "for":
            current = pair[2].strip('"')
        place = pair.end()
        if place < len(value):
            if value[place] == ",":
                found.append(current)
                current = ""
            elif value[place] != ";":
                return [*found, ""]
            place += 1
    return [*found, current]


def _host_of(node: str) -> str:
    """Return the address in `node`, which may have a port. IPv6 in `X-Forwarded-For` often has no brackets."""
    if len(node) > _MAX_NODE_CHARACTERS:
        return ""
    match = _NODE.fullmatch(node)
    return node if match is None else match[1] or match[2] or ""


@lru_cache(1024)
def parse_address(host: str) -> Address | None:
    """Return the IP address that `host` is, or None. IPv4 within IPv6 is returned as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if address.version == 6 else address


@lru_cache(1024)
def limit_key(host: str) -> str:
    """Return what the limits per address count for `host`: the address, or its network for IPv6."""
    address = parse_address(host)
    if address is None:
        return host
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))
