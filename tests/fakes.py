"""Stand-ins that honour the contracts of the real parts."""

from __future__ import annotations

from ssehub.fanout.sinks import Chunk, Owner


class FakeSink:
    """A connection that keeps what it gets; when it is told to stop reading, that becomes its backlog."""

    def __init__(self, *, reads: bool = True) -> None:
        self.owner: Owner | None = None
        self.is_paused = False
        self.chunks: list[bytes] = []
        self.untaken = 0
        self.reads = reads
        self.is_closed = self.is_aborted = False

    def write(self, chunk: Chunk) -> None:
        if self.is_closed:
            return
        self.chunks.append(chunk.data)
        if not self.reads:
            self.untaken += len(chunk.data)
            if self.untaken > 65_536 and not self.is_paused:
                self.is_paused = True
                if self.owner is not None:
                    self.owner.sink_paused()

    @property
    def backlog(self) -> int:
        return self.untaken

    def take(self, size: int) -> None:
        """Read some of what waits."""
        self.untaken -= size

    def take_all(self) -> None:
        """Read what waits, and go on reading nothing more."""
        self.untaken = 0
        if self.is_paused:
            self.is_paused = False
            if self.owner is not None:
                self.owner.sink_resumed()

    def lose(self) -> None:
        owner, self.owner = self.owner, None
        self.is_closed = True
        if owner is not None:
            owner.sink_lost()

    def close(self, linger_seconds: float = 5.0) -> None:
        self.is_closed = True
        self.owner = None

    def abort(self) -> None:
        self.close()
        self.is_aborted = True
        self.untaken = 0

    @property
    def text(self) -> str:
        return b"".join(self.chunks).decode()

    def data(self) -> list[str]:
        return [line[6:] for line in self.text.split("\n") if line.startswith("data: ")]

    def ids(self) -> list[str]:
        return [line[4:] for line in self.text.split("\n") if line.startswith("id: ")]
