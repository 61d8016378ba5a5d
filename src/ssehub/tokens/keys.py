"""The public keys of an identity provider: python-jose `Key` classes, built from JSON Web Keys on `cryptography`.

Each key verifies one algorithm (RFC 7518, 3.3 to 3.5; RFC 8037; RFC 9864) and signs nothing. python-jose's own classes
are not used for these keys: they know neither PS256 nor EdDSA, and they accept RSA keys of any size, and keys of any
curve for any ES algorithm (measured with python-jose 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from jose.backends.base import Key

from .compact import decode_base64url

MIN_RSA_BITS = 2_048
MAX_RSA_BITS = 8_192
RSA_EXPONENT = 65_537
EDDSA = ("EdDSA", "Ed25519")
"""Two names of one algorithm (RFC 8037, 3.1; RFC 9864, 2.2)."""

_HASHES: Mapping[str, HashAlgorithm] = {"256": SHA256(), "384": SHA384(), "512": SHA512()}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Mapping[str, tuple[str, ec.EllipticCurve]] = {
    "P-256": ("ES256", ec.SECP256R1()),
    "P-384": ("ES384", ec.SECP384R1()),
    "P-521": ("ES512", ec.SECP521R1()),
}
_FIELD = 2**255 - 19
_D = -121_665 * pow(121_666, -1, _FIELD) % _FIELD
"""The prime and the constant of edwards25519: -x² + y² = 1 + d·x²·y² (RFC 8032, 5.1)."""

ASYMMETRIC = frozenset((*_RSA, *(algorithm for algorithm, _ in _CURVES.values()), *EDDSA))
"""Every algorithm that a key of a JWKS can have."""


class UnusableKey(ValueError):
    """Says why a JSON Web Key can't verify tokens."""


class PublicKey(Key):
    """Verifies signatures of one algorithm. `algorithms` are its names: one, or the two of EdDSA."""

    def __init__(self, kid: str | None, algorithms: tuple[str, ...]) -> None:
        self.kid = kid
        self.algorithms = algorithms

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PublicKey:
        """Return the key that `jwk` (RFC 7517, 4) describes. Raises UnusableKey."""
        _check_purpose(jwk)
        kid, algorithm = jwk.get("kid"), jwk.get("alg")
        if kid is not None and not isinstance(kid, str):
            raise UnusableKey("its kid is not a string")
        if algorithm is not None and not isinstance(algorithm, str):
            raise UnusableKey("its alg is not a string")
        match jwk.get("kty"):
            case "RSA":
                return _rsa_key(jwk, kid, algorithm)
            case "EC":
                return _ec_key(jwk, kid, algorithm)
            case "OKP":
                return _okp_key(jwk, kid, algorithm)
            case "oct":
                raise UnusableKey("it is symmetric (oct): secrets are never taken from a JWKS")
            case kind:
                raise UnusableKey(f"its kty {kind!r:.40} is not RSA, EC or OKP")


class RSAKey(PublicKey):
    """RS256 to RS512, and PS256 to PS512 with a salt as long as the hash (RFC 7518, 3.3 and 3.5)."""

    def __init__(self, kid: str | None, algorithm: str, key: rsa.RSAPublicKey) -> None:
        super().__init__(kid, (algorithm,))
        self._key = key
        self._hash = _HASHES[algorithm[2:]]
        self._padding: padding.AsymmetricPadding = padding.PKCS1v15()
        if algorithm.startswith("PS"):
            self._padding = padding.PSS(padding.MGF1(self._hash), self._hash.digest_size)

    def verify(self, msg: bytes, sig: bytes) -> bool:
        try:
            self._key.verify(sig, msg, self._padding, self._hash)
        except InvalidSignature:
            return False
        return True


class ECKey(PublicKey):
    """ES256, ES384 and ES512: the signature is r and s, each as long as a coordinate (RFC 7518, 3.4)."""

    def __init__(self, kid: str | None, algorithm: str, key: ec.EllipticCurvePublicKey) -> None:
        super().__init__(kid, (algorithm,))
        self._key = key
        self._scheme = ec.ECDSA(_HASHES[algorithm[2:]])
        self._size = _coordinate_size(key.curve)

    def verify(self, msg: bytes, sig: bytes) -> bool:
        size = self._size
        if len(sig) != 2 * size:
            return False
        r, s = int.from_bytes(sig[:size]), int.from_bytes(sig[size:])
        try:
            self._key.verify(encode_dss_signature(r, s), msg, self._scheme)
        except InvalidSignature:
            return False
        return True


class EdKey(PublicKey):
    """EdDSA with Ed25519 (RFC 8037, 3.1)."""

    def __init__(self, kid: str | None, algorithms: tuple[str, ...], key: Ed25519PublicKey) -> None:
        super().__init__(kid, algorithms)
        self._key = key

    def verify(self, msg: bytes, sig: bytes) -> bool:
        try:
            self._key.verify(sig, msg)
        except InvalidSignature:
            return False
        return True


def _check_purpose(jwk: Mapping[str, Any]) -> None:
    """Raise UnusableKey unless the key may verify signatures (RFC 7517, 4.2 and 4.3)."""
    if "use" in jwk and jwk["use"] != "sig":
        raise UnusableKey(f"its use is {jwk['use']!r:.40}, not 'sig'")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise UnusableKey("its key_ops do not include 'verify'")
    if "x5c" in jwk and not {"n", "x"} & jwk.keys():
        raise UnusableKey("it has a certificate (x5c), but no key parameters")


def _rsa_key(jwk: Mapping[str, Any], kid: str | None, algorithm: str | None) -> PublicKey:
    if algorithm is None:
        algorithm = "RS256"
    if algorithm not in _RSA:
        raise UnusableKey(f"its alg {algorithm!r:.40} is not one of {', '.join(_RSA)}, as RSA needs")
    modulus, exponent = _unsigned(jwk, "n"), _unsigned(jwk, "e")
    bits = modulus.bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise UnusableKey(f"its n has {bits} bits: {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted")
    if exponent != RSA_EXPONENT:
        raise UnusableKey(f"its e is not {RSA_EXPONENT}")
    if modulus % 2 == 0:
        raise UnusableKey("its n is even")
    return RSAKey(kid, algorithm, rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _ec_key(jwk: Mapping[str, Any], kid: str | None, algorithm: str | None) -> PublicKey:
    name = jwk.get("crv")
    if not isinstance(name, str) or name not in _CURVES:
        raise UnusableKey(f"its crv {name!r:.40} is not one of {', '.join(_CURVES)}")
    expected, curve = _CURVES[name]
    if algorithm not in (None, expected):
        raise UnusableKey(f"its alg {algorithm!r:.40} is not {expected}, as the curve {name} needs")
    size = _coordinate_size(curve)
    x, y = (int.from_bytes(_octets(jwk, coordinate, size)) for coordinate in ("x", "y"))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError:
        raise UnusableKey(f"its x and y are not a point on {name}") from None
    return ECKey(kid, expected, key)


def _okp_key(jwk: Mapping[str, Any], kid: str | None, algorithm: str | None) -> PublicKey:
    name = jwk.get("crv")
    if name != "Ed25519":
        raise UnusableKey(f"its crv {name!r:.40} is not Ed25519")
    if algorithm not in (None, *EDDSA):
        raise UnusableKey(f"its alg {algorithm!r:.40} is neither EdDSA nor Ed25519, as the curve needs")
    octets = _octets(jwk, "x", 32)
    if not _is_ed25519_point(octets):
        raise UnusableKey("its x is not a point on Ed25519 that can be a key")
    return EdKey(kid, EDDSA if algorithm is None else (algorithm,), Ed25519PublicKey.from_public_bytes(octets))


def _octets(jwk: Mapping[str, Any], name: str, size: int | None = None) -> bytes:
    """Return the member `name` of a JWK, decoded. With `size`, it must have as many octets."""
    value = jwk.get(name)
    try:
        octets = decode_base64url(value) if isinstance(value, str) else b""
    except ValueError:
        raise UnusableKey(f"its {name} is not canonical base64url") from None
    if not octets:
        raise UnusableKey(f"its {name} is missing")
    if size is not None and len(octets) != size:
        raise UnusableKey(f"its {name} has {len(octets)} octets, not {size}")
    return octets


def _unsigned(jwk: Mapping[str, Any], name: str) -> int:
    """Return a Base64urlUInt, which has no leading zeros (RFC 7518, 2)."""
    octets = _octets(jwk, name)
    if octets[0] == 0:
        raise UnusableKey(f"its {name} begins with a zero octet")
    return int.from_bytes(octets)


def _coordinate_size(curve: ec.EllipticCurve) -> int:
    return (curve.key_size + 7) // 8


def _is_ed25519_point(octets: bytes) -> bool:
    """True for the canonical encoding of a point whose order is large (RFC 8032, 5.1.3 and 5.1.4).

    OpenSSL accepts any 32 octets as a key. A point of order 1, 2, 4 or 8 verifies signatures that anybody can make.
    """
    y = int.from_bytes(octets, "little") & (2**255 - 1)
    if y >= _FIELD:
        return False
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _FIELD) % _FIELD
    if pow(x_squared, (_FIELD - 1) // 2, _FIELD) != 1:  # not a square; or 0, in the points of order 1 and 2
        return False
    has_order_4 = y == 0
    has_order_8 = (y * y + x_squared) % _FIELD == 0  # doubled, its y is 0
    return not has_order_4 and not has_order_8
