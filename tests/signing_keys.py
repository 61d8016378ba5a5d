"""Keys of an identity provider, made with `cryptography`, and tokens signed with them without any JWT library."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
EDDSA = ("EdDSA", "Ed25519")
ASYMMETRIC = (*RSA, *CURVES, *EDDSA)
HMAC = ("HS256", "HS384", "HS512")
CURVE_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_HASHES: dict[str, HashAlgorithm] = {"256": SHA256(), "384": SHA384(), "512": SHA512()}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def private_key(algorithm: str, number: int = 0) -> PrivateKey:
    """Return the key for `algorithm`, the same one for each `number`. The algorithms of RSA share theirs."""
    if algorithm in RSA:
        return _rsa_key(number)
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    return Ed25519PrivateKey.generate()


@cache
def _rsa_key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


def jwk(key: PrivateKey, **members: Any) -> dict[str, Any]:
    """Return the public JSON Web Key of `key`, with further `members`; `...` removes one."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        found = {"kty": "RSA", **{name: unsigned(getattr(public.public_numbers(), name)) for name in ("n", "e")}}
    elif isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        size = (public.curve.key_size + 7) // 8
        found = {"kty": "EC", "crv": CURVE_NAMES[public.curve.name]}
        found |= {"x": b64(point.x.to_bytes(size)), "y": b64(point.y.to_bytes(size))}
    else:
        found = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
    return {name: value for name, value in {**found, **members}.items() if value is not ...}


def unsigned(number: int) -> str:
    return b64(number.to_bytes((number.bit_length() + 7) // 8))


def key_set() -> dict[str, Any]:
    """Return a JWKS with a key for each algorithm, whose `kid` is the algorithm's name."""
    return {"keys": [jwk(private_key(algorithm), kid=algorithm, alg=algorithm, use="sig") for algorithm in ASYMMETRIC]}


def signature(algorithm: str, signed: bytes, key: PrivateKey | str) -> bytes:
    """Sign with a private key, or with a secret."""
    digest = _HASHES.get(algorithm[2:])
    if isinstance(key, str):
        assert digest is not None
        return hmac.new(key.encode(), signed, hashlib.new(digest.name).name).digest()
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(signed)
    assert digest is not None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        size = (key.curve.key_size + 7) // 8
        return r.to_bytes(size) + s.to_bytes(size)
    if algorithm.startswith("PS"):
        return key.sign(signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return key.sign(signed, padding.PKCS1v15(), digest)


def sign(header: bytes, claims: bytes, algorithm: str, key: PrivateKey | str | None = None) -> str:
    """Return a token with these bytes in it. Without `key`, it is signed by the key of the algorithm."""
    signed = f"{b64(header)}.{b64(claims)}"
    return f"{signed}.{b64(signature(algorithm, signed.encode(), private_key(algorithm) if key is None else key))}"


Make = Callable[..., str]


def maker(good: dict[str, Any], algorithm: str, key: PrivateKey | str | None = None) -> Make:
    """Return a function that makes tokens: with the header `header` and the claims `good`, both changed.

    `...` removes a claim or a header.
    """
    usual = {"alg": algorithm, "typ": "JWT"} | ({} if algorithm in HMAC else {"kid": algorithm})

    def make(header: dict[str, Any] | None = None, /, **claims: Any) -> str:
        return sign(
            _without_ellipses({**usual, **(header or {})}), _without_ellipses({**good, **claims}), algorithm, key
        )

    return make


def _without_ellipses(values: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in values.items() if value is not ...}).encode()
