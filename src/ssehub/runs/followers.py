"""The listeners of each run on this node, which its store tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..loglimit import limited_logger
from .entries import RunEvent
from .model import Run
from .store import RunListener

logger = limited_logger("ssehub.runs")


class Followers:
    """The listeners of each name, in the order in which they began."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[RunListener, None]] = {}

    def __contains__(self, name: str) -> bool:
        """True if anyone follows `name`."""
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        """Yield the names that are followed."""
        return iter(self._by_name)

    def add(self, name: str, listener: RunListener) -> None:
        self._by_name.setdefault(name, {})[listener] = None

    def remove(self, name: str, listener: RunListener) -> None:
        """Remove `listener`, if it is there. It is not called again."""
        listeners = self._by_name.get(name)
        if listeners is not None:
            listeners.pop(listener, None)
            if not listeners:
                del self._by_name[name]

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        """Tell those that follow `run`: see RunListener."""
        listeners = self._by_name.get(run.name)
        if listeners is None:
            return
        for listener in list(listeners):
            if listener in listeners:
                try:
                    listener.advanced(run, first, events)
                except Exception:
                    logger.exception("a listener of a run failed")

    def vanished(self, run: Run) -> None:
        """Tell those that follow `run`: see RunListener."""
        self._tell(run.name, lambda listener: listener.vanished(run))

    def claimed(self, name: str, connection: str) -> None:
        """Tell those that follow the run `name`: see RunListener."""
        self._tell(name, lambda listener: listener.claimed(connection))

    def _tell(self, name: str, tell: Callable[[RunListener], None]) -> None:
        listeners = self._by_name.get(name)
        if listeners is None:
            return
        for listener in list(listeners):
            if listener in listeners:
                try:
                    tell(listener)
                except Exception:
                    logger.exception("a listener of a run failed")
