"""Tokens whose signature has been verified, so that a client that reconnects costs no second verification."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from hashlib import sha256

from .access import Access

MAX_CACHED_TOKENS = 10_000
MAX_CACHED_NAMES = 100
"""A token that grants more is not remembered: 10,000 of them could take gigabytes."""


class VerifiedTokens:
    """What the last `size` verified tokens grant, by a digest: it holds no token. It knows nothing about time."""

    def __init__(self, size: int = MAX_CACHED_TOKENS) -> None:
        self._size = size
        self._access: OrderedDict[bytes, Access] = OrderedDict()

    def __len__(self) -> int:
        return len(self._access)

    def find(self, digest: bytes) -> Access | None:
        access = self._access.get(digest)
        if access is not None:
            with contextlib.suppress(KeyError):  # another thread has removed it meanwhile
                self._access.move_to_end(digest)
        return access

    def add(self, digest: bytes, access: Access) -> None:
        """Remember `access`, unless it grants more than MAX_CACHED_NAMES channels and patterns."""
        if len(access.claims.channels) + len(access.claims.patterns) > MAX_CACHED_NAMES:
            return
        self._access[digest] = access
        if len(self._access) > self._size:
            self._access.popitem(last=False)

    @staticmethod
    def digest(token: str) -> bytes:
        return sha256(token.encode()).digest()
