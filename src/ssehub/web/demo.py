"""The page of `ssehub --demo`: it hears the events of one channel, and shows the command that sends one."""

from __future__ import annotations

import json
import time
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..address import is_loopback_host
from ..fanout.refusals import Refusal
from ..tokens import Tokens
from .refusals import refusals_of

CHANNEL = "demo"
USER_ID = "demo"
TOKEN_SECONDS = 24 * 3600
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PLACE = '<script type="application/json" id="hub">{}</script>'
"""The element of the page that takes the token and the command."""


def demo_route(tokens: Tokens, control_url: str) -> Route:
    """Return the route of the page at `/`. Each load of it gets a token for the channel `demo` only."""

    async def page(request: Request) -> Response:
        # A page of another site may have rebound its name to this machine; it is not given a token.
        if not is_loopback_host((request.url.hostname or "").lower()):
            refusals_of(request.scope).refuse(Refusal.PAGE, request.scope, "the demo was opened by another name")
            return PlainTextResponse("open the demo by a loopback name, such as 127.0.0.1 or localhost\n", 403)
        token = tokens.issue(USER_ID, [CHANNEL], expires_at=time.time() + TOKEN_SECONDS)
        hub = json.dumps({"token": token, "command": emit_command(control_url)})
        return HTMLResponse(_page().replace(_PLACE, _PLACE.replace("{}", hub)), headers=HEADERS)

    return Route("/", page)


def emit_command(control_url: str) -> str:
    """Return the curl command that sends an event to the page."""
    return f"curl -d 'userId=*&channel={CHANNEL}' --data-urlencode 'data=hello' {control_url}/emit/"


@cache
def _page() -> str:
    return files(__package__).joinpath("hello.html").read_text()
