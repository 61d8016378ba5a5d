"""Streams of the control app, which operators follow: sse-starlette sends them, and cuts off readers that do not read.

They have neither history nor ids. A reader that comes back sees what happens from then on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import HubClosed, Overloaded
from ..event import SEPARATOR
from ..hub import Hub
from ..loglimit import limited_logger
from .addresses import client_of
from .stream import END
from .transport import closing_of

logger = limited_logger("ssehub.control")

PING_SECONDS = 15
READ_SECONDS = 10.0
"""A reader that has read nothing for so long, while its buffers are full, is cut off."""


class Readers:
    """The readers of one kind of stream, of whom there may be `most`. Others are told `refusal`."""

    def __init__(self, hub: Hub, most: int, refusal: str) -> None:
        self._hub = hub
        self._most = most
        self._refusal = refusal
        self._count = 0

    def require_room(self) -> None:
        """Raise HubClosed if the hub drains, and Overloaded if there is no room for another reader."""
        if self._hub.is_draining:
            raise HubClosed("the hub is draining and about to stop")
        if self._count >= self._most:
            raise Overloaded(self._refusal)

    def add(self, events: AsyncGenerator[bytes, None]) -> Following:
        """Return the response that sends `events` to one more reader. It counts from now on, until it has been sent."""
        self._count += 1
        return Following(events, self._leave)

    def _leave(self) -> None:
        self._count -= 1


class Following(EventSourceResponse):
    """Sends `events`, which are encoded, until they end, or the reader leaves or reads nothing any more.

    `on_end` is called when that is over.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], on_end: Callable[[], None]) -> None:
        super().__init__(events, sep=SEPARATOR, ping=PING_SECONDS, send_timeout=READ_SECONDS)
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "HEAD":
                await Response(headers=dict(self.headers))(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
                if self.active:  # sse-starlette has stopped because the server exits, and leaves the response as it is
                    await send(END)
        except SendTimeoutError:
            logger.info("%s cut off: nothing read for %g s, from %s", scope["path"], READ_SECONDS, client_of(scope))
            closing = closing_of(scope, receive)
            if closing is not None:
                closing.drop()
        finally:
            self._on_end()
            await self._events.aclose()
