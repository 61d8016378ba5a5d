"""What the TLS port accepts, refuses and survives, asked as scanners such as testssl.sh ask."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

from certificates import Certificate, CertificateAuthority
from client_hello import (
    SSL_3,
    STRONG_SUITES,
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    Alert,
    ClientHello,
    ServerHello,
    accepted_suites,
    read_answer,
)
from conftest import ERROR_LINES, RunningHub, StartHub, report, require, wait_until, works
from streams import RawStream, get, listen

FORWARD_SECRET = {0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9}
"""ECDHE with AES-GCM or ChaCha20: forward secrecy and authenticated encryption."""
WEAK = {
    "NULL": (0x0000, 0x0001, 0x0002, 0x003B, 0xC006, 0xC010),
    "EXPORT": (0x0003, 0x0006, 0x0008, 0x000B, 0x0014),
    "RC4": (0x0004, 0x0005, 0xC007, 0xC011),
    "DES and 3DES": (0x0009, 0x000A, 0x0016, 0xC008, 0xC012),
    "without authentication": (0x0018, 0x001B, 0x0034, 0x006C, 0x00A6, 0xC015, 0xC018),
    "RSA without forward secrecy": (0x002F, 0x0035, 0x003C, 0x003D, 0x009C, 0x009D),
    "pre-shared keys": (0x008C, 0x00A8, 0xC035),
}
RENEGOTIATION_INFO = 0xFF01
HEAD_SECONDS = 1.0


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls(ca: CertificateAuthority) -> ssl.SSLContext:
    return ca.client_context()


@pytest.fixture(scope="module")
def chain(ca: CertificateAuthority) -> Certificate:
    return CertificateAuthority(ca.path.parent, ca).issue()


@pytest.fixture(scope="module")
def hub(chain: Certificate) -> Iterator[RunningHub]:
    """One with a certificate of an intermediate CA, and little patience."""
    running = RunningHub(*chain.arguments, "--head-seconds", str(HEAD_SECONDS))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def rsa_hub(ca: CertificateAuthority) -> Iterator[RunningHub]:
    running = RunningHub(*ca.issue(kind="RSA").arguments)
    yield running
    running.stop()


@pytest.fixture(params=["hub", pytest.param("rsa_hub", marks=[pytest.mark.soak, pytest.mark.only_soak])])
def port(request: pytest.FixtureRequest) -> int:
    """The port of a hub, for each kind of key."""
    running: RunningHub = request.getfixturevalue(request.param)
    return running.port


def connect(port: int, context: ssl.SSLContext, name: str = "localhost", **options: object) -> ssl.SSLSocket:
    """Connect and shake hands. An end without `close_notify` then raises SSLEOFError."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    return context.wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False, **options)  # type: ignore[arg-type]  # mypy knows only the types of each


def read_to_close_notify(sock: ssl.SSLSocket) -> bytes:
    received = b""
    while part := sock.recv(65_536):
        received += part
    return received


@pytest.mark.parametrize("version", [SSL_3, TLS_1_0, TLS_1_1])
def test_old_versions_are_refused(version: int, hub: RunningHub) -> None:
    assert not isinstance(ClientHello(version).answer_of(hub.port), ServerHello)
    assert accepted_suites(hub.port, version) == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_today_are_accepted_and_their_sessions_resumed(
    version: ssl.TLSVersion, hub: RunningHub, ca: CertificateAuthority
) -> None:
    context = ca.client_context()
    context.minimum_version = context.maximum_version = version
    request = get("/events/", "Connection: close").encode()

    with connect(hub.port, context) as first:
        first.sendall(request)
        refusal = read_to_close_notify(first)
        session = first.session
    with connect(hub.port, context, session=session) as second:
        second.sendall(request)
        assert read_to_close_notify(second).startswith(b"HTTP/1.1 401 ")
        assert second.session_reused
        assert second.version() == version.name.replace("_", ".")
        assert second.compression() is None

    assert refusal.startswith(b"HTTP/1.1 401 ")


def test_only_ciphers_with_forward_secrecy_are_accepted(port: int) -> None:
    suites = accepted_suites(port)

    assert set(suites) <= FORWARD_SECRET, [f"{suite:04x}" for suite in suites]
    assert set(suites) & set(STRONG_SUITES)


@pytest.mark.parametrize("suites", WEAK.values(), ids=WEAK)
def test_weak_ciphers_are_refused(suites: Sequence[int], port: int) -> None:
    assert not isinstance(ClientHello(TLS_1_2, suites).answer_of(port), ServerHello)


def test_no_compression_and_secure_renegotiation(hub: RunningHub) -> None:
    answer = ClientHello(compressions=(1, 64, 0)).answer_of(hub.port)

    assert isinstance(answer, ServerHello)
    assert (answer.version, answer.compression) == (TLS_1_2, 0)
    assert RENEGOTIATION_INFO in answer.extensions


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["h2", "http/1.1"], "http/1.1"),
        (["http/1.1"], "http/1.1"),
        ([], None),
    ],
    ids=lambda names: ", ".join(names) if isinstance(names, list) else str(names),
)
def test_http_1_1_is_chosen_and_http_2_never(
    offered: list[str], chosen: str | None, hub: RunningHub, ca: CertificateAuthority
) -> None:
    context = ca.client_context()
    if offered:
        context.set_alpn_protocols(offered)

    with connect(hub.port, context) as sock:
        assert sock.selected_alpn_protocol() == chosen


def test_client_that_can_only_http_2_is_not_told_that_the_hub_can(hub: RunningHub, ca: CertificateAuthority) -> None:
    context = ca.client_context()
    context.set_alpn_protocols(["h2"])

    with contextlib.suppress(ssl.SSLError), connect(hub.port, context) as sock:
        assert sock.selected_alpn_protocol() is None


def test_chain_is_sent_with_the_certificate(hub: RunningHub, tls: ssl.SSLContext, chain: Certificate) -> None:
    """The client has only the CA at the top: without the intermediate one it could not verify anything."""
    with connect(hub.port, tls) as sock:
        certificate = sock.getpeercert()

    assert certificate and int(str(certificate["serialNumber"]), 16) == chain.serial


def test_unknown_name_is_answered_too(hub: RunningHub, ca: CertificateAuthority) -> None:
    context = ca.client_context()
    context.check_hostname = False

    with connect(hub.port, context, "other.example") as sock:
        sock.sendall(get("/events/", "Connection: close").encode())
        assert read_to_close_notify(sock).startswith(b"HTTP/1.1 401 ")


@pytest.mark.soak
@pytest.mark.only_soak
def test_stream_that_ends_properly_ends_with_close_notify(hub: RunningHub, tls: ssl.SSLContext) -> None:
    """Without it, a client can't tell the end from an attacker's cut (RFC 8446, section 6.1)."""
    with connect(hub.port, tls) as sock:
        sock.sendall(get(f"/events/?token={hub.token(exp=2)}", "Connection: close").encode())
        stream = read_to_close_notify(sock)

    assert b"event: stream-expired" in stream


def test_client_that_says_close_notify_ends_its_stream(hub: RunningHub, tls: ssl.SSLContext) -> None:
    stream = listen(hub.port, hub.token(), tls=tls)
    hub.wait_for("ssehub_subscribers", 1)

    assert isinstance(stream.socket, ssl.SSLSocket)
    with contextlib.suppress(OSError):
        stream.socket.unwrap().close()

    hub.wait_for("ssehub_subscribers", 0)
    stream.close()


@pytest.mark.e2e
def test_client_may_not_renegotiate(hub: RunningHub) -> None:
    require(works("openssl", "version"), "openssl")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{hub.port}", "-tls1_2"]

    result = subprocess.run(command, input="R\n", capture_output=True, text=True, timeout=20)

    assert "Secure Renegotiation IS supported" in result.stdout
    assert "RENEGOTIATING" in result.stderr + result.stdout
    assert re.search(r"no renegotiation|handshake failure|unexpected eof|write:errno", result.stderr), result.stderr
    assert result.returncode != 0


def test_plain_http_is_answered_400(hub: RunningHub) -> None:
    response = httpx.get(f"http://127.0.0.1:{hub.port}/events/?token=x")

    assert response.status_code == 400
    assert "use https://" in response.text and len(response.text.splitlines()) == 1


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(os.urandom(200), id="random bytes"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(1_000), id="a record that is too long"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", id="an empty ClientHello"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x28", id="an alert"),
        pytest.param(b"\x80\x2e\x01\x03\x01" + bytes(40), id="a hello of SSL 2"),
        pytest.param(b"\x17\x03\x03\x00\x10" + bytes(16), id="data without a handshake"),
        pytest.param(ClientHello().to_bytes() + os.urandom(400), id="garbage behind a ClientHello"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
        pytest.param(b"\0" * 70_000, id="many zeros"),
    ],
)
def test_what_is_not_tls_is_disconnected_without_an_error(sent: bytes, hub: RunningHub) -> None:
    client = RawStream(hub.port, b"")

    with contextlib.suppress(ConnectionError):
        client.socket.sendall(sent)
        client.read_to_end()

    assert not ERROR_LINES.search(hub.log)


@pytest.mark.parametrize("padding", [15_900, 16_250, 60_000])
def test_client_hello_of_16_kib_is_read(padding: int, hub: RunningHub) -> None:
    hello = ClientHello(padding=padding)

    assert isinstance(hello.answer_of(hub.port), ServerHello)


def test_endless_client_hello_is_not_collected(hub: RunningHub) -> None:
    """OpenSSL takes messages of up to 128 KiB."""
    before = hub.memory_bytes()
    head = b"\x01\xff\xff\xff" + bytes(16_000)
    record = b"\x16\x03\x01" + len(head).to_bytes(2)
    with socket.create_connection(("127.0.0.1", hub.port), 10) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(record + head)
        for _ in range(1_000):
            sock.sendall(b"\x16\x03\x01\x40\x00" + bytes(16_384))
        assert not isinstance(read_answer(sock), ServerHello)

    assert hub.memory_bytes() - before < 8 * 2**20


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.parametrize(
    "sends",
    [pytest.param(b"", id="silent"), pytest.param(ClientHello().to_bytes(), id="one byte after the other")],
)
def test_handshake_that_does_not_end_is_ended_at_the_deadline_of_heads(sends: bytes, hub: RunningHub) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", hub.port)) as sock, contextlib.suppress(ConnectionError):
        sock.settimeout(0.05)
        for byte in [*sends[:-1], *([None] * 1_000)]:
            if byte is not None:
                sock.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if sock.recv(65_536) == b"":
                    break

    assert HEAD_SECONDS - 0.5 < time.monotonic() - began < HEAD_SECONDS + 8


@pytest.mark.soak
@pytest.mark.only_soak
def test_client_that_is_silent_after_its_handshake_is_ended_too(hub: RunningHub, tls: ssl.SSLContext) -> None:
    began = time.monotonic()
    with connect(hub.port, tls) as sock, contextlib.suppress(ConnectionError, ssl.SSLError):
        assert b"HTTP/1.1 408 " in sock.recv(65_536) + b"HTTP/1.1 408 "
        read_to_close_notify(sock)

    assert time.monotonic() - began < HEAD_SECONDS + 8


@pytest.mark.soak
@pytest.mark.only_soak
def test_a14_silent_handshakes_are_counted_and_make_room_for_streams(
    start_hub: StartHub, ca: CertificateAuthority, tls: ssl.SSLContext
) -> None:
    hub = start_hub(*ca.issue().arguments, "--max-connections", "40")
    token = hub.token()
    stream = listen(hub.port, token, tls=tls)
    half_a_hello = ClientHello().to_bytes()[:50]
    silent = [RawStream(hub.port, half_a_hello if number % 2 else b"") for number in range(200)]

    streams = [listen(hub.port, token, tls=tls) for _ in range(30)]
    hub.emit(data="hello")

    for each in (stream, *streams):
        each.read_event("hello")
        each.close()
    closed = [is_closed(each.socket) for each in silent]
    assert sum(closed) >= 231 - 140, "besides 40 streams there may be 100 other connections"
    assert closed == sorted(closed, reverse=True), "the oldest are dropped first"
    for each in silent:
        each.close()
    hub.wait_for("ssehub_subscribers", 0)
    assert not ERROR_LINES.search(hub.log)


def is_closed(sock: socket.socket) -> bool:
    sock.settimeout(0.001)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.only_soak
def test_f12_handshakes_of_a_crowd_leave_the_loop_to_open_streams(
    start_hub: StartHub, ca: CertificateAuthority, tls: ssl.SSLContext
) -> None:
    """A crowd that connects at once would need a second or more if all its handshakes ran in one pass of the loop."""
    count = 1_000
    hub = start_hub(*ca.issue().arguments)
    hello = ClientHello().to_bytes()
    best = float("inf")
    for _ in range(3):
        stream = listen(hub.port, hub.token(), tls=tls)
        newcomers = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(count)]
        with Latencies(hub, stream) as latencies:
            time.sleep(0.3)
            for sock in newcomers:
                sock.sendall(hello)
            for sock in newcomers:
                assert isinstance(read_answer(sock), ServerHello | Alert)
            time.sleep(0.3)
        for sock in newcomers:
            sock.close()
        stream.close()
        report(f"{count} handshakes: an event took at most {latencies.longest * 1000:.0f} ms")
        best = min(best, latencies.longest)
        if best < 0.1:
            break
    assert best < 0.1


class Latencies:
    """Publishes an event every 10 ms inside the `with` block, and measures how late the latest one arrived."""

    def __init__(self, hub: RunningHub, stream: RawStream) -> None:
        self.longest = 0.0
        self._hub = hub
        self._stream = stream
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        with httpx.Client() as http:
            while not self._is_over.wait(0.01):
                number += 1
                began = time.monotonic()
                event = {"userId": "*", "channel": "chat", "data": f"number {number}"}
                http.post(f"{self._hub.control_url}/emit/", json=event).raise_for_status()
                self._stream.read_until(f"data: number {number}\n".encode())
                self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Latencies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def test_vanished_and_reset_clients_end_their_streams(hub: RunningHub, tls: ssl.SSLContext) -> None:
    streams = [listen(hub.port, hub.token(), tls=tls) for _ in range(10)]
    hub.wait_for("ssehub_subscribers", 10)

    for number, stream in enumerate(streams):
        stream.reset() if number % 2 else stream.close()

    wait_until(lambda: hub.metric("ssehub_subscribers") == 0)
    assert not ERROR_LINES.search(hub.log)
