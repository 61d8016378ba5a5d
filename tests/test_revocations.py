"""Revocations: what one is about, which tokens a table refuses, and when one is forgotten."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ssehub.claims import Claims
from ssehub.errors import InvalidEvent, Overloaded
from ssehub.revocations import EXPIRY_MARGIN_SECONDS, Revocation, Revocations, Selection

BEFORE = 1_000.0
LEEWAY = 5.0

TOKEN: dict[str, Any] = {"iss": "https://id", "sub": "s1", "sid": "session", "jti": "t1"}


def claims(iat: float | None = 900.0, **fields: Any) -> Claims:
    return Claims(fields.pop("user_id", "alex"), ("chat",), iat=iat, **(TOKEN | fields))


def table(*revocations: Revocation) -> Revocations:
    filled = Revocations()
    for revocation in revocations:
        filled.add(revocation)
    return filled


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "nothing given: name one of jti, userId, sid, sub, everyone"),
        ({"everyone": False}, "nothing given"),
        ({"jti": "a", "sid": "b"}, "jti and sid given"),
        ({"jti": ""}, "jti is empty"),
        ({"jti": 5}, "jti must be a string"),
        ({"user_id": "a\0", "issued_before": 1}, "userId"),
        ({"sid": "\ud800"}, "sid"),
        ({"jti": "x" * 300}, "jti"),
        ({"sub": "a", "issued_before": 1}, "iss"),
        ({"iss": "a", "jti": "b"}, "iss"),
        ({"user_id": "a", "iss": "b", "issued_before": 1}, "iss"),
        ({"user_id": "a"}, "issuedBefore"),
        ({"everyone": True}, "issuedBefore"),
        ({"jti": "a", "issued_before": 1}, "issuedBefore"),
        ({"user_id": "a", "issued_before": "1"}, "issuedBefore must be a Unix time"),
        ({"user_id": "a", "issued_before": -1}, "issuedBefore must be a Unix time"),
        ({"user_id": "a", "issued_before": True}, "issuedBefore must be a Unix time"),
        ({"user_id": "a", "issued_before": float("nan")}, "issuedBefore must be a Unix time"),
        ({"user_id": "a", "issued_before": 1, "expires_at": float("inf")}, "expiresAt must be a Unix time"),
        ({"user_id": "a", "issued_before": 1, "expires_at": 2**53}, "expiresAt must be a Unix time"),
    ],
)
def test_revocation_that_makes_no_sense_is_refused_and_the_field_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidEvent, match=says):
        Revocation(**fields)


REVOCATIONS = [
    Revocation(jti="t1"),
    Revocation(user_id="alex", issued_before=BEFORE),
    Revocation(sid="session"),
    Revocation(sid="session", iss="https://id"),
    Revocation(iss="https://id", sub="s1", issued_before=BEFORE),
    Revocation(iss="https://id", sub="s1", without_sid=True, issued_before=BEFORE, expires_at=5.0),
    Revocation(everyone=True, issued_before=BEFORE),
]


@pytest.mark.parametrize("revocation", REVOCATIONS, ids=lambda one: one.key)
def test_revocation_survives_storing(revocation: Revocation) -> None:
    assert Revocation.from_json(revocation.to_json()) == revocation
    assert Revocation.load(json.loads(json.dumps(revocation.dump()))) == revocation


def test_every_kind_has_keys_of_its_own() -> None:
    odd = Revocation(sid="a\u2028b", iss="c")
    keys = [one.key for one in (*REVOCATIONS, odd, Revocation(user_id="everyone", issued_before=1))]

    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"jti": 1}', '{"jti": "a", "new": 1}', "[" * 100_000])
def test_stored_text_that_is_no_revocation_is_an_invalid_event(text: str) -> None:
    with pytest.raises(InvalidEvent):
        Revocation.from_json(text)


@pytest.mark.parametrize(
    ("revocation", "token", "is_named"),
    [
        (REVOCATIONS[0], {}, True),
        (REVOCATIONS[0], {"jti": "t2"}, False),
        (REVOCATIONS[0], {"jti": None, "sid": "t1"}, False),
        (REVOCATIONS[1], {}, True),
        (REVOCATIONS[1], {"user_id": "kim"}, False),
        (REVOCATIONS[1], {"user_id": "kim", "sub": "alex"}, False),
        (REVOCATIONS[2], {}, True),
        (REVOCATIONS[2], {"iss": None}, True),
        (REVOCATIONS[2], {"sid": "another"}, False),
        (REVOCATIONS[2], {"sid": None}, False),
        (REVOCATIONS[3], {}, True),
        (REVOCATIONS[3], {"iss": "https://other"}, False),
        (REVOCATIONS[3], {"iss": None}, False),
        (Revocation(sid="session", iss="None"), {"iss": None}, False),
        (Revocation(sub="s1", iss="None", issued_before=BEFORE), {"iss": None, "sid": None}, False),
        (REVOCATIONS[4], {}, True),
        (REVOCATIONS[4], {"sid": None}, True),
        (REVOCATIONS[4], {"iss": "https://other"}, False),
        (REVOCATIONS[4], {"sub": None, "user_id": "s1"}, False),
        (REVOCATIONS[5], {}, False),
        (REVOCATIONS[5], {"sid": None}, True),
        (REVOCATIONS[5], {"sid": None, "sub": "s2"}, False),
        (REVOCATIONS[6], {"user_id": "kim", "iss": None, "sub": None, "sid": None, "jti": None}, True),
    ],
)
def test_revocation_names_streams_and_refuses_tokens_alike(
    revocation: Revocation, token: dict[str, Any], is_named: bool
) -> None:
    """Streams are found by `Selection`, tokens refused by `Revocations`: two pieces of code for one rule."""
    bearer = claims(**token)
    others = [Revocation(jti="unrelated"), Revocation(user_id="unrelated", issued_before=1)]

    assert table(revocation).refuses(bearer, LEEWAY) is is_named
    assert list(Selection([revocation]).among([bearer])) == [bearer] * is_named
    assert list(Selection([revocation, *others]).among([bearer])) == [bearer] * is_named


@pytest.mark.parametrize("revocation", [one for one in REVOCATIONS if one.issued_before is not None])
@pytest.mark.parametrize(
    ("iat", "is_refused"),
    [(0, True), (BEFORE, True), (BEFORE + LEEWAY, True), (BEFORE + LEEWAY + 0.001, False), (None, False)],
    ids=["no-iat", "before", "within-leeway", "later", "no-token"],
)
def test_tokens_issued_within_the_leeway_are_refused_and_later_ones_are_not(
    revocation: Revocation, iat: float | None, is_refused: bool
) -> None:
    bearer = claims(iat, sid=None)

    assert table(revocation).refuses(bearer, LEEWAY) is is_refused
    assert list(Selection([revocation]).among([bearer])) == [bearer], "open streams end whenever they were issued"


@pytest.mark.parametrize("iat", [None, 0, 9e15])
def test_token_and_session_are_refused_whenever_they_were_issued(iat: float | None) -> None:
    assert table(Revocation(jti="t1")).refuses(claims(iat), LEEWAY)
    assert table(Revocation(sid="session")).refuses(claims(iat), LEEWAY)


def test_selection_knows_when_the_users_alone_decide() -> None:
    alex, jti = Revocation(user_id="alex", issued_before=1), Revocation(jti="a")

    assert Selection([alex]).has_only_users and Selection([alex]).users == {"alex"}
    assert not Selection([alex, jti]).has_only_users
    assert not Selection([]).has_only_users and not Selection([]).among([claims()]), "no user does not mean all users"
    for other in REVOCATIONS[2:]:
        assert not Selection([other]).has_only_users


def test_table_is_full_for_new_ones_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssehub.revocations.MAX_REVOCATIONS", 2)
    full = table(Revocation(jti="a"), Revocation(jti="b"))

    full.require_room([Revocation(jti="b"), Revocation(jti="a")])
    full.require_room([])
    with pytest.raises(Overloaded, match="full"):
        full.require_room([Revocation(jti="a"), Revocation(jti="c")])


def test_replacing_the_table_returns_what_is_new_or_extended() -> None:
    same, gone = Revocation(jti="a"), Revocation(jti="b")
    extended, new = Revocation(user_id="u", issued_before=9), Revocation(jti="c")
    copy = table(same, gone, Revocation(user_id="u", issued_before=5))

    assert copy.replace([same, extended, new]) == [extended, new]
    assert list(copy) == [same, extended, new]


@pytest.mark.parametrize(("seconds", "is_kept"), [(EXPIRY_MARGIN_SECONDS, True), (EXPIRY_MARGIN_SECONDS + 0.1, False)])
def test_revocation_is_forgotten_after_its_end_and_a_margin(seconds: float, is_kept: bool) -> None:
    ends, stays = Revocation(jti="a", expires_at=100), Revocation(jti="b")
    copy = table(ends, stays)

    for one in list(copy):
        copy.expire(one, 100 + seconds)

    assert list(copy) == [ends, stays] if is_kept else [stays]


def test_revocation_that_was_extended_meanwhile_is_not_forgotten() -> None:
    early = Revocation(jti="a", expires_at=100)
    copy = table(early)
    copy.add(Revocation(jti="a", expires_at=5_000))

    copy.expire(early, 2_000)

    assert "jti:a" in copy
