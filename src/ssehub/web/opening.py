"""What a request for a stream asks for: its query and headers, checked against what the request may listen to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..claims import Claims
from ..errors import InvalidRequest
from ..fanout.origin import Origin
from ..fanout.resume import NOW, Start
from ..fanout.sinks import Sink
from ..fanout.subscriber import Subscriber
from ..hub import Hub
from ..settings import ComebackEnd
from .addresses import address_of, origin_of
from .ends import is_cut
from .logins import StreamRequest
from .query import QUERY_BOUNDS, RUN
from .requests import RequestHeaders
from .run_request import AI_SDK, RunRequest

CURSOR_PARAMETERS = ("lastEventId", "last_event_id", "lastEventID")


class Opening(NamedTuple):
    """A stream that may be opened, as far as that is decided by the request alone."""

    claims: Claims
    """What it is sent: what the login grants, narrowed to the channels that the query names."""
    start: Start
    """Where it begins in the hub's log."""
    run: RunRequest | None
    """The run that it is sent in place of the hub's log."""
    address: str | None
    """What the limits on streams count as its address; None if there are no limits."""
    origin: Origin
    cuts: bool
    """True if its response is cut off when the client is to come back."""
    uses_datastar: bool

    def attach(self, hub: Hub, sink: Sink, start: Start) -> Subscriber:
        """Open the stream, from `start` on. Raises what `Hub.attach` raises."""
        return hub.attach(self.claims, sink, start, self.address, uses_datastar=self.uses_datastar, origin=self.origin)


def opening_of(request: StreamRequest, claims: Claims, hub: Hub, comeback_end: ComebackEnd) -> Opening:
    """Return what `request` asks for, whose login has granted `claims`.

    Raises TokenError if the token has been revoked, NotGranted, and InvalidRequest.
    """
    hub.require_access(claims)
    query, headers = request.query, request.headers
    if query is None:
        raise InvalidRequest(f"the query has more than {QUERY_BOUNDS}")
    fields = query.fields
    cuts = is_cut(fields.get("end"), comeback_end, headers)
    uses_datastar = _uses_datastar(headers, fields)
    cursor = cursor_of(headers, fields)
    start, run = NOW, None
    if RUN in fields:
        run = RunRequest.parse(query, cursor)
    else:
        if cursor is not None or "since" in fields or "on_reset" in fields:
            start = Start.parse(cursor, fields.get("since"), fields.get("on_reset"))
        if query.has_channels:
            claims = claims.narrowed(query.channels())
    address = address_of(request.client) if hub.limits_streams else None
    return Opening(claims, start, run, address, origin_of(request.client, headers), cuts, uses_datastar)


def cursor_of(headers: RequestHeaders, query: Mapping[str, str]) -> str | None:
    """Return the cursor from the header of the HTML standard (9.2.4), or from what polyfills send instead."""
    cursor = headers.get("last-event-id")
    if cursor:
        # Browsers send it as UTF-8 (HTML, 9.2.3), but ASGI headers are decoded as Latin-1.
        return cursor.encode("latin-1").decode(errors="replace")
    for name in CURSOR_PARAMETERS:
        if value := query.get(name):
            return value
    return None


def _uses_datastar(headers: RequestHeaders, query: Mapping[str, str]) -> bool:
    """True if the page is one of Datastar's, which sends a header of its own. Raises InvalidRequest."""
    dialect = query.get("dialect")
    if dialect == AI_SDK:
        if RUN not in query:
            raise InvalidRequest("dialect 'ai-sdk' is one of runs: give run, too")
        return False
    if dialect not in (None, "datastar"):
        dialects = "datastar or ai-sdk" if RUN in query else "datastar"
        raise InvalidRequest(f"unknown dialect {dialect[:40]!r}: use {dialects}, or leave it out")
    return dialect is not None or "datastar-request" in headers
