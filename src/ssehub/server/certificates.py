"""The certificate of a port and its key: which ones are refused, and how they are replaced while the hub runs.

Both files are read and judged together, again whenever one of them changes. Each accepted pair makes a context of its
own, with which all later handshakes begin; connections keep the one that they began with. So nothing is ever changed
half: loading into a context that is in use would, for a key of another type, leave the old certificate beside the new.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import logging
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ..config import Config
from ..errors import ConfigError
from ..fanout.statistics import Statistics
from ..watched import NOTHING_YET, LastGood, WatchedFiles, watch

logger = logging.getLogger("ssehub.tls")

WARNING_DAYS = 14
"""A certificate that ends sooner causes a warning, at the start and once a day."""
_WARNING_PART = 1 / 4
"""The same for less of its lifetime, as some are only valid for 6 days. ACME clients renew when a third is left."""
_REMINDER_SECONDS = 86_400.0
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only, which every browser since 2014 has."""
_PLAIN_KEY = (
    "remove its passphrase, e.g. with `openssl pkey -in KEY -out PLAIN_KEY`, and let only the hub read the file"
)


class _Pair(NamedTuple):
    """The content of both files. `names` are the host names and addresses for which the certificate is."""

    context: ssl.SSLContext
    names: Sequence[str]
    not_before: datetime.datetime
    not_after: datetime.datetime


class ServerCertificate:
    """The certificate of `port`, which is `client` or `control`; `prefix` begins the names of its two settings.

    `last_good` is what another process has read last. It is used in place of the files themselves, even if the
    certificate has expired since. Raises ConfigError.
    """

    def __init__(self, port: str, prefix: str, cert_file: Path, key_file: Path, last_good: LastGood) -> None:
        self._port = port
        self._cert_name, self._key_name = f"{prefix}tls_cert_file", f"{prefix}tls_key_file"
        paths = {self._cert_name: cert_file, self._key_name: key_file}
        self.cert_file = cert_file
        contents = {name: last_good[name] for name in paths} if last_good.keys() >= paths.keys() else None
        self._may_have_expired = contents is not None
        self._pair: _Pair
        self._files = WatchedFiles(paths, self._apply, contents=contents)
        self._may_have_expired = False

    @property
    def context(self) -> ssl.SSLContext:
        """The context for handshakes that begin now."""
        return self._pair.context

    @property
    def names(self) -> Sequence[str]:
        """The host names and addresses for which the certificate is, as it writes them. There may be none."""
        return self._pair.names

    @property
    def ends_at(self) -> datetime.datetime:
        """When it is not valid any more."""
        return self._pair.not_after

    @property
    def last_good(self) -> LastGood:
        """The contents of both files that are in use, by their settings."""
        return self._files.contents

    @property
    def problem(self) -> str | None:
        """None: whatever the files contain now, the hub is ready, as the certificate before is in use."""
        return None

    async def run(self) -> None:
        """Read the files again when they change, and warn of the end of the certificate, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(watch([self._files]))
            group.create_task(self._remind())

    async def reload(self) -> None:
        """Read the files now. A log line says what came of it; it raises nothing."""
        await self._files.reload()

    def measure(self, statistics: Statistics) -> None:
        """Write what `/metrics` shows of it."""
        self._files.measure(statistics)
        statistics.tls_not_after[self._port] = self._pair.not_after.timestamp()

    async def _remind(self) -> None:
        while True:
            await asyncio.sleep(_REMINDER_SECONDS)
            self._warn()

    def _apply(self, contents: Mapping[str, str]) -> str:
        pair = _parse(contents[self._cert_name], contents[self._key_name])
        now = _now()
        if pair.not_before > now:
            raise ConfigError(
                f"the certificate is not valid before {_shown(pair.not_before)}: use one that is valid now"
            )
        if pair.not_after <= now and not self._may_have_expired:
            raise ConfigError(f"the certificate expired on {_shown(pair.not_after)}: renew it")
        self._pair = pair
        self._warn()
        names = ", ".join(pair.names) or "no host name (browsers need a subjectAltName)"
        return f"a certificate for {names}, valid until {_shown(pair.not_after)}"

    def _warn(self) -> None:
        """Log a warning if the certificate ends soon, and an error if it has."""
        end, now = self._pair.not_after, _now()
        lifetime = end - self._pair.not_before
        if end <= now:
            logger.error("%s: the certificate expired on %s: renew it", self._cert_name, _shown(end))
        elif end - now < min(datetime.timedelta(days=WARNING_DAYS), _WARNING_PART * lifetime):
            logger.warning("%s: the certificate expires soon, on %s: renew it", self._cert_name, _shown(end))


class Certificates(NamedTuple):
    """The certificates of both ports, None for a port without TLS."""

    client: ServerCertificate | None
    control: ServerCertificate | None

    @property
    def all(self) -> Sequence[ServerCertificate]:
        return [certificate for certificate in self if certificate is not None]


def create_certificates(config: Config, last_good: LastGood = NOTHING_YET) -> Certificates:
    """Return the certificates that `config` names; `last_good` is used in place of the files. Raises ConfigError."""

    def certificate(port: str, prefix: str, cert_file: Path | None, key_file: Path | None) -> ServerCertificate | None:
        if cert_file is None or key_file is None:  # `load_config` refuses one without the other
            return None
        return ServerCertificate(port, prefix, cert_file, key_file, last_good)

    return Certificates(
        certificate("client", "", config.tls_cert_file, config.tls_key_file),
        certificate("control", "control_", config.control_tls_cert_file, config.control_tls_key_file),
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _shown(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _parse(cert_text: str, key_text: str) -> _Pair:
    """Return what the texts of both files contain. Raises ConfigError, without any part of the key."""
    try:
        chain = x509.load_pem_x509_certificates(cert_text.encode())
    except ValueError:
        raise ConfigError("there is no certificate in PEM in the first file, or one is damaged") from None
    try:
        key = load_pem_private_key(key_text.encode(), None)
    except TypeError:
        raise ConfigError(f"the key is encrypted: {_PLAIN_KEY}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("there is no private key in PEM in the second file, or it is damaged") from None
    certificate = chain[0]
    try:
        is_pair = _spki(certificate) == _spki(key)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("the key of the certificate is of an unknown type: use ECDSA (P-256) or RSA") from None
    if not is_pair:
        raise ConfigError(
            "the key does not belong to the certificate, which is the first one in its file: use the key for which it "
            "was issued"
        )
    _check_chain(chain)
    context = _context(cert_text, key_text)
    return _Pair(context, _names(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _spki(holder: Any) -> bytes:
    """Return the public key of a certificate, or of a private key, as certificates have it."""
    encoded: bytes = holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _check_chain(chain: Sequence[x509.Certificate]) -> None:
    """Raise ConfigError unless each certificate was issued by the next one (RFC 8446, section 4.4.2)."""
    for number, (certificate, issuer) in enumerate(itertools.pairwise(chain), 1):
        try:
            with contextlib.suppress(UnsupportedAlgorithm):  # then clients have to judge it
                certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(
                f"certificate {number} in the first file was not issued by certificate {number + 1}: begin with the "
                "server's own, and let each be followed by that of its issuer"
            ) from None


def _names(certificate: x509.Certificate) -> Sequence[str]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return []
    addresses = [str(address) for address in alternative.get_values_for_type(x509.IPAddress)]
    return [*alternative.get_values_for_type(x509.DNSName), *addresses]


def _context(cert_text: str, key_text: str) -> ssl.SSLContext:
    """Return a new context. Raises ConfigError for what OpenSSL does not accept, such as a key that is too short."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # From a copy, as the files may have changed since they were judged.
        with _private_file(cert_text) as cert_path, _private_file(key_text) as key_path:
            context.load_cert_chain(cert_path, key_path, _refuse_to_ask)
    except ssl.SSLError as exc:
        reason = (exc.reason or "unknown error").lower().replace("_", " ")
        raise ConfigError(f"OpenSSL does not accept the certificate or its key: {reason}") from None
    except OSError as exc:
        raise ConfigError(f"the certificate can't be passed to OpenSSL: {exc.strerror}") from None
    return context


def _refuse_to_ask() -> NoReturn:
    """OpenSSL would ask for a passphrase on the terminal."""
    raise ConfigError(f"the key is encrypted: {_PLAIN_KEY}")


@contextlib.contextmanager
def _private_file(text: str) -> Iterator[str]:
    """Make a file that nobody else can read, and in Linux is on no disk: OpenSSL loads from a path only."""
    if hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd"):
        with open(os.memfd_create("ssehub"), "wb", buffering=0) as file:
            file.write(text.encode())
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.TemporaryDirectory(prefix="ssehub-") as folder:  # readable by its owner alone
        path = Path(folder, "pem")
        path.write_text(text, encoding="utf-8")
        yield str(path)
