"""The private keys of TLS: whatever happens to their files, no part of them is logged, answered or printed."""

from __future__ import annotations

import base64
import signal
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certificates import CertificateAuthority, Key, key_pem
from client_hello import ClientHello
from commands import run
from conftest import CONTROL_KEY, StartHub, wait_until
from streams import RawStream, get, listen

WINDOW = 16
"""Characters of a key that count as a part of it: 64 bits or more in each spelling."""


def secret_spellings(key: Key) -> Iterator[str]:
    """Yield the secret numbers of `key` as logs and messages might show them, and the body of its file."""
    private = key.private_numbers()
    numbers = [private.private_value] if isinstance(private, ec.EllipticCurvePrivateNumbers) else [private.d, private.p]
    for number in numbers:
        raw = number.to_bytes((number.bit_length() + 7) // 8)
        yield from (str(number), raw.hex(), raw.hex().upper(), raw.hex(":"), repr(raw)[2:-1])
        yield base64.b64encode(raw).decode()
    yield "".join(key_pem(key).decode().splitlines()[1:-1])


def assert_shows_no_part(output: str, *keys: Key) -> None:
    shown = output.replace("\n", "")
    for key in keys:
        for spelling in secret_spellings(key):
            for at in range(0, len(spelling) - WINDOW + 1, WINDOW // 2):
                assert spelling[at : at + WINDOW] not in shown


def broken_pairs(ca: CertificateAuthority) -> Mapping[str, tuple[str, str, Key]]:
    """Return texts of a certificate and its key that can't be used, and the key that they contain a part of."""
    good, other, encrypted = ca.issue(), ca.issue(), ca.issue(password="a passphrase")
    rsa = ca.issue(kind="RSA")
    cert, key = good.cert_file.read_text(), good.key_file.read_text()
    body = key.splitlines()
    return {
        "half a key": (cert, key[: len(key) // 2], good.key),
        "a key without its first line": (cert, "\n".join(body[1:]), good.key),
        "a key with a wrong label": (cert, key.replace("PRIVATE KEY", "EC PRIVATE KEY"), good.key),
        "a damaged key": (cert, key.replace(body[1][-4:], "!!!!"), good.key),
        "a key in place of the certificate": (key, key, good.key),
        "the key of another": (cert, other.key_file.read_text(), other.key),
        "an RSA key for an EC certificate": (cert, rsa.key_file.read_text(), rsa.key),
        "the files swapped": (key, cert, good.key),
        "an encrypted key": (encrypted.cert_file.read_text(), encrypted.key_file.read_text(), encrypted.key),
        "a key on one line": (cert, key.replace("\n", " "), good.key),
        "an expired certificate": (
            (expired := ca.issue(valid_days=(-9, -1))).cert_file.read_text(),
            expired.key_file.read_text(),
            expired.key,
        ),
    }


def test_c17_no_part_of_a_tls_key_is_in_any_output_of_a_hub(start_hub: StartHub, tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path)
    first, second = ca.issue(), ca.issue()
    cert_file, key_file = tmp_path / "live.pem", tmp_path / "live.key"
    cert_file.write_text(first.cert_file.read_text())
    key_file.write_text(first.key_file.read_text())
    options = ("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file))
    hub = start_hub(
        *options, *second.control_arguments, "--log-level", "debug", env={"SSEHUB_CONTROL_KEY": CONTROL_KEY}
    )
    keys, answers = [first.key, second.key], []
    tls = ca.client_context()

    with httpx.Client(
        verify=tls, base_url=hub.control_url, headers={"Authorization": f"Bearer {CONTROL_KEY}"}
    ) as control:
        issued = control.post("/token/", data={"userId": "alex", "channel": "chat"}).text
        stream = listen(hub.port, issued, tls=tls)
        for cert, text, key in broken_pairs(ca).values():
            cert_file.write_text(cert)
            key_file.write_text(text)
            keys.append(key)
            before = len(hub.log)
            hub.signal(signal.SIGHUP)
            wait_until(lambda: "ERROR ssehub.watched" in hub.log[before:])  # noqa: B023  # called at once
        for path in ("/metrics", "/readyz", "/healthz", "/nothing"):
            answers.append(control.get(path).text)
        for sent in (ClientHello(0x0301).to_bytes(), key_file.read_bytes(), get("/events/").encode()):
            client = RawStream(hub.port, sent)
            answers.append(client.read_to_end().decode(errors="replace"))
        with socket.create_connection(("127.0.0.1", hub.port)) as sock, pytest.raises(ssl.SSLError):
            ssl.create_default_context(cadata=second.cert_file.read_text()).wrap_socket(sock, server_hostname="other")
    answers.append(" ".join(psutil.Process(hub.process.pid).cmdline()))
    stream.read_until(b"stream-hello")
    stream.close()
    hub.signal()
    hub.wait()

    assert_shows_no_part("".join([hub.log.replace(issued, ""), *answers, stream.bytes.decode()]), *keys)
    assert hub.log.count("what was read before stays in use") >= len(broken_pairs(ca))


@pytest.mark.soak
@pytest.mark.only_soak
def test_c17_no_part_of_a_tls_key_is_printed_when_a_hub_does_not_start(tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path)
    cert_file, key_file = tmp_path / "live.pem", tmp_path / "live.key"
    for prefix in ("", "control-"):
        for what, (cert, text, key) in broken_pairs(ca).items():
            cert_file.write_text(cert)
            key_file.write_text(text)
            files = (f"--{prefix}tls-cert-file", str(cert_file), f"--{prefix}tls-key-file", str(key_file))
            result = run(
                "serve", *files, "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0", "--log-level", "debug"
            )

            assert result.returncode == 2, what
            assert result.stderr.count("ssehub: ") == 1 and "Traceback" not in result.stderr, what
            assert_shows_no_part(result.stdout + result.stderr, key)
