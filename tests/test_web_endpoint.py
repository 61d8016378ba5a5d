"""All endpoints of the control app: methods, paths, limits of bodies, and errors as responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import CONTROL_KEY
from control_requests import FORM, JSON, control_app, event_json, form
from ssehub.errors import BrokerUnavailable, Overloaded

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/emit/", "/emit", "/token/", "/token"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_control_answers_other_methods_with_405(method: str, path: str) -> None:
    async with control_app() as app:
        response = await app.http.request(method, path)

        assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/events/", "/", "/emit/x", "/emit//", "/metric"])
async def test_other_paths_are_404(path: str) -> None:
    async with control_app() as app:
        assert (await app.http.get(path)).status_code == 404


async def test_body_over_its_limit_is_refused_before_it_is_complete() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 2**20

    async with control_app() as app:
        response = await asyncio.wait_for(app.http.post("/emit/", content=endless(), headers=FORM), 10)

        assert response.status_code == 413
        assert response.headers["connection"] == "close"


@pytest.mark.parametrize("error", [Overloaded("too many publishers"), BrokerUnavailable("no log")])
async def test_503_says_when_to_try_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async with control_app() as app:

        def fail(publications: object) -> list[str]:
            raise error

        monkeypatch.setattr(app.hub, "publish_at_once", fail)
        to_form = await app.post("/emit/", form())
        to_json = await app.post("/emit/", event_json(), JSON)

        assert (to_form.status_code, to_form.headers["retry-after"], to_form.text) == (503, "1", f"{error}\n")
        assert to_json.json() == {"error": str(error)}


async def test_client_that_leaves_before_its_body_is_complete_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    messages = iter([{"type": "http.request", "body": b"userId", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        raise AssertionError("nothing may be sent to a client that has left")

    async with control_app() as app:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/emit/",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", FORM["content-type"].encode())],
        }
        await app.app(scope, receive, send)

    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        pytest.param([f"Bearer {CONTROL_KEY}", "Bearer wrong"], 200, id="right first"),
        pytest.param(["Bearer wrong", f"Bearer {CONTROL_KEY}"], 401, id="wrong first"),
    ],
)
async def test_first_of_two_headers_of_one_name_counts(authorization: list[str], status: int) -> None:
    async with control_app(control_key=CONTROL_KEY) as app:
        headers = [("content-type", FORM["content-type"])]
        headers += [("authorization", value) for value in authorization]
        response = await app.http.post("/emit/", content="userId=*&channel=chat&data=x", headers=headers)

        assert response.status_code == status
