"""The log lines of a start: where the hub listens, and a first command to try."""

from __future__ import annotations

import logging
import shlex
from typing import Any

from ..address import LOOPBACK_HOSTS, Address
from ..brokers import without_password
from ..config import Config, kubernetes_variables
from .apps import max_streams
from .certificates import Certificates, ServerCertificate

logger = logging.getLogger("ssehub.server")

SocketName = str | tuple[Any, ...]
"""What `socket.getsockname` returns: the path of a Unix socket, or host, port and more."""


def announce(config: Config, certificates: Certificates, client: SocketName, control: SocketName) -> None:
    """Log where browsers and publishers connect, the limits, and a curl command to begin with."""
    logger.info("listening for browsers on %s/events/", url_of(client, certificates.client))
    _warn_of_plain_http(config, "bind", config.bind, certificates.client)
    announce_control(config, certificates.control, control)
    streams = config.workers * max_streams(config)
    logger.info("broker %s, at most %d streams", without_password(config.broker), streams)
    options, url = _curl(config, certificates.control, control)
    logger.info("try: curl %s-d 'userId=alex&channel=chat' %s/token/", options, url)


def announce_control(config: Config, certificate: ServerCertificate | None, name: SocketName) -> None:
    logger.info("listening for publishers on %s/", url_of(name, certificate))
    for name in kubernetes_variables():
        logger.info("%s is ignored: Kubernetes sets it for a Service", name)
    if config.control_bind is not None:
        _warn_of_plain_http(config, "control_bind", config.control_bind, certificate)


def warn_of_plain_http(config: Config, certificates: Certificates) -> None:
    """Log a warning for each port on which secrets could be read on their way."""
    _warn_of_plain_http(config, "bind", config.bind, certificates.client)
    if config.control_bind is not None:
        _warn_of_plain_http(config, "control_bind", config.control_bind, certificates.control)


def _warn_of_plain_http(config: Config, setting: str, address: Address, certificate: ServerCertificate | None) -> None:
    if certificate is not None or address.is_loopback or config.trusted_proxies:
        return
    what, prefix = ("tokens", "") if setting == "bind" else ("the control key", "control_")
    logger.warning(
        "%s %s accepts connections from other machines without TLS, so that %s can be read on the way: set "
        "%stls_cert_file and %stls_key_file, or trusted_proxies if a proxy with TLS is in front of it",
        setting,
        address,
        what,
        prefix,
        prefix,
    )


def _curl(config: Config, certificate: ServerCertificate | None, name: SocketName) -> tuple[str, str]:
    """Return the options that curl needs to call the control app on this socket, and the URL."""
    options, url = "", url_of(name, certificate)
    if isinstance(name, str):
        options += f"--unix-socket {shlex.quote(name)} "
        url = "http://localhost" if certificate is None else "https://localhost"
    if certificate is not None:
        tls_options, url = _trusting(config, certificate, name, url)
        options += tls_options
    if config.requires_control_key:
        options += '-H "Authorization: Bearer $KEY" '
    return options, url


def _trusting(config: Config, certificate: ServerCertificate, name: SocketName, url: str) -> tuple[str, str]:
    """Return the options with which curl trusts the certificate, and `url` with a name that the certificate is for.

    It is told to trust the certificate itself, as the machine may not know its issuer.
    """
    if not certificate.names:  # nothing that curl could compare, such as the URI of a service in a mesh
        return "--insecure ", url
    options = f"--cacert {shlex.quote(str(certificate.cert_file.absolute()))} "
    host = "localhost" if isinstance(name, str) else _host(name)
    if host in certificate.names:
        return options, url
    known = certificate.names[0].replace("*", "hub")
    url = f"https://{_in_brackets(known)}"
    if not isinstance(name, str):
        url += f":{name[1]}"
        options += f"--connect-to ::{_in_brackets(host)}:{name[1]} "
    if known not in (*LOOPBACK_HOSTS, *config.control_hosts):
        options += "-H 'Host: localhost' "
    return options, url


def url_of(name: SocketName, certificate: ServerCertificate | None) -> str:
    """Return the URL of a socket. For one that listens on every interface, that is its URL on loopback."""
    if isinstance(name, str):
        return f"unix:{name}"
    scheme = "http" if certificate is None else "https"
    return f"{scheme}://{_in_brackets(_host(name))}:{name[1]}"


def _host(name: tuple[Any, ...]) -> str:
    host: str = name[0]
    return "127.0.0.1" if host in ("::", "0.0.0.0") else host


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
