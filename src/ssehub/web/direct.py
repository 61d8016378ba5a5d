"""Apps whose most frequent requests take no detour by Starlette's router and its middleware.

As soon as somebody adds middleware or an exception handler to such an app, it is an ordinary one: every request goes
through all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from .fast_path import FastPath
from .guard import path_of


class DirectApp(Starlette):
    """Calls the apps in `direct` by their paths, and everything else as Starlette does.

    An app in `direct` needs no lifespan and raises no HTTPException. `fast_paths` are for the server, also by path.
    """

    def __init__(self, direct: Mapping[str, ASGIApp], fast_paths: Mapping[bytes, FastPath], **given: Any) -> None:
        super().__init__(**given)
        self._direct = direct
        self._fast_paths = fast_paths
        self._own = self._parts()

    def _parts(self) -> tuple[object, object]:
        return list(self.user_middleware), dict(self.exception_handlers)

    @property
    def is_changed(self) -> bool:
        """True if somebody has added something that requests have to go through."""
        return self._parts() != self._own

    @property
    def fast_paths(self) -> Mapping[bytes, FastPath]:
        """What a server may answer without calling the app."""
        return {} if self.is_changed else self._fast_paths

    def build_middleware_stack(self) -> ASGIApp:
        whole = super().build_middleware_stack()
        if self.is_changed:
            return whole
        handler = self.exception_handlers.get(Exception)
        direct = {path: ServerErrorMiddleware(app, handler) for path, app in self._direct.items()}

        def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            found = direct.get(path_of(scope)) if scope["type"] == "http" else None
            return (found or whole)(scope, receive, send)

        return app
