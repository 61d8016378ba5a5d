"""Tokens: JSON Web Tokens (RFC 7519) that are issued here and signed with HMAC, or issued by an identity provider.

Every defect of a token, and every exception that python-jose raises for it, becomes a TokenError: clients learn only
that the token is invalid; the reason is counted and logged.

`alg` in a token's header decides which keys may verify it: for HS256, HS384 and HS512 the secrets, for every other
algorithm the public keys of the JWKS. So no public key is ever used as a secret (RFC 8725, 2.1 and 3.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jose import jwt
from jose.constants import ALGORITHMS

from ..claims import Claims
from ..credentials import SHORT_SECRET_BYTES, is_short
from ..errors import ConfigError, InvalidEvent, KeysUnavailable, TokenError, TokenReason, UnknownKey
from ..report import CHECK_OF_REASON, RAISE, TOKEN_CHECKS, Check, Findings, Report
from ..settings import LEEWAY, SECONDS
from ..watched import NOTHING_YET, LastGood
from .access import Access, TimeRules, access, check_type
from .compact import MAX_TOKEN_LENGTH, CompactToken, take_apart
from .facts import facts_of
from .issuing import claims_to_sign
from .keyring import HMAC, KeyRing
from .keyset import KeySet
from .provider import ProviderRules, provider_rules
from .sources import KeySources, secrets_of

if TYPE_CHECKING:
    from ..fanout.statistics import Statistics


class SignedToken(NamedTuple):
    """The header and the claims of a token whose signature has been verified, and nothing else."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]


class Tokens:
    """Issues and verifies tokens by secret, and verifies those of an identity provider.

    The first one of `secrets` signs, all of them verify. They may also be the lines of `secret_file`. `jwks` has the
    public keys of the identity provider: a JWKS, or the file or the URL where it is. The provider's tokens must name
    `issuer` and one of `audience`. Their user is in `user_claim`. Their channels are in `channel_claim`, a string or a
    list of strings, or are made by `grant_templates`, such as `user.{sub}`, or both; `pattern_claim` has patterns.

    With `require_exp` False, tokens without `exp` are accepted too, and never expire. `leeway_seconds` is how far the
    clock of a machine that signs tokens may differ from ours: `nbf` and `iat` may be that far in the future, and `exp`
    that far in the past. With `max_token_seconds`, tokens need `iat` and `exp`, no further apart than that. `now`
    returns Unix time in seconds.

    Files are read here, and again when they change while `run` runs, which a hub does for the tokens of its apps; a URL
    is only fetched then, or by `authenticate`. `last_good` is what another process has read last, in place of files
    that can't be used now.

    Raises ConfigError.
    """

    def __init__(
        self,
        secrets: str | Sequence[str] = (),
        *,
        secret_file: str | Path | None = None,
        jwks: str | Path | Mapping[str, Any] | None = None,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = None,
        algorithm: str = ALGORITHMS.HS256,
        require_exp: bool = True,
        leeway_seconds: float = 5,
        max_token_seconds: float | None = None,
        user_claim: str = "sub",
        channel_claim: str | None = None,
        grant_templates: Sequence[str] = (),
        pattern_claim: str | None = None,
        last_good: LastGood = NOTHING_YET,
        now: Callable[[], float] = time.time,
    ) -> None:
        _check("leeway_seconds", LEEWAY.check, leeway_seconds)
        if max_token_seconds is not None:
            _check("max_token_seconds", SECONDS.check, max_token_seconds)
        if algorithm not in HMAC:
            raise ConfigError(f"algorithm {algorithm!r:.40}: must be one of {', '.join(HMAC)}")
        self._provider: ProviderRules | None = None
        if jwks is not None:
            self._provider = provider_rules(issuer, audience, user_claim, channel_claim, grant_templates, pattern_claim)
        elif grant_templates or any([each is not None for each in (issuer, audience, channel_claim, pattern_claim)]):
            raise ConfigError(
                "issuer, audience, channel_claim, grant_templates and pattern_claim are for tokens by jwks: set jwks, "
                "too"
            )
        if secrets and secret_file is not None:
            raise ConfigError("secrets and secret_file are both given: remove one")
        has_others = jwks is not None or secret_file is not None
        self._algorithm = algorithm
        key_set = KeySet.parse(jwks) if isinstance(jwks, Mapping) else None
        self._ring = KeyRing(jwks is not None, key_set)
        if secrets != () or not has_others:
            self.replace_secrets(secrets)
        self._times = TimeRules(require_exp, leeway_seconds, max_token_seconds)
        self._now = now
        self._sources = KeySources(
            secret_file=None if secret_file is None else Path(secret_file),
            jwks=None if isinstance(jwks, Mapping) else jwks,
            use_secrets=self._use_secrets,
            use_keys=self._use_keys,
            last_good=last_good,
        )

    @property
    def has_jwks(self) -> bool:
        """True if tokens of an identity provider are accepted, as soon as its keys are known."""
        return self._provider is not None

    @property
    def has_keys(self) -> bool:
        """True if there are keys for all tokens that are accepted, which `verify` needs."""
        return self._provider is None or self._ring.key_set is not None

    @property
    def can_issue(self) -> bool:
        """True if there is a secret to sign with."""
        return self._ring.signing_key is not None

    @property
    def leeway_seconds(self) -> float:
        return self._times.leeway_seconds

    @property
    def max_token_seconds(self) -> float | None:
        return self._times.max_token_seconds

    def replace_secrets(self, secrets: str | Sequence[str]) -> None:
        """Sign with the first one of `secrets` and verify with all of them from now on, and with no other.

        Raises ConfigError; the old ones are then kept. Open streams are not touched.
        """
        self._ring = self._ring.with_secrets(secrets, self._algorithm)

    def replace_keys(self, key_set: KeySet) -> None:
        """Verify the identity provider's tokens with `key_set` from now on. Raises ConfigError without `jwks`."""
        if self._provider is None:
            raise ConfigError("keys of an identity provider need jwks, issuer and audience: set them first")
        self._ring = self._ring.with_key_set(key_set)

    def _use_secrets(self, text: str) -> str:
        secrets = secrets_of(text)
        self.replace_secrets(secrets)
        summary = "1 secret" if len(secrets) == 1 else f"{len(secrets)} secrets, of which the first signs"
        if any(map(is_short, secrets)):
            summary += f"; a short one might be guessed: use {SHORT_SECRET_BYTES} bytes or more"
        return summary

    def _use_keys(self, text: str) -> str:
        key_set = KeySet.parse(text.encode())
        self.replace_keys(key_set)
        return f"usable pairs of kid and alg: {len(key_set)}"

    @property
    def problem(self) -> str | None:
        """Why tokens of the identity provider can't be verified yet, for `/readyz`."""
        return self._sources.problem

    @property
    def last_good(self) -> LastGood:
        """The contents of the files and the URL that are in use, for another process."""
        return self._sources.last_good

    async def run(self) -> None:
        """Read files again when they change, and fetch the keys behind a URL, until cancelled. See `Hub.accompany`."""
        await self._sources.run()

    async def reload(self) -> None:
        """Read the files and fetch the keys now. A log line says what came of it; it raises nothing."""
        await self._sources.reload()

    def measure(self, statistics: Statistics) -> None:
        """Write what `/metrics` shows of the files and the URL."""
        self._sources.measure(statistics)

    def issue(
        self, user_id: str, channels: Sequence[str] = (), *, patterns: Sequence[str] = (), expires_at: float
    ) -> str:
        """Return a token for `user_id` on `channels` and `patterns`, of which one at least must be given.

        It is valid until `expires_at` (Unix time), and has `iat` and `jti`. `*` is accepted as a pattern, although a
        hub refuses its tokens without `allow_all_channels`. Raises InvalidEvent if the token would not verify, and
        ConfigError if there is no secret.
        """
        key = self._ring.signing_key
        if key is None:
            raise ConfigError("no secret to sign the token with: give one, besides jwks")
        claims = claims_to_sign(
            user_id,
            channels,
            patterns,
            expires_at=expires_at,
            issued_at=self._now(),
            max_token_seconds=self._times.max_token_seconds,
        )
        token: str = jwt.encode(claims, key, algorithm=self._algorithm)
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidEvent(
                f"channel: the token would have {len(token)} characters: at most {MAX_TOKEN_LENGTH} are allowed, so "
                "grant fewer channels, or a pattern"
            )
        return token

    def verify(self, token: str) -> Claims:
        """Return what `token` grants. Raises TokenError.

        Raises UnknownKey, a TokenError, if no key of the JWKS has its key id and algorithm, and KeysUnavailable if the
        keys of the JWKS are not known yet.

        Nothing but the header is parsed before the signature has been verified, so refusing a forged token costs no
        more than accepting a valid one of its length.
        """
        return self._claims(token, RAISE)

    def _claims(self, token: str, report: Report) -> Claims:
        """Return what `token` grants or, if a defect was reported that does not prevent it, says that it grants."""
        ring, parts = self._ring, take_apart(token)
        if parts.header.alg in HMAC:
            granted = self._access(parts, token, ring, None, report)
        else:
            digest = ring.verified.digest(token)
            found = ring.verified.find(digest)
            if found is None:
                granted = self._access(parts, token, ring, self._provider, report)
                if report is RAISE:  # else it may have defects
                    ring.verified.add(digest, granted)
            else:
                granted = found
        return self._times.claims_at(self._now(), granted, report)

    def _access(
        self, parts: CompactToken, token: str, ring: KeyRing, provider: ProviderRules | None, report: Report
    ) -> Access:
        claims = ring.signed_claims(parts, token, report)
        check_type(parts.header, claims, report)
        return access(claims, self._times, provider, report)

    async def authenticate(self, token: str) -> Claims:
        """Do what `verify` does, but if the token's key is unknown, `ask_for_keys` first."""
        try:
            return self._claims(token, RAISE)
        except (UnknownKey, KeysUnavailable):
            await self.ask_for_keys()
        return self._claims(token, RAISE)

    async def examine(self, token: str, findings: Findings) -> Claims | None:
        """Do what `authenticate` does, but collect what is wrong with the token, as far as it can be read.

        Returns what the token says that it grants, whoever has made it: it grants that only if there are no errors.
        None if it can't be read.
        """
        with suppress(TokenError):  # it is among what is collected below
            try:
                await self.authenticate(token)
            except KeysUnavailable as exc:
                findings.fail(exc)
        claims, reached = None, TOKEN_CHECKS
        try:
            claims = self._claims(token, findings)
        except TokenError as exc:
            findings.fail(exc)
            reached = TOKEN_CHECKS[: TOKEN_CHECKS.index(CHECK_OF_REASON[exc.reason]) + 1]
        facts = dict(facts_of(token, claims, self._provider, self._times, self._now()))
        findings.facts |= {check: facts.get(check, "") for check in reached}
        if self._times.max_token_seconds is None:
            findings.skip(Check.LIFETIME, "max_token_seconds is not set")
        if Check.ISSUER in reached and take_apart(token).header.alg in HMAC:
            findings.skip(Check.ISSUER, "a token by secret needs no iss")
            findings.skip(Check.AUDIENCE, "a token by secret needs no aud")
        return claims

    async def ask_for_keys(self) -> None:
        """Fetch the keys behind a URL, because a token's key is unknown. Without a URL, this does nothing.

        All calls wait for one fetch, at most 2 s, and there is at most one a minute. Raises KeysUnavailable if it fails
        or takes longer: then nobody knows whether the token is valid, and a client should come back.
        """
        if self._sources.fetched is not None:
            await self._sources.fetched.ask()

    def check_issuer(self, claims: Mapping[str, Any]) -> None:
        """Raise TokenError unless `iss` and `aud` are those of the identity provider's tokens."""
        if self._provider is None:
            raise TokenError("no tokens of an identity provider are accepted", TokenReason.ISSUER)
        self._provider.check_issuer(claims)

    def verified(self, token: str) -> SignedToken:
        """Return the header and the claims of a token that a key of the JWKS has signed. Raises as `verify` does.

        It guarantees that the token is of the canonical compact form and not too long, has no `crit`, `b64` or `zip`,
        and that its signature is right by the key with its `kid` and `alg`. It does not look at any claim, nor at
        `typ`: neither `iss` nor `exp` has been checked, and the token may have been made for another purpose. Tokens by
        secret are refused.
        """
        parts = take_apart(token)
        if parts.header.alg in HMAC:
            raise TokenError("the token is signed with a secret, not by a key of the JWKS", TokenReason.ALGORITHM)
        return SignedToken(parts.header.fields, self._ring.signed_claims(parts, token, RAISE))


def _check(name: str, check: Callable[[Any], None], value: object) -> None:
    try:
        check(value)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{name} {value!r}: {exc}") from None
