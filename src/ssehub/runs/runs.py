"""The runs of one hub: the store of its broker, which starts the hub and announces the runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..errors import HubClosed
from ..event import Event
from ..fields import json_text
from .entries import RunEvent
from .model import Outcome, Run
from .store import Append, Appended, Created, Creation, RunFilter, RunListener, RunStore, RunTotals, Ticket


class Runs:
    """Every method of RunStore, with the same parameters, results and errors. The hub is started if necessary.

    What happens to a run that has `announce` is published to its users.
    """

    def __init__(
        self,
        store: RunStore,
        start: Callable[[], Awaitable[object]],
        publish: Callable[[Event], None],
        is_draining: Callable[[], bool],
    ) -> None:
        """`start` starts the hub, and `publish` publishes an event soon, without waiting for it.

        While `is_draining` returns True, nothing is created.
        """
        self._store = store
        self._start = start
        self._publish = publish
        self._is_draining = is_draining
        store.on_transition = self._announce

    @property
    def outlives_process(self) -> bool:
        """True if runs are there after the process has ended."""
        return self._store.outlives_process

    async def create(self, name: str, creation: Creation) -> Created:
        """Create a run: see `RunStore.create`. Raises HubClosed if the hub is draining."""
        await self._start()
        if self._is_draining():
            raise HubClosed("the hub is draining and about to stop: create the run at another node, or try again later")
        return await self._store.create(name, creation)

    async def append(self, name: str, step: Append) -> Appended:
        """Append to a run: see `RunStore.append`."""
        return await self._store.append(name, step)

    async def release(self, name: str, ticket: Ticket) -> None:
        """Let another producer append: see `RunStore.release`."""
        await self._store.release(name, ticket)

    async def finish(self, name: str, outcome: Outcome, generation: int | None = None) -> Run:
        """End a run: see `RunStore.finish`."""
        await self._start()
        return await self._store.finish(name, outcome, generation)

    async def stop(self, name: str, generation: int | None = None) -> Run:
        """Ask a run's producer to stop: see `RunStore.stop`."""
        await self._start()
        return await self._store.stop(name, generation)

    async def delete(self, name: str, generation: int | None = None) -> Run:
        """Delete a run: see `RunStore.delete`."""
        await self._start()
        return await self._store.delete(name, generation)

    async def get(self, name: str) -> Run | None:
        """Return a run: see `RunStore.get`."""
        await self._start()
        return await self._store.get(name)

    async def read(self, name: str, log: str, after: int, max_bytes: int) -> list[RunEvent] | None:
        """Return events of a run: see `RunStore.read`."""
        return await self._store.read(name, log, after, max_bytes)

    async def list_runs(self, wanted: RunFilter, after: str | None = None, limit: int = 1_000) -> list[Run]:
        """Return runs: see `RunStore.list_runs`."""
        await self._start()
        return await self._store.list_runs(wanted, after, limit)

    async def follow(self, name: str, listener: RunListener) -> Run | None:
        """Tell `listener` what happens to a run: see `RunStore.follow`."""
        await self._start()
        return await self._store.follow(name, listener)

    def unfollow(self, name: str, listener: RunListener) -> None:
        """Stop to tell `listener`."""
        self._store.unfollow(name, listener)

    def totals(self) -> RunTotals:
        """Return what the store holds."""
        return self._store.totals()

    def _announce(self, run: Run) -> None:
        if run.options.announce is not None:
            data = json_text({"run": run.name, "state": run.state, "generation": run.generation})
            self._publish(Event(run.options.channels, run.options.users, data, run.options.announce))
