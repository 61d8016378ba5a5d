"""The heads of requests that a port has parsed. Most backends send the same few again and again.

A request that begins with such a head, and has the body that it declares, needs no parser.
"""

from __future__ import annotations

from typing import NamedTuple

from ..web.fast_path import FastPath, Head
from .heads import declared_length

MAX_HEADS = 512
"""The length of the body is part of a head."""
MAX_HEAD_BYTES = 2_000
_END = b"\r\n\r\n"


class KnownHead(NamedTuple):
    """A head, the length of the body behind it, and the fast path that the request takes."""

    fast_path: FastPath
    head: Head
    body_bytes: int


class KnownHeads:
    """The heads that came last, by their bytes. They are those of persistent connections."""

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
        """Add `head`, with which `data` begins: exactly one request, which the parser has accepted."""
        end = data.find(_END) + len(_END)
        body_bytes = declared_length(head.headers)
        if end > MAX_HEAD_BYTES or len(data) - end != body_bytes:  # a chunked body has no declared length
            return
        if len(self._heads) >= MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[data[:end]] = KnownHead(fast_path, head, body_bytes)
