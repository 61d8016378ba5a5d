"""`POST /disconnect/`: what it accepts and what it refuses. `test_fanout_disconnect.py` shows what it does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from conftest import SECRET
from ssehub.testing import ManualHub
from ssehub.tokens import Tokens
from ssehub.web.control import create_control_app

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "channel is missing: name a user, a channel, or both"),
        ({"userId": "*"}, 400, "channel is missing"),
        ({"userId": ""}, 400, "userId is empty"),
        ({"userId": 5}, 400, "userId must be a string"),
        ({"userId": None}, 400, "userId is null"),
        ({"userId": [], "channel": "chat"}, 400, "userId is an empty list"),
        ({"userId": "a", "channel": []}, 400, "channel is an empty list"),
        ({"userId": "a", "retry": -1}, 400, "retry -1 is not a whole number"),
        ({"userId": "a", "data": "x"}, 400, "data"),
        ({"userId": ["a", "b"]}, 200, ""),
    ],
)
async def test_disconnect_over_http(body: dict[str, Any], status: int, says: str) -> None:
    async with ManualHub() as hub:
        app = create_control_app(hub, tokens=Tokens(SECRET))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            answer = await client.post("/disconnect/", json=body)
            form = await client.post("/disconnect", data={"channel": "chat", "retry": "5"})

        assert answer.status_code == status and says in answer.text
        assert (form.status_code, form.text) == (200, "OK")
