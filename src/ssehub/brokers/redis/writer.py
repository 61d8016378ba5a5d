"""The writer: appends events to the log and changes the table of revocations.

It answers everyone in time, whatever Redis does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from ...errors import BrokerUnavailable, IdempotencyConflict, Overloaded
from ...position import Position
from ...publication import Publication, Revoke, TakeBack
from ...revocations import MAX_REVOCATIONS, Revocation, full_table
from ...settings import Idempotency, LogRetention
from ..numbering import KEY_CONFLICT
from .connection import REFUSALS, Connection, Server, explain, keep_connected
from .state import Health, Knowledge
from .table import Table
from .wire import LOG_IS_FULL, TABLE_IS_FULL, dump_entry, field_and_value

PUBLISH_SECONDS = 1.5
"""Every publisher is answered within this time."""
MAX_WAITING_BYTES = 64 * 2**20
MAX_WAITING_PUBLISHERS = 20_000
MAX_WAITING_CHANGES = 2_000
GROUP_BYTES = 4 * 2**20
GROUP_PUBLISHERS = 500
SLICE_EVENTS = 200
"""Events that are encoded before the loop goes on: about 3 ms."""
SLICE_BYTES = 2**19
"""The same for large events, in bytes."""
NOT_STORED = "nothing was stored"
STOPPED = f"the hub has stopped; {NOT_STORED}"
EVENT_UNKNOWN = "the event may or may not be stored"
CHANGE_UNKNOWN = "the change may or may not be stored: it is safe to repeat"
LOG_FULL = "the log is full, as /readyz explains; nothing was stored"

Answer = TypeVar("Answer")


class Waiting(Generic[Answer]):
    """What the task is to send, and the future that waits for the answer to it."""

    __slots__ = ("answer", "is_sent")

    def __init__(self, answer: asyncio.Future[Answer]) -> None:
        self.answer = answer
        self.is_sent = False

    def refuse(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


class Request(Waiting[list[str]]):
    """One publisher's publications, as far as `encode` has encoded them for the script, and the future it waits for."""

    __slots__ = ("parts", "size")

    def __init__(self, answer: asyncio.Future[list[str]]) -> None:
        super().__init__(answer)
        self.parts: list[str | bytes | int] = []
        self.size = 0

    def encode(self, publications: Sequence[Publication]) -> Iterator[None]:
        """Add `publications`, and yield after each slice, so that the event loop can go on in between."""
        self.parts.append(len(publications))
        count = encoded = 0
        for events, key in publications:
            self.parts += (key.name, key.body) if key is not None else ("", "-")
            self.parts.append(len(events))
            for event in events:
                dumped = dump_entry(event)
                self.parts.append(dumped)
                self.size += len(dumped)
                count += 1
                if count % SLICE_EVENTS == 0 or self.size - encoded > SLICE_BYTES:
                    encoded = self.size
                    yield

    def resolve(self, log: str, reply: Any) -> Position | None:
        """Answer the publisher from the script's reply; return the newest position in it, if any."""
        if reply == b"conflict":
            self.refuse(IdempotencyConflict(KEY_CONFLICT))
            return None
        if reply == LOG_IS_FULL:
            self.refuse(BrokerUnavailable(LOG_FULL))
            return None
        stored = list(zip(*[map(int, reply.split())] * 3, strict=True))
        if not self.answer.done():
            self.answer.set_result([f"{ms}-{seq + n}.{log}" for ms, seq, count in stored for n in range(count)])
        return max((Position(ms, seq + count - 1, log) for ms, seq, count in stored), default=None)


class Change(Waiting[Position]):
    """One change of the table of revocations, as a verb of the script and its arguments, and the future that waits."""

    __slots__ = ("arguments", "verb")

    def __init__(self, answer: asyncio.Future[Position], verb: str, arguments: Sequence[str | int]) -> None:
        super().__init__(answer)
        self.verb = verb
        self.arguments = arguments

    def resolve(self, log: str, reply: bytes) -> Position | None:
        """Answer from the script's reply; return the position in it, if any."""
        if reply == TABLE_IS_FULL:
            self.refuse(full_table())
            return None
        if reply == LOG_IS_FULL:
            self.refuse(BrokerUnavailable(LOG_FULL))
            return None
        ms, seq = map(int, reply.split())
        position = Position(ms, seq, log)
        if not self.answer.done():
            self.answer.set_result(position)
        return position


class Writer:
    """The task that appends to the log, on a connection of its own: what waits for it is one call to Redis.

    Built within `RedisBroker.run`, in the event loop that it works in.
    """

    def __init__(
        self,
        server: Server,
        knowledge: Knowledge,
        table: Table,
        idempotency: Idempotency,
        log: LogRetention,
        probe_seconds: float,
    ) -> None:
        self.health = Health("writing", server.shown)
        self._server = server
        self._knowledge = knowledge
        self._table = table
        self._idempotency = idempotency
        self._log = log
        self._probe_seconds = probe_seconds
        self._loop = asyncio.get_running_loop()
        self._requests: deque[Request] = deque()
        self._waiting_bytes = 0
        self._changes: deque[Change] = deque()
        self._head_requests: list[asyncio.Future[str | None]] = []
        self._wake = asyncio.Event()

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        """Append `publications` and return their positions. Raises as `Broker.publish` does."""
        self._check_reachable()
        request = Request(self._loop.create_future())
        for _ in request.encode(publications):
            await asyncio.sleep(0)
        if self._waiting_bytes + request.size > MAX_WAITING_BYTES or len(self._requests) >= MAX_WAITING_PUBLISHERS:
            raise Overloaded("too many events wait for Redis already; nothing was stored, try again in a second")
        self._requests.append(request)
        self._waiting_bytes += request.size
        self._wake.set()
        return await self._answer_to(request, EVENT_UNKNOWN)

    async def _answer_to(self, waiting: Waiting[Answer], unknown: str) -> Answer:
        """Return the answer to what the task has been handed. `unknown` is what no answer means once it is sent."""
        answer = waiting.answer
        try:
            await asyncio.wait([answer], timeout=PUBLISH_SECONDS)  # `asyncio.timeout` would need a task
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        if waiting.is_sent:
            raise BrokerUnavailable(f"no reply from Redis: {unknown}")
        raise self._unreachable()

    async def revoke(self, revocations: Sequence[Revocation]) -> str:
        """Enter `revocations` in the table and in the log; return the position. Raises as `Broker.revoke` does."""
        fields = [part for revocation in revocations for part in field_and_value(revocation)]
        position = await self._change("revoke", MAX_REVOCATIONS, Revoke(tuple(revocations)).dump(), *fields)
        self._table.enter(position, revocations)
        return str(position)

    async def take_back(self, keys: Sequence[str]) -> str:
        """Remove them from the table, and tell the log; return the position. Raises as `Broker.take_back` does."""
        return str(await self._change("take-back", TakeBack(tuple(keys)).dump(), *keys))

    async def _change(self, verb: str, *arguments: str | int) -> Position:
        self._check_reachable()
        if len(self._changes) >= MAX_WAITING_CHANGES:
            raise Overloaded(f"too many changes wait for Redis already; {NOT_STORED}, try again in a second")
        change = Change(self._loop.create_future(), verb, arguments)
        self._changes.append(change)
        self._wake.set()
        return await self._answer_to(change, CHANGE_UNKNOWN)

    async def head(self) -> str | None:
        """Return the position of the newest event in the log. Raises BrokerUnavailable if Redis does not answer."""
        self._check_reachable()
        answer: asyncio.Future[str | None] = self._loop.create_future()
        self._head_requests.append(answer)
        self._wake.set()
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                return await answer
        except TimeoutError:
            raise BrokerUnavailable(self.health.problem or "no reply from Redis") from None

    def _check_reachable(self) -> None:
        """Raise BrokerUnavailable, instead of letting anyone wait, if Redis has been unreachable for some time."""
        failed_at = self.health.failed_at
        if failed_at is not None and time.monotonic() - failed_at > PUBLISH_SECONDS:
            raise self._unreachable()

    def _unreachable(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.health.problem or 'no reply from Redis'}; {NOT_STORED}")

    async def run(self) -> None:
        """Append what waits, connecting again after errors, until cancelled."""
        await keep_connected(self._server, PUBLISH_SECONDS, self.health, self._write)

    async def _write(self, connection: Connection) -> None:
        await connection.log_state(self._knowledge.newest, is_writer=True)
        self.health.clear()
        tidied_at = self._loop.time() - self._probe_seconds
        while True:
            if self._loop.time() - tidied_at >= self._probe_seconds:
                await self._tidy(connection)
                tidied_at = self._loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._probe_seconds):
                    await self._wake.wait()
            self._wake.clear()
            await connection.check_open()
            while self._changes or self._requests:
                if self._changes:
                    await self._send_change(connection, self._changes.popleft())
                elif group := self._next_group():
                    await self._append(connection, group)
            if self._head_requests:
                await self._answer_head_requests(connection)

    async def _tidy(self, connection: Connection) -> None:
        revocations = len(self._table.revocations)
        self._table.compare(revocations, await connection.tidy(self._idempotency, self._log))

    def _next_group(self) -> list[Request]:
        """Remove and return the requests for the next call, leaving out those whose publishers no longer wait."""
        group: list[Request] = []
        size = 0
        while self._requests and len(group) < GROUP_PUBLISHERS:
            if group and size + self._requests[0].size > GROUP_BYTES:
                break
            request = self._requests.popleft()
            self._waiting_bytes -= request.size
            if not request.answer.done():
                group.append(request)
                size += request.size
        return group

    async def _append(self, connection: Connection, group: list[Request]) -> None:
        for request in group:
            request.is_sent = True
        parts = [part for request in group for part in request.parts]
        window = int(self._idempotency.idempotency_seconds * 1000), self._idempotency.idempotency_keys
        try:
            log, *replies = await connection.script("append", *window, self._log.log_events, len(group), *parts)
        except BaseException as exc:
            for request in group:
                request.refuse(self._failure(exc, EVENT_UNKNOWN))
            raise
        for request, reply in zip(group, replies, strict=True):
            if newest := request.resolve(log.decode(), reply):
                self._knowledge.note(newest)
        if LOG_IS_FULL in replies:
            raise connection.full()

    async def _send_change(self, connection: Connection, change: Change) -> None:
        if change.answer.done():
            return
        change.is_sent = True
        try:
            log, reply = await connection.script(change.verb, self._log.log_events, *change.arguments)
        except BaseException as exc:
            change.refuse(self._failure(exc, CHANGE_UNKNOWN))
            raise
        if position := change.resolve(log.decode(), reply):
            self._knowledge.note(position)
        if reply == LOG_IS_FULL:
            raise connection.full()

    def _failure(self, exc: BaseException, unknown: str) -> BrokerUnavailable:
        outcome = NOT_STORED if isinstance(exc, REFUSALS) else unknown
        return BrokerUnavailable(f"cannot write to the log at {self._server.shown}: {explain(exc)}; {outcome}")

    async def _answer_head_requests(self, connection: Connection) -> None:
        requests, self._head_requests = self._head_requests, []
        try:
            state = await connection.log_state()
        except BaseException:
            self._head_requests = [*requests, *self._head_requests]
            raise
        for answer in requests:
            if not answer.done():
                answer.set_result(str(state.head) if state.entries else None)

    def close(self) -> None:
        """Refuse everything that still waits, after the task has ended."""
        while self._requests:
            self._requests.popleft().refuse(BrokerUnavailable(STOPPED))
        while self._changes:
            self._changes.popleft().refuse(BrokerUnavailable(STOPPED))
        for answer in self._head_requests:
            if not answer.done():
                answer.set_exception(BrokerUnavailable(STOPPED))
