"""Matrix B of docs/reliability.md: every kind of bad token, by secret and by every algorithm of an identity provider.

The hub has two secrets and a JWKS with a key for each algorithm. Clients get the same 401 for all of these tokens, and
no token is in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import time
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from asgi_requests import Answer, head
from bad_tokens import (
    ALGORITHMS,
    EARLY,
    EXPIRED,
    ISSUER,
    NOW,
    PROVIDER,
    ROWS,
    SECRET,
    UNKNOWN_KEY,
    bad_tokens,
    make_of,
    tokens,
    unb64,
)
from conftest import report
from signing_keys import ASYMMETRIC, HMAC, b64, jwk, key_set, private_key
from ssehub import Hub, create_client_app
from ssehub.errors import ConfigError, TokenError, TokenReason, UnknownKey
from ssehub.tokens import Tokens

SOAK = "SOAK" in os.environ
TOKENS = tokens()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bad_token_is_refused_for_its_reason(algorithm: str, row: str) -> None:
    bad = bad_tokens(row, algorithm)
    assert bad or (row == "B11" and algorithm in HMAC)

    for name, (token, reason) in bad.items():
        with pytest.raises(TokenError) as caught:
            TOKENS.verify(token)

        assert caught.value.reason is reason, f"{name}: {caught.value}"
        assert isinstance(caught.value, UnknownKey) is (reason is UNKNOWN_KEY), name
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500, name
        assert (len(token) < 5 or token not in str(caught.value)) and SECRET not in str(caught.value), name


async def answers(app: Any, token: str) -> list[Answer]:
    """Return the answers to a request with the token in a header, a cookie and the query."""
    octets = token.encode(errors="surrogatepass")
    found = [
        await head(app, authorization=b"Bearer " + octets),
        await head(app, b"token=" + quote_from_bytes(octets).encode()),
    ]
    if token == token.strip():  # space around a cookie does not belong to it
        found.append(await head(app, cookie=b"sse=" + octets))
    return found


FEW = (("HS256", "RS256", "PS256", "ES256", "EdDSA"), ALGORITHMS)[SOAK]


@pytest.mark.anyio
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("algorithm", FEW)
async def test_every_bad_token_is_the_same_401_and_in_no_line_of_the_log(
    algorithm: str, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_client_app(Hub(), tokens=TOKENS, token_cookie="sse")
    caplog.set_level(logging.DEBUG)
    missing = (await head(app))._replace(query_left=b"")
    assert (missing.status, missing.body) == (401, b"a valid token is required\n")
    assert missing.headers[b"www-authenticate"] == b"Bearer"

    for name, (token, _) in bad_tokens(row, algorithm).items():
        for answer in await answers(app, token):
            assert answer._replace(query_left=b"") == missing, name
        for part in (token, *token.split(".")[1:]):
            assert len(part) < 20 or part not in caplog.text, name
        caplog.clear()


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_good_token_of_each_algorithm_opens_a_stream(algorithm: str) -> None:
    app = create_client_app(Hub(), tokens=TOKENS, token_cookie="sse")
    token = make_of(algorithm)(sid="session", jti="id")

    assert [answer.status for answer in await answers(app, token)] == [200, 200, 200]
    claims = TOKENS.verify(token)
    assert (claims.user_id, claims.channels, claims.expires_at) == ("alex", ("chat",), NOW + 60)
    assert (claims.sid, claims.jti, claims.iat) == ("session", "id", NOW - 60)
    assert (claims.iss, claims.sub) == ((None, None) if algorithm in HMAC else (ISSUER, "alex"))


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/JWT", ...])
@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
def test_b6_typ_of_access_tokens_is_accepted(algorithm: str, kind: Any) -> None:
    assert TOKENS.verify(make_of(algorithm)({"typ": kind})).user_id == "alex"


def test_b6_nothing_is_fetched_for_a_token() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        brought = {"jku": url, "x5u": url, "jwk": jwk(private_key("ES256", 1)), "x5c": ["MIIB"], "x5t": "AAAA"}

        assert TOKENS.verify(make_of("ES256")(brought)).user_id == "alex"
        assert TOKENS.verify(make_of("HS256")({**brought, "kid": "../../dev/null"})).user_id == "alex"
        for header in (brought, {**brought, "kid": url}):
            with pytest.raises(TokenError):
                TOKENS.verify(make_of("ES256", private_key("ES256", 1))(header))
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_token_without_kid_verifies_where_one_key_fits() -> None:
    for algorithm in ASYMMETRIC:
        assert TOKENS.verify(make_of(algorithm)({"kid": ...})).user_id == "alex"


@pytest.mark.parametrize(
    "claims",
    [{"aud": ["x", "other-hub"]}, {"aud": "other-hub"}, {"listen": "chat"}, {"listen": ["chat", "chat"]}],
)
def test_b11_claim_of_another_form_is_accepted(claims: dict[str, Any]) -> None:
    assert TOKENS.verify(make_of("RS256")(**claims)).channels == ("chat",)


def test_b11_tokens_by_secret_need_neither_iss_nor_aud() -> None:
    claims = TOKENS.verify(make_of("HS256")(iss="https://anybody.example", aud=["x"]))

    assert (claims.user_id, claims.iss) == ("alex", "https://anybody.example")


def test_b5_alg_chooses_the_set() -> None:
    by_secret, by_key = Tokens(SECRET, now=lambda: NOW), Tokens(jwks=key_set(), now=lambda: NOW, **PROVIDER)

    assert by_secret.verify(make_of("HS256")()) and by_key.verify(make_of("RS256")())
    assert (by_secret.has_jwks, by_secret.can_issue) == (False, True)
    assert (by_key.has_jwks, by_key.can_issue) == (True, False)
    for refuse, algorithm in ((by_secret, "RS256"), (by_key, "HS256")):
        with pytest.raises(TokenError) as caught:
            refuse.verify(make_of(algorithm)())
        assert caught.value.reason is TokenReason.ALGORITHM
    with pytest.raises(ConfigError, match="no secret to sign the token with"):
        by_key.issue("alex", ["chat"], expires_at=NOW + 60)


@pytest.mark.anyio
async def test_b15_token_in_the_header_counts_whatever_the_others_are() -> None:
    app = create_client_app(Hub(), tokens=TOKENS, token_cookie="sse")
    good, bad = (make().encode() for make in (make_of("RS256"), make_of("RS256", private_key("RS256", 1))))

    for header, others, status in ((good, bad, 200), (bad, good, 401)):
        answer = await head(app, b"token=" + others, authorization=b"Bearer " + header, cookie=b"sse=" + others)
        assert answer.status == status
    assert (await head(app, b"token=" + bad, cookie=b"sse=" + good)).status == 200


CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"


def mutated(chance: random.Random, token: str, other: str) -> str:
    """Return the token with changes: of characters, of bits, of segments, or of single claims."""
    segments = token.split(".")
    at = chance.randrange(3)
    match chance.randrange(5):
        case 0:
            text = list(token)
            for _ in range(chance.randint(1, 3)):
                start = chance.randrange(len(text))
                text[start : start + chance.randint(0, 2)] = chance.choice(CHARACTERS)
            return "".join(text)
        case 1:
            octets = bytearray(unb64(segments[at]))
            octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
            segments[at] = b64(bytes(octets))
        case 2:
            segments[at] = other.split(".")[at] if at else segments[1]
        case 3:
            start = chance.randrange(len(segments[at]))
            segments[at] = segments[at][:start] + segments[at][start + chance.randint(1, 30) :]
        case 4:
            at = min(at, 1)
            fields = json.loads(unb64(segments[at]))
            name = chance.choice([*fields, "alg", "exp", "sub", "userId", "kid"])
            fields[name] = chance.choice(["", "none", "HS256", "*", NOW * 2, None, [], {}, "admin"])
            segments[at] = b64(json.dumps(fields).encode())
    return ".".join(segments)


@pytest.mark.soak
@pytest.mark.anyio
@pytest.mark.timeout(600)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_b16_no_mutation_of_a_token_opens_a_stream(algorithm: str) -> None:
    seed = random.randrange(10**6)
    report(f"{algorithm}: seed {seed}")
    chance = random.Random(seed)
    app = create_client_app(Hub(), tokens=TOKENS)
    good, other = make_of(algorithm)(), make_of(algorithm)(jti="other", exp=NOW + 61)
    assert (await head(app, authorization=b"Bearer " + good.encode())).status == 200
    refused = 0

    while refused < (2_000 if SOAK else 100):
        token = mutated(chance, good, other)
        if token in (good, other):
            continue
        answer = await head(app, b"token=" + quote_from_bytes(token.encode()).encode())
        assert (answer.status, answer.body) == (401, b"a valid token is required\n"), f"seed {seed}: {token!r}"
        refused += 1

    assert (await head(app, authorization=b"Bearer " + good.encode())).status == 200


@pytest.mark.anyio
async def test_b17_stream_ends_with_its_token_which_is_401_then() -> None:
    """The token of an identity provider is valid for a second. The cache does not prolong it."""
    own = Tokens(jwks=key_set(), leeway_seconds=0, **PROVIDER)
    now = time.time()
    token = make_of("ES256")(iat=now, exp=now + 1)
    frames: list[bytes] = []
    ended = asyncio.Event()

    async def send(message: Any) -> None:
        frames.append(message.get("body", b""))

    async def receive() -> Any:
        await ended.wait()
        return {"type": "http.disconnect"}

    async with Hub() as hub:
        app = create_client_app(hub, tokens=own)
        request = {"type": "http", "method": "GET", "path": "/events/", "query_string": b""}
        headers_ = [(b"authorization", b"Bearer " + token.encode())]
        async with asyncio.timeout(20):
            await app({**request, "headers": headers_}, receive, send)

        assert b"event: stream-hello" in b"".join(frames)
        assert b"event: stream-expired" in b"".join(frames)
        assert (await head(app, authorization=b"Bearer " + token.encode())).status == 401
    ended.set()


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("algorithm", ["HS256", "RS256"])
def test_b18_stepped_clock_does_not_prolong_a_token_that_has_been_verified(algorithm: str) -> None:
    clock = Clock()
    own = tokens(now=clock)
    token = make_of(algorithm)(nbf=NOW - 60)
    assert own.verify(token).expires_at == NOW + 60

    for step, outcome in (
        (-66, EARLY),
        (-65, None),
        (0, None),
        (64.9, None),
        (65, EXPIRED),
        (3_600, EXPIRED),
        (0, None),
    ):
        clock.now = NOW + step
        if outcome is None:
            end = own.verify(token).expires_at
            assert end == (NOW + 60 if step < 60 else NOW + 65)
        else:
            with pytest.raises(TokenError) as caught:
                own.verify(token)
            assert caught.value.reason is outcome


@pytest.mark.parametrize(("skew", "is_accepted"), [(-90, False), (-30, True), (0, True), (30, True), (90, False)])
@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
def test_b18_token_of_a_provider_with_another_clock_verifies_within_the_leeway(
    algorithm: str, skew: int, is_accepted: bool
) -> None:
    own = tokens(leeway_seconds=60)
    token = make_of(algorithm)(iat=NOW + skew, nbf=NOW + skew, exp=NOW + skew + 1)

    if is_accepted:
        assert own.verify(token).user_id == "alex"
    else:
        with pytest.raises(TokenError):
            own.verify(token)
