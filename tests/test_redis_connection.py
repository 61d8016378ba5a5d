"""Connecting to Redis: every kind of URL, and the errors for those that do not lead to a usable Redis."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from commands import run
from conftest import SECRET, free_port, until
from redis_nodes import Node, two_nodes
from redis_servers import STREAM, RedisServer
from ssehub.brokers import create_broker
from ssehub.brokers.redis import RedisBroker
from ssehub.brokers.redis.connection import Server
from ssehub.errors import BrokerUnavailable, ConfigError
from ssehub.hub import Hub
from ssehub.revocations import Revocation
from ssehub.runs.model import RunOptions
from ssehub.runs.store import Creation
from ssehub.settings import RedisOptions

pytest_plugins = ("redis_fixtures",)
pytestmark = pytest.mark.anyio

CONFIGURATION = Path(__file__).parent.parent / "docs" / "configuration.md"
RULES = re.findall(r"^    ~\{ssehub\}:\*.*\n(?:    .*\n)*", CONFIGURATION.read_text(), re.MULTILINE)[0].split()
DOCUMENTED = [rule for rule in RULES if rule != "+info"]
"""The rules that docs/configuration.md says a user needs at least."""


# URLs


BAD_URLS = {
    "slash in the password": ("redis://alex:mack/erel@127.0.0.1", "write / as %2F"),
    "question mark in the password": ("redis://alex:mack?erel@127.0.0.1", "write / as %2F"),
    "hash in the password": ("rediss://alex:mack#erel@127.0.0.1", "write / as %2F"),
    "the same with a socket": ("redis+unix://alex:mack/erel@/run/redis.sock", "write / as %2F"),
    "the same with Sentinel": ("redis+sentinel://alex:mack/erel@127.0.0.1/main", "write / as %2F"),
    "bracket": ("redis://alex:mackerel@[::1", "Invalid IPv6 URL"),
    "character that normalises to another": ("redis://alex:mackerel@127.0.0.1\u2100", "not a valid URL"),
    "port": ("redis://alex:mackerel@127.0.0.1:port", "Port could not be cast"),
    "port too large": ("redis://alex:mackerel@127.0.0.1:99999", "Port out of range"),
    "database": ("redis://alex:mackerel@127.0.0.1/one", "database 'one' is not a number"),
    "option": ("redis://alex:mackerel@127.0.0.1?nonsense=1", "unexpected keyword argument 'nonsense'"),
    "Sentinel without a name": ("redis+sentinel://alex:mackerel@127.0.0.1", "the name of the primary is missing"),
    "Sentinel without an address": ("redis+sentinel:///main", "the address of a Sentinel is missing"),
    "Sentinel's option": ("redis+sentinel://127.0.0.1/main?x=y", "unknown option 'x'"),
    "Sentinel's database": ("redis+sentinel://127.0.0.1/main?db=one", "invalid literal"),
}


@pytest.mark.parametrize("kind", BAD_URLS)
def test_invalid_url_is_refused_without_showing_its_password(kind: str) -> None:
    url, expected = BAD_URLS[kind]

    with pytest.raises(ConfigError) as refused:
        create_broker(url)

    text = str(refused.value)
    assert expected in text and "\n" not in text
    assert "mack" not in text and "erel" not in text


@pytest.mark.parametrize("scheme", ["redis", "reddis"])
def test_invalid_url_ends_the_command_with_one_line(scheme: str) -> None:
    result = run(
        *("--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0", "--broker"),
        f"{scheme}://alex:mack/erel@127.0.0.1",
        SSEHUB_SECRET=SECRET,
        SSEHUB_LOG_LEVEL="error",
    )

    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "mack" not in result.stderr and "erel" not in result.stderr


async def check_round_trip(url: str) -> None:
    async with two_nodes(url) as (a, b):
        await b.publish("1")
        await asyncio.gather(a.has("1"), b.has("1"))


async def test_unix_socket_and_database_can_be_used(tmp_path: Path) -> None:
    server = RedisServer("valkey", tmp_path, "--unixsocket", str(tmp_path / "redis.sock"))
    try:
        await check_round_trip(f"redis+unix://{tmp_path}/redis.sock?db=3")
        await check_round_trip(f"{server.url}/4")
        with server.client(db=3) as third, server.client(db=4) as fourth:
            assert third.xlen(STREAM) == fourth.xlen(STREAM) == 1
    finally:
        server.kill()


async def test_tls_can_be_used_and_the_certificate_is_verified(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate))
    server = RedisServer("redis", tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *files)
    try:
        await check_round_trip(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        with unheard_handshakes():
            assert "certificate verify failed" in await refusal_and_problem(f"rediss://127.0.0.1:{port}")
            await asyncio.sleep(0.01)
        assert "cannot use the log" in await refusal_and_problem(f"redis://127.0.0.1:{port}")
    finally:
        server.kill()


@contextlib.contextmanager
def unheard_handshakes() -> Iterator[None]:
    """Let a handshake fail in the very moment in which its connection is cancelled: uvloop reports it to the loop."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    assert before is not None  # that of the test's runner

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), ssl.SSLError):
            before(loop, context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


# Servers that cannot be used


async def refusal(url: str) -> str:
    """Return the error with which a hub fails to start."""
    with pytest.raises(BrokerUnavailable) as refused:
        async with Node(url):
            pass
    text = str(refused.value)
    assert "\n" not in text and "swordfish" not in text
    return text


async def refusal_and_problem(url: str) -> str:
    """Return the same, having checked that a hub which may wait for Redis starts and reports the same problem."""
    text = await refusal(url)
    broker = RedisBroker(url, options=RedisOptions(wait_for_broker=True))
    async with Hub(broker) as hub:
        await until(lambda: broker.problem == text, 10)
        assert hub.not_ready() == [text]
    return text


Answer = Callable[[bytes], bytes]


@pytest.fixture
def start_server() -> Iterator[Callable[[Answer], int]]:
    """Starts servers that reply to everything with what a function returns; returns their ports."""
    with contextlib.ExitStack() as stack:

        def start(answer: Answer) -> int:
            class Handler(socketserver.BaseRequestHandler):
                def handle(self) -> None:
                    with contextlib.suppress(OSError):
                        while data := self.request.recv(65_536):
                            self.request.sendall(answer(data))

            server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            stack.enter_context(server)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return int(server.server_address[1])

        yield start


OLD = b"# Server\r\nredis_version:5.0.7\r\n"
ANSWERS: dict[str, tuple[Answer, str]] = {
    "silence": (lambda data: b"", "no reply in time"),
    "HTTP": (lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol"),
    "OK": (lambda data: b"+OK\r\n", "not a Redis server"),
    "a number": (lambda data: b":1\r\n", "not a Redis server"),
    "an old version": (lambda data: b"$%d\r\n%s\r\n" % (len(OLD), OLD), "Redis 5.0.7 is too old: Redis 6.2 or later"),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_server_that_is_not_a_usable_redis_is_refused(kind: str, start_server: Callable[[Answer], int]) -> None:
    answer, expected = ANSWERS[kind]
    port = start_server(answer)

    assert expected in await refusal_and_problem(f"redis://127.0.0.1:{port}")


async def test_connection_is_closed_if_its_task_is_cancelled_while_closing_it(valkey: RedisServer) -> None:
    closing = asyncio.Event()

    async def use() -> None:
        async with Server(valkey.url, "ssehub").connect(1):
            closing.set()

    task = asyncio.create_task(use())
    await closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await until(lambda: not connections_to(valkey.port))


def connections_to(port: int) -> list[int]:
    """Return the file descriptors of this process's connections to a port."""
    return [found.fd for found in psutil.Process().net_connections() if found.raddr and found.raddr.port == port]


async def test_host_that_does_not_accept_connections_is_refused() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())

        assert "no reply in time" in await refusal_and_problem(f"redis://127.0.0.1:{full.getsockname()[1]}")


async def test_address_without_a_server_is_refused(tmp_path: Path) -> None:
    assert "nowhere.invalid" in await refusal("redis://nowhere.invalid")
    for url in (f"redis+unix://{tmp_path}/none.sock", f"redis://127.0.0.1:{free_port()}"):
        assert "cannot use the log" in await refusal_and_problem(url)
    without_sentinel = await refusal_and_problem(f"redis+sentinel://127.0.0.1:{free_port()}/main")
    assert without_sentinel.endswith("no Sentinel answers that knows a primary of that name")


async def test_tls_to_a_port_without_tls_is_refused(redis_server: RedisServer) -> None:
    assert "cannot use the log" in await refusal_and_problem(f"rediss://127.0.0.1:{redis_server.port}")


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        (["+@all", "allkeys", "allchannels", "nopass"], None),
        (DOCUMENTED, None),
        (["+@read", "allkeys"], "evalsha"),
        ([*DOCUMENTED, "-xadd"], "xadd"),
        ([*DOCUMENTED, "-zadd"], "zadd"),
        ([*DOCUMENTED, "-xread"], "xread"),
        ([*DOCUMENTED, "-hscan"], "hscan"),
        ([*DOCUMENTED, "-hlen"], "hlen"),
        ([*DOCUMENTED, "-rename"], "rename"),
        ([*DOCUMENTED, "-subscribe"], "subscribe"),
        ([*DOCUMENTED, "resetchannels"], "channel"),
        ([*DOCUMENTED, "resetkeys", "~*:log", "~*:state", "~*:key-ages", "~*:keys"], "key"),
        ([*DOCUMENTED, "resetkeys", "~other*"], "key"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_user_without_a_needed_permission_is_refused_at_the_start(
    redis_server: RedisServer, rules: list[str], missing: str | None
) -> None:
    async with Node(redis_server.url) as node:
        await node.publish("the log exists already")
    redis_server.command("ACL", "SETUSER", "alex", "on", ">swordfish", *rules)
    url = f"redis://alex:swordfish@127.0.0.1:{redis_server.port}"

    if missing is None:
        async with Node(url) as node:
            await node.publish("1", idempotency_key="k")
            await node.has("1")
            await node.broker.revoke([Revocation(jti="t")])
            await node.broker.take_back(["jti:t"])
            await node.broker.runs.create("answer", Creation(RunOptions(("chat",), ("alex",))))
            await node.broker.runs.delete("answer")
    else:
        text = await refusal_and_problem(url)
        assert missing in text.lower() or "can't run this command" in text, "Redis 7.0 does not name it in a script"


@pytest.mark.parametrize("credentials", ["", ":swordfish@", "alex:swordfish@"])
async def test_wrong_password_is_refused(redis_server: RedisServer, credentials: str) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "mackerel")

    text = await refusal_and_problem(f"redis://{credentials}127.0.0.1:{redis_server.port}")

    assert "wrong user name or password" in text or "Authentication required" in text
