"""aiohttp-sse-client2, as its README shows."""

from __future__ import annotations

import asyncio

from aiohttp_sse_client2 import client
from report import URL, ended, error, message, opened


async def main() -> None:
    source = client.EventSource(URL, on_open=opened, on_error=lambda: error("on_error was called"))
    async with source:
        async for event in source:
            message(event.type or "message", event.last_event_id, event.data)


try:
    asyncio.run(main())
except Exception as exc:
    ended(exc)
ended("the iteration is over")
