"""The PROXY protocol: what a preamble may be, and whose connections it names, with real sockets and a real HAProxy."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import RunningHub, StartHub, connects, free_port, wait_until
from reverse_proxies import running_haproxy
from ssehub.proxies import parse_address
from ssehub.server.proxy_protocol import MAX_V1_BYTES, MAX_V2_BYTES, V2_SIGNATURE, Preamble, parse_preamble
from streams import RawStream, get, read_first_frame

TCP4, TCP6, UNIX_STREAM, UNSPEC, UDP4 = 0x11, 0x21, 0x31, 0x00, 0x12
LINE = b"PROXY TCP4 1.2.3.4 5.6.7.8 4711 443\r\n"


def v2(client: str = "1.2.3.4", *, command: int = 0x21, family: int = TCP4, more: bytes = b"") -> bytes:
    """Return a preamble of version 2, with `more` behind its addresses."""
    kind = socket.AF_INET6 if ":" in client else socket.AF_INET
    server = "::1" if ":" in client else "5.6.7.8"
    block = socket.inet_pton(kind, client) + socket.inet_pton(kind, server) + struct.pack("!HH", 4711, 443) + more
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


@pytest.mark.parametrize(
    ("data", "client"),
    [
        pytest.param(LINE, ("1.2.3.4", 4711), id="v1-tcp4"),
        pytest.param(b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n", ("2001:db8::1", 4711), id="v1-tcp6"),
        pytest.param(b"PROXY TCP6 ::ffff:1.2.3.4 ::1 4711 443\r\n", ("1.2.3.4", 4711), id="v1-mapped"),
        pytest.param(b"PROXY UNKNOWN\r\n", None, id="v1-unknown"),
        pytest.param(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, id="v1-unknown-with-addresses"),
        pytest.param(v2(), ("1.2.3.4", 4711), id="v2-tcp4"),
        pytest.param(v2("2001:db8::1", family=TCP6), ("2001:db8::1", 4711), id="v2-tcp6"),
        pytest.param(v2(more=b"\x04\x00\x03abc"), ("1.2.3.4", 4711), id="v2-with-tlv"),
        pytest.param(v2(command=0x20), None, id="v2-local"),
        pytest.param(V2_SIGNATURE + b"\x20\x00\x00\x00", None, id="v2-local-without-addresses"),
        pytest.param(v2(family=UNSPEC), None, id="v2-unspecified"),
        pytest.param(v2(family=UDP4), None, id="v2-udp"),
        pytest.param(V2_SIGNATURE + struct.pack("!BBH", 0x21, UNIX_STREAM, 216) + bytes(216), None, id="v2-unix"),
        pytest.param(v2(more=bytes(MAX_V2_BYTES - 28)), ("1.2.3.4", 4711), id="v2-longest"),
    ],
)
def test_preamble_is_read_in_whatever_pieces_it_arrives(data: bytes, client: tuple[str, int] | None) -> None:
    assert [parse_preamble(data[:size]) for size in range(1, len(data))] == [None] * (len(data) - 1)
    assert parse_preamble(data) == Preamble(client, len(data))
    assert parse_preamble(data + b"GET / HTTP/1.1\r\n") == Preamble(client, len(data))


MALFORMED = {
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "v1-lower-case": b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "v1-no-address": b"PROXY TCP4\r\n",
    "v1-udp": b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "v1-wrong-family": b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
    "v1-two-spaces": b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
    "v1-name": b"PROXY TCP4 localhost 5.6.7.8 1 2\r\n",
    "v1-port-too-large": b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
    "v1-port-sign": b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
    "v1-not-ascii": b"PROXY TCP4 1.2.3.\xb2 5.6.7.8 1 2\r\n",
    "v1-too-long": b"PROXY UNKNOWN " + b"a" * MAX_V1_BYTES,
    "v1-line-feed-only": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n" + b"a" * MAX_V1_BYTES,
    "v2-version-3": v2(command=0x31),
    "v2-unknown-command": v2(command=0x22),
    "v2-too-long": v2(more=bytes(MAX_V2_BYTES)),
    "v2-longest-length": V2_SIGNATURE + b"\x21\x11\xff\xff",
    "v2-too-short-for-its-addresses": V2_SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_preamble_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_preamble(data)


V1_PIECES = [
    b"PROXY",
    b"TCP4",
    b"TCP6",
    b"UNKNOWN",
    b"1.2.3.4",
    b"::1",
    b"2001:db8::1%eth0",
    b"80",
    b"65536",
    b"+1",
    b"\r\n",
]
PREAMBLES = st.one_of(
    st.binary(max_size=700),
    st.binary(max_size=600).map(lambda rest: V2_SIGNATURE + rest),
    st.text().map(lambda text: f"PROXY TCP4 {text}\r\n".encode()),
    st.lists(st.sampled_from(V1_PIECES), max_size=10).map(b" ".join),
    st.builds(
        lambda command, family, size, rest: V2_SIGNATURE + struct.pack("!BBH", command, family, size) + rest,
        st.sampled_from([0x20, 0x21, 0x22, 0x11, 0]),
        st.sampled_from([UNSPEC, TCP4, UDP4, TCP6, UNIX_STREAM]),
        st.integers(0, 60) | st.integers(500, 600),
        st.binary(max_size=80),
    ),
)


def parsed(data: bytes, step: int) -> Preamble | str | None:
    """Return what is made of `data` when it arrives in pieces of `step` bytes."""
    for size in [*range(step, len(data), step), len(data)]:
        try:
            preamble = parse_preamble(data[:size])
        except ValueError:
            return "refused"
        if preamble is not None:
            return preamble
    return None


@pytest.mark.soak
@settings(max_examples=10_000 if "SOAK" in os.environ else 100, deadline=None)
@given(PREAMBLES, st.integers(1, 9))
@example(b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", 1)
def test_pieces_make_no_difference_to_any_bytes(data: bytes, step: int) -> None:
    whole = parsed(data, max(1, len(data)))

    assert parsed(data, step) == whole
    if isinstance(whole, Preamble) and whole.client is not None:
        assert parse_address(whole.client[0]) is not None and 0 <= whole.client[1] < 2**16


@pytest.mark.soak
@settings(max_examples=10_000 if "SOAK" in os.environ else 100, deadline=None)
@given(PREAMBLES)
def test_any_bytes_are_a_preamble_an_error_or_too_little(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        preamble = parse_preamble(data)
        assert preamble is not None or len(data) < MAX_V2_BYTES


OPTIONS = ("--proxy-protocol", "--trusted-proxies", "127.0.0.0/8", "--max-streams-per-address", "1")


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[RunningHub]:
    """One hub for all tests: each of them uses addresses of its own."""
    hub = RunningHub(*OPTIONS)
    yield hub
    hub.stop()


class Connections:
    """Opens connections to hubs, which stay open until the end of the test."""

    def __init__(self) -> None:
        self._open: list[RawStream] = []

    def __call__(self, hub: RunningHub, request: bytes) -> RawStream:
        self._open.append(RawStream(hub.port, request))
        return self._open[-1]

    def close(self) -> None:
        for stream in self._open:
            stream.close()


@pytest.fixture
def connect() -> Iterator[Connections]:
    connections = Connections()
    yield connections
    connections.close()


def request(hub: RunningHub) -> bytes:
    return get(f"/events/?token={hub.token()}").encode()


def v1(client: str) -> bytes:
    return f"PROXY TCP4 {client} 5.6.7.8 1 2\r\n".encode()


@pytest.mark.parametrize(("make", "address"), [(v1, "1.2.3.4"), (v2, "1.2.3.5")], ids=["v1", "v2"])
def test_a15_streams_are_counted_by_the_address_in_the_preamble(
    connect: Connections, behind_proxy: RunningHub, make: Callable[[str], bytes], address: str
) -> None:

    connect(behind_proxy, make(address) + request(behind_proxy)).read_until(b"stream-hello")
    again = connect(behind_proxy, make(address) + request(behind_proxy))
    other = connect(behind_proxy, make(f"{address}0") + request(behind_proxy))

    again.read_until(b"stream-busy")
    other.read_until(b"stream-hello")
    wait_until(lambda: f"from {address}\n" in behind_proxy.log)


def test_preamble_and_request_arrive_byte_by_byte(connect: Connections, behind_proxy: RunningHub) -> None:
    stream = connect(behind_proxy, b"")
    stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in v2("1.2.4.1") + request(behind_proxy):
        stream.socket.sendall(bytes([byte]))
    stream.read_until(b"stream-hello")


def test_local_preamble_keeps_the_address_of_the_connection(connect: Connections, behind_proxy: RunningHub) -> None:
    first = connect(behind_proxy, v2(command=0x20) + request(behind_proxy))
    first.read_until(b"stream-hello")
    again = connect(behind_proxy, b"PROXY UNKNOWN\r\n" + request(behind_proxy))

    again.read_until(b"stream-busy")
    wait_until(lambda: "from 127.0.0.1" in behind_proxy.log)


@pytest.mark.parametrize("name", ["http", "v1-no-address", "v2-version-3", "v2-longest-length", "v1-too-long"])
def test_connection_of_a_proxy_without_a_preamble_is_closed_without_an_answer(
    connect: Connections, behind_proxy: RunningHub, name: str
) -> None:
    assert connect(behind_proxy, MALFORMED[name]).read_to_end() == b""
    wait_until(lambda: "no PROXY preamble from a trusted proxy" in behind_proxy.log)


def test_nobody_else_may_send_a_preamble(connect: Connections, start_hub: StartHub) -> None:
    hub = start_hub("--proxy-protocol", "--trusted-proxies", "10.0.0.0/8")

    for preamble in (LINE, v2()):
        answer = connect(hub, preamble + request(hub)).read_to_end()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    connect(hub, request(hub)).read_until(b"stream-hello")


def test_preamble_is_refused_where_it_is_not_set(connect: Connections, hub: RunningHub) -> None:
    assert connect(hub, LINE + request(hub)).read_to_end().startswith(b"HTTP/1.1 400 ")


def test_silent_connection_of_a_proxy_is_closed_at_its_deadline_and_does_not_delay_the_end(
    connect: Connections, start_hub: StartHub
) -> None:
    hub = start_hub(*OPTIONS)
    began = time.monotonic()
    assert connect(hub, b"PROXY ").read_to_end(25) == b""
    seconds = time.monotonic() - began
    connect(hub, b"PROXY ")
    hub.signal()

    assert 9 < seconds < 20
    assert hub.wait(8) == 0


def test_proxy_protocol_without_trusted_proxies_is_a_mistake() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ssehub", "--proxy-protocol"], capture_output=True, text=True, timeout=30, check=False
    )

    assert result.returncode == 2
    assert "proxy_protocol needs trusted_proxies" in result.stderr and result.stderr.count("\n") == 1


HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen v1
    bind 127.0.0.1:{v1}
    server hub 127.0.0.1:{hub} send-proxy
listen v2
    bind 127.0.0.1:{v2}
    server hub 127.0.0.1:{hub} send-proxy-v2 check check-send-proxy inter 200
"""


def test_a15_haproxy_says_whose_connection_it_passes_on(start_hub: StartHub, tmp_path: Path) -> None:
    """The clients connect from 127.0.0.2, 3 and 4, and HAProxy from 127.0.0.1."""
    hub = start_hub(*OPTIONS)
    ports = {"v1": free_port(), "v2": free_port()}
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(hub=hub.port, **ports))
    with running_haproxy(config), contextlib.ExitStack() as stack:
        for number, port in enumerate(ports.values(), 2):
            wait_until(lambda port=port: connects(port))  # type: ignore[misc]  # a lambda with a default
            answers = []
            for address in (f"127.0.0.{number}", f"127.0.0.{number}", f"127.0.0.{number + 10}"):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, (address, 0)))
                sock.sendall(request(hub))
                answers.append(read_first_frame(sock))
            assert [b"stream-busy" in answer for answer in answers] == [False, True, False]
        wait_until(lambda: all(f"from 127.0.0.{number}" in hub.log for number in (2, 3)))
        assert "Invalid HTTP" not in hub.log and "no PROXY preamble" not in hub.log
