"""aiohttp-sse-client2 in a loop, which reconnects where the library raises an exception instead."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp_sse_client2 import client
from report import LINE_BYTES, URL, ended, error, message, opened

BUFFER_BYTES = LINE_BYTES or 2**18  # the default; a line may have twice as much
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)


async def main() -> None:
    last_id = ""
    async with aiohttp.ClientSession(timeout=TIMEOUT, read_bufsize=BUFFER_BYTES) as session:
        while True:
            source = client.EventSource(
                URL,
                session=session,
                headers={"Last-Event-Id": last_id} if last_id else {},
                on_open=opened,
                on_error=lambda: error("on_error was called"),
            )
            try:
                async with source:
                    async for event in source:
                        message(event.type or "message", event.last_event_id, event.data)
                        last_id = event.last_event_id
            except ConnectionRefusedError as exc:  # status 401
                ended(exc)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as exc:
                error(exc)
            await asyncio.sleep(1)


try:
    asyncio.run(main())
except Exception as exc:  # a line that is too long
    ended(exc)
