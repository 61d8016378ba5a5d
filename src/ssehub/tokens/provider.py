"""The tokens of an identity provider: who they must be for, and where they say what they grant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, TokenError, TokenReason
from ..fields import one_or_many
from ..report import RAISE, Report
from .grants import GrantTemplate


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """What tokens of the identity provider must say: `issuer` and one of `audiences`; and which claims grant what."""

    issuer: str
    audiences: frozenset[str]
    user_claim: str
    channel_claim: str | None
    grant_templates: Sequence[GrantTemplate]
    pattern_claim: str | None = None

    def check_issuer(self, claims: Mapping[str, Any], report: Report = RAISE) -> None:
        """Report tokens of another issuer, or for somebody else (RFC 8725, 3.8 and 3.9)."""
        if claims.get("iss") != self.issuer:
            report.fail(TokenError("the token's iss is not the issuer", TokenReason.ISSUER))
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in audiences) or self.audiences.isdisjoint(audiences):
            report.fail(TokenError("the token's aud is not the audience", TokenReason.AUDIENCE))

    def grants(self, claims: Mapping[str, Any]) -> Granted:
        """Return the user, the channels and the patterns, not yet checked."""
        channels = [template.channel(claims) for template in self.grant_templates]
        channels += _listed(claims, self.channel_claim, "channel")
        patterns = _listed(claims, self.pattern_claim, "pattern")
        return claims.get(self.user_claim), tuple(dict.fromkeys(channels)), tuple(dict.fromkeys(patterns))


Granted = tuple[object, tuple[Any, ...], tuple[Any, ...]]
"""A user, channels and patterns, not yet checked."""


def _listed(claims: Mapping[str, Any], name: str | None, kind: str) -> list[str]:
    """Return what the claim `name` lists, nothing if there is no such claim. Raises TokenError."""
    if name is None or name not in claims:
        return []
    value = claims[name]
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise TokenError(f"the token's {name[:80]!r} is not a {kind} or a list of {kind}s", TokenReason.CLAIMS)
    return listed


def provider_rules(
    issuer: str | None,
    audience: str | Sequence[str] | None,
    user_claim: str,
    channel_claim: str | None,
    grant_templates: Sequence[str],
    pattern_claim: str | None,
) -> ProviderRules:
    """Return the rules of these settings, which `Tokens` describes. Raises ConfigError."""
    if not issuer or not audience:
        raise ConfigError(
            "jwks needs issuer and audience: without them, every token of the identity provider would be accepted, "
            "whoever it was made for"
        )
    audiences = one_or_many(audience)
    for name, values in (("issuer", (issuer,)), ("audience", audiences), ("user_claim", (user_claim,))):
        if not all(isinstance(value, str) and value for value in values):
            raise ConfigError(f"{name} must be a string that is not empty, not {values!r:.80}")
    if channel_claim is None and pattern_claim is None and not grant_templates:
        raise ConfigError(
            "jwks needs channel_claim, pattern_claim or grant_templates, such as 'user.{sub}': they say which channels "
            "a token grants"
        )
    for name, claim in (("channel_claim", channel_claim), ("pattern_claim", pattern_claim)):
        if claim is not None and not (isinstance(claim, str) and claim):
            raise ConfigError(f"{name} must be the name of a claim, not {claim!r:.40}")
    templates = tuple(GrantTemplate.parse(text) for text in one_or_many(grant_templates))
    return ProviderRules(issuer, frozenset(audiences), user_claim, channel_claim, templates, pattern_claim)
