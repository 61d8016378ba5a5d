"""Requests made by hand through the ASGI interface: they can carry any bytes, and end where a stream would begin."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.types import ASGIApp


class Answer(NamedTuple):
    """A response. `query_left` is the query in the scope when the response starts, as an access log shows it."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    query_left: bytes


async def head(app: ASGIApp, query: bytes = b"", **headers: bytes) -> Answer:
    """Return the response to `HEAD /events/`, which never begins a stream."""
    scope = {"type": "http", "method": "HEAD", "path": "/events/", "query_string": query}
    scope["headers"] = [(name.encode(), value) for name, value in headers.items()]
    seen: list[Any] = []

    async def send(message: Any) -> None:
        seen.append({**message, "query_left": scope["query_string"]})

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await app(scope, receive, send)
    body = b"".join(message["body"] for message in seen[1:])
    return Answer(seen[0]["status"], dict(seen[0]["headers"]), body, seen[0]["query_left"])
