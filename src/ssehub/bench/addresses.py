"""The addresses that the load test connects to and from."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..urls import without_credentials

PORTS_PER_ADDRESS = 25_000


def address_of(url: str) -> tuple[str, int]:
    """Return the host and the port of `url`; raises ConfigError unless it is an http URL without a user name."""
    shown = without_credentials(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as exc:
        raise ConfigError(f"invalid URL {shown!r}: expected one such as http://127.0.0.1:8000") from exc
    if host is None or parts.scheme != "http":
        raise ConfigError(f"invalid URL {shown!r}: expected one such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise ConfigError(f"invalid URL {shown!r}: the load test can't send the user name and password, remove them")
    return host, port


def source_address(host: str, number: int) -> tuple[str, int] | None:
    """Return the local address for connection `number` to `host`, None to leave the choice to the kernel.

    Each address has only so many ports, but there are many loopback addresses to connect from.
    """
    if not host.startswith("127.") or number < PORTS_PER_ADDRESS:
        return None
    return str(ipaddress.IPv4Address("127.0.0.1") + number // PORTS_PER_ADDRESS), 0
