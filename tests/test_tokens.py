"""Tokens: which ones verify, here and in other JWT libraries, and which ones never do."""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import logging
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

import ssehub
from asgi_requests import head
from ssehub import Hub, create_client_app
from ssehub.claims import Claims
from ssehub.credentials import check_secret
from ssehub.errors import ConfigError, InvalidEvent, TokenError
from ssehub.tokens import MAX_HEADER_LENGTH, MAX_TOKEN_LENGTH, Tokens

SECRET = "MySuperPassword42 and enough more of it"
NOW = 1_700_000_000.0
GOOD: dict[str, Any] = {"userId": "alex", "channel": "chat", "exp": int(NOW) + 60}
HEADER = {"alg": "HS256", "typ": "JWT"}
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
TOKENS = Tokens(SECRET, now=lambda: NOW)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: bytes, payload: bytes, secret: str = SECRET, algorithm: str = "HS256") -> str:
    """Return a token made without any JWT library."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.new(secret.encode(), signed.encode(), HASHES[algorithm]).digest())}"


def make(header: dict[str, Any] | None = None, *, secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token with GOOD claims changed by `claims`; `...` removes one."""
    merged = {**GOOD, **claims}
    payload = {name: value for name, value in merged.items() if value is not ...}
    return sign(json.dumps({**HEADER, **(header or {})}).encode(), json.dumps(payload).encode(), secret, algorithm)


def grant(
    user_id: str = "alex",
    channels: tuple[str, ...] = ("chat",),
    expires_at: float | None = NOW + 60,
    iat: float = 0.0,
    patterns: tuple[str, ...] = (),
    **names: str,
) -> Claims:
    """Return the claims of a token that `make` returns."""
    return Claims(user_id, channels, expires_at, iat=iat, patterns=patterns, **names)


def raw(payload: bytes = b"{}", header: bytes = json.dumps(HEADER).encode()) -> str:
    return sign(header, payload)


def with_exp(text: str) -> str:
    return raw(b'{"userId":"alex","channel":"chat","exp":' + text.encode() + b"}")


OTHER_SECRET = "another secret that is long enough too"
OTHER_JWK = {"kty": "oct", "k": b64(OTHER_SECRET.encode())}
VALID = make()
HEAD, BODY, SIGNATURE = VALID.split(".")

BROKEN = {
    "B1-empty": "",
    "B1-space": " ",
    "B1-dot": ".",
    "B1-dots": "..",
    "B1-two-segments": "a.b",
    "B1-four-segments": f"{VALID}.x",
    "B1-five-segments": f"{VALID}.x.y",
    "B2-non-ascii": f"{VALID}é",
    "B2-surrogate": f"{VALID}\udc80",
    "B2-newline": f"{VALID}\n",
    "B2-leading-space": f" {VALID}",
    "B3-header-no-json": raw(header=b"nonsense"),
    "B3-header-list": raw(header=b"[]"),
    "B3-header-no-utf8": raw(header=b"\xff\xfe"),
    "B3-header-deep": raw(header=b"[" * 5_000),
    "B3-header-number": raw(header=b"9" * 5_000),
    "B3-header-long": raw(header=b'{"alg":"HS256","x":"%b"}' % (b"x" * MAX_HEADER_LENGTH)),
    "B4-payload-no-json": raw(b"nonsense"),
    "B4-payload-list": raw(b"[]"),
    "B4-payload-no-utf8": raw(b"\xff"),
    "B4-payload-deep": raw(b"[" * 5_000),
    "B5-alg-none": b64(b'{"alg":"none"}') + f".{BODY}.",
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
    "B6-signed-with-the-key-in-the-token": make({"jwk": OTHER_JWK}, secret=OTHER_SECRET),
    "B6-signed-with-an-empty-file": make({"kid": "../../dev/null"}, secret=""),
    "B7-signature-empty": f"{HEAD}.{BODY}.",
    "B7-signature-cut": VALID[:-4],
    "B7-signature-flipped": f"{HEAD}.{BODY}.{'A' if SIGNATURE[0] != 'A' else 'B'}{SIGNATURE[1:]}",
    "B7-signature-junk": f"{HEAD}.{BODY}.!!!!",
    "B7-signature-padded": f"{VALID}=",
    "B7-not-canonical": VALID[:-1] + chr(ord(VALID[-1]) + 1),
    "B8-other-secret": make(secret=OTHER_SECRET),
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
    "B9-exp-end-of-leeway": make(exp=int(NOW) - 5),
    "B9-exp-past": make(exp=int(NOW) - 6),
    "B10-nbf-future": make(nbf=int(NOW) + 6),
    "B10-nbf-string": make(nbf="soon"),
    "B10-iat-future": make(iat=int(NOW) + 6),
    "B10-iat-string": make(iat="garbage"),
    "B10-iat-null": make(iat=None),
    "B10-iat-true": make(iat=True),
    "B10-iat-NaN": raw(b'{"userId":"alex","channel":"chat","exp":1700000060,"iat":NaN}'),
    "B10-iat-negative": make(iat=-1),
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
    "B12-channels-many": make(channels=[str(n) for n in range(1_001)]),
    "B30-star-inside": make(patterns=["a*b"]),
    "B30-star-first": make(patterns=["*a"]),
    "B30-two-stars": make(patterns=["a**"]),
    "B30-two-stars-apart": make(patterns=["a*b*"]),
    "B30-no-star": make(patterns=["orders"]),
    "B30-empty": make(patterns=[""]),
    "B30-long": make(patterns=["x" * 3_999 + "*"]),
    "B30-line-break": make(patterns=["a\n*"]),
    "B30-NUL": make(patterns=["a\0*"]),
    "B30-surrogate": raw(b'{"userId":"a","patterns":["\\ud800*"],"exp":1700000060}'),
    "B30-one-is-bad": make(patterns=["a*", "b"]),
    "B30-many": make(patterns=[f"{n}*" for n in range(101)]),
    "B30-null": make(patterns=None),
    "B30-string": make(patterns="orders.*"),
    "B30-object": make(patterns={"orders.*": True}),
    "B30-number": make(patterns=5),
    "B30-list-of-numbers": make(patterns=[5]),
    "B30-list-of-null": make(patterns=[None]),
    "B30-list-of-lists": make(patterns=[["a*"]]),
    "B30-channel-null": make(channel=None, patterns=["a*"]),
    "B30-channels-null": make(channel=..., channels=None, patterns=["a*"]),
    "B30-no-channel-and-no-pattern": make(channel=..., patterns=[]),
    "B30-empty-lists": make(channel=..., channels=[], patterns=[]),
    "B30-user-missing": make(userId=..., channel=..., patterns=["a*"]),
    "B13-long": "x" * (MAX_TOKEN_LENGTH + 1),
    "B13-megabyte": make(pad="x" * 2**20),
    "B14-JWE": ".".join([HEAD] * 5),
}


@pytest.mark.parametrize("token", BROKEN.values(), ids=BROKEN.keys())
def test_broken_token_is_refused(token: str) -> None:
    with pytest.raises(TokenError) as caught:
        TOKENS.verify(token)

    assert token not in str(caught.value) or len(token) < 5
    assert SECRET not in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("name", BROKEN)
async def test_every_broken_token_is_the_same_401_over_http(name: str) -> None:
    token = BROKEN[name].encode(errors="surrogatepass")
    app = create_client_app(Hub(), tokens=TOKENS)

    in_header = await head(app, authorization=b"Bearer " + token)
    in_query = await head(app, b"token=" + quote_from_bytes(token).encode())

    for answer in (in_header, in_query):
        assert (answer.status, answer.body) == (401, b"a valid token is required\n")
        assert answer.headers[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize("algorithm", HASHES)
def test_token_made_by_hand_verifies(algorithm: str) -> None:
    token = make({"alg": algorithm}, algorithm=algorithm)

    assert TOKENS.verify(token) == grant()


@pytest.mark.parametrize(
    ("token", "claims"),
    [
        pytest.param(make(userId=..., sub="kim"), grant("kim", sub="kim"), id="sub"),
        pytest.param(make(channel=..., channels=["b", "a"]), grant(channels=("b", "a")), id="channels"),
        pytest.param(make(userId="*"), grant("*"), id="star"),
        pytest.param(make(channel="orders.*"), grant(channels=("orders.*",)), id="B30-channel-with-a-star"),
        pytest.param(make(channels=["*", "a*b"]), grant(channels=("*", "a*b")), id="B30-channels-with-stars"),
        pytest.param(
            make(channel=..., patterns=["orders.*"]), grant(channels=(), patterns=("orders.*",)), id="B30-pattern"
        ),
        pytest.param(make(patterns=["a*", "é*"]), grant(patterns=("a*", "é*")), id="B30-channel-and-patterns"),
        pytest.param(
            make(channel=..., channels=[], patterns=["a*"]), grant(channels=(), patterns=("a*",)), id="B30-no-channels"
        ),
        pytest.param(make(patterns=[]), grant(), id="B30-no-patterns"),
        pytest.param(
            make(patterns=[f"{n}*" for n in range(100)]),
            grant(patterns=tuple(f"{n}*" for n in range(100))),
            id="B30-100",
        ),
        pytest.param(make(patterns=["x" * 254 + "*"]), grant(patterns=("x" * 254 + "*",)), id="B30-longest"),
        pytest.param(make(patterns=["*"]), grant(patterns=("*",)), id="B30-every-channel-is-for-the-hub-to-refuse"),
        pytest.param(make(exp=NOW + 0.5), grant(expires_at=NOW + 0.5), id="float"),
        pytest.param(make(nbf=int(NOW)), grant(), id="B10-nbf-now"),
        pytest.param(make(nbf=int(NOW) + 5), grant(), id="B18-nbf-within-the-leeway"),
        pytest.param(make(iat=int(NOW) + 5), grant(iat=NOW + 5), id="B18-iat-within-the-leeway"),
        pytest.param(make(iat=0), grant(), id="B10-iat-past"),
        pytest.param(make(exp=int(NOW)), grant(expires_at=NOW + 5), id="B18-exp-now"),
        pytest.param(make(exp=int(NOW) - 4), grant(expires_at=NOW + 1), id="B18-exp-within-the-leeway"),
        pytest.param(make(aud="x", iss="y"), grant(iss="y"), id="B11-not-configured"),
        pytest.param(
            make({"jku": "http://x", "x5u": "http://x", "kid": "../../dev/null"}),
            grant(),
            id="B6-keys",
        ),
        pytest.param(make({"jwk": OTHER_JWK}), grant(), id="B6-key-in-the-token"),
        pytest.param(
            raw(b'{"userId":"a","userId":"alex","channel":"chat","exp":1700000060}'),
            grant(),
            id="B4-last-of-two-counts",
        ),
    ],
)
def test_token_of_another_form_verifies(token: str, claims: Claims) -> None:
    assert TOKENS.verify(token) == claims


@pytest.mark.parametrize(("skew", "is_accepted"), [(-90, False), (-30, True), (0, True), (30, True), (90, False)])
def test_b18_token_of_a_machine_with_another_clock_verifies_within_the_leeway(skew: int, is_accepted: bool) -> None:
    """The token is valid for one second, by the clock of the machine that signed it."""
    own = Tokens(SECRET, leeway_seconds=60, now=lambda: NOW)
    signed_at = int(NOW) + skew
    token = make(iat=signed_at, nbf=signed_at, exp=signed_at + 1)

    if is_accepted:
        end = signed_at + 1 if signed_at + 1 > NOW else signed_at + 61
        assert own.verify(token).expires_at == end
    else:
        with pytest.raises(TokenError, match=r"expired|in the future"):
            own.verify(token)


@pytest.mark.parametrize("claims", [{"nbf": NOW + 0.1}, {"iat": NOW + 0.1}, {"exp": NOW}])
def test_b18_no_leeway_is_given_if_it_is_set_to_0(claims: dict[str, Any]) -> None:
    exact = Tokens(SECRET, leeway_seconds=0, now=lambda: NOW)

    exact.verify(make(nbf=NOW, iat=NOW, exp=NOW + 0.1))
    with pytest.raises(TokenError):
        exact.verify(make(**claims))


@pytest.mark.parametrize("leeway", [-1, 601, float("nan"), float("inf")])
def test_leeway_out_of_range_is_refused(leeway: float) -> None:
    with pytest.raises(ConfigError, match="leeway_seconds"):
        Tokens(SECRET, leeway_seconds=leeway)


def test_token_without_exp_verifies_only_if_allowed() -> None:
    assert Tokens(SECRET, require_exp=False).verify(make(exp=...)) == grant(expires_at=None)
    with pytest.raises(TokenError, match="expired"):
        Tokens(SECRET, require_exp=False).verify(make(exp=1))


def test_issued_token_has_the_form_that_the_original_reads() -> None:
    token = TOKENS.issue("alex", ["chat"], expires_at=NOW + 60.7)
    header, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

    assert json.loads(base64.urlsafe_b64decode(header + "==")) == HEADER
    assert {name: claims[name] for name in GOOD} == GOOD and claims.keys() - GOOD.keys() == {"iat", "jti"}
    assert sign(base64.urlsafe_b64decode(header + "=="), base64.urlsafe_b64decode(payload + "==")) == token


def test_issued_token_for_several_channels_verifies() -> None:
    claims = TOKENS.verify(TOKENS.issue("alex", ["a", "b"], expires_at=NOW + 60))

    assert (claims.user_id, claims.channels, claims.expires_at) == ("alex", ("a", "b"), NOW + 60)


def test_issued_token_for_patterns_verifies() -> None:
    only = TOKENS.issue("alex", patterns=["orders.*"], expires_at=NOW + 60)
    both = TOKENS.issue("alex", ["chat"], patterns=["orders.*", "*"], expires_at=NOW + 60)

    for token, channels, patterns in ((only, (), ("orders.*",)), (both, ("chat",), ("orders.*", "*"))):
        claims = TOKENS.verify(token)
        assert (claims.channels, claims.patterns) == (channels, patterns)
    written = json.loads(base64.urlsafe_b64decode(only.split(".")[1] + "=="))
    assert written.keys() == {"userId", "patterns", "iat", "exp", "jti"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a*b"], "patterns 'a*b' is not a pattern"),
        (["orders"], "patterns 'orders' is not a pattern"),
        ([""], "patterns is empty"),
        (["x" * 4_000], "patterns has 4000 characters"),
        ([5], "patterns must be a string, not int"),
        (["a*"] * 101, "patterns: 101 given: a token grants at most 100"),
        ("orders.*", "patterns must be a sequence of patterns, such as ['orders.*']"),
        (None, "patterns must be a sequence of patterns"),
    ],
)
def test_b30_pattern_that_would_not_verify_is_not_issued(patterns: Any, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        TOKENS.issue("alex", ["chat"], patterns=patterns, expires_at=NOW + 60)

    assert str(caught.value).startswith(message)


def test_issued_token_says_when_it_was_issued_to_the_millisecond_and_has_an_id_of_its_own() -> None:
    tokens = Tokens(SECRET, now=lambda: NOW + 0.123456)

    one, other = (tokens.verify(tokens.issue("alex", ["chat"], expires_at=NOW + 60)) for _ in range(2))

    assert one.iat == other.iat == NOW + 0.123
    assert one.jti is not None and len(one.jti) == 22
    assert one.jti != other.jti


@pytest.mark.parametrize(
    ("user_id", "channels", "message"),
    [
        ("", ["chat"], "userId is empty"),
        ("a\n", ["chat"], "userId 'a\\n' contains a line break"),
        ("a", [], "no channel and no pattern given: a token needs one at least"),
        ("a", ["x"] * 1_001, "channel: 1001 names given: a token grants at most 1000"),
        ("a", [""], "channel is empty"),
        ("a", "chat", "channels must be a sequence of names"),
        ("a", None, "channels must be a sequence of names"),
        ("a", [f"{n:0255}" for n in range(200)], "channel: the token would have"),
    ],
)
def test_token_that_would_not_verify_is_not_issued(user_id: str, channels: Any, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        TOKENS.issue(user_id, channels, expires_at=NOW + 60)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("expires_at", [float("inf"), float("nan"), 1e300, 2.0**53, -1.0, "1700000060", None])
def test_token_with_an_exp_that_would_not_verify_is_not_issued(expires_at: Any) -> None:
    with pytest.raises(InvalidEvent, match="is not a Unix time in seconds, such as 1700086400"):
        TOKENS.issue("a", ["chat"], expires_at=expires_at)


def test_duration_in_place_of_a_time_makes_no_token_that_has_expired() -> None:
    tokens = Tokens(SECRET, now=lambda: 1_700_000_000)

    with pytest.raises(InvalidEvent, match=r"exp 3600 is a duration, not a Unix time: give time\.time\(\) \+ 3600"):
        tokens.issue("alex", ["chat"], expires_at=3600)


def test_b16_no_mutation_of_a_token_verifies() -> None:
    """Each of 2,000 seeded mutations is refused, unless it left the token as it was."""
    chance = random.Random(16)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"
    for _ in range(2_000):
        text = list(VALID)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(text))
            text[start : start + chance.randint(0, 2)] = chance.choice(alphabet)
        mutated = "".join(text)
        if mutated != VALID:
            with pytest.raises(TokenError):
                TOKENS.verify(mutated)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "  ",
        "secret",
        "SECRET",
        "changeme",
        "!ChangeMe!",
        "change-me-123",
        "password",
        "keyboard cat",
        "your-256-bit-secret",
        "a-string-secret-at-least-256-bits-long",
        "!ChangeThisMercureHubJWTSecretKey!",
        "null",
        "true",
        "NaN",
        '"x"',
        "[1]",
        "{}",
        '{"k":"oct"}',
        "-----BEGIN PUBLIC KEY-----\nx",
        "ssh-rsa AAAA",
        "from=host ssh-rsa AAAA",
        "ecdsa-sha2-nistp256 AAAA",
        "\udcff" * 40,
        None,
        b"a secret of bytes",
    ],
)
def test_b20_publicly_known_or_unusable_secret_is_refused(secret: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Tokens(secret)

    assert "secret" in str(caught.value)
    assert not isinstance(secret, str) or len(secret.strip()) < 7 or secret not in str(caught.value)


@pytest.mark.parametrize("secret", ["MySuperPassword42", "12345", "1e5", "p" * 200, "é" * 20])
def test_tokens_of_any_other_secret_verify(secret: str) -> None:
    check_secret(secret)
    own = Tokens(secret, now=lambda: NOW)

    by_hand = own.verify(make(secret=secret))
    issued = own.verify(own.issue("alex", ["chat"], expires_at=NOW + 60))

    assert (by_hand.user_id, by_hand.channels) == (issued.user_id, issued.channels) == ("alex", ("chat",))


def test_b21_no_secret_is_compared_with_an_early_exit() -> None:
    suspects = []
    for path in Path(ssehub.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                text = ast.unparse(node)
                if any(word in text for word in ("signature", "_key", "_secret", "authorization")) and "[" not in text:
                    suspects.append(f"{path.name}: {text}")

    assert suspects == []


@pytest.mark.anyio
async def test_line_about_a_file_of_secrets_that_is_read_again_warns_of_a_short_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secrets"
    path.write_text(SECRET)
    tokens = Tokens(secret_file=path)

    path.write_text(f"{SECRET}\nk8Zq3mT1xW\n")
    with caplog.at_level(logging.INFO):
        await tokens.reload()

    assert "2 secrets, of which the first signs; a short one might be guessed: use 32 bytes or more" in caplog.text
    assert "k8Zq3mT1xW" not in caplog.text
