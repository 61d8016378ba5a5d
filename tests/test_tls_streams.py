"""Streams over TLS while their certificate is replaced, while the hub drains or dies, and while clients stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from certificates import Certificate, CertificateAuthority
from conftest import ERROR_LINES, RunningHub, StartHub, free_port, report, wait_until
from crowd import Crowd, crowds, opened, wait_for_last
from proxy import Proxy
from redis_servers import RedisServer
from streams import LAST_CHUNK, NATIVE, RawStream, get, listen

pytest_plugins = ("redis_fixtures",)

SOAK = "SOAK" in os.environ
QUICK = """
import ssehub.watched as watched
watched.LOOK_SECONDS, watched.SETTLE_SECONDS = 0.2, 0.1
from ssehub.cli import main
main()
"""
"""`ssehub` that looks at its files more often, so that a test need not wait for 6 s."""


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


class Live:
    """The two files that a hub reads."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.cert_file, self.key_file = folder / "live.pem", folder / "live.key"
        self.arguments = ("--tls-cert-file", str(self.cert_file), "--tls-key-file", str(self.key_file))
        self.write(certificate.cert_file.read_text(), certificate.key_file.read_text())

    def write(self, cert: str, key: str) -> None:
        for path, text in ((self.cert_file, cert), (self.key_file, key)):
            new = path.with_suffix(".new")
            new.write_text(text)
            new.rename(path)


def served_serial(port: int, ca: CertificateAuthority) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        ca.client_context().wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        certificate = tls.getpeercert()
    assert certificate
    return int(str(certificate["serialNumber"]), 16)


@contextlib.contextmanager
def publishing(hub: RunningHub) -> Iterator[Callable[[], int]]:
    """Publish increasing numbers inside the `with` block; yield a function that stops and returns the last one."""
    is_over = threading.Event()
    number = 0

    def publish() -> None:
        nonlocal number
        with httpx.Client(timeout=30) as http:
            while not is_over.wait(0.02):
                event = {"userId": "*", "channel": "chat", "data": str(number + 1)}
                http.post(f"{hub.control_url}/emit/", json=event).raise_for_status()
                number += 1

    thread = threading.Thread(target=publish)
    thread.start()

    def stop() -> int:
        is_over.set()
        thread.join()
        return number

    try:
        yield stop
    finally:
        stop()


def check_replacement(
    hub: RunningHub, live: Live, first: Certificate, second: Certificate, ca: CertificateAuthority, is_told: bool
) -> None:
    """Replace the certificate by two that can't be used, and then by a good one, under open streams."""
    count = 1_000 if SOAK else 40
    cert, key = second.cert_file.read_text(), second.key_file.read_text()
    broken = {"half a file": (cert[: len(cert) // 2], key), "another's key": (first.cert_file.read_text(), key)}
    workers = hub.log.count("has started")
    processes = workers + 1 if workers else 1  # the workers' parent reads the files, too

    def settle(cert: str, key: str, line: str) -> None:
        before = len(hub.log)
        live.write(cert, key)
        if is_told:
            hub.signal(signal.SIGHUP)
        wait_until(lambda: len(re.findall(line, hub.log[before:])) >= processes, 20)
        time.sleep(8.0 if SOAK else 0.2)
        assert len(re.findall(line, hub.log[before:])) == processes, f"one line each: {hub.log[before:]}"

    with crowds(hub, count, ca=ca.path) as running, publishing(hub) as stop:
        wait_until(lambda: running[0].report().least > 0)
        for cert_text, key_text in broken.values():
            settle(cert_text, key_text, r"(?m)^.* ERROR ssehub.watched: .*live.*stays in use$")
            assert {served_serial(hub.port, ca) for _ in range(10)} == {first.serial}
        settle(cert, key, r"(?m)^.* INFO ssehub.watched: .*live.*have been read again: a certificate for localhost")
        assert {served_serial(hub.port, ca) for _ in range(10)} == {second.serial}
        last = stop()
        wait_for_last(running, last)
        found = running[0].report()

    assert (found.open, found.connected, found.faults, found.resets) == (count, count, 0, 0)
    assert found.most - found.least <= last
    report(f"{count} streams heard {found.least} to {found.most} events over a replaced certificate")


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "is_told",
    [pytest.param(False, id="watched", marks=pytest.mark.only_soak), pytest.param(True, id="SIGHUP")],
)
def test_f7_certificate_is_replaced_under_open_streams(
    is_told: bool, start_hub: StartHub, ca: CertificateAuthority, tmp_path: Path
) -> None:
    first, second = ca.issue(), ca.issue()
    live = Live(tmp_path, first)
    hub = start_hub(*live.arguments, code=None if is_told else QUICK)

    check_replacement(hub, live, first, second, ca, is_told)


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_told", [False, True], ids=["watched", "SIGHUP"])
def test_f7_certificate_of_two_workers_is_replaced_under_open_streams(
    is_told: bool, start_hub: StartHub, ca: CertificateAuthority, tmp_path: Path, valkey: RedisServer
) -> None:
    first, second = ca.issue(), ca.issue()
    live = Live(tmp_path, first)
    hub = start_hub(*live.arguments, "--broker", valkey.url, "--workers", "2")
    wait_until(lambda: hub.log.count("has started") == 2)

    check_replacement(hub, live, first, second, ca, is_told)


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(120)
def test_killed_hub_loses_nothing_over_tls(start_hub: StartHub, ca: CertificateAuthority, tmp_path: Path) -> None:
    count = 500
    arguments = ("--broker", f"sqlite:///{tmp_path}/log.db", "--bind", f"127.0.0.1:{free_port()}")
    certificate = ca.issue()
    hub = start_hub(*arguments, *certificate.arguments)
    with crowds(hub, count, ca=ca.path) as running:
        for number in range(1, 51):
            hub.emit(data=str(number))
        hub.signal(signal.SIGKILL)
        hub.wait()
        hub = start_hub(*arguments, *certificate.arguments)
        for number in range(51, 101):
            hub.emit(data=str(number))
        wait_for_last(running, 100)
        found = running[0].report()

    assert (found.faults, found.resets, found.least, found.most) == (0, 0, 100, 100)
    assert found.connected >= 2 * count


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(120)
def test_f1_streams_over_tls_drain_in_time_and_come_back(
    start_hub: StartHub, ca: CertificateAuthority, tmp_path: Path
) -> None:
    count, window = 500, 5.0
    arguments = ("--broker", f"sqlite:///{tmp_path}/log.db", "--bind", f"127.0.0.1:{free_port()}")
    certificate = ca.issue()
    hub = start_hub(*arguments, *certificate.arguments, "--drain-seconds", str(window))
    token = hub.token()
    tls = ca.client_context()
    stopped = [RawStream(hub.port, get(f"/events/?token={token}"), receive_buffer=4_096, tls=tls) for _ in range(10)]
    ending = listen(hub.port, token, *NATIVE, tls=tls)
    with opened([Crowd(hub.port, token, count, "native", ca.path)]) as running:
        for number in range(1, 11):
            hub.emit(data=str(number))
        wait_for_last(running, 10)
        began = time.monotonic()
        hub.signal()
        assert hub.wait() == 0
        took = time.monotonic() - began
        hub = start_hub(*arguments, *certificate.arguments)
        for number in range(11, 21):
            hub.emit(data=str(number))
        wait_for_last(running, 20)
        found = running[0].report()

    assert (found.faults, found.resets, found.least, found.most) == (0, 0, 20, 20)
    assert took < window + 3
    assert ending.read_to_end().endswith(LAST_CHUNK)
    for stream in stopped:
        stream.close()
    report(f"{count} streams over TLS drained in {took:.1f} s")


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(120)
def test_client_that_never_reads_over_tls_ends_as_slow_and_takes_no_more_than_its_bound(
    start_hub: StartHub, ca: CertificateAuthority
) -> None:
    hub = start_hub(*ca.issue().arguments, "--grace-seconds", "1")
    tls = ca.client_context()
    token = hub.token()
    count = 50
    others = [listen(hub.port, token, tls=tls) for _ in range(5)]
    stopped = [listen(hub.port, token, tls=tls, receive_buffer=4_096) for _ in range(count)]
    process = psutil.Process(hub.process.pid)
    before = process.memory_info().rss
    highest = before

    for number in range(60):
        hub.emit(data=f"{number} " + "x" * 65_536)
        for stream in others:
            stream.read_until(f"data: {number} ".encode())
        highest = max(highest, process.memory_info().rss)
    hub.wait_for('ssehub_endings_total{reason="slow"}', count, 20)
    hub.emit(data="still here")

    for stream in others:
        stream.read_event("still here")
        stream.close()
    for stream in stopped:
        stream.close()
    grown = (highest - before) / count
    report(f"{grown / 1024:.0f} KiB for each client that reads nothing")
    assert grown < 4 * 2**20
    assert not ERROR_LINES.search(hub.log)


@pytest.mark.soak
@pytest.mark.only_soak
def test_cut_inside_a_record_ends_the_stream_and_its_client_resumes(
    start_hub: StartHub, ca: CertificateAuthority
) -> None:
    hub = start_hub(*ca.issue().arguments)
    token, tls = hub.token(), ca.client_context()
    with Proxy(hub.port) as proxy:
        stream = listen(proxy.port, token, tls=tls)
        first = hub.emit(data="first")
        stream.read_event("first")
        proxy.cut_after(1_000)
        hub.emit(data="x" * 5_000)
        with contextlib.suppress(ssl.SSLError):
            stream.read_to_end()
        hub.wait_for("ssehub_subscribers", 0)

        again = listen(proxy.port, token, f"Last-Event-ID: {first}", tls=tls)
        again.read_event("x" * 5_000)
        again.close()

    assert "x" * 5_000 not in stream.body.decode()
    assert not ERROR_LINES.search(hub.log)
