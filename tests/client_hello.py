"""ClientHellos made by hand, for what no client of today offers: old versions, weak ciphers, odd sizes."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

SSL_3, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
HANDSHAKE_FAILURE, PROTOCOL_VERSION = 40, 70
_ALERT, _HANDSHAKE = 21, 22
_SERVER_HELLO = 2
MAX_RECORD_BYTES = 2**14
KNOWN_SUITES = tuple(
    suite
    for block in (0x0000, 0xC000, 0xCC00, 0xD000)
    for suite in range(block, block + 256)
    if suite != 0x00FF  # not a cipher: it asks for secure renegotiation
)
"""Every block of numbers in which ciphers of TLS 1.2 and before have been registered."""
STRONG_SUITES = (0xC02B, 0xC02F, 0xC02C, 0xC030)
"""AES-GCM behind ECDHE, for both kinds of certificates."""


@dataclass(frozen=True, slots=True)
class ServerHello:
    version: int
    suite: int
    compression: int
    extensions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Alert:
    code: int


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client offers. `suites` are of TLS 1.2 and before; TLS 1.3 is never offered."""

    version: int = TLS_1_2
    suites: Sequence[int] = STRONG_SUITES
    compressions: Sequence[int] = (0,)
    padding: int = 0
    """Bytes of a padding extension (RFC 7685)."""
    random: bytes = field(default_factory=lambda: os.urandom(32))

    def to_bytes(self) -> bytes:
        """Return the records of this message."""
        body = struct.pack("!H", self.version) + self.random + b"\0"
        body += _sized(2, b"".join(struct.pack("!H", suite) for suite in self.suites))
        body += _sized(1, bytes(self.compressions))
        body += _sized(2, self._extensions())
        message = b"\x01" + _sized(3, body)
        return b"".join(
            struct.pack("!BH", _HANDSHAKE, min(self.version, TLS_1_0)) + _sized(2, message[at : at + MAX_RECORD_BYTES])
            for at in range(0, len(message), MAX_RECORD_BYTES)
        )

    def _extensions(self) -> bytes:
        name = _sized(2, b"\0" + _sized(2, b"localhost"))
        groups = _sized(2, struct.pack("!4H", 0x001D, 0x0017, 0x0018, 0x0019))
        signatures = _sized(2, struct.pack("!8H", 0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0401, 0x0501, 0x0201))
        found = {0x0000: name, 0x000A: groups, 0x000B: b"\x01\0", 0x000D: signatures, 0xFF01: b"\0"}
        if self.padding:
            found[0x0015] = bytes(self.padding)
        return b"".join(struct.pack("!H", kind) + _sized(2, data) for kind, data in found.items())

    def answer_of(self, port: int) -> ServerHello | Alert | None:
        """Return what the server on `port` answers, or None if it closes the connection."""
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(self.to_bytes())
            return read_answer(sock)


def read_answer(sock: socket.socket) -> ServerHello | Alert | None:
    """Return the first message of a server, or None if it closes the connection."""
    try:
        with sock.makefile("rb") as reader:
            head = reader.read(5)
            kind, _, size = struct.unpack("!BHH", head) if len(head) == 5 else (0, 0, 0)
            record = reader.read(size)
    except ConnectionResetError:
        return None
    if kind == _ALERT:
        return Alert(record[1])
    if kind != _HANDSHAKE:
        assert not record, f"neither TLS nor an end: {head + record!r}"
        return None
    assert record[0] == _SERVER_HELLO
    version, session = struct.unpack_from("!H", record, 4)[0], record[38]
    at = 39 + session
    suite, compression = struct.unpack_from("!HB", record, at)
    return ServerHello(version, suite, compression, frozenset(_kinds(record, at + 3)))


def _kinds(record: bytes, at: int) -> Sequence[int]:
    end = at + 2 + struct.unpack_from("!H", record, at)[0]
    at += 2
    kinds = []
    while at < end:
        kind, size = struct.unpack_from("!HH", record, at)
        kinds.append(kind)
        at += 4 + size
    return kinds


def accepted_suites(port: int, version: int = TLS_1_2) -> list[int]:
    """Return all ciphers of TLS 1.2 and before that the server accepts, in the order of its preference."""
    accepted: list[int] = []
    while True:
        answer = ClientHello(version, [suite for suite in KNOWN_SUITES if suite not in accepted]).answer_of(port)
        if not isinstance(answer, ServerHello):
            return accepted
        assert answer.suite not in accepted
        accepted.append(answer.suite)


def _sized(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width) + data
