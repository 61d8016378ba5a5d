"""Bad tokens of every kind in matrix B of docs/reliability.md, with the reason why each is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signing_keys import ASYMMETRIC, HMAC, Make, b64, jwk, key_set, maker, private_key, sign
from ssehub.errors import TokenReason
from ssehub.tokens import MAX_TOKEN_LENGTH, Tokens

NOW = 1_700_000_000.0
SECRET = "the secret that signs, of 32 bytes or more"
OLD_SECRET = "the secret before it, also of 32 bytes or more"
OTHER_SECRET = "a secret of somebody else, of 32 bytes or more"
ISSUER = "https://login.example"
TIMES = {"iat": NOW - 60, "exp": NOW + 60}
BY_SECRET = {"userId": "alex", "channel": "chat", **TIMES}
BY_PROVIDER = {"iss": ISSUER, "aud": "hub", "sub": "alex", "listen": ["chat"], **TIMES}
ALGORITHMS = (*HMAC, *ASYMMETRIC)
PROVIDER: dict[str, Any] = {"issuer": ISSUER, "audience": ["hub", "other-hub"], "channel_claim": "listen"}


def tokens(**settings: Any) -> Tokens:
    """Return tokens with two secrets and a key for each algorithm, for which it is always NOW."""
    usual = {"jwks": key_set(), "max_token_seconds": 3_600, "now": lambda: NOW, **PROVIDER}
    return Tokens([SECRET, OLD_SECRET], **{**usual, **settings})


def make_of(algorithm: str, key: Any = None, **claims: Any) -> Make:
    """Return a function that makes tokens with this algorithm, with good claims."""
    good = BY_SECRET if algorithm in HMAC else BY_PROVIDER
    return maker({**good, **claims}, algorithm, SECRET if algorithm in HMAC and key is None else key)


def foreign_key(algorithm: str) -> Any:
    return OTHER_SECRET if algorithm in HMAC else private_key(algorithm, 1)


class Bad(NamedTuple):
    token: str
    reason: TokenReason


def raw(algorithm: str, header: bytes | None = None, claims: bytes | None = None) -> str:
    """Return a signed token with these bytes in it."""
    usual = {"alg": algorithm} | ({} if algorithm in HMAC else {"kid": algorithm})
    good = BY_SECRET if algorithm in HMAC else BY_PROVIDER
    return sign(
        header or json.dumps(usual).encode(),
        claims or json.dumps(good).encode(),
        algorithm,
        SECRET if algorithm in HMAC else None,
    )


def with_number(algorithm: str, name: str, number: str) -> str:
    """Return a token with a claim that `json` would not write so."""
    good = BY_SECRET if algorithm in HMAC else BY_PROVIDER
    others = json.dumps({claim: value for claim, value in good.items() if claim != name})
    return raw(algorithm, claims=f'{others[:-1]}, "{name}": {number}}}'.encode())


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def flipped(text: str, at: int = 0) -> str:
    """Flip one bit of base64url."""
    octets = bytearray(unb64(text))
    octets[at] ^= 1
    return b64(bytes(octets))


MALFORMED, CLAIMS, TYPE = TokenReason.MALFORMED, TokenReason.CLAIMS, TokenReason.TYPE
LIFETIME, EXPIRED, EARLY = TokenReason.LIFETIME, TokenReason.EXPIRED, TokenReason.NOT_YET_VALID
ALGORITHM, SIGNATURE, UNKNOWN_KEY = TokenReason.ALGORITHM, TokenReason.SIGNATURE, TokenReason.UNKNOWN_KEY
DEEP = b"[" * 5_000


def forms(algorithm: str) -> Iterator[tuple[str, str, TokenReason]]:
    """Rows B1 to B4, B13 and B14: what is not a token of the canonical form, or not of JSON objects."""
    good = make_of(algorithm)()
    head_, claims, sig = good.split(".")
    for kind, token in {"empty": "", "space": " ", "dot": ".", "dots": "..", "junk": "a.b"}.items():
        yield f"B1-{kind}", token, MALFORMED
    yield "B1-four-segments", f"{good}.x", MALFORMED
    yield "B1-five-segments", f"{good}.x.y", MALFORMED
    yield "B1-two-segments", f"{head_}.{claims}", MALFORMED
    yield "B1-without-claims", f"{head_}..{sig}", MALFORMED
    yield "B2-not-ascii", f"{good}é", MALFORMED
    yield "B2-surrogate", f"{good}\udc80", MALFORMED
    yield "B2-newline", f"{good}\n", MALFORMED
    yield "B2-leading-space", f" {good}", MALFORMED
    yield "B3-header-not-json", raw(algorithm, header=b"nonsense"), MALFORMED
    yield "B3-header-list", raw(algorithm, header=b"[]"), MALFORMED
    yield "B3-header-not-utf8", raw(algorithm, header=b"\xff\xfe"), MALFORMED
    yield "B3-header-deep", raw(algorithm, header=b"[" * 700), MALFORMED
    yield "B3-header-very-deep", raw(algorithm, header=DEEP), MALFORMED
    yield "B3-header-number", raw(algorithm, header=b"9" * 5_000), MALFORMED
    yield "B4-claims-not-json", raw(algorithm, claims=b"nonsense"), MALFORMED
    yield "B4-claims-list", raw(algorithm, claims=b"[]"), MALFORMED
    yield "B4-claims-not-utf8", raw(algorithm, claims=b'{"sub":"\xff"}'), MALFORMED
    yield "B4-claims-deep", raw(algorithm, claims=DEEP), MALFORMED
    yield "B4-second-exp-counts", with_number(algorithm, "x", f'1, "exp": {NOW - 60}'), EXPIRED
    yield "B13-just-too-long", "x" * (MAX_TOKEN_LENGTH + 1), MALFORMED
    yield "B13-signed-and-too-long", make_of(algorithm)(pad="x" * MAX_TOKEN_LENGTH), MALFORMED
    yield "B13-megabyte", make_of(algorithm)(pad="x" * 2**20), MALFORMED
    yield "B14-JWE", ".".join([b64(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), *["AAAA"] * 4]), MALFORMED
    yield "B14-JWE-header", make_of(algorithm)({"alg": "dir", "enc": "A256GCM"}), ALGORITHM


def headers(algorithm: str) -> Iterator[tuple[str, str, TokenReason]]:
    """Rows B5 and B6: algorithms, headers that change the meaning, and keys that the token itself brings along."""
    make, foreign = make_of(algorithm), make_of(algorithm, foreign_key(algorithm))
    for name in ("none", "None", "NONE", "nOnE", "", "HS1", "RS1", algorithm.lower() + " ", "ES256K", "ML-DSA-44"):
        yield f"B5-alg-{name}", make({"alg": name}), ALGORITHM
        yield f"B5-alg-{name}-unsigned", make({"alg": name}).rpartition(".")[0] + ".", MALFORMED
    for name, value in {"list": [algorithm], "number": 256, "null": None, "object": {}, "missing": ...}.items():
        yield f"B5-alg-{name}", make({"alg": value}), ALGORITHM
    for other in ALGORITHMS:
        if other == algorithm:
            continue
        # Tokens by secret have no kid. With a kid, there is a key, but for another algorithm.
        reason = SIGNATURE if algorithm in HMAC or other in HMAC else UNKNOWN_KEY
        yield f"B5-{other}-signed-as-{algorithm}", make({"alg": other}), reason
        if other in ASYMMETRIC:
            yield f"B5-key-of-{other}", make({"alg": other, "kid": other}), SIGNATURE
    yield "B6-crit", make({"crit": ["exp"]}), MALFORMED
    yield "B6-crit-empty", make({"crit": []}), MALFORMED
    yield "B6-b64", make({"b64": False}), MALFORMED
    yield "B6-zip", make({"zip": "DEF"}), MALFORMED
    own = {"kty": "oct", "k": b64(OTHER_SECRET.encode())}
    if algorithm not in HMAC:
        own = jwk(private_key(algorithm, 1), alg=algorithm, kid=algorithm)
    brought = {
        "jwk": own,
        "jku": "https://attacker.example/jwks.json",
        "x5u": "https://attacker.example/certificate.pem",
        "x5c": ["MIIB"],
    }
    for name, value in brought.items():
        yield f"B6-{name}", foreign({name: value}), SIGNATURE
    for kid in ("../../dev/null", "/dev/null", "file:///dev/null", "' OR 1=1 --", "x" * 200, "\0"):
        reason = SIGNATURE if algorithm in HMAC else UNKNOWN_KEY
        yield f"B6-kid-{kid[:9]!r}", foreign({"kid": kid, "jwk": own}), reason
    yield "B6-kid-of-an-empty-file", sign(b'{"alg":"HS256","kid":"/dev/null"}', b"{}", "HS256", ""), SIGNATURE
    for kind, value in {"list": ["a"], "number": 5, "object": {}}.items():
        yield f"B6-kid-{kind}", make({"kid": value}), MALFORMED
    for kind in ("logout+jwt", "dpop+jwt", "secevent+jwt", "JOSE", "application/jose+json", "", "text/at+jwt"):
        yield f"B6-typ-{kind}", make({"typ": kind}), TYPE
    for kind, value in {"null": None, "list": ["JWT"], "number": 1}.items():
        yield f"B6-typ-{kind}", make({"typ": value}), TYPE
    yield "B6-events", make(events={"http://schemas.openid.net/event/backchannel-logout": {}}), TYPE
    yield "B6-events-null", make(events=None), TYPE


def signatures(algorithm: str) -> Iterator[tuple[str, str, TokenReason]]:
    """Rows B7 and B8."""
    good = make_of(algorithm)()
    signed, _, sig = good.rpartition(".")
    yield "B7-empty", f"{signed}.", MALFORMED
    yield "B7-cut", f"{signed}.{b64(unb64(sig)[:-1])}", SIGNATURE
    yield "B7-zero-behind", f"{signed}.{b64(unb64(sig) + bytes(1))}", SIGNATURE
    yield "B7-zero-before", f"{signed}.{b64(bytes(1) + unb64(sig))}", SIGNATURE
    yield "B7-first-bit", f"{signed}.{flipped(sig)}", SIGNATURE
    yield "B7-last-bit", f"{signed}.{flipped(sig, -1)}", SIGNATURE
    yield "B7-zeros", f"{signed}.{b64(bytes(len(unb64(sig))))}", SIGNATURE
    yield "B7-junk", f"{good[:-4]}!!!!", MALFORMED
    yield "B7-padded", f"{good}=", MALFORMED
    yield "B7-standard-base64", f"{signed}.+/{sig[2:]}", MALFORMED
    yield "B7-space-inside", f"{good[:-4]} {good[-4:]}", MALFORMED
    if len(sig) % 4:
        yield "B7-not-canonical", good[:-1] + chr(ord(good[-1]) + 1), MALFORMED
    yield "B7-of-other-claims", f"{signed}.{make_of(algorithm)(jti='other').rpartition('.')[2]}", SIGNATURE
    yield "B7-changed-claims", f"{signed.partition('.')[0]}.{b64(b'{}')}.{sig}", SIGNATURE
    yield "B8-other-key", make_of(algorithm, foreign_key(algorithm))(), SIGNATURE
    if algorithm in HMAC:
        yield "B8-empty-secret", make_of(algorithm, "")(), SIGNATURE
        return
    public = private_key(algorithm).public_key()
    values = jwk(private_key(algorithm), alg=algorithm, kid=algorithm)
    secrets = {
        "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "JWK": json.dumps(values),
        "parameter": values.get("n") or values["x"],
    }
    for name, secret in secrets.items():
        for hash_name in HMAC:
            header = {"alg": hash_name, "kid": algorithm}
            claims = json.dumps({**BY_SECRET, **BY_PROVIDER}).encode()
            yield f"B8-{name}-as-{hash_name}", sign(json.dumps(header).encode(), claims, hash_name, secret), SIGNATURE


NOT_NUMBERS: dict[str, Any] = {
    "null": None,
    "text": "1700000060",
    "underscore": "1_0",
    "list": [],
    "object": {},
    "true": True,
}
NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 30, "-1", "9" * 4_000)


def times(algorithm: str) -> Iterator[tuple[str, str, TokenReason]]:
    """Rows B9 and B10. The leeway is 5 s, and a token may be valid for 3,600 s."""
    make = make_of(algorithm)
    yield "B9-exp-missing", make(exp=...), CLAIMS
    for row, name in (("B9", "exp"), ("B10", "iat"), ("B10", "nbf")):
        for kind, value in NOT_NUMBERS.items():
            yield f"{row}-{name}-{kind}", make(**{name: value}), CLAIMS
        for number in NO_NUMBERS:
            yield f"{row}-{name}-{number[:10]}", with_number(algorithm, name, number), CLAIMS
    yield "B9-exp-end-of-leeway", make(exp=NOW - 5), EXPIRED
    yield "B9-exp-past", make(exp=NOW - 6), EXPIRED
    yield "B9-exp-0", make(exp=0), EXPIRED
    yield "B10-nbf-future", make(nbf=NOW + 6), EARLY
    yield "B10-iat-future", make(iat=NOW + 6), EARLY
    yield "B10-lifetime", make(exp=NOW + 3_541), LIFETIME
    yield "B10-lifetime-in-milliseconds", make(exp=(NOW + 60) * 1_000), LIFETIME
    yield "B10-lifetime-without-iat", make(iat=...), LIFETIME


def provider(algorithm: str) -> Iterator[tuple[str, str, TokenReason]]:
    """Row B11, of tokens of an identity provider."""
    make = make_of(algorithm)
    issuers: dict[str, Any] = {
        "missing": ...,
        "null": None,
        "list": [ISSUER],
        "slash": f"{ISSUER}/",
        "case": ISSUER.upper(),
        "prefix": ISSUER[:-1],
        "number": 5,
    }
    for name, value in issuers.items():
        yield f"B11-iss-{name}", make(iss=value), TokenReason.ISSUER
    audiences: dict[str, Any] = {
        "missing": ...,
        "null": None,
        "other": "another",
        "prefix": "hu",
        "case": "HUB",
        "empty": [],
        "others": ["a", "b"],
        "object": {"hub": True},
        "mixed": ["hub", 5],
        "nested": [["hub"]],
        "true": True,
    }
    for name, value in audiences.items():
        yield f"B11-aud-{name}", make(aud=value), TokenReason.AUDIENCE


NO_NAMES: dict[str, Any] = {
    "empty": "",
    "null": None,
    "object": {},
    "number": 5,
    "long": "x" * 256,
    "line-break": "a\nb",
    "NUL": "\0",
}


def names(algorithm: str) -> Iterator[tuple[str, str, TokenReason]]:
    """Row B12."""
    make = make_of(algorithm)
    user, channels = ("userId", "channels") if algorithm in HMAC else ("sub", "listen")
    for kind, value in {"missing": ..., **NO_NAMES, "surrogate": "\ud800", "list": ["alex"]}.items():
        yield f"B12-user-{kind}", make(**{user: value}), CLAIMS
        if kind not in ("missing", "list"):
            yield f"B12-channel-{kind}", make(**{channels: value}), CLAIMS
            yield f"B12-channels-{kind}", make(**{channels: ["chat", value]}), CLAIMS
    yield "B12-channels-none", make(**{channels: []}), CLAIMS
    yield "B12-channels-many", make(**{channels: [str(n) for n in range(1_001)]}), CLAIMS
    if algorithm in HMAC:
        yield "B12-channel-missing", make(channel=...), CLAIMS
        yield "B12-channel-list", make(channel=["chat"]), CLAIMS
        yield "B12-channels-text", make(channels="chat"), CLAIMS
    else:
        yield "B12-channels-missing", make(listen=...), CLAIMS
        yield "B12-claims-of-tokens-by-secret", make(listen=..., channel="chat", channels=["chat"]), CLAIMS
        yield "B12-user-of-tokens-by-secret", make(sub=..., userId="alex"), CLAIMS
    for name in ("iss", "sub", "sid", "jti"):
        for kind, value in NO_NAMES.items():
            reason = TokenReason.ISSUER if name == "iss" and algorithm not in HMAC else CLAIMS
            yield f"B12-{name}-{kind}", make(**{name: value}), reason


ROWS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B13", "B14")


def bad_tokens(row: str, algorithm: str) -> dict[str, Bad]:
    """Return the bad tokens of a row of the matrix, by name. They say that `algorithm` has signed them."""
    return {name: bad for name, bad in _all(algorithm).items() if name.startswith(f"{row}-")}


@cache
def _all(algorithm: str) -> dict[str, Bad]:
    kinds = [forms, headers, signatures, times, names] + ([] if algorithm in HMAC else [provider])
    listed = [each for kind in kinds for each in kind(algorithm)]
    found = {name: Bad(token, reason) for name, token, reason in listed}
    assert len(found) == len(listed)
    return found
