"""Clients of a hub with TLS: the commands, the publishers, curl, a browser, Node, and HAProxy in front of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Page, sync_playwright

from certificates import Certificate, CertificateAuthority
from commands import run, run_bench
from conftest import CHROMIUM, CONTROL_KEY, FLAGS, RunningHub, StartHub, connects, free_port, require, wait_until, works
from node import NODE, NODE_MODULES, RECONNECT
from proxy import Proxy
from reverse_proxies import running_haproxy
from ssehub import AsyncPublisher, Publisher
from ssehub.errors import InvalidRequest, Unavailable
from streams import get, listen, read_first_frame

FETCH = """async function listenByFetch(url, show) {
  let lastEventId = "";
  for (;;) {
    try {
      const headers = lastEventId ? {"Last-Event-ID": lastEventId} : {};
      const reader = (await fetch(url, {headers})).body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part; !(part = await reader.read()).done;) {
        const frames = (rest + part.value).split("\\n\\n");
        rest = frames.pop();
        for (const frame of frames) {
          const fields = Object.fromEntries(frame.split("\\n").map(line => line.split(": ", 2)));
          lastEventId = fields.id ?? lastEventId;
          if (fields.event === "stream-reset") show("reset");
          if (fields.data !== undefined && fields.event === undefined) show(fields.data);
        }
      }
    } catch (error) {}  // connect again, also after a cut
    await new Promise(done => setTimeout(done, 300));
  }
}"""
"""A client built on `fetch`."""
OPEN = """url => {
  window.received = {native: [], fetch: []};
  const source = new EventSource(url);
  source.onmessage = ({data}) => window.received.native.push(data);
  source.addEventListener("stream-reset", () => window.received.native.push("reset"));
  listenByFetch(url, data => window.received.fetch.push(data));
}"""


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(ca: CertificateAuthority) -> Certificate:
    return ca.issue()


@pytest.fixture(scope="module")
def hub(certificate: Certificate) -> Iterator[RunningHub]:
    """TLS on both ports, and a control key."""
    running = RunningHub(
        *certificate.arguments, *certificate.control_arguments, env={"SSEHUB_CONTROL_KEY": CONTROL_KEY}
    )
    yield running
    running.stop()


def token_for(running: RunningHub, ca: CertificateAuthority, user_id: str = "alex") -> str:
    """Return a token from the control app, over TLS, as the log must not contain it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(ca.path))
        with Publisher(running.control_url, control_key=CONTROL_KEY) as publisher:
            return publisher.token(user_id, "chat")


def test_commands_trust_the_ca_that_ssl_cert_file_names(hub: RunningHub, ca: CertificateAuthority) -> None:
    stream = listen(hub.port, token_for(hub, ca, "kim"), tls=ca.client_context())
    options = ("--control-url", hub.control_url, "--channel", "chat", "--data", "hello")
    variables = {"SSEHUB_CONTROL_KEY": CONTROL_KEY}

    published = run("emit", *options, **variables, SSL_CERT_FILE=str(ca.path))
    stream.read_event("hello")
    untrusted = run("emit", *options, **variables)
    revoked = run("revoke", "--user-id", "kim", *options[:2], **variables, SSL_CERT_FILE=str(ca.path))
    stream.read_until(b"stream-revoked")
    stream.close()

    assert (published.returncode, revoked.returncode) == (0, 0), published.stderr + revoked.stderr
    assert untrusted.returncode == 1
    assert re.fullmatch(
        r"ssehub: https://\S+ can't be reached \(its certificate can't be verified: .* \(SSL_CERT_FILE may .*\)\): "
        r"nothing was sent\n",
        untrusted.stderr,
    )


@pytest.mark.soak
@pytest.mark.only_soak
def test_commands_say_which_scheme_would_do(hub: RunningHub, start_hub: StartHub, ca: CertificateAuthority) -> None:
    plain = start_hub()
    options = ("--channel", "chat", "--data", "x")

    to_plain = run("emit", *options, "--control-url", plain.control_url.replace("http", "https"))
    to_tls = run("emit", *options, "--control-url", hub.control_url.replace("https", "http"))

    assert to_plain.returncode == to_tls.returncode == 1
    assert "it does not speak TLS: use http:// instead of https://" in to_plain.stderr
    assert "responded with 400" in to_tls.stderr and "https" in to_tls.stderr


@pytest.mark.soak
@pytest.mark.only_soak
def test_bench_measures_a_hub_with_tls(hub: RunningHub, ca: CertificateAuthority) -> None:
    options = ("--control-key", CONTROL_KEY)
    pid = str(hub.process.pid)

    trusted = [
        run_bench(hub.url, *options, *more, control_url=hub.control_url, SSL_CERT_FILE=str(ca.path))
        for more in (("--server-pid", pid), ("--subscribers", "40", "--publishers", "3", "--processes", "2"))
    ]
    untrusted = run_bench(hub.url, *options, control_url=hub.control_url)
    no_stream = run_bench(hub.url, *options, control_url=hub.control_url, SSEHUB_TOKEN="t")

    for result in trusted:
        assert result.returncode == 0, result.stdout + result.stderr
        found = json.loads(result.stdout)
        assert found["delivered"] == found["expected"] > 0
    for result in (untrusted, no_stream):
        assert result.returncode == 1
        assert re.fullmatch(r"ssehub: [^\n]*its certificate can't be verified: [^\n]*\n", result.stderr), result.stderr


def test_publisher_trusts_the_ca_that_ssl_cert_file_names(
    hub: RunningHub, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Publisher(hub.control_url, control_key=CONTROL_KEY) as untrusting,
        pytest.raises(Unavailable, match=r"its certificate can't be verified: .*SSL_CERT_FILE.*nothing was sent"),
    ):
        untrusting.emit(channel="chat", user_id="*", data="x")
    with (
        Publisher(hub.control_url.replace("https", "http"), control_key=CONTROL_KEY) as plain,
        pytest.raises(InvalidRequest, match=r"responded with 400: .*https"),
    ):
        plain.emit(channel="chat", user_id="*", data="x")
    stream = listen(hub.port, token_for(hub, ca), tls=ca.client_context())
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.path))
    with Publisher(hub.control_url, control_key=CONTROL_KEY) as publisher:
        publisher.emit(channel="chat", user_id="*", data="by the publisher")

    asyncio.run(publish_in_a_loop(hub.control_url))

    stream.read_event("by the publisher")
    stream.read_event("in a loop")
    stream.close()


async def publish_in_a_loop(url: str) -> None:
    async with AsyncPublisher(url, control_key=CONTROL_KEY) as publisher:
        await publisher.emit(channel="chat", user_id="*", data="in a loop")


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.e2e
def test_curl_resumes_over_tls(hub: RunningHub, ca: CertificateAuthority) -> None:
    require(works("curl", "--version"), "curl")
    url = f"https://localhost:{hub.port}/events/"
    token = token_for(hub, ca)
    variables = {"SSEHUB_CONTROL_KEY": CONTROL_KEY, "SSL_CERT_FILE": str(ca.path)}

    def emit(data: str) -> str:
        arguments = ("--control-url", hub.control_url, "--channel", "chat", "--data", data)
        return run("emit", *arguments, **variables).stdout.strip()

    def curl(*headers: str) -> subprocess.Popen[str]:
        options = [word for header in headers for word in ("-H", header)]
        command = ["curl", "-sSN", "--cacert", str(ca.path), "-H", f"Authorization: Bearer {token}", *options, url]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = emit("before")
    emit("missed")
    with curl(f"Last-Event-ID: {first}") as running:
        assert running.stdout
        lines: list[str] = []
        for line in running.stdout:
            lines.append(line)
            if line == "data: missed\n":
                break
        running.kill()

    assert "data: missed\n" in lines and "data: before\n" not in lines, lines


@pytest.fixture
def page(certificate: Certificate) -> Iterator[Page]:
    """A page of Chromium, which accepts this certificate and no other that it does not trust."""
    require(CHROMIUM.exists(), "chromium")
    public = certificate.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    accepted = base64.b64encode(hashlib.sha256(public).digest()).decode()
    with sync_playwright() as playwright:
        flags = [*FLAGS, f"--ignore-certificate-errors-spki-list={accepted}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser.new_page()
        browser.close()


@contextlib.contextmanager
def in_node(command: list[str], ca: CertificateAuthority) -> Iterator[list[str]]:
    """Run a script of Node; yields the strings that it has printed so far."""
    process = subprocess.Popen(
        [str(NODE), *command],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "NODE_EXTRA_CA_CERTS": str(ca.path)},
    )
    received: list[str] = []

    def collect() -> None:
        assert process.stdout
        for line in process.stdout:
            received.append(json.loads(line))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # NODE is a Python script, which starts the real Node
        process.wait()
        thread.join(5)
        if process.stdout:
            process.stdout.close()


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(120)
def test_browser_and_node_come_back_over_tls_after_a_cut_and_a_drain(
    page: Page, start_hub: StartHub, ca: CertificateAuthority, certificate: Certificate, tmp_path: Path
) -> None:
    require(NODE_MODULES.exists(), "the npm package eventsource")
    addresses = ("--bind", f"127.0.0.1:{free_port()}", "--broker", f"sqlite:///{tmp_path}/log.db")
    arguments = (*addresses, *certificate.arguments, "--drain-seconds", "1")
    hub = start_hub(*arguments)
    with Proxy(hub.port) as proxy:
        origin = f"https://localhost:{proxy.port}"
        url = f"{origin}/events/?token={hub.token()}"
        page.goto(f"{origin}/nothing")
        page.add_script_tag(content=FETCH)
        page.evaluate(OPEN, url)
        script = f"{FETCH}\nlistenByFetch(process.argv[1], data => console.log(JSON.stringify(data)));"
        with in_node([str(RECONNECT), url], ca) as package, in_node(["-e", script, url], ca) as fetching:

            def received() -> dict[str, list[str]]:
                return {**page.evaluate("window.received"), "node": list(package), "node's fetch": list(fetching)}

            def emit_and_wait(running: RunningHub, first: int) -> None:
                for number in range(first, first + 5):
                    running.emit(data=str(number))
                wait_until(lambda: all(data[-1:] == [str(first + 4)] for data in received().values()), 40)

            hub.wait_for("ssehub_subscribers", 4, 20)
            emit_and_wait(hub, 0)
            proxy.cut()
            emit_and_wait(hub, 5)
            hub.stop()
            hub = start_hub(*arguments)
            emit_and_wait(hub, 10)

            expected = [str(number) for number in range(15)]
            assert received() == dict.fromkeys(("native", "fetch", "node", "node's fetch"), expected)


HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen hub
    bind 127.0.0.1:{port}
    server hub 127.0.0.1:{hub} send-proxy-v2
"""
PROXIED = ("--proxy-protocol", "--trusted-proxies", "127.0.0.1", "--max-streams-per-address", "1")


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.only_soak
def test_a15_haproxy_passes_tls_on_behind_its_preamble(
    start_hub: StartHub, ca: CertificateAuthority, certificate: Certificate, tmp_path: Path
) -> None:
    """The clients connect from 127.0.0.2 and 3, and HAProxy from 127.0.0.1."""
    hub = start_hub(*certificate.arguments, *PROXIED)
    port, config = free_port(), tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(hub=hub.port, port=port))
    request, tls = get(f"/events/?token={hub.token()}").encode(), ca.client_context()
    answers = []
    with running_haproxy(config), contextlib.ExitStack() as stack:
        wait_until(lambda: connects(port))
        for address in ("127.0.0.2", "127.0.0.2", "127.0.0.3"):
            plain = socket.create_connection(("127.0.0.1", port), 10, (address, 0))
            sock = stack.enter_context(tls.wrap_socket(plain, server_hostname="localhost"))
            sock.sendall(request)
            answers.append(read_first_frame(sock))
        wait_until(lambda: "from 127.0.0.2" in hub.log)

    assert [b"stream-busy" in answer for answer in answers] == [False, True, False]
    assert "no PROXY preamble" not in hub.log


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.parametrize("cut", [0, 3, 27, 60, 200])
def test_preamble_and_handshake_may_arrive_in_any_parts(
    cut: int, proxied: RunningHub, ca: CertificateAuthority
) -> None:
    """In one segment (`cut` 0), as HAProxy may send them, or divided at this byte."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ca.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    sent = b"PROXY TCP4 127.9.9.9 127.0.0.1 4711 443\r\n" + outgoing.read()
    with socket.create_connection(("127.0.0.1", proxied.port), 10) as sock:
        for part in (sent[:cut], sent[cut:]):
            sock.sendall(part)
            time.sleep(0.05)
        for act in (client.do_handshake, lambda: client.write(get("/events/", "Connection: close").encode())):
            pump(act, sock, incoming, outgoing)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += pump(lambda: client.read(65_536), sock, incoming, outgoing)

    assert answer.startswith(b"HTTP/1.1 401 ")
    wait_until(lambda: "from 127.9.9.9" in proxied.log)


@pytest.fixture(scope="module")
def proxied(certificate: Certificate) -> Iterator[RunningHub]:
    running = RunningHub(*certificate.arguments, *PROXIED)
    yield running
    running.stop()


def pump(act: Callable[[], object], sock: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> bytes:
    """Do `act` of a TLS client, passing on between it and `sock` what that takes; return its result, if it is bytes."""
    while True:
        try:
            result = act()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            received = sock.recv(65_536)
            assert received, "the connection ended"
            incoming.write(received)
        else:
            sock.sendall(outgoing.read())
            return result if isinstance(result, bytes) else b""
