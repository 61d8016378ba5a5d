"""Our HTTP protocol in the event loop of a test, for any app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from ssehub.server import HttpProtocol
from ssehub.settings import RequestLimits


@asynccontextmanager
async def served(
    app: ASGIApp, limits: RequestLimits = RequestLimits(), **options: Any
) -> AsyncIterator[tuple[tuple[str, int], ServerState]]:
    """Serve `app` through our protocol in this event loop; yield the address and the state of the server."""
    config = uvicorn.Config(app, http=HttpProtocol, lifespan="off", **options)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config=config, server_state=state, app_state={}, limits=limits), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname(), state
    finally:
        server.close()
