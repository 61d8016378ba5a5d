"""The body of a stream's response, from which the bytes of its events are put together across reads."""

from __future__ import annotations

from typing import Protocol

from .stamps import MARK, STAMP_BYTES

LONGEST_TAIL = len(MARK) + STAMP_BYTES


class Decoder(Protocol):
    """Removes the transfer encoding from a body."""

    def decode(self, data: bytes) -> bytes: ...

    @property
    def is_at_boundary(self) -> bool:
        """True if the next bytes of the body begin a chunk, or if it has no chunks."""
        ...


class Identity:
    """The decoder of a body without a transfer encoding."""

    __slots__ = ()

    is_at_boundary = True

    def decode(self, data: bytes) -> bytes:
        return data


class Chunked:
    """The decoder of a body in chunks (RFC 9112, section 7.1)."""

    __slots__ = ("_line", "_remaining")

    def __init__(self) -> None:
        self._remaining = 0
        """Bytes of the current chunk that have not arrived."""
        self._line = b""
        """The beginning of a line with a chunk's size."""

    @property
    def is_at_boundary(self) -> bool:
        return not self._remaining and not self._line

    def decode(self, data: bytes) -> bytes:
        if self._remaining >= len(data):
            self._remaining -= len(data)
            return data
        parts = []
        at = 0
        while at < len(data):
            if self._remaining:
                part = data[at : at + self._remaining]
                parts.append(part)
                at += len(part)
                self._remaining -= len(part)
            else:
                at = self._read_line(data, at)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_line(self, data: bytes, at: int) -> int:
        """Read the line with the next chunk's size from `at` on, and return where it ends."""
        end = data.find(b"\n", at)
        if end < 0:
            self._line += data[at:]
            return len(data)
        line = (self._line + data[at:end]).strip()
        self._line = b""
        if line:  # an empty one ends the chunk before
            self._remaining = _chunk_size(line)
        return end + 1


def _chunk_size(line: bytes) -> int:
    """Return the size in a chunk's header, or 0 if it has none: the events of that chunk then count as lost."""
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        return 0


class Scanner:
    """Finds stamps in a decoded body, wherever its reads begin and end."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\n"
        """The end of the bytes so far that may be the beginning of a stamp."""

    @property
    def is_between_lines(self) -> bool:
        """True if no stamp can begin before the next bytes, other than with the line end before them."""
        return self._tail.endswith(b"\n")

    def scan(self, data: bytes) -> bytes:
        """Return the bytes to search for stamps: each stamp of the body is in one of them, complete."""
        data = self._tail + data
        at = data.rfind(MARK)
        if at >= 0 and len(data) - at < LONGEST_TAIL:
            self._tail = data[at:]
            return data[:at]
        self._tail = data[-len(MARK) + 1 :]
        return data
