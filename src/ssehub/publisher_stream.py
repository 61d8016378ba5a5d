"""Events as a stream, as their publisher sees it: a block in which each is sent at once, and answered by the hub.

async with publisher.stream() as stream:
    async for order in orders:
        await stream.send(channel="orders", user_id=order.user_id, data=order.state)
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from types import TracebackType
from typing import Self, Unpack
from uuid import uuid4

from .errors import InvalidRequest, SSEHubError
from .publisher_calls import json_body
from .publisher_fields import EventFields, wire_fields
from .publisher_links import Links
from .publisher_pipe import PipeWriter
from .publisher_pipe_request import Result
from .runs.threads import Caller

LEAVE_SECONDS = 5.0
"""How long a block that raises an exception waits for the answers to what it has sent."""


class PublisherStream:
    """Events that are sent one after the other: the result of entering `async with publisher.stream()`.

    Several tasks may send. What is sent while an answer is on its way is published with it, so that sending does not
    wait for the network.
    """

    def __init__(self, links: Links) -> None:
        self._writer = PipeWriter(links)
        self._name = uuid4().hex
        self._numbers = count()
        self._refusal: SSEHubError | None = None
        """Why the first of those events was refused that `send` has sent, until that is raised."""
        self._was_entered = False

    async def send(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> None:
        """Send one event, after those that were sent before. Waits only while about 1 MiB has no answer.

        If the hub refuses it, the others are published all the same; `flush`, or leaving the block, raises why. Raises
        ControlKeyError, Forbidden and Unavailable if nothing more can be sent.
        """
        await self._writer.put(self._line(event, idempotency_key), self._note_result)

    async def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Send one event, and return its id once it is stored. Raises what `Publisher.emit` does."""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def resolve(result: Result | None) -> None:
            if answered.done():  # the caller was cancelled
                return
            if isinstance(result, str):
                answered.set_result(result)
            else:
                answered.set_exception(result or self._failure())

        await self._writer.put(self._line(event, idempotency_key), resolve)
        return await answered

    async def flush(self) -> None:
        """Wait until everything that was sent is answered. Raises why an event was refused, the first one since then,
        and what `send` does.
        """
        await self._writer.flush()
        self._raise_refusal()

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise InvalidRequest("the stream has been entered before: call stream again")
        self._was_entered = True
        await self._writer.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                await self._writer.finish()
                self._raise_refusal()
            else:
                with contextlib.suppress(SSEHubError, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):
                        await self._writer.finish()
        finally:
            await self._writer.close()

    def _line(self, event: EventFields, idempotency_key: str | None) -> bytes:
        fields = wire_fields(event)
        fields["idempotencyKey"] = idempotency_key or f"{self._name}-{next(self._numbers)}"
        return json_body(fields) + b"\n"

    def _failure(self) -> SSEHubError:
        assert self._writer.failure is not None
        return self._writer.failure

    def _note_result(self, result: Result | None) -> None:
        if isinstance(result, SSEHubError) and self._refusal is None:
            self._refusal = result

    def _raise_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal


class SyncPublisherStream:
    """`PublisherStream` for threads, which may share one: the result of entering `with publisher.stream()`.

    The events are sent by a thread of the publisher.
    """

    def __init__(self, links: Links, call: Caller) -> None:
        self._stream = PublisherStream(links)
        self._call = call

    def send(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> None:
        """Send one event: see `PublisherStream.send`."""
        self._call(self._stream.send(idempotency_key=idempotency_key, **event))

    def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Send one event, and return its id once it is stored."""
        return self._call(self._stream.emit(idempotency_key=idempotency_key, **event))

    def flush(self) -> None:
        """Wait until everything that was sent is answered: see `PublisherStream.flush`."""
        self._call(self._stream.flush())

    def __enter__(self) -> Self:
        self._call(self._stream.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call(self._stream.__aexit__(kind, exc, traceback))
