"""Key sets of an identity provider: which are refused, which keys of them are used, and which key a token gets."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from signing_keys import ASYMMETRIC, b64, jwk, key_set, private_key
from ssehub.errors import ConfigError, TokenReason, UnknownKey
from ssehub.tokens import KeySet, Tokens
from ssehub.tokens.keyset import MAX_KEY_SET_BYTES, MAX_KEYS

RSA_KEY = jwk(private_key("RS256"), kid="a")
EC_KEY = jwk(private_key("ES256"), kid="b")
ED_KEY = jwk(private_key("EdDSA"), kid="c")


def as_json(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_set_is_parsed_from_json_and_from_a_mapping() -> None:
    for content in (key_set(), json.dumps(key_set()).encode()):
        parsed = KeySet.parse(content)

        assert len(parsed) == len(ASYMMETRIC)
        for algorithm in ASYMMETRIC:
            assert parsed.find(algorithm, algorithm).algorithms == (algorithm,)


REFUSED: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "empty": (b"", "the JWKS is not JSON in UTF-8 (JSONDecodeError)"),
    "not-json": (b"<html>404</html>", "the JWKS is not JSON in UTF-8"),
    "not-utf-8": (b'{"keys":["\xff"]}', "the JWKS is not JSON in UTF-8 (UnicodeDecodeError)"),
    "utf-16": ('{"keys":[]}'.encode("utf-16"), "the JWKS is not JSON in UTF-8"),
    "cut": (as_json(RSA_KEY)[:-9], "the JWKS is not JSON in UTF-8"),
    "deep": (b"[" * 100_000, "the JWKS is not JSON in UTF-8 (RecursionError)"),
    "digits": (b'{"keys":[' + b"9" * 5_000 + b"]}", "the JWKS is not JSON in UTF-8 (ValueError)"),
    "10-MB": (b" " * 10_000_000, "the JWKS has 10000000 bytes: at most 1048576 are accepted"),
    "list": (json.dumps([RSA_KEY]).encode(), 'not a JWKS: expected a JSON object with a list "keys"'),
    "number": (b"5", "not a JWKS: expected"),
    "one-key": (json.dumps(RSA_KEY).encode(), "not a JWKS: expected"),
    "keys-object": ({"keys": {"a": RSA_KEY}}, "not a JWKS: expected"),
    "keys-null": ({"keys": None}, "not a JWKS: expected"),
    "key-text": (as_json(RSA_KEY, "x"), "not a JWKS: key 2 is not an object"),
    "10000-keys": (b'{"keys":[' + b",".join([b"{}"] * 10_000) + b"]}", "the JWKS has 10000 keys: at most 100"),
    "101-keys": ({"keys": [RSA_KEY] * 101}, "the JWKS has 101 keys: at most 100"),
    "no-key": (as_json(), "the JWKS has no key that can verify tokens: 0 given"),
    "none-usable": (
        as_json({**RSA_KEY, "use": "enc"}, {"kty": "oct"}),
        "the JWKS has no key that can verify tokens: 2 given, none is usable",
    ),
    "all-twice": (as_json(RSA_KEY, RSA_KEY), "the JWKS has no key that can verify tokens: 2 given"),
    "private-rsa": (
        as_json(EC_KEY, {**RSA_KEY, "d": "AQ"}),
        "the JWKS is refused, because key 2 is private (it has 'd')",
    ),
    "private-ec": (as_json({**EC_KEY, "d": "AQ"}, RSA_KEY), "the JWKS is refused, because key 1 is private"),
    "private-for-encryption": (
        as_json(EC_KEY, {**RSA_KEY, "use": "enc", "d": ""}),
        "the JWKS is refused, because key 2 is private",
    ),
    "prime": (as_json(EC_KEY, {**RSA_KEY, "p": "AQ"}), "the JWKS is refused, because key 2 is private (it has 'p')"),
    "private-unknown": (as_json(EC_KEY, {"kty": "AKP", "priv": "AQ"}), "the JWKS is refused, because key 2 is private"),
    "symmetric": (
        as_json(RSA_KEY, {"kty": "oct", "k": b64(b"confidential")}),
        "the JWKS is refused, because key 2 is symmetric (it has 'k')",
    ),
    "symmetric-null": (as_json(RSA_KEY, {"k": None}), "the JWKS is refused, because key 2 is symmetric"),
    "symmetric-outside": ({"keys": [RSA_KEY], "k": "AQ"}, "the JWKS is refused, because the set itself is symmetric"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_set_is_refused_with_one_line(content: bytes | dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KeySet.parse(content)

    line = str(caught.value)
    assert line.startswith(message)
    assert "\n" not in line and len(line) < 200
    assert b64(b"confidential") not in line


def test_set_at_its_bounds_is_parsed() -> None:
    keys = [{**EC_KEY, "kid": str(number)} for number in range(MAX_KEYS)]
    content = as_json(*keys)

    assert len(KeySet.parse(content + b" " * (MAX_KEY_SET_BYTES - len(content)))) == MAX_KEYS


SKIPPED: dict[str, tuple[dict[str, Any], str]] = {
    "encryption": ({**RSA_KEY, "kid": "x", "use": "enc"}, "its use is 'enc'"),
    "oct": ({"kty": "oct", "kid": "x"}, "it is symmetric (oct)"),
    "curve": ({**EC_KEY, "kid": "x", "crv": "secp256k1"}, "its crv 'secp256k1'"),
    "wrong-alg": ({**RSA_KEY, "kid": "x", "alg": "ES256"}, "its alg 'ES256'"),
    "log-injection": ({**RSA_KEY, "kid": "x", "use": "a\nERROR b\x1b[31m"}, r"its use is 'a\nERROR b\x1b[31m'"),
    "list-kid": ({**RSA_KEY, "kid": ["x"]}, "its kid is not a string"),
}


@pytest.mark.parametrize(("value", "reason"), SKIPPED.values(), ids=SKIPPED.keys())
def test_unusable_key_is_skipped_with_a_line(
    value: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ssehub.tokens"):
        parsed = KeySet.parse(as_json(RSA_KEY, value))

    assert len(parsed) == 1
    assert parsed.find("a", "RS256")
    (line,) = caplog.messages
    assert line.startswith(f"JWKS: key 2 (kid {value['kid']!r}) is skipped: {reason}")
    assert "\n" not in line


def test_long_kid_is_shortened_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ssehub.tokens"):
        KeySet.parse(as_json(RSA_KEY, {**RSA_KEY, "kid": "x" * 100_000, "use": "enc"}))

    assert len(caplog.messages[0]) < 200


def test_pair_of_kid_and_alg_that_is_there_twice_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    other = jwk(private_key("RS256", 1), kid="a")

    with caplog.at_level(logging.WARNING, "ssehub.tokens"):
        parsed = KeySet.parse(as_json(RSA_KEY, other, {**RSA_KEY, "alg": "PS256"}, EC_KEY))

    assert caplog.messages == ["JWKS: 2 keys have kid 'a' and alg RS256, so none of them is used for it"]
    assert parsed.find("a", "PS256") and parsed.find("b", "ES256")
    with pytest.raises(UnknownKey):
        parsed.find("a", "RS256")


def test_key_is_found_by_kid_and_alg_together() -> None:
    parsed = KeySet.parse(as_json(RSA_KEY, {**EC_KEY, "kid": "a"}, {**EC_KEY, "kid": "b"}))

    assert parsed.find("a", "RS256").algorithms == ("RS256",)
    assert parsed.find("a", "ES256") is not parsed.find("b", "ES256")
    for kid, algorithm in (("a", "RS384"), ("b", "RS256"), ("c", "ES256"), ("", "RS256"), ("A", "RS256")):
        with pytest.raises(UnknownKey) as caught:
            parsed.find(kid, algorithm)
        assert caught.value.reason is TokenReason.UNKNOWN_KEY
        assert str(caught.value) == f"the token has kid {kid!r}, and no key has it for {algorithm!r}"


def test_without_kid_the_only_key_for_the_algorithm_is_found() -> None:
    parsed = KeySet.parse(as_json(RSA_KEY, EC_KEY, {**EC_KEY, "kid": "d"}, ED_KEY))

    assert parsed.find(None, "RS256") is parsed.find("a", "RS256")
    assert parsed.find(None, "EdDSA") is parsed.find(None, "Ed25519") is parsed.find("c", "EdDSA")
    for algorithm in ("ES256", "PS256"):
        with pytest.raises(UnknownKey, match="no kid, and not exactly one key fits"):
            parsed.find(None, algorithm)


def test_key_without_kid_is_found_by_tokens_without_kid_only() -> None:
    nameless = jwk(private_key("RS256"))
    parsed = KeySet.parse(as_json(nameless))

    assert parsed.find(None, "RS256")
    with pytest.raises(UnknownKey):
        parsed.find("a", "RS256")


def test_eddsa_key_with_an_alg_has_that_name_only() -> None:
    parsed = KeySet.parse(as_json({**ED_KEY, "alg": "Ed25519"}, {**ED_KEY, "alg": "EdDSA", "kid": "d"}))

    assert parsed.find("c", "Ed25519") and parsed.find("d", "EdDSA")
    with pytest.raises(UnknownKey):
        parsed.find("c", "EdDSA")


def test_tokens_refuse_a_bad_set_at_construction() -> None:
    with pytest.raises(ConfigError, match="key 1 is private"):
        Tokens(jwks={"keys": [{**RSA_KEY, "d": "AQ"}]}, issuer="i", audience="a", channel_claim="channels")
