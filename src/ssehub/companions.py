"""Companions of a hub: work that goes on while the hub runs, such as reading keys again."""

from __future__ import annotations

from typing import Protocol

from .fanout.statistics import Statistics


class Companion(Protocol):
    """Runs beside a hub: see `Hub.accompany`."""

    @property
    def problem(self) -> str | None:
        """Why the hub is not ready because of it, for `/readyz`."""

    async def run(self) -> None:
        """Do the work until cancelled. Runs once for each run of a hub. May return earlier."""

    def measure(self, statistics: Statistics) -> None:
        """Write the current values of its statistics."""
