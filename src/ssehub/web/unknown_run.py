"""The response about a run that a client may not watch, which is the same as if there were no such run."""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse, Response

LEAST_SECONDS = 0.05
"""How long after its request this response is sent at the earliest: to look for a run takes less time, and takes
another time if there is one.
"""
TEXT = "there is no run of that name that you may watch\n"


async def unknown_run(began: float) -> Response:
    """Return the response to a request that came when the clock of the event loop was at `began`."""
    await asyncio.sleep(began + LEAST_SECONDS - asyncio.get_running_loop().time())
    return PlainTextResponse(TEXT, 404, headers={"Cache-Control": "no-store"})
