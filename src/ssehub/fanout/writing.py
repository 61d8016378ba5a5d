"""Writing: carries out the rounds, in slices, and holds back what a connection does not take.

An event that comes at rest and is for few streams is written *straight through*: its round begins and ends in the call
that dispatches it, before its publisher is answered. It is a round like any other, in the same states, but does not
wait for the next turn of the event loop. There is at most one such round in each turn: after it the state is SCHEDULED
until the next one, so that what is published in between is written together, as it is under load. Without this guard,
eight publishers and 30 streams cost twice the CPU time for each event.

A sink may report a pause or a lost connection while it is written to, and its owner may even publish then. An event
that is published during a round, or while the hub sends a frame of its own, waits: no round begins inside a write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from time import perf_counter

from .backlogs import Backlogs
from .endings import Endings
from .frames import Batch, Frame
from .gate import Gate
from .index import Index
from .pacing import FEW_WRITES
from .registry import Registry
from .rounds import Rounds, RoundState
from .slices import END_SLICE, SLICE_SECONDS, act_on_slice
from .statistics import Statistics
from .subscriber import FAILED, CloseReason, State, Subscriber

logger = logging.getLogger("ssehub.hub")

PART = 20
"""Writes of a round before it looks at the time: a slice is cut short where each write needs a merge of many events."""
LIVE, LAGGING = State.LIVE, State.LAGGING
IDLE = RoundState.IDLE


class Writing:
    """Writes the events of `rounds` to the streams of `index`, and ends those that commands among them name."""

    def __init__(
        self,
        rounds: Rounds,
        index: Index,
        backlogs: Backlogs,
        registry: Registry,
        endings: Endings,
        gate: Gate,
        statistics: Statistics,
        monotonic: Callable[[], float],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._rounds = rounds
        self._index = index
        self._backlogs = backlogs
        self._registry = registry
        self._endings = endings
        self._gate = gate
        self._statistics = statistics
        self._monotonic = monotonic
        self._pause: asyncio.TimerHandle | None = None
        """The pause before the next round, if there is one now."""

    # Rounds

    def begin(self, now: float, *, is_all: bool) -> None:
        """Write what waits: straight through if that is an event that may be, otherwise by the next round.

        `is_all` says that everything that the log has delivered waits. No error of a round reaches the caller.
        """
        try:
            if is_all and self._write_through(now):
                return
        except Exception:
            logger.exception("an event could not be written straight through")
        self.schedule(now)

    def _write_through(self, now: float) -> bool:
        """Write the event that waits alone, at rest, if it is for few streams; return False if there is none."""
        rounds = self._rounds
        frame = rounds.lone_event(now)
        if frame is None or self._registry.is_sending:
            return False
        members = self._index.few_for(frame, FEW_WRITES)
        if members is None:
            return False
        rounds.begin_alone(now)
        if self._backlogs.has_paused or self._backlogs.is_tight:
            self._capacity()
        self._write_slice(zip(repeat(Batch((frame,), frame.position)), members))
        if rounds.state is IDLE:
            rounds.await_turn()
            self._loop.call_soon(self._next_turn)
        return True

    def _next_turn(self) -> None:
        """Begin the round for which events have waited since one was written straight through, if any have."""
        if self._rounds.is_idle:
            self._rounds.rest()
        else:
            self._begin_round()

    def schedule(self, now: float) -> None:
        """Schedule the next round, if something waits and none is under way; end a pause if enough waits."""
        delay = self._rounds.schedule(now)
        if delay:
            self._pause = self._loop.call_later(delay, self._end_pause)
        elif delay is not None:
            self._loop.call_soon(self._begin_round)
        elif self._pause is not None and self._rounds.has_enough:
            self._pause.cancel()
            self._pause = None
            self._loop.call_soon(self._begin_round)

    def _end_pause(self) -> None:
        self._pause = None
        self._begin_round()

    def _begin_round(self) -> None:
        ending = self._rounds.next_ending()
        if ending is not None:
            self._endings.begin(ending, self._finish_ending)
            return
        frames = self._rounds.begin(self._monotonic(), self._capacity())
        self._gate.open()
        self._write_slice(self._writes(frames))

    def _capacity(self) -> int:
        """Make room for a round; return how many bytes it may write to each stream."""
        backlogs = self._backlogs
        try:
            if backlogs.has_paused:
                act_on_slice(backlogs.excess(self._monotonic()), self._end_as_slow, END_SLICE)
            return backlogs.capacity(len(self._index))
        except Exception:
            logger.exception("checking the backlogs failed, so no stream ends because of them")
            return 0

    def _end_as_slow(self, subscriber: Subscriber) -> None:
        self._registry.end(subscriber, CloseReason.SLOW)

    def _writes(self, frames: list[Frame]) -> Iterator[tuple[Batch, Subscriber]]:
        for batch, members in self._index.select(frames, frames[-1].position):
            for subscriber in members:
                yield batch, subscriber

    def _write_slice(self, work: Iterator[tuple[Batch, Subscriber]]) -> None:
        """Write to the next subscribers of the round. Whatever happens, the round goes on or finishes."""
        writes = events = size = 0
        is_last = False
        most = self._rounds.slice
        is_tight = self._backlogs.is_tight
        subscriber = None
        until = perf_counter() + SLICE_SECONDS
        try:
            while writes < most and not is_last:
                part_end = writes + PART
                for batch, subscriber in islice(work, PART):
                    writes += 1
                    if is_tight and subscriber.state is LIVE and subscriber.sink.is_paused:
                        self._check_backlog(subscriber, 0)
                    if subscriber.state is LIVE:
                        written = subscriber.write(batch)
                    elif subscriber.state is LAGGING:
                        written = self._backlogs.hold(subscriber, batch)
                    else:
                        continue
                    if written > 0:
                        events += written
                        size += len(batch.data)
                        if subscriber.sink.is_paused:
                            self._check_backlog(subscriber, len(batch.data))
                    elif written:
                        self._registry.end_failed(subscriber, written)
                is_last = writes < part_end
                if perf_counter() >= until:
                    break
        except Exception:
            logger.exception("writing a round failed at one stream, so it ends")
            if subscriber is not None:
                self._registry.end_failed(subscriber, FAILED)
        finally:
            self._statistics.delivered += events
            self._statistics.delivered_bytes += size
            self._rounds.writes += writes
            if is_last:
                self._finish_round()
            else:
                self._loop.call_soon(self._write_slice, work)

    def _finish_round(self) -> None:
        now, rounds = self._monotonic(), self._rounds
        self._statistics.count_round(rounds.finish(now))
        self._statistics.count_deliveries(now - rounds.arrived_at, rounds.events)
        self._registry.settled = rounds.last
        self.schedule(now)

    def _finish_ending(self) -> None:
        self._rounds.finish_ending()
        self.schedule(self._monotonic())

    # Single streams

    def write_held(self, subscriber: Subscriber) -> None:
        """Write what is held for a lagging `subscriber`, as far as its connection takes it."""
        is_over = False
        while not subscriber.sink.is_paused and (batch := self._backlogs.next_held(subscriber)) is not None:
            if subscriber.write(batch) == FAILED:
                self._registry.end_failed(subscriber, FAILED)
                return
            if subscriber.state is not LAGGING:  # its connection was lost while it was written to
                return
            is_over = subscriber.sink.is_paused and self._backlogs.is_over(subscriber, len(batch.data))
        if is_over or self._backlogs.held_for(subscriber):
            self._backlogs.start_lag(subscriber, self._monotonic())
        else:
            self._backlogs.end_lag(subscriber)
            subscriber.enter(LIVE)

    def _check_backlog(self, subscriber: Subscriber, written_bytes: int) -> None:
        if subscriber.state is LIVE and self._backlogs.is_over(subscriber, written_bytes):
            subscriber.enter(LAGGING)
            self._backlogs.start_lag(subscriber, self._monotonic())
