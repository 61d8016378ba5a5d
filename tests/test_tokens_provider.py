"""Tokens of an identity provider: keys and secrets that are replaced, settings, and the channels that claims grant."""

from __future__ import annotations

from typing import Any

import pytest

from bad_tokens import (
    ALGORITHM,
    BY_PROVIDER,
    CLAIMS,
    MALFORMED,
    NOW,
    OLD_SECRET,
    OTHER_SECRET,
    SECRET,
    SIGNATURE,
    UNKNOWN_KEY,
    make_of,
    raw,
    tokens,
)
from signing_keys import jwk, key_set, maker, private_key
from ssehub.claims import Claims
from ssehub.errors import ConfigError, InvalidEvent, KeysUnavailable, TokenError, UnknownKey
from ssehub.tokens import KeySet, Tokens
from ssehub.tokens.access import Access
from ssehub.tokens.cache import VerifiedTokens
from ssehub.tokens.grants import GrantTemplate

TOKENS = tokens()


def test_b19_secrets_in_rotation_all_verify_and_the_first_one_signs() -> None:
    own = tokens()
    by_new, by_old = make_of("HS256", SECRET)(), make_of("HS512", OLD_SECRET)()
    issued = own.issue("alex", ["chat"], expires_at=NOW + 60)
    assert own.verify(by_new) and own.verify(by_old) and Tokens(SECRET, now=lambda: NOW).verify(issued)

    own.replace_secrets([OTHER_SECRET, SECRET])
    assert own.verify(by_new) and own.verify(issued)
    with pytest.raises(TokenError) as caught:
        own.verify(by_old)
    assert caught.value.reason is SIGNATURE
    issued = own.issue("alex", ["chat"], expires_at=NOW + 60)

    own.replace_secrets(OTHER_SECRET)
    assert own.verify(issued) and own.verify(make_of("RS256")())
    with pytest.raises(TokenError):
        own.verify(by_new)


@pytest.mark.parametrize("secrets", [["x" * 32, "changeme"], ["x" * 32, ""], [""], "", ["x"] * 17, ["x" * 32, None]])
def test_b19_bad_secrets_replace_nothing(secrets: Any) -> None:
    own = tokens()

    with pytest.raises(ConfigError) as caught:
        own.replace_secrets(secrets)

    assert "secret" in str(caught.value) and "changeme" not in str(caught.value)
    assert own.verify(make_of("HS256")()) and own.verify(make_of("HS256", OLD_SECRET)())


def test_b19_key_of_a_replaced_set_verifies_no_token_any_more_not_even_one_that_it_has_verified() -> None:
    own = tokens()
    by_old = make_of("RS256")()
    by_new = make_of("RS256", private_key("RS256", 1))({"kid": "new"})
    new_key = jwk(private_key("RS256", 1), kid="new", alg="RS256")
    assert own.verify(by_old)
    with pytest.raises(UnknownKey):
        own.verify(by_new)

    own.replace_keys(KeySet.parse({"keys": [*key_set()["keys"], new_key]}))
    assert own.verify(by_old) and own.verify(by_new)

    own.replace_keys(KeySet.parse({"keys": [new_key]}))
    assert own.verify(by_new) and own.verify(make_of("HS256")())
    with pytest.raises(UnknownKey):
        own.verify(by_old)

    own.replace_keys(KeySet.parse({"keys": [{**new_key, "kid": "RS256"}]}))  # another key by the same name
    with pytest.raises(TokenError) as caught:
        own.verify(by_old)
    assert caught.value.reason is SIGNATURE


def test_without_a_key_set_tokens_of_the_provider_are_to_come_back_and_all_others_are_decided() -> None:
    own = tokens(jwks="https://login.example/jwks.json")

    assert not own.has_keys
    for make in (make_of("RS256"), make_of("ES256", private_key("ES256", 1))):
        with pytest.raises(KeysUnavailable):
            own.verify(make())
        with pytest.raises(KeysUnavailable):
            own.verified(make())
    assert own.verify(make_of("HS256")())
    for header in ({"alg": "none"}, {"alg": "HS256"}, {"crit": ["x"]}):
        with pytest.raises(TokenError):
            own.verify(make_of("RS256")(header))

    own.replace_keys(KeySet.parse(key_set()))
    assert own.has_keys and own.verify(make_of("RS256")())


def test_verified_returns_what_a_key_has_signed_whatever_it_says() -> None:
    claims = {"iss": "x", "events": {}, "exp": 1}

    signed = TOKENS.verified(maker(claims, "RS256")({"typ": "logout+jwt"}))

    assert (signed.header["typ"], signed.header["kid"], signed.claims) == ("logout+jwt", "RS256", claims)
    for token, reason in (
        (make_of("HS256")(), ALGORITHM),
        (make_of("RS256", private_key("RS256", 1))(), SIGNATURE),
        (make_of("RS256")({"crit": ["typ"]}), MALFORMED),
        (make_of("RS256")({"kid": "x"}), UNKNOWN_KEY),
        (make_of("RS256")() + "=", MALFORMED),
        (raw("RS256", claims=b"[]"), MALFORMED),
    ):
        with pytest.raises(TokenError) as caught:
            TOKENS.verified(token)
        assert caught.value.reason is reason
    with pytest.raises(TokenError):
        TOKENS.verify(maker({**BY_PROVIDER, **claims}, "RS256")({"typ": "logout+jwt"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"issuer": None}, "jwks needs issuer and audience"),
        ({"issuer": ""}, "jwks needs issuer and audience"),
        ({"audience": None}, "jwks needs issuer and audience"),
        ({"audience": []}, "jwks needs issuer and audience"),
        ({"audience": [""]}, "audience must be a string that is not empty"),
        ({"audience": ["hub", 5]}, "audience must be a string that is not empty"),
        ({"issuer": 5}, "issuer must be a string that is not empty"),
        ({"user_claim": ""}, "user_claim must be a string that is not empty"),
        ({"channel_claim": None}, "jwks needs channel_claim, pattern_claim or grant_templates"),
        ({"channel_claim": ""}, "channel_claim must be the name of a claim"),
        ({"pattern_claim": ""}, "pattern_claim must be the name of a claim"),
        ({"pattern_claim": ["hear"]}, "pattern_claim must be the name of a claim"),
        ({"max_token_seconds": 0}, "max_token_seconds 0: must be greater than 0"),
        ({"max_token_seconds": "1h"}, "max_token_seconds '1h'"),
        ({"algorithm": "RS256"}, "algorithm 'RS256': must be one of HS256"),
        ({"jwks": None}, "issuer, audience, channel_claim, grant_templates and pattern_claim are for tokens by jwks"),
    ],
)
def test_b20_setting_that_would_not_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens(**settings)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("secrets", [(), [], None, b"a secret in bytes, of 32 bytes or more", [b"x" * 32]])
def test_b20_tokens_without_a_usable_secret_are_refused(secrets: Any) -> None:
    with pytest.raises(ConfigError, match="secret"):
        Tokens(secrets)


def test_issued_token_is_no_longer_valid_than_tokens_may_be() -> None:
    assert TOKENS.verify(TOKENS.issue("alex", ["chat"], expires_at=NOW + 3_600))
    with pytest.raises(InvalidEvent, match=r"valid for 3601 s, more than max_token_seconds \(3600\)"):
        TOKENS.issue("alex", ["chat"], expires_at=NOW + 3_601)


# Which channels a token grants


def granted(settings: dict[str, Any], **claims: Any) -> tuple[str, ...]:
    own = tokens(**{"channel_claim": None, **settings})
    return own.verify(make_of("ES256")(**claims)).channels


def test_channels_are_made_of_claims_by_templates() -> None:
    templates = {"grant_templates": ["user.{sub}", "{tenant}:all", "news"]}

    assert granted(templates, tenant="acme") == ("user.alex", "acme:all", "news")
    assert granted({"grant_templates": "user.{sub}"}) == ("user.alex",)
    assert granted({"grant_templates": ["user.{sub}", "user.{sub}"]}) == ("user.alex",)
    assert granted({"grant_templates": ["{https://app.example/team}"]}, **{"https://app.example/team": "a"}) == ("a",)


def test_channels_of_templates_and_of_a_claim_are_granted_together() -> None:
    both = {"grant_templates": ["user.{sub}"], "channel_claim": "listen"}

    assert granted(both) == ("user.alex", "chat")
    assert granted(both, listen=["user.alex", "x"]) == ("user.alex", "x")
    assert granted(both, listen=[]) == granted(both, listen=...) == ("user.alex",)
    values: list[Any] = [None, 5, {}, ["x", 5], ["x", None], [["x"]], ""]
    for value in values:
        with pytest.raises(TokenError) as caught:
            granted(both, listen=value)
        assert caught.value.reason is CLAIMS


@pytest.mark.parametrize(
    "value", [..., None, "", 5, True, ["a"], {"a": 1}, "a*", "*", "x" * 256, "a\nb", "\0", "é" * 100]
)
def test_no_channel_is_made_of_a_claim_that_is_not_a_name(value: Any) -> None:
    with pytest.raises(TokenError) as caught:
        granted({"grant_templates": ["user.{sub}", "team.{team}"]}, team=value)

    assert caught.value.reason is CLAIMS


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("4f1e-9_~Z", "4f1e-9_~Z"),
        ("auth0|5f7c", "auth0%7C5f7c"),
        ("alex@example.com", "alex%40example%2Ecom"),
        ("a.b", "a%2Eb"),
        ("a%2Eb", "a%252Eb"),
        ("../admin", "%2E%2E%2Fadmin"),
        ("a b+c", "a%20b%2Bc"),
        ("{sub}", "%7Bsub%7D"),
        ("é", "%C3%A9"),
        ("e\u0301", "e%CC%81"),
        ("\u202e", "%E2%80%AE"),
    ],
)
def test_value_of_a_claim_is_escaped(value: str, escaped: str) -> None:
    assert GrantTemplate.parse("user.{sub}.inbox").channel({"sub": value}) == f"user.{escaped}.inbox"


def test_different_values_never_make_the_same_channel() -> None:
    values = [
        "a",
        "b",
        "A",
        ".",
        "..",
        "a.b",
        "a%2Eb",
        "a%252Eb",
        "a-b",
        "-",
        "_",
        "~",
        "%",
        "%2",
        "é",
        "e\u0301",
        "a:b",
        ":",
    ]

    for text in ("{x}", "u.{x}.{y}", "{x}:{y}", "{x}-.-{y}", "{x}/_/{y}~", "{x}.{y}.{x}"):
        template = GrantTemplate.parse(text)
        pairs = [{"x": x, "y": y} for x in values for y in (values if "{y}" in text else ["-"])]
        assert len({template.channel(pair) for pair in pairs}) == len(pairs), text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user.{sub", "grant_templates: 'user.{sub' has an unmatched or empty brace"),
        ("user.sub}", "grant_templates: 'user.sub}' has an unmatched"),
        ("user.{}", "grant_templates: 'user.{}' has an unmatched or empty brace"),
        ("{{sub}}", "grant_templates: '{{sub}}' has an unmatched"),
        ("user.{sub}.*", "grant_templates: 'user.{sub}.*' contains '*'"),
        ("{a}{b}", "grant_templates: '{a}{b}' has two claims without a separator"),
        ("{a}-{b}", "grant_templates: '{a}-{b}' has two claims without a separator"),
        ("{a}x{b}", "grant_templates: '{a}x{b}' has two claims without a separator"),
        ("{a}%{b}", "grant_templates: '{a}%{b}' has two claims without a separator"),
        ("", "grant_templates is empty"),
        ("a\nb", "grant_templates 'a\\nb' contains a line break"),
        (5, "grant_templates: 5 is not a string"),
    ],
)
def test_template_that_would_not_do_is_refused(text: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens(grant_templates=[text])

    assert str(caught.value).startswith(message)


def test_more_channels_than_a_token_may_grant_are_refused() -> None:
    both = {"grant_templates": ["user.{sub}"], "channel_claim": "listen"}

    assert len(granted(both, listen=[str(n) for n in range(999)])) == 1_000
    with pytest.raises(TokenError, match="1001 channels: at most 1000 are possible"):
        granted(both, listen=[str(n) for n in range(1_000)])


def test_patterns_are_in_the_claim_that_is_set() -> None:
    only = tokens(channel_claim=None, pattern_claim="hear")
    both = tokens(pattern_claim="hear")

    for own, channels in ((only, ()), (both, ("chat",))):
        for value in ("orders.*", ["orders.*"], ["orders.*", "orders.*"]):
            claims = own.verify(make_of("ES256")(hear=value))
            assert (claims.channels, claims.patterns) == (channels, ("orders.*",))
    assert both.verify(make_of("ES256")()).patterns == ()
    assert both.verify(make_of("ES256")(listen=..., hear=["a*"])).channels == ()


def test_patterns_of_tokens_by_secret_and_channels_with_a_star_grant_no_patterns() -> None:
    claims = tokens().verify(make_of("ES256")(patterns=["orders.*"], listen=["orders.*"]))

    assert (claims.channels, claims.patterns) == (("orders.*",), ())


@pytest.mark.parametrize(
    "value", [..., None, 5, {}, [], [5], [["a*"]], "", "orders", "*a", "a**", ["a*"] * 0, "x" * 4_000 + "*"]
)
def test_b30_claim_that_is_no_pattern_is_refused(value: Any) -> None:
    with pytest.raises(TokenError) as caught:
        tokens(channel_claim=None, pattern_claim="hear").verify(make_of("ES256")(hear=value))

    assert caught.value.reason is CLAIMS


def test_b30_more_patterns_than_a_token_may_grant_are_refused() -> None:
    own = tokens(pattern_claim="hear")

    assert len(own.verify(make_of("ES256")(hear=[f"{n}*" for n in range(100)])).patterns) == 100
    with pytest.raises(TokenError, match="patterns: 101 given: at most 100 are allowed"):
        own.verify(make_of("ES256")(hear=[f"{n}*" for n in range(101)]))


def test_user_is_in_the_claim_that_is_set() -> None:
    own = tokens(user_claim="email")
    claims = own.verify(make_of("RS256")(email="alex@example.com"))

    assert (claims.user_id, claims.sub) == ("alex@example.com", "alex")
    with pytest.raises(TokenError):
        own.verify(make_of("RS256")())
    assert own.verify(make_of("HS256")()).user_id == "alex"


# The cache


@pytest.mark.parametrize(("channels", "patterns", "is_kept"), [(100, 0, True), (99, 1, True), (1, 100, False)])
def test_cache_keeps_no_token_that_grants_more_than_100_names(channels: int, patterns: int, is_kept: bool) -> None:
    cache = VerifiedTokens()
    names = tuple(str(number) for number in range(channels))
    granted = Access(Claims("alex", names, patterns=tuple(f"{number}*" for number in range(patterns))), 0.0)

    cache.add(b"digest", granted)

    assert (cache.find(b"digest") is granted) is is_kept


def test_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache = VerifiedTokens(size=3)
    some = [TOKENS.verify(make_of("RS256")(jti=str(number))) for number in range(4)]
    digests = [cache.digest(str(number)) for number in range(4)]

    for digest, claims in zip(digests, some, strict=True):
        cache.add(digest, Access(claims, 0.0))

    assert len(cache) == 3
    assert cache.find(digests[0]) is None and cache.find(digests[3]) is not None


def test_token_that_is_verified_again_grants_the_same() -> None:
    own = tokens()
    token = make_of("PS512")(jti="id", sid="session")

    first = own.verify(token)

    assert own.verify(token) is first
    with pytest.raises(TokenError):
        own.verify(token[:-1])
