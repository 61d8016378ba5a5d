"""Fast paths: requests that our server answers without an ASGI scope, routes, middleware and a task.

All of these cost more than what most requests ask for. A fast path applies the same rules by the same functions, and
leaves what is unusual to the app. Only our launcher uses it, for apps that it has built and nobody has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from .requests import RequestHeaders, parsed_headers
from .transport import Connection

Headers = Sequence[tuple[bytes, bytes]]
"""As in ASGI, with names in lower case."""


class Head:
    """The query and the headers of a request. If it was admitted, an equal request may come with the same object."""

    __slots__ = ("_named", "admitted_at", "headers", "query")

    def __init__(self, query: bytes, headers: Headers) -> None:
        self.query = query
        self.headers = headers
        self._named: RequestHeaders | None = None
        self.admitted_at: Sequence[Any] | None = None
        """The address that was called when the request was admitted. There, the caller of an equal one is as well."""

    @property
    def named(self) -> RequestHeaders:
        """The headers by name, see `parsed_headers`."""
        if self._named is None:
            self._named = parsed_headers(self.headers)
        return self._named


class FastPath(Protocol):
    """Answers the requests with one method for one path."""

    method: str
    takes_connection: bool
    """True if a stream may be the answer, so that nothing may follow the request."""

    def takes(self, query: bytes) -> bool:
        """Return True if a request with this query becomes whole. A body that stays open is for the app."""

    def answer(self, head: Head, body: bytes, connection: Connection) -> bool:
        """Answer a whole request on `connection`, now or later, and return True; or return False: the app answers it.

        Before it returns False, it changes and counts nothing. Raises nothing.
        """


NO_FAST_PATHS: Mapping[bytes, FastPath] = MappingProxyType({})
