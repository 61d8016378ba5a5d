"""Explanations: why a client would get a stream or not, and what the stream would begin with.

An explanation asks the functions that decide about requests, in their order, with a report that collects the reasons
to refuse one (`report.py`). So it can't say anything else than what a client would meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..claims import Claims
from ..errors import KeysUnavailable, NotGranted, SSEHubError, StreamRefused, TokenError, TokenReason, Unavailable
from ..fanout.history import ResetReason
from ..fanout.refusals import Refusal
from ..fanout.resume import Start
from ..hub import Hub
from ..report import CHECK_OF_REASON, TOKEN_CHECKS, Check, Findings
from ..tokens import Tokens
from .origins import is_allowed
from .questions import Question

STREAM_STATUS = 200
"""Of a stream, and of the answer that tells a client to come back, as an EventSource stops at any other status."""
_OF_LIMITS = frozenset((Refusal.USER, Refusal.ADDRESS, Refusal.CHANNEL, Refusal.ADDRESS_RATE, Refusal.RATE))
_PASSED: Mapping[Check, str] = {
    Check.FORMAT: "a header, claims and a signature in base64url",
    Check.SIGNATURE: "a secret or key of this hub has made it",
    Check.LIMITS: "none is reached",
}
"""What is said about a check that was passed, if there are no facts."""
_REMEDIES: Mapping[str, str] = {
    TokenReason.MALFORMED: (
        "send the token as it was issued: three base64url segments with dots between them, without quotes, spaces or "
        "line breaks, and without a 'Bearer' before it"
    ),
    TokenReason.ALGORITHM: (
        "sign with HS256, HS384 or HS512 and a secret of this hub, or set jwks for tokens of an identity provider"
    ),
    TokenReason.UNKNOWN_KEY: (
        "compare its kid and alg with the keys of jwks: it may be a token of another provider, or of a replaced key"
    ),
    TokenReason.SIGNATURE: (
        "issue the token with a secret or key that this hub has now; without a configured secret each start makes one"
    ),
    TokenReason.TYPE: "send an access token, with typ JWT or at+jwt, or without a typ",
    TokenReason.ISSUER: "send a token of the identity provider that is set as issuer, or correct issuer",
    TokenReason.AUDIENCE: "let the identity provider issue the token for this hub, or add its aud to audience",
    TokenReason.CLAIMS: (
        "issue the token with a user, a channel or a pattern, and exp; for an identity provider see user_claim, "
        "channel_claim, pattern_claim and grant_templates; the pattern '*' needs allow_all_channels"
    ),
    TokenReason.LIFETIME: "issue tokens with iat and exp that are no further apart, or raise max_token_seconds",
    TokenReason.NOT_YET_VALID: (
        "set the clocks of this machine and of the one that issues tokens, or raise leeway_seconds"
    ),
    TokenReason.EXPIRED: "issue a new token; a page should fetch one before it connects again",
    TokenReason.REVOKED: (
        "issue a new token, more than leeway_seconds after the revocation; or take it back: GET /revoke/ lists it"
    ),
    Refusal.NOT_GRANTED: "request only channels that the token grants, or issue a token that grants them",
    Refusal.ORIGIN: "add the origin to cors_origins",
    Refusal.KEYS: "look in the log for why the keys of jwks can't be fetched; the client comes back by itself",
    Refusal.FULL: "raise max_connections, or run more workers or nodes; GET /metrics says how many streams there are",
    Refusal.MEMORY: "raise max_memory_bytes, or run more nodes; the client comes back by itself when memory is free",
    Refusal.DRAINING: "wait: the client comes back by itself, to a hub that is not about to stop",
    Refusal.UNAVAILABLE: "look at /readyz and the log for what the broker lacks; the client comes back by itself",
    Refusal.USER: "end streams of this user, raise max_streams_per_user, or set user_limit_policy to replace",
    Refusal.ADDRESS: (
        "raise max_streams_per_address; if the address is that of a proxy, add it to trusted_proxies, because all of "
        "its clients count as one"
    ),
    Refusal.CHANNEL: "raise max_streams_per_channel, or spread the clients over several channels",
    Refusal.ADDRESS_RATE: "wait: the client comes back by itself; or raise max_new_streams_per_second_per_address",
    Refusal.RATE: "wait: the client comes back by itself; or raise max_new_streams_per_second",
}


class Would(StrEnum):
    """What becomes of the client."""

    OPEN = "open"
    REFUSE = "refuse"
    COME_BACK = "come-back"
    """It is told to reconnect later."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a check is `passed`; None if it was not made. A `remedy` says what would make it pass."""

    check: Check
    passed: bool | None
    message: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Begins:
    """What a stream begins with: `live`, the replay of so many `events`, or a `reset` for this reason, then those."""

    at: str
    events: int
    reason: ResetReason | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """`status` is that of the response. `begins` is None unless the stream would open."""

    would: Would
    status: int
    checks: tuple[Verdict, ...]
    begins: Begins | None

    def to_json(self) -> dict[str, Any]:
        begins = self.begins
        return {
            "would": self.would,
            "status": self.status,
            "checks": [
                {"check": one.check, "passed": one.passed, "message": one.message, "remedy": one.remedy}
                for one in self.checks
            ],
            "begins": None if begins is None else {"at": begins.at, "events": begins.events, "reason": begins.reason},
        }


async def explain(
    hub: Hub, tokens: Tokens, question: Question, cors_origins: Collection[str] | None = None
) -> Explanation:
    """Explain what a request to the hub's client app would meet now. `cors_origins` are its; None if not known.

    No stream is opened, and nothing is counted. An unknown key of an identity provider makes the hub fetch the keys, as
    a request would.
    """
    findings = Findings()
    claims = await _claims(tokens, question, findings)
    with suppress(Unavailable):  # `make_ready` meets it again
        await hub.start()
    if claims is not None:
        claims = _accessible(hub, claims, question.channels, findings)
    findings.facts[Check.READINESS] = f"open streams: {hub.statistics.subscribers}"
    await hub.make_ready(findings)
    if claims is not None:
        _check_limits(hub, claims, question.address, findings)
    _check_origin(question.origin, cors_origins, findings)
    would, status = _outcome(findings)
    begins = await _begins(hub, claims, question.start) if claims is not None and would is Would.OPEN else None
    return Explanation(would, status, tuple(_verdicts(findings)), begins)


class _Hidden(SSEHubError):
    """The hub sends a stream, which the browser keeps from the page."""

    status = STREAM_STATUS


async def _claims(tokens: Tokens, question: Question, findings: Findings) -> Claims | None:
    if question.token is not None:
        return await tokens.examine(question.token, findings)
    for check in TOKEN_CHECKS:
        findings.skip(check, "no token was given")
    return question.claims


def _accessible(hub: Hub, claims: Claims, channels: tuple[str, ...], findings: Findings) -> Claims:
    """Return `claims` for the channels that are requested."""
    if hub.is_following and hub.broker.is_current:
        findings.facts[Check.REVOCATION] = f"revocations in force: {len(hub.broker.revocations)}"
    else:
        findings.skip(Check.REVOCATION, "the revocations can't be read at present: see readiness")
    hub.require_access(claims, findings)
    if not channels:
        findings.skip(Check.GRANT, "no channel was requested, so the stream has all that are granted")
        return claims
    findings.facts[Check.GRANT] = f"{len(channels)} requested"
    return claims.narrowed(channels, findings)


def _check_limits(hub: Hub, claims: Claims, address: str | None, findings: Findings) -> None:
    if not hub.limits_streams:
        findings.skip(Check.LIMITS, "no limits on the streams of users, addresses and channels are set")
        return
    replaces = hub.check_limits(claims, address, findings)
    facts = ["the oldest stream of this user would be replaced"] if replaces else []
    if address is None:
        facts.append("give an address to check the limits of addresses, too")
    findings.facts[Check.LIMITS] = "; ".join(facts)


def _check_origin(origin: str | None, cors_origins: Collection[str] | None, findings: Findings) -> None:
    if origin is None:
        findings.skip(Check.CORS, "no origin was given: only web pages have one")
    elif cors_origins is None:
        findings.skip(Check.CORS, "the control app was not told the cors_origins of the client app")
    elif is_allowed(origin, cors_origins):
        findings.facts[Check.CORS] = f"origin {origin!r:.200} is in cors_origins"
    else:
        findings.fail(
            _Hidden(
                f"origin {origin!r:.200} is not in cors_origins: unless that is where the hub itself is, the browser "
                "hides the response from the page"
            )
        )


def _outcome(findings: Findings) -> tuple[Would, int]:
    """A request is answered because of the first error."""
    if not findings.errors:
        return Would.OPEN, STREAM_STATUS
    first = findings.errors[0]
    return (Would.COME_BACK, STREAM_STATUS) if isinstance(first, Unavailable) else (Would.REFUSE, first.status)


async def _begins(hub: Hub, claims: Claims, start: Start) -> Begins | None:
    try:
        prospect = await hub.foresee(claims, start)
    except Unavailable:  # the hub has ended meanwhile
        return None
    if prospect.reset is not None:
        return Begins("reset", prospect.events, prospect.reset)
    return Begins("replay" if prospect.events else "live", prospect.events, None)


def _verdicts(findings: Findings) -> Iterator[Verdict]:
    failed: dict[Check, list[SSEHubError]] = {}
    for error in findings.errors:
        failed.setdefault(_check_of(error), []).append(error)
    for check in Check:
        fact = findings.facts.get(check)
        if errors := failed.get(check):
            message = "; ".join(dict.fromkeys(map(str, errors)))
            remedy = "; ".join(dict.fromkeys(map(_remedy, errors)))
            yield Verdict(check, False, f"{message} ({fact})" if fact else message, remedy)
        elif fact is not None:
            yield Verdict(check, True, fact or _PASSED.get(check, "passed"))
        else:
            yield Verdict(check, None, findings.skipped.get(check, "not reached, because of what failed before it"))


def _check_of(error: SSEHubError) -> Check:
    match error:
        case TokenError():
            return CHECK_OF_REASON[error.reason]
        case KeysUnavailable():
            return Check.SIGNATURE
        case NotGranted():
            return Check.GRANT
        case _Hidden():
            return Check.CORS
        case StreamRefused() if error.reason in _OF_LIMITS:
            return Check.LIMITS
    return Check.READINESS


def _remedy(error: SSEHubError) -> str:
    match error:
        case TokenError() | StreamRefused():
            return _REMEDIES[error.reason]
        case KeysUnavailable():
            return _REMEDIES[Refusal.KEYS]
        case NotGranted():
            return _REMEDIES[Refusal.NOT_GRANTED]
        case _Hidden():
            return _REMEDIES[Refusal.ORIGIN]
    return _REMEDIES[Refusal.UNAVAILABLE]
