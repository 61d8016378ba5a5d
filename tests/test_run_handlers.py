"""Runs in the request handlers of FastAPI: a client that leaves in the middle, as a browser does at F5."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from conftest import until
from run_stores import ADDRESS, data_of, ending
from serving import serving
from ssehub import Hub, RunState
from streams import get

pytestmark = pytest.mark.anyio

WORDS = [f"word {number}" for number in range(50)]


async def model() -> AsyncIterator[str]:
    for word in WORDS:
        await asyncio.sleep(0.005)
        yield word


def app_of(hub: Hub) -> FastAPI:
    """The two ways to answer with a model: the obvious one, and the one that survives a reload."""
    app = FastAPI()

    @app.get("/in-the-response")
    async def in_the_response() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            async with hub.run("answer", **ADDRESS) as run:
                async for word in model():
                    await run.append(data=word)
                    yield word

        return StreamingResponse(body())

    @app.get("/in-a-task")
    async def in_a_task() -> StreamingResponse:
        await hub.start_run("answer", model(), **ADDRESS)

        async def body() -> AsyncIterator[str]:
            yield "started"
            await asyncio.Event().wait()

        return StreamingResponse(body())

    return app


async def ask_and_leave(port: int, path: str) -> None:
    """Read the beginning of the answer, then close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get(path).encode())
    async with asyncio.timeout(5):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"\r\n")
    writer.close()
    await writer.wait_closed()


async def test_run_in_a_streaming_response_fails_when_its_client_leaves() -> None:
    async with Hub() as hub, serving(app_of(hub)) as port:
        await ask_and_leave(port, "/in-the-response")
        await until(lambda: hub.runs.totals().states[RunState.FAILED])

        assert await ending(hub, "answer") == ("failed", "cancelled")
        assert len(await data_of(hub, "answer")) < len(WORDS)


async def test_run_in_a_task_of_the_hub_goes_on_when_its_client_leaves() -> None:
    async with Hub() as hub, serving(app_of(hub)) as port:
        await ask_and_leave(port, "/in-a-task")
        await until(lambda: hub.runs.totals().states[RunState.DONE])

        assert await data_of(hub, "answer") == WORDS
