"""Streams for Python code: what a browser with the same rights is shown, as an async iterator."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from .event import Claims
from .sinks import Sink, TaskSink
from .subscribers import CloseReason, Subscriber

_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Message:
    """One event as a client is shown it (HTML standard, 9.2.6). `id` is its last event id: the cursor after it."""

    type: str
    data: str
    id: str

    def json(self) -> Any:
        """What `data` says as JSON; raises ValueError if it is none."""
        return json.loads(self.data)


class MessageReader:
    """Reads stream text as a browser does, frame by frame; remembers the last event id."""

    def __init__(self) -> None:
        self.last_id = ""

    def read(self, text: str) -> Iterator[Message]:
        """The messages of `text`, which holds whole frames. An id counts without data, too."""
        type, data = "", list[str]()
        for line in _LINE_END.split(text):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield Message(type or "message", "\n".join(data), self.last_id)
                type, data = "", []
            elif name == "data":
                data.append(value)
            elif name == "event":
                type = value
            elif name == "id" and "\0" not in value:
                self.last_id = value


class Attaching(Protocol):
    """What a subscription needs of its hub."""

    async def start(self) -> None: ...

    def attach(self, claims: Claims, sink: Sink, *, cursor: str | None = None) -> Subscriber: ...

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None: ...


class Subscription:
    """An async iterator of messages, those whose type begins with `stream-` among them. It starts on entering.

        async with hub.subscribe(channel="chat", user_id="alex") as messages:
            async for message in messages:
                ...

    Iteration stops when the hub ends the stream; `reason` says why. What gathers while nobody iterates is bounded as
    a browser's backlog is: whoever is too slow for too long ends as `slow`.
    """

    def __init__(self, hub: Attaching, claims: Claims, cursor: str | None) -> None:
        self._hub = hub
        self._claims = claims
        self._cursor = cursor
        self._sink = TaskSink()
        self._subscriber: Subscriber | None = None
        self._messages: deque[Message] = deque()
        self._reader = MessageReader()

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended, None as long as it has not."""
        return self._subscriber.reason if self._subscriber is not None else None

    async def __aenter__(self) -> Self:
        await self._hub.start()
        if self._subscriber is None:
            self._subscriber = self._hub.attach(self._claims, self._sink, cursor=self._cursor)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; what has come is still iterated over."""
        if self._subscriber is not None:
            self._hub.end(self._subscriber, CloseReason.DISCONNECTED)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._subscriber is None:
            await self.__aenter__()
        while not self._messages:
            data = await self._sink.take()
            if not data:
                raise StopAsyncIteration
            self._messages.extend(self._reader.read(data.decode()))
        return self._messages.popleft()
