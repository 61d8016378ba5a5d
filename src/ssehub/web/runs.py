"""`/runs/…` of the control app: finds the call for a path and a method.

    /runs/                GET
    /runs/NAME            PUT, POST, GET, DELETE
    /runs/NAME/finish     POST
    /runs/NAME/stop       POST
    /runs/NAME/events     GET

The name is read from the path as it was sent, so that an escaped `/` in it does not look like the end of the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..fanout.refusals import ControlRefusal
from .append import AppendToRun
from .escapes import unescape
from .ingress import Ingress
from .requests import NAME
from .run_calls import PATH, CreateRun, DeleteRun, FinishRun, GetRun, ListRuns, ReadRun, StopRun

NO_PATH = "unknown path: use /runs/, /runs/NAME, or below it finish, stop or events; a name can't contain '/'"
MAX_NAME_BYTES = 3 * 4 * 255
"""The longest name, percent-encoded."""


class RunCalls:
    """An ASGI app for everything below `/runs`, with and without a last slash."""

    path = "/runs"

    def __init__(self, ingress: Ingress) -> None:
        hub, limits = ingress.hub, ingress.limits
        self._refusals = ingress.refusals
        self.endpoints = (
            ListRuns(hub),
            AppendToRun(ingress),
            CreateRun(hub, limits),
            GetRun(hub),
            DeleteRun(hub, limits),
            FinishRun(hub, limits),
            StopRun(hub, limits),
            ReadRun(hub),
        )
        self._of_all = self._at("/runs/")
        self._of_one = self._at(PATH)
        self._below = {name: self._at(f"{PATH}/{name.decode()}") for name in (b"finish", b"stop", b"events")}

    def _at(self, path: str) -> Mapping[str, ASGIApp]:
        """Return the endpoints of a path, by method."""
        return {endpoint.method: endpoint for endpoint in self.endpoints if endpoint.path == path}

    def routes(self) -> list[Route]:
        """Return the routes of all paths."""
        below = Route(f"{self.path}/{{below:path}}", self)
        below.path_regex = re.compile(f"^{self.path}/(?P<below>.*)$", re.DOTALL)  # also those with a line break
        return [below, Route(self.path, self)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, below = _path_below(scope).removesuffix(b"/").partition(b"/")
        calls = self._calls(name, below)
        if calls is None:
            self._refusals.refuse(ControlRefusal.NOT_FOUND, scope)
            response: Response = JSONResponse({"error": NO_PATH}, 404)
            await response(scope, receive, send)
            return
        method = scope["method"]
        call = calls.get("GET" if method == "HEAD" else method)
        if call is None:
            self._refusals.refuse(ControlRefusal.METHOD, scope)
            allow = ", ".join(calls)
            response = JSONResponse({"error": f"method not allowed: use {allow}"}, 405, {"Allow": allow})
            await response(scope, receive, send)
            return
        try:
            scope[NAME] = unescape(name).decode() if len(name) <= MAX_NAME_BYTES else name.decode()
        except UnicodeDecodeError:
            self._refusals.refuse(ControlRefusal.INVALID, scope)
            response = JSONResponse({"error": "the run's name is not valid UTF-8: percent-encode it in UTF-8"}, 400)
            await response(scope, receive, send)
            return
        await call(scope, receive, send)

    def _calls(self, name: bytes, below: bytes) -> Mapping[str, ASGIApp] | None:
        """Return the calls of a path, by method; None if there is no such path."""
        if not name:
            return None if below else self._of_all
        return self._below.get(below) if below else self._of_one


def _path_below(scope: Scope) -> bytes:
    """Return the path below `/runs/`, with its escapes."""
    path, root = scope["path"], scope.get("root_path", "")
    raw: bytes = scope.get("raw_path") or quote(path).encode()
    parts = raw.split(b"/", 2 + (root.count("/") if path.startswith(root) else 0))
    return parts[-1] if len(parts) > 2 and parts[-2] == b"runs" else b""
