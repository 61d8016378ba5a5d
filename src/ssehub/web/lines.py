"""Lines of a body that arrives in parts, whatever these are cut into."""

from __future__ import annotations


class Lines:
    """Splits what arrives into lines, without their line feeds. What has arrived of a line is kept until it ends.

    Of a line that is longer than `max_bytes`, so much is kept, and one byte more: whoever reads it sees that.
    """

    __slots__ = ("_max_bytes", "_rest", "unfinished_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self.unfinished_bytes = 0
        """How much has arrived of a line that has not ended."""

    def read(self, part: bytes) -> list[bytes]:
        """Return the lines that end in the next part of the body."""
        *lines, rest = part.split(b"\n")
        if lines and self.unfinished_bytes:
            self._keep(lines[0])
            lines[0] = self._take()
        if rest:
            self._keep(rest)
        return lines

    def end(self) -> list[bytes]:
        """Return the last line, if the body has ended without a line feed behind it."""
        return [self._take()] if self.unfinished_bytes else []

    def _keep(self, piece: bytes) -> None:
        self.unfinished_bytes += len(piece)
        room = self._max_bytes + 1 - len(self._rest)
        self._rest += piece if len(piece) <= room else piece[:room]

    def _take(self) -> bytes:
        line = bytes(self._rest)
        self._rest = bytearray()
        self.unfinished_bytes = 0
        return line
