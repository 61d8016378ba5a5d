"""The events that the producer of a run keeps."""

from __future__ import annotations

import json
import random

import pytest

from ssehub.publisher_kept import TAIL_BYTES, KeptEvents
from ssehub.runs.entries import RunEvent


def keep(count: int, *, before: int = 0, size: int = 1) -> KeptEvents:
    kept = KeptEvents(before)
    for number in range(count):
        kept.add(RunEvent(f"{number:0{size}}"))
    return kept


def data(lines: list[bytes]) -> list[int]:
    return [int(json.loads(line)["data"]) for line in lines]


def test_line_has_the_fields_that_are_given() -> None:
    kept = KeptEvents()
    kept.add(RunEvent("a\nü"))
    kept.add(RunEvent("", "note", "7", 0))

    first, second = map(json.loads, kept.lines(0, 1_000))

    assert first == {"data": "a\nü"}
    assert second == {"data": "", "event": "note", "id": "7", "retry": 0}


def test_lines_are_those_after_a_count_and_within_the_bytes() -> None:
    kept = keep(10, before=100)
    line = len(kept.lines(100, 1)[0])

    assert data(kept.lines(103, 3 * line)) == [3, 4, 5]
    assert data(kept.lines(103, 3 * line - 1)) == [3, 4]
    assert data(kept.lines(109, 1)) == [9]
    assert kept.lines(110, 1) == []


def test_acknowledged_events_do_not_wait_any_more_but_may_wait_again() -> None:
    kept = keep(10, before=100)
    line = kept.waiting_bytes // 10

    kept.acknowledge(104)
    assert (kept.first, kept.stored, kept.total, kept.waiting_bytes) == (100, 104, 110, 6 * line)

    kept.acknowledge(102)
    assert (kept.first, kept.stored, kept.total, kept.waiting_bytes) == (100, 102, 110, 8 * line)
    assert data(kept.lines(kept.stored, 1_000)) == list(range(2, 10))


def test_tail_of_stored_events_is_bounded() -> None:
    kept = keep(1_000, size=1_000)
    line = kept.waiting_bytes // 1_000

    kept.acknowledge(900)

    assert kept.first == 900 - TAIL_BYTES // line
    assert data(kept.lines(kept.first, line)) == [kept.first]
    with pytest.raises(ValueError, match=str(kept.first - 1)):
        kept.acknowledge(kept.first - 1)
    with pytest.raises(ValueError, match="1001"):
        kept.acknowledge(1_001)


def test_bytes_are_counted_right_whatever_happens() -> None:
    chance = random.Random(7)
    kept = KeptEvents()
    for number in range(3_000):
        kept.add(RunEvent(f"{number:0{chance.randrange(1, 2_000)}}"))
        if number % 7 == 0:
            kept.acknowledge(chance.randint(max(kept.first, kept.total - 300), kept.total))

    waiting = kept.lines(kept.stored, 2**40)
    everything = kept.lines(kept.first, 2**40)

    assert kept.waiting_bytes == sum(map(len, waiting))
    assert data(everything) == list(range(kept.first, kept.total))
    assert sum(map(len, everything)) - kept.waiting_bytes <= TAIL_BYTES
