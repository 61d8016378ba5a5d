"""Apps served in the event loop of the test, and clients of them, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from conftest import until
from ssehub.server import HttpProtocol
from streams import unchunked


@asynccontextmanager
async def serving(app: ASGIApp, protocol: Any = HttpProtocol, **options: Any) -> AsyncIterator[int]:
    """Serve `app` with one of uvicorn's protocols in this event loop; yield the port."""
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, access_log=False, **options)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await until(lambda: not state.tasks)


class Client:
    """A request over a socket, and the response as far as it was read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.text = ""

    async def read_until(self, text: str) -> str:
        """Return everything received so far, once `text` is in it."""
        async with asyncio.timeout(5):
            while text not in self.text:
                received = await self.reader.read(65_536)
                assert received, self.text
                self.text += received.decode()
        return self.text

    async def read_to_end(self) -> str:
        """Return everything, once the connection has ended."""
        async with asyncio.timeout(10):
            while received := await self.reader.read(65_536):
                self.text += received.decode()
        return self.text

    @property
    def status(self) -> int:
        """The status of the response, whose head has been read."""
        return int(self.text.split(" ", 2)[1])

    @property
    def body(self) -> str:
        """The body as far as it was read, without the framing of chunks."""
        head, _, rest = self.text.partition("\r\n\r\n")
        return unchunked(rest.encode()).decode() if "transfer-encoding: chunked" in head.lower() else rest

    @property
    def is_complete(self) -> bool:
        """True if a chunked response has ended with its last chunk."""
        return self.text.endswith("\r\n0\r\n\r\n")


@asynccontextmanager
async def requesting(
    port: int, path: str, *headers: str, method: str = "GET", version: str = "1.1"
) -> AsyncIterator[Client]:
    """Send a request without a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", *headers, "", ""]).encode())
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
