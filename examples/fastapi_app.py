"""FastAPI with a mounted hub that uses the application's own login instead of tokens.

Start it in this folder (needs `pip install fastapi`), then log in, listen and publish in other terminals:

uvicorn fastapi_app:app --http ssehub.server:HttpProtocol

curl -c jar -d name=alex http://127.0.0.1:8000/login
curl -N -b jar http://127.0.0.1:8000/sse/events/
curl -b jar -H 'Content-Type: application/json' -d '{"to": "*", "text": "hi"}' http://127.0.0.1:8000/messages
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Cookie, FastAPI, Form, HTTPException, Response
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from ssehub import Claims, Hub, create_client_app

hub = Hub()
sessions: dict[str, str] = {}


async def authenticate(connection: HTTPConnection) -> Claims | None:
    """Identify the user of a stream by the session cookie that all other requests use."""
    name = sessions.get(connection.cookies.get("session", ""))
    return Claims(user_id=name, channels=("chat",)) if name else None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with hub:
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/sse", create_client_app(hub, authenticate=authenticate))


class Message(BaseModel):
    to: str
    text: str


@app.post("/login")
async def login(name: Annotated[str, Form()], response: Response) -> dict[str, str]:
    session = secrets.token_urlsafe(16)
    sessions[session] = name
    response.set_cookie("session", session, httponly=True, samesite="strict")
    return {"name": name}


@app.post("/messages")
async def send(message: Message, session: Annotated[str, Cookie()] = "") -> dict[str, str]:
    if session not in sessions:
        raise HTTPException(401)
    data = {"from": sessions[session], "text": message.text}
    return {"id": await hub.publish(channel="chat", user_id=message.to, data=data, type="message")}
