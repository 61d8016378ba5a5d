"""Stores of runs for tests: a world makes the brokers of one kind, and a listener records what it is told.

To check the store of another broker, describe it by a subclass of `RunWorld` and add that to `RUN_WORLDS`:

- `broker()` creates a broker. All brokers of one world share their runs, as after a restart; a new world has none.
- `pass_seconds` lets time pass for the running brokers, which then do what is due within a second.
- `is_durable` says whether runs outlive the broker, and `is_shared` whether several brokers may run at a time.
- `lose` makes a broker of a shared world stop as if its process had been killed: see there.

Then run `python -m pytest tests/test_run_contract*.py -k NAME`. What only one broker does is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from broker_worlds import RecordingFollower, StartServer
from ssehub.brokers import Broker
from ssehub.brokers.memory import MemoryBroker
from ssehub.brokers.redis import RedisBroker
from ssehub.brokers.sqlite import SqliteBroker
from ssehub.publication import IdempotencyKey
from ssehub.runs.entries import RunEvent
from ssehub.runs.model import Outcome, Run, RunOptions, RunState
from ssehub.runs.store import Append, Appended, Created, CreateMode, Creation, RunStore, Ticket
from ssehub.settings import RedisOptions, RunLimits
from ssehub.testing import ManualClock

NAME = "answer"
DONE = Outcome(RunState.DONE)
FAILED = Outcome(RunState.FAILED, "no more tokens")
PAGE_BYTES = 2**20


def let_time_pass(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let stores in this process look at their deadlines every so many seconds: they can't know a `ManualClock`."""
    monkeypatch.setattr("ssehub.runs.deadlines.TICK_SECONDS", seconds)
    monkeypatch.setattr("ssehub.runs.deadlines.REST_SECONDS", seconds)


def ticket(producer: str = "p", connection: int = 1) -> Ticket:
    """Return the ticket of a connection. Connections of different producers are different, too."""
    return Ticket(producer, f"{producer}-{connection}")


def options(users: Sequence[str] = ("alex",), channels: Sequence[str] = ("chat",), **fields: Any) -> RunOptions:
    return RunOptions(tuple(channels), tuple(users), **fields)


OPTIONS_BYTES = options().size
"""What the options of a run of these tests count for in the size of all runs."""


def events(*data: str) -> list[RunEvent]:
    return [RunEvent(text) for text in data]


def numbered(first: int, last: int) -> list[str]:
    return [f"{number}" for number in range(first, last + 1)]


def key(name: str, body: str = "body") -> IdempotencyKey:
    return IdempotencyKey(name, body)


class Told(NamedTuple):
    """One call of a listener. A run changes afterwards, so this has copies."""

    is_gone: bool
    generation: int
    log: str
    state: RunState
    error: str | None
    events: int
    first: int
    data: list[str]


class RecordingListener:
    """Records what it is told, and checks that the events it is told of are numbered as they should be."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.claims: list[str] = []

    def advanced(self, run: Run, first: int, events: Sequence[RunEvent]) -> None:
        assert not events or first + len(events) - 1 == run.events
        self._add(False, run, first, [event.data for event in events])

    def vanished(self, run: Run) -> None:
        self._add(True, run, run.events + 1, [])

    def claimed(self, connection: str) -> None:
        self.claims.append(connection)

    def _add(self, is_gone: bool, run: Run, first: int, data: list[str]) -> None:
        self.told.append(Told(is_gone, run.generation, run.log, run.state, run.error, run.events, first, data))

    @property
    def data(self) -> list[str]:
        """The data of all events, of all generations, in the order in which they were told."""
        return [text for told in self.told for text in told.data]

    @property
    def states(self) -> list[tuple[int, RunState]]:
        """The generations and states, each once."""
        found: list[tuple[int, RunState]] = []
        for told in self.told:
            if not found or found[-1] != (told.generation, told.state):
                found.append((told.generation, told.state))
        return found

    def check_contiguous(self) -> None:
        """Check that in each log no event was left out, or told twice, after the first one that was told."""
        last: dict[str, int] = {}
        for told in self.told:
            if told.data:
                assert told.first == last.get(told.log, told.first - 1) + 1
                last[told.log] = told.first + len(told.data) - 1


class Node:
    """A running store, with what it has reported as transitions, and short forms of its calls."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.store: RunStore = broker.runs
        self.transitions: list[tuple[str, int, RunState]] = []
        self.store.on_transition = lambda run: self.transitions.append((run.name, run.generation, run.state))

    async def create(
        self,
        name: str = NAME,
        mode: CreateMode = CreateMode.NEW,
        *,
        holder: Ticket | None = None,
        key: IdempotencyKey | None = None,
        expected: int | None = None,
        **fields: Any,
    ) -> Created:
        return await self.store.create(name, Creation(options(**fields), mode, key, holder, expected))

    async def append(self, *data: str, name: str = NAME, by: Ticket | None = None, **step: Any) -> Appended:
        """Append as the first step of a connection, unless `is_first` is False."""
        step.setdefault("is_first", True)
        return await self.store.append(name, Append(by or ticket(), events(*data), **step))

    async def follow(self, name: str = NAME) -> RecordingListener:
        listener = RecordingListener()
        await self.store.follow(name, listener)
        return listener

    async def get(self, name: str = NAME) -> Run:
        run = await self.store.get(name)
        assert run is not None
        return run

    async def data(self, name: str = NAME, after: int = 0) -> list[str]:
        """Return the data of all events of a run."""
        run, found = await self.get(name), list[str]()
        while page := await self.store.read(name, run.log, after + len(found), PAGE_BYTES):
            found += [event.data for event in page]
        return found

    async def ends(self, state: RunState, name: str = NAME) -> Run:
        """Return the run when it is in this state."""
        run = await self.get(name)
        for _ in range(500):
            if run.state is state:
                break
            await asyncio.sleep(0.01)
            run = await self.get(name)
        assert run.state is state
        return run

    async def goes(self, name: str = NAME) -> None:
        """Return when there is no such run."""
        for _ in range(500):
            if await self.store.get(name) is None:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is still there")


class RunWorld(ABC):
    """Makes brokers of one kind, which share their runs and a clock. Each test has a world of its own."""

    is_durable: ClassVar[bool]
    """True if runs outlive the broker."""
    is_shared: ClassVar[bool] = False
    """True if several brokers may run at a time."""

    def __init__(self, folder: Path, start_server: StartServer) -> None:
        """`folder` is empty; `start_server` returns a Redis or Valkey."""
        self.folder = folder
        self.clock = ManualClock()

    @abstractmethod
    def broker(self, limits: RunLimits = RunLimits()) -> Broker:
        """Create a broker whose clocks are those of `self.clock`."""

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass. The running brokers do what is due soon afterwards."""
        self.clock.pass_seconds(seconds)

    async def lose(self, node: Node) -> None:
        """Let a node renew no lease from now on, as if its process had been killed. Its calls need not work any more.

        Only for a world that is shared.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def running(self, **limits: Any) -> AsyncIterator[Node]:
        """Run a broker. `limits` are those of RunLimits."""
        broker = self.broker(RunLimits(**limits))
        node = Node(broker)
        async with broker.run(RecordingFollower()):
            yield node


class MemoryRunWorld(RunWorld):
    is_durable = False

    def broker(self, limits: RunLimits = RunLimits()) -> Broker:
        return MemoryBroker(runs=limits, now=lambda: self.clock.wall, monotonic=lambda: self.clock.monotonic)


class SqliteRunWorld(RunWorld):
    is_durable = True

    @property
    def path(self) -> Path:
        """The log's path."""
        return self.folder / "log.db"

    def broker(self, limits: RunLimits = RunLimits()) -> SqliteBroker:
        return SqliteBroker(self.path, runs=limits, now=lambda: self.clock.wall, monotonic=lambda: self.clock.monotonic)


class RedisRunWorld(RunWorld):
    """Redis uses its own clock, so `pass_seconds` moves the times stored in Redis instead.

    Each broker is a user of its own, so that Redis can end its connections for good.
    """

    is_durable = True
    is_shared = True
    kind: ClassVar[str] = "redis"
    _numbers = itertools.count()

    def __init__(self, folder: Path, start_server: StartServer) -> None:
        super().__init__(folder, start_server)
        self._server = start_server(self.kind)
        self._prefix = f"runs-{next(self._numbers)}"
        self._lost: list[str] = []
        """The leases of nodes that were lost."""
        self._users: dict[Broker, str] = {}

    def broker(self, limits: RunLimits = RunLimits()) -> Broker:
        user = f"user-{next(self._numbers)}"
        self._server.command("ACL", "SETUSER", user, "on", ">secret", "~*", "&*", "+@all")
        url = f"redis://{user}:secret@127.0.0.1:{self._server.port}"
        broker = RedisBroker(url, runs=limits, options=RedisOptions(redis_prefix=self._prefix))
        self._users[broker] = user
        return broker

    def pass_seconds(self, seconds: float) -> None:
        self._server.command("EVAL", PASS_TIME, 0, f"{{{self._prefix}}}:", round(seconds * 1000), *self._lost)

    async def lose(self, node: Node) -> None:
        leases = f"{{{self._prefix}}}:run-leases"
        self._server.command("ACL", "DELUSER", self._users[node.broker])
        before = self._scores(leases)
        await asyncio.sleep(1.5)  # the other nodes renew theirs twice
        self._lost += [lease for lease, score in self._scores(leases).items() if score == before.get(lease)]

    def _scores(self, key: str) -> dict[str, float]:
        with self._server.client() as client:
            return dict(client.zrange(key, 0, -1, withscores=True))


class ValkeyRunWorld(RedisRunWorld):
    kind = "valkey"


PASS_TIME = """
local prefix, milliseconds = ARGV[1], tonumber(ARGV[2])
local function shift(set, member)
  local score = redis.call('ZSCORE', set, member)
  if score then redis.call('ZADD', set, string.format('%.0f', score - milliseconds), member) end
end
for _, set in ipairs({prefix .. 'run-deadlines', prefix .. 'run-tombstone-ages'}) do
  for _, member in ipairs(redis.call('ZRANGE', set, 0, -1)) do shift(set, member) end
end
for i = 3, #ARGV do shift(prefix .. 'run-leases', ARGV[i]) end
for _, name in ipairs(redis.call('ZRANGE', prefix .. 'runs', 0, -1)) do
  for _, field in ipairs({'since', 'created', 'ended'}) do
    local key = prefix .. 'run:' .. name
    if redis.call('HEXISTS', key, field) == 1 then redis.call('HINCRBY', key, field, -milliseconds) end
  end
end
"""
"""Lets time pass for what is stored: the times of runs and tombstones, and of the leases that are given."""


RUN_WORLDS: dict[str, type[RunWorld]] = {
    "memory": MemoryRunWorld,
    "sqlite": SqliteRunWorld,
    "valkey": ValkeyRunWorld,
    "redis": RedisRunWorld,
}
