"""The client app as other projects create it: its arguments, and CORS."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from conftest import SECRET
from ssehub import Claims, Hub, Tokens, create_client_app
from ssehub.errors import ConfigError

pytestmark = pytest.mark.anyio

TOKENS = Tokens(SECRET)
FAR = 9_999_999_999


async def by_cookie(connection: HTTPConnection) -> Claims | None:
    return None


@pytest.mark.parametrize("given", [{}, {"tokens": TOKENS, "authenticate": by_cookie}], ids=["neither", "both"])
async def test_client_app_needs_either_tokens_or_authenticate(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="either tokens or authenticate"):
        create_client_app(Hub(), **given)


async def test_cors_is_off_by_default() -> None:
    app = create_client_app(Hub(), tokens=TOKENS, drains_on_exit=False)
    origin = {"origin": "https://app.example", "access-control-request-method": "GET"}
    token = {"token": TOKENS.issue("alex", ["chat"], expires_at=FAR)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub") as http:
        answers = [
            await http.options("/events/", headers=origin),
            await http.head("/events/", headers=origin, params=token),
            await http.get("/events/", headers=origin),
        ]

    assert [answer.status_code for answer in answers] == [204, 200, 401]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)
