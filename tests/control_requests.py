"""A control app without a server, and the bodies that tests send to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import httpx
from starlette.applications import Starlette

from fakes import FakeSink
from ssehub.claims import Claims
from ssehub.hub import Hub
from ssehub.tokens import Tokens
from ssehub.web.control import create_control_app

NOW = 1_700_000_000.0
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
MULTIPART = {"content-type": "multipart/form-data; boundary=XX"}


class ControlApp:
    """A control app in this event loop. Its hub has two streams: `sink` on `chat`, `other` on `chat` and `news`."""

    def __init__(self, app: Starlette, hub: Hub, tokens: Tokens, http: httpx.AsyncClient) -> None:
        self.app = app
        self.hub = hub
        self.tokens = tokens
        self.http = http
        self.sink = FakeSink()
        hub.attach(Claims("alex", ("chat",)), self.sink)
        self.other = FakeSink()
        hub.attach(Claims("kim", ("chat", "news")), self.other)

    async def post(self, path: str, body: bytes | str = b"", headers: dict[str, str] = FORM) -> httpx.Response:
        return await self.http.post(path, content=body, headers=headers)

    async def metrics(self) -> str:
        return (await self.http.get("/metrics")).text

    async def received(self) -> list[str]:
        """Return the data of all events that `sink` has received."""
        await asyncio.sleep(0.005)
        return self.sink.data()


@asynccontextmanager
async def control_app(**settings: Any) -> AsyncIterator[ControlApp]:
    tokens = Tokens("a secret of 32 bytes, or rather more", now=lambda: NOW)
    async with Hub() as hub:
        app = create_control_app(hub, tokens=tokens, now=lambda: NOW, **settings)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
            yield ControlApp(app, hub, tokens, http)


def form(**fields: str) -> str:
    return urlencode({"userId": "alex", "channel": "chat", "data": "x", **fields})


def multipart(*fields: tuple[str, str]) -> bytes:
    """Return a form as PHP's curl sends it for an array. A name like `data"; filename="f` makes the part a file."""
    parts = [f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    return ("".join(parts) + "--XX--\r\n").encode()


def event_json(**fields: object) -> str:
    return json.dumps({"userId": "*", "channel": "chat", "data": "x", **fields})
