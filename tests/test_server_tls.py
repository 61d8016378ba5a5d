"""TLS: handshakes as connections of the server, the transport behind them, and what the process says of its ports.

What clients see of it is in test_tls_protocol.py, test_tls_clients.py and test_tls_streams.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from certificates import CertificateAuthority
from conftest import CheckedLoop, StartHub, require, until
from servers import SERVERS, ServedHub
from ssehub.config import load_config
from ssehub.server.announce import announce
from ssehub.server.certificates import Certificates, ServerCertificate
from ssehub.server.http_server import HttpServer, serve_client_app
from ssehub.server.refusals import UNCOUNTED
from ssehub.settings import RequestLimits

SOAK_ONLY = [pytest.mark.soak, pytest.mark.only_soak]
UVLOOP, ASYNCIO = ("asyncio", {"loop_factory": CheckedLoop}), ("asyncio", {"loop_factory": asyncio.SelectorEventLoop})
either_loop = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(UVLOOP, id="uvloop"), pytest.param(ASYNCIO, id="asyncio")]
)
either_loop_in_soak = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(UVLOOP, id="uvloop"), pytest.param(ASYNCIO, id="asyncio", marks=SOAK_ONLY)]
)
HEAD_SECONDS = 1.0
LARGE_BYTES = 4 * 2**20
Port = tuple[int, HttpServer]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what the server says about the connection or, at /large, with more than any buffer takes."""
    if scope["path"] == "/large":
        response: Any = StreamingResponse(iter([bytes(2**16)] * (LARGE_BYTES // 2**16)))
    else:
        body = (await Request(scope, receive).body()).decode()
        response = PlainTextResponse(f"{scope['scheme']} {scope['client'][0]} {body}")
    await response(scope, receive, send)


@asynccontextmanager
async def serving(
    ca: CertificateAuthority, *, max_connections: int = 100, limits: RequestLimits = RequestLimits()
) -> AsyncIterator[Port]:
    """Serve `app` over TLS in the running loop; yield the port and the server."""
    issued = ca.issue()
    certificate = ServerCertificate("client", "", issued.cert_file, issued.key_file, {})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        port = sock.getsockname()[1]
        server = serve_client_app(
            app, sock, limits=limits, max_connections=max_connections, refusals=UNCOUNTED, certificate=certificate
        )
        try:
            yield port, server
        finally:
            await server.stop(asyncio.get_running_loop().time() + 2)


class Client:
    """TLS over a plain socket, step by step: each part of the handshake is sent as the test says."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    def next(self, step: Callable[[], object]) -> bytes:
        """Do `step` as far as possible, and return what is to be sent then."""
        with contextlib.suppress(ssl.SSLWantReadError):
            step()
        return self._outgoing.read()

    async def receive(self) -> bool:
        """Take what has arrived; return False at the end."""
        data = await self.reader.read(2**16)
        self._incoming.write(data)
        return data != b""

    async def shake_hands(self, *, behind: bytes = b"", step_bytes: int = 10**6) -> None:
        """Do the handshake in parts of `step_bytes`, and send `behind` with the last part of it."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self._outgoing.read(), step_bytes)
                assert await self.receive()
            else:
                break
        if behind:
            self.tls.write(behind)
        await self.send(self._outgoing.read(), step_bytes)

    async def send(self, data: bytes, step_bytes: int = 10**6) -> None:
        for at in range(0, len(data), step_bytes):
            self.writer.write(data[at : at + step_bytes])
            await self.writer.drain()
            await asyncio.sleep(0)

    async def read_to_end(self) -> bytes:
        """Read what the server says until the end of TLS, and don't answer that."""
        read = b""
        while await self.receive():
            try:
                while part := self.tls.read(2**16):
                    read += part
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLZeroReturnError:
                pass
            break
        return read

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.anyio
@either_loop
@pytest.mark.parametrize(
    ("version", "step_bytes"),
    [
        pytest.param(ssl.TLSVersion.TLSv1_2, 1, marks=SOAK_ONLY),
        pytest.param(ssl.TLSVersion.TLSv1_2, 10**6),
        pytest.param(ssl.TLSVersion.TLSv1_3, 1),
        pytest.param(ssl.TLSVersion.TLSv1_3, 100, marks=SOAK_ONLY),
        pytest.param(ssl.TLSVersion.TLSv1_3, 10**6),
    ],
)
async def test_request_right_behind_the_handshake_is_answered(
    version: ssl.TLSVersion, step_bytes: int, ca: CertificateAuthority
) -> None:
    context = ca.client_context()
    context.minimum_version = context.maximum_version = version
    async with serving(ca) as (port, _):
        client = await Client(port, context).connect()
        await client.shake_hands(behind=POST, step_bytes=step_bytes)

        answer = await client.read_to_end()

        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nhttps 127.0.0.1 hello")
        await client.close()


@pytest.mark.anyio
@either_loop_in_soak
async def test_b36_handshake_has_the_time_of_a_head_however_slowly_it_goes_on(ca: CertificateAuthority) -> None:
    async with serving(ca, limits=RequestLimits(head_seconds=HEAD_SECONDS)) as (port, _):
        began = asyncio.get_running_loop().time()
        silent = await Client(port, ca.client_context()).connect()
        slow = await Client(port, ca.client_context()).connect()
        hello = slow.next(slow.tls.do_handshake)
        with contextlib.suppress(ConnectionError):
            for byte in hello:
                await slow.send(bytes([byte]))
                await asyncio.sleep(0.05)
                if slow.reader.at_eof():
                    break

        for client in (silent, slow):
            with contextlib.suppress(ConnectionError):
                assert await client.reader.read() == b""
            await client.close()
        assert asyncio.get_running_loop().time() - began >= HEAD_SECONDS * 0.9


@pytest.mark.anyio
@either_loop_in_soak
async def test_b36_handshakes_count_as_connections_and_the_oldest_makes_room(ca: CertificateAuthority) -> None:
    async with serving(ca, max_connections=3) as (port, _):
        waiting = [await Client(port, ca.client_context()).connect() for _ in range(3)]
        await waiting[1].send(waiting[1].next(waiting[1].tls.do_handshake))
        assert await waiting[1].receive()
        newcomer = await Client(port, ca.client_context()).connect()

        await newcomer.shake_hands(behind=POST)

        assert (await newcomer.read_to_end()).endswith(b"hello")
        with contextlib.suppress(ConnectionError):
            assert await waiting[0].reader.read() == b""
        await waiting[1].shake_hands(behind=POST)
        assert (await waiting[1].read_to_end()).endswith(b"hello")
        for client in (*waiting, newcomer):
            await client.close()


@pytest.mark.anyio
@either_loop_in_soak
async def test_server_that_stops_waits_for_no_handshake(ca: CertificateAuthority) -> None:
    async with serving(ca) as (port, server):
        silent = await Client(port, ca.client_context()).connect()
        begun = await Client(port, ca.client_context()).connect()
        await begun.send(begun.next(begun.tls.do_handshake))
        assert await begun.receive()
        loop = asyncio.get_running_loop()
        now = loop.time()

        await server.stop(now + 60)

        assert loop.time() - now < 30
        for client in (silent, begun):
            await client.close()


@pytest.mark.anyio
@either_loop
async def test_clients_that_vanish_during_the_handshake_leave_nothing_and_no_error(
    ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ca, max_connections=1_000) as (port, _):
        tasks = len(asyncio.all_tasks())
        for cut in range(0, 1_000, 25):
            client = await Client(port, ca.client_context()).connect()
            await client.send(client.next(client.tls.do_handshake)[:cut])
            if cut % 2:
                client.writer.transport.abort()
            else:
                await client.close()
        for is_reset in (True, False):
            client = await Client(port, ca.client_context()).connect()
            await client.shake_hands()
            if is_reset:
                client.writer.transport.abort()
            else:
                await client.close()
        await until(lambda: len(asyncio.all_tasks()) == tasks)

    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.anyio
@either_loop_in_soak
async def test_response_to_a_client_that_does_not_read_waits_for_it_and_arrives_whole(
    ca: CertificateAuthority,
) -> None:
    """Over TLS, too, an app is held up when its client does not read, and the end of the connection waits for it."""
    async with serving(ca) as (port, _):
        client = await Client(port, ca.client_context()).connect()
        await client.shake_hands(behind=b"GET /large HTTP/1.0\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.5)  # everything that can be buffered is

        answer = await client.read_to_end()

        assert len(answer.partition(b"\r\n\r\n")[2]) == LARGE_BYTES
        await client.close()


@pytest.mark.anyio
@either_loop_in_soak
async def test_idle_connection_that_does_not_answer_the_end_of_tls_delays_a_stop_by_a_moment_only(
    ca: CertificateAuthority,
) -> None:
    async with serving(ca) as (port, server):
        idle = await Client(port, ca.client_context()).connect()
        await idle.shake_hands(behind=POST.replace(b"Connection: close\r\n", b""))
        assert await idle.receive()
        loop = asyncio.get_running_loop()
        now = loop.time()

        await server.stop(now + 60)

        assert loop.time() - now < 30
        await idle.close()


@pytest.mark.parametrize(
    "loop",
    [
        pytest.param("uvicorn-fast", marks=SOAK_ONLY),
        "uvicorn-fast-asyncio",
    ],
)
def test_control_app_beside_another_server_speaks_tls(loop: str, ca: CertificateAuthority) -> None:
    issued = ca.issue()
    hub = ServedHub(
        SERVERS[loop],
        SSEHUB_CONTROL_TLS_CERT_FILE=str(issued.cert_file),
        SSEHUB_CONTROL_TLS_KEY_FILE=str(issued.key_file),
    )
    try:
        hub.wait_until_ready()
        url = f"https://{hub.control_address}"

        answer = httpx.post(f"{url}/token/", data={"userId": "alex", "channel": "chat"}, verify=ca.client_context())

        assert answer.status_code == 200
        assert f"listening for publishers on {url}/" in hub.log
    finally:
        hub.stop()


@pytest.mark.soak
@pytest.mark.only_soak
def test_certificate_for_a_port_of_another_server_is_a_mistake(ca: CertificateAuthority) -> None:
    issued = ca.issue()
    files = {"SSEHUB_TLS_CERT_FILE": str(issued.cert_file), "SSEHUB_TLS_KEY_FILE": str(issued.key_file)}
    hub = ServedHub(SERVERS["uvicorn-fast"], **files)  # type: ignore[arg-type]  # mypy takes a name for a keyword
    try:
        assert hub.wait() == 3
        assert "tls_cert_file is for the port of `ssehub serve`" in hub.log
    finally:
        with contextlib.suppress(AssertionError):  # stop() looks for errors in the log
            hub.stop()


@pytest.mark.parametrize(
    ("settings", "certified", "warned_of"),
    [
        pytest.param({"bind": "0.0.0.0:8000"}, False, ["bind"], id="public"),
        pytest.param({"bind": ":8000", "control_bind": ":8001"}, False, ["bind", "control_bind"], id="both"),
        pytest.param({"bind": ":8000", "control_bind": ":8001"}, True, [], id="tls"),
        pytest.param({"bind": ":8000", "trusted_proxies": ["10.0.0.1"]}, False, [], id="behind-a-proxy"),
        pytest.param({}, False, [], id="loopback"),
        pytest.param({"bind": "unix:/run/a", "control_bind": "unix:/run/b"}, False, [], id="unix"),
    ],
)
def test_plain_port_that_other_machines_can_reach_causes_a_warning(
    settings: dict[str, object],
    certified: bool,
    warned_of: list[str],
    ca: CertificateAuthority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    issued = ca.issue()
    certificate = ServerCertificate("client", "", issued.cert_file, issued.key_file, {}) if certified else None
    config = load_config(settings)

    announce(config, Certificates(certificate, certificate), ("0.0.0.0", 8000), ("0.0.0.0", 8001))

    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(" ")[0] for message in warnings] == warned_of
    assert all("without TLS" in message for message in warnings)


@pytest.mark.soak
@pytest.mark.only_soak
def test_login_over_tls_sets_a_secure_cookie_for_pages_of_the_same_origin(
    start_hub: StartHub, ca: CertificateAuthority
) -> None:
    hub = start_hub("--token-cookie", "sse", *ca.issue().arguments)
    with httpx.Client(base_url=hub.url, verify=ca.client_context()) as http:
        bearer = {"Authorization": f"Bearer {hub.token()}"}

        same = http.post("/events/login", headers={**bearer, "Origin": hub.url})
        other = http.post("/events/login", headers={**bearer, "Origin": "https://other.example"})
        # What browsers send if the page itself came without TLS
        plain = http.post(
            "/events/login",
            headers={**bearer, "Origin": hub.url.replace("https", "http"), "Sec-Fetch-Site": "cross-site"},
        )

        assert same.status_code == 204 and "; Secure" in same.headers["set-cookie"]
        assert (other.status_code, plain.status_code) == (403, 403)


@pytest.mark.parametrize("uri", [None, "spiffe://mesh.example/hub"], ids=["no-name", "uri"])
def test_certificate_without_a_host_name_does_not_stop_the_start(
    uri: str | None, ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    issued = ca.issue([], uri=uri)
    certificate = ServerCertificate("control", "control_", issued.cert_file, issued.key_file, {})

    with caplog.at_level(logging.INFO):
        announce(load_config({}), Certificates(None, certificate), ("127.0.0.1", 8000), ("127.0.0.1", 8001))

    assert caplog.messages[-1].startswith("try: curl --insecure -d ")
    assert caplog.messages[-1].endswith(" https://127.0.0.1:8001/token/")


@pytest.mark.soak
@pytest.mark.only_soak
def test_curl_command_in_the_log_works(start_hub: StartHub, ca: CertificateAuthority, tmp_path: Path) -> None:
    require(subprocess.run(["curl", "--version"], capture_output=True).returncode == 0, "curl")
    for hosts in (("localhost", "127.0.0.1"), ("hub.example",), ("*.hub.example", "192.0.2.1"), ("2001:db8::1",), ()):
        issued = ca.issue(hosts)
        for address in ("127.0.0.1:0", f"unix:{tmp_path}/control.sock"):
            hub = start_hub("--control-bind", address, *issued.control_arguments)
            found = re.search(r"try: (curl .*)\n", hub.log)
            assert found is not None

            result = subprocess.run([*shlex.split(found[1]), "-sS"], capture_output=True, text=True, timeout=20)

            assert result.stdout.count(".") == 2 and result.stderr == "", f"{found[1]}: {result.stderr}"
            hub.stop()
