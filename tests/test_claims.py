"""Claims: which are rejected."""

from __future__ import annotations

from typing import Any

import pytest

from ssehub.claims import Claims
from ssehub.errors import InvalidEvent


@pytest.mark.parametrize(
    "claims",
    [
        ("alex", "chat"),
        ("alex", ()),
        ("", ("chat",)),
        (5, ("chat",)),
        ("alex", (None,)),
        ("a", ("b",), "soon"),
        ("a", ("b",), float("nan")),
    ],
)
def test_claims_that_a_token_could_not_grant_are_rejected(claims: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidEvent):
        Claims(*claims)
