"""`GET /events/` without a detour: when the call returns that has read the request, its stream is open.

The app (`client.py`) answers in a task, behind routes and middleware. Here the same functions decide, and whatever they
do not simply allow is left to the app: refusals, streams of runs, pages that may not listen, and all that has to wait.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SSEHubError
from ..hub import Hub
from ..proxies import TrustedProxies
from ..settings import ComebackEnd
from .fast_path import Head
from .logins import StreamRequest, TokenLogin
from .opening import Opening, opening_of
from .origins import ANY
from .stream import STATUS
from .stream_heads import Heads
from .transport import Connection


class FastStreams:
    """The fast path of streams of the hub's log, to clients with a token."""

    method = "GET"
    takes_connection = True

    def __init__(
        self,
        hub: Hub,
        login: TokenLogin,
        proxies: TrustedProxies,
        comeback_end: ComebackEnd,
        heads: Mapping[str | None, Heads],
    ) -> None:
        """`heads` are by the origin of the page that asks for a stream; `*` is any other one."""
        self._hub = hub
        self._login = login
        self._proxies = proxies
        self._comeback_end = comeback_end
        self._heads = heads

    def takes(self, query: bytes) -> bool:
        return True

    def answer(self, head: Head, body: bytes, connection: Connection) -> bool:
        if body:
            return False
        found = self._opening(head, connection.client)
        if found is None:
            return False
        opening, heads = found
        sink = connection.open_stream(cuts=opening.cuts)
        if sink is None:  # the client has left
            return True
        try:
            opening.attach(self._hub, sink, opening.start)
        except SSEHubError:  # a limit is reached
            connection.close_stream()
            return False
        sink.uncork(connection.begin_stream(STATUS, heads.lasting if connection.is_persistent else heads.closing))
        return True

    def _opening(self, head: Head, peer: tuple[str, int] | None) -> tuple[Opening, Heads] | None:
        """Return the stream that can be opened now, and its headers. None if there is anything else to do."""
        hub = self._hub
        if not hub.can_open():
            return None
        client = self._proxies.client(peer, head.headers) if self._proxies else peer
        asked = StreamRequest(head.headers, head.query, client)
        heads = self._heads.get(asked.headers.get("origin")) or self._heads.get(ANY)
        if heads is None:  # the page is of another origin
            return None
        try:
            opening = opening_of(asked, self._login.verify_at_once(asked), hub, self._comeback_end)
        except SSEHubError:
            return None
        return None if opening.run is not None or hub.must_wait(opening.start) else (opening, heads)
