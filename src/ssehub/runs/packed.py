"""The events of a run in memory, packed into few objects, in less space than `run_bytes` counts for them.

A string is 49 bytes besides its text, and a tuple of four 88: much for events of one word. So every BLOCK_EVENTS events
are packed into a block, where an event takes about 13 bytes besides its text. The newest are kept as they are. The
garbage collector does not look at either of them again.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence

from .entries import RunEvent
from .model import EVENT_OVERHEAD_BYTES

BLOCK_EVENTS = 16
_ENDS = struct.Struct(f"{BLOCK_EVENTS}I")

_Fields = tuple[str | None, str | None, int | None]
"""Type, id and retry."""
_Event = str | tuple[str, str | None, str | None, int | None]
"""An event: its data alone, or all its fields."""
_Block = tuple[bytes, bytes, tuple[_Fields, ...]]
"""The data of all events in UTF-8; where each of them ends; their other fields, once if they are all the same."""


class PackedEvents:
    """Events that are appended, and read page by page from any of them on."""

    __slots__ = ("_blocks", "_newest")

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._newest: list[_Event] = []

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK_EVENTS + len(self._newest)

    def extend(self, events: Sequence[RunEvent]) -> None:
        newest = self._newest
        for data, type, id, retry in events:
            if type is None and id is None and retry is None:
                newest.append(data)
            else:
                newest.append((data, None if type is None else sys.intern(type), id, retry))
            if len(newest) == BLOCK_EVENTS:
                self._blocks.append(_pack(newest))
                newest.clear()

    def page(self, after: int, max_bytes: int) -> list[RunEvent]:
        """Return the events behind the first `after`, as many as `max_bytes` allow, at least one if there are any."""
        page: list[RunEvent] = []
        for event in self._behind(after):
            max_bytes -= event.size + EVENT_OVERHEAD_BYTES
            if max_bytes < 0 and page:
                break
            page.append(event)
        return page

    def _behind(self, after: int) -> Iterator[RunEvent]:
        first, skipped = divmod(after, BLOCK_EVENTS)
        for index in range(first, len(self._blocks)):
            yield from _unpack(self._blocks[index])[skipped:]
            skipped = 0
        if first > len(self._blocks):
            return
        for event in self._newest[skipped:]:
            yield RunEvent(event) if isinstance(event, str) else RunEvent(*event)


def _pack(events: Sequence[_Event]) -> _Block:
    data, ends, end = [], [], 0
    fields: list[_Fields] = []
    for event in events:
        text, *others = (event, None, None, None) if isinstance(event, str) else event
        encoded = text.encode()
        end += len(encoded)
        data.append(encoded)
        ends.append(end)
        fields.append(tuple(others))  # type: ignore[arg-type]  # it has three
    distinct = fields[:1] if fields.count(fields[0]) == len(fields) else fields
    return b"".join(data), _ENDS.pack(*ends), tuple(distinct)


def _unpack(block: _Block) -> list[RunEvent]:
    data, ends, fields = block
    start, events = 0, []
    for number, end in enumerate(_ENDS.unpack(ends)):
        events.append(RunEvent(data[start:end].decode(), *fields[number if len(fields) > 1 else 0]))
        start = end
    return events
