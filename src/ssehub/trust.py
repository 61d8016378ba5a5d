"""TLS in the clients of this package: the CAs that they trust, and why a connection failed."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress

_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""OpenSSL's reasons when a server answers a handshake with something else. Which one depends on its version."""


def client_context() -> ssl.SSLContext:
    """Return a context that trusts the CAs of this machine, or those that SSL_CERT_FILE or SSL_CERT_DIR name.

    Reads files, which takes up to 40 ms. httpx would trust only the list that certifi brings, which a company's own CA
    is never in.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:  # this machine has none
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def tls_problem(exc: BaseException) -> str | None:
    """Return why TLS failed, in a few words about the server, or None if `exc` has another cause."""
    for below in causes(exc):
        if isinstance(below, ssl.SSLCertVerificationError):
            return (
                f"its certificate can't be verified: {below.verify_message} (SSL_CERT_FILE may name the certificate of "
                "a CA of your own)"
            )
        if isinstance(below, ssl.SSLError) and below.reason in _NOT_TLS:
            return "it does not speak TLS: use http:// instead of https://"
    return None


def causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield `exc` and the exceptions that led to it, the nearest first."""
    seen: set[int] = set()
    waiting = [exc]
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions
        waiting += [each for each in (current.__cause__, current.__context__) if each is not None]
