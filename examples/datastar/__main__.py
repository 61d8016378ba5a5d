"""A live page with Datastar: run `python examples/datastar`, then open http://127.0.0.1:8080.

http://127.0.0.1:8080/beta is the same page for Datastar 1.0.0-beta.11, the newest version on npm, whose events and
attributes have other names.

It starts a hub (`ssehub serve`) and a backend, which publishes a number every second. Both end with Ctrl-C. To see how
the page outlives a restart of the hub, run the hub in a terminal of its own, and stop and start it there:

    ssehub serve --cors-origins http://127.0.0.1:8080
    python examples/datastar --without-hub

The variables PORT, HUB_PORT and CONTROL_PORT choose other ports than 8080, 8000 and 8001; SECONDS is the time from one
number to the next, TOKEN_SECONDS the lifetime of tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ssehub import AsyncPublisher
from ssehub.errors import Unavailable
from ssehub.publisher import EventFields

PORT, HUB_PORT, CONTROL_PORT = (
    int(os.environ.get(name, default)) for name, default in (("PORT", 8080), ("HUB_PORT", 8000), ("CONTROL_PORT", 8001))
)
SECONDS = float(os.environ.get("SECONDS", "1"))
TOKEN_SECONDS = int(os.environ.get("TOKEN_SECONDS", "3600"))
HERE = Path(__file__).parent
PAGES = {"/": HERE / "page.html", "/beta": HERE / "beta.html"}

hub_status: int | None = None
"""The exit code of a hub that has ended by itself."""
publisher = AsyncPublisher(f"http://127.0.0.1:{CONTROL_PORT}")
numbers: deque[int] = deque(maxlen=100)
cursor = ""
"""The last id of the newest number's events. The hub sends a page with these `numbers` what was published after it."""


async def count() -> None:
    """Publish one number after the other. While the hub is away, wait for it."""
    global cursor
    run = secrets.token_hex(4)
    for number in itertools.count(1):
        cursor = await publish(number, key=f"{run}-{number}")
        numbers.append(number)
        await asyncio.sleep(SECONDS)


async def publish(number: int, *, key: str) -> str:
    """Publish a number and return its last event's id. With a key, a repeated attempt does not publish it twice."""
    while True:
        try:
            ids = await publisher.emit_many([for_page(number), for_beta(number)], idempotency_key=key)
            return ids[-1]
        except Unavailable:
            await asyncio.sleep(0.5)


def html(number: int) -> str:
    return f"<li>{number}</li>"


def for_page(number: int) -> EventFields:
    data = f"selector #numbers\nmode append\nelements {html(number)}"
    return {"channel": "page", "user_id": "*", "type": "datastar-patch-elements", "data": data}


def for_beta(number: int) -> EventFields:
    data = f"selector #numbers\nmergeMode append\nfragments {html(number)}"
    return {"channel": "beta", "user_id": "*", "type": "datastar-merge-fragments", "data": data}


async def show(request: Request) -> Response:
    """Answer with the page: the numbers so far, and the URL of a stream that begins after them.

    The page asks for it again, to replace its numbers and its stream, when events may be missing and when its token
    expires.
    """
    page = PAGES[request.url.path]
    try:
        token = await publisher.token("visitor", page.stem, expires_in_seconds=TOKEN_SECONDS)
    except Unavailable:
        return Response("The hub can't be reached.", 503)
    query = {"token": token} | ({"since": cursor} if cursor else {})
    stream = f"http://{request.url.hostname}:{HUB_PORT}/events/?{urlencode(query)}"
    text = page.read_text().replace("{{stream}}", stream.replace("&", "&amp;"))
    text = text.replace("{{numbers}}", "".join(map(html, numbers)))
    return HTMLResponse(text, headers={"Cache-Control": "no-store"})


async def run_hub() -> None:
    """Run the hub until this task is cancelled. If the hub ends by itself, stop the backend, too."""
    global hub_status
    ports = ["--bind", f"127.0.0.1:{HUB_PORT}", "--control-bind", f"127.0.0.1:{CONTROL_PORT}"]
    origins = ["--cors-origins", f"http://127.0.0.1:{PORT},http://localhost:{PORT}"]
    command = [sys.executable, "-m", "ssehub", "serve", *ports, *origins]
    hub = await asyncio.create_subprocess_exec(*command, start_new_session=True)  # Ctrl-C reaches only this process
    try:
        hub_status = await hub.wait()
        signal.raise_signal(signal.SIGINT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            hub.terminate()
        await hub.wait()


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(count())]
    if "--without-hub" not in sys.argv:
        tasks.append(asyncio.create_task(run_hub()))
    async with publisher:
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


app = Starlette(routes=[Route(path, show) for path in PAGES], lifespan=lifespan)

if __name__ == "__main__":
    sys.stderr.write(f"\nOpen http://127.0.0.1:{PORT}.\n\n")
    uvicorn.run(app, port=PORT, log_level="warning")
    if hub_status is not None:
        sys.exit(f"the hub has ended by itself, with exit code {hub_status}")
