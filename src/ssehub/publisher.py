"""An HTTP client of the control app: publishes to a hub in another process, and gets tokens from it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack
from uuid import uuid4

from .publisher_calls import Call, json_body
from .publisher_client import (
    DEFAULT_TIMEOUT_SECONDS,
    DEFAULT_URL,
    AsyncClient,
    Client,
    Hubs,
    check_open,
    header_value,
)
from .publisher_fields import EventFields, wire_fields
from .publisher_links import Links
from .publisher_route import DEFAULT_RETRIES, Patience
from .publisher_run import HttpRuns
from .publisher_stream import PublisherStream, SyncPublisherStream
from .publisher_thread import LoopThread
from .runs.arguments import RunArguments, make_order
from .runs.producer import ProducedRun
from .runs.threads import SyncProducedRun


class Publisher:
    """Publishes over HTTP and blocks meanwhile. Use it in `with`, or call `close`. Threads may share one.

    `url` is that of the control app: `http://`, `https://`, or `unix:PATH` for a Unix socket. It may be a sequence: the
    nodes of one deployment, each of which is tried if the one before it fails. With an `https://` URL, the certificate
    is checked against the CAs of this machine, or those in the file that SSL_CERT_FILE names.

    It makes up to `retries` further attempts if it can't connect (unless the hub's certificate can't be verified), if
    there is no response, or if that is 429, 502, 503 or 504. By default they take at least 10 s together, so that a
    call survives the restart of the hub. The waits become longer, from 0.1 to 2.5 s, and are at least as long as the
    hub asks in `Retry-After`. An idempotency key makes sure that nothing is published twice. The key is random, unless
    you give `idempotency_key` so that your program can safely publish again after a restart. `timeout_seconds` applies
    to connecting, and to each wait for the response; a call ends when it has passed three times.

    Raises InvalidRequest if the hub refuses the request, ControlKeyError or Forbidden if it refuses the caller, and
    Unavailable if the hub can't be reached or asks to try again later.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        hubs = Hubs(url, control_key=control_key, timeout_seconds=timeout_seconds)
        self._links = Links(hubs.nodes(), Patience(answer_seconds=timeout_seconds))
        self._runs = HttpRuns(self._links)
        self._client = Client(hubs, retries)
        self._thread = LoopThread()

    def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Publish one event and return its id."""
        return str(self._client.send(_emit(wire_fields(event), idempotency_key))["id"])

    def emit_many(self, events: Sequence[EventFields], *, idempotency_key: str | None = None) -> list[str]:
        """Publish a batch, all of it or nothing, and return the ids."""
        ids: list[str] = self._client.send(_emit([wire_fields(event) for event in events], idempotency_key))["ids"]
        return ids

    def token(
        self,
        user_id: str,
        channel: str | Sequence[str] = (),
        *,
        patterns: Sequence[str] = (),
        expires_in_seconds: int | None = None,
    ) -> str:
        """Return a token for `user_id` on one channel or several, on patterns such as `orders.*`, or both."""
        return str(self._client.send(_issue_token(user_id, channel, patterns, expires_in_seconds))["token"])

    def run(self, name: str, **arguments: Unpack[RunArguments]) -> SyncProducedRun:
        """Produce a run: see `Hub.run`. Enter it with `with`; then `append`, which waits only if the hub is slow.

        The events are sent by a thread, over one connection, as they come. What is not known to be stored is kept, up
        to about 1 MiB (beyond that, `append` waits), and sent again to the hub after its restart, or to another node,
        whichever of the URLs and of their addresses works. Leaving the block waits until the end of the run is stored.

        Raises what `Hub.run` does, also ControlKeyError and Forbidden; and Unavailable after 60 s without a hub that
        works. A run that the hub has lost (one in memory, after a restart) raises RunLost.
        """
        check_open(is_closed=self._client.is_closed)
        return self._runs.produce_sync(make_order(name, **arguments), self._thread.call)

    def stream(self) -> SyncPublisherStream:
        """Send events one after the other without waiting for each answer. Enter it with `with`; then `send` or `emit`.

        They are sent by a thread, over one connection, as they come, and published in this order. What has no answer is
        kept, up to about 1 MiB (beyond that, `send` waits), and sent again to the hub after its restart, or to another
        node; idempotency keys make sure that nothing is published twice. An event that the hub refuses ends nothing.
        Leaving the block waits until everything is answered.

        Raises what `emit` does; and Unavailable after 60 s without a hub that works.
        """
        check_open(is_closed=self._client.is_closed)
        return SyncPublisherStream(self._links, self._thread.call)

    def close(self) -> None:
        """Close the connections. A run or a stream that has not ended is given up: leave its block first."""
        self._client.close()
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncPublisher:
    """`Publisher` for code in an event loop. Use it in `async with`, or call `aclose`.

    If its event loop has been closed, it continues in a new one. While the first loop still exists, calls from another
    one raise WrongEventLoop.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        hubs = Hubs(url, control_key=control_key, timeout_seconds=timeout_seconds)
        self._links = Links(hubs.nodes(), Patience(answer_seconds=timeout_seconds))
        self._runs = HttpRuns(self._links)
        self._client = AsyncClient(hubs, retries)

    async def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Publish one event and return its id."""
        return str((await self._client.send(_emit(wire_fields(event), idempotency_key)))["id"])

    async def emit_many(self, events: Sequence[EventFields], *, idempotency_key: str | None = None) -> list[str]:
        """Publish a batch, all of it or nothing, and return the ids."""
        ids: list[str] = (await self._client.send(_emit([wire_fields(event) for event in events], idempotency_key)))[
            "ids"
        ]
        return ids

    async def token(
        self,
        user_id: str,
        channel: str | Sequence[str] = (),
        *,
        patterns: Sequence[str] = (),
        expires_in_seconds: int | None = None,
    ) -> str:
        """Return a token for `user_id` on one channel or several, on patterns such as `orders.*`, or both."""
        return str((await self._client.send(_issue_token(user_id, channel, patterns, expires_in_seconds)))["token"])

    def run(self, name: str, **arguments: Unpack[RunArguments]) -> ProducedRun:
        """Produce a run: see `Publisher.run`. Enter it with `async with`; the block is interrupted as in `Hub.run`."""
        check_open(is_closed=self._client.is_closed)
        return self._runs.produce(make_order(name, **arguments))

    def stream(self) -> PublisherStream:
        """Send events one after the other: see `Publisher.stream`. Enter it with `async with`."""
        check_open(is_closed=self._client.is_closed)
        return PublisherStream(self._links)

    async def aclose(self) -> None:
        """Close the connections. A run or a stream that has not ended is given up: leave its block first."""
        await self._client.aclose()
        await self._links.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _emit(event_or_batch: object, idempotency_key: str | None) -> Call:
    key = header_value("idempotency_key", idempotency_key) if idempotency_key else uuid4().hex
    return Call("POST", "/emit/", json_body(event_or_batch), {"Idempotency-Key": key})


def _issue_token(
    user_id: str, channel: str | Sequence[str], patterns: Sequence[str], expires_in_seconds: int | None
) -> Call:
    name = "channel" if isinstance(channel, str) else "channels"
    fields: dict[str, Any] = {"userId": user_id, name: channel if isinstance(channel, str) else list(channel)}
    if patterns:
        fields["patterns"] = [patterns] if isinstance(patterns, str) else list(patterns)
    if expires_in_seconds is not None:
        fields["exp"] = expires_in_seconds
    return Call("POST", "/token/", json_body(fields))
