"""An address to listen on, as the settings write it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Address:
    """A `host` (None: every interface) and a `port`, or the `path` of a Unix socket."""

    host: str | None
    port: int
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `127.0.0.1:8000`, `:8000`, `[::1]:8000` or `unix:/run/ssehub.sock`. Raises ValueError."""
        if text.startswith("unix:"):
            if (path := text.removeprefix("unix:")) and "\0" not in path:
                return cls(None, 0, path)
            raise ValueError("it has no path for the Unix socket, such as unix:/run/ssehub.sock")
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
            raise ValueError("it has no port from 0 to 65535 behind its last colon")
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif ":" in host or any(character.isspace() for character in host):
            raise ValueError("an IPv6 address stands in brackets, such as [::1]:8000")
        return cls(host or None, int(port))

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can connect to it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return self.host is not None and ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
