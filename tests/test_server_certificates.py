"""Certificates of a port: which are refused, when a new pair is taken, and what the hub says of their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pty
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from certificates import Certificate, CertificateAuthority, key_pem
from conftest import SECRET, until
from ssehub.config import load_config
from ssehub.errors import ConfigError
from ssehub.fanout.statistics import Statistics
from ssehub.server.certificates import ServerCertificate
from ssehub.watched import NOTHING_YET, LastGood

DAY_SECONDS = 86_400


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def install(certificate: Certificate, paths: tuple[Path, Path]) -> None:
    """Put copies of both files in place, each by rename."""
    for source, path in zip((certificate.cert_file, certificate.key_file), paths, strict=True):
        new = path.with_suffix(".new")
        shutil.copy(source, new)
        new.rename(path)


def server(paths: tuple[Path, Path], last_good: LastGood = NOTHING_YET) -> ServerCertificate:
    return ServerCertificate("client", "", *paths, last_good)


def presented(context: ssl.SSLContext, ca: CertificateAuthority, *, ciphers: str = "ECDHE") -> int:
    """Return the serial number of the certificate that a server with `context` shows, by a handshake in memory."""
    trusting = ca.client_context()
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    trusting.set_ciphers(ciphers)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname="localhost")
    ours = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


def not_a_pair(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    shutil.copy(ca.issue().key_file, paths[1])


def half_a_certificate(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    text = paths[0].read_text()
    paths[0].write_text(text[: len(text) // 2])


def half_a_key(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    text = paths[1].read_text()
    paths[1].write_text(text[: len(text) // 2])


def key_with_a_passphrase(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    install(ca.issue(password="a passphrase"), paths)


def expired(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    install(ca.issue(valid_days=(-3, -1)), paths)


def not_yet_valid(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    install(ca.issue(valid_days=(1, 3)), paths)


def swapped(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    cert, key = paths
    cert_text, key_text = cert.read_text(), key.read_text()
    cert.write_text(key_text)
    key.write_text(cert_text)


def foreign_chain(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    paths[0].write_text(paths[0].read_text() + ca.issue().cert_file.read_text())


def folder(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    paths[0].unlink()
    paths[0].mkdir()


def missing(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    paths[1].unlink()


def binary(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    paths[0].write_bytes(b"\x30\x82\xff\xfe")


def empty(ca: CertificateAuthority, paths: tuple[Path, Path]) -> None:
    paths[0].write_text("")


Damage = Callable[[CertificateAuthority, tuple[Path, Path]], None]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "not-a-pair": (not_a_pair, "the key does not belong to the certificate"),
    "half-a-certificate": (half_a_certificate, "there is no certificate in PEM in the first file, or one is damaged"),
    "half-a-key": (half_a_key, "there is no private key in PEM in the second file, or it is damaged"),
    "passphrase": (key_with_a_passphrase, "the key is encrypted: remove its passphrase"),
    "expired": (expired, "the certificate expired on "),
    "not-yet-valid": (not_yet_valid, "the certificate is not valid before "),
    "swapped": (swapped, "there is no certificate in PEM in the first file"),
    "foreign-chain": (foreign_chain, "certificate 1 in the first file was not issued by certificate 2"),
    "folder": (folder, "can't be read: Is a directory"),
    "missing": (missing, "can't be read: No such file or directory"),
    "binary": (binary, "can't be read: it is not UTF-8"),
    "empty": (empty, "there is no certificate in PEM in the first file"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
async def test_b35_certificate_that_cannot_be_used_is_refused_and_replaces_nothing(
    damage: Damage, reason: str, ca: CertificateAuthority, paths: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    good = ca.issue()
    install(good, paths)
    running = server(paths)
    context = running.context
    damage(ca, paths)

    with pytest.raises(ConfigError) as refused:
        server(paths)
    await running.reload()

    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert str(paths[0]) in str(refused.value) or str(paths[1]) in str(refused.value)
    assert [record.levelname for record in caplog.records if reason in record.message] == ["ERROR"]
    assert running.context is context and presented(context, ca) == good.serial
    statistics = Statistics()
    running.measure(statistics)
    assert statistics.reload_failures["tls_cert_file"] == 1
    for text in (str(refused.value), caplog.text):
        assert not any(line in text for line in key_pem(good.key).decode().splitlines()[1:-1])


@pytest.mark.anyio
@pytest.mark.parametrize("is_key_first", [False, True], ids=["certificate-first", "key-first"])
async def test_b35_pair_of_which_one_file_is_replaced_first_is_taken_when_the_other_follows(
    is_key_first: bool, ca: CertificateAuthority, paths: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = ca.issue(), ca.issue()
    install(old, paths)
    certificate = server(paths)
    steps = [(new.cert_file, paths[0]), (new.key_file, paths[1])]
    if is_key_first:
        steps.reverse()

    shutil.copy(*steps[0])
    await certificate.reload()
    between = presented(certificate.context, ca)
    shutil.copy(*steps[1])
    await certificate.reload()

    assert (between, presented(certificate.context, ca)) == (old.serial, new.serial)
    assert caplog.text.count("the key does not belong to the certificate") == 1


@pytest.mark.anyio
@pytest.mark.soak
@pytest.mark.only_soak
async def test_b35_files_that_change_one_after_the_other_are_watched_as_a_pair(
    ca: CertificateAuthority, paths: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = ca.issue(), ca.issue()
    install(old, paths)
    certificate = server(paths)
    watching = asyncio.create_task(certificate.run())
    try:
        shutil.copy(new.cert_file, paths[0])
        await until(lambda: "the key does not belong to the certificate" in caplog.text, 20)
        assert presented(certificate.context, ca) == old.serial
        shutil.copy(new.key_file, paths[1])
        await until(lambda: presented(certificate.context, ca) == new.serial, 20)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    assert caplog.text.count("does not belong") == 1


@pytest.mark.anyio
async def test_certificate_with_a_key_of_another_type_replaces_the_old_one_completely(
    ca: CertificateAuthority, paths: tuple[Path, Path]
) -> None:
    install(ca.issue(kind="RSA"), paths)
    certificate = server(paths)
    assert presented(certificate.context, ca, ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    new = ca.issue(kind="EC")
    install(new, paths)

    await certificate.reload()

    assert presented(certificate.context, ca) == new.serial
    with pytest.raises(ssl.SSLError):
        presented(certificate.context, ca, ciphers="ECDHE-RSA-AES128-GCM-SHA256")


def test_certificate_and_key_may_be_in_one_file(ca: CertificateAuthority) -> None:
    issued = ca.issue(is_in_one_file=True)

    certificate = server((issued.cert_file, issued.key_file))

    assert presented(certificate.context, ca) == issued.serial


def test_worker_begins_with_what_its_parent_has_read_even_if_it_has_expired_since(
    ca: CertificateAuthority, paths: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    old = ca.issue(valid_days=(-3, -1))
    last_good = {"tls_cert_file": old.cert_file.read_text(), "tls_key_file": old.key_file.read_text()}

    certificate = server(paths, last_good)

    assert certificate.last_good == last_good
    assert "ERROR" in caplog.text and "the certificate expired on" in caplog.text


@pytest.mark.parametrize(
    ("age", "days", "is_warned"), [(60, 13.9, True), (60, 14.1, False), (4.6, 1.4, True), (4.4, 1.6, False)]
)
def test_certificate_near_its_end_causes_a_warning_and_a_metric_has_its_end(
    age: float,
    days: float,
    is_warned: bool,
    ca: CertificateAuthority,
    paths: tuple[Path, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    issued = ca.issue(valid_days=(-age, days))
    install(issued, paths)
    statistics = Statistics()

    with caplog.at_level(logging.WARNING):
        server(paths).measure(statistics)

    assert ("the certificate expires soon" in caplog.text) == is_warned
    assert abs(statistics.tls_not_after["client"] - (paths[0].stat().st_mtime + days * DAY_SECONDS)) < 300


@pytest.mark.parametrize("name", ["tls_cert_file", "tls_key_file", "control_tls_cert_file", "control_tls_key_file"])
def test_one_file_of_a_pair_without_the_other_is_a_mistake(name: str, ca: CertificateAuthority) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is given without .*: TLS needs a certificate and its key$"):
        load_config({name: ca.path})


def test_b35_key_with_a_passphrase_stops_the_start_and_asks_nobody(ca: CertificateAuthority) -> None:
    """OpenSSL would ask on the terminal, so there is one."""
    issued = ca.issue(password="a passphrase")
    terminal, of_the_process = pty.openpty()
    command = [sys.executable, "-m", "ssehub", "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *issued.arguments],
        stdin=of_the_process,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
    )
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        os.close(terminal)
        os.close(of_the_process)

    assert process.returncode == 2
    assert "the key is encrypted: remove its passphrase" in errors and errors.count("\n") == 1
