"""A CA of the tests, and certificates that it issues for servers: good ones, and each kind of bad one."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

HOSTS = ("localhost", "127.0.0.1", "::1")
_DAY = datetime.timedelta(days=1)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Kind = Literal["EC", "RSA"]
"""P-256, or 2,048 bits."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate, and the files that a server is given."""

    cert_file: Path
    """With the certificates between it and the CA, if there are any."""
    key_file: Path
    serial: int
    key: Key

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of `ssehub serve` for the client app."""
        return ("--tls-cert-file", str(self.cert_file), "--tls-key-file", str(self.key_file))

    @property
    def control_arguments(self) -> tuple[str, ...]:
        """The options of `ssehub serve` for the control app."""
        return ("--control-tls-cert-file", str(self.cert_file), "--control-tls-key-file", str(self.key_file))

    def context(self) -> ssl.SSLContext:
        """Return a context for a server of the test itself."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


class CertificateAuthority:
    """A CA. `path` is the file with its certificate, for SSL_CERT_FILE; everything else is written beside it."""

    def __init__(self, folder: Path, above: CertificateAuthority | None = None) -> None:
        """With a CA `above`, this one is an intermediate: `path` is the certificate of the one above."""
        self._folder = folder
        self._key = _new_key("EC")
        self._name = _name("CA of the tests" if above is None else "intermediate CA of the tests")
        certificate = (above or self)._certificate(self._name, self._key, is_ca=True)
        self._intermediates: list[x509.Certificate] = [] if above is None else [certificate, *above._intermediates]
        if above is None:
            self.path = folder / "ca.pem"
            self.path.write_bytes(_pem(certificate))
        else:
            self.path = above.path

    def issue(
        self,
        hosts: Sequence[str] = HOSTS,
        *,
        uri: str | None = None,
        kind: Kind = "EC",
        valid_days: tuple[float, float] = (-1, 30),
        password: str | None = None,
        is_in_one_file: bool = False,
    ) -> Certificate:
        """Issue a certificate for a server at `hosts`, which are names or addresses, and for a service with this `uri`.

        It is valid for the days from now that `valid_days` gives. With a `password`, its key is encrypted. With
        `is_in_one_file`, the file with the certificate also has the key.
        """
        key = _new_key(kind)
        names = [*map(_host, hosts), *([] if uri is None else [x509.UniformResourceIdentifier(uri)])]
        certificate = self._certificate(_name("a server"), key, names=names, valid_days=valid_days)
        chain = b"".join(_pem(one) for one in (certificate, *self._intermediates))
        key_text = key_pem(key, password)
        stem = f"server-{certificate.serial_number}"
        cert_file, key_file = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        if is_in_one_file:
            key_file = cert_file
            cert_file.write_bytes(key_text + chain)
        else:
            cert_file.write_bytes(chain)
            key_file.write_bytes(key_text)
        key_file.chmod(0o600)
        return Certificate(cert_file, key_file, certificate.serial_number, key)

    def client_context(self) -> ssl.SSLContext:
        """Return a context for clients that trust this CA alone."""
        return ssl.create_default_context(cafile=str(self.path))

    def server_context(self, hosts: Sequence[str] = HOSTS) -> ssl.SSLContext:
        """Return a context for a server of the test itself at `hosts`."""
        return self.issue(hosts).context()

    def _certificate(
        self,
        subject: x509.Name,
        key: Key,
        *,
        is_ca: bool = False,
        names: Sequence[x509.GeneralName] = (),
        valid_days: tuple[float, float] = (-1, 30),
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + valid_days[0] * _DAY)
            .not_valid_after(now + valid_days[1] * _DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        # Python 3.13 and later verify strictly (RFC 5280): these extensions must be there.
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        builder = builder.add_extension(_key_usage(is_ca=is_ca, key=key), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def key_pem(key: Key, password: str | None = None) -> bytes:
    """Return the text of `key`, encrypted if there is a password."""
    encryption = (
        serialization.BestAvailableEncryption(password.encode())
        if password is not None
        else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@functools.cache
def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)  # up to half a second: one for all tests


def _new_key(kind: Kind) -> Key:
    return ec.generate_private_key(ec.SECP256R1()) if kind == "EC" else _rsa_key()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, is_ca: bool, key: Key) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=isinstance(key, rsa.RSAPrivateKey),  # or no client would try key exchange by RSA
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
