"""The addresses that the load test connects to and from."""

from __future__ import annotations

import functools
import ipaddress
import ssl
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from ..errors import ConfigError
from ..trust import client_context
from ..urls import without_credentials

PORTS_PER_ADDRESS = 25_000
_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNIX = "unix:"
_context = functools.cache(client_context)


class Address(NamedTuple):
    """A host and a port, or the path of a Unix socket."""

    host: str
    port: int
    is_tls: bool = False
    path: str | None = None

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The context for connections to it, the same for all; None if they are not encrypted."""
        return _context() if self.is_tls else None


def address_of(url: str) -> Address:
    """Return the address of `url`, which may be unix:PATH; raises ConfigError for any other one, or a user name."""
    if url.startswith(_UNIX) and url != _UNIX:
        return Address("localhost", 0, path=url.removeprefix(_UNIX))
    shown = without_credentials(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError as exc:
        raise ConfigError(f"invalid URL {shown!r}: expected one such as http://127.0.0.1:8000") from exc
    if host is None or port is None or parts.scheme not in _DEFAULT_PORTS:
        raise ConfigError(f"invalid URL {shown!r}: expected one such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise ConfigError(f"invalid URL {shown!r}: the load test can't send the user name and password, remove them")
    return Address(host, port, is_tls=parts.scheme == "https")


def parts_of(url: str) -> SplitResult:
    """Return the parts of `url` for requests. Those to a Unix socket have no path, and are for localhost."""
    return urlsplit("http://localhost" if url.startswith(_UNIX) else url)


def source_address(host: str, number: int) -> tuple[str, int] | None:
    """Return the local address for connection `number` to `host`, None to leave the choice to the kernel.

    Each address has only so many ports, but there are many loopback addresses to connect from.
    """
    if not host.startswith("127.") or number < PORTS_PER_ADDRESS:
        return None
    return str(ipaddress.IPv4Address("127.0.0.1") + number // PORTS_PER_ADDRESS), 0
