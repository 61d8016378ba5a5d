"""The runs of a deployment in Redis. Any node appends to them, and any node serves them.

Every call is one operation of the script `runs.lua`, which numbers the events, decides by the rules of
`ssehub.runs.book`, and publishes what has changed, all in one step. A node has two connections for all its runs: one
for these calls, and one on which it hears of those that are followed on it. The claims of a node's producers are alive
while its lease is, which it renews. Any node ends the runs whose deadline has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ...errors import BrokerUnavailable, ConflictReason, IdempotencyConflict, Overloaded, Unavailable, UnknownRun
from ...loglimit import limited_logger
from ...runs.conflicts import KEY_CONFLICT, conflict, stale
from ...runs.entries import RunEvent
from ...runs.model import (
    EVENT_OVERHEAD_BYTES,
    MAX_TOMBSTONES,
    TOMBSTONE_SECONDS,
    Outcome,
    Run,
    RunState,
)
from ...runs.store import (
    Append,
    Appended,
    Created,
    Creation,
    RunFilter,
    RunListener,
    RunTotals,
    Ticket,
)
from ...settings import RunLimits
from ..numbering import new_log_name
from .connection import Server
from .run_calls import Calls
from .run_channels import Channels
from .run_following import Followings
from .run_wire import dump_error, dump_options, load_events, parse_run

logger = limited_logger("ssehub.brokers.redis")

SWEEP_SECONDS = 0.5
"""How often a node does what is due while it knows of open runs."""
REST_SECONDS = 2.0
"""How often it does so otherwise. It learns of an open run when it next does anything with one, and the node that has
created a run knows of it.
"""
SWEEP_RUNS = 100
"""How many runs it ends, or releases, at a time."""
LIST_RUNS = 200
"""Runs that are looked at in one call."""
CALL_EVENTS = 10_000
CALL_BYTES = 8 * 2**20
"""An append with more is stored in several steps, of which the last one ends the run."""
SLICE_EVENTS = 200
SLICE_BYTES = 2**19
"""What is encoded or decoded before the loop goes on."""
READ_BYTES = 2**20
"""Bytes of events that are read in one call, at most."""
MAX_RELEASES = 20_000
LEAVE_SECONDS = 0.5
NO_TOTALS = RunTotals(dict.fromkeys(RunState, 0), 0)
NOT_RUNNING = "the Redis broker is not running: use it inside `async with hub`"


class _Tasks:
    """What a running store has: its connections, and what is followed."""

    def __init__(self, server: Server, probe_seconds: float) -> None:
        self.node = secrets.token_hex(8)
        """The name of this node's lease, new for each run of the broker."""
        self.epoch: bytes | None = None
        """The epoch as of the last sweep."""
        self.calls = Calls(server, probe_seconds)
        self.followings = followings = Followings(self.calls)
        self.channels = Channels(
            server,
            probe_seconds,
            on_message=followings.on_message,
            on_subscribed=followings.on_subscribed,
            on_lost=followings.on_lost,
        )
        followings.connect(self.channels)


async def _rest(knows_open: asyncio.Event) -> None:
    """Return when it is time for the next sweep."""
    jitter = random.uniform(0.8, 1.2)
    if knows_open.is_set():
        await asyncio.sleep(SWEEP_SECONDS * jitter)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_SECONDS * jitter):
            await knows_open.wait()


class RedisRuns:
    """The runs in the Redis of `server`: see `RunStore`."""

    def __init__(self, server: Server, limits: RunLimits, probe_seconds: float) -> None:
        self.on_transition: Callable[[Run], None] = lambda run: None
        self.outlives_process = True
        self._server = server
        self.limits = limits
        self._probe_seconds = probe_seconds
        self._releases: OrderedDict[tuple[str, Ticket], None] = OrderedDict()
        """Claims whose release Redis has not confirmed: it is tried again."""
        self._tasks: _Tasks | None = None
        """None while the broker is not running."""

    # Life

    @property
    def problem(self) -> str | None:
        """Why runs can't be used at present; None if they can."""
        tasks = self._tasks
        return None if tasks is None else tasks.calls.health.problem or tasks.channels.health.problem

    @asynccontextmanager
    async def running(self) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Inside the context the store can be used. Yields the tasks that have to be cancelled at its end."""
        tasks = _Tasks(self._server, self._probe_seconds)
        started = [
            asyncio.create_task(tasks.calls.run()),
            asyncio.create_task(tasks.channels.run()),
            asyncio.create_task(self._sweep_forever(tasks)),
        ]
        self._tasks = tasks
        try:
            yield started
        finally:
            if tasks.calls.health.problem is None:
                with contextlib.suppress(Unavailable, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):
                        await tasks.calls.call("leave", tasks.node)
            self._tasks = None
            tasks.followings.close()
            tasks.calls.close()

    async def _sweep_forever(self, tasks: _Tasks) -> None:
        problem: str | None = None
        while True:
            has_more, known_problem = False, problem
            try:
                has_more = await self._sweep(tasks)
                has_more = await self._release_again() or has_more
                problem = None
            except Unavailable as exc:
                problem = str(exc)
                is_connected = tasks.calls.health.problem is None  # otherwise that has been logged
                if is_connected and problem != known_problem:
                    logger.warning("cannot do what is due for runs: %s", problem)
            except Exception:
                logger.exception("unexpected error while doing what is due for runs: trying again")
            if has_more:
                await asyncio.sleep(0)
            else:
                await _rest(tasks.calls.knows_open)

    async def _sweep(self, tasks: _Tasks) -> bool:
        """Do what is due, and renew the lease. Returns True if there may be more to do."""
        tombstones = int(TOMBSTONE_SECONDS * 1000), MAX_TOMBSTONES
        arguments = (tasks.node, SWEEP_RUNS, *tombstones, secrets.token_hex(8))
        _, has_more, ended, epoch, failure = await tasks.calls.call("sweep", *arguments)
        if failure is not None:
            logger.warning("cannot do what is due for a run: %s", failure.decode(errors="replace"))
        if tasks.epoch not in (None, epoch):
            tasks.followings.look_up_all()  # Redis has deleted everything, and told nobody
        tasks.epoch = epoch
        for name, record in zip(ended[::2], ended[1::2], strict=True):
            self.on_transition(parse_run(name.decode(), record))
        return bool(has_more)

    async def _release_again(self) -> bool:
        """Repeat releases, not so many that the lease lapses meanwhile. Returns True if there may be more."""
        for _ in range(min(SWEEP_RUNS, len(self._releases))):
            (name, ticket), _ = self._releases.popitem(last=False)
            await self.release(name, ticket)
        return bool(self._releases)

    def _running(self) -> _Tasks:
        if self._tasks is None:
            raise BrokerUnavailable(NOT_RUNNING)
        return self._tasks

    # Calls

    async def create(self, name: str, creation: Creation) -> Created:
        tasks, limits = self._running(), self.limits
        options, mode, key, ticket, expected = creation
        times = options.idle, options.keep, limits.run_stop_seconds
        reply = await tasks.calls.call(
            "create",
            name,
            "" if expected is None else expected,
            mode.value,
            dump_options(options),
            options.size,
            *[int(seconds * 1000) for seconds in times],
            new_log_name(),
            *(key or ("", "")),
            *(ticket or ("", "")),
            tasks.node,
            limits.max_runs,
            limits.max_runs_bytes,
        )
        return Created(self._run(name, reply, expected), reply[0] == b"ok")

    async def append(self, name: str, step: Append) -> Appended:
        events: list[bytes] = []
        sizes: list[int] = []
        size = sliced = 0
        for number, event in enumerate(step.events, 1):
            dumped = event.dump().encode()
            if events and (len(events) == CALL_EVENTS or size + len(dumped) > CALL_BYTES):
                appended = await self._append(name, step._replace(outcome=None), events, sizes)
                offset = appended.events if step.offset is None else step.offset + len(events)
                step = step._replace(is_first=False, offset=offset)
                events, sizes, size, sliced = [], [], 0, 0
            events.append(dumped)
            sizes.append(event.size + EVENT_OVERHEAD_BYTES)
            size += len(dumped)
            if number % SLICE_EVENTS == 0 or size - sliced > SLICE_BYTES:
                sliced = size
                await asyncio.sleep(0)
        return await self._append(name, step, events, sizes)

    async def _append(self, name: str, step: Append, events: list[bytes], sizes: list[int]) -> Appended:
        """Append what has been encoded, in one call."""
        tasks, limits = self._running(), self.limits
        ticket, outcome = step.ticket, step.outcome
        reply = await tasks.calls.call(
            "append",
            name,
            "" if step.generation is None else step.generation,
            "" if step.offset is None else step.offset,
            ticket.producer,
            ticket.connection,
            tasks.node,
            int(step.is_first),
            "" if outcome is None else outcome.state,
            dump_error(outcome),
            limits.run_bytes,
            limits.max_runs_bytes,
            sum(sizes),
            " ".join(map(str, sizes)) if step.offset is not None else "",
            secrets.token_hex(8) if step.offset else "",
            len(events),
            *events,
            size=sum(map(len, events)),
        )
        if type(reply) is bytes:
            generation, count, state = reply.split()
            return Appended(int(generation), int(count), RunState(state.decode()))
        run = self._run(name, reply, step.generation, f", not the {step.offset} that were sent before")
        return Appended(run.generation, run.events, run.state)

    async def release(self, name: str, ticket: Ticket) -> None:
        try:
            self._run_or_none(name, await self._running().calls.call("release", name, *ticket))
        except Unavailable:
            self._releases[name, ticket] = None
            if len(self._releases) > MAX_RELEASES:
                self._releases.popitem(last=False)
            raise

    async def finish(self, name: str, outcome: Outcome, generation: int | None = None) -> Run:
        number = "" if generation is None else generation
        reply = await self._running().calls.call("finish", name, number, outcome.state, dump_error(outcome))
        return self._run(name, reply, generation)

    async def stop(self, name: str, generation: int | None = None) -> Run:
        reply = await self._running().calls.call("stop", name, "" if generation is None else generation)
        return self._run(name, reply, generation)

    async def delete(self, name: str, generation: int | None = None) -> Run:
        reply = await self._running().calls.call("delete", name, "" if generation is None else generation)
        return self._run(name, reply, generation)

    async def get(self, name: str) -> Run | None:
        return self._run_or_none(name, await self._running().calls.call("get", name, is_read=True))

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        most = min(max_bytes, READ_BYTES)
        calls = self._running().calls
        status, *found = await calls.call("read", name, log, after, most, reply_size=most, is_read=True)
        if status != b"ok":
            return None
        (entries,) = found
        events: list[RunEvent] = []
        for start in range(0, len(entries), SLICE_EVENTS):
            if start:
                await asyncio.sleep(0)
            events += load_events(entries[start : start + SLICE_EVENTS])
        return events

    async def list_runs(self, wanted: RunFilter, after: str | None = None, limit: int = 1_000) -> list[Run]:
        calls = self._running().calls
        states = RunState if wanted.states is None else wanted.states
        runs: list[Run] = []
        start: str | bytes = after or ""
        while len(runs) < limit:
            reply = await calls.call(
                "list", wanted.user_id or "", start, LIST_RUNS, *states, reply_size=LIST_RUNS * 500, is_read=True
            )
            _, last, records = reply
            for name, record in zip(records[::2], records[1::2], strict=True):
                run = parse_run(name.decode(), record)
                if wanted.channel is None or wanted.channel in run.options.channels:
                    runs.append(run)
            if last is None:
                break
            start = last
        return runs[:limit]

    async def follow(self, name: str, listener: RunListener) -> Run | None:
        return await self._running().followings.follow(name, listener)

    def unfollow(self, name: str, listener: RunListener) -> None:
        if self._tasks is not None:
            self._tasks.followings.unfollow(name, listener)

    def totals(self) -> RunTotals:
        return NO_TOTALS if self._tasks is None else self._tasks.calls.totals

    # Replies

    def _run_or_none(self, name: str, reply: Sequence[Any]) -> Run | None:
        """Return the run in a reply, and report if it was created, or has ended."""
        _, record, is_transition, *_ = reply
        if record is None:
            return None
        run = parse_run(name, record)
        if is_transition:
            self.on_transition(run)
        return run

    def _run(self, name: str, reply: Sequence[Any], generation: int | None = None, gap: str = "") -> Run:
        """Return the run in a reply, or raise the refusal that it is.

        Its message says which `generation` was named, and which `gap` there is.
        """
        run = self._run_or_none(name, reply)
        status = reply[0]
        if status == b"conflict" and run is not None:
            reason = ConflictReason(reply[3].decode())
            if reason is ConflictReason.STALE:
                raise stale(run, generation)
            raise conflict(run, reason, gap if reason is ConflictReason.OFFSET else "")
        if status == b"key":
            raise IdempotencyConflict(KEY_CONFLICT)
        if status == b"runs":
            raise Overloaded(
                f"there are as many runs as max_runs allows, {self.limits.max_runs}: delete runs, keep them for a "
                "shorter time, or raise it"
            )
        if status == b"bytes":
            raise Overloaded(
                f"all runs together are as large as max_runs_bytes allows, {self.limits.max_runs_bytes} bytes: delete "
                "runs, keep them for a shorter time, or raise it"
            )
        if run is None or status == b"unknown":
            raise UnknownRun(name)
        return run
