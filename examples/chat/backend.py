"""The chat's backend: it keeps the sessions and messages, and requests tokens from the hub. It keeps no stream open."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ssehub import AsyncPublisher

CHANNEL = "chat"
HUB_URL = os.environ.get("CHAT_HUB_URL", "http://127.0.0.1:8000")
TOKEN_SECONDS = int(os.environ.get("CHAT_TOKEN_SECONDS", "600"))
MAX_NAME = 30
MAX_TEXT = 2_000


@dataclass
class Session:
    name: str
    seen: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """True if the page has gone without leaving: an open one asks for its state before its token expires."""
        return time.monotonic() - self.seen > 2 * TOKEN_SECONDS


publisher = AsyncPublisher(os.environ.get("CHAT_CONTROL_URL", "http://127.0.0.1:8001"))
page = (Path(__file__).parent / "page.html").read_text().replace("{{hub}}", HUB_URL)
sessions: dict[str, Session] = {}
said: deque[dict[str, Any]] = deque(maxlen=100)
cursor = ""
"""The id of an event; `state` includes everything published up to it."""


async def emit(user_id: str | list[str], type: str, data: dict[str, Any]) -> None:
    global cursor
    cursor = await publisher.emit(channel=CHANNEL, user_id=user_id, data=data, type=type)


def name_of(request: Request) -> str | None:
    session = sessions.get(request.cookies.get("session", ""))
    if session is None:
        return None
    session.seen = time.monotonic()
    return session.name


def people() -> set[str]:
    return {session.name for session in sessions.values()}


async def end_session(key: str) -> None:
    """Let others have the name."""
    if session := sessions.pop(key, None):
        await emit("*", "left", {"name": session.name})


async def show_page(request: Request) -> Response:
    return HTMLResponse(page)


async def login(request: Request) -> Response:
    name = str((await request.json()).get("name", "")).strip()[:MAX_NAME]
    for key in [key for key, session in sessions.items() if session.is_over]:
        await end_session(key)
    if not name or name == "*" or name in people():
        return JSONResponse({"error": "Choose another name, please."}, 409)
    session = secrets.token_urlsafe(16)
    sessions[session] = Session(name)
    await emit("*", "joined", {"name": name})
    response = JSONResponse(await state(name))
    response.set_cookie("session", session, httponly=True, samesite="strict")
    return response


async def leave(request: Request) -> Response:
    await end_session(request.cookies.get("session", ""))
    response = Response(status_code=204)
    response.delete_cookie("session", httponly=True, samesite="strict")
    return response


async def show_state(request: Request) -> Response:
    """Answer with a new token and the whole state. The page asks for it after a reset, or when its token expires.

    The page opens its stream with `cursor`, so the hub sends everything that is published between this answer and then.
    """
    name = name_of(request)
    return JSONResponse(await state(name)) if name else Response(status_code=401)


async def state(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "cursor": cursor,
        "token": await publisher.token(name, CHANNEL, expires_in_seconds=TOKEN_SECONDS),
        "people": sorted(people()),
        "messages": [message for message in said if name in (message["from"], message["to"]) or message["to"] == "*"],
    }


async def say(request: Request) -> Response:
    name = name_of(request)
    if name is None:
        return Response(status_code=401)
    body = await request.json()
    text, to = str(body.get("text", "")).strip()[:MAX_TEXT], str(body.get("to", "*"))
    if not text:
        return Response(status_code=400)
    message = {"key": secrets.token_urlsafe(8), "from": name, "to": to, "text": text}
    said.append(message)  # before it is published: a state with the id of its event must contain the message
    await emit("*" if to == "*" else [to, name], "said", message)
    return Response(status_code=204)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with publisher:
        yield


app = Starlette(
    routes=[
        Route("/", show_page),
        Route("/login", login, methods=["POST"]),
        Route("/leave", leave, methods=["POST"]),
        Route("/state", show_state, methods=["POST"]),
        Route("/messages", say, methods=["POST"]),
    ],
    lifespan=lifespan,
)
