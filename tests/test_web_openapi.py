"""`GET /openapi.json` of both apps: all routes are described, and nothing else; the documents are valid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from control_requests import control_app
from identity_provider import IdentityProvider
from named_keys import NamedKey, write_keys
from ssehub.claims import Claims
from ssehub.control_keys import ControlKeys
from ssehub.hub import Hub
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from ssehub.web.control import create_control_app
from ssehub.web.runs import RunCalls

pytestmark = pytest.mark.anyio
KEY = "hT4v9Qw2Zk8LmX3nRb6Yc1Jd5Fg7"
PAGE = "https://app.example"
RUN_PATHS = {"/runs", "/runs/{below:path}"}
STREAM_PATHS = {"/events", "/events/{rest:path}"}


def client_app(**settings: Any) -> Starlette:
    """Return a client app with every path that there can be."""
    return create_client_app(Hub(), tokens=IdentityProvider().tokens(), token_cookie="sse", **settings)


async def document_of(app: Starlette, **headers: str) -> dict[str, Any]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        response = await http.get("/openapi.json", headers=headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def routed(app: Starlette, apart: Iterable[str]) -> set[str]:
    """Return the paths that an app has routes for, without final slashes."""
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    assert paths >= set(apart) and len(paths) > len(set(apart))
    return {path.rstrip("/") for path in paths - set(apart)}


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the operations by method and path."""
    return {f"{method} {path}": one for path, item in document["paths"].items() for method, one in item.items()}


async def test_every_path_of_the_control_app_is_described_and_nothing_else() -> None:
    app = create_control_app(Hub(), tokens=Tokens("a secret of 32 bytes, or rather more"))

    paths = (await document_of(app))["paths"]

    described = {path.rstrip("/") for path in paths if not path.startswith("/runs/")}
    assert described == routed(app, RUN_PATHS)


async def test_every_method_of_a_described_path_is_answered_and_no_other() -> None:
    async with control_app() as app:
        paths = (await document_of(app.app))["paths"]
        for path, item in paths.items():
            response = await app.http.request("TRACE", path.replace("{run}", "r"))

            allowed = {method.lower() for method in response.headers["allow"].split(", ")}
            assert (response.status_code, allowed) == (405, set(item)), path


async def test_every_call_of_runs_is_described() -> None:
    app = create_control_app(Hub(), tokens=Tokens("a secret of 32 bytes, or rather more"))
    (calls,) = {route.endpoint for route in app.routes if isinstance(route, Route) and route.path in RUN_PATHS}
    assert isinstance(calls, RunCalls)

    described = operations(await document_of(app))

    assert {name for name in described if " /runs/" in name} == {
        f"{call.method.lower()} {call.path}" for call in calls.endpoints
    }


async def test_every_path_of_the_client_app_is_described_and_nothing_else() -> None:
    app = client_app()

    described = operations(await document_of(app))

    assert {name.split(" ")[1].rstrip("/") for name in described} == routed(app, STREAM_PATHS) | {"/events"}
    assert set(described) == {
        "get /events/",
        "post /events/stop",
        "post /events/login",
        "delete /events/login",
        "post /events/backchannel-logout",
        "get /openapi.json",
    }


async def test_client_app_describes_only_the_paths_that_its_settings_make() -> None:
    async def authenticate(connection: object) -> Claims | None:
        return None

    document = await document_of(create_client_app(Hub(), authenticate=authenticate))

    assert set(document["paths"]) == {"/events/", "/events/stop", "/openapi.json"}
    assert document["components"]["securitySchemes"] == {}


@pytest.mark.parametrize("key", [None, KEY])
async def test_document_of_the_control_app_is_valid(key: str | None) -> None:
    app = create_control_app(Hub(), tokens=Tokens("a secret of 32 bytes, or rather more"), control_key=key)

    document = await document_of(app, authorization=f"Bearer {key}")

    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == version("ssehub")


async def test_document_of_the_client_app_is_valid() -> None:
    document = await document_of(client_app())

    OpenAPIV31SpecValidator(document).validate()
    assert document["components"]["securitySchemes"]["tokenInCookie"]["name"] == "sse"


async def test_document_names_the_right_of_each_operation() -> None:
    app = create_control_app(Hub(), tokens=Tokens("a secret of 32 bytes, or rather more"), control_key=KEY)

    described = operations(await document_of(app, authorization=f"Bearer {KEY}"))

    assert described["post /emit/"]["security"] == [{"controlKey": ["publish"]}]
    assert described["get /openapi.json"]["security"] == [{"controlKey": []}]
    assert described["get /healthz"]["security"] == []


async def test_fields_that_are_parsed_are_those_that_are_described() -> None:
    async with control_app() as app:
        document = await document_of(app.app)
        for name, operation in operations(document).items():
            for kind, content in operation.get("requestBody", {"content": {}})["content"].items():
                if kind not in ("application/json", "application/x-www-form-urlencoded") or name == "post /runs/{run}":
                    continue
                path = name.split(" ")[1].replace("{run}", "r")
                body = '{"no such field": 1}' if kind == "application/json" else "no+such+field=1"
                headers = {"content-type": kind}

                response = await app.http.request(name.split(" ")[0], path, content=body, headers=headers)

                expected = response.text.removesuffix("\n").removesuffix('"}').rpartition("expected ")[2].split(", ")
                assert set(expected) == properties(content["schema"], document), name


def properties(schema: dict[str, Any], document: dict[str, Any]) -> set[str]:
    """Return the names of all properties that a schema of objects has."""
    if "$ref" in schema:
        return properties(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "anyOf" in schema:
        return set().union(*[properties(one, document) for one in schema["anyOf"]])
    return set(schema.get("properties", {})) if schema["type"] == "object" else set()


async def test_document_of_the_control_app_needs_a_key_but_no_right(tmp_path: Path) -> None:
    key = NamedKey("shop", ["publish"])
    keys = ControlKeys(file=write_keys(tmp_path / "keys.toml", key))
    app = create_control_app(Hub(), tokens=Tokens("a secret of 32 bytes, or rather more"), control_keys=keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        without = await http.get("/openapi.json")
        with_key = await http.get("/openapi.json/", headers=key.headers)

    assert (without.status_code, with_key.status_code) == (401, 200)
    assert with_key.headers["cache-control"] == "private, max-age=300"


async def test_pages_of_cors_origins_may_read_the_document_of_the_client_app() -> None:
    app = client_app(cors_origins=[PAGE])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        response = await http.get("/openapi.json", headers={"Origin": PAGE})
        head = await http.head("/openapi.json/")
        wrong = await http.post("/openapi.json")

    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["cache-control"] == "public, max-age=300"
    assert (head.status_code, head.headers["content-length"]) == (200, response.headers["content-length"])
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    "make",
    [client_app, lambda: create_control_app(Hub(), tokens=Tokens("a secret of 32 bytes, or rather more"))],
    ids=["client", "control"],
)
async def test_document_of_an_app_that_is_mounted_says_below_which_path(make: Callable[[], Starlette]) -> None:
    app = make()
    alone = await document_of(app)
    host = Starlette(routes=[Mount("/my api", app)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(host), base_url="http://127.0.0.1") as http:
        mounted = (await http.get("/my api/openapi.json")).json()

    assert "servers" not in alone
    assert mounted == {"servers": [{"url": "/my%20api"}], **alone}
    OpenAPIV31SpecValidator(mounted).validate()
