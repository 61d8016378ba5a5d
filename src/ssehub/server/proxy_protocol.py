"""The PROXY protocol, versions 1 and 2: a proxy begins each connection by saying whose connection it passes on.

The specification is https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. A preamble is required from trusted
proxies. From others it is not read, so that the HTTP protocol refuses it: they could name any client.

    data_received → too little yet               wait, at most `PREAMBLE_SECONDS`
                  → a preamble, and what follows  the HTTP protocol goes on, with the client's address
                  → anything else                 close without a response
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from uvicorn.server import ServerState

from ..fanout.refusals import ConnectionRefusal
from ..proxies import TrustedProxies, parse_address
from .connection import peer_of
from .refusals import ConnectionRefusals

PREAMBLE_SECONDS = 10.0
MAX_V1_BYTES = 107
"""The longest line of version 1 (section 2.1), CR and LF included."""
MAX_V2_BYTES = 536
"""More than any proxy sends. Section 2.2: a receiver may expect 536 bytes to arrive in one segment."""
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD_BYTES = 16
_V2_FAMILIES = {0x11: 4, 0x21: 16}
"""The sizes of an address, for TCP over IPv4 and over IPv6."""

Client = tuple[str, int]


class Preamble(NamedTuple):
    """What a proxy has said. `client` is None if it speaks for itself, as in health checks, or does not know."""

    client: Client | None
    size: int


def parse_preamble(data: bytes) -> Preamble | None:
    """Return the preamble at the beginning of `data`, or None if it is not complete. Raises ValueError."""
    if data.startswith(V2_SIGNATURE[: len(data)]):
        return _parse_v2(data)
    if data.startswith(b"PROXY "[: len(data)]):
        return _parse_v1(data)
    raise ValueError("neither version 1 nor version 2")


def _parse_v1(data: bytes) -> Preamble | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise ValueError("the line of version 1 is too long")
        return None
    size = end + 2
    fields = data[:end].decode("ascii").split(" ")
    if fields[1:2] == ["UNKNOWN"]:
        return Preamble(None, size)
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
        raise ValueError("the line of version 1 is malformed")
    kind: Any = ipaddress.IPv4Address if fields[1] == "TCP4" else ipaddress.IPv6Address
    source, _ = kind(fields[2]), kind(fields[3])
    port, _ = _port(fields[4]), _port(fields[5])
    return Preamble(_client(source, port), size)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 2**16):
        raise ValueError("a port of version 1 is malformed")
    return int(text)


def _parse_v2(data: bytes) -> Preamble | None:
    if len(data) < _V2_HEAD_BYTES:
        return None
    version, command = data[12] >> 4, data[12] & 0xF
    size = _V2_HEAD_BYTES + int.from_bytes(data[14:16])
    if version != 2 or command > 1:
        raise ValueError("unknown version or command")
    if size > MAX_V2_BYTES:
        raise ValueError("the block of version 2 is too long")
    if len(data) < size:
        return None
    width = _V2_FAMILIES.get(data[13])
    if command == 0 or width is None:  # LOCAL, or a family without addresses of clients on the internet
        return Preamble(None, size)
    if size < _V2_HEAD_BYTES + 2 * width + 4:
        raise ValueError("the block of version 2 is too short for its addresses")
    source = ipaddress.ip_address(data[_V2_HEAD_BYTES : _V2_HEAD_BYTES + width])
    at = _V2_HEAD_BYTES + 2 * width
    return Preamble(_client(source, int.from_bytes(data[at : at + 2])), size)


def _client(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Client:
    return str(parse_address(str(source)) or source), port


class HttpConnection(Protocol):
    """The HTTP protocol behind the preamble."""

    client: Client | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def data_received(self, data: bytes) -> None: ...


class ProxyProtocol(asyncio.Protocol):
    """Reads the preamble of one connection, and then makes the HTTP protocol take over its transport."""

    transport: asyncio.Transport

    def __init__(
        self,
        proxies: TrustedProxies,
        make_http: Callable[[], HttpConnection],
        connections: set[Any],
        refusals: ConnectionRefusals,
    ) -> None:
        """`connections` are those that the server closes when it stops."""
        self._proxies = proxies
        self._make_http = make_http
        self._connections = connections
        self._refusals = refusals
        self._received = b""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")  # "" on a Unix socket
        if peer is None:  # it is lost already: health checks do that
            self.transport.abort()
            return
        if (peer[0] if isinstance(peer, tuple) else None) not in self._proxies:
            self._become_http()
            return
        self._connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(PREAMBLE_SECONDS, self._refuse, "it took too long")

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            preamble = parse_preamble(self._received)
        except ValueError as exc:
            self._refuse(str(exc))
            return
        if preamble is None:
            return
        self._leave()
        http = self._become_http()
        if preamble.client is not None:
            http.client = preamble.client
        rest = self._received[preamble.size :]
        if rest:
            http.data_received(rest)

    def _become_http(self) -> HttpConnection:
        http = self._make_http()
        self.transport.set_protocol(cast(asyncio.BaseProtocol, http))
        http.connection_made(self.transport)
        return http

    def _refuse(self, reason: str) -> None:
        if not self.transport.is_closing():
            detail = f"no PROXY preamble from a trusted proxy: {reason}"
            self._refusals.refuse(ConnectionRefusal.PREAMBLE, peer_of(self.transport), detail)
            self.transport.abort()

    def _leave(self) -> None:
        self._connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def shutdown(self) -> None:
        """The server stops."""
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()


def behind_proxies(
    http: Callable[..., HttpConnection], proxies: TrustedProxies, refusals: ConnectionRefusals
) -> Callable[..., ProxyProtocol]:
    """Return a factory with the arguments of `http`, for `uvicorn.Config(http=…)`, which reads a preamble first."""

    def make(*, server_state: ServerState, **arguments: Any) -> ProxyProtocol:
        connections = cast(set[Any], server_state.connections)
        return ProxyProtocol(proxies, lambda: http(server_state=server_state, **arguments), connections, refusals)

    return make
