"""aiosseclient. It does not reconnect: this program does, with the last id.

It cannot wait as long as `retry:` says: the library only reports that there was one.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiosseclient import aiosseclient
from report import URL, ended, error, message


async def main() -> None:
    last_id = None
    while True:
        try:
            async for event in aiosseclient(URL, last_id=last_id, raise_for_status=True):
                message(event.event, event.id, event.data)
                last_id = event.id or last_id
            error("the response has ended")
        except aiohttp.ClientResponseError as exc:
            ended(exc)
        except aiohttp.ClientError as exc:
            error(exc)
        await asyncio.sleep(1)


try:
    asyncio.run(main())
except Exception as exc:  # a line that is too long
    ended(exc)
