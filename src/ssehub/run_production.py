"""The part of a hub that produces runs in its own process: from a task, from a thread, or in the background."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Coroutine
from typing import Any, TypeVar, Unpack

from .lifespan import Lifespan
from .runs.arguments import RunArguments, make_order
from .runs.local import GIVE_UP_SECONDS
from .runs.producer import ProducedRun
from .runs.producing import Producing, StartedRun
from .runs.threads import SyncProducedRun

CALL_SECONDS = GIVE_UP_SECONDS + 15.0
"""How long a thread waits for the event loop: longer than the producer waits for the store."""

Answer = TypeVar("Answer")


class RunProduction(ABC):
    """Creates runs and produces them. The hub, which is built on it, says in which lifespan."""

    _producing: Producing

    @abstractmethod
    def _running(self) -> Lifespan:
        """Return the hub's lifespan, in whichever event loop it is. Raises HubClosed if the hub is not running."""

    def run(self, name: str, **arguments: Unpack[RunArguments]) -> ProducedRun:
        """Return a run for a block that produces it: `async with hub.run("answer-42", channel=…, user_id=…) as run`.

        Entering creates it; `run.append` appends to it, and returns once the event is stored. `ProducedRun` says how
        leaving the block ends the run, and what interrupts the block. In the response of a request, the block ends when
        its client disconnects: use `start_run` there.

        Clients that could hear an event for `user_id` on `channel` may watch the run; both take one name or several. It
        is kept for `keep` seconds after its end (3,600), and fails after `idle` seconds (60) without a sign of life,
        which the hub shows by itself every 15 s. With `announce`, events of that type tell its users of its start and
        end. If it is `stoppable`, its watchers may stop it. If there is an open run of that name, entering raises
        RunConflict, unless `restart` drops its events, or `takeover` keeps them. `takeover` also keeps those of a run
        that has ended; otherwise it begins without events.

        Raises InvalidRequest. Entering also raises Overloaded if there are too many runs; HubClosed; BrokerUnavailable
        if it is not known whether the run was created: then try again with `restart=True`.
        """
        return self._producing.produce(make_order(name, **arguments))

    async def start_run(self, name: str, items: AsyncIterable[object], **arguments: Unpack[RunArguments]) -> StartedRun:
        """Create a run, and let a task of the hub append all `items` of an async iterator to it; return it.

        The task goes on after the request handler that has started it. An item is the data of an event: a string, or
        a value that is written as JSON; a `ssehub.RunEvent` gives its type, too. The other arguments are those of
        `run`. The run ends as `done` with the iterator; an exception of the iterator is logged, and the run fails. If
        the run is stopped, restarted or lost, the iterator is cancelled where it waits, and closed. Closing or draining
        the hub does that, too: the run ends as `failed`, with the error `shutdown`.

        Raises what entering `run` raises.
        """
        return await self._producing.produce_all(make_order(name, **arguments), items)

    def run_sync(self, name: str, **arguments: Unpack[RunArguments]) -> SyncProducedRun:
        """Return a run for a block in another thread: `with hub.run_sync("job-7", channel=…, user_id=…) as run`.

        The arguments are those of `run`. The hub has to run already. In its own thread, entering raises WrongEventLoop.
        """
        return self._producing.produce_sync(make_order(name, **arguments), self._call)

    def _call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            lifespan = self._running()
        except BaseException:
            work.close()
            raise
        return lifespan.call(work, CALL_SECONDS)
