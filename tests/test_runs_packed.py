"""Events of a run that are packed in memory."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ssehub.runs.entries import RunEvent
from ssehub.runs.model import EVENT_OVERHEAD_BYTES
from ssehub.runs.packed import BLOCK_EVENTS, PackedEvents

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EVENTS = st.lists(
    st.builds(RunEvent, TEXT, st.none() | st.sampled_from(["token", "é"]), st.none() | TEXT, st.none() | st.integers())
    | st.builds(RunEvent, TEXT),
    max_size=3 * BLOCK_EVENTS,
)


@given(EVENTS, st.integers(0, 2**32))
def test_events_are_read_from_any_of_them_on(events: list[RunEvent], seed: int) -> None:
    packed, chance, left = PackedEvents(), random.Random(seed), events
    while left:
        count = chance.randint(1, 20)
        packed.extend(left[:count])
        left = left[count:]

    assert len(packed) == len(events)
    for after in range(len(events) + 3):
        assert packed.page(after, 10**9) == events[after:]
        assert packed.page(after, 1) == events[after : after + 1]


def test_page_ends_where_its_bytes_do() -> None:
    packed = PackedEvents()
    packed.extend([RunEvent("x" * 68)] * 100)

    for count in (1, 2, BLOCK_EVENTS - 1, BLOCK_EVENTS, BLOCK_EVENTS + 1, 99):
        size = count * (68 + EVENT_OVERHEAD_BYTES)
        assert len(packed.page(0, size)) == len(packed.page(0, size + 99)) == count
    assert packed.page(200, 100) == []
