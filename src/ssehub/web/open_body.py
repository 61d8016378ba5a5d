"""The body of a request that may stay open for hours, and that is read line by line as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Message, Receive

from ..control_keys import ControlKeys
from ..rights import ControlKey, Right

Result = TypeVar("Result")


class LineLimits:
    """How long a client may take for one line: `seconds`, and the time for its bytes at `bytes_per_second`."""

    __slots__ = ("_bytes_per_second", "_seconds")

    def __init__(self, seconds: float, bytes_per_second: float) -> None:
        self._seconds = seconds
        self._bytes_per_second = bytes_per_second

    def duration(self, unfinished_bytes: int) -> float:
        """Return how long a line may take of which so much has arrived."""
        extra = unfinished_bytes / self._bytes_per_second if self._bytes_per_second else 0.0
        return self._seconds + extra


class OpenBody:
    """Waits for the parts of one body, but for no line longer than `limits` allow. A wait can be interrupted."""

    __slots__ = ("_limits", "_line_began", "_loop", "_waiting")

    def __init__(self, limits: LineLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._line_began: float | None = None
        """When the line began that has not ended."""
        self._waiting: asyncio.Timeout | None = None
        """Not None while it waits."""

    async def part(self, receive: Receive, unfinished_bytes: int) -> Message | None:
        """Return what arrives next, None if this is interrupted or the line that has begun did not arrive in time."""
        deadline = None
        if unfinished_bytes:
            if self._line_began is None:
                self._line_began = self._loop.time()
            deadline = self._line_began + self._limits.duration(unfinished_bytes)
        return await self.wait(receive(), deadline)

    def line_ended(self) -> None:
        """A line has ended, so that the one behind it has its whole time."""
        self._line_began = None

    async def wait(self, work: Awaitable[Result], deadline: float | None) -> Result | None:
        """Return the result of `work`, None after the deadline, in loop time, or if this is interrupted."""
        try:
            async with asyncio.timeout_at(deadline) as self._waiting:
                return await work
        except TimeoutError:
            return None
        finally:
            self._waiting = None

    def interrupt(self) -> None:
        """End the wait that is under way, if there is one."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.expired():
            waiting.reschedule(0.0)


class KeyCheck:
    """Looks the control key of an open request up again, once the keys have been replaced."""

    __slots__ = ("_authorization", "_keys", "_version")

    def __init__(self, keys: ControlKeys, authorization: str) -> None:
        self._keys = keys
        self._version = keys.version
        self._authorization = authorization

    @property
    def is_due(self) -> bool:
        """True if the control keys have been replaced since the key was looked up."""
        return self._keys.version > self._version

    def repeat(self) -> ControlKey:
        """Return the key. Raises ControlKeyError, and KeyForbidden if it may not publish any more."""
        self._version = self._keys.version
        key = self._keys.of_header(self._authorization)
        key.require(Right.PUBLISH)
        return key
