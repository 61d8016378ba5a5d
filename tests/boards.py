"""The hubs of several workers in one event loop, which ask each other by their real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from fakes import FakeSink
from ssehub.claims import Claims
from ssehub.fanout.origin import origin
from ssehub.fanout.subscriber import Subscriber
from ssehub.hub import Hub
from ssehub.server.board import WorkerBoard
from ssehub.tokens import Tokens
from ssehub.web.board import Answerer
from ssehub.web.control import create_control_app

TOKENS = Tokens("a secret of 32 bytes, or rather more")


def answerer(hub: Hub) -> Answerer:
    return Answerer(hub, TOKENS)


class Workers:
    """The hubs of workers 0, 1 and so on, and the control app of the first one."""

    def __init__(self, hubs: list[Hub], folder: Path, count: int) -> None:
        self.hubs = hubs
        self.folder = folder
        self.board = WorkerBoard(folder, 0, count)
        self.http: httpx.AsyncClient

    def join(
        self,
        worker: int,
        user_id: str,
        *channels: str,
        patterns: tuple[str, ...] = (),
        address: str = "192.0.2.1",
        client: str = "curl/8",
        sink: FakeSink | None = None,
    ) -> Subscriber:
        """Open a stream at `worker`."""
        claims = Claims(user_id, channels or (() if patterns else ("chat",)), patterns=patterns)
        return self.hubs[worker].attach(claims, sink or FakeSink(), origin=origin(address, client))

    async def get(self, path: str) -> dict[str, Any]:
        response = await self.http.get(path)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def refused(self, path: str) -> str:
        """Return the message with which `path` is refused."""
        response = await self.http.get(path)
        assert response.status_code == 400, response.text
        return response.text.rstrip("\n")


@asynccontextmanager
async def workers(folder: Path, count: int = 2, *, absent: int = 0) -> AsyncIterator[Workers]:
    """Run `count` workers, and let the board believe that there are `absent` more."""
    async with AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(Hub()) for _ in range(count)]
        for number, hub in enumerate(hubs):
            await stack.enter_async_context(WorkerBoard(folder, number, count + absent).serving(answerer(hub)))
        found = Workers(hubs, folder, count + absent)
        app = create_control_app(hubs[0], tokens=TOKENS, board=found.board)
        found.http = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8001")
        )
        yield found
