"""Publications: entries are read from the log as they were written, and nothing else is."""

from __future__ import annotations

import pytest

from ssehub.errors import InvalidEvent
from ssehub.event import Event
from ssehub.publication import Disconnect, load_entry


@pytest.mark.parametrize("entry", [Event(("a",), ("b",), data="x"), Disconnect(("a",), ()), Disconnect((), ("b",), 7)])
def test_log_entry_is_read_as_it_was_written(entry: Event | Disconnect) -> None:
    assert load_entry(entry.dump()) == entry


@pytest.mark.parametrize("text", ['{"command":"dance"}', '{"command":"disconnect"}', '{"command":', "{}", "", "[]"])
def test_malformed_log_entry_is_refused(text: str) -> None:
    with pytest.raises(InvalidEvent):
        load_entry(text)
