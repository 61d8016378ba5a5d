"""The signals that a process handles: one asks it to stop, a second one insists, SIGHUP lets it read files again."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

logger = logging.getLogger("ssehub.server")


class Signals:
    """The handlers of SIGTERM, SIGINT and SIGHUP in the running event loop.

    The first SIGTERM or SIGINT calls `stop`, every further one `stop_at_once`. SIGHUP calls `reload`.
    """

    def __init__(
        self,
        action: str,
        *,
        stop: Callable[[], object],
        stop_at_once: Callable[[], object],
        reload: Callable[[], object],
    ) -> None:
        """`action` is what `stop` starts, as the log describes it."""
        self._action = action
        self._stop = stop
        self._stop_at_once = stop_at_once
        self._received: list[int] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle, number)
        loop.add_signal_handler(signal.SIGHUP, self._handle_reload, reload)

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal that stopped the process at once; otherwise 0."""
        return 128 + self._received[-1] if len(self._received) > 1 else 0

    def _handle_reload(self, reload: Callable[[], object]) -> None:
        logger.info(
            "SIGHUP: reading secrets, keys, certificates, log_level and log_format again; other settings need a restart"
        )
        reload()

    def _handle(self, number: int) -> None:
        self._received.append(number)
        name = signal.Signals(number).name
        if len(self._received) == 1:
            logger.info("%s: %s", name, self._action)
            self._stop()
        else:
            logger.warning("%s again: stopping at once", name)
            self._stop_at_once()
