"""The health checks of a load balancer, which shutdown waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

from ..hub import Hub


class HealthChecks:
    """Wraps the control app, and knows when a load balancer has seen that the hub drains.

    A load balancer sends requests to this node until its next health check. If the ports closed before that check, a
    publisher's request could arrive on a connection that is just being closed, and nobody could tell whether its event
    was stored.
    """

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self._app = app
        self._hub = hub
        self._times: deque[float] = deque(maxlen=2)
        self._have_seen_draining = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/readyz":
            self._times.append(asyncio.get_running_loop().time())
            if self._hub.is_draining:
                self._have_seen_draining.set()

    async def wait_until_seen(self) -> None:
        """Wait until a check has been answered "not ready", or is overdue. Return at once if there are no checks."""
        if len(self._times) == 2:
            before, last = self._times
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(last + 2 * (last - before)):
                    await self._have_seen_draining.wait()
