"""The apps for other people's servers, as the environment configures them: `uvicorn ssehub.asgi:client_app`.

`client_app` is a whole hub: while it runs, the control app is served beside it on SSEHUB_CONTROL_BIND. `app` is both in
one, control under `/control/`; `control_app` is control alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from .config import load_config
from .errors import ConfigError, SSEHubError
from .server.apps import create_apps
from .server.process import at_work, offer_drop

__all__ = ["app", "client_app", "control_app"]

STARTUP_FAILURE = 3
"""The exit code by which uvicorn's supervisor knows that a worker would fail again: it starts no other."""


class Served:
    """`app` with a lifespan that, when it can't begin, says so in one line, and that can drop connections."""

    def __init__(self, app: ASGIApp, lifespan: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._app = app
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            offer_drop(scope, send)
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncExitStack() as stack:
            failure = ""
            try:
                await stack.enter_async_context(self._lifespan())
            except SSEHubError as exc:
                failure = f"ssehub: {exc}"
            if failure:  # said when the exception is done with: hypercorn raises here, and would show ours, too
                await send({"type": "lifespan.startup.failed", "message": failure})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _refuse() -> AbstractAsyncContextManager[None]:
    raise ConfigError("asgi:app serves control on the public port: set SSEHUB_CONTROL_KEY, or run asgi:client_app")


try:
    _config = load_config({})
    _apps = create_apps(_config, drains_on_exit=True)
except ConfigError as exc:
    sys.stderr.write(f"ssehub: {exc}\n")
    sys.exit(STARTUP_FAILURE)

_at_work = partial(at_work, _apps.hub, _config)

client_app = Served(_apps.client, partial(_at_work, serves=_apps.control))
control_app = Served(_apps.control, _at_work)
app = Served(_apps.combined, _refuse if _config.control_key is None else partial(_at_work, holds=True))
