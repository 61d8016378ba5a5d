"""Starlette with both apps of a hub in one process; it issues tokens and publishes an event every second.

Start it in this folder, then listen and publish in other terminals:

export CONTROL_KEY=$(openssl rand -base64 32)
uvicorn starlette_app:app --http ssehub.server:HttpProtocol

TOKEN=$(curl -s http://127.0.0.1:8000/token)
curl -N "http://127.0.0.1:8000/sse/events/?token=$TOKEN"
curl -H "Authorization: Bearer $CONTROL_KEY" -d 'userId=*&channel=clock&data=hi' http://127.0.0.1:8000/control/emit/
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from ssehub import Hub, Tokens, create_client_app, create_control_app

hub = Hub()
# Without these variables the values are random: tokens end with the process, and nobody can call the control app.
tokens = Tokens(os.environ.get("SECRET") or secrets.token_urlsafe(32))
control_key = os.environ.get("CONTROL_KEY") or secrets.token_urlsafe(32)


async def token(request: Request) -> PlainTextResponse:
    """Issue a token. A real application would take the user from its own login."""
    return PlainTextResponse(tokens.issue("alex", ["clock"], expires_at=time.time() + 3600))


async def tick() -> None:
    while True:
        await hub.publish(channel="clock", user_id="*", data={"time": time.time()}, type="tick")
        await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with hub:
        ticking = asyncio.create_task(tick())
        yield
        ticking.cancel()


app = Starlette(
    routes=[
        Route("/token", token),
        Mount("/sse", create_client_app(hub, tokens=tokens)),
        Mount("/control", create_control_app(hub, tokens=tokens, control_key=control_key)),
    ],
    lifespan=lifespan,
)
