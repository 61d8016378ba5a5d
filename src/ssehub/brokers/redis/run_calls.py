"""Calls of the script `runs.lua`, on a connection of their own: all operations that wait are one call to Redis.

Each caller is answered in time, even if Redis is not. Operations that only read are sent again after the connection was
lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ...errors import BrokerUnavailable, Overloaded
from ...runs.model import RunState
from ...runs.store import LEASE_SECONDS, RunTotals
from .connection import REFUSALS, Connection, Server, explain, keep_connected
from .run_wire import DIGEST, SCRIPT, RunKeys
from .state import Health
from .wire import NOT_REDIS

CALL_SECONDS = 1.5
"""Every caller is answered within this time."""
MAX_WAITING_BYTES = 64 * 2**20
MAX_WAITING_OPERATIONS = 20_000
GROUP_BYTES = 2**20
"""Bytes of one call and its reply above which no further operation joins it."""
GROUP_OPERATIONS = 200
NOT_DONE = "nothing was done"
UNKNOWN = "it may or may not have been done: it is safe to repeat"


class Operation:
    """One operation of the script, and the future that its caller waits for."""

    __slots__ = ("answer", "arguments", "deadline", "is_read", "is_sent", "reply_size", "size", "verb")

    def __init__(
        self,
        answer: asyncio.Future[Any],
        verb: str,
        arguments: Sequence[str | bytes | int],
        size: int,
        reply_size: int,
        is_read: bool,
        deadline: float,
    ) -> None:
        self.answer = answer
        self.verb = verb
        self.arguments = arguments
        self.size = size
        """Bytes of the arguments, about."""
        self.reply_size = reply_size
        """Bytes of the reply, at most or about."""
        self.is_read = is_read
        """True if it changes nothing, so that it can be sent again."""
        self.is_sent = False
        self.deadline = deadline
        """When the caller has to be answered, by the time of the event loop."""

    def refuse(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


class Calls:
    """The task that calls the script. Built within `RedisBroker.run`, in the event loop that it works in."""

    def __init__(self, server: Server, probe_seconds: float) -> None:
        self.health = Health("runs", server.shown)
        self.totals = RunTotals(dict.fromkeys(RunState, 0), 0)
        """As of the last reply that had them."""
        self.knows_open = asyncio.Event()
        """Set while there are open runs, by these totals."""
        self._server = server
        self._probe_seconds = probe_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Operation] = deque()
        self._waiting_bytes = 0
        self._unanswered: deque[Operation] = deque()
        """All operations whose time is not over, and some that have been answered."""
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()

    async def call(
        self, verb: str, *arguments: str | bytes | int, size: int = 0, reply_size: int = 0, is_read: bool = False
    ) -> Any:
        """Do one operation of the script and return its reply. Raises BrokerUnavailable or Overloaded."""
        failed_at = self.health.failed_at
        if failed_at is not None and time.monotonic() - failed_at > CALL_SECONDS:
            raise self._unreachable()
        if self._waiting_bytes + size > MAX_WAITING_BYTES or len(self._waiting) >= MAX_WAITING_OPERATIONS:
            raise Overloaded(f"too many calls wait for Redis already; {NOT_DONE}, try again in a second")
        loop = self._loop
        answer: asyncio.Future[Any] = loop.create_future()
        operation = Operation(answer, verb, arguments, size, reply_size, is_read, loop.time() + CALL_SECONDS)
        self._waiting.append(operation)
        self._waiting_bytes += size
        self._unanswered.append(operation)
        if self._timer is None:
            self._timer = loop.call_at(operation.deadline, self._refuse_overdue)
        self._wake.set()
        return await answer

    def _refuse_overdue(self) -> None:
        """Refuse the operations whose time is over. One timer for all costs less than one for each."""
        self._timer = None
        unanswered, now = self._unanswered, self._loop.time()
        while unanswered and (unanswered[0].answer.done() or unanswered[0].deadline <= now):
            operation = unanswered.popleft()
            if operation.is_sent and not operation.is_read:
                operation.refuse(BrokerUnavailable(f"no reply from Redis: {UNKNOWN}"))
            else:
                operation.refuse(self._unreachable())
        if unanswered:
            self._timer = self._loop.call_at(unanswered[0].deadline, self._refuse_overdue)

    def _stop_timer(self) -> None:
        self._unanswered.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unreachable(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.health.problem or 'no reply from Redis'}; {NOT_DONE}")

    async def run(self) -> None:
        """Call the script for those that wait, connecting again after errors, until cancelled."""
        await keep_connected(self._server, CALL_SECONDS, self.health, self._work)

    async def _work(self, connection: Connection) -> None:
        keys = RunKeys.of(self._server.prefix, connection.database, await connection.check_version())
        await check_access(connection, keys)
        self.health.clear()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._probe_seconds):
                    await self._wake.wait()
            self._wake.clear()
            await connection.check_open()
            while group := self._next_group():
                await self._send(connection, keys, group)
            self._stop_timer()  # everyone has been answered

    def _next_group(self) -> list[Operation]:
        """Remove and return the operations for the next call, leaving out those whose callers no longer wait."""
        group: list[Operation] = []
        size = 0
        waiting = self._waiting
        while waiting and len(group) < GROUP_OPERATIONS:
            operation = waiting[0]
            if group and size + operation.size + operation.reply_size > GROUP_BYTES:
                break
            waiting.popleft()
            self._waiting_bytes -= operation.size
            if not operation.answer.done():
                group.append(operation)
                size += operation.size + operation.reply_size
        return group

    async def _send(self, connection: Connection, keys: RunKeys, group: list[Operation]) -> None:
        parts: list[str | bytes | int] = []
        for operation in group:
            operation.is_sent = True
            parts += (operation.verb, len(operation.arguments))
            parts += operation.arguments
        try:
            *replies, totals = await _evaluate(connection, keys, parts)
            if len(replies) != len(group):
                raise BrokerUnavailable(NOT_REDIS)
        except BaseException as exc:
            self._fail(group, exc)
            raise
        if totals is not None:
            size, *counts = (int(number or 0) for number in totals)
            self.totals = RunTotals(dict(zip(RunState, counts, strict=True)), size)
            states = self.totals.states
            if states[RunState.OPEN] or states[RunState.STOPPING]:
                self.knows_open.set()
            else:
                self.knows_open.clear()
        for operation, reply in zip(group, replies, strict=True):
            answer = operation.answer
            operation.arguments = ()
            if answer.done():
                continue
            if type(reply) is list and reply[0] == b"error":
                operation.refuse(self._failure(reply[1].decode(errors="replace"), UNKNOWN))
            else:
                answer.set_result(reply)

    def _fail(self, group: list[Operation], exc: BaseException) -> None:
        """Let those that only read wait for the next connection, and refuse the others."""
        outcome = NOT_DONE if isinstance(exc, REFUSALS) else UNKNOWN
        for operation in reversed(group):
            if operation.is_read and isinstance(exc, Exception):
                self._waiting.appendleft(operation)
                self._waiting_bytes += operation.size
                self._wake.set()
            else:
                operation.refuse(self._failure(explain(exc), outcome))

    def _failure(self, reason: str, outcome: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"cannot use the runs at {self._server.shown}: {reason}; {outcome}")

    def close(self) -> None:
        """Refuse everything that still waits, after the task has ended."""
        while self._waiting:
            self._waiting.popleft().refuse(BrokerUnavailable(f"the hub has stopped; {NOT_DONE}"))
        self._waiting_bytes = 0
        self._stop_timer()


async def check_access(connection: Connection, keys: RunKeys) -> None:
    """Raise BrokerUnavailable if this user may not do what the script does."""
    reply, _ = await _evaluate(connection, keys, ("check", 0))
    if reply[0] == b"error":
        raise BrokerUnavailable(reply[1].decode(errors="replace"))


async def _evaluate(connection: Connection, keys: RunKeys, parts: Sequence[str | bytes | int]) -> list[Any]:
    """Call the script. Its keys, all in the slot of the first, are made of the prefix and of the names in `parts`."""
    reply = await connection.evaluate(SCRIPT, DIGEST, 1, f"{keys.prefix}runs", *keys, int(LEASE_SECONDS * 1000), *parts)
    if not isinstance(reply, list) or not reply:
        raise BrokerUnavailable(NOT_REDIS)
    return reply
