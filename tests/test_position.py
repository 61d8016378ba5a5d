"""Positions, as text."""

from __future__ import annotations

import pytest

from ssehub.position import Position


def test_position_is_parsed_from_what_it_writes() -> None:
    position = Position(1_700_000_000_000, 3, "abcd1234")

    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1-2",
        "1-2.",
        "-1-2.abc",
        "1-2.ABC",
        "1-2.abc\n",
        " 1-2.abc",
        "1-2.abc ",
        "\t1-2.abc",
        "1-2.abc\x85",
        "\u00a01-2.abc",
        "1" * 20 + "-0.abc",
        "\u0661-\u0662.abc",
    ],
)
def test_other_text_is_not_a_position(text: str) -> None:
    assert Position.parse(text) is None
