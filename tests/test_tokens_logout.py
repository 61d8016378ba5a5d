"""Logout tokens: each check of OpenID Connect Back-Channel Logout 1.0, sections 2.4 and 2.6."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from identity_provider import AUDIENCE, ISSUER, LOGOUT_EVENT, IdentityProvider, b64
from ssehub import Tokens
from ssehub.errors import ConfigError, KeysUnavailable, TokenError
from ssehub.tokens.logout import MAX_AGE_SECONDS, MAX_REMEMBERED, LogoutToken, LogoutTokens

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000
SECRET = "a secret for tests that has 32 bytes or more"
PROVIDER = IdentityProvider(now=lambda: float(NOW))
STRANGER = IdentityProvider(now=lambda: float(NOW))
"""Has another key, under the same key id."""


def logout_tokens(now: float = NOW, **settings: Any) -> LogoutTokens:
    return LogoutTokens(PROVIDER.tokens(**settings), lambda: now)


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({}, {}),
        ({"typ": ...}, {}),
        ({"typ": "JWT"}, {}),
        ({"typ": "application/logout+jwt"}, {}),
        ({}, {"exp": NOW - 4}),
        ({}, {"iat": NOW - MAX_AGE_SECONDS}),
        ({}, {"iat": NOW + MAX_AGE_SECONDS, "exp": NOW + 900}),
        ({}, {"iat": NOW + 0.5}),
        ({}, {"aud": [AUDIENCE]}),
        ({}, {"aud": ["somebody-else", AUDIENCE]}),
        ({}, {"events": {LOGOUT_EVENT: {"x": 1}, "https://other.example": 2}}),
        ({}, {"something-else": [None]}),
        ({}, {"nbf": NOW + 4}),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_logout_token_is_accepted(header: dict[str, Any], claims: dict[str, Any]) -> None:
    logout = await logout_tokens().accept(PROVIDER.logout_token(header, **claims))

    assert (logout.iss, logout.sub, logout.sid) == (ISSUER, "alex", "s-1")
    assert logout.iat == claims.get("iat", NOW)


@pytest.mark.parametrize(("sub", "sid"), [("alex", ...), (..., "s-1"), ("alex", "s-1")])
async def test_logout_token_names_a_subject_a_session_or_both(sub: Any, sid: Any) -> None:
    logout = await logout_tokens().accept(PROVIDER.logout_token(sub=sub, sid=sid, jti="j"))

    expected = [None if name is ... else name for name in (sub, sid)]
    assert logout == LogoutToken(ISSUER, expected[0], expected[1], NOW, "j")


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"iss": ...}, "iss is not the issuer"),
        ({"iss": "https://other.example"}, "iss is not the issuer"),
        ({"iss": f"{ISSUER}/"}, "iss is not the issuer"),
        ({"iss": [ISSUER]}, "iss is not the issuer"),
        ({"aud": ...}, "aud is not the audience"),
        ({"aud": "somebody-else"}, "aud is not the audience"),
        ({"aud": []}, "aud is not the audience"),
        ({"aud": [AUDIENCE, 1]}, "aud is not the audience"),
        ({"aud": {AUDIENCE: 1}}, "aud is not the audience"),
        ({"iat": ...}, "has no iat"),
        ({"iat": None}, "iat is not a Unix time"),
        ({"iat": str(NOW)}, "iat is not a Unix time"),
        ({"iat": True}, "iat is not a Unix time"),
        ({"iat": -1}, "iat is not a Unix time"),
        ({"iat": NOW - MAX_AGE_SECONDS - 1}, "more than 120 seconds ago"),
        ({"iat": NOW + MAX_AGE_SECONDS + 1, "exp": NOW + 900}, "more than 120 seconds ahead"),
        ({"exp": NOW - 5}, "has expired"),
        ({"exp": ...}, "has no exp"),
        ({"exp": None}, "exp is not a Unix time"),
        ({"exp": "soon"}, "exp is not a Unix time"),
        ({"nbf": NOW + 6}, "nbf is in the future"),
        ({"sub": ..., "sid": ...}, "neither sub nor sid"),
        ({"sub": None}, "sub is not a string"),
        ({"sub": ""}, "sub is not a string"),
        ({"sub": 7, "sid": ...}, "sub is not a string"),
        ({"sid": None}, "sid is not a string"),
        ({"sid": ["s-1"]}, "sid is not a string"),
        ({"sid": "s" * 256}, "sid is not a string"),
        ({"sid": "s\n1"}, "sid is not a string"),
        ({"events": ...}, "events does not have"),
        ({"events": None}, "events does not have"),
        ({"events": {}}, "events does not have"),
        ({"events": LOGOUT_EVENT}, "events does not have"),
        ({"events": [LOGOUT_EVENT]}, "events does not have"),
        ({"events": {LOGOUT_EVENT: None}}, "events does not have"),
        ({"events": {LOGOUT_EVENT: []}}, "events does not have"),
        ({"events": {LOGOUT_EVENT.upper(): {}}}, "events does not have"),
        ({"nonce": "n"}, "must not have a nonce"),
        ({"nonce": None}, "must not have a nonce"),
        ({"jti": ...}, "has no jti"),
        ({"jti": None}, "jti is not a string"),
        ({"jti": ""}, "jti is not a string"),
        ({"jti": 1}, "jti is not a string"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_b29_logout_token_is_refused_by_its_claims(claims: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenError, match=message):
        await logout_tokens().accept(PROVIDER.logout_token(**claims))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"typ": "at+jwt"}, "typ is neither"),
        ({"typ": "secevent+jwt"}, "typ is neither"),
        ({"typ": None}, "typ is neither"),
        ({"typ": 1}, "typ is neither"),
        ({"alg": "none"}, "algorithm"),
        ({"alg": "RS256"}, "no key"),
        ({"kid": "other"}, "no key"),
        ({"crit": ["exp"]}, "crit"),
        ({"b64": False}, "b64"),
        ({"zip": "DEF"}, "zip"),
    ],
    ids=lambda value: str(value),
)
async def test_b29_logout_token_is_refused_by_its_header(header: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenError, match=message):
        await logout_tokens().accept(PROVIDER.logout_token(header))


def by_secret() -> str:
    """Return a good logout token, but for being signed with the secret of the hub."""
    good = PROVIDER.logout_token().split(".")[1]
    signed = f"{b64(json.dumps({'alg': 'HS256', 'typ': 'logout+jwt'}).encode())}.{good}"
    return f"{signed}.{b64(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())}"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "three base64url segments"),
        ("a.b", "three base64url segments"),
        ("a.b.c.d.e", "three base64url segments"),
        (STRANGER.logout_token(), "signature is wrong"),
        (PROVIDER.logout_token().rpartition(".")[0] + ".", "three base64url segments"),
        (PROVIDER.logout_token().rpartition(".")[0] + ".AAAA", "signature is wrong"),
        (PROVIDER.sign([]), "not a JSON object"),
        (PROVIDER.access_token(), "typ is neither"),
        (by_secret(), "signed with a secret"),
        (PROVIDER.logout_token(x="x" * 8_192), "more than 8192 characters"),
    ],
    ids=["empty", "two", "JWE", "stranger", "unsigned", "cut", "list", "access-token", "by-secret", "long"],
)
async def test_token_that_is_no_logout_token_is_refused(token: str, message: str) -> None:
    with pytest.raises(TokenError, match=message):
        await logout_tokens(secrets=SECRET).accept(token)


async def test_refusal_shows_no_claim() -> None:
    marked = "grapefruit"
    bad: list[dict[str, Any]] = [
        *({name: marked} for name in ("iss", "aud", "iat", "exp")),
        *({name: [marked]} for name in ("sub", "sid", "jti", "events", "nonce")),
    ]
    for claims in bad:
        with pytest.raises(TokenError) as caught:
            await logout_tokens().accept(PROVIDER.logout_token(**claims))

        assert marked not in str(caught.value)


async def test_logout_token_is_accepted_once() -> None:
    tokens, token = logout_tokens(), PROVIDER.logout_token()
    await tokens.accept(token)

    with pytest.raises(TokenError, match="received before"):
        await tokens.accept(token)
    await tokens.accept(PROVIDER.logout_token())


async def test_logout_token_is_accepted_again_if_it_is_forgotten() -> None:
    tokens, token = logout_tokens(), PROVIDER.logout_token()

    tokens.forget(await tokens.accept(token))

    await tokens.accept(token)


async def test_refused_logout_token_is_not_remembered() -> None:
    tokens = logout_tokens()
    with pytest.raises(TokenError):
        await tokens.accept(PROVIDER.logout_token(jti="j", aud="somebody-else"))
    with pytest.raises(TokenError):
        await tokens.accept(STRANGER.logout_token(jti="j"))

    await tokens.accept(PROVIDER.logout_token(jti="j"))


async def test_logout_token_is_remembered_until_it_is_too_old() -> None:
    now = float(NOW)
    tokens = LogoutTokens(PROVIDER.tokens(), lambda: now)
    ahead = PROVIDER.logout_token(iat=NOW + MAX_AGE_SECONDS, exp=NOW + 900)
    await tokens.accept(ahead)

    now = NOW + 2.0 * MAX_AGE_SECONDS - 1
    with pytest.raises(TokenError, match="received before"):
        await tokens.accept(ahead)
    now = NOW + 2.0 * MAX_AGE_SECONDS + 1
    with pytest.raises(TokenError, match="seconds ago"):
        await tokens.accept(ahead)


async def test_number_of_remembered_logout_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.tokens.logout.MAX_REMEMBERED", 3)
    tokens = logout_tokens()
    sent = [PROVIDER.logout_token() for _ in range(5)]
    for token in sent:
        await tokens.accept(token)

    await tokens.accept(sent[0])  # the oldest ones have been forgotten
    for token in (sent[3], sent[4]):
        with pytest.raises(TokenError, match="received before"):
            await tokens.accept(token)
    assert MAX_REMEMBERED == 10_000


async def test_logout_token_waits_for_keys_that_are_not_known_yet(tmp_path: Any) -> None:
    tokens = Tokens(jwks="https://id.example/jwks", issuer=ISSUER, audience=AUDIENCE, grant_templates=["user.{sub}"])

    with pytest.raises(KeysUnavailable):
        await LogoutTokens(tokens).accept(PROVIDER.logout_token())


def test_logout_tokens_need_a_jwks() -> None:
    with pytest.raises(ConfigError, match="set jwks"):
        LogoutTokens(Tokens(SECRET))
