"""The task that decides calls about runs and commits the changes, many calls in one transaction.

    waiting    calls wait for the transaction before them; at rest there is none
    deciding   the book decides about each of them, in their order; what it changes is collected
    writing    one transaction stores that, in a thread; calls that arrive meanwhile wait
    telling    after the commit, listeners are told of each change, and then the calls are answered

So a caller or a listener knows nothing that could still be lost, refusals included: a producer that is told how many
events there are may forget its own. If the commit fails, all calls of that group are refused. The book is then ahead of
the file, so it is built anew from what is in the file. Before anything is decided again, a small transaction has to
succeed: otherwise a full disk would cost a new book for each group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ...errors import BrokerUnavailable
from ...runs.book import Book, Change
from ...runs.deadlines import Looks
from .run_ledger import Ledger, Telling
from .runfile import Changes, Loaded, RunFile

logger = logging.getLogger("ssehub.brokers.sqlite")

GROUP_CALLS = 1_000
GROUP_BYTES = 4 * 2**20
"""A transaction with events of this size accepts no further calls."""
SLICE_CALLS = 100
"""How many calls are decided, or changes told, before the event loop does something else."""
TIDY_SECONDS = 30.0

Answer = TypeVar("Answer")


class _Call(NamedTuple):
    decide: Callable[[Book], tuple[Any, Change | None]]
    size: int
    answer: asyncio.Future[Any]


class _Group:
    """Calls that share a transaction: what each is answered, and what listeners are told."""

    def __init__(self, writes_before: int) -> None:
        self.writes_before = writes_before
        """How many transactions had been committed before this one."""
        self.answers: list[tuple[asyncio.Future[Any], Any]] = []
        self.tellings: list[Telling] = []

    def refuse(self, exc: Exception) -> None:
        for answer, _ in self.answers:
            _refuse(answer, exc)


class RunWriter:
    """Works in the running event loop from now until `stop`. Only `thread` uses the file.

    `rebuild` makes a ledger of what is in the file, in that thread, and `tell` tells of one change. `now` returns Unix
    time.
    """

    def __init__(
        self,
        file: RunFile,
        thread: ThreadPoolExecutor,
        ledger: Ledger,
        *,
        rebuild: Callable[[Loaded], Ledger],
        tell: Callable[[Telling], None],
        now: Callable[[], float],
    ) -> None:
        self.problem: str | None = None
        self.ledger = ledger
        self._file = file
        self._thread = thread
        self._rebuild = rebuild
        self._tell = tell
        self._now = now
        self._failed: _Group | None = None
        """The group that was not committed, as it seems, until the ledger is built anew."""
        self._must_probe = False
        """True from a failed transaction until one succeeds."""
        self._is_due = False
        """True if deadlines are to be looked at."""
        self._is_untidy = False
        """True if tombstones that have run out are to be deleted."""
        self._is_stopping = False
        self._calls: deque[_Call] = deque()
        self._questions: list[tuple[Callable[[Book], Any], asyncio.Future[Any]]] = []
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._looks = Looks(self._loop.time())
        self._next_tidying = self._loop.time() + TIDY_SECONDS
        self._task = self._loop.create_task(self._run())

    def call(self, decide: Callable[[Book], tuple[Answer, Change | None]], size: int = 0) -> asyncio.Future[Answer]:
        """Let the book decide; the result is the answer, once the change is committed. `size` is that of its events."""
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._calls.append(_Call(decide, size, answer))
        self._wake.set()
        return answer

    def ask(self, question: Callable[[Book], Answer]) -> asyncio.Future[Answer]:
        """Return the answer to a question, given when all that was decided is committed."""
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._questions.append((question, answer))
        self._wake.set()
        return answer

    async def stop(self) -> None:
        """Finish the group at work, refuse the calls that wait, and return."""
        self._is_stopping = True
        self._wake.set()
        await self._task
        self._refuse_waiting(BrokerUnavailable("the hub has stopped; nothing was stored"))

    async def _run(self) -> None:
        while not self._is_stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(self._looks.next, self._next_tidying)):
                    await self._wake.wait()
            self._wake.clear()
            self._look_at_clock()
            while not self._is_stopping and self._has_work and await self._work():
                self._look_at_clock()
            self._plan_look()

    def _plan_look(self) -> None:
        # A file that could not be read, or written, is tried again at the next look.
        is_well = self._failed is None and not self._must_probe and not self._is_due
        self._looks.plan(self._loop.time(), self.ledger.book.due_in if is_well else 0.0)

    def _look_at_clock(self) -> None:
        self._plan_look()  # a call may have brought an earlier deadline
        now = self._loop.time()
        if now >= self._looks.next and self._looks.acts(now):
            self._is_due = True
        if now >= self._next_tidying:
            self._next_tidying = now + TIDY_SECONDS
            self._is_untidy = True

    @property
    def _has_work(self) -> bool:
        return bool(self._calls or self._questions or self._is_due or self._is_untidy or self._file.has_leftovers)

    async def _work(self) -> bool:
        """Do what waits, as much as fits into one transaction; return False if nothing can be written now."""
        if self._failed is not None and not await self._reload():
            return False
        self._answer_questions()
        if self._must_probe and not await self._write(partial(self._file.write, Changes())):
            self._refuse_waiting(BrokerUnavailable(str(self.problem)))
            return False
        if self._is_untidy:
            self._is_untidy = False
            return await self._write(partial(self._file.tidy, self._now()))
        group = _Group(self._file.writes)
        try:
            await self._decide(group)
            changes = self.ledger.take_changes()
            if changes.has_any or self._file.has_leftovers:
                is_stored = await self._write(partial(self._file.write, changes))
            else:
                is_stored = True
        except Exception as exc:  # a bug: it must not leave the callers without an answer
            logger.exception("writing runs failed")
            self._report_problem(exc)
            is_stored = False
        if is_stored:
            await self._finish(group)
        else:
            self._failed = group
            group.refuse(BrokerUnavailable(str(self.problem)))
        return is_stored

    async def _reload(self) -> bool:
        """Build the ledger anew after a failed transaction; return False if that fails, too.

        A commit that has reported an error may have taken effect: then listeners are told now.
        """
        failed = self._failed
        assert failed is not None, "a transaction has failed"
        try:
            loaded = await self._loop.run_in_executor(self._thread, self._file.load)
            ledger = await self._loop.run_in_executor(self._thread, self._rebuild, loaded)
        except Exception as exc:
            self._report_problem(exc)
            self._refuse_waiting(BrokerUnavailable(str(exc)))
            return False
        has_happened = loaded.writes > failed.writes_before
        if has_happened:
            self.ledger.committed(failed.tellings)
        ledger.keep_claims(self.ledger)
        self.ledger = ledger
        self._failed = None
        if has_happened:
            await self._tell_all(failed.tellings)
        return True

    def _answer_questions(self) -> None:
        questions, self._questions = self._questions, []
        for question, answer in questions:
            if not answer.done():
                answer.set_result(question(self.ledger.book))

    async def _decide(self, group: _Group) -> None:
        if self._is_due:
            self._collect_overdue(group)
        size = 0
        while self._calls and len(group.answers) < GROUP_CALLS and size < GROUP_BYTES:
            call = self._calls.popleft()
            size += call.size
            group.answers.append((call.answer, self._decide_call(call, group)))
            if len(group.answers) % SLICE_CALLS == 0:
                await asyncio.sleep(0)

    def _decide_call(self, call: _Call, group: _Group) -> Any:
        """Return the answer to a call, or the error that it is answered with."""
        try:
            result, change = call.decide(self.ledger.book)
        except Exception as exc:
            return exc
        if change is None:
            return result
        self._collect(change, group)
        return result if change.refusal is None else change.refusal

    def _collect_overdue(self, group: _Group) -> None:
        changes = self.ledger.book.overdue()
        self._is_due = changes is not None
        for change in changes or ():
            self._collect(change, group)

    def _collect(self, change: Change, group: _Group) -> None:
        group.tellings.append(self.ledger.collect(change))

    async def _write(self, transaction: Callable[[], None]) -> bool:
        """Return True if `transaction` has been committed."""
        try:
            await self._loop.run_in_executor(self._thread, transaction)
        except Exception as exc:
            self._report_problem(exc)
            self._must_probe = True
            return False
        self._must_probe = False
        self.problem = None
        return True

    async def _finish(self, group: _Group) -> None:
        self.ledger.committed(group.tellings)
        await self._tell_all(group.tellings)
        for answer, result in group.answers:
            if isinstance(result, Exception):
                _refuse(answer, result)
            elif not answer.done():
                answer.set_result(result)

    async def _tell_all(self, tellings: list[Telling]) -> None:
        for count, telling in enumerate(tellings, 1):
            try:
                self._tell(telling)
            except Exception:
                logger.exception("telling of a run failed")
            if count % SLICE_CALLS == 0:
                await asyncio.sleep(0)

    def _report_problem(self, exc: Exception) -> None:
        if self.problem != str(exc):
            logger.warning("%s", exc)
        self.problem = str(exc)

    def _refuse_waiting(self, exc: Exception) -> None:
        calls, questions = self._calls, self._questions
        self._calls, self._questions = deque(), []
        for call in calls:
            _refuse(call.answer, exc)
        for _, answer in questions:
            _refuse(answer, exc)


def _refuse(answer: asyncio.Future[Any], exc: Exception) -> None:
    if not answer.done():
        answer.set_exception(exc)
