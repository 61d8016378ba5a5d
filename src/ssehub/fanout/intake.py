"""The intake: takes batches of the log in order, large ones in slices, so that the event loop goes on in between.

What is accepted is dispatched to its end, even if the publisher that waits for it is cancelled. While a batch is being
dispatched, later ones wait behind it, however small: the order is that of the log. At rest a batch that takes less than
a slice is dispatched at once, and nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from ..brokers.base import Entry
from ..position import Position
from .slices import SLICE_SECONDS

logger = logging.getLogger("ssehub.hub")

STEP = 10
"""Entries that are dispatched before the time is looked at: a usual one takes about 10 µs, one with 1,000 pairs of
channel and user 2 ms.
"""
STEP_BYTES = 2**18
"""Of larger ones, one at a time: 1 MiB of empty lines takes 7 ms."""
Dispatch = Callable[[Position, Sequence[Entry]], None]


class Intake:
    """Passes the log on to `dispatch`: each entry once, in order, and how far the log has been read with it.

    `expect` is told how many bytes begin to wait here, and the same number, negative, when they have been dispatched.
    """

    def __init__(self, dispatch: Dispatch, expect: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._dispatch = dispatch
        self._expect = expect
        self._batches: deque[_Batch] = deque()

    @property
    def is_idle(self) -> bool:
        """True if everything accepted has been dispatched."""
        return not self._batches

    def accept(self, position: Position, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        """Accept the next `entries` of the log, which then ends at `position`.

        Returns None if they have been dispatched, otherwise a future that is done when they have been.
        """
        is_first = not self._batches
        if is_first and len(entries) <= 1:
            self._dispatch(position, entries)
            return None
        batch = _Batch(position, entries)
        self._batches.append(batch)
        if is_first and self._advance_at_once(batch):
            return None
        batch.wait(self._loop)
        self._expect(batch.size)
        if is_first:
            self._loop.call_soon(self._next_slice)
        return batch.done

    def _advance_at_once(self, batch: _Batch) -> bool:
        """Dispatch as much of the first batch as fits into a slice; return True if that is all of it."""
        is_dispatched = True
        try:
            is_dispatched = batch.advance(self._dispatch, perf_counter() + SLICE_SECONDS)
        finally:
            if is_dispatched:
                self._batches.popleft()
        return is_dispatched

    def _next_slice(self) -> None:
        until = perf_counter() + SLICE_SECONDS
        while self._batches:
            self._advance_first(until)
            if perf_counter() > until:
                break
        if self._batches:
            self._loop.call_soon(self._next_slice)

    def _advance_first(self, until: float) -> None:
        """Dispatch more of the first batch. Whatever happens, the next one has its turn."""
        batch = self._batches[0]
        error: Exception | None = None
        try:
            if not batch.advance(self._dispatch, until):
                return
        except Exception as exc:
            error = exc
        self._batches.popleft()
        self._expect(-batch.size)
        batch.finish(error)


class _Batch:
    """Entries of the log, of which those before `_next` have been dispatched."""

    __slots__ = ("_entries", "_next", "_position", "done", "size")

    def __init__(self, position: Position, entries: Sequence[Entry]) -> None:
        self._position = position
        self._entries = entries
        self._next = 0
        self.size = 0
        """Bytes of what was left when it began to wait."""
        self.done: asyncio.Future[None] | None = None

    def advance(self, dispatch: Dispatch, until: float) -> bool:
        """Dispatch entries until that time, at least one step of them; return True if none is left."""
        entries = self._entries
        while True:
            step = entries[self._next : self._next + STEP]
            if sum([entry.event.size for entry in step]) > STEP_BYTES:
                step = step[:1]
            self._next += len(step)
            if self._next == len(entries):
                dispatch(self._position, step)
                return True
            dispatch(step[-1].position, step)
            if perf_counter() > until:
                return False

    def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self.size = sum([entry.event.size for entry in self._entries[self._next :]])
        self.done = loop.create_future()

    def finish(self, error: Exception | None) -> None:
        assert self.done is not None
        if self.done.done():  # its publisher was cancelled
            if error is not None:
                logger.error("dispatching a batch failed, so events may be missing", exc_info=error)
        elif error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
