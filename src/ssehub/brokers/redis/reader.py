"""The reader: delivers the log to the hub, and notices when a part of it is missing.

`XREAD` from a position whose entries have been trimmed silently returns later ones, so the reader checks for itself.
It knows the number `n` of the last entry it read and the log's name:

- The next entry's `n` is not one more: the log was trimmed past this node, or an entry is missing.
- `XREAD` returns nothing twice in a row, and in between the log's state counted more entries: all that followed has
  been trimmed.
- An entry, or the state, has another log's name: the old log is gone, or has lost entries that some node knew.

It then calls `follower.begin`: with another name it reads the new log's tail, with the same name it continues after
the gap. Before that it reads the table of revocations, since entries about them may be among the missing ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any

from ...errors import BrokerUnavailable, InvalidEvent
from ...position import Position
from ...revocations import Revocation
from ...settings import Retention
from ..base import Entry, Follower
from .connection import CONNECTION_ERRORS, Connection, Server, explain, keep_connected
from .pauses import Pauses
from .state import Health, Knowledge
from .table import Table
from .wire import LogState, parse_entry, parse_id, stream_id

logger = logging.getLogger("ssehub.brokers.redis")

READ_COUNT = 100
SLICE_BYTES = 2**19
"""Bytes of entries that are read before the loop goes on: about 5 ms."""
TELL_COUNT = 1_000
"""Revocations that the follower is told of at a time."""
OPEN_LOG_SECONDS = 5.0
OTHER_LOG = "it belongs to another log"


class Reader:
    """The task that reads the log, on a connection of its own, and what it knows about how far it has read."""

    def __init__(
        self,
        server: Server,
        knowledge: Knowledge,
        table: Table,
        follower: Follower,
        retention: Retention,
        probe_seconds: float,
    ) -> None:
        self.health = Health("reading", server.shown)
        self._server = server
        self._knowledge = knowledge
        self._table = table
        self._follower = follower
        self._retention = retention
        self._probe_seconds = probe_seconds
        self._last: Position | None = None
        """The last entry read, or where the log began. None: the log has to be read from its tail."""
        self._entries = 0
        """The number of that entry."""
        self._last_id = b""
        """The stream id after which reading continues; later than `_last` if the entries between were skipped."""
        self._count = READ_COUNT
        """How many entries to ask for: after a reply that did not arrive in time only one, since they may be large."""
        self._pauses = Pauses()
        self._idle_state: LogState | None = None
        """The log's state when nothing came. If nothing comes again, the entries it counts have been trimmed."""
        self._goal = 0
        """The number of the log's newest entry when its state was last read."""
        self._has_reached_goal = False
        """True if this connection, or the one before, has read as far as that."""
        self._heard_at = -math.inf
        """Monotonic time of the last reply."""
        self._has_begun = False

    @property
    def is_current(self) -> bool:
        """True if the log is being read, and was read to its end since the connection was opened.

        A connection that has failed is known at once, and one that is silent after `probe_seconds`.
        """
        is_heard = time.monotonic() - self._heard_at < 2 * self._probe_seconds
        return self._has_reached_goal and self.health.problem is None and is_heard

    async def run(self) -> None:
        """Read the log, connecting again after errors, until cancelled."""
        await keep_connected(self._server, self._probe_seconds, self.health, self._read)

    async def _read(self, connection: Connection) -> None:
        try:
            await connection.check_version()
            await self.catch_up(connection)
            while True:
                if self._table.has_work:
                    await self._tell(await self._table.step(connection))
                await self._read_next(connection)
        except CONNECTION_ERRORS:
            raise
        except Exception:
            self._last = None  # how far the follower has got is unknown: read from the tail again
            raise
        finally:
            self._has_reached_goal = False

    async def catch_up(self, connection: Connection) -> None:
        """Check that this is still the log that was read; if it is not, begin with its tail."""
        self._idle_state = state = await connection.log_state(self._knowledge.newest)
        if self._last is None or state.head.log != self._last.log:
            await self._start_over(connection, state)
        self._goal = state.entries
        self._note_reply()

    def _note_reply(self) -> None:
        self._heard_at = time.monotonic()
        if self._entries >= self._goal:
            self._has_reached_goal = True
            self.health.clear()

    async def _read_next(self, connection: Connection) -> None:
        """Deliver the next entries; if none come, check whether they have been trimmed."""
        idle_state, self._idle_state = self._idle_state, None
        count, self._count = self._count, 1
        block_milliseconds = 1 if self._table.has_work else int(self._probe_seconds * 500)
        reply = await connection.command(
            "XREAD", "COUNT", count, "BLOCK", block_milliseconds, "STREAMS", connection.keys.stream, self._last_id
        )
        self._count = min(2 * count, READ_COUNT)
        entries = reply[0][1] if reply else ()  # a new log, which wakes those that wait, is a stream without entries
        if entries:
            next_at = self._pauses.ends_at(time.monotonic(), len(entries))
            await self._process(connection, entries)
            self._note_reply()
            if len(entries) < count and not self._table.has_work and next_at > (now := time.monotonic()):
                await asyncio.sleep(next_at - now)
            return
        if idle_state is not None and idle_state.entries > self._entries:
            await self._skip_trimmed(connection, idle_state)
        await self.catch_up(connection)

    async def _skip_trimmed(self, connection: Connection, state: LogState) -> None:
        """Continue after `state`: all entries up to it have been trimmed."""
        new = await self._read_table(connection, state)
        self._last, self._entries, self._last_id = state.head, state.entries, stream_id(state.head)
        await self._begin(state.head, new)

    async def _read_table(
        self, connection: Connection, state: LogState, tail: Sequence[Entry] = ()
    ) -> list[Revocation]:
        self._has_reached_goal = False
        return await self._table.read(connection, state, tail)

    async def _begin(self, base: Position, new: Sequence[Revocation]) -> None:
        """Let the follower begin after `base`; if not for the first time, tell it what is `new` in the table."""
        await self._follower.begin(base)
        if self._has_begun:
            await self._tell(new)
        self._has_begun = True

    async def _tell(self, new: Sequence[Revocation]) -> None:
        for start in range(0, len(new), TELL_COUNT):
            await self._follower.revoked(new[start : start + TELL_COUNT])

    async def _process(self, connection: Connection, entries: Sequence[Any]) -> None:
        chunk: list[Entry] = []
        size = 0
        for id, fields in entries:
            if size > SLICE_BYTES:
                await self._deliver(chunk)
                await asyncio.sleep(0)
                chunk, size = [], 0
            size += sum(map(len, fields))
            parsed = self._parse(id, fields)
            if parsed is None:
                continue
            n, entry = parsed
            if not self._is_next(n, entry.position):
                await self._deliver(chunk)
                chunk = []
                state = await connection.log_state(self._knowledge.newest)
                if self._last is None or state.head.log != self._last.log:
                    await self._start_over(connection, state)
                    return
                if entry.position.log != state.head.log:
                    self._skip(id, OTHER_LOG)
                    continue
                await self._begin(entry.position.before, await self._read_table(connection, state))
            chunk.append(entry)
            self._last, self._entries, self._last_id = entry.position, n, id
            self._knowledge.note(entry.position)
        await self._deliver(chunk)
        self._last_id = entries[-1][0]

    def _is_next(self, n: int, position: Position) -> bool:
        return self._last is not None and position.log == self._last.log and n == self._entries + 1

    async def _deliver(self, chunk: list[Entry]) -> None:
        if chunk:
            self._table.apply(chunk)
            await self._follower.deliver(chunk[-1].position, chunk)

    async def _start_over(self, connection: Connection, state: LogState) -> None:
        """Deliver the tail of the log, as much of it as a hub retains."""
        base, tail, last_id = await self._tail(connection, state)
        new = await self._read_table(connection, state, [entry for _, entry in tail] if base == state.born else ())
        self._last = None  # until all of the tail has been delivered
        await self._begin(base, new)
        for start in range(0, len(tail), READ_COUNT):
            await self._deliver([entry for _, entry in tail[start : start + READ_COUNT]])
        self._entries, last = (tail[-1][0], tail[-1][1].position) if tail else (state.entries, state.head)
        self._last, self._last_id = last, last_id
        self._knowledge.note(last)

    async def _tail(self, connection: Connection, state: LogState) -> tuple[Position, list[tuple[int, Entry]], bytes]:
        """Return the position before the tail, the tail's entries with their numbers, and the last id of the stream."""
        retention = self._retention
        tail: list[tuple[int, Entry]] = []
        last_id, size = stream_id(state.head), 0
        async with aclosing(self._newest_first(connection)) as entries:
            async for id, parsed in entries:
                last_id = max(last_id, id, key=parse_id)
                if parsed is None:
                    continue
                n, entry = parsed
                if tail[-1][0] == 1 if tail else state.entries == 0:
                    break  # older entries belong to another log
                if entry.position.log != state.head.log:
                    self._skip(id, OTHER_LOG)
                    continue
                if tail and n != tail[-1][0] - 1:
                    break
                size += entry.event.size
                if len(tail) >= retention.history_events or (tail and size > retention.history_bytes):
                    return entry.position, tail[::-1], last_id
                tail.append((n, entry))
        if not tail:
            return state.head, [], last_id
        first, oldest = tail[-1]
        return state.born if first == 1 else oldest.position.before, tail[::-1], last_id

    async def _newest_first(self, connection: Connection) -> AsyncGenerator[tuple[bytes, tuple[int, Entry] | None]]:
        end = b"+"
        while page := await connection.page(end):
            for id, fields in page:
                yield id, self._parse(id, fields)
            end = b"(" + page[-1][0]

    def _parse(self, id: bytes, fields: Sequence[bytes]) -> tuple[int, Entry] | None:
        try:
            return parse_entry(id, fields)
        except (InvalidEvent, ValueError) as exc:
            self._skip(id, str(exc))
            return None

    def _skip(self, id: bytes, reason: str) -> None:
        if not self._knowledge.skipped:
            logger.warning(
                "skipping entry %s of the log, which is invalid or was not written by ssehub: %s"
                " (further ones are only counted)",
                id.decode(),
                reason,
            )
        self._knowledge.skipped += 1


@contextmanager
def open_log(url: str, prefix: str) -> Iterator[Iterator[Entry]]:
    """Open the log at `url` for reading and yield its entries, newest first, without invalid ones.

    Raises ConfigError or BrokerUnavailable.
    """
    server = Server(url, prefix)
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            connection = runner.run(stack.enter_async_context(server.connect(OPEN_LOG_SECONDS)))
            yield _entries(runner, connection)
        except CONNECTION_ERRORS as exc:
            raise BrokerUnavailable(f"cannot use the log at {server.shown}: {explain(exc)}") from exc
        finally:
            runner.run(stack.aclose())


def _entries(runner: asyncio.Runner, connection: Connection) -> Iterator[Entry]:
    end = b"+"
    while page := runner.run(connection.page(end)):
        for id, fields in page:
            with contextlib.suppress(InvalidEvent, ValueError):
                yield parse_entry(id, fields)[1]
        end = b"(" + page[-1][0]
