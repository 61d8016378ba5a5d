"""What the open requests of one publisher share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .publisher_buffering import Buffering
from .publisher_http import Node
from .publisher_request import Rhythm
from .publisher_route import Patience


class Links:
    """The `nodes` of a hub, their timing, and what is known of proxies, for writers whose tasks it can end."""

    def __init__(self, nodes: Sequence[Node], patience: Patience, rhythm: Rhythm | None = None) -> None:
        self.nodes = nodes
        self.patience = patience
        self.rhythm = rhythm or Rhythm()
        self.buffering = Buffering()
        self.tasks: set[asyncio.Task[None]] = set()
        """Those of the writers at work: also after their end was cancelled, until what they have is stored."""

    async def aclose(self) -> None:
        """Break off what is under way in this event loop."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self.tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
