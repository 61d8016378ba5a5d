"""The heads of requests that a port has parsed. Most backends send the same few again and again.

A request that begins with such a head, and has the body that it declares, needs no parser.
"""

from __future__ import annotations

from typing import NamedTuple

from ..web.fast_path import FastPath, Head
from .heads import declared_length

MAX_HEADS = 512
"""How many are kept: the length of the body is part of a head. Parsed, they take 10 MB at most, and usually 1 MB."""
MAX_HEAD_BYTES = 1_000
"""The size of the largest that is kept."""
_END = b"\r\n\r\n"


class KnownHead(NamedTuple):
    """A head, the length of the body behind it, and the fast path that the request takes."""

    fast_path: FastPath
    head: Head
    body_bytes: int


class KnownHeads:
    """The heads that were added last, by their bytes, control keys included.

    They are those of requests that were admitted, on connections that went on.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> KnownHead | None:
        """Return the known head of `data`, None if that is not exactly one request with such a head."""
        if not self._heads:
            return None
        end = data.find(_END) + len(_END)
        known = self._heads.get(data[:end])
        return known if known is not None and len(data) - end == known.body_bytes else None

    def add(self, data: bytes, fast_path: FastPath, head: Head) -> None:
        """Add `head`, that of the last request in `data`, which begins with a request.

        If there are several, `data` is too long, so that nothing is added; nor is the head of a chunked body, which
        declares no length.
        """
        end = data.find(_END) + len(_END)
        body_bytes = declared_length(head.headers)
        if end > MAX_HEAD_BYTES or len(data) - end != body_bytes:
            return
        if len(self._heads) >= MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[data[:end]] = KnownHead(fast_path, head, body_bytes)
