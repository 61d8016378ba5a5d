"""The keys that verify tokens, and sign those that are issued here."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from jose import jwk, jws
from jose.backends.base import Key
from jose.constants import ALGORITHMS
from jose.exceptions import JOSEError

from ..credentials import check_secret
from ..errors import ConfigError, KeysUnavailable, TokenError, TokenReason, UnknownKey
from ..report import Report
from .cache import VerifiedTokens
from .compact import CompactToken, decoded, json_object
from .keys import ASYMMETRIC
from .keyset import KeySet

MAX_SECRETS = 16
"""Each of them costs every forged token one more HMAC."""
HMAC = {ALGORITHMS.HS256: "sha256", ALGORITHMS.HS384: "sha384", ALGORITHMS.HS512: "sha512"}
"""The algorithms of secrets, with their hashes."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys at one time, and the tokens that they have verified. It is replaced as a whole."""

    has_provider: bool
    """True if tokens of an identity provider are accepted, as soon as its keys are known."""
    key_set: KeySet | None
    """The keys of the identity provider."""
    signing_key: Key | None = None
    """Of the first secret. Given the secret itself, python-jose would make a key for every token."""
    macs: Mapping[str, Sequence[hmac.HMAC]] = field(default_factory=dict)
    """By algorithm, one for each secret, to be copied: making one takes OpenSSL as long as all the rest."""
    verified: VerifiedTokens = field(default_factory=VerifiedTokens)

    def with_secrets(self, secrets: str | Sequence[str], algorithm: str) -> Self:
        """Return a ring with these secrets, of which the first signs with `algorithm`. Raises ConfigError."""
        values = _checked_secrets(secrets)
        signing_key = _hmac_keys(values, algorithm)[0]
        macs = {name: [hmac.new(value.encode(), digestmod=digest) for value in values] for name, digest in HMAC.items()}
        return type(self)(self.has_provider, self.key_set, signing_key, macs)

    def with_key_set(self, key_set: KeySet) -> Self:
        """Return a ring with these keys of the identity provider."""
        return type(self)(self.has_provider, key_set, self.signing_key, self.macs)

    def signed_claims(self, parts: CompactToken, token: str, report: Report) -> dict[str, Any]:
        """Return the claims of `token`, which was taken apart into `parts`, after its signature has been verified.

        Reports what does not keep the claims from being read. Raises TokenError for everything else.
        """
        if parts.header.alg in HMAC:
            self._check_hmac(parts, report)
        else:
            self._check_signature(parts, token, report)
        return json_object("claims", parts.claims)

    def _check_hmac(self, parts: CompactToken, report: Report) -> None:
        if not self.macs:
            raise TokenError("the token is signed with a secret, and there is none", TokenReason.ALGORITHM)
        signature, signed = decoded("signature", parts.signature), parts.signed.encode()
        for prepared in self.macs[parts.header.alg]:
            mac = prepared.copy()
            mac.update(signed)
            if hmac.compare_digest(mac.digest(), signature):
                return
        report.fail(TokenError("the token's signature is wrong", TokenReason.SIGNATURE))

    def _check_signature(self, parts: CompactToken, token: str, report: Report) -> None:
        algorithm = parts.header.alg
        if not self.has_provider or algorithm not in ASYMMETRIC:
            raise TokenError("no token with this algorithm is accepted", TokenReason.ALGORITHM)
        if self.key_set is None:
            report.fail(KeysUnavailable("the keys of the identity provider are not known yet: try again"))
            return
        try:
            key = self.key_set.find(parts.header.kid, algorithm)
        except UnknownKey as exc:
            report.fail(exc)
            return
        decoded("signature", parts.signature)  # python-jose also accepts what is not canonical
        try:
            jws.verify(token, key, algorithms=[algorithm])
        except JOSEError:
            report.fail(TokenError("the token's signature is wrong", TokenReason.SIGNATURE))


def _checked_secrets(secrets: str | Sequence[str]) -> Sequence[str]:
    """Return one secret or several as a sequence. Raises ConfigError."""
    if not isinstance(secrets, Collection) or isinstance(secrets, str | bytes):
        secrets = (secrets,)
    if not secrets:
        raise ConfigError("no secret given: use 32 random bytes or more, e.g. from `openssl rand -base64 32`")
    if len(secrets) > MAX_SECRETS:
        raise ConfigError(f"{len(secrets)} secrets: at most {MAX_SECRETS} are accepted")
    for secret in secrets:
        check_secret(secret)
    return tuple(secrets)


def _hmac_keys(secrets: Sequence[str], algorithm: str) -> list[Key]:
    """Return python-jose's keys. Raises ConfigError for a secret that it takes for another kind of key."""
    try:
        return [jwk.construct(secret, algorithm) for secret in secrets]
    except JOSEError:
        raise ConfigError(
            "the secret is a PEM or SSH key: tokens are signed with HMAC, choose a random string"
        ) from None
