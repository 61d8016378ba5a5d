"""Addresses to listen on, as the settings write them, and the names of this machine."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""The names under which a machine reaches itself."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on: a `host` (None for every interface) and a `port`, or the `path` of a Unix socket."""

    host: str | None
    port: int
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `127.0.0.1:8000`, `:8000`, `[::1]:8000` or `unix:/run/ssehub.sock`. Raises ValueError."""
        if text.startswith("unix:"):
            if (path := text.removeprefix("unix:")) and "\0" not in path:
                return cls(None, 0, path)
            raise ValueError("must name the path of a Unix socket, such as unix:/run/ssehub.sock")
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
            raise ValueError("must end with a port from 0 to 65535, such as 127.0.0.1:8000")
        if host.startswith("[") and host.endswith("]"):
            host = _ipv6_address(host[1:-1])
        elif ":" in host:
            raise ValueError("must have its IPv6 address in brackets, such as [::1]:8000")
        elif any(character.isspace() for character in host):
            raise ValueError("must have a host name without spaces, such as localhost:8000")
        return cls(host or None, int(port))

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        return self.path is not None or (self.host is not None and is_loopback_host(self.host))

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def is_loopback_host(host: str) -> bool:
    """True if the name or the IP address `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK_HOSTS


def _ipv6_address(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError("must have an IPv6 address in its brackets, such as [::1]:8000") from None
