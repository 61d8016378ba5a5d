"""The entries of the stream in Redis."""

from __future__ import annotations

import pytest

from broker_worlds import event
from ssehub.brokers.redis.wire import dump_entry, parse_entry
from ssehub.event import Event
from ssehub.position import Position
from ssehub.publication import Command, Disconnect, TakeBack

NAMES = tuple(f"name {number} \u2028é" for number in range(1_000))
ENTRIES: dict[str, Event | Command] = {
    "plain": event("hello"),
    "empty": event(""),
    "lines": event("\n\r\n\0\u2028\n1[]\n"),
    "everything": event("x", type='a "type" \\ é', id="my id", retry=2**31 - 1, ttl=1.5),
    "longest": event("x", type="\x01" * 255, id="é" * 255, ttl=2**40 - 1),
    "not stored": event("x", store=False),
    "many names": Event(NAMES, ("*",), data="x"),
    "many users": Event(("a",), NAMES, data="x"),
    "payload": Event(("a", "b"), ("u", "v"), payload="1\ndata: x\nid: 7"),
    "disconnect": Disconnect(("u",), ("c",)),
    "take back": TakeBack(("key",)),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_entry_is_read_as_it_was_written(entry: Event | Command) -> None:
    for _ in range(2):
        fields = [b"n", b"7", b"log", b"loh23qqu", b"event", dump_entry(entry)]
        number, (position, read) = parse_entry(b"5-3", fields)

        assert (number, position, read) == (7, Position(5, 3, "loh23qqu"), entry)
        assert getattr(read, "size", 0) == getattr(entry, "size", 0)


def test_event_that_an_earlier_version_has_written_as_json_is_read() -> None:
    entry = event("x", type="t", id="my id", retry=5, ttl=1.5)
    fields = [b"n", b"7", b"log", b"loh23qqu", b"event", entry.dump().encode()]

    assert parse_entry(b"5-3", fields)[1].event == entry
