"""The keys of an identity provider: which JSON Web Keys can verify tokens, and which signatures they verify."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA512
from jose import jws
from jose.constants import ALGORITHMS
from jose.exceptions import JWSError

from signing_keys import ASYMMETRIC, CURVES, RSA, b64, jwk, private_key, sign, signature, unsigned
from ssehub.tokens.keys import PublicKey, UnusableKey

# The examples of the standards: a key, a token, and what it says.
RFC_7515_CLAIMS = b'{"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}'
EXAMPLES: dict[str, tuple[dict[str, Any], str, bytes]] = {
    "RFC-7515-A.2-RS256": (
        {
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql"
            "L-yRT-SF"
            "d2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBE"
            "Ma2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PA"
            "cDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        },
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0"
        "cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJd"
        "bF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn"
        "6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0i"
        "gcN_IoypGlUPQGe77Rw",
        RFC_7515_CLAIMS,
    ),
    "RFC-7515-A.3-ES256": (
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        },
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0"
        "cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        RFC_7515_CLAIMS,
    ),
    "RFC-7515-A.4-ES512": (
        {
            "kty": "EC",
            "crv": "P-521",
            "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
            "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
        },
        "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34"
        "XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
        b"Payload",
    ),
    "RFC-7520-4.2-PS384": (
        {
            "kty": "RSA",
            "alg": "PS384",
            "n": "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMa"
            "JMRBSFKr"
            "Kb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI"
            "9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkR"
            "z5iaiQkqgc5gHdrNP5zw",
            "e": "AQAB",
        },
        "eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzL"
        "CBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmV"
        "ldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4.cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fU"
        "DcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFl"
        "fz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n"
        "6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw",
        "It\u2019s a dangerous business, Frodo, going out your door. You step onto the road, and if you don't keep "
        "your feet, there\u2019s no knowing where you might be swept off to.".encode(),
    ),
    "RFC-8037-A.4-EdDSA": (
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR"
        "4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        b"Example of Ed25519 signing",
    ),
}


@pytest.mark.parametrize(("values", "token", "claims"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_example_of_the_standard_verifies(values: dict[str, Any], token: str, claims: bytes) -> None:
    key = PublicKey.from_jwk(values)

    assert jws.verify(token, key, algorithms=list(key.algorithms)) == claims
    with pytest.raises(JWSError):
        jws.verify(f"{token[:-5]}AAAAA", key, algorithms=list(key.algorithms))


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_signature_of_each_algorithm_verifies_by_its_own_key_only(algorithm: str) -> None:
    key = PublicKey.from_jwk(jwk(private_key(algorithm), alg=algorithm))
    own = signature(algorithm, b"message", private_key(algorithm))
    foreign = signature(algorithm, b"message", private_key(algorithm, 1))

    assert key.algorithms == (algorithm,)
    assert key.verify(b"message", own)
    assert not key.verify(b"massage", own)
    assert not key.verify(b"message", foreign)
    for wrong in (b"", own[:-1], own + b"\0", b"\0" + own, bytes(len(own)), own[::-1]):
        assert not key.verify(b"message", wrong)


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_key_verifies_no_other_algorithm(algorithm: str) -> None:
    """The same private key signs, but for another algorithm: a token's `alg` decides nothing but which key is used."""
    key = PublicKey.from_jwk(jwk(private_key(algorithm), alg=algorithm))
    others = [other for other in RSA if other != algorithm] if algorithm in RSA else []

    assert not any(key.verify(b"x", signature(other, b"x", private_key(algorithm))) for other in others)
    with pytest.raises(JWSError, match="not allowed"):
        jws.verify(sign(b'{"alg":"HS256"}', b"{}", "HS256", "secret"), key, algorithms=list(key.algorithms))


def test_keys_only_verify_and_python_jose_knows_nothing_of_them() -> None:
    before = dict(ALGORITHMS.KEYS), set(ALGORITHMS.SUPPORTED)
    key = PublicKey.from_jwk(jwk(private_key("PS256"), alg="PS256"))

    for method in (key.public_key, key.to_pem, key.to_dict):
        with pytest.raises(NotImplementedError):
            method()
    with pytest.raises(NotImplementedError):
        key.sign(b"x")
    assert (dict(ALGORITHMS.KEYS), set(ALGORITHMS.SUPPORTED)) == before
    assert "PS256" not in ALGORITHMS.SUPPORTED


@pytest.mark.parametrize("salt", [0, 20, 31, 33, padding.PSS.MAX_LENGTH])
def test_ps_signature_with_a_salt_of_another_length_is_refused(salt: int) -> None:
    private = private_key("PS256")
    assert isinstance(private, rsa.RSAPrivateKey)
    key = PublicKey.from_jwk(jwk(private, alg="PS256"))

    signed = private.sign(b"message", padding.PSS(padding.MGF1(SHA256()), salt), SHA256())

    assert not key.verify(b"message", signed)
    assert key.verify(b"message", private.sign(b"message", padding.PSS(padding.MGF1(SHA256()), 32), SHA256()))


def test_ps_signature_with_another_hash_in_its_mask_is_refused() -> None:
    private = private_key("PS256")
    assert isinstance(private, rsa.RSAPrivateKey)

    signed = private.sign(b"message", padding.PSS(padding.MGF1(SHA1()), 32), SHA256())

    assert not PublicKey.from_jwk(jwk(private, alg="PS256")).verify(b"message", signed)


def test_signature_in_der_is_refused() -> None:
    private = private_key("ES256")
    assert isinstance(private, ec.EllipticCurvePrivateKey)

    assert not PublicKey.from_jwk(jwk(private)).verify(b"message", private.sign(b"message", ec.ECDSA(SHA256())))


@pytest.mark.parametrize("algorithm", CURVES)
def test_ec_signature_out_of_range_is_refused(algorithm: str) -> None:
    """r and s of 0 verified every message in Java once (CVE-2022-21449)."""
    private = private_key(algorithm)
    key = PublicKey.from_jwk(jwk(private))
    size = len(signature(algorithm, b"x", private)) // 2
    order = {
        "ES256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        "ES384": int("F" * 48 + "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16),
        "ES512": int("01FF" + "F" * 62 + "FA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16),
    }[algorithm]

    numbers = [0, 1, order - 1, order, order + 1, 256**size - 1]
    for r in numbers:
        for s in numbers:
            assert not key.verify(b"x", r.to_bytes(size) + s.to_bytes(size))


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [("RS512", ("RS256",)), ("ES256", ("ES256",)), ("ES384", ("ES384",)), ("EdDSA", ("EdDSA", "Ed25519"))],
)
def test_key_without_alg_has_the_usual_one(algorithm: str, names: tuple[str, ...]) -> None:
    assert PublicKey.from_jwk(jwk(private_key(algorithm))).algorithms == names


RSA_KEY = jwk(private_key("RS256"))
EC_KEY = jwk(private_key("ES256"))
P384_KEY = jwk(private_key("ES384"))
ED_KEY = jwk(private_key("EdDSA"))
FIELD = 2**255 - 19
ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
"""The y of a point of order 8 on edwards25519, from the list of such points in libsodium."""


def rsa_key(bits: int, **members: Any) -> dict[str, Any]:
    """Return a JWK with an odd modulus of that many bits, which is not a product of two primes."""
    return {"kty": "RSA", "n": unsigned(2 ** (bits - 1) + 1), "e": "AQAB", **members}


def ed_key(y: int) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(y.to_bytes(32, "little"))}


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "its kty None is not RSA, EC or OKP"),
    "kty-unknown": ({"kty": "AKP", "alg": "ML-DSA-44"}, "its kty 'AKP' is not"),
    "kty-list": ({"kty": ["RSA"]}, "its kty ['RSA'] is not"),
    "oct": ({"kty": "oct", "alg": "HS256"}, "it is symmetric (oct)"),
    "kid-number": ({**RSA_KEY, "kid": 5}, "its kid is not a string"),
    "alg-number": ({**RSA_KEY, "alg": 256}, "its alg is not a string"),
    "use-enc": ({**RSA_KEY, "use": "enc"}, "its use is 'enc', not 'sig'"),
    "use-null": ({**RSA_KEY, "use": None}, "its use is None"),
    "ops-sign": ({**RSA_KEY, "key_ops": ["sign"]}, "its key_ops do not include 'verify'"),
    "ops-text": ({**RSA_KEY, "key_ops": "verify"}, "its key_ops do not include 'verify'"),
    "x5c-only": ({"kty": "RSA", "x5c": ["MIIB"]}, "it has a certificate (x5c), but no key parameters"),
    "rsa-1024": (rsa_key(1_024), "its n has 1024 bits: 2048 to 8192 are accepted"),
    "rsa-2047": (rsa_key(2_047), "its n has 2047 bits"),
    "rsa-8193": (rsa_key(8_193), "its n has 8193 bits"),
    "rsa-131072": (rsa_key(131_072), "its n has 131072 bits"),
    "rsa-15": ({**RSA_KEY, "n": unsigned(15)}, "its n has 4 bits"),
    "rsa-even": ({**RSA_KEY, "n": unsigned(2**2_047)}, "its n is even"),
    "rsa-n-missing": ({"kty": "RSA", "e": "AQAB"}, "its n is missing"),
    "rsa-n-number": ({**RSA_KEY, "n": 15}, "its n is missing"),
    "rsa-n-padded": ({**RSA_KEY, "n": RSA_KEY["n"] + "=="}, "its n is not canonical base64url"),
    "rsa-n-standard": ({**RSA_KEY, "n": "+/" + RSA_KEY["n"][2:]}, "its n is not canonical base64url"),
    "rsa-n-line-break": ({**RSA_KEY, "n": RSA_KEY["n"] + "\n"}, "its n is not canonical base64url"),
    "rsa-n-surrogate": ({**RSA_KEY, "n": "\ud800"}, "its n is not canonical base64url"),
    "rsa-n-zero-first": ({**RSA_KEY, "n": b64(b"\0" + (2**2_047 + 1).to_bytes(256))}, "its n begins with a zero"),
    "rsa-e-3": (rsa_key(2_048, e="Aw"), "its e is not 65537"),
    "rsa-e-1": (rsa_key(2_048, e="AQ"), "its e is not 65537"),
    "rsa-e-missing": (rsa_key(2_048, e=""), "its e is missing"),
    "rsa-e-not-canonical": (rsa_key(2_048, e="AQABA"), "its e is not canonical base64url"),
    "rsa-alg-es": ({**RSA_KEY, "alg": "ES256"}, "its alg 'ES256' is not one of RS256"),
    "rsa-alg-hs": ({**RSA_KEY, "alg": "HS256"}, "its alg 'HS256' is not one of RS256"),
    "rsa-alg-oaep": ({**RSA_KEY, "alg": "RSA-OAEP"}, "its alg 'RSA-OAEP' is not one of RS256"),
    "rsa-alg-none": ({**RSA_KEY, "alg": "none"}, "its alg 'none' is not one of RS256"),
    "ec-crv-missing": ({**EC_KEY, "crv": None}, "its crv None is not one of P-256, P-384, P-521"),
    "ec-crv-bitcoin": ({**EC_KEY, "crv": "secp256k1"}, "its crv 'secp256k1' is not one of"),
    "ec-p384-for-es256": ({**P384_KEY, "alg": "ES256"}, "its alg 'ES256' is not ES384, as the curve P-384 needs"),
    "ec-alg-rs": ({**EC_KEY, "alg": "RS256"}, "its alg 'RS256' is not ES256"),
    "ec-another-curve": ({**P384_KEY, "crv": "P-256"}, "its x has 48 octets, not 32"),
    "ec-short": ({**EC_KEY, "x": b64(bytes(31))}, "its x has 31 octets, not 32"),
    "ec-y-missing": ({**EC_KEY, "y": ""}, "its y is missing"),
    "ec-off-the-curve": ({**EC_KEY, "y": EC_KEY["x"]}, "its x and y are not a point on P-256"),
    "ec-zero": ({**EC_KEY, "x": b64(bytes(32)), "y": b64(bytes(32))}, "its x and y are not a point on P-256"),
    "okp-x25519": ({**ED_KEY, "crv": "X25519"}, "its crv 'X25519' is not Ed25519"),
    "okp-ed448": ({**ED_KEY, "crv": "Ed448"}, "its crv 'Ed448' is not Ed25519"),
    "okp-alg-es": ({**ED_KEY, "alg": "ES256"}, "its alg 'ES256' is neither EdDSA nor Ed25519"),
    "okp-short": ({**ED_KEY, "x": b64(bytes(31))}, "its x has 31 octets, not 32"),
    "okp-off-the-curve": (ed_key(2), "its x is not a point on Ed25519 that can be a key"),
    "okp-order-1": (ed_key(1), "its x is not a point"),
    "okp-order-2": (ed_key(FIELD - 1), "its x is not a point"),
    "okp-order-4": (ed_key(0), "its x is not a point"),
    "okp-order-4-negative": (ed_key(2**255), "its x is not a point"),
    "okp-order-8": (ed_key(ORDER_8), "its x is not a point"),
    "okp-order-8-other": (ed_key(FIELD - ORDER_8 + 2**255), "its x is not a point"),
    "okp-not-canonical": (ed_key(FIELD + 3), "its x is not a point"),
}


@pytest.mark.parametrize(("values", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_key_that_must_not_verify_is_unusable(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableKey) as caught:
        PublicKey.from_jwk(values)

    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 150


def test_forgery_with_a_point_of_small_order_would_verify() -> None:
    """Shows why such keys are refused: OpenSSL accepts a signature that needs no private key, for any message."""
    neutral = (1).to_bytes(32, "little")

    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"any message")


@pytest.mark.parametrize("bits", [2_048, 8_192])
def test_rsa_keys_of_2048_to_8192_bits_are_usable(bits: int) -> None:
    assert not PublicKey.from_jwk(rsa_key(bits)).verify(b"x", bytes(bits // 8))


@pytest.mark.parametrize(
    "members",
    [{"use": "sig"}, {"key_ops": ["verify"]}, {"key_ops": ["encrypt", "verify"]}, {"x5c": ["MIIB"]}, {"ext": True}],
)
def test_further_members_do_not_matter(members: dict[str, Any]) -> None:
    assert PublicKey.from_jwk({**RSA_KEY, **members}).algorithms == ("RS256",)


def test_random_ed25519_keys_are_points() -> None:
    for _ in range(200):
        PublicKey.from_jwk(jwk(Ed25519PrivateKey.generate()))


def test_token_with_json_nested_deeply_costs_python_jose_nothing() -> None:
    key = PublicKey.from_jwk(EC_KEY)
    token = sign(b'{"alg":"ES256"}', b"[" * 4_000, "ES256")

    start = time.process_time()
    claims = jws.verify(token, key, algorithms=["ES256"])

    assert claims == b"[" * 4_000
    assert time.process_time() - start < 1
    with pytest.raises((ValueError, RecursionError)):
        json.loads(claims)


def test_unused_hash_is_not_accepted() -> None:
    private = private_key("RS256")
    assert isinstance(private, rsa.RSAPrivateKey)
    key = PublicKey.from_jwk(jwk(private, alg="RS256"))

    for digest in (SHA1(), SHA512()):
        assert not key.verify(b"x", private.sign(b"x", padding.PKCS1v15(), digest))
