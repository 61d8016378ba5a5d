"""Positions, as text."""

from __future__ import annotations

import pytest

from ssehub.position import LAST_NUMBER, Position


def test_position_is_parsed_from_what_it_writes() -> None:
    for position in (Position(1_700_000_000_000, 3, "abcd1234"), Position(LAST_NUMBER, LAST_NUMBER, "abcd1234")):
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
        f"{2**64}-0.abc",
        f"0-{2**64}.abc",
        "0" * 21 + "-0.abc",
        "\u0661-\u0662.abc",
    ],
)
def test_other_text_is_not_a_position(text: str) -> None:
    assert Position.parse(text) is None
