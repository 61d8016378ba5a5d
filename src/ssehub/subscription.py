"""Streams for Python code: what a browser with the same rights is shown, as an async iterator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from .claims import Claims
from .errors import InvalidRequest
from .fanout.sinks import Sink, TaskSink
from .fanout.subscriber import CloseReason, Subscriber
from .position import Position

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


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: behind `cursor`, at what is retained, or at the `last` events; now if nothing is said."""

    cursor: str | None = None
    last: int | None = None
    is_earliest: bool = False
    replays_on_reset: bool = False

    @classmethod
    def parse(cls, cursor: str | None, since: str | None = None, on_reset: str | None = None) -> Self:
        """`cursor` is the last event id that a client says it has seen.

        It wins over `since`, which is `earliest`, `last:N` or a position. With `on_reset` "replay" a client that may
        have missed something is given what is retained. Raises InvalidRequest for anything else.
        """
        for name, value in (("cursor", cursor), ("since", since)):
            if not isinstance(value, str | None):
                raise InvalidRequest(f"{name} must be a string, not {type(value).__name__}")
        if on_reset not in (None, "replay"):
            raise InvalidRequest(f"on_reset {on_reset[:40]!r} is unknown: write replay, or leave it out")
        replays = on_reset is not None
        if since is None:
            return cls(cursor or None, replays_on_reset=replays)
        count = since.removeprefix("last:")
        is_count = count != since and count.isascii() and count.isdigit() and 0 < len(count) < 10 and int(count) > 0
        if since != "earliest" and not is_count and Position.parse(since) is None:
            raise InvalidRequest(f"since {since[:40]!r} is unknown: write earliest, last:10, or a position")
        if cursor:
            return cls(cursor, replays_on_reset=replays)
        if is_count:
            return cls(last=int(count), replays_on_reset=replays)
        if since == "earliest":
            return cls(is_earliest=True, replays_on_reset=replays)
        return cls(since, replays_on_reset=replays)


class Attaching(Protocol):
    """What a subscription needs of its hub."""

    async def start(self) -> None: ...

    async def reach(self, cursor: str | None) -> None: ...

    def attach(self, claims: Claims, sink: Sink, start: Start | None = None) -> Subscriber: ...

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None: ...


class Subscription:
    """An async iterator of messages, those whose type begins with `stream-` among them. It starts on entering.

        async with hub.subscribe(channel="chat", user_id="alex") as messages:
            async for message in messages:
                ...

    Iteration stops when the hub ends the stream; `reason` says why. What gathers while nobody iterates is bounded as
    a browser's backlog is: whoever is too slow for too long ends as `slow`. One that nobody holds any more ends, too.
    """

    def __init__(self, hub: Attaching, claims: Claims, start: Start) -> None:
        self._hub = hub
        self._claims = claims
        self._start = start
        self._sink = TaskSink()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriber: Subscriber | None = None
        self._messages: deque[Message] = deque()
        self._reader = MessageReader()

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended, None as long as it has not."""
        return self._subscriber.reason if self._subscriber is not None else None

    async def __aenter__(self) -> Self:
        await self._hub.start()
        await self._hub.reach(self._start.cursor)
        if self._subscriber is None:
            self._loop = asyncio.get_running_loop()
            self._subscriber = self._hub.attach(self._claims, self._sink, self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; what has come is still iterated over."""
        if self._subscriber is not None:
            self._hub.end(self._subscriber, CloseReason.DISCONNECTED)

    def __del__(self) -> None:
        """A loop over it that was left by `break` leaves nobody to close it. This may run in any thread."""
        if self._loop is not None and self.reason is None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, and everything with it
                self._loop.call_soon_threadsafe(self.close)

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
