"""The server that sse-starlette's README suggests: a queue per client, read by its `EventSourceResponse`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

clients: set[asyncio.Queue[str]] = set()


async def events(request: Request) -> Response:
    queue: asyncio.Queue[str] = asyncio.Queue()
    clients.add(queue)

    async def stream() -> AsyncIterator[ServerSentEvent]:
        try:
            while True:
                yield ServerSentEvent(data=await queue.get())
        finally:
            clients.discard(queue)

    return EventSourceResponse(stream())


async def emit(request: Request) -> Response:
    text = (await request.body()).decode()
    for queue in clients:
        queue.put_nowait(text)
    return PlainTextResponse("OK")


app = Starlette(routes=[Route("/events/", events), Route("/emit/", emit, methods=["POST"])])
