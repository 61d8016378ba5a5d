"""An identity provider's keys for tests: an HTTPS server that publishes a JWKS, and keys that sign tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from certificates import CertificateAuthority
from signing_keys import jwk, maker

ISSUER = "https://login.example"
AUDIENCE = "hub"
SETTINGS = ("--issuer", ISSUER, "--audience", AUDIENCE, "--channel-claim", "channel")
"""Command-line options that accept tokens by `SigningKey.token`, besides `--jwks`."""


class SigningKey:
    """A key of an identity provider, for ES256. `jwk` is its public half."""

    def __init__(self, kid: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.kid = kid
        self.jwk = jwk(self._key, kid=kid, alg="ES256", use="sig")

    def token(self, sub: str = "alex", channel: str = "chat", **claims: Any) -> str:
        """Return a token that is valid for an hour, unless `claims` say otherwise; `...` leaves a claim out."""
        now = int(time.time())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": sub, "channel": channel, "iat": now, "exp": now + 3_600}
        return maker(good, "ES256", self._key)({"kid": self.kid}, **claims)


def key_set(*keys: SigningKey) -> str:
    """Return the JWKS of these keys."""
    return json.dumps({"keys": [key.jwk for key in keys]})


class JwksServer:
    """Serves `body` at `url`, by HTTPS if there is a `ca`. Everything can be changed while it runs."""

    def __init__(self, body: str | bytes, ca: CertificateAuthority | None = None) -> None:
        self.body = body
        self.status = 200
        self.headers = {"Content-Type": "application/jwk-set+json"}
        self.before_answer: Callable[[], object] = lambda: None
        """Called before each answer: waits, for a server that does not answer."""
        self.requests = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        scheme = "http"
        if ca is not None:
            self._server.socket = ca.server_context().wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                server.before_answer()
                body = server.body.encode() if isinstance(server.body, str) else server.body
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:  # the client has read enough
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
