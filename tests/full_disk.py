"""A hub whose log is on a full file system, which is then freed: `full_disk.py FOLDER`.

Run it in user and mount namespaces of its own: it mounts a file system of 1 MiB on FOLDER. Prints the answers as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx

from small_disk import small_disk
from ssehub.brokers import create_broker
from ssehub.hub import Hub
from ssehub.tokens import Tokens
from ssehub.web.control import create_control_app


async def main(folder: Path) -> None:
    url = f"sqlite:///{folder}/log.db"
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * 500_000)
    answered = 0
    async with Hub(create_broker(url)) as hub:
        app = create_control_app(hub, tokens=Tokens("a secret of 32 bytes or more, for this test"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8001") as http:

            async def emit() -> httpx.Response:
                body = {"userId": "*", "channel": "chat", "data": "x" * 10_000}
                return await http.post("/emit/", json=body)

            while (response := await emit()).status_code == 200:
                answered += 1
            not_ready = (await http.get("/readyz")).status_code
            ballast.unlink()
            after = (await emit()).status_code
            ready = (await http.get("/readyz")).status_code
    async with Hub(create_broker(url)) as hub:
        stored = hub.statistics.history_events
    result = {"refused": response.status_code, "why": response.text, "not ready": not_ready, "after": after}
    sys.stdout.write(json.dumps({**result, "ready again": ready, "lost": answered + 1 - stored}))


with small_disk(sys.argv[1]) as folder:
    asyncio.run(main(folder))
