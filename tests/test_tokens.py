"""Tokens: what verifies, here and in any other JWT library, and what never does."""

from __future__ import annotations

import ast
import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

import ssehub
from ssehub.claims import Claims
from ssehub.errors import ConfigError, InvalidEvent, TokenError
from ssehub.tokens import Tokens, check_secret
from token_samples import BROKEN, GOOD, HASHES, HEADER, NOW, SECRET, make, raw, sign, tokens, valid


@pytest.mark.parametrize("token", BROKEN.values(), ids=BROKEN.keys())
def test_broken_token_is_refused(token: str) -> None:
    with pytest.raises(TokenError) as caught:
        tokens.verify(token)

    assert token not in str(caught.value) or len(token) < 5
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("algorithm", HASHES)
def test_token_made_by_hand_verifies(algorithm: str) -> None:
    token = make({"alg": algorithm}, algorithm=algorithm)

    assert tokens.verify(token) == Claims("alex", ("chat",), NOW + 60)


@pytest.mark.parametrize(
    ("token", "claims"),
    [
        pytest.param(make(userId=..., sub="kim"), Claims("kim", ("chat",), NOW + 60), id="sub"),
        pytest.param(make(channel=..., channels=["b", "a"]), Claims("alex", ("b", "a"), NOW + 60), id="channels"),
        pytest.param(make(userId="*"), Claims("*", ("chat",), NOW + 60), id="star"),
        pytest.param(make(exp=NOW + 0.5), Claims("alex", ("chat",), NOW + 0.5), id="float"),
        pytest.param(make(nbf=int(NOW)), Claims("alex", ("chat",), NOW + 60), id="B10-nbf-now"),
        pytest.param(make(iat="garbage"), Claims("alex", ("chat",), NOW + 60), id="B10-iat-is-not-looked-at"),
        pytest.param(make(aud="x", iss="y"), Claims("alex", ("chat",), NOW + 60), id="B11-not-configured"),
        pytest.param(
            make({"jku": "http://x", "kid": "../../dev/null"}), Claims("alex", ("chat",), NOW + 60), id="B6-keys"
        ),
        pytest.param(
            raw(b'{"userId":"a","userId":"alex","channel":"chat","exp":1700000060}'),
            Claims("alex", ("chat",), NOW + 60),
            id="B4-last-of-two-counts",
        ),
    ],
)
def test_token_of_another_form_verifies(token: str, claims: Claims) -> None:
    assert tokens.verify(token) == claims


def test_token_without_exp_verifies_only_if_it_may() -> None:
    assert Tokens(SECRET, require_exp=False).verify(make(exp=...)) == Claims("alex", ("chat",), None)
    with pytest.raises(TokenError, match="expired"):
        Tokens(SECRET, require_exp=False).verify(make(exp=1))


def test_issued_token_is_what_the_original_reads() -> None:
    token = tokens.issue("alex", ["chat"], expires_at=NOW + 60.7)
    header, payload, _ = token.split(".")

    assert json.loads(base64.urlsafe_b64decode(header + "==")) == HEADER
    assert json.loads(base64.urlsafe_b64decode(payload + "==")) == GOOD
    assert sign(base64.urlsafe_b64decode(header + "=="), base64.urlsafe_b64decode(payload + "==")) == token


def test_issued_token_for_several_channels_verifies() -> None:
    token = tokens.issue("alex", ["a", "b"], expires_at=NOW + 60)

    assert tokens.verify(token) == Claims("alex", ("a", "b"), NOW + 60)


@pytest.mark.parametrize(
    ("user_id", "channels", "message"),
    [
        ("", ["chat"], "userId is empty"),
        ("a\n", ["chat"], "userId 'a\\n' contains a line break"),
        ("a", [], "channel: 0 were given"),
        ("a", ["x"] * 101, "channel: 101 were given"),
        ("a", [""], "channel is empty"),
        ("a", "chat", "channels must be a sequence of names"),
        ("a", None, "channels must be a sequence of names"),
        ("a", [f"{n:0255}" for n in range(100)], "channel: the token would have"),
    ],
)
def test_token_that_would_not_verify_is_not_issued(user_id: str, channels: Any, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        tokens.issue(user_id, channels, expires_at=NOW + 60)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("expires_at", [float("inf"), float("nan"), 1e300, 2.0**53, -1.0, "1700000060", None])
def test_token_with_an_end_that_would_not_verify_is_not_issued(expires_at: Any) -> None:
    with pytest.raises(InvalidEvent, match="is no Unix time in seconds, such as 1700086400"):
        tokens.issue("a", ["chat"], expires_at=expires_at)


def test_b16_no_mutation_of_a_token_verifies() -> None:
    """2,000 seeded mutations: refused, or the same token."""
    chance = random.Random(16)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"
    for _ in range(2_000):
        text = list(valid)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(text))
            text[place : place + chance.randint(0, 2)] = chance.choice(alphabet)
        mutated = "".join(text)
        if mutated != valid:
            with pytest.raises(TokenError):
                tokens.verify(mutated)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "  ",
        "secret",
        "null",
        "true",
        "NaN",
        '"x"',
        "[1]",
        "{}",
        '{"k":"oct"}',
        "-----BEGIN PUBLIC KEY-----\nx",
        "ssh-rsa AAAA",
        None,
        b"a secret of bytes",
    ],
)
def test_b20_secret_that_everybody_knows_or_that_can_not_sign_is_refused(secret: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Tokens(secret)

    assert "secret" in str(caught.value)
    assert not isinstance(secret, str) or len(secret.strip()) < 7 or secret not in str(caught.value)


@pytest.mark.parametrize("secret", ["MySuperPassword42", "12345", "1e5", "p" * 200, "é" * 20])
def test_other_secrets_sign_what_they_verify(secret: str) -> None:
    check_secret(secret)
    own = Tokens(secret, now=lambda: NOW)

    assert own.verify(make(secret=secret)) == own.verify(own.issue("alex", ["chat"], expires_at=NOW + 60))


def test_b21_no_secret_is_compared_with_an_early_exit() -> None:
    suspects = []
    for path in Path(ssehub.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                text = ast.unparse(node)
                if any(word in text for word in ("signature", "_key", "_secret", "authorization")) and "[" not in text:
                    suspects.append(f"{path.name}: {text}")

    assert suspects == []
