"""Brings events to a hub by a pipe: one request that stays open, and whose response answers each event.

Events wait to be sent, then for their answer, and are kept until they have it. After a connection is lost, or the hub
has ended the pipe, all that are kept are sent again, in order: to the hub after its restart, or to another node. Each
has an idempotency key, so that those that were stored are not stored again.

A proxy may collect the whole body of a request before it passes it on. Then no response begins before the request ends.
The writer finds out, warns, and sends many short requests instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from .errors import SSEHubError, Unavailable
from .loglimit import limited_logger
from .publisher_http import Connection
from .publisher_links import Links
from .publisher_pipe_request import Kept, PipeRequest, Result
from .publisher_route import Route, TryAgain

logger = limited_logger("ssehub.publisher")

MAX_KEPT_BYTES = 1_048_576
"""How much may wait to be answered before `put` waits."""
MAX_WAITING_BYTES = 65_536
"""When so much waits to be sent, a producer that never waits itself lets the task send it."""
MAX_SHORT_BYTES = 65_536
"""How much a short request carries."""


class PipeWriter:
    """Sends what is put into it, in order. Used in one event loop, from `open` until `finish` or `close`."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._route = Route(links.nodes, links.patience)
        self._url = links.nodes[0].url
        self._waiting: deque[Kept] = deque()
        """The events that the request that is open has not sent."""
        self._waiting_bytes = 0
        self._kept_bytes = 0
        """The size of all events that have no answer."""
        self._is_ending = False
        self._is_failing = False
        """True if an attempt has failed since the last answer."""
        self.failure: SSEHubError | None = None
        """Why nothing more can be sent."""
        self._task: asyncio.Task[None] | None = None
        self._has_changed = asyncio.Event()
        """Set when the task has something to look at."""
        self._has_room = asyncio.Event()
        self._is_empty = asyncio.Event()

    async def open(self) -> None:
        """Start. The connection is made when there is something to send."""
        self._task = asyncio.create_task(self._work())
        self._links.tasks.add(self._task)
        self._task.add_done_callback(self._end_work)

    async def put(self, line: bytes, tell: Callable[[Result | None], None]) -> None:
        """Send `line`, and `tell` the result once there is one. Waits while MAX_KEPT_BYTES have no answer.

        Raises ControlKeyError, Forbidden, InvalidRequest or Unavailable if the pipe can't go on. Then None is told of
        what has no result.
        """
        while self.failure is None and self._kept_bytes > MAX_KEPT_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
        self._require_going_on()
        self._waiting.append(Kept(line, tell))
        self._waiting_bytes += len(line)
        self._kept_bytes += len(line)
        self._has_changed.set()
        if self._waiting_bytes > MAX_WAITING_BYTES:
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until everything that was put has its result. Raises what `put` does."""
        while self._kept_bytes and self.failure is None:
            self._is_empty.clear()
            await self._is_empty.wait()
        self._require_going_on()

    async def finish(self) -> None:
        """Wait as `flush` does, then end the pipe. Raises what `put` does."""
        assert self._task is not None
        self._is_ending = True
        self._has_changed.set()
        await asyncio.wait([self._task])
        if self._kept_bytes:
            self._require_going_on()

    async def close(self) -> None:
        """Break off. What has no result may or may not be stored."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _require_going_on(self) -> None:
        if self.failure is not None:
            raise self.failure.with_traceback(None)  # it may be raised many times

    # The task

    async def _work(self) -> None:
        """Connect, send and reconnect, until everything is answered and nothing more will be put."""
        try:
            while await self._has_something():
                try:
                    await self._connect_and_send()
                except (OSError, TryAgain) as problem:
                    if self._kept_bytes:  # otherwise nobody has to know
                        self._route.note_failure(problem)
                        self._tell_failure(problem)
                        await self._route.wait()
        except SSEHubError as exc:
            self._fail(exc)
        except Exception as exc:
            logger.exception("a stream of events can't be continued")
            self._fail(Unavailable(f"the stream of events can't be continued: {type(exc).__name__}"))

    def _tell_failure(self, problem: OSError | TryAgain) -> None:
        if not self._is_failing:
            self._is_failing = True
            logger.warning("%s can't be used at present (%s): trying again", self._url, problem)

    def _end_work(self, task: asyncio.Task[None]) -> None:
        self._links.tasks.discard(task)
        if task.cancelled():
            self._fail(Unavailable("the stream of events was given up: what has no result may or may not be stored"))

    def _fail(self, error: SSEHubError) -> None:
        self.failure = self.failure or error
        self._has_room.set()
        self._is_empty.set()
        lost, self._waiting = self._waiting, deque()
        for kept in lost:
            kept.tell(None)

    async def _has_something(self) -> bool:
        """Wait for an event that has no answer; return False once there will be none."""
        while not self._kept_bytes and not self._is_ending:
            self._has_changed.clear()
            await self._has_changed.wait()
        return self._kept_bytes > 0

    async def _connect_and_send(self) -> None:
        connection = await self._route.connect(self._has_changed.set)
        try:
            while connection.is_usable and await self._has_something():
                await self._send(connection)
        finally:
            connection.close()

    async def _send(self, connection: Connection) -> None:
        """Send events by one request. Those that it leaves without an answer wait to be sent again."""
        links = self._links
        request = PipeRequest(connection, links.rhythm, links.patience.answer_seconds, self._note_answer)
        try:
            if links.buffering.is_found:
                await request.send_whole(self._take(MAX_SHORT_BYTES))
            else:
                await self._send_stream(request)
        finally:
            self._waiting.extendleft(reversed(request.unanswered))
            self._waiting_bytes += sum([len(kept.line) for kept in request.unanswered])

    async def _send_stream(self, request: PipeRequest) -> None:
        """Send events as they come, until all are answered and nothing more will be put."""
        loop, buffering = asyncio.get_running_loop(), self._links.buffering
        request.begin()
        check_at = loop.time() + self._links.rhythm.check_seconds
        while self._kept_bytes or not self._is_ending:
            self._has_changed.clear()
            request.send(self._take(MAX_KEPT_BYTES))
            request.require_open()
            await self._wait_until(request.wake_at if buffering.is_known else min(request.wake_at, check_at))
            if request.is_answered and not buffering.is_known:
                buffering.note(self._url, is_found=False)
            if not request.is_answered and loop.time() >= check_at:
                check_at = float("inf")
                if await self._is_alive() and not request.is_answered:
                    buffering.note(self._url, is_found=True)
                    raise TryAgain("a proxy holds what is sent until the request ends")
        await request.finish()

    async def _is_alive(self) -> bool:
        """Return True if the hub answers another request at once."""
        connection = None
        try:
            connection = await self._route.connect()
            connection.begin("GET", "/healthz", {}, b"")
            await connection.answered(self._links.rhythm.check_seconds)
        except OSError:
            return False
        finally:
            if connection is not None:
                connection.close()
        return True

    def _take(self, max_bytes: int) -> list[Kept]:
        """Return what is to be sent now, which does not wait any more: as much as `max_bytes` allow, at least one."""
        if self._waiting_bytes <= max_bytes:
            taken = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            return taken
        taken, size = [], 0
        while self._waiting and (not taken or size + len(self._waiting[0].line) <= max_bytes):
            kept = self._waiting.popleft()
            taken.append(kept)
            size += len(kept.line)
        self._waiting_bytes -= size
        return taken

    def _note_answer(self, kept: Kept) -> None:
        self._kept_bytes -= len(kept.line)
        self._is_failing = False
        self._route.succeeded()
        if self._kept_bytes <= MAX_KEPT_BYTES:
            self._has_room.set()
        if not self._kept_bytes:
            self._is_empty.set()
            self._has_changed.set()

    async def _wait_until(self, when: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(when):
                await self._has_changed.wait()
