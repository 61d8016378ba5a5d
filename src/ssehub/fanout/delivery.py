"""Delivers a run to one watcher: its events, its next generation, its end.

After a watcher has begun, this is the only file that changes its generation and its cursor, `Watcher.sent`. The cursor
moves over events after they have been handed to the sink.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..position import Position
from ..runs.model import Outcome
from .feeds import Watcher, granted_channels
from .history import ResetReason
from .index import Index
from .registry import Registry
from .statistics import Statistics
from .subscriber import FAILED, CloseReason, State
from .watching import Passage, farewell, run_hello


class Delivery:
    """Writes to watchers, and ends those that have everything or may watch no longer."""

    def __init__(self, registry: Registry, index: Index, statistics: Statistics) -> None:
        self._registry = registry
        self._index = index
        self._statistics = statistics

    def write(self, watcher: Watcher, made: Iterable[Passage], *, even_if_paused: bool = False) -> None:
        """Write the part of `made` that follows the cursor of `watcher`, as far as its connection takes it."""
        for passage in made:
            sent = watcher.sent
            if sent.log != passage.position.log or passage.last <= sent[0]:
                continue
            if passage.first > sent[0] + 1 or (watcher.sink.is_paused and not even_if_paused):
                return
            rest = passage if passage.first == sent[0] + 1 else passage.after(sent[0])
            if rest.data and not watcher.send(rest, rest.position):  # as a chunk, nothing would be the last one
                self._registry.end_failed(watcher, FAILED)
                return
            watcher.sent = rest.position
            watcher.written += rest.tally
            self._statistics.delivered += rest.count
            self._statistics.delivered_bytes += len(rest.data)

    def finish(self, watcher: Watcher, outcome: Outcome, tail: int) -> None:
        """End a watcher that has all events, of which the last one has the ordinal `tail`."""
        end = Position(tail + 1, 0, watcher.sent.log)
        self._registry.send_frame(watcher, farewell(outcome, end, watcher.dialect), end)
        self._registry.end(watcher, CloseReason.FINISHED)

    def renew(self, watcher: Watcher) -> bool:
        """Tell `watcher` that its run has another generation, or another log since the store has lost a part of it.

        Return False if nothing can be written to it now: it has ended, is paused, or its run is gone.
        """
        feed = watcher.feed
        if feed.run is None:
            return False
        channels = granted_channels(feed.run, watcher.user_id, watcher.grant)
        if not channels:
            self._registry.revoke(watcher)
            return False
        is_same_log = watcher.sent.log == feed.log
        if watcher.is_bare and not is_same_log:
            self._registry.end(watcher, CloseReason.RESTARTED)
            return False
        if channels != watcher.channels:
            self._index.relocate(watcher, channels)
        if watcher.sink.is_paused:
            return False
        is_restarted, watcher.generation = watcher.generation != feed.generation, feed.generation
        if not is_same_log:
            watcher.sent = Position(0, 0, feed.log)
            self._registry.send_reset(watcher, ResetReason.RESTARTED if is_restarted else ResetReason.LOG_LOST)
        if not watcher.is_bare:
            hello = run_hello(feed.name, feed.generation, watcher.sent)
            self._registry.send_frame(watcher, hello, watcher.sent)
        return watcher.state is not State.ENDED
