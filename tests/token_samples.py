"""Tokens made by hand: valid ones, and one of every kind that must not verify."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from ssehub.tokens import MAX_TOKEN_LENGTH, Tokens

SECRET = "MySuperPassword42 and enough more of it"
NOW = 1_700_000_000.0
GOOD = {"userId": "alex", "channel": "chat", "exp": int(NOW) + 60}
HEADER = {"alg": "HS256", "typ": "JWT"}
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
tokens = Tokens(SECRET, now=lambda: NOW)
"""Verifies with the secret and at the time of these samples."""


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: bytes, payload: bytes, secret: str = SECRET, algorithm: str = "HS256") -> str:
    """Return a token that is made by hand, without a JWT library."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.new(secret.encode(), signed.encode(), HASHES[algorithm]).digest())}"


def make(header: dict[str, Any] | None = None, *, secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    merged = {**GOOD, **claims}
    payload = {name: value for name, value in merged.items() if value is not ...}
    return sign(json.dumps({**HEADER, **(header or {})}).encode(), json.dumps(payload).encode(), secret, algorithm)


def raw(payload: bytes = b"{}", header: bytes = json.dumps(HEADER).encode()) -> str:
    return sign(header, payload)


def with_exp(text: str) -> str:
    return raw(b'{"userId":"alex","channel":"chat","exp":' + text.encode() + b"}")


valid = make()
head, body, signature = valid.split(".")

BROKEN = {
    "B1-empty": "",
    "B1-space": " ",
    "B1-dot": ".",
    "B1-dots": "..",
    "B1-two-segments": "a.b",
    "B1-four-segments": f"{valid}.x",
    "B1-five-segments": f"{valid}.x.y",
    "B2-non-ascii": f"{valid}é",
    "B2-surrogate": f"{valid}\udc80",
    "B2-newline": f"{valid}\n",
    "B2-leading-space": f" {valid}",
    "B3-header-no-json": raw(header=b"nonsense"),
    "B3-header-list": raw(header=b"[]"),
    "B3-header-no-utf8": raw(header=b"\xff\xfe"),
    "B3-header-deep": raw(header=b"[" * 5_000),
    "B3-header-number": raw(header=b"9" * 5_000),
    "B4-payload-no-json": raw(b"nonsense"),
    "B4-payload-list": raw(b"[]"),
    "B4-payload-no-utf8": raw(b"\xff"),
    "B4-payload-deep": raw(b"[" * 5_000),
    "B5-alg-none": b64(b'{"alg":"none"}') + f".{body}.",
    "B5-alg-none-signed": make({"alg": "none"}),
    "B5-alg-None": make({"alg": "None"}),
    "B5-alg-nOnE": make({"alg": "nOnE"}),
    "B5-alg-RS256": make({"alg": "RS256"}),
    "B5-alg-list": make({"alg": ["HS256"]}),
    "B5-alg-int": make({"alg": 256}),
    "B5-alg-null": make({"alg": None}),
    "B5-alg-missing": raw(json.dumps(GOOD).encode(), header=b'{"typ":"JWT"}'),
    "B6-crit": make({"crit": ["exp"]}),
    "B6-b64": make({"b64": False}),
    "B6-zip": make({"zip": "DEF"}),
    "B7-signature-empty": f"{head}.{body}.",
    "B7-signature-cut": valid[:-4],
    "B7-signature-flipped": f"{head}.{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
    "B7-signature-junk": f"{head}.{body}.!!!!",
    "B7-signature-padded": f"{valid}=",
    "B7-not-canonical": valid[:-1] + chr(ord(valid[-1]) + 1),
    "B8-other-secret": make(secret="another secret that is long enough too"),
    "B9-exp-missing": make(exp=...),
    "B9-exp-null": make(exp=None),
    "B9-exp-string": make(exp=str(int(NOW) + 60)),
    "B9-exp-underscore": make(exp="1_0"),
    "B9-exp-list": make(exp=[]),
    "B9-exp-object": make(exp={}),
    "B9-exp-true": make(exp=True),
    "B9-exp-NaN": with_exp("NaN"),
    "B9-exp-Infinity": with_exp("Infinity"),
    "B9-exp-1e400": with_exp("1e400"),
    "B9-exp-1e30": with_exp(str(10**30)),
    "B9-exp-huge": with_exp("9" * 4_000),
    "B9-exp-negative": make(exp=-1),
    "B9-exp-now": make(exp=int(NOW)),
    "B9-exp-past": make(exp=int(NOW) - 1),
    "B10-nbf-future": make(nbf=int(NOW) + 5),
    "B10-nbf-string": make(nbf="soon"),
    "B12-user-missing": make(userId=...),
    "B12-user-empty": make(userId=""),
    "B12-user-null": make(userId=None),
    "B12-user-object": make(userId={}),
    "B12-user-int": make(userId=5),
    "B12-user-long": make(userId="x" * 256),
    "B12-user-line-break": make(userId="a\nb"),
    "B12-channel-missing": make(channel=...),
    "B12-channel-empty": make(channel=""),
    "B12-channel-null": make(channel=None),
    "B12-channel-list": make(channel=["chat"]),
    "B12-channel-NUL": make(channel="a\0"),
    "B12-channel-surrogate": raw(b'{"userId":"a","channel":"\\ud800","exp":1700000060}'),
    "B12-channels-empty": make(channels=[]),
    "B12-channels-string": make(channels="chat"),
    "B12-channels-mixed": make(channels=["chat", 5]),
    "B12-channels-many": make(channels=[str(n) for n in range(101)]),
    "B13-long": "x" * (MAX_TOKEN_LENGTH + 1),
    "B13-megabyte": make(pad="x" * 2**20),
    "B14-JWE": ".".join([head] * 5),
}
