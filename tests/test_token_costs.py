"""What refusing a token costs, and tokens of every structure: clients without a token can send them at full speed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asgi_requests import head
from bad_tokens import ISSUER, tokens
from conftest import SECRET, report
from signing_keys import sign as sign_by_key
from ssehub import Hub, create_client_app
from ssehub.errors import TokenError
from ssehub.grant import MAX_PATTERNS
from ssehub.tokens import MAX_CHANNELS, MAX_TOKEN_LENGTH, Tokens

SOAK = "SOAK" in os.environ
NOW = 1_700_000_000.0
TOKENS = Tokens(SECRET, now=lambda: NOW)
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
HEADER = b'{"alg":"HS256","typ":"JWT"}'
MAX_CPU_SECONDS = 0.001
SLACK = 1 if SOAK else 3
"""Coverage and a busy machine make everything slower: what the tests are about cost ten times as much."""


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: bytes, claims: bytes, secret: str = SECRET, algorithm: str = "HS256") -> str:
    signed = f"{b64(header)}.{b64(claims)}"
    return f"{signed}.{b64(hmac.new(secret.encode(), signed.encode(), HASHES[algorithm]).digest())}"


def claims_of(size: int) -> bytes:
    fields = {"userId": "alex", "channel": "chat", "exp": int(NOW) + 60, "pad": "x" * size}
    return json.dumps(fields).encode()


LONGEST_VALID = sign(HEADER, claims_of(48_900))
FORGED = {
    "other-secret": sign(HEADER, claims_of(48_900), secret="another secret that is long enough too"),
    "no-dots": "x" * MAX_TOKEN_LENGTH,
    "dots": "." * MAX_TOKEN_LENGTH,
    "two-segments": f"{'x' * (MAX_TOKEN_LENGTH // 2)}.{'x' * (MAX_TOKEN_LENGTH // 2 - 1)}",
    "long-header": sign(b"[" * 48_900, b"{}"),
    "deep-header": sign(b"[" * 700, b"{}"),
    "digits-in-the-header": sign(b"9" * 700, b"{}"),
    "many-names-in-the-header": sign(json.dumps({str(n): 0 for n in range(80)}).encode(), b"{}"),
    "not-base64": f"{'A' * 32_001}.{'B' * 32_001}.C",
    "not-ascii": "x.y." + "é" * (MAX_TOKEN_LENGTH - 4),
    "megabyte": "x" * 2**20,
    "megabyte-of-segments": ".".join(["x" * 4] * (2**18)),
}


def cpu_seconds(call: Callable[[], object], runs: int) -> float:
    """Return the CPU time of one call: the least of five measurements."""
    least = math.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(runs):
            call()
        least = min(least, (time.process_time() - start) / runs)
    return least


def refuse(token: str) -> None:
    with pytest.raises(TokenError):
        TOKENS.verify(token)


@pytest.mark.soak
def test_b13_refusing_a_forged_token_costs_no_more_than_accepting_a_valid_one() -> None:
    valid = cpu_seconds(lambda: TOKENS.verify(LONGEST_VALID), 100)
    costs = {name: cpu_seconds(lambda token=token: refuse(token), 100) for name, token in FORGED.items()}  # type: ignore[misc]  # mypy can't infer lambdas with defaults

    dearest = max(costs, key=costs.__getitem__)
    report(f"valid {valid * 1e6:.0f} µs, dearest refusal {dearest}: {costs[dearest] * 1e6:.0f} µs")
    assert costs[dearest] < SLACK * min(2 * valid, MAX_CPU_SECONDS)


REQUESTS: dict[str, tuple[bytes, dict[str, bytes]]] = {
    **{
        f"{name}-in-the-header": (b"", {"authorization": b"Bearer " + token.encode()}) for name, token in FORGED.items()
    },
    **{
        f"{name}-in-the-query": (b"token=" + quote_from_bytes(token.encode()).encode(), {})
        for name, token in FORGED.items()
    },
    "escapes": (b"token=" + b"%41" * 1_999, {}),
    "many-escapes": (b"token=" + b"%41" * 10_000, {}),
    "megabyte-of-escapes": (b"token=" + b"%41" * 2**18, {}),
    "percent-signs": (b"token=" + b"%" * 30_000, {}),
    "plus-signs": (b"token=" + b"+" * 30_000, {}),
    "fields": (b"&" * 30_000, {}),
    "names-of-escapes": (b"&".join([b"%41%42=1"] * 100), {}),
    "channels": (b"&".join([b"channel=" + b"x" * 56] * 1_000), {}),
    "channels-of-escapes": (b"&".join([b"channel=" + b"%41" * 18] * 1_000), {}),
    "too-many-channels": (b"&".join([b"channel=x"] * 7_000), {}),
    "not-utf-8": (b"token=" + b"\xff" * 30_000, {}),
    "quoted-cookie": (b"", {"cookie": b'sse="' + b"\\" * 30_000 + b'"'}),
    "quoted-other-cookie": (b"", {"cookie": b'x="' + b'\\"' * 15_000 + b'"'}),
    "cookies": (b"", {"cookie": b"sse=x;" * 5_000}),
    "spaces-in-a-cookie": (b"", {"cookie": b"; sse" + b" " * 30_000}),
}


@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.anyio
@pytest.mark.parametrize("kind", REQUESTS)
async def test_b13_request_with_a_forged_token_is_refused_within_a_millisecond_of_cpu(kind: str) -> None:
    query, headers = REQUESTS[kind]
    app = create_client_app(Hub(), tokens=TOKENS, token_cookie="sse")
    least = math.inf

    for _ in range(20):
        start = time.process_time()
        answer = await head(app, query, **headers)
        least = min(least, time.process_time() - start)

    assert answer.status == 401
    # Copying a megabyte once is not what this is about: other servers than ours may accept so much.
    assert least < SLACK * MAX_CPU_SECONDS * (3 if "megabyte" in kind else 1), f"{least * 1e6:.0f} µs"


NUMBERS = (
    st.sampled_from([0, -1, 1, True, False, 2**53, 2**63, 10**400, 1e308, float("inf"), float("-inf"), float("nan")])
    | st.floats(NOW - 10, NOW + 70)
    | st.integers(int(NOW) - 10, int(NOW) + 70)
    | st.integers()
)
NAMES = st.text(max_size=300) | st.sampled_from(["alex", "*", "", "a\nb", "\0", "\ud800", "x" * 255, "x" * 256])
PATTERNS = NAMES.map(lambda name: name + "*") | st.sampled_from(["*", "a**", "*a", "a*", "é*", "orders"])
ANYTHING = st.recursive(
    st.none() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=8,
)
CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        "userId": NAMES | ANYTHING,
        "sub": NAMES | ANYTHING,
        "channel": NAMES | ANYTHING,
        "channels": st.lists(NAMES, max_size=12) | st.just([str(n) for n in range(MAX_CHANNELS + 1)]) | ANYTHING,
        "patterns": st.lists(PATTERNS, max_size=12) | st.just(["a*"] * (MAX_PATTERNS + 1)) | ANYTHING,
        "exp": NUMBERS | ANYTHING,
        "nbf": NUMBERS | ANYTHING,
        "iat": NUMBERS | ANYTHING,
        **{name: NAMES | ANYTHING for name in ("sid", "jti", "iss", "events", "other")},
    },
)
HEADERS = st.fixed_dictionaries(
    {"alg": st.sampled_from([*HASHES]) | ANYTHING},
    optional={name: ANYTHING for name in ("typ", "kid", "jwk", "jku", "x5u", "cty", "crit", "b64", "zip", "enc")},
)


def check(token: str, tokens: Tokens = TOKENS) -> None:
    """The token grants what a token may grant, or is refused. Every other exception would be a response with 500."""
    try:
        claims = tokens.verify(token)
    except TokenError as exc:
        assert token not in str(exc) and SECRET not in str(exc) and len(str(exc)) < 500
        return
    assert 1 <= len(claims.user_id) <= 255
    assert claims.channels or claims.patterns
    assert len(claims.channels) <= MAX_CHANNELS and len(claims.patterns) <= MAX_PATTERNS
    assert all(pattern.index("*") == len(pattern) - 1 for pattern in claims.patterns)
    ids = [name for name in (claims.iss, claims.sub, claims.sid, claims.jti) if name is not None]
    for name in (claims.user_id, *claims.channels, *claims.patterns, *ids):
        assert isinstance(name, str) and not set(name) & set("\r\n\0")
        assert name.encode()
    assert claims.expires_at is not None and NOW < claims.expires_at < 2**53 + 600


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@settings(max_examples=20_000 if SOAK else 300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HEADERS, CLAIMS, st.sampled_from([*HASHES]))
def test_b16_signed_token_of_any_structure_is_accepted_or_refused(
    header: dict[str, Any], claims: dict[str, Any], algorithm: str
) -> None:
    check(sign(json.dumps(header).encode(), json.dumps(claims).encode(), algorithm=algorithm))


BY_KEY = tokens(
    channel_claim="channels",
    pattern_claim="patterns",
    grant_templates=["user.{sub}", "{sid}:{other}"],
    max_token_seconds=None,
    require_exp=True,
)
ACCEPTABLE = {"iss": st.just(ISSUER), "aud": st.just("hub") | st.just(["x", "hub"]), "exp": st.just(NOW + 60)}
CLAIMS_BY_KEY = st.builds(
    lambda claims, acceptable: {**claims, **acceptable}, CLAIMS, st.fixed_dictionaries({}, optional=ACCEPTABLE)
)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@settings(max_examples=5_000 if SOAK else 100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HEADERS, CLAIMS_BY_KEY)
@example({}, {"iss": ISSUER, "aud": "hub", "sub": "a", "sid": "b", "other": "c", "exp": NOW + 60})
def test_b16_token_of_any_structure_that_a_key_has_signed_is_accepted_or_refused(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    named = {**header, "alg": "EdDSA", "kid": "EdDSA"}

    check(sign_by_key(json.dumps(named).encode(), json.dumps(claims).encode(), "EdDSA"), BY_KEY)


EDITS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=4)), max_size=4)


def edited(text: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for start, length, new in edits:
        text = text[:start] + new + text[start + length :]
    return text


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@settings(max_examples=20_000 if SOAK else 300, deadline=None)
@given(EDITS, EDITS)
@example([], [])
@example([], [(0, 0, b"\xef\xbb\xbf")])
def test_b16_signed_token_with_edited_bytes_is_accepted_or_refused(
    in_header: list[tuple[int, int, bytes]], in_claims: list[tuple[int, int, bytes]]
) -> None:
    check(sign(edited(HEADER, in_header), edited(claims_of(0), in_claims)))


VALID = sign(HEADER, claims_of(0))
PIECES = [".", "-", "_", "=", "A", "eyJ", "\n", "\u00e9", *VALID.split(".")]


@pytest.mark.soak
@settings(max_examples=20_000 if SOAK else 300, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
    | st.tuples(st.integers(0, len(VALID)), st.integers(0, 3), st.text(max_size=3)).map(
        lambda edit: VALID[: edit[0]] + edit[2] + VALID[edit[0] + edit[1] :]
    )
)
@example(VALID + "\n")
@example(VALID[:-1] + chr(ord(VALID[-1]) + 1))
def test_b16_only_a_token_as_it_was_signed_is_accepted(token: str) -> None:
    try:
        TOKENS.verify(token)
    except TokenError:
        return
    assert token == VALID
