"""Revocations: which tokens no longer open streams, and a node's copy of the table that keeps them.

A revocation names one token (`jti`), one session at an identity provider (`sid`), one user, one subject of an issuer,
or everyone. Those of users, subjects and everyone concern the tokens issued before a time; a token that does not say
when it was issued counts as older than any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, TypeVar

from .claims import Claims
from .errors import InvalidEvent, Overloaded
from .fields import check_name

MAX_REVOCATIONS = 200_000
"""A table with as many refuses further ones: it must not forget any."""
EXPIRY_MARGIN_SECONDS = 600.0
"""How much longer than `expires_at` a revocation is kept: leeways have at most as much, and clocks differ by less."""
EVERYONE_KEY = "everyone"


@dataclass(frozen=True, slots=True)
class Revocation:
    """Revokes the tokens with this `jti`, `sid` (of `iss`, if given), `user_id`, `iss` and `sub`, or all of them.

    `issued_before` (Unix time) is required for users, subjects and everyone, and absent for a `jti` and a `sid`.
    `without_sid` limits the revocation of a subject to tokens that do not say to which session they belong. After
    `expires_at` none of the tokens can be valid any more; None if that is not known.

    Raises InvalidEvent, which calls the field by its name on the wire.
    """

    jti: str | None = None
    user_id: str | None = None
    sid: str | None = None
    iss: str | None = None
    sub: str | None = None
    everyone: bool = False
    without_sid: bool = False
    issued_before: float | None = None
    expires_at: float | None = None

    def __post_init__(self) -> None:
        whose = {"jti": self.jti, "userId": self.user_id, "sid": self.sid, "sub": self.sub, "everyone": self.everyone}
        given = [name for name, value in whose.items() if value is not None and value is not False]
        if len(given) != 1:
            raise InvalidEvent(f"{' and '.join(given) or 'nothing'} given: name one of {', '.join(whose)}")
        kind = given[0]
        if (kind == "sub" and self.iss is None) or (self.iss is not None and kind not in ("sub", "sid")):
            raise InvalidEvent(
                "iss: a sub is that of an issuer, so give both; else give iss with a sid only, or not at all"
            )
        for name, flag in (("everyone", self.everyone), ("withoutSid", self.without_sid)):
            if not isinstance(flag, bool):
                raise InvalidEvent(f"{name} must be true or false, not {flag!r:.40}")
        if self.without_sid and kind != "sub":
            raise InvalidEvent("withoutSid limits the revocation of a sub: give that, too")
        if kind != "everyone":
            check_name(kind, whose[kind])
        if self.iss is not None:
            check_name("iss", self.iss)
        _check_time("issuedBefore", self.issued_before)
        _check_time("expiresAt", self.expires_at)
        if (self.issued_before is None) is not (kind in ("jti", "sid")):
            raise InvalidEvent("issuedBefore: users, subjects and everyone need it; a jti and a sid do not have it")

    @classmethod
    def dated(cls, now: float, **given: Any) -> Self:
        """Return the revocation with these fields; where it needs `issued_before` and none is given, that is `now`.

        For its `key`, any time will do. Raises InvalidEvent.
        """
        if given.get("jti") is None and given.get("sid") is None and given.get("issued_before") is None:
            given["issued_before"] = now
        return cls(**given)

    @property
    def key(self) -> str:
        """What is revoked, as a string. A later revocation with the same key extends the earlier one."""
        if self.jti is not None:
            return f"jti:{self.jti}"
        if self.user_id is not None:
            return f"user:{self.user_id}"
        if self.sid is not None:
            return f"sid:{self.sid}" if self.iss is None else f"sid:{self.iss}\n{self.sid}"
        if self.sub is not None:
            return f"{'sub-without-sid' if self.without_sid else 'sub'}:{self.iss}\n{self.sub}"
        return EVERYONE_KEY

    def extended(self, other: Self) -> Self:
        """Return one revocation that refuses what this one or `other`, of the same key, does."""
        before = None if self.issued_before is None else max(self.issued_before, other.issued_before or 0.0)
        ends = None if self.expires_at is None or other.expires_at is None else max(self.expires_at, other.expires_at)
        return replace(self, issued_before=before, expires_at=ends)

    def limited(self, max_token_seconds: float | None, leeway_seconds: float, now: float) -> Self:
        """Return this revocation with an end that follows from how long tokens are valid at most, if that is earlier.

        `now` is the Unix time by the log's clock: no token that it can concern has been issued later, except for the
        leeway.
        """
        if max_token_seconds is None:
            return self
        latest = now if self.issued_before is None else self.issued_before
        end = latest + leeway_seconds + max_token_seconds
        return self if self.expires_at is not None and self.expires_at <= end else replace(self, expires_at=end)

    def has_run_out(self, now: float) -> bool:
        """True if none of its tokens can be valid any more at the Unix time `now`, even where clocks differ."""
        return self.expires_at is not None and self.expires_at < now - EXPIRY_MARGIN_SECONDS

    def dump(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, for `load`."""
        return {name: value for name in _FIELDS if (value := getattr(self, name)) is not None and value is not False}

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Return the revocation that `dump` returned. Raises InvalidEvent."""
        try:
            return cls(**values)
        except TypeError as exc:
            raise InvalidEvent(f"not a stored revocation: {exc}") from exc

    def to_json(self) -> str:
        return _ENCODER.encode(self.dump())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises InvalidEvent."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InvalidEvent(f"not a stored revocation: {exc}") from exc
        if not isinstance(values, dict):
            raise InvalidEvent("not a stored revocation: it is not an object")
        return cls.load(values)


_FIELDS = tuple(field.name for field in fields(Revocation))
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # making one takes longer than using it


def _check_time(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53):
        raise InvalidEvent(f"{name} must be a Unix time in seconds, not {value!r:.40}")


def _keys(claims: Claims) -> Iterator[str]:
    """Yield the keys of the revocations that are about `claims`."""
    if claims.jti is not None:
        yield f"jti:{claims.jti}"
    if claims.sid is not None:
        yield f"sid:{claims.sid}"
        if claims.iss is not None:
            yield f"sid:{claims.iss}\n{claims.sid}"
    yield f"user:{claims.user_id}"
    if claims.sub is not None and claims.iss is not None:
        yield f"sub:{claims.iss}\n{claims.sub}"
        if claims.sid is None:
            yield f"sub-without-sid:{claims.iss}\n{claims.sub}"
    yield EVERYONE_KEY


class Bearer(Protocol):
    """The bearer of a token: its claims by which it can be revoked."""

    @property
    def user_id(self) -> str: ...
    @property
    def iss(self) -> str | None: ...
    @property
    def sub(self) -> str | None: ...
    @property
    def sid(self) -> str | None: ...
    @property
    def jti(self) -> str | None: ...


AnyBearer = TypeVar("AnyBearer", bound=Bearer)


class Selection:
    """The bearers that some revocations name, whenever their tokens were issued."""

    def __init__(self, revocations: Sequence[Revocation]) -> None:
        self.users = frozenset(one.user_id for one in revocations if one.user_id is not None)
        self._has_everyone = any(one.everyone for one in revocations)
        self._jtis = frozenset(one.jti for one in revocations if one.jti is not None)
        self._sids = frozenset((one.iss, one.sid) for one in revocations if one.sid is not None)
        subjects = [one for one in revocations if one.sub is not None]
        self._subjects = frozenset((one.iss, one.sub) for one in subjects if not one.without_sid)
        self._subjects_without_sid = frozenset((one.iss, one.sub) for one in subjects if one.without_sid)
        self._has_only_tokens = not (self._has_everyone or self.users or self._sids or subjects)

    @property
    def has_only_users(self) -> bool:
        """True if all of the revocations name users, and there are any."""
        return bool(self.users) and not (
            self._has_everyone or self._jtis or self._sids or self._subjects or self._subjects_without_sid
        )

    def among(self, bearers: Sequence[AnyBearer]) -> Sequence[AnyBearer]:
        """Return those of `bearers` that are named."""
        if self._has_everyone:
            return bearers
        if self._has_only_tokens:
            jtis = self._jtis
            return [bearer for bearer in bearers if bearer.jti in jtis]
        return [bearer for bearer in bearers if self._names(bearer)]

    def _names(self, bearer: Bearer) -> bool:
        if bearer.user_id in self.users or bearer.jti in self._jtis:
            return True
        iss, sid = bearer.iss, bearer.sid
        if sid is not None:
            return (None, sid) in self._sids or (iss, sid) in self._sids or (iss, bearer.sub) in self._subjects
        subject = iss, bearer.sub
        return subject in self._subjects or subject in self._subjects_without_sid


def full_table() -> Overloaded:
    return Overloaded(
        f"the table of revocations is full ({MAX_REVOCATIONS}), nothing was stored: "
        "take some back, or give each an expiresAt, after which it is removed"
    )


class Revocations:
    """A node's full copy of the table. The broker keeps it up to date; the hub asks it before a stream begins."""

    def __init__(self) -> None:
        self._by_key: dict[str, Revocation] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(self._by_key.values())

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def require_room(self, revocations: Iterable[Revocation]) -> None:
        """Raise Overloaded if with these the table would have more than MAX_REVOCATIONS.

        Extending what is in the table is always possible.
        """
        new = {revocation.key for revocation in revocations} - self._by_key.keys()
        if new and len(self._by_key) + len(new) > MAX_REVOCATIONS:
            raise full_table()

    def get(self, key: str) -> Revocation | None:
        return self._by_key.get(key)

    def keys(self) -> list[str]:
        return list(self._by_key)

    def add(self, revocation: Revocation) -> bool:
        """Enter `revocation`, or extend the one with its key. Return True if that changed anything."""
        key = revocation.key
        known = self._by_key.get(key)
        new = revocation if known is None else known.extended(revocation)
        self._by_key[key] = new
        return new != known

    def replace(self, revocations: Iterable[Revocation]) -> list[Revocation]:
        """Contain `revocations` and no others; return those that were not here, or are extended."""
        before = self._by_key
        self._by_key = {revocation.key: revocation for revocation in revocations}
        return [one for key, one in self._by_key.items() if before.get(key) != one]

    def remove(self, key: str) -> bool:
        """Return False if there was none with that key."""
        return self._by_key.pop(key, None) is not None

    def expire(self, revocation: Revocation, now: float) -> None:
        """Remove `revocation`, one of these, if it has run out at the Unix time `now`."""
        if revocation.has_run_out(now):
            key = revocation.key
            if self._by_key.get(key) is revocation:  # it may have been extended meanwhile
                del self._by_key[key]

    def refuses(self, claims: Claims, leeway_seconds: float) -> bool:
        """True if the token of `claims` has been revoked.

        A host's own login, which has no token, is only concerned by a `jti` or `sid` that it gives.
        """
        if not self._by_key:
            return False
        for one in filter(None, map(self._by_key.get, _keys(claims))):
            if one.issued_before is None:
                return True
            if claims.iat is not None and claims.iat <= one.issued_before + leeway_seconds:
                return True
        return False
