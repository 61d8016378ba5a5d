"""The stamp with which the data of each event begins: `<sequence number>.<publisher>.<due time>.`.

Each publisher numbers the events to one audience from 0 on without gaps. The due time is the `time.monotonic_ns()` at
which the event should be published; on one machine all processes share that clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MARK = b"\ndata: "
"""The bytes before a stamp."""
STAMP = re.compile(rb"\ndata: (\d{10})\.(\d{3})\.(\d{19})\.")
STAMP_BYTES = 35
SAMPLES = 4
"""Of the events in one read, the latency of four to seven is measured, and counts for its share of all."""


class Span(NamedTuple):
    """Consecutive events of one publisher."""

    publisher: int
    first: int
    last: int


class Content(NamedTuple):
    """The events in the bytes of one read."""

    events: int
    spans: list[Span]
    """The events of each publisher in the order in which they stand."""
    samples: list[int]
    """The due times of some of the events."""
    weight: int
    """The number of events for which each sample counts."""


def stamped(number: int, publisher: int, due: int, size: int) -> str:
    """Return the data of an event: a stamp, padded to `size` bytes."""
    return f"{number:010}.{publisher:03}.{due:019}.".ljust(size, "x")


def content_of(data: bytes) -> Content:
    """Return the events whose stamps are in `data`."""
    numbers: dict[bytes, list[int]] = {}
    found = STAMP.findall(data)
    for number, publisher, _ in found:
        numbers.setdefault(publisher, []).append(int(number))
    spans = [span for publisher, of_publisher in numbers.items() for span in _spans(int(publisher), of_publisher)]
    samples = [int(due) for _, _, due in found[:: max(1, len(found) // SAMPLES)]]
    return Content(len(found), spans, samples, len(found) // max(1, len(samples)))


def _spans(publisher: int, numbers: list[int]) -> Iterator[Span]:
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield Span(publisher, first, last)
            first = number
        last = number
    yield Span(publisher, first, last)
