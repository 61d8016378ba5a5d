"""Streams for Python code: an async iterator of what a browser with the same claims would be shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .fanout.sinks import Sink, TaskSink
from .fanout.subscriber import CloseReason, Subscriber

Attach = Callable[[Sink], Subscriber]
"""Opens the stream that writes to this sink."""

_POSITION_TYPES = ("stream-hello", "stream-position")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Message:
    """One event as a client is shown it (HTML standard, section 9.2.6). `id` is the cursor after it."""

    type: str
    data: str
    id: str

    def json(self) -> Any:
        """Return `data` decoded from JSON. Raises ValueError if it is not JSON."""
        return json.loads(self.data)


class MessageReader:
    """Parses stream text as a browser does, frame by frame, and remembers the last event id.

    The events in which a hub only tells the position are left out.
    """

    def __init__(self) -> None:
        self.last_id = ""

    def read(self, text: str) -> Iterator[Message]:
        """Yield the messages of `text`, which consists of whole frames. An id counts even in a frame without data."""
        type, data = "", list[str]()
        for line in _LINE_END.split(text):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data and type not in _POSITION_TYPES:
                    yield Message(type or "message", "\n".join(data), self.last_id)
                type, data = "", []
            elif name == "data":
                data.append(value)
            elif name == "event":
                type = value
            elif name == "id" and "\0" not in value:
                self.last_id = value


class Subscription:
    """An async iterator of messages, control events included except `stream-hello` and `stream-position`.

    It starts on entering.

        async with hub.subscribe(channel="chat", user_id="alex") as messages:
            async for message in messages:
                ...

    Iteration stops when the hub ends the stream; `reason` says why. What gathers while nobody iterates is bounded like
    a browser's backlog: a subscription that is read too slowly for too long ends as `slow`. A subscription that is no
    longer referenced ends, too.
    """

    def __init__(
        self,
        prepare: Callable[[], Awaitable[Attach]],
        detach: Callable[[Subscriber], None],
    ) -> None:
        self._prepare = prepare
        self._detach = detach
        self._sink = TaskSink()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriber: Subscriber | None = None
        self._messages: deque[Message] = deque()
        self._reader = MessageReader()

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream has ended, or None if it has not."""
        return self._subscriber.reason if self._subscriber is not None else None

    async def __aenter__(self) -> Self:
        if self._subscriber is None:
            attach = await self._prepare()
            if self._subscriber is None:  # another task may have entered meanwhile
                self._loop = asyncio.get_running_loop()
                self._subscriber = attach(self._sink)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream. Messages that have already arrived can still be iterated over."""
        if self._subscriber is not None:
            self._detach(self._subscriber)

    def __del__(self) -> None:
        """End the stream after a loop over it was left by `break`. This may run in any thread."""
        if self._loop is not None and self.reason is None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, and everything with it
                self._loop.call_soon_threadsafe(self.close)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._subscriber is None:
            await self.__aenter__()
        while not self._messages:
            data = await self._sink.read()
            if not data:
                raise StopAsyncIteration
            self._messages.extend(self._reader.read(data.decode()))
        return self._messages.popleft()
