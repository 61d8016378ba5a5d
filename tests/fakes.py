"""Fakes that honour the contracts of the real parts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import cast

from ssehub.fanout.sinks import HIGH_WATER_BYTES, Chunk, Owner

_POSITION_FRAME = re.compile(r"event: stream-(hello|position)\ndata: {}\n")


class FakeSink:
    """A connection that records what is written to it.

    With `reads` False the client reads only by `read` and `read_all`; what it has not read is the backlog.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self.owner: Owner | None = None
        self.is_paused = False
        self.backlog = 0
        self.reads = reads
        self.chunks: list[bytes] = []
        self.is_closed = self.is_aborted = False
        self.linger_seconds: float | None = None
        """How long the client has to read the backlog after `close`."""
        self.cut_after: float | None = None
        """After how long the response is cut, if the client does not come back otherwise."""

    def write(self, chunk: Chunk) -> None:
        if self.is_closed:
            return
        self.chunks.append(chunk.data)
        if not self.reads:
            self.backlog += len(chunk.data)
            if self.backlog > HIGH_WATER_BYTES and not self.is_paused:
                self.is_paused = True
                if self.owner is not None:
                    self.owner.sink_paused()

    def read(self, size: int) -> None:
        """Read a part of the backlog, too little to resume."""
        self.backlog -= size

    def read_all(self) -> None:
        """Read the whole backlog. What is written from now on is backlog again."""
        self.backlog = 0
        if self.is_paused:
            self.is_paused = False
            if self.owner is not None:
                self.owner.sink_resumed()

    def lose(self) -> None:
        """Lose the connection."""
        owner, self.owner = self.owner, None
        self.is_closed = True
        if owner is not None:
            owner.sink_lost()

    def close(self, linger_seconds: float = 5.0, *, cut_after: float | None = None) -> None:
        self.is_closed = True
        self.cut_after = cut_after
        self.owner = None
        self.linger_seconds = linger_seconds

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True
        self.owner = None
        self.backlog = 0

    @property
    def text(self) -> str:
        """Everything that was written."""
        return b"".join(self.chunks).decode()

    def data(self) -> list[str]:
        """Return the value of each `data:` line, apart from those of frames that only tell the position."""
        text = _POSITION_FRAME.sub("", self.text)
        return [line[6:] for line in text.split("\n") if line.startswith("data: ")]

    def ids(self) -> list[str]:
        """Return the value of each `id:` line."""
        return [line[4:] for line in self.text.split("\n") if line.startswith("id: ")]


class ManualLoop:
    """The timers of an event loop, whose time only passes in `pass_seconds`."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.wake_ups = 0
        """How often a timer has gone off."""
        self._timers: list[_ManualTimer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> _ManualTimer:
        timer = _ManualTimer(self, when, callback)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: _ManualTimer) -> None:
        if timer in self._timers:
            self._timers.remove(timer)

    def pass_seconds(self, seconds: float) -> None:
        """Let the timers go off that are due within so many seconds, in their order."""
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.when <= end]:
            first = min(due, key=lambda timer: timer.when)
            self._timers.remove(first)
            self.now = max(self.now, first.when)
            self.wake_ups += 1
            first.callback()
        self.now = end

    @property
    def as_loop(self) -> asyncio.AbstractEventLoop:
        return cast(asyncio.AbstractEventLoop, self)  # as far as timers go


class _ManualTimer:
    def __init__(self, loop: ManualLoop, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self._loop = loop

    def cancel(self) -> None:
        self._loop.cancel(self)
