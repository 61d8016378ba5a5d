"""Connections that a server ends, and requests that it answers itself: each is counted by its reason, and logged."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..fanout.refusals import ConnectionRefusal
from ..loglimit import limited_logger

logger = limited_logger("ssehub.http")

_WARNINGS = frozenset((ConnectionRefusal.MEMORY, ConnectionRefusal.PREAMBLE))


def _uncounted(port: str, reason: ConnectionRefusal) -> None:
    pass


class ConnectionRefusals:
    """Those of one port. `count` is called with the name of the port and the reason."""

    def __init__(self, port: str = "", count: Callable[[str, ConnectionRefusal], None] = _uncounted) -> None:
        self._port = port
        self._count = count

    def refuse(self, reason: ConnectionRefusal, client: tuple[str, int] | None, detail: str) -> None:
        """Count and log a connection of `client`, which is None on a Unix socket."""
        self._count(self._port, reason)
        level = logging.WARNING if reason in _WARNINGS else logging.INFO
        port = f"on the {self._port} port, " if self._port else ""
        address = client[0] if client is not None else "a Unix socket"
        # The rate of lines is limited by their templates, so that there is one for each reason.
        template = f"connection refused, {reason}: %s; %sfrom %s"
        logger.log(level, template, detail, port, address)


UNCOUNTED = ConnectionRefusals()
"""Of somebody else's server, whose hub is not known."""
