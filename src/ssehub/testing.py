"""For the tests of projects that publish: a hub with a clock that stands still, and subscribers that record.

    async def test_order_is_announced(sse_hub):
        recorded = await sse_hub.record(channel="orders", user_id="alex")
        await place_order(sse_hub)
        await sse_hub.flush()
        assert recorded.messages[0].type == "order"

`sse_hub` is a pytest fixture that comes with ssehub. It is a `ManualHub`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from .brokers.memory import MemoryBroker
from .fanout.engine import Engine
from .fanout.resume import Start
from .fanout.sinks import Chunk, Owner
from .fanout.subscriber import CloseReason, Subscriber
from .hub import Hub
from .position import Position
from .subscription import Message, MessageReader


class ManualClock:
    """A wall clock (Unix time) and a monotonic clock, in seconds, that only move by `pass_seconds`."""

    def __init__(self, wall: float = 1_750_000_000.0) -> None:
        self.wall = wall
        self.monotonic = 1_000.0

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


class Recording:
    """One subscriber, and everything it has received."""

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.is_paused = False
        self.backlog = 0
        self.messages: list[Message] = []
        """The events that a page would be shown, and control events except `stream-hello` and `stream-position`."""
        self.text = ""
        """The text of the whole stream, heartbeats included."""
        self.subscriber: Subscriber | None = None
        self._reader = MessageReader()

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream has ended, or None if it has not."""
        return self.subscriber.reason if self.subscriber is not None else None

    def write(self, chunk: Chunk) -> None:
        text = chunk.data.decode()
        self.text += text
        self.messages.extend(self._reader.read(text))

    def close(self, linger_seconds: float = 0.0, *, cut_after: float | None = None) -> None:
        self.owner = None

    def abort(self) -> None:
        self.close()


class ManualHub(Hub):
    """A hub whose time passes only by `pass_seconds`. It takes the settings of `Hub`, and starts at its first use."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        super().__init__(now=lambda: self.clock.wall, monotonic=lambda: self.clock.monotonic, **settings)

    def _follow(self, base: Position) -> Engine:
        return self._build(base)  # without starting its ticker

    async def record(
        self,
        *,
        run: str | None = None,
        channel: str | Sequence[str] | None = None,
        patterns: str | Sequence[str] = (),
        user_id: str,
        expires_at: float | None = None,
        cursor: str | None = None,
        since: str | None = None,
    ) -> Recording:
        """Return a subscriber that records everything from now on, or after `cursor` or `since`.

        It hears these channels, and those that begin like one of the patterns, such as `orders.*`. With `run` it
        records that run, from its first event or behind `cursor`.
        """
        await self.start()
        recording = Recording()
        claims = self._claims(user_id, channel, patterns, expires_at)
        if run is not None:
            await self.find_run(run, claims)
            recording.subscriber = self.watch(run, claims, recording, cursor)
            return recording
        recording.subscriber = self.attach(claims, recording, Start.parse(cursor, since))
        return recording

    async def pass_seconds(self, seconds: float) -> None:
        """Let time pass, with everything it brings: heartbeats, expiry, signs of life, the end of slow streams."""
        await self.start()
        left = seconds
        while left > 0:
            step = min(left, self._engine.ticker.seconds) if self._engine is not None else left
            self.clock.pass_seconds(step)
            if self._engine is not None:
                self._engine.upkeep.advance(slice_size=None)
            self._producing.beat()
            await asyncio.sleep(0)
            if isinstance(self.broker, MemoryBroker):
                self.broker.runs.advance()
            left -= step
            await asyncio.sleep(0)
        await self.flush()
