"""Endings: carries out the commands that end open streams, each in slices of the event loop.

A command of the log ends the streams that it names and that were open at its position, regardless of when their tokens
were issued. A stream that was opened after the command is left alone: its token was accepted although the command was
known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..publication import Disconnect
from ..revocations import Revocation, Selection
from .frames import Ending
from .index import Index
from .registry import Registry
from .slices import END_SLICE, each_in_slices, in_slices
from .subscriber import Subscriber

SEARCH_SLICE = 200
"""Streams that are looked at as one of the END_SLICE steps of a slice: each takes up to 0.6 µs."""


class Endings:
    """Ends streams of `index` in `registry`."""

    def __init__(self, index: Index, registry: Registry) -> None:
        self._index = index
        self._registry = registry

    def begin(self, ending: Ending, then: Callable[[], None]) -> None:
        """Begin to end the streams that `ending` is about, and call `then` at the end."""
        command = ending.command
        named: Iterator[Subscriber | None]
        if isinstance(command, Disconnect):
            named, retry_milliseconds = self._named(command), command.retry
        else:
            named, retry_milliseconds = self._revoked(command.revocations), None

        def end(subscriber: Subscriber | None) -> None:
            if subscriber is not None and subscriber.attached_at < ending.position:
                self._registry.revoke(subscriber, retry_milliseconds)

        in_slices(named, end, END_SLICE, then)

    def _named(self, command: Disconnect) -> Iterator[Subscriber]:
        """Yield the streams that `command` names, one channel after the other; those of several have ended by then."""
        if not command.channels:
            yield from self._index.named(command.users, ())
        for channel in command.channels:
            yield from self._index.named(command.users, (channel,))

    async def revoke(self, revocations: Sequence[Revocation]) -> None:
        """End the streams that are open now and that `revocations` name; return when that is done."""

        def end(subscriber: Subscriber | None) -> None:
            if subscriber is not None:
                self._registry.revoke(subscriber)

        await each_in_slices(self._revoked(revocations), end, END_SLICE)

    def _revoked(self, revocations: Sequence[Revocation]) -> Iterator[Subscriber | None]:
        """Yield the streams that `revocations` name, and None where many have been looked at in vain."""
        selection = Selection(revocations)
        if selection.has_only_users:
            yield from self._index.named(selection.users, ())
            return
        everyone = list(self._index.all)
        for start in range(0, len(everyone), SEARCH_SLICE):
            yield from selection.among(everyone[start : start + SEARCH_SLICE]) or (None,)
