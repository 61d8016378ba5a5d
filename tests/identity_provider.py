"""An identity provider made here: a key, its JWKS, and the tokens that it signs, right and wrong."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from ssehub import Tokens

ISSUER = "https://id.example"
AUDIENCE = "client-of-the-hub"
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class IdentityProvider:
    """Signs with ES256. `now` returns Unix time in seconds."""

    def __init__(self, key_id: str = "key-1", now: Callable[[], float] = time.time) -> None:
        self.key_id = key_id
        self.now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issued = 0

    @property
    def jwks(self) -> dict[str, Any]:
        public = self._key.public_key().public_numbers()
        point = {"x": b64(public.x.to_bytes(32)), "y": b64(public.y.to_bytes(32))}
        return {"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.key_id, "use": "sig", **point}]}

    def tokens(self, **settings: Any) -> Tokens:
        """Return what accepts the tokens of this provider."""
        defaults = {"issuer": ISSUER, "audience": AUDIENCE, "grant_templates": ["user.{sub}"], "now": self.now}
        return Tokens(jwks=self.jwks, **{**defaults, **settings})

    def sign(self, claims: Any, header: Mapping[str, Any] | None = None) -> str:
        """Return a token. A name of the header or the claims whose value is `...` is left out."""
        head = {"alg": "ES256", "kid": self.key_id, "typ": "logout+jwt", **(header or {})}
        signed = ".".join(
            b64(json.dumps(_present(part) if isinstance(part, dict) else part).encode()) for part in (head, claims)
        )
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(SHA256())))
        return f"{signed}.{b64(r.to_bytes(32) + s.to_bytes(32))}"

    def logout_token(self, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """Return a logout token for the session `s-1` of `alex`, with a new `jti`, changed by `claims`."""
        self._issued += 1
        now = int(self.now())
        good = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "alex",
            "sid": "s-1",
            "iat": now,
            "exp": now + 120,
            "jti": f"logout-{self._issued}",
            "events": {LOGOUT_EVENT: {}},
        }
        return self.sign({**good, **claims}, header)

    def access_token(self, sub: str = "alex", **claims: Any) -> str:
        """Return a token that grants the channel `user.SUB` for an hour."""
        self._issued += 1
        now = int(self.now())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": sub, "iat": now, "exp": now + 3_600, "jti": f"a-{self._issued}"}
        return self.sign({**good, **claims}, {"typ": "at+jwt"})


def _present(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not ...}
