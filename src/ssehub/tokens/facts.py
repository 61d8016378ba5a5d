"""Facts about a token for a reader who wants to know why it is refused. They decide nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ..claims import Claims
from ..errors import TokenError
from ..report import Check
from .access import TimeRules
from .compact import json_object, take_apart
from .provider import ProviderRules

SHOWN_CHARACTERS = 100
SHOWN_NAMES = 10
_MAX_DATE = 253_402_300_800
"""From the year 10000 on, `datetime` has no dates."""


def facts_of(
    token: str, granted: Claims | None, provider: ProviderRules | None, times: TimeRules, now: float
) -> Iterator[tuple[Check, str]]:
    """Yield what each check looks at, as far as the token can be read. `granted` is what it says that it grants."""
    try:
        parts = take_apart(token)
        yield Check.ALGORITHM, f"alg is {_shown(parts.header.alg)}"
        if parts.header.kid is not None or not parts.header.alg.startswith("HS"):  # secrets have no kid
            yield Check.SIGNATURE, _named("kid", parts.header.fields)
        yield Check.TYPE, _named("typ", parts.header.fields)
        claims = json_object("claims", parts.claims)
    except TokenError:
        return
    if provider is not None:
        yield Check.ISSUER, f"{_named('iss', claims)}; issuer is {_shown(provider.issuer)}"
        yield Check.AUDIENCE, f"{_named('aud', claims)}; audience is {_shown(sorted(provider.audiences))}"
    yield Check.CLAIMS, f"there are {_listed(list(claims))}" if granted is None else granted_text(granted)
    if times.max_token_seconds is not None:
        yield Check.LIFETIME, f"max_token_seconds is {times.max_token_seconds:g}"
    yield Check.NOT_BEFORE, "; ".join(_time(name, claims, now) for name in ("nbf", "iat"))
    yield Check.EXPIRY, _time("exp", claims, now)


def granted_text(claims: Claims) -> str:
    """Return who `claims` are about, and which channels they grant."""
    text = f"user {_shown(claims.user_id)}"
    if claims.channels:
        text += f", channels {_listed(claims.channels)}"
    if claims.patterns:
        text += f", patterns {_listed(claims.patterns)}"
    return text


def _named(name: str, fields: Mapping[str, Any]) -> str:
    return f"{name} is {_shown(fields[name])}" if name in fields else f"there is no {name}"


def _shown(value: object) -> str:
    """Return simple values, and lists of strings, as Python writes them."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return _listed(value)
    if value is None or isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return "a list" if isinstance(value, list) else "an object"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(map(_shown, names[:SHOWN_NAMES])) or "none"
    return shown if len(names) <= SHOWN_NAMES else f"{shown} and {len(names) - SHOWN_NAMES} more"


def _time(name: str, claims: Mapping[str, Any], now: float) -> str:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_DATE:
        return _named(name, claims)
    date = datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    distance = value - now
    return f"{name} is {date}, " + (f"in {distance:.0f} s" if distance > 0 else f"{-distance:.0f} s ago")
