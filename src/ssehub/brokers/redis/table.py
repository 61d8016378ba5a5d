"""A node's copy of the table of revocations, kept equal to the one in Redis, which may lose what it has.

The table is read in pages, without the loop or Redis being blocked by a large one: all of it before the log is begun
and wherever a part of the log is missing, otherwise between two reads of the log. Since the reader does both, a page is
never older than the entries that have been applied to the copy.

A node puts back what the table lacks:

- where the log has another name, because Redis has lost data. The copy and the table are then united: what only one of
  the two knows stays revoked.
- where Redis has fewer revocations than the copy, which each tidying shows: the table was deleted, or evicted.

What was taken back must not be put back. The state of the log has the position of the last entry that took something
back, and Redis refuses a node that has not read up to it. A node that finds that it has missed such an entry, because
it was trimmed, takes over the table as it is.

Whoever puts back anything adds a `TakeBack` of nothing to the log: all nodes then read the table again, so that one
which started while the table was incomplete learns the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...errors import InvalidEvent
from ...position import Position
from ...publication import Revoke, TakeBack
from ...revocations import EXPIRY_MARGIN_SECONDS, Revocation, Revocations
from ...settings import LogRetention
from ..base import Entry, apply_commands
from .connection import Connection
from .state import Knowledge, LogClock
from .wire import LogState, parse_revocation

logger = logging.getLogger("ssehub.brokers.redis")

RESTORE_COUNT = 500
"""Revocations that are put back in one call: about 5 ms here, and 2 ms in Redis."""


class Scan:
    """A pass over the table, page by page, on one connection: another server has other cursors."""

    def __init__(self, connection: Connection, copy: Revocations, *, takes_over: bool = False) -> None:
        self.connection = connection
        self.takes_over = takes_over
        """True if what the table does not have has been taken back."""
        self.lacking = set(copy.keys())
        """Those of the copy that have not been found in the table as they are."""
        self.is_done = False
        self._cursor = b"0"

    async def next_page(self) -> list[tuple[bytes, bytes]]:
        self._cursor, page = await self.connection.revocations(self._cursor)
        self.is_done = self._cursor == b"0"
        return page


class Table:
    """The copy, `revocations`, and what remains to be done until it and the table in Redis are equal.

    `clock` is Redis', by which revocations run out.
    """

    def __init__(self, clock: LogClock, knowledge: Knowledge, log: LogRetention) -> None:
        self.revocations = Revocations()
        self._clock = clock
        self._knowledge = knowledge
        self._log = log
        self._read_to: Position | None = None
        """All commands of the log up to here have been applied to the copy; None if it has never been read."""
        self._is_unlike = False
        """True if the table may differ from the copy, so that it has to be read."""
        self._own: list[Entry] = []
        """What this node has stored, and is in the copy, but has not been read in the log yet."""
        self._untold: list[Revocation] = []
        """What `read` has found new so far. If it fails midway, they are in the copy, and not new the next time."""
        self._scan: Scan | None = None
        self._missing: list[str] = []
        """Keys of what the table lacks."""
        self._put_back = 0
        """How many of them have been put back so far."""
        self._must_wait = False
        """True if Redis refused to put them back, until more of the log, or the table, has been read."""

    def enter(self, position: Position, revocations: Sequence[Revocation]) -> None:
        """Enter what this node has stored at `position`, unless the log has been read so far.

        From now on the node refuses these tokens, and can put the revocations back if Redis loses them before their
        entry has been read.
        """
        read_to = self._read_to
        if read_to is not None and read_to.log == position.log and read_to >= position:
            return  # something later may have taken them back
        entry = Entry(position, Revoke(tuple(revocations)))
        apply_commands(self.revocations, [entry])
        self._own.append(entry)

    async def read(self, connection: Connection, state: LogState, tail: Sequence[Entry] = ()) -> list[Revocation]:
        """Read the whole table, which is at `state` or later; return those of the copy that the log may not have told.

        If `state` is that of another log than before, `tail` has its entries, or none if not all of them are known.
        """
        known, log = self._read_to, state.head.log
        if known is not None and known.log != log:
            apply_commands(self.revocations, tail)
        has_missed = known is not None and known.log == log and known < state.take_back
        scan = Scan(connection, self.revocations, takes_over=has_missed)
        self._scan, self._is_unlike = None, False
        while not scan.is_done:
            self._untold += await self._read_page(scan)
        self._read_to = state.head
        untold, self._untold = self._untold, []
        own, self._own = self._own, []
        return untold + [one for _, command in own if isinstance(command, Revoke) for one in command.revocations]

    def apply(self, entries: Sequence[Entry]) -> None:
        """Bring the copy up to date with the next `entries` of the log, which the last `read` may have overtaken."""
        assert self._read_to is not None, "the table is read before the log"
        commands = [entry for entry in entries if isinstance(entry.event, Revoke | TakeBack)]
        if commands:
            later = [entry for entry in commands if entry.position > self._read_to]
            apply_commands(self.revocations, later)
            self._is_unlike = self._is_unlike or any([entry.event == TakeBack(()) for entry in later])
        self._read_to = read_to = max(self._read_to, entries[-1].position)
        self._own = [entry for entry in self._own if entry.position > read_to]
        self._must_wait = False

    def compare(self, before: int, count: int) -> None:
        """Learn that the table has `count` revocations, and that the copy had `before` when Redis was asked."""
        if count < before:
            end = self._clock.now() - EXPIRY_MARGIN_SECONDS
            lasting = sum([one.expires_at is None or one.expires_at >= end for one in self.revocations])
            self._is_unlike = self._is_unlike or count < lasting

    @property
    def has_work(self) -> bool:
        """True if `step` has something to do."""
        return self._scan is not None or self._is_unlike or (bool(self._missing) and not self._must_wait)

    async def step(self, connection: Connection) -> list[Revocation]:
        """Read or put back some revocations, in a few milliseconds; return those that the copy did not have."""
        scan = self._scan
        if scan is None and self._missing and not self._must_wait:
            await self._put_back_some(connection)
            return []
        if scan is None or scan.connection is not connection:
            scan = self._scan = Scan(connection, self.revocations)
            self._is_unlike = False
        new = await self._read_page(scan)
        if scan.is_done:
            self._scan = None
        return new

    async def _read_page(self, scan: Scan) -> list[Revocation]:
        """Take over a page of the table; return what is new here."""
        new = []
        for field, value in await scan.next_page():
            try:
                revocation = parse_revocation(field, value)
            except (InvalidEvent, ValueError, RecursionError) as exc:
                self._skip(exc)
                continue
            if not revocation.has_run_out(self._clock.now()) and self._take_over(revocation, scan):
                new.append(revocation)
        if scan.is_done:
            self._finish(scan)
        return new

    def _take_over(self, revocation: Revocation, scan: Scan) -> bool:
        """Return True if it is new here."""
        copy, key = self.revocations, revocation.key
        known = copy.get(key)
        if known == revocation:
            scan.lacking.discard(key)
            return False
        if known is not None and scan.takes_over:
            copy.remove(key)
        is_new = copy.add(revocation)
        if known is not None and copy.get(key) == revocation:
            scan.lacking.discard(key)
        return is_new

    def _finish(self, scan: Scan) -> None:
        self._missing, self._put_back, self._must_wait = [], 0, False
        if not scan.takes_over:
            self._missing = list(scan.lacking)
            return
        for key in scan.lacking:
            self.revocations.remove(key)

    async def _put_back_some(self, connection: Connection) -> None:
        keys = self._missing[-RESTORE_COUNT:]
        revocations = [one for one in map(self.revocations.get, keys) if one is not None]
        assert self._read_to is not None, "nothing is missing before the table has been read"
        count = await connection.restore(revocations, self._read_to, self._log)
        if count is None:
            self._must_wait = True
            return
        del self._missing[-RESTORE_COUNT:]
        self._put_back += count
        if self._put_back and not self._missing:
            logger.warning("put back %d revocations that Redis had lost", self._put_back)

    def _skip(self, reason: Exception) -> None:
        if not self._knowledge.skipped:
            logger.warning("skipping a revocation that was not written by ssehub: %s", reason)
        self._knowledge.skipped += 1
