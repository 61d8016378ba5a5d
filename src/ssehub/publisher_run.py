"""Brings the events of a run to a hub over HTTP, so that each is stored once, whatever happens to the connection.

A request stays open while the run is produced, and carries the events as they come (`POST /runs/NAME`, NDJSON in
chunks). The hub answers at the end of a request only, unless something is wrong. So the writer ends the request now and
then, to learn how many events are stored, and goes on in another one on the same connection. Until it knows, it keeps
the events. After a connection is lost, it asks how many events the run has (`GET /runs/NAME`), and sends the rest. What
was stored just before the connection was lost can't be doubled: each request says how many events come before it
(`Run-Offset`), and the hub skips those that it has.

A hub that restarts, or a log that has lost its last events, may have another run of that name with the same number. So
the name of the run's log is compared, too.

A proxy may collect the whole body of a request before it passes it on. Then nothing would be seen before the request
ends. The writer finds out, warns, and sends many short requests instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from .errors import RunLost, SSEHubError, StaleRun, Unavailable
from .publisher_answers import RunAnswers, log_of
from .publisher_http import Answer, Connection, run_path
from .publisher_kept import KeptEvents
from .publisher_links import Links
from .publisher_request import MAX_REQUEST_BYTES, OpenRequest
from .publisher_route import Route, TryAgain
from .runs.arguments import Order
from .runs.entries import RunEvent
from .runs.model import Outcome, RunError, RunState
from .runs.producer import Opened, ProducedRun, ended
from .runs.store import CreateMode
from .runs.threads import Caller, SyncProducedRun

logger = logging.getLogger("ssehub.publisher")

MAX_WAITING_BYTES = 1_048_576
"""How much may wait to be stored before `append` waits."""
MAX_ERROR_CHARACTERS = 1_000
"""How long an error may be for the control app."""
MAX_SHORT_BYTES = 65_536
"""How much a short request carries."""
_JSON = {"Content-Type": "application/json"}


class HttpRuns:
    """The runs of one publisher, whose requests are open on its `links`."""

    def __init__(self, links: Links) -> None:
        self.links = links

    def produce(self, order: Order) -> ProducedRun:
        """Return a run that the task produces which enters it."""
        return ProducedRun(order.name, HttpWriter(order, self.links))

    def produce_sync(self, order: Order, call: Caller) -> SyncProducedRun:
        """Return a run that the thread produces which enters it."""
        return SyncProducedRun(order.name, HttpWriter(order, self.links), call)


class HttpWriter:
    """A `Writer` (see `runs/producer.py`) to the control app of a hub elsewhere."""

    def __init__(self, order: Order, links: Links) -> None:
        self._order = order
        self._name = order.name
        self._url = links.nodes[0].url
        self._answers = RunAnswers(order.name, self._url)
        self._buffering = links.buffering
        self._tasks = links.tasks
        self._patience = links.patience
        self._rhythm = links.rhythm.within(order.options.idle)
        self._route = Route(links.nodes, links.patience)
        self._producer = uuid4().hex
        self._connection: Connection | None = None
        self._kept = KeptEvents()
        self._generation = 0
        self._log = ""
        self._is_verified = True
        """False after a connection was lost, until the hub has said that the run is still there."""
        self._outcome: Outcome | None = None
        self._end: RunState | None = None
        self._failure: SSEHubError | None = None
        self._interrupt: Callable[[SSEHubError], None] = lambda error: None
        self._opened: asyncio.Future[Opened] | None = None
        """The result of `open`."""
        self._task: asyncio.Task[None] | None = None
        self._has_changed = asyncio.Event()
        """Set when the task has something to look at."""
        self._has_room = asyncio.Event()

    async def open(self, interrupt: Callable[[SSEHubError], None]) -> Opened:
        """Create the run: see `Writer.open`."""
        self._interrupt = interrupt
        self._opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._work(self._opened))
        self._tasks.add(self._task)
        self._task.add_done_callback(self._end_work)
        try:
            return await self._opened
        except asyncio.CancelledError:
            self._outcome = Outcome(RunState.FAILED, RunError.CANCELLED)  # the task ends what it has created
            self._has_changed.set()
            raise

    async def append(self, events: Sequence[RunEvent]) -> int:
        """Send `events` soon: see `Writer.append`. Waits while more than MAX_WAITING_BYTES wait to be stored."""
        while self._failure is None and self._kept.waiting_bytes > MAX_WAITING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
        self._require_going_on()
        if self._outcome is not None:  # the end may be on its way already
            raise ended(self._name, self._generation, self._outcome.state, self._kept.total)
        for event in events:
            self._kept.add(event)
        self._has_changed.set()
        if self._kept.waiting_bytes > MAX_REQUEST_BYTES:
            await asyncio.sleep(0)  # a producer that never waits itself would keep the task from sending
        return self._kept.total

    async def finish(self, outcome: Outcome) -> RunState:
        """End the run after its events: see `Writer.finish`."""
        assert self._task is not None
        self._outcome = self._outcome or outcome  # an earlier call was cancelled, but what it said is on its way
        self._has_changed.set()
        await asyncio.wait([self._task])
        self._require_going_on()
        assert self._end is not None
        return self._end

    async def close(self) -> None:
        """Break off: see `Writer.close`. The hub notices by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _require_going_on(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # it may be raised many times

    async def _create(self, opened: asyncio.Future[Opened]) -> None:
        run = await self._created(opened)
        self._generation, self._log = run["generation"], log_of(run)
        self._kept = KeptEvents(run["events"])
        if not opened.done():
            opened.set_result(Opened(self._generation, run["events"]))

    async def _created(self, opened: asyncio.Future[Opened]) -> dict[str, Any]:
        """Create the run, and return it. Once the hub may have created it, this goes on even if nobody waits for it."""
        may_exist = False
        body = json.dumps(_fields(self._order)).encode()
        headers = {**_JSON, "Idempotency-Key": uuid4().hex}
        while True:
            try:
                connection = await self._connected()
                may_exist = True
                connection.begin("PUT", run_path(self._name), headers, body)
                answer = await self._answer(connection)
                self._answers.require_available(answer)
            except (OSError, TryAgain) as problem:
                self._disconnect()
                if opened.done() and not may_exist:
                    raise asyncio.CancelledError from None
                await self._route.failed(problem)
                continue
            self._route.succeeded()
            return self._answers.created(answer)

    async def _work(self, opened: asyncio.Future[Opened]) -> None:
        """Create the run and send its events, and reconnect, until it has ended or can't be continued."""
        try:
            await self._create(opened)
            while self._end is None:
                try:
                    await self._step()
                except (OSError, TryAgain) as problem:
                    self._disconnect()
                    self._is_verified = False
                    await self._route.failed(problem)
        except SSEHubError as exc:
            self._fail(exc)
        except Exception as exc:
            logger.exception("run %r can't be continued", self._name)
            self._fail(Unavailable(f"run {self._name!r} can't be continued: {type(exc).__name__}"))

    def _end_work(self, task: asyncio.Task[None]) -> None:
        """The task has ended. If it was cancelled, it may not even have begun."""
        self._tasks.discard(task)
        self._disconnect()
        if task.cancelled():
            self._fail(Unavailable(f"run {self._name!r} was given up: its publisher has been closed"))

    def _fail(self, error: SSEHubError) -> None:
        self._failure = error
        self._has_room.set()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(error)
        elif self._generation:
            self._interrupt(error)

    async def _step(self) -> None:
        """Do what is next, in one request."""
        if self._connection is not None and self._connection.is_lost:
            self._is_verified = False
        if not self._is_verified:
            await self._verify()
        if self._outcome is not None and self._kept.stored == self._kept.total:
            await self._finish(self._outcome)
        elif self._buffering.is_found:
            await self._send_short()
        else:
            await self._send_stream()

    async def _verify(self) -> None:
        answer = await self._call("GET", run_path(self._name), {}, b"")
        self._answers.require_available(answer)
        self._acknowledge(self._answers.count(answer, self._generation, self._log))
        self._is_verified = True

    async def _finish(self, outcome: Outcome) -> None:
        """End the run. As `done` it ends by an append, which the hub refuses if it has lost some of the events."""
        if outcome.state is RunState.DONE:
            headers = self._append_headers("application/x-ndjson")
            answer = await self._call("POST", run_path(self._name, "?finish=done"), headers, b"")
            self._take(answer)
        else:
            answer = await self._call("POST", run_path(self._name, "/finish"), _JSON, self._failed(outcome))
            self._answers.require_available(answer)
            self._answers.require_accepted(answer)
        self._end = RunState(answer.fields["state"])

    def _failed(self, outcome: Outcome) -> bytes:
        error = (outcome.error or RunState.FAILED)[:MAX_ERROR_CHARACTERS]
        return json.dumps({"generation": self._generation, "error": error}).encode()

    async def _send_stream(self) -> None:
        """Send events as they come, until it is time to learn what is stored, or the hub answers early."""
        loop = asyncio.get_running_loop()
        connection = await self._connected()
        connection.begin("POST", run_path(self._name), self._append_headers("application/x-ndjson"))
        request = OpenRequest(self._kept, self._rhythm, loop.time())
        while connection.answer is None and not connection.is_lost:
            self._has_changed.clear()
            if part := request.next_part(loop.time()):
                connection.write(part)
            if request.is_over(loop.time()) or self._outcome is not None or await self._is_held(request):
                break
            await self._wait_until(min(request.wake_at, self._check_at(request)))
        if connection.answer is None and not connection.is_lost:
            connection.end()
        self._take(await self._answer(connection))

    def _check_at(self, request: OpenRequest) -> float:
        return float("inf") if self._buffering.is_known else request.check_at

    async def _is_held(self, request: OpenRequest) -> bool:
        """Return True if a check was due, and has shown that a proxy holds the events."""
        if asyncio.get_running_loop().time() < self._check_at(request):
            return False
        request.is_checked = True
        events = await self._count()
        if events is None:
            return False
        is_held = events == self._kept.stored
        self._buffering.note(self._url, is_found=is_held)
        return is_held

    async def _count(self) -> int | None:
        """Return how many events the hub has, or None if it does not say so."""
        connection = None
        try:
            connection = await self._route.connect()
            connection.begin("GET", run_path(self._name), {}, b"")
            answer = await connection.answered(self._rhythm.check_seconds)
        except OSError:
            return None
        finally:
            if connection is not None:
                connection.close()
        events = answer.fields.get("events")
        return events if isinstance(events, int) else None

    async def _send_short(self) -> None:
        """Send what there is, in a request that is complete, or a sign of life."""
        kept = self._kept
        loop = asyncio.get_running_loop()
        until = loop.time() + self._rhythm.short_life_seconds
        while kept.stored == kept.total and self._outcome is None and loop.time() < until:
            self._has_changed.clear()
            await self._wait_until(until)
        lines = kept.lines(kept.stored, MAX_SHORT_BYTES)
        if lines:
            content_type, body = "application/json", b"[" + b",".join(line[:-1] for line in lines) + b"]"
        else:
            content_type, body = "application/x-ndjson", b"\n"
        self._take(await self._call("POST", run_path(self._name), self._append_headers(content_type), body))

    def _append_headers(self, content_type: str) -> dict[str, str]:
        return {
            "Content-Type": content_type,
            "Run-Generation": str(self._generation),
            "Run-Producer": self._producer,
            "Run-Offset": str(self._kept.stored),
        }

    def _take(self, answer: Answer) -> None:
        """Take the answer to an append."""
        events = self._answers.appended(answer, self._generation)
        if events is not None:
            self._acknowledge(events)
        self._answers.require_available(answer)
        self._answers.require_accepted(answer)
        self._route.succeeded()

    def _acknowledge(self, events: int) -> None:
        if events > self._kept.total:
            raise StaleRun(f"another producer appends to run {self._name!r}, too")
        if events < self._kept.first:
            raise RunLost(f"run {self._name!r} has lost events that can't be sent again: {self._url} has {events}")
        if events > self._kept.stored:
            self._route.succeeded()
        self._kept.acknowledge(events)
        self._has_room.set()

    async def _call(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a request and return its answer. Raises OSError."""
        connection = await self._connected()
        connection.begin(method, path, headers, body)
        return await self._answer(connection)

    async def _answer(self, connection: Connection) -> Answer:
        answer = await connection.answered(self._patience.answer_seconds)
        if not connection.is_usable:
            self._disconnect()
        return answer

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_usable:
            self._disconnect()
            self._connection = await self._route.connect(self._has_changed.set)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _wait_until(self, when: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(when):
                await self._has_changed.wait()


def _fields(order: Order) -> dict[str, object]:
    """Return the body of `PUT /runs/NAME`."""
    options = order.options
    fields: dict[str, object] = {
        "channel": options.channels,
        "userId": options.users,
        "keep": options.keep,
        "idle": options.idle,
        "stoppable": options.stoppable,
    }
    if options.announce is not None:
        fields["announce"] = options.announce
    if order.mode is not CreateMode.NEW:
        fields[order.mode.value] = True
    return fields
