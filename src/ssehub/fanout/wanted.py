"""Which streams somebody asks about, by user, channel and address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..proxies import UNIX, Network, parse_address
from .origin import Origin

MAX_KNOWN = 100_000
"""Most addresses whose answers are remembered: a trace may be open for days."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which streams are asked for: those to which all of this applies. None applies to all."""

    user_id: str | None = None
    channel: str | None = None
    """They have it, or a pattern that covers it."""
    addresses: Network | str | None = None
    """Their address is in this network, or they come from a Unix socket if this is `unix`."""


class Matching:
    """Says what is wanted. The answers about addresses are remembered: many streams share one."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._known: dict[str, bool] = {}

    def matches(
        self, user_id: str | None, channels: Sequence[str], prefixes: tuple[str, ...], origin: Origin | None
    ) -> bool:
        """True if a stream of these is wanted. `prefixes` are its patterns, without their `*`."""
        wanted = self._wanted
        if wanted.user_id is not None and user_id != wanted.user_id:
            return False
        channel = wanted.channel
        if channel is not None and channel not in channels and not channel.startswith(prefixes):
            return False
        return wanted.addresses is None or self._is_there(origin)

    def _is_there(self, origin: Origin | None) -> bool:
        if origin is None:
            return False
        known = self._known.get(origin.address)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[origin.address] = self._is_in(origin.address)
        return known

    def _is_in(self, address: str) -> bool:
        addresses = self._wanted.addresses
        if isinstance(addresses, str):
            return not address and addresses == UNIX
        parsed = parse_address(address)
        return parsed is not None and addresses is not None and parsed in addresses


def address_of(origin: Origin | None) -> str | None:
    """Return the address of a stream as listings show it: `unix` for a Unix socket, None for Python code."""
    return None if origin is None else origin.address or UNIX
