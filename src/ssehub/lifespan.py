"""The lifespan of a hub in one event loop, from its start until it is closed: the broker's session, and the engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from .brokers.base import AppendingBroker, Broker, Entry
from .brokers.session import Session
from .errors import BrokerUnavailable, HubClosed, WrongEventLoop
from .event import Event
from .fanout.engine import Engine
from .position import Position
from .publication import Publication
from .revocations import Revocation

REACH_SECONDS = 2.0
"""How long a client whose cursor is ahead of this hub waits for the hub to catch up."""

Answer = TypeVar("Answer")


class Lifespan:
    """Follows the log of `broker` in the running event loop. `follow` builds the engine as soon as the log begins."""

    def __init__(self, broker: Broker, follow: Callable[[Position], Engine]) -> None:
        self.loop = asyncio.get_running_loop()
        self.engine: Engine | None = None
        self.is_started = False
        self.is_draining = False
        self._broker = broker
        self._appending = broker if isinstance(broker, AppendingBroker) else None
        self._follow = follow
        self.session = Session(broker, self)

    # Following the log

    async def begin(self, base: Position) -> None:
        if self.engine is None:
            self.engine = self._follow(base)
        else:
            await self.engine.start_over(base)

    async def revoked(self, revocations: Sequence[Revocation]) -> None:
        if self.engine is not None:
            await self.engine.endings.revoke(revocations)

    async def deliver(self, position: Position, entries: Sequence[Entry]) -> None:
        if self.engine is None:
            raise RuntimeError("the broker must call begin before deliver")
        await self.engine.deliver(position, entries)

    # Calls of the hub

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        """Publish when there is capacity, and when the clients of the channels have read enough."""
        engine = self.engine
        if engine is None:
            return await self._broker.publish(publications)
        gate = engine.gate
        if gate.laggards or gate.held_up:
            await gate.wait_for_readers(_channels(publications))
        await gate.enter()
        try:
            if engine.is_ending_streams and not self._broker.outlives_process:
                raise HubClosed("the hub is about to stop, and its log ends with it; nothing was stored")
            return await self._broker.publish(publications)
        finally:
            gate.open()

    def publish_at_once(self, publications: Sequence[Publication]) -> list[str] | None:
        """Do what `publish` does if that waits for nothing, as is usual for one event; else None, and nothing is done.

        This leaves out ten coroutines, which take as long as all the rest.
        """
        engine, broker = self.engine, self._appending
        if engine is None or broker is None or len(publications) != 1:
            return None
        events = publications[0].events
        if len(events) != 1 or not isinstance(event := events[0], Event) or not engine.takes_at_once(event):
            return None
        position, entries, positions = broker.append(publications)
        engine.dispatch(position, entries)
        return positions

    def call(self, work: Coroutine[Any, Any, Answer], timeout_seconds: float) -> Answer:
        """Do `work` in the event loop of the lifespan, and return its result to any other thread.

        Raises WrongEventLoop in the thread of that loop, HubClosed if the loop has ended, and BrokerUnavailable after
        `timeout_seconds`.
        """
        if self.loop is asyncio._get_running_loop():
            work.close()
            raise WrongEventLoop(
                "this call would block the event loop that the hub runs in: await hub.publish, or use hub.run, there"
            )
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as exc:
            work.close()
            raise HubClosed("the event loop that the hub ran in has ended: await hub.start() in the new one") from exc
        try:
            return waiting.result(timeout_seconds)
        except CancelledError:
            raise BrokerUnavailable("the event loop has ended: the event may or may not be stored") from None
        except TimeoutError:
            waiting.cancel()
            raise BrokerUnavailable(f"no answer in {timeout_seconds:g} s: the event may or may not be stored") from None
        except KeyboardInterrupt:
            waiting.cancel()
            raise

    def has_reached(self, cursor: str) -> bool:
        """True if the log has been read up to `cursor`, or certainly has no such position."""
        position, engine = Position.parse(cursor), self.engine
        if position is None or engine is None or _has_reached(engine, position):
            return True
        # Another process may have begun a new log. One that is in memory stays as long as the process.
        return position.log != engine.head.log and not self._broker.outlives_process

    async def reach(self, cursor: str | None) -> None:
        """Wait until the log has been read up to `cursor`, or to its end, but at most REACH_SECONDS."""
        position, engine = Position.parse(cursor or ""), self.engine
        if position is None or engine is None or _has_reached(engine, position):
            return
        with contextlib.suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(REACH_SECONDS):
                end = Position.parse(await self._broker.head() or "")
                if end is None or end.log != position.log:
                    return
                while not _has_reached(engine, min(end, position)):  # noqa: ASYNC110  # dispatch is the hot path
                    await asyncio.sleep(0.005)


def _channels(publications: Sequence[Publication]) -> set[str]:
    """Return the channels of all events. A command is carried out whatever its channel's clients read."""
    return {
        name
        for publication in publications
        for event in publication.events
        if isinstance(event, Event)
        for name in event.channels
    }


def _has_reached(engine: Engine, position: Position) -> bool:
    return engine.head.log == position.log and engine.head >= position
