"""Fakes that honour the contracts of the real parts."""

from __future__ import annotations

import re

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
